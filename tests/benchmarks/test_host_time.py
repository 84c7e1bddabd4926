"""The benchmark of host work: both sides do the same work, and a dry run to its result."""

from __future__ import annotations

import json
from pathlib import Path

import host_before
import host_time
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from draftrec.core import DraftTree
from draftrec.engine.masks import FULL, Reach
from draftrec.engine.packing import Segment, pack
from draftrec.engine.passes.eager import bucket
from tests.strategies import token_lists, trees

_REACHES = [FULL, Reach(window=2), Reach(window=30), Reach(chunk=3)]


def check_same(segments: list[Segment], launch: int, reach: Reach) -> None:
    """Every array that one kernel makes says what those of before did."""
    old = host_before.plan(host_before.pack(segments), launch, bucket)
    new = pack(segments, host_time.CPU, [reach], launch=launch, padded=bucket)
    for name in ("token_ids", "positions", "scored"):
        assert torch.equal(getattr(old, name), getattr(new, name)), name
    for name in ("slots", "columns"):  # padding, which had none, now says that it goes nowhere
        assert torch.equal(getattr(old, name), getattr(new, name)[: new.rows]), name
    assert (new.columns[new.rows :] == -1).all()
    assert [list(span) for span in old.spans] == new.spans
    assert len(old.blocks) == len(new.blocks)
    for then, now in zip(old.blocks, new.blocks, strict=True):
        for name in ("first", "last", "width", "length"):
            assert getattr(then, name) == getattr(now, name), name
        views: list[dict[int, list[int]]] = []
        seen = now.additive(reach, torch.float32, -1.0) == 0
        for block, visible in ((then, then.visible(reach)), (now, seen)):
            flat = visible.flatten(0, 1).int()
            flat = flat if block.back is None else flat[block.back]
            rows = torch.arange(len(old.slots))[block.place].tolist()
            views.append(dict(zip(rows, flat.tolist(), strict=True)))
        assert views[0] == views[1]


@st.composite
def batches(draw: st.DrawFn) -> list[Segment]:
    """Texts in slots of their own, prompts among them, in any order."""
    slots = draw(st.lists(st.integers(0, 6), min_size=1, max_size=5, unique=True))
    found: list[Segment] = []
    for slot in slots:
        pending = np.array(draw(token_lists(9, 1, 5)), np.int32)
        tree, scored = draw(trees(9)), draw(st.booleans())
        none = DraftTree(*(a[:0] for a in (tree.token_ids, tree.parents, tree.probs, tree.sources)))
        found.append(
            Segment(slot, draw(st.integers(0, 40)), pending, tree if scored else none, scored)
        )
    return found


@pytest.mark.slow
@given(batch=batches(), launch=st.sampled_from([0, 400, 6_000, 1 << 40]),
       reach=st.sampled_from(_REACHES))  # fmt: skip
def test_one_kernel_gives_the_arrays_of_before(
    batch: list[Segment], launch: int, reach: Reach
) -> None:
    check_same(batch, launch, reach)


@pytest.mark.slow
@given(st.lists(trees(9), min_size=1, max_size=5), st.data())
def test_trees_are_cut_as_before(drawn: list[DraftTree], data: st.DataObject) -> None:
    keep = np.array([data.draw(st.booleans()) for t in drawn for _ in range(len(t))], np.bool_)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(host_time, "LEVELS", 99)
        it = host_time.Drafted(drawn, keep, [5] * len(drawn))
        assert_equal(host_time.cut_before(it), host_time.cut_now(it))


@pytest.mark.parametrize(("sequences", "nodes"), [(128, 20), (64, 16), (3, 70), (5, 0)])
def test_what_is_measured_is_the_same_on_both_sides(sequences: int, nodes: int) -> None:
    it = host_time.drafted(sequences, nodes, 1)
    kept = host_time.cut_now(it)
    assert_equal(host_time.cut_before(it), kept)
    assert len(kept) == sequences
    assert sum(map(len, kept)) <= sequences * nodes
    assert sum(map(len, kept)) > 0.8 * sequences * nodes or not nodes
    check_same(host_time.segments(it, kept), 6_000, FULL)


def assert_equal(before: list[DraftTree], now: list[DraftTree]) -> None:
    for old, new in zip(before, now, strict=True):
        for name in ("token_ids", "parents", "probs", "sources"):
            assert getattr(old, name).dtype == getattr(new, name).dtype
            assert getattr(old, name).tolist() == getattr(new, name).tolist()


def test_dry_run(tmp_path: Path) -> None:
    few = ["--cases", "4x3", "2x0", "--rounds", "3", "--results", str(tmp_path)]
    assert host_time.main(few) == 0
    result = json.loads((tmp_path / "host-time.json").read_text())
    assert [(p["sequences"], p["nodes"]) for p in result["passes"]] == [(4, 3), (2, 0)]
    for found in result["passes"]:
        assert set(found["milliseconds"]) == {"before", "walks_before", "now"}
        assert found["times_less"]["before"]["n"] == 3
        assert found["milliseconds"]["now"]["median"] > 0
