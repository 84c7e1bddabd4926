"""Rows attended to one by one: the attention of softmax, and bit for bit their own whatever is
beside them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from draftrec.engine.passes import row_attention
from draftrec.engine.passes.exponentials import log_sum_exp
from draftrec.engine.passes.row_attention import attend

SLOTS, CAPACITY = 3, 300


def tensors(
    rows: int, heads: int, kv_heads: int, dim: int, seed: int, dtype: torch.dtype = torch.float32
) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = (rows, heads, dim), (SLOTS, kv_heads, CAPACITY, dim), (SLOTS, kv_heads, CAPACITY, 24)
    return [(3 * torch.randn(s, generator=generator)).to(dtype) for s in shapes]


def sight_of(views: list[tuple[int, int, list[int]]]) -> torch.Tensor:
    """What rows see: columns `low .. high - 1` and the nodes behind `high`."""
    sight = torch.zeros((len(views) + 1, 4), dtype=torch.int64)
    for row, (low, high, nodes) in enumerate(views):
        sight[row, 0], sight[row, 1] = low, high
        for node in nodes:
            bit = 1 << (node % 64)
            sight[row, 2 + node // 64] |= bit - (1 << 64) if node % 64 == 63 else bit
    return sight


@st.composite
def view(draw: st.DrawFn) -> tuple[int, int, list[int]]:
    high = draw(st.integers(1, CAPACITY - 128))
    low = draw(st.integers(0, high - 1))
    return low, high, sorted(draw(st.sets(st.integers(0, 127), max_size=9)))


def expected(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """One row in float64: `q` `[heads, dim]`, `k`, `v` `[kv_heads, n, dim]`."""
    shared = len(q) // len(k)
    k, v = (x.double().repeat_interleave(shared, 0) for x in (k, v))
    scores = (k @ q.double()[..., None])[..., 0] * 0.3
    if softcap:
        scores = torch.tanh(scores / softcap) * softcap
    if sinks is not None:
        shares = torch.cat([scores, sinks.double()[:, None]], -1).softmax(-1)[:, :-1]
    else:
        shares = scores.softmax(-1)
    return (shares[:, None] @ v)[:, 0]


@pytest.mark.parametrize("threads", [1, 2])
@given(
    views=st.lists(view(), min_size=1, max_size=60),
    together=st.booleans(),
    group=st.sampled_from([(4, 4, 16), (6, 2, 33), (6, 2, 34), (9, 3, 64), (40, 1, 8)]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    softcap=st.sampled_from([None, 5.0]),
    sunk=st.booleans(),
    seed=st.integers(0, 99),
)
def test_rows_get_what_softmax_gives_and_the_same_bits_alone(
    threads: int,
    views: list[tuple[int, int, list[int]]],
    together: bool,  # noqa: FBT001
    group: tuple[int, int, int],
    dtype: torch.dtype,
    softcap: float | None,
    sunk: bool,  # noqa: FBT001
    seed: int,
) -> None:
    if dtype == torch.bfloat16:  # keys are read in pairs of numbers
        group = *group[:2], group[2] + group[2] % 2
    q, k, v = tensors(len(views), *group, seed, dtype)
    order = [i % SLOTS for i in range(len(views))]
    slots, sight = torch.tensor(sorted(order) if together else order), sight_of(views)
    sinks = torch.linspace(-2, 2, group[0]) if sunk else None

    def run(rows: list[int]) -> torch.Tensor:
        seen = slots[rows], sight[rows]
        return attend(q[rows], k, v, seen, scale=0.3, softcap=softcap, sinks=sinks)

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = run(list(range(len(views))))
        alone = torch.cat([run([i]) for i in range(len(views))])
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found, alone)
    for row, (low, high, nodes) in enumerate(views):
        columns = [*range(low, high), *(high + n for n in nodes)]
        slot = slots[row]
        right = expected(q[row], k[slot][:, columns], v[slot][:, columns], softcap, sinks)
        torch.testing.assert_close(found[row].double(), right, rtol=1e-4, atol=2e-5)


@torch.inference_mode()
def test_without_matrix_tiles_registers_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one score the two orders differ by rounding."""
    q, k, v = tensors(30, 6, 2, 34, 0, torch.bfloat16)
    seen = torch.arange(30) // 10, sight_of([(0, 100 + i, [0, 2, i]) for i in range(30)])
    used: list[int] = []
    run = row_attention._attend
    monkeypatch.setattr(row_attention, "_attend", lambda *it: (used.append(it[-1]), run(*it)))
    tiled = attend(q, k, v, seen, scale=0.3)
    usual = int(row_attention.has_tiles())
    monkeypatch.setattr(row_attention, "has_tiles", lambda: False)
    found = attend(q, k, v, seen, scale=0.3)
    assert used == [usual, 0]
    torch.testing.assert_close(found, tiled, rtol=1e-3, atol=1e-3)


def test_where_columns_lie_does_not_matter() -> None:
    """A token that was a draft gives the same bits when it is part of the text."""
    q, k, v = tensors(1, 4, 2, 32, 0)
    order = np.arange(100)
    moved = order.copy()
    moved[97:] = [97, 150, 163]
    k2, v2 = torch.randn_like(k), torch.randn_like(v)  # of others, and of refused drafts
    k2[:, :, moved], v2[:, :, moved] = k[:, :, order], v[:, :, order]
    slots = torch.zeros(1, dtype=torch.int64)
    text = attend(q, k, v, (slots, sight_of([(0, 100, [])])), scale=0.3)
    drafts = attend(q, k2, v2, (slots, sight_of([(0, 98, [52, 65])])), scale=0.3)
    assert torch.equal(text, drafts)


@pytest.mark.parametrize("sinks", [None, torch.tensor([0.5, -1.0, 0.0, 2.0])])
def test_a_row_that_sees_nothing_gets_zeros(sinks: torch.Tensor | None) -> None:
    q, k, v = tensors(3, 4, 2, 32, 0)
    views = sight_of([(0, 7, []), (0, 0, []), (0, 0, [])])
    slots = torch.tensor([1, 1, 2])
    found = attend(q, k, v, (slots, views), scale=0.3, sinks=sinks)
    assert not found[1:].any()
    assert found[0].isfinite().all()


def test_what_a_broken_model_gives_is_not_made_good() -> None:
    q, k, v = tensors(2, 4, 2, 32, 0)
    q[0, 0] = torch.nan
    views = sight_of([(0, 100, []), (0, 100, [])])
    found = attend(q, k, v, (torch.zeros(2, dtype=torch.int64), views), scale=0.3)
    assert found[0, 0].isnan().all()
    assert found[0, 1:].isfinite().all()
    assert found[1].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sums_over_the_vocabulary_are_the_rows_own(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = (20 * torch.randn(300, 5003, generator=generator)).to(dtype)
    logits[:, :40] = -torch.inf
    found = log_sum_exp(logits)
    torch.testing.assert_close(found, logits.double().logsumexp(-1).float(), rtol=1e-6, atol=1e-6)
    for rows in (1, 2, 7, 299):
        assert torch.equal(log_sum_exp(logits[5 : 5 + rows].clone()), found[5 : 5 + rows])
