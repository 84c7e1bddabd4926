"""Logits processors inside `generate`: the texts of plain decoding, padded batch and all."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import LogitsProcessor, LogitsProcessorList

from draftrec.integrations import transformers as ours
from draftrec.pool.store import Pool
from tests.models import zoo

ROWS = [[5, 6, 7, 8, 5, 6], [0, 0, 0, 9, 10, 9], [0, 0, 0, 0, 0, 11]]
IDS = torch.tensor(ROWS)
MASK = (IDS != 0).long()
NEW = 16


class Own(LogitsProcessor):
    """Forbids the token three places back."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return scores.scatter(1, input_ids[:, -3:-2], -torch.inf)


CASES: dict[str, dict[str, Any]] = {
    "repetition": {"repetition_penalty": 1.3},
    "encoder repetition": {"encoder_repetition_penalty": 1.5},
    "n-grams": {"no_repeat_ngram_size": 2},
    "encoder n-grams": {"encoder_no_repeat_ngram_size": 2},
    "bad words": {"bad_words_ids": [[i] for i in range(3, 40, 3)] + [[5, 7], [0, 9]]},
    "bias": {"sequence_bias": [[[i], 2.0] for i in range(3, 90, 5)]},
    "least length": {"min_length": 14},
    "least new tokens": {"min_new_tokens": 9},
    "forced end": {"forced_eos_token_id": 2},
    "growing end": {"exponential_decay_length_penalty": (3, 1.5)},
    "suppressed": {"suppress_tokens": list(range(3, 60, 2))},
    "suppressed first": {"begin_suppress_tokens": list(range(3, 90))},
    "allowed": {"prefix_allowed_tokens_fn": lambda i, ids: [3 + i, 20 + len(ids) % 7, 40, 50]},
    "own": {"logits_processor": LogitsProcessorList([Own()])},
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
@pytest.mark.filterwarnings("ignore")
def test_processors_give_the_texts_of_plain_decoding(case: str) -> None:
    model = zoo.build("llama")
    settings = {
        "max_new_tokens": NEW, "attention_mask": MASK, "eos_token_id": [2, 40, 41],
        "pad_token_id": 0, "do_sample": False,
    }  # fmt: skip
    expected = model.generate(IDS, **settings, **CASES[case])
    right = [row[IDS.shape[1] :].numpy().astype(np.int32) for row in expected]
    for texts in (right, [np.arange(3, 90, dtype=np.int32)]):
        pool = Pool("any")
        pool.add([(text[text != 0], None) for text in texts])
        found = model.generate(
            IDS, **settings, **CASES[case], custom_generate=ours.generate, pool=pool, budget=6
        )
        assert torch.equal(found, expected), case


@pytest.mark.filterwarnings("ignore")
def test_relaxed_rules_take_nothing_that_a_processor_forbids() -> None:
    forbidden = list(range(3, 90, 2))
    found = zoo.build("llama").generate(
        IDS, attention_mask=MASK, max_new_tokens=NEW, do_sample=True, top_k=20, pad_token_id=0,
        suppress_tokens=forbidden, custom_generate=ours.generate, accept="relaxed", budget=6,
    )  # fmt: skip
    assert not np.isin(found[:, IDS.shape[1] :].numpy(), forbidden).any()


@pytest.mark.filterwarnings("ignore")
def test_who_allows_prefixes_is_asked_about_those_that_a_text_may_have() -> None:
    """As by plain decoding: a list of what there may be need not know what drafts say besides."""
    model, end = zoo.build("llama"), 7
    settings = {"attention_mask": MASK, "max_new_tokens": NEW, "eos_token_id": end}

    def allowed(_row: int, ids: torch.Tensor) -> list[int]:
        written = ids[IDS.shape[1] :].tolist()
        assert all(token % 2 for token in written), "no text has this prefix"
        assert end not in written, "this one has ended"
        return list(range(3, 90, 2))

    for row in range(len(ROWS)):  # a finished text of several is padded, and asked about
        ids, mask = IDS[row : row + 1], MASK[row : row + 1]
        settings["attention_mask"] = mask
        expected = model.generate(ids, prefix_allowed_tokens_fn=allowed, pad_token_id=0, **settings)
        pool, text = Pool("any"), expected[0, IDS.shape[1] :].tolist()
        pool.add([(np.array([token, other, token], np.int32), None)
                  for token in text for other in (4, 5, end)])  # fmt: skip
        found = model.generate(
            ids, prefix_allowed_tokens_fn=allowed, pad_token_id=0, **settings,
            custom_generate=ours.generate, pool=pool, budget=8,
        )  # fmt: skip
        assert torch.equal(found, expected)
