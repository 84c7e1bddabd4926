"""Tree attention as an operator: on every device what scaled dot-product attention gives under a
mask, and bit for bit a row's own whatever is beside it and wherever its ancestors lie."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from draftrec.core import EMPTY_TREE
from draftrec.engine.masks import FULL, Reach
from draftrec.engine.packing import Rows, Segment, pack_rows, visible
from draftrec.engine.passes import tree_attention as operator
from draftrec.engine.tree import chain, make_tree
from tests.strategies import token_lists, trees

LAYERS, CAPACITY = 2, 320
SHAPES = [(4, 4, 16, 16), (6, 2, 24, 33), (8, 1, 64, 40)]
UNSHRUNK = (Phase.explicit, Phase.generate)  # a run in the interpreter takes seconds
ONE = np.ones(1, np.int32)
BATCH = [
    Segment(1, 150, np.array([1, 2], np.int32), make_tree([3, 4, 5, 6], [-1, 0, -1, 2])),
    Segment(3, 7, ONE, chain([8, 9])),
]
interpreted = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton comes for Linux only"
)


def kernels(*args: Any) -> torch.Tensor:
    """The Triton kernels, in Triton's interpreter where there is no GPU (`tests/conftest.py`)."""
    from draftrec.engine.passes.tree_kernels import write_and_attend

    return write_and_attend(*args)


WAYS: dict[str, Callable[..., torch.Tensor]] = {
    "operator": operator.tree_attention,
    "written out": operator.written_out,
}


@dataclass
class Case:
    """A pass over ragged trees: what the operator takes, but for the slab."""

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    rows: Rows
    scale: float = 0.3
    softcap: float | None = None
    sinks: torch.Tensor | None = None

    def run(self, way: Callable[..., torch.Tensor], slab: list[torch.Tensor]) -> torch.Tensor:
        where = 1, self.rows.slots, self.rows.columns, self.rows.sight[0]
        return way(
            self.query, self.key, self.value, *slab, *where, self.scale, self.softcap, self.sinks
        )

    def only(self, kept: list[int]) -> Case:
        flat = [x[kept] for x in self.rows[:-1]]
        rows = Rows(*flat, self.rows.sight[:, kept])
        new = self.query[kept], self.key[kept], self.value[kept]
        return Case(*new, rows, self.scale, self.softcap, self.sinks)


def slab(shape: tuple[int, ...], slots: int, dtype: torch.dtype = torch.float32) -> Any:
    generator = torch.Generator().manual_seed(1)
    return [
        torch.randn(LAYERS, slots, shape[1], CAPACITY, n, generator=generator).to(dtype)
        for n in shape[2:]
    ]


def case(
    segments: list[Segment],
    shape: tuple[int, int, int, int],
    reach: Reach = FULL,
    more: tuple[float | None, bool] = (None, False),
    dtype: torch.dtype = torch.float32,
) -> Case:
    """Three rows of padding behind those of the segments."""
    heads, kv_heads, key_dim, value_dim = shape
    rows = sum(s.rows for s in segments) + 3
    words = 2 if max(len(s.tree) for s in segments) > 64 else 1
    buffer, _ = pack_rows(segments, [reach], (rows, words), pinned=False)
    generator = torch.Generator().manual_seed(0)
    sizes = (heads, rows, key_dim), (kv_heads, rows, key_dim), (kv_heads, rows, value_dim)
    new = [torch.randn(s, generator=generator).to(dtype).transpose(0, 1) for s in sizes]
    sinks = torch.linspace(-2, 2, heads).to(dtype) if more[1] else None
    return Case(*new, Rows.of(buffer, 1, rows, words), softcap=more[0], sinks=sinks)


@st.composite
def batches(draw: st.DrawFn, longest: int = 200) -> list[Segment]:
    """Prompts, trees below them and trees that grew, in slots of their own."""
    found: list[Segment] = []
    for slot in draw(st.lists(st.integers(0, 3), min_size=1, max_size=3, unique=True)):
        start, tree = draw(st.integers(1, longest)), draw(trees(9, 12))
        pending = np.array(draw(token_lists(9, 1, 4)), np.int32)
        if len(tree) and draw(st.booleans()):
            past = draw(st.integers(0, len(tree) - 1))
            found.append(Segment(slot, start, pending[:0], tree, past=past))
        else:
            found.append(Segment(slot, start, pending, tree))
    return found


def expected(it: Case, slabs: list[torch.Tensor]) -> torch.Tensor:
    """By torch's own attention, keys and values written before."""
    keys, values = (x[1].clone() for x in slabs)
    for row in range(len(it.query)):
        slot, column = int(it.rows.slots[row]), int(it.rows.columns[row])
        if column >= 0:
            keys[slot, :, column], values[slot, :, column] = it.key[row], it.value[row]
    shared = it.query.shape[1] // keys.shape[1]
    k, v = (x[it.rows.slots].repeat_interleave(shared, 1).float() for x in (keys, values))
    seen = visible(it.rows.sight[0], CAPACITY, 64 * (it.rows.sight.shape[-1] - 2))
    q = it.query[:, :, None].float()
    if it.softcap is None and it.sinks is None:
        mask = seen[:, None, None]
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=it.scale)[:, :, 0]
    else:
        scores = (q @ k.transpose(-1, -2)) * it.scale
        if it.softcap is not None:
            scores = torch.tanh(scores / it.softcap) * it.softcap
        scores = scores.masked_fill(~seen[:, None, None], float("-inf"))
        rest = torch.full(scores.shape[:3], float("-inf"))
        if it.sinks is not None:
            rest = it.sinks.float()[None, :, None].expand(scores.shape[:3])
        shares = torch.cat([scores, rest[..., None]], -1).softmax(-1)[..., :-1]
        out = (shares @ v)[:, :, 0]
    return torch.where(seen.any(-1)[:, None, None], out, 0.0)


def check(
    way: Callable[..., torch.Tensor], it: Case, shape: tuple[int, ...], near: float = 2e-5
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Results, and the slab with what was written: no other place of it has changed."""
    before = slab(shape, 4, it.query.dtype)
    slabs = [x.clone() for x in before]
    found = it.run(way, slabs)
    torch.testing.assert_close(found.float(), expected(it, before), rtol=near, atol=near)
    placed = it.rows.columns >= 0
    at = 1, it.rows.slots[placed], slice(None), it.rows.columns[placed]
    for new, old, rows in zip(slabs, before, (it.key, it.value), strict=True):
        assert torch.equal(new[at], rows[placed])
        old[at] = rows[placed]
        assert torch.equal(new, old)
    return found, slabs


def check_alone(
    way: Callable[..., torch.Tensor], it: Case, together: torch.Tensor, slabs: list[torch.Tensor]
) -> None:
    """Bit for bit, a row's result is what it is without the other rows of the pass."""
    for row in (0, len(together) // 2, len(together) - 4):
        assert torch.equal(it.only([row]).run(way, slabs)[0], together[row])


drawn = given(
    batch=batches(),
    shape=st.sampled_from(SHAPES),
    reach=st.sampled_from([FULL, Reach(window=5), Reach(window=90), Reach(chunk=70)]),
    more=st.sampled_from([(None, False), (5.0, False), (None, True), (5.0, True)]),
)


@pytest.mark.parametrize("way", WAYS)
@drawn
def test_rows_get_what_a_mask_would_give(
    way: str, batch: list[Segment], shape: Any, reach: Reach, more: Any
) -> None:
    it = case(batch, shape, reach, more)
    found = check(WAYS[way], it, shape)
    if way == "operator":
        check_alone(WAYS[way], it, *found)


@pytest.mark.slow
@interpreted
@settings(max_examples=12, phases=UNSHRUNK)
@drawn
def test_kernels_give_the_same(batch: list[Segment], shape: Any, reach: Reach, more: Any) -> None:
    it = case(batch, shape, reach, more)
    check_alone(kernels, it, *check(kernels, it, shape))


@pytest.mark.slow
@interpreted
@pytest.mark.parametrize(("dtype", "near"), [(torch.bfloat16, 3e-2), (torch.float16, 4e-3)])
def test_kernels_in_half_precision(dtype: torch.dtype, near: float) -> None:
    it = case(BATCH, SHAPES[1], dtype=dtype)
    check_alone(kernels, it, *check(kernels, it, SHAPES[1], near))


@pytest.mark.slow
@pytest.mark.parametrize("way", ["operator", pytest.param("kernels", marks=interpreted)])
@pytest.mark.parametrize("reach", [FULL, Reach(window=4)])
def test_a_draft_has_the_bits_of_the_text_that_it_becomes(way: str, reach: Reach) -> None:
    """However far behind its siblings it lies, and whatever boundary of the kernels it is at."""
    run, shape = {**WAYS, "kernels": kernels}[way], SHAPES[0]
    siblings, deep, start = 70, 7, 124
    tree = make_tree(
        [*range(siblings), *range(200, 200 + deep)],
        [*[-1] * siblings, -1, *range(siblings, siblings + deep - 1)],
    )
    path = [0, *range(1 + siblings, 1 + siblings + deep)]
    drafted = case([Segment(0, start, ONE, tree)], shape, reach).only(path)
    text = case([Segment(0, start, np.ones(1 + deep, np.int32), EMPTY_TREE)], shape, reach)
    text = replace(text.only([*range(1 + deep)]), query=drafted.query, key=drafted.key)
    text.value = drafted.value
    assert text.rows.columns.tolist() != drafted.rows.columns.tolist()
    found, slabs = drafted.run(run, slab(shape, 1)), slab(shape, 1)
    assert torch.equal(text.run(run, slabs), found)


def test_the_operator_keeps_what_compilers_are_told() -> None:
    it, slabs = case(BATCH, SHAPES[1], more=(5.0, True)), slab(SHAPES[1], 4)
    where = 1, it.rows.slots, it.rows.columns, it.rows.sight[0]
    args = it.query, it.key, it.value, *slabs, *where, it.scale, it.softcap, it.sinks
    checks = "test_schema", "test_faketensor"
    torch.library.opcheck(operator.tree_attention, args, test_utils=checks)


@pytest.mark.slow
@interpreted
def test_kernels_compile_for_a_gpu() -> None:
    """Down to its machine code, which needs none; the interpreter lets more pass."""
    script = Path(__file__).parent / "compile_kernels.py"
    clean = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    kinds = "bf16", "fp16", "fp32"
    line = [sys.executable, str(script), *kinds]
    done = subprocess.run(line, capture_output=True, text=True, env=clean, check=False)
    assert done.returncode == 0, done.stderr
    names = [f"{name}:{kind}" for kind in kinds for name in ("_write", "_attend", "_join")]
    assert done.stdout.split() == names
