"""The pass written by hand says what the model says, and only runs where it fits."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from draftrec.core import EMPTY_TREE
from draftrec.engine import selfcheck
from draftrec.engine.packing import Segment
from draftrec.engine.passes import llama_step, team
from draftrec.engine.passes.llama_step import fits
from draftrec.engine.passes.prepacked import Part, prepack
from draftrec.engine.selfcheck import checked_target
from draftrec.engine.target import Target
from draftrec.engine.tree import chain
from tests.engine.test_exactness import WINDOW, _sized, build, ours, prompts_of
from tests.models import zoo
from tests.strategies import trees

_ROPE = {"rope_type": "llama3", "rope_theta": 10_000.0, "factor": 4.0, "low_freq_factor": 1.0,
         "high_freq_factor": 4.0, "original_max_position_embeddings": 64}  # fmt: skip
_MODELS = {
    "llama": _sized("Llama"),
    "llama biases": _sized("Llama", attention_bias=True, mlp_bias=True, head_dim=16),
    "llama rope": _sized("Llama", rope_parameters=_ROPE),
    "mistral window": _sized("Mistral", sliding_window=WINDOW),
    "qwen2 hybrid": _sized("Qwen2", use_sliding_window=True, sliding_window=WINDOW,
                           max_window_layers=1),
    "qwen3": _sized("Qwen3", head_dim=8),
}  # fmt: skip


def model_of(name: str, dtype: torch.dtype = torch.float32) -> Any:
    """Its vectors, which start as ones and zeros, are random too."""
    model = build(_MODELS[name]())
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.add_(torch.randn(parameter.shape, generator=generator) / 4)
    return model.to(dtype)


def both(model: Any) -> Iterator[Target]:
    """The target with the pass by hand, and without; each with room for four texts."""
    for way in ("auto", "eager"):
        target = Target(model, way=way)
        assert target.by_hand == (way == "auto")
        target.reserve(4, 128)
        yield target


@cache
def pair(name: str, *, packed: bool) -> tuple[Target, ...]:
    """As `both`, once for all that is drawn."""
    model = model_of(name)
    if packed:
        prepack(model)
    return tuple(both(model))


def scores(target: Target, segments: list[Segment]) -> torch.Tensor:
    first, second = prompts_of(30, 50)
    target.score([Segment(0, 0, first, EMPTY_TREE), Segment(2, 0, second, EMPTY_TREE)])
    return target.score(segments).logits


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", _MODELS)
@given(st.data())
@settings(max_examples=8)
def test_logits_are_the_models(name: str, packed: bool, data: st.DataObject) -> None:  # noqa: FBT001
    targets = pair(name, packed=packed)
    if targets is None:
        pytest.skip("this build of torch has no packed linear operators")
    start = np.array([3, 4], np.int32)
    segments = [
        Segment(slot, at, start, data.draw(trees(zoo.VOCABULARY)))
        for slot, at in ((2, 50), (0, 30))
    ]
    hand, own = (scores(target, segments) for target in targets)
    torch.testing.assert_close(hand, own, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", _MODELS)
def test_bfloat16_is_rounded_where_the_model_rounds(name: str) -> None:
    segments = [Segment(2, 50, np.array([3], np.int32), chain([5, 6, 7, 8]))]
    hand, own = (scores(target, segments) for target in both(model_of(name, torch.bfloat16)))
    assert hand.dtype == torch.bfloat16
    assert (hand == own).float().mean() > 0.9  # a sum in another order may fall on another side


def test_threads_share_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    target = next(both(model_of("qwen3")))
    segments = [Segment(2, 50, prompts_of(13)[0], EMPTY_TREE)]
    alone = scores(target, segments)
    calls: list[int] = []
    pool = team._pool
    monkeypatch.setattr(team, "_LEAST_SHARED", 0)
    monkeypatch.setattr(team, "_pool", lambda n: calls.append(n) or pool(n))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert torch.equal(scores(target, segments), alone)
    assert set(calls) == {2}, "the caller takes a part itself"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "qwen3", "mistral window"])
def test_exact_texts_are_plain_ones(name: str) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        target = checked_target(model_of(name, dtype), exact=True, way="auto")
        assert target.by_hand
        assert target.exact
        prompts = prompts_of(5, 30, 17)
        plain = ours(target, prompts, [[] for _ in prompts], 20, slots=1)
        assert ours(target, prompts, plain, 20, slots=3) == plain


def test_only_plain_models_of_the_shape_fit() -> None:
    assert all(fits(model_of(name)) for name in _MODELS)
    assert not fits(model_of("llama").to(torch.float16))
    for name in ("gemma2", "phi3", "olmo2", "gpt2", "gpt_oss", "qwen3_moe", "falcon"):
        assert not fits(zoo.build(name))
    assert not fits(zoo.build("llama", hidden_act="gelu"))


def test_what_was_put_into_a_model_is_heeded() -> None:
    hooked: Any = model_of("llama")
    hooked.model.layers[1].mlp.register_forward_hook(lambda *_: None)
    assert not fits(hooked)
    replaced: Any = model_of("llama")
    replaced.model.norm.forward = lambda x: x
    assert not fits(replaced)
    adapted: Any = model_of("llama")

    class Adapter(torch.nn.Linear):
        """As adapters and quantizers replace layers."""

    layer = adapted.model.layers[0].self_attn
    layer.q_proj = Adapter(32, 32, bias=False)
    assert not fits(adapted)
    mixed: Any = model_of("llama", torch.bfloat16)
    mixed.model.norm.float()
    assert not fits(mixed)


def test_a_pass_that_differs_is_not_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def wrong(
        first: int, last: int, parts: tuple[np.ndarray, ...], begins: tuple[int, ...],
        out: np.ndarray,
    ) -> None:  # fmt: skip
        out[first:last] = parts[0][first:last, begins[0] : begins[0] + out.shape[1]]

    monkeypatch.setattr(llama_step, "_gate", wrong)
    with caplog.at_level(logging.WARNING, "draftrec"):
        target = checked_target(model_of("llama"), way="auto")
    assert not target.by_hand
    assert "LlamaForCausalLM runs as it is" in caplog.text


def test_it_is_used_where_the_choice_is_ours() -> None:
    assert checked_target(model_of("llama"), way="auto").by_hand
    assert not checked_target(model_of("llama"), way="eager").by_hand
    last = [Segment(2, 50, np.array([3], np.int32), EMPTY_TREE)]
    found: list[torch.Tensor] = []
    for narrow_kv in (False, True):  # its keys and values are rounded to bfloat16 in any case
        narrow = checked_target(model_of("llama", torch.bfloat16), narrow_kv=narrow_kv, way="auto")
        narrow.reserve(4, 128)
        assert narrow.slab is not None
        assert narrow.slab.keys[0].dtype == torch.bfloat16
        found.append(scores(narrow, last))
    assert torch.equal(*found)
    exact = checked_target(model_of("qwen3"), exact=True, way="auto")
    assert exact.by_hand
    assert exact.exact


def test_weights_stay_the_models_own(tmp_path: Path) -> None:
    model = model_of("llama")
    target = next(both(model))
    segments = [Segment(2, 50, np.array([3], np.int32), EMPTY_TREE)]
    before = scores(target, segments)
    with torch.no_grad():  # as training does
        model.model.layers[0].mlp.gate_proj.weight.mul_(1.5)
        model.model.norm.weight.mul_(1.5)
    changed = scores(target, segments)
    assert not torch.allclose(changed, before)
    model.save_pretrained(tmp_path)
    again = tf.AutoModelForCausalLM.from_pretrained(tmp_path)
    found = scores(next(both(again)), segments)
    torch.testing.assert_close(found, changed, rtol=1e-4, atol=1e-4)


def test_longer_texts_get_longer_tables() -> None:
    target = next(both(model_of("llama")))
    scores(target, [Segment(2, 50, np.array([3], np.int32), EMPTY_TREE)])
    text = prompts_of(200)[0]
    target.reserve(1, 200)
    found = target.score([Segment(0, 0, text, EMPTY_TREE)]).logits
    ids = torch.tensor([text.tolist()])
    expected = model_of("llama")(input_ids=ids).logits[0, -1:]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_parts_are_one_product_for_the_same_rows() -> None:
    model: Any = model_of("llama biases")
    prepack(model)
    q, k, v = (getattr(model.model.layers[0].self_attn, f"{n}_proj") for n in "qkv")
    assert isinstance(q, Part)
    calls: list[int] = []
    q.whole.register_forward_hook(lambda *_: calls.append(1))
    x, y = torch.randn(2, 1, 5, 32)
    first = [layer(x) for layer in (q, k, v)]
    assert len(calls) == 1
    assert q._shared.rows is None, "rows are let go"
    other = [layer(rows) for layer, rows in ((v, y), (q, x), (k, y), (k, x), (q, x), (v, x))]
    assert torch.equal(other[1], first[0])
    assert torch.equal(other[3], first[1])
    assert torch.equal(other[5], first[2])
    assert torch.equal(other[0], q.whole(y)[..., v.begin :])


def test_the_check_sees_the_pass_by_hand() -> None:
    assert selfcheck._difference(next(both(model_of("qwen3"))), 30, "eager") < 1e-4
