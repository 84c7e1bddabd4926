"""Figures carry their machine, rounds are fair, results end up where they are looked for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from common import git_state, interleave, machine, paired_ratio, slug, spread, write_result


def test_a_result_is_a_file_and_the_last_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OUT", str(tmp_path / "copy"))
    path = write_result("small", {"figure": 1.5}, seed=3, folder=tmp_path / "results")
    written = json.loads(path.read_text())
    assert written == json.loads(capsys.readouterr().out.splitlines()[-1])
    assert written == json.loads((tmp_path / "copy" / "small.json").read_text())
    assert (written["figure"], written["seed"]) == (1.5, 3)
    assert {"cpu", "cores", "torch", "transformers", "commit", "dirty", "date"} <= set(
        written["machine"]
    )


def test_machine_and_git_answer_without_failing() -> None:
    assert machine()["cores"] >= 1
    assert set(git_state()) == {"commit", "dirty"}


def test_spread_and_ratio() -> None:
    assert spread([3.0, 1.0, 2.0]) == {"median": 2.0, "low": 1.0, "high": 3.0, "n": 3}
    assert spread([])["median"] is None
    assert paired_ratio([2.0, 6.0], [1.0, 2.0])["median"] == 2.5


def test_rounds_start_with_each_variant_in_turn() -> None:
    calls: list[str] = []
    seconds = interleave({n: lambda n=n: calls.append(n) for n in "abc"}, rounds=3)
    assert "".join(calls) == "abcbcacab"
    assert all(len(s) == 3 for s in seconds.values())


def test_slug() -> None:
    assert slug("NVIDIA H200 (SXM)") == "nvidia-h200-sxm"
