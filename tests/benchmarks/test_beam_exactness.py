"""The exactness study runs, and sees a difference when there is one."""

from __future__ import annotations

import dataclasses

import beam_exactness
import numpy as np
import pytest


@pytest.mark.slow
def test_cases_of_every_kind_are_identical() -> None:
    kinds = set()
    for number in range(40):
        kind, drafted, plain = beam_exactness.drawn_case(number, 0)
        kinds.add(kind)
        assert len(drafted) == len(plain) >= 1
        for a, b in zip(drafted, plain, strict=True):
            assert beam_exactness.compared(a, b) in ("identical", "near_tie")
    assert len(kinds) == 6


def test_what_differs_is_a_mismatch() -> None:
    _, found, _ = next(
        case for n in range(50) if len((case := beam_exactness.drawn_case(n, 1))[1][0].scores) > 3
    )
    beams = found[0]
    assert beam_exactness.compared(beams, beams) == "identical"
    worse = dataclasses.replace(beams, scores=beams.scores - 0.01)
    assert beam_exactness.compared(worse, beams) == "mismatch"
    swapped = dataclasses.replace(beams, tokens=beams.tokens[[1, 0, *range(2, len(beams.scores))]])
    gap = beams.scores[0] - beams.scores[1]
    wanted = "mismatch" if gap > 1e-4 else "near_tie"
    assert beam_exactness.compared(swapped, beams) == wanted
    tied = dataclasses.replace(beams, scores=np.zeros(len(beams.scores)))
    other = dataclasses.replace(tied, tokens=tied.tokens[::-1])
    assert beam_exactness.compared(other, tied) == "near_tie"
