"""Products of rows with weights: rounded once, and a row's own affair."""

from __future__ import annotations

import copy
import sys
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from draftrec.engine.passes import row_products, team
from draftrec.engine.passes.prepacked import Part, RowLinear, narrowed, prepack, stored
from draftrec.engine.selfcheck import checked_target
from tests.engine.test_exactness import _sized, build, ours, prompts_of

# Of weights and of rows.
KINDS = pytest.mark.parametrize(
    "kinds",
    [
        (torch.bfloat16, torch.float32),
        (torch.bfloat16, torch.bfloat16),
        (torch.float32, torch.float32),
    ],
    ids=["narrow weights", "narrow", "wide"],
)
Kinds = tuple[torch.dtype, torch.dtype]
# Sizes that are no whole number of pairs, blocks or tiles among them.
SHAPES = [(1, 1), (7, 5), (96, 160), (1501, 33), (2048, 6)]


def layer(
    kind: torch.dtype, inputs: int, *outputs: int, bias: bool = False
) -> tuple[RowLinear, torch.Tensor]:
    """Of layers that read the same, and their weights one below the other."""
    torch.manual_seed(inputs + sum(outputs))
    weights = [torch.randn(n, inputs).to(kind) for n in outputs]
    return RowLinear(weights, torch.randn(sum(outputs)) if bias else None), torch.cat(weights)


@KINDS
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rows", [0, 1, 2, 3, 4, 5, 12, 13, 131])
@torch.inference_mode()
def test_products_are_rounded_once(shape: tuple[int, int], rows: int, kinds: Kinds) -> None:
    linear, weight = layer(kinds[0], *shape, 3, bias=rows % 2 == 0)
    x = torch.randn(1, rows, shape[0]).to(kinds[1])
    bias = None if linear.bias is None else linear.bias.double()
    expected = F.linear(x.double(), weight.double(), bias)
    found = linear(x)
    assert torch.equal(linear.weight, weight)
    assert found.shape == expected.shape
    assert found.dtype == kinds[1]
    off = (found.double() - expected).abs()
    unit = expected.abs() * (2**-24 if kinds[1] == torch.float32 else 2**-8)
    assert (off <= unit + 2e-6 * shape[0]).all()


@KINDS
@pytest.mark.parametrize("shape", [*SHAPES, (577, 330), (1536, 576)])
@torch.inference_mode()
def test_a_row_has_the_bits_that_it_has_among_others(shape: tuple[int, int], kinds: Kinds) -> None:
    linear, _ = layer(kinds[0], *shape)
    x = torch.randn(140, shape[0]).to(kinds[1])
    everything = linear(x)
    for first, last in ((0, 1), (5, 6), (3, 8), (0, 11), (0, 12), (0, 13), (127, 140)):
        assert torch.equal(linear(x[first:last]), everything[first:last])


@KINDS
@pytest.mark.parametrize("openmp", [True, False])
@torch.inference_mode()
def test_threads_take_a_part_of_the_outputs_each(
    monkeypatch: pytest.MonkeyPatch,
    kinds: Kinds,
    openmp: bool,  # noqa: FBT001
) -> None:
    linear, _ = layer(kinds[0], 64, 241)
    inputs = [torch.randn(rows, 64).to(kinds[1]) for rows in (1, 6, 30)]
    alone = [linear(x) for x in inputs]
    shared: list[int] = []
    run = team._runner() if openmp else team._by_python
    monkeypatch.setattr(team, "_LEAST", 1)
    monkeypatch.setattr(team, "_runner", lambda: lambda *it: shared.append(it[2]) or run(*it))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    for x, expected in zip(inputs, alone, strict=True):
        assert torch.equal(linear(x), expected)
    assert shared == [3, 3, 3]


@torch.inference_mode()
def test_bfloat16_rows_take_float32_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    linear, weight = layer(torch.float32, 64, 100)
    x = torch.randn(5, 64).bfloat16()
    alone = linear(x)
    torch.testing.assert_close(alone.float(), F.linear(x.float(), weight), rtol=1e-2, atol=1e-2)
    monkeypatch.setattr(team, "_LEAST", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert torch.equal(linear(x), alone)


@KINDS
@torch.inference_mode()
def test_products_go_where_they_are_told(kinds: Kinds) -> None:
    """Wherever rows and room begin: rows of 16 and more bytes that no cache line begins with."""
    linear, _ = layer(kinds[0], 2048, 70)
    x = stored(torch.randn(33, 2048).to(kinds[1]))
    expected = linear.times(x)
    room = row_products.lines(x, 1, 33 * linear.laid_outputs + 7)[0]
    assert room.__array_interface__["data"][0] % 64 == 0
    aside = row_products.lines(x, 1, 33 * 2048 + 8)[0, 8:].reshape(33, 2048)
    aside[:] = x
    found = linear.times(aside, room)
    assert np.shares_memory(found, room)
    assert np.array_equal(found, expected)


@torch.inference_mode()
def test_without_matrix_tiles_registers_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one sum the two orders differ by rounding; where there are no tiles, both are the same."""
    usual = row_products.has_tiles()
    linear, weight = layer(torch.bfloat16, 96, 160)
    x = torch.randn(40, 96).bfloat16()
    used: list[str] = []
    for name in ("_tiled", "_blocks"):
        run = getattr(row_products, name)
        monkeypatch.setattr(
            row_products, name, lambda *it, name=name, run=run: (used.append(name), run(*it))
        )
    tiled = linear(x)
    monkeypatch.setattr(row_products, "has_tiles", lambda: False)
    found = linear(x)
    assert used == ["_tiled" if usual else "_blocks", "_blocks"]
    torch.testing.assert_close(found, tiled, rtol=2e-2, atol=1e-3)
    torch.testing.assert_close(found, F.linear(x, weight), rtol=2e-2, atol=1e-2)


@pytest.mark.skipif(sys.platform != "linux", reason="wheels for other systems have other libraries")
def test_torchs_own_threads_are_found() -> None:
    assert team._openmp() is not None


@torch.inference_mode()
def test_numbers_that_lie_apart_are_gathered() -> None:
    linear, weight = layer(torch.bfloat16, 64, 40)
    wide = torch.randn(5, 128)
    torch.testing.assert_close(linear(wide[:, ::2]), F.linear(wide[:, ::2], weight.float()))


def test_shelves_begin_with_cache_lines_and_do_not_overlap() -> None:
    shelf = row_products.Shelf()
    taken = [shelf.take(n, 3, 5) for n in (1, 7, 1_000_000, 2)]
    assert all(x.ctypes.data % 64 == 0 and x.flags.c_contiguous for x in taken)
    for number, x in enumerate(taken):
        x[:] = number
    assert [set(np.unique(x).tolist()) for x in taken] == [{0}, {1}, {2}, {3}]


def test_only_what_loses_nothing_is_narrowed() -> None:
    weight = torch.randn(8, 8)
    assert narrowed(weight) is None
    kept = narrowed(weight.bfloat16().float())
    assert kept is not None
    assert torch.equal(kept.float(), weight.bfloat16().float())


@pytest.fixture
def published() -> Any:
    """A model that was published in bfloat16 and runs in float32."""
    return build(_sized("Llama", attention_bias=True)()).bfloat16().float()


def test_a_published_model_keeps_its_weights(published: Any) -> None:
    ids = torch.arange(3, 40)[None]
    with torch.inference_mode():
        before = published(input_ids=ids).logits
        assert prepack(published) == 15
        after = published(input_ids=ids).logits
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)
    projection = published.model.layers[0].self_attn.q_proj
    assert isinstance(projection, Part)
    assert isinstance(projection.whole, RowLinear)
    assert isinstance(published.lm_head, RowLinear)
    assert projection.whole.weight.dtype == torch.bfloat16
    assert published.dtype == torch.float32


def test_one_layer_that_would_lose_is_not_narrowed(published: Any) -> None:
    with torch.no_grad():
        published.model.layers[0].mlp.down_proj.weight[0, 0] = 1 / 3
    prepack(published)
    down = [layer.mlp.down_proj.weight.dtype for layer in published.model.layers]
    assert down == [torch.float32, torch.bfloat16]


@pytest.mark.slow
@pytest.mark.parametrize("way", ["auto", "eager"])
@pytest.mark.parametrize("exact", [False, True])
def test_texts_are_the_plain_models(published: Any, way: Any, exact: bool) -> None:  # noqa: FBT001
    prompts = prompts_of(5, 30, 17)
    plain = ours(
        checked_target(copy.deepcopy(published)), prompts, [[] for _ in prompts], 20, slots=1
    )
    prepack(published)
    target = checked_target(published, way=way, exact=exact)
    assert target.exact == (exact or way == "auto")  # by hand nothing has to be paid for it
    assert target.by_hand == (way == "auto")
    assert ours(target, prompts, plain, 20, slots=3) == plain
