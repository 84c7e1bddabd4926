"""Products of float32 rows with bfloat16 weights are float32 products."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from draftrec.engine.passes import prepacked, row_attention
from draftrec.engine.passes.prepacked import HalfLinear, Part, half, is_prepacked, prepack
from draftrec.engine.selfcheck import checked_target
from tests.engine.test_exactness import _sized, build, ours, prompts_of


def layer(inputs: int, outputs: int, *, bias: bool = False) -> HalfLinear:
    torch.manual_seed(inputs + outputs)
    weight = torch.randn(outputs, inputs).bfloat16()
    return HalfLinear(weight, nn.Parameter(torch.randn(outputs)) if bias else None)


@pytest.mark.parametrize("shape", [(1, 1), (7, 5), (96, 160), (1500, 33), (2048, 6)])
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 13, 128, 131])
@torch.inference_mode()
def test_products_are_float32s(shape: tuple[int, int], rows: int) -> None:
    linear = layer(*shape, bias=rows % 2 == 0)
    x = torch.randn(1, rows, shape[0])
    expected = F.linear(x.double(), linear.weight.double(), None if linear.bias is None
                        else linear.bias.double())  # fmt: skip
    found = linear(x)
    assert found.shape == expected.shape
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("shape", [(1100, 37), (96, 160), (577, 33), (13, 9), (1536, 576)])
@torch.inference_mode()
def test_a_row_by_itself_has_the_bits_that_it_has_among_others(shape: tuple[int, int]) -> None:
    linear = layer(*shape)
    x = torch.randn(140, shape[0])
    everything = linear(x)
    for first, last in ((0, 1), (5, 6), (3, 8), (0, 140), (137, 140)):
        assert torch.equal(linear(x[first:last]), everything[first:last])


@torch.inference_mode()
def test_threads_take_a_part_of_the_outputs_each(monkeypatch: pytest.MonkeyPatch) -> None:
    linear = layer(64, 41)
    inputs = [torch.randn(rows, 64) for rows in (1, 6)]
    alone = [linear(x) for x in inputs]
    monkeypatch.setattr(row_attention, "_LEAST_SHARED", 0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    for x, expected in zip(inputs, alone, strict=True):
        torch.testing.assert_close(linear(x), expected, rtol=1e-6, atol=1e-5)


def test_only_what_loses_nothing_is_halved() -> None:
    weight = torch.randn(8, 8)
    assert half(weight) is None
    kept = half(weight.bfloat16().float())
    assert kept is not None
    assert torch.equal(kept.float(), weight.bfloat16().float())


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A model that was published in bfloat16 and runs in float32; its layers count as large."""
    monkeypatch.setitem(prepacked._LEAST_USUAL_SIZE, torch.float32, 0)
    return build(_sized("Llama", attention_bias=True)()).bfloat16().float()


def test_a_published_model_keeps_its_weights(published: Any) -> None:
    ids = torch.arange(3, 40)[None]
    with torch.inference_mode():
        before = published(input_ids=ids).logits
        if not prepack(published):
            pytest.skip("this build of torch has no packed linear operators")
        after = published(input_ids=ids).logits
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)
    projection = published.model.layers[0].self_attn.q_proj
    assert isinstance(projection, Part)
    assert isinstance(projection.whole, HalfLinear)
    assert isinstance(published.lm_head, HalfLinear)
    assert not is_prepacked(published)
    assert published.dtype == torch.float32


def test_one_layer_that_would_lose_is_not_halved(published: Any) -> None:
    with torch.no_grad():
        published.model.layers[0].mlp.down_proj.weight[0, 0] = 1 / 3
    if not prepack(published):
        pytest.skip("this build of torch has no packed linear operators")
    assert not isinstance(published.model.layers[0].mlp.down_proj, HalfLinear)
    assert isinstance(published.model.layers[1].mlp.down_proj, HalfLinear)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["auto", "eager"])
@pytest.mark.parametrize("exact", [False, True])
def test_texts_are_the_plain_models(published: Any, way: Any, exact: bool) -> None:  # noqa: FBT001
    prompts = prompts_of(5, 30, 17)
    plain = ours(
        checked_target(copy.deepcopy(published)), prompts, [[] for _ in prompts], 20, slots=1
    )
    if not prepack(published):
        pytest.skip("this build of torch has no packed linear operators")
    target = checked_target(published, way=way, exact=exact)
    assert target.exact == (exact or way == "auto")  # by hand nothing has to be paid for it
    assert target.by_hand == (way == "auto")
    assert ours(target, prompts, plain, 20, slots=3) == plain
