"""`draftrec drafter fit`: from a run to a drafter, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from draftrec.cli.command import INTERRUPTED
from draftrec.cli.main import run
from draftrec.train.drafter import fit
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
    assert "run the same command again to continue" in command.err
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


def texts_of(folder: Path) -> list[list[int]]:
    """Token ids of a run, shard after shard."""
    parts = sorted(folder.glob("part-*.parquet"))
    return [ids for part in parts for ids in pq.read_table(part)["token_ids"].to_pylist()]


def generated(command: Command, tmp_path: Path, *more: Any) -> list[str]:
    """A command line of `draftrec generate` over the records of the run."""
    words = ["generate", tmp_path / "records.jsonl", "--model", command.target, *more]
    words += ["--output", tmp_path / "taught", "--max-new-tokens", 16, "--shard-size", 4]
    return [str(word) for word in (*words, "--dtype", "float32", "--budget", 8)]


@pytest.mark.slow
def test_a_job_trains_its_own_drafter(
    command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = generated(command, tmp_path, "--drafter-fit", 2, "--json")
    assert run(line) == 0
    out, err = capsys.readouterr()
    assert "training a draft head on the texts so far" in err
    assert "interrupted" not in err
    assert texts_of(tmp_path / "taught") == texts_of(command.run)
    summary = json.loads(out.splitlines()[-1])
    assert (summary["texts"], len(summary["accepted_by_source"]) > 0) == (20, True)
    assert summary["accepted_by_source"]["head"] > 0
    record = json.loads((tmp_path / "taught" / "drafter" / "drafter.json").read_text())
    assert record["training"]["texts"] == 8  # of two shards, and of no other
    assert run(line) == 0
    assert "already finished" in capsys.readouterr().err


@pytest.mark.slow
def test_an_interrupted_training_goes_on(
    command: Command,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    line = generated(command, tmp_path, "--drafter-fit", 2)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_step", stopped)
        assert run(line) == INTERRUPTED
    capsys.readouterr()
    assert len(list((tmp_path / "taught").glob("part-*.parquet"))) == 2
    assert run(line) == 0
    assert "continuing after 8 of 20 records" in capsys.readouterr().err
    assert texts_of(tmp_path / "taught") == texts_of(command.run)


def stopped(*_: Any) -> float:
    raise KeyboardInterrupt


@pytest.mark.slow
def test_a_training_goes_on_as_it_was_begun_or_not_at_all(
    command: Command,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    line = generated(command, tmp_path)
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_step", stopped)
        there = [word.replace(f"{tmp_path}/records", "records") for word in line]
        assert run([*there, "--drafter-fit", "2"]) == INTERRUPTED
        patch.chdir("/")
        capsys.readouterr()
        assert run([*line, "--drafter-fit", "2", "--max-new-tokens", "12"]) == 2  # not learnt from
        assert "max_new_tokens was 16, now 12" in capsys.readouterr().err
        assert run([*line, "--drafter-fit", "3"]) == INTERRUPTED
        assert "begun otherwise" not in capsys.readouterr().err
    monkeypatch.chdir("/")
    assert run([*line, "--drafter-fit", "4"]) == 0
    record = json.loads((tmp_path / "taught" / "drafter" / "drafter.json").read_text())
    assert record["training"]["texts"] == 8
    assert texts_of(tmp_path / "taught") == texts_of(command.run)


@pytest.mark.slow
def test_a_signal_at_the_end_of_the_training_is_heard_and_another_models_drafter_goes(
    command: Command,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    line = generated(command, tmp_path, "--drafter-fit", 2)
    save = fit._HeadTraining._save
    with monkeypatch.context() as patch:
        patch.setattr(
            fit._HeadTraining, "_save", lambda self, it: (_stopping(0.0), save(self, it))[1]
        )
        assert run(line) == INTERRUPTED
    assert len(list((tmp_path / "taught").glob("part-*.parquet"))) == 2
    written = tmp_path / "taught" / "drafter" / "drafter.json"
    before = json.loads(written.read_text())["model"]
    other = make_target(tmp_path / "other")
    line = [str(other) if word == str(command.target) else word for word in line]
    with monkeypatch.context() as patch:
        patch.setattr(fit._HeadTraining, "__init__", stopped)
        assert run([*line, "--overwrite"]) == INTERRUPTED
    assert run(line) == 0, capsys.readouterr().err
    assert json.loads(written.read_text())["model"] != before


@pytest.mark.slow
def test_a_short_job_trains_nothing(command: Command, tmp_path: Path) -> None:
    assert run(generated(command, tmp_path, "--drafter-fit", 5)) == 0  # as many as there are
    assert not (tmp_path / "taught" / "drafter").exists()
    assert texts_of(tmp_path / "taught") == texts_of(command.run)


@pytest.mark.parametrize(
    ("words", "more"),
    [
        ("needs --accept strict", ("--accept", "relaxed")),
        ("--draft none is the baseline", ("--draft", "none")),
        ("leave one of the two out", ("--drafter", "somewhere")),
    ],
)
def test_jobs_that_cannot_train_a_drafter(
    words: str, more: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "r.jsonl").write_text('{"entity_id": 1, "prompt": "a"}\n')
    line = ["generate", str(tmp_path / "r.jsonl"), "--model", "m", "--output", str(tmp_path / "o")]
    assert run([*line, "--drafter-fit", "1", *more]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "o").exists()
