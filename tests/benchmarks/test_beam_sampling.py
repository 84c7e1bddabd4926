"""The study of sampled beams knows the exact answer, and sees the published rule miss it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import beam_sampling
import numpy as np
import pytest


def test_inclusion_is_that_of_drawing_one_after_another() -> None:
    p = np.array([0.5, 0.3, 0.2])
    found, mass = beam_sampling.inclusion(p, 2)
    left_out = [0.3 * 0.2 / 0.7 + 0.2 * 0.3 / 0.8, 0.5 * 0.2 / 0.5 + 0.2 * 0.5 / 0.8]
    assert found[:2] == pytest.approx([1 - x for x in left_out])
    assert found.sum() == pytest.approx(2)
    assert mass == pytest.approx(float((found * p).sum()))


@pytest.mark.slow
def test_noise_is_exact_and_the_published_rule_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = ["beam_sampling.py", "--users", "500", "--results", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", line)
    beam_sampling.main()
    runs = json.loads((tmp_path / "beam-sampling.json").read_text())["runs"]
    for rows in runs.values():
        for name, figures in rows.items():
            gap = figures["greatest_gap_in_standard_errors"]
            assert gap < 4.5 if name.startswith("shared noise") else gap > 6, name
