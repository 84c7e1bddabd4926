"""The best continuations, against sorting them all."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from draftrec.engine.beams import select


@pytest.mark.slow
@given(
    counts=st.lists(st.integers(0, 6), min_size=1, max_size=6),
    most=st.integers(0, 12),
    data=st.data(),
)
def test_the_best_come_first_and_ties_go_by_path_then_token(
    counts: list[int], most: int, data: st.DataObject
) -> None:
    total = sum(counts)
    ends = np.cumsum(counts)
    spans = np.stack((ends - counts, ends), axis=1).astype(np.int64)
    ranks = np.array(data.draw(st.permutations(range(len(counts)))), np.int64)
    tokens = np.concatenate(
        [np.array(data.draw(st.permutations(range(n))), np.int32) for n in counts]
    )
    few = st.lists(st.sampled_from([-2.0, -1.0, -0.5]), min_size=total, max_size=total)
    scores = np.array(data.draw(few), np.float64)
    beams = np.repeat(np.arange(len(counts)), counts)
    found = select.best(spans, ranks, tokens, scores, most)
    wanted = np.lexsort((tokens, ranks[beams], -scores))[:most]
    assert found[:, 2].tolist() == wanted.tolist()
    assert found[:, 1].tolist() == wanted.tolist()
    assert found[:, 0].tolist() == beams[wanted].tolist()
