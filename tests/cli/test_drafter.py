"""`draftrec drafter fit`: from a run to a drafter, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from draftrec.cli.main import run
from draftrec.train.loop import Trainer
from tests.train.drafter.worlds import make_target, write_records, write_run

FEW = ("--epochs", 2, "--batch-tokens", 200, "--vocabulary", 60, "--levels", 2, "--device", "cpu")


class Command:
    """Runs `draftrec drafter fit` and keeps what it said."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys
        self.target = make_target(folder / "target", counts=True)
        records = write_records(folder / "records.jsonl", 20)
        self.run = write_run(folder / "run", self.target, records)
        self.data = (self.run, "--model", self.target)

    def __call__(self, *words: Any) -> int:
        code = run(["drafter", "fit", *map(str, words)])
        self.out, self.err = self._capsys.readouterr()
        return code

    def refuses(self, words: str, *line: Any) -> None:
        """Exit code 2, exactly one line, with these words in it."""
        assert self(*line) == 2, self.err
        assert self.err.count("\n") == 1, self.err
        assert words in self.err


@pytest.fixture
def command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    made = Command(tmp_path, capsys)
    capsys.readouterr()
    return made


@pytest.mark.slow
def test_a_drafter_is_trained_and_stays_as_it_is(command: Command, tmp_path: Path) -> None:
    output = tmp_path / "drafter"
    assert command(*command.data, "--output", output, *FEW, "--json") == 0, command.err
    found = json.loads(command.out.splitlines()[-1])
    assert (found["kind"], found["texts"], found["levels"], found["epochs"]) == (
        "draft head", 20, 2, 2
    )  # fmt: skip
    assert found["valid_tokens_per_call"] > 1
    assert "valid tokens per call" in command.err
    assert "18 texts to learn from and 2 to validate on" in command.err
    written = (output / "head.safetensors").read_bytes()
    assert command(*command.data, "--output", output, *FEW) == 0
    assert "is already trained" in command.err
    command.refuses("levels was 2, now 3", *command.data, "--output", output, *FEW, "--levels", 3)
    assert (output / "head.safetensors").read_bytes() == written


def test_a_drafter_says_what_it_is(command: Command, tmp_path: Path, capsys: Any) -> None:
    assert command(*command.data, "--output", tmp_path / "d", *FEW) == 0
    assert run(["drafter", "info", str(tmp_path / "d"), "--json"]) == 0
    shown = capsys.readouterr()
    found = json.loads(shown.out.splitlines()[-1])
    record = json.loads((tmp_path / "d" / "drafter.json").read_text())
    best = record["training"]["epochs"][record["training"]["best_epoch"]]
    assert found["valid_tokens_per_call"] == best["valid_tokens_per_call"]
    assert (found["form"], found["levels"], found["vocabulary"]) == (
        "head",
        2,
        record["vocabulary"],
    )
    assert found["joined_with_pools_as_fitted"]
    assert np.shape(record["mixing"]["weights"]) == (2, 8)
    assert f"valid tokens per call  {best['valid_tokens_per_call']}" in shown.err
    assert run(["drafter", "info", str(tmp_path)]) == 2
    assert "so it is no drafter" in capsys.readouterr().err


@pytest.mark.slow
def test_an_interruption_is_said(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = (*command.data, "--output", tmp_path / "d", *FEW)
    step = Trainer._step
    monkeypatch.setattr(Trainer, "_step", lambda self, batch: _stopping(step(self, batch)))
    assert command(*line) == 130
    assert "the same command continues" in command.err
    monkeypatch.setattr(Trainer, "_step", step)
    assert command(*line) == 0
    assert "continuing after 0 epochs and 1 steps" in command.err


def _stopping(loss: float) -> float:
    import os
    import signal

    os.kill(os.getpid(), signal.SIGINT)
    return loss


@pytest.mark.slow
def test_bad_input_is_refused(command: Command, tmp_path: Path) -> None:
    output = ("--output", tmp_path / "d")
    command.refuses("is no run", tmp_path / "absent", "--model", command.target, *output)
    other = make_target(tmp_path / "other")
    command.refuses("written with another model", command.run, "--model", other, *output)
    command.refuses("--vocabulary", *command.data, *output, "--vocabulary", 1)
    (tmp_path / "records.jsonl").unlink()
    command.refuses("name its records with --records", *command.data, *output)
    assert not (tmp_path / "d" / "drafter.json").exists()
