"""With `exact`, strict texts are those of plain decoding bit for bit, in bfloat16 too."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
import torch

from draftrec.core import EMPTY_TREE
from draftrec.engine.beams.state import BeamRequest, Beams
from draftrec.engine.packing import Segment
from draftrec.engine.passes.prepacked import prepack
from draftrec.engine.selfcheck import checked_target
from draftrec.engine.target import Target
from draftrec.engine.tree import chain
from tests.engine.beams import toys
from tests.engine.test_exactness import (
    _EXPERTS,
    _TWO_SHAPES,
    WINDOW,
    _sized,
    build,
    ours,
    prompts_of,
)

_MODELS = {
    "llama": _sized("Llama"),
    "mistral window": _sized("Mistral", sliding_window=WINDOW),
    "qwen2 hybrid": _sized("Qwen2", use_sliding_window=True, sliding_window=WINDOW,
                           max_window_layers=1),
    "qwen3": _sized("Qwen3", head_dim=8),
    "gemma2": _sized("Gemma2", head_dim=8, sliding_window=WINDOW),
    "gemma4": _sized("Gemma4Text", **_TWO_SHAPES),
    "gpt_oss": _sized("GptOss", **_EXPERTS, head_dim=8, sliding_window=WINDOW),
    "olmo": _sized("Olmo"),
    "mixtral": _sized("Mixtral", **_EXPERTS),
}  # fmt: skip

_OF_EXPERTS = {"gpt_oss", "mixtral"}


def exact_target(name: str, dtype: torch.dtype) -> Target:
    return checked_target(build(_MODELS[name]()).to(dtype), exact=True)


def logits_alone(target: Target, text: np.ndarray, first: int) -> torch.Tensor:
    """Of the tokens from `first` on, one by one."""
    target.reserve(4, len(text) + 8)
    target.score([Segment(0, 0, text[:first], EMPTY_TREE, scored=False)])
    rows = [
        target.score([Segment(0, i, text[i : i + 1], EMPTY_TREE)]).logits
        for i in range(first, len(text))
    ]
    return torch.cat(rows)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", _MODELS)
def test_strict_texts_are_plain_ones(name: str, dtype: torch.dtype) -> None:
    target = exact_target(name, dtype)
    if name in _OF_EXPERTS and not target.exact:
        pytest.skip("an expert's product depends on how many rows it gets, which was said")
    assert target.exact
    prompts, new = prompts_of(5, 30, 17, 44), 60
    plain = ours(target, prompts, [[] for _ in prompts], new, slots=1)
    assert len({t for text in plain for t in text}) > 3
    for slots in (1, 3, 4):
        assert ours(target, prompts, plain, new, slots) == plain


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_have_the_same_bits_as_drafts_and_in_company(
    dtype: torch.dtype,
    packed: bool,  # noqa: FBT001
) -> None:
    model = build(_MODELS["llama"]()).to(dtype)
    if packed:
        prepack(model)
    target = checked_target(model, exact=True)
    assert target.exact
    text = prompts_of(50)[0]
    alone = logits_alone(target, text, 40)
    drafted = Segment(1, 40, text[40:41], chain(text[41:].tolist()))
    other = Segment(3, 0, prompts_of(30)[0], chain([5, 6]))
    target.score([Segment(1, 0, text[:13], EMPTY_TREE, scored=False), other])
    target.score([Segment(1, 13, text[13:40], EMPTY_TREE, scored=False)])
    found = target.score([other, drafted]).logits[-10:]
    assert torch.equal(found, alone)


@pytest.mark.slow
def test_without_it_bits_differ() -> None:
    """So that the tests above can fail."""
    differ = 0
    for name in ("llama", "qwen3", "olmo"):
        target = checked_target(build(_MODELS[name]()))
        assert not target.exact
        text = prompts_of(90)[0]
        alone = logits_alone(target, text, 60)
        target.score([Segment(1, 0, text[:60], EMPTY_TREE, scored=False)])
        drafted = Segment(1, 60, text[60:61], chain(text[61:].tolist()))
        differ += not torch.equal(target.score([drafted]).logits, alone)
    assert differ


def beams_of(target: Target, drafted: bool, slots: int) -> list[Beams]:  # noqa: FBT001
    """The best four of four levels for three users, drafted by the model itself or plain."""
    trie, _ = toys.catalogue(seed=1, items=200, levels=4, codes=9)
    asked = [BeamRequest(i, prompt) for i, prompt in enumerate(prompts_of(90, 31, 57))]
    draft = Target(build(_MODELS["llama"]())) if drafted else None
    return toys.run(target, trie, asked, toys.Setting(slots=slots), draft)


@pytest.mark.parametrize(
    "dtype", [pytest.param(torch.float32, marks=pytest.mark.slow), torch.bfloat16]
)
def test_drafted_beams_have_the_items_and_the_scores_bits_of_plain_ones(dtype: torch.dtype) -> None:
    target = exact_target("llama", dtype)
    assert target.exact
    plain = beams_of(target, drafted=False, slots=1)
    for drafted, slots in ((False, 3), (True, 1), (True, 3)):
        found = beams_of(target, drafted, slots)
        for a, b in zip(found, plain, strict=True):
            assert np.array_equal(a.tokens, b.tokens)
            assert a.scores.tobytes() == b.scores.tobytes()
        assert any(b.accepted_steps for b in found) == drafted


def test_without_it_the_scores_bits_of_beams_differ() -> None:
    target = checked_target(build(_MODELS["llama"]()))
    plain = beams_of(target, drafted=False, slots=1)
    found = beams_of(target, drafted=True, slots=3)
    assert any(a.scores.tobytes() != b.scores.tobytes() for a, b in zip(found, plain, strict=True))


def test_what_cannot_be_kept_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "draftrec"):
        target = checked_target(build(_sized("Nemotron")()), exact=True)
    assert not target.exact
    assert "--exact is not built for NemotronForCausalLM (its attention" in caplog.text


def test_a_model_whose_rows_heed_each_other_is_found_out(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build(_MODELS["llama"]())
    mlp: Any = model.model.layers[0].mlp
    forward = mlp.forward

    def leaking(x: torch.Tensor) -> torch.Tensor:
        return forward(x) * (1 + 1e-6 * x.shape[1])

    monkeypatch.setattr(mlp, "forward", leaking)
    with caplog.at_level(logging.WARNING, "draftrec"):
        target = checked_target(model, exact=True)
    assert not target.exact
    assert "--exact cannot be kept: in float32" in caplog.text
    # Nor is it paid for.
    assert not target.attends_by_row
    assert target.padded_rows(5) == Target(build(_MODELS["llama"]())).padded_rows(5) == 5
