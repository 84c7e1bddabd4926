"""Whole texts under controls against `model.generate`, drafts right and wrong."""

from __future__ import annotations

import sys
import types
from functools import cache
from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from draftrec.config import AcceptConfig, ControlsConfig
from draftrec.engine.text.loop import generate
from draftrec.engine.text.settings import make_controls, resolve
from tests.engine.text.helpers import NEW_TOKENS, PROMPTS, GuessingDrafter, make_engine, requests
from tests.models import zoo

EOS = frozenset([2, 40, 41, 42])
CONTROLS: dict[str, dict[str, Any]] = {
    "repetition_penalty": {"repetition_penalty": 1.3},
    "encoder_repetition_penalty": {"encoder_repetition_penalty": 1.5},
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 2},
    "min_new_tokens": {"min_new_tokens": 12, "repetition_penalty": 1.1},
    "bad_words_ids": {"bad_words_ids": [[i] for i in range(3, 40, 3)] + [[5, 7], [40, 41]]},
    "sequence_bias": {"sequence_bias": [[[i], 2.0] for i in range(3, 90, 5)]},
    "suppress_tokens": {"suppress_tokens": list(range(3, 60, 2))},
    "begin_suppress_tokens": {"begin_suppress_tokens": list(range(3, 90))},
    "forced_eos_token_id": {"forced_eos_token_id": 2},
    "exponential_decay": {"exponential_decay_length_penalty": (3, 1.4)},
}
TOGETHER: dict[str, Any] = {
    "repetition_penalty": 1.1, "no_repeat_ngram_size": 3, "min_new_tokens": 6,
    "bad_words_ids": [[11], [13, 17]], "suppress_tokens": [19, 23], "forced_eos_token_id": 2,
    "sequence_bias": [[[29], 1.0], [[31, 37], -1.0]], "begin_suppress_tokens": [43, 47],
    "exponential_decay_length_penalty": (8, 1.05),
}  # fmt: skip


@cache
def plain(name: str, case: str) -> list[list[int]]:
    """transformers' own texts, one prompt at a time."""
    texts = []
    for prompt in PROMPTS[:4]:
        ids = torch.tensor([prompt])
        out = zoo.plain(name).generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, eos_token_id=sorted(EOS),
            max_new_tokens=NEW_TOKENS, pad_token_id=0, **(CONTROLS | {"together": TOGETHER})[case],
        )  # fmt: skip
        texts.append(out[0, len(prompt) :].tolist())
    return texts


def ours(name: str, case: str, slots: int, hit: float) -> list[list[int]]:
    model = types.SimpleNamespace(
        generation_config=GenerationConfig(**(CONTROLS | {"together": TOGETHER})[case]),
        config=zoo.plain(name).config,
    )
    settings = resolve(ControlsConfig(), AcceptConfig(), model, None).settings
    truth = {str(i): text for i, text in enumerate(plain(name, case))}
    engine = make_engine(
        name, GuessingDrafter(truth, hit), eos=EOS, slots=slots,
        controls=make_controls(settings, EOS),
    )  # fmt: skip
    return [g.token_ids.tolist() for g in generate(engine, requests(PROMPTS[:4]))]


@pytest.mark.slow
@pytest.mark.parametrize(("slots", "hit"), [(1, 0.9), (4, 0.9), (4, 0.0)])
@pytest.mark.parametrize("case", CONTROLS)
def test_each_control_gives_the_text_of_transformers(case: str, slots: int, hit: float) -> None:
    assert ours("llama", case, slots, hit) == plain("llama", case)


@pytest.mark.parametrize("case", ["exponential_decay", "min_new_tokens"])
def test_an_end_that_the_head_does_not_have_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    """Tokenizers to which an end of turn was added know it before the model does."""
    expected = plain("llama", case)
    monkeypatch.setattr(sys.modules[__name__], "EOS", EOS | {zoo.VOCABULARY + 9})
    assert ours("llama", case, 4, 0.9) == expected


@pytest.mark.slow
@pytest.mark.parametrize("name", zoo.NAMES)
def test_all_controls_together_on_every_architecture(name: str) -> None:
    expected = plain(name, "together")
    assert ours(name, "together", 4, 0.9) == expected
    assert ours(name, "together", 1, 0.0) == expected


@pytest.mark.slow
def test_every_control_of_these_tests_changes_texts() -> None:
    """Or equality would mean nothing."""
    without = plain_without("llama")
    assert all(plain("llama", case) != without for case in CONTROLS)


def plain_without(name: str) -> list[list[int]]:
    CONTROLS["nothing"] = {}
    try:
        return plain(name, "nothing")
    finally:
        del CONTROLS["nothing"]
