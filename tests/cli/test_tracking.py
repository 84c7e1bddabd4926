"""`--track`: what the libraries themselves say that they were told; nothing without it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from draftrec.cli import tracking
from draftrec.cli.main import run
from draftrec.cli.options import TrackOptions
from draftrec.demo.shop import demo_model_path
from draftrec.errors import DraftrecError, Interrupted
from draftrec.jobs.knowledge import worker
from draftrec.train.loop import Progress, TrainWatcher
from tests.fakes import FakeGenerator
from tests.train.small import write_all
from tests.waiting import until

BIG = "a few hundred megabytes of client that only this test would use; pip install draftrec[%s]"


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A job of twelve records in three shards."""
    monkeypatch.setattr(worker, "load_generator", lambda *_: FakeGenerator())
    records = tmp_path / "in.jsonl"
    rows = [{"entity_id": f"u{i}", "prompt": f"about {i}"} for i in range(12)]
    records.write_text("".join(json.dumps(row) + "\n" for row in rows))
    output = str(tmp_path / "run")
    return ["generate", str(records), "--model", "fake", "--output", output, "--shard-size", "5"]


def scalars_of(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard reads of its files."""
    accumulator = import_module("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder)).Reload()
    tags = events.Tags()["scalars"]
    return {tag: [(it.step, it.value) for it in events.Scalars(tag)] for tag in tags}


@pytest.mark.slow
def test_tensorboard_shows_a_job(job: list[str], tmp_path: Path) -> None:
    assert run([*job, "--track", "tensorboard"]) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    found = scalars_of(tmp_path / "run.logs")
    assert found["texts"][-1] == (summary["new_tokens"], 12)
    assert found["tokens_per_call"][-1][1] == pytest.approx(summary["tokens_per_call"])
    assert found["summary/new_tokens"][-1][1] == summary["new_tokens"]
    files = len(list((tmp_path / "run.logs").iterdir()))
    assert run([*job, "--track", "tensorboard"]) == 0  # finished already: there is nothing to tell
    assert len(list((tmp_path / "run.logs").iterdir())) == files


@pytest.mark.slow
def test_nothing_is_tracked_unasked(job: list[str], tmp_path: Path) -> None:
    assert run(job) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "run"]


@pytest.mark.slow
def test_tensorboard_shows_a_training_beside_what_it_always_writes(tmp_path: Path) -> None:
    sequences, sids = write_all(tmp_path)
    line = ["genrec", "fit", str(sequences), "--sids", str(sids), "--preset", "tiny"]
    line += ["--output", str(tmp_path / "target"), "--batch-tokens", "400", "--device", "cpu"]
    assert run([*line, "--epochs", "2", "--track", "tensorboard"]) == 0
    ours = scalars_of(tmp_path / "target.logs")
    usual = scalars_of(tmp_path / "target" / "training" / "logs")
    assert [value for _, value in ours["train_loss"]] == [v for _, v in usual["train_loss"]]
    assert [step for step, _ in ours["train_loss"]] == [step for step, _ in usual["train_loss"]]
    assert ours["loss"][0][0] == 1
    assert "summary/weights" in ours


@pytest.mark.slow
def test_tensorboard_shows_what_else_takes_long(tmp_path: Path) -> None:
    """Recording a target, choosing settings, fitting ids: each has what it went through and what it
    came to."""
    sequences, sids = write_all(tmp_path)
    data = [str(sequences), "--sids", str(sids)]
    target, track = str(tmp_path / "target"), ["--track", "tensorboard"]
    fit = ["genrec", "fit", *data, "--output", target, "--batch-tokens", "400", "--epochs", "1"]
    assert run([*fit, "--preset", "tiny", "--device", "cpu"]) == 0
    vectors = np.random.default_rng(0).normal(size=(60, 8)).astype(np.float32)
    pq.write_table(
        pa.table({"item": range(60), "vector": vectors.tolist()}), tmp_path / "items.parquet"
    )
    texts = tmp_path / "texts.jsonl"
    rows = [{"entity_id": i, "token_ids": [7] * 8} for i in range(40)]
    texts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = {
        "teacher": ["genrec", "teach", target, *data, "--beams", "2"],
        "blend.yaml": ["genrec", "tune", *data, "--target", target, "-k", "2"],
        "best.yaml": ["tune", str(texts), "--tokenizer", str(demo_model_path())],
        "sids.parquet": ["sid", "fit", str(tmp_path / "items.parquet"), "--codes", "4"],
        "vae.parquet": ["sid", "fit", str(tmp_path / "items.parquet"), "--codes", "4",
                        "--method", "rq-vae", "--epochs", "3"],
    }  # fmt: skip
    told = {
        "teacher": ("contexts", "summary/contexts"),
        "blend.yaml": ("users", "summary/ways/the model alone/recall@2"),
        "best.yaml": ("settings", "summary/chosen/budget"),
        "sids.parquet": ("items", "summary/unique"),
        "vae.parquet": ("loss", "summary/reconstruction_error"),
    }
    for name, line in lines.items():
        assert run([*line, "--output", str(tmp_path / name), *track]) == 0, name
        found = scalars_of(tmp_path / f"{name}.logs")
        assert set(told[name]) <= found.keys(), (name, found.keys())
    files = len(list((tmp_path / "teacher.logs").iterdir()))
    assert run([*lines["teacher"], "--output", str(tmp_path / "teacher"), *track]) == 0
    assert len(list((tmp_path / "teacher.logs").iterdir())) == files  # there was nothing to do


@dataclass(frozen=True, slots=True, kw_only=True)
class FewOptions(TrackOptions):
    """Of a command with one setting."""

    epochs: int = 3
    preset: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ManyOptions(TrackOptions):
    """Of a command that takes one file or several."""

    vectors: list[str]


@pytest.mark.parametrize(("given", "told"), [(["a"], "a"), (["a", "b"], "['a', 'b']")])
def test_of_files_that_may_be_several_one_is_told_by_its_name(
    given: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known: list[dict[str, str]] = []

    def opened(_output: Path, settings: dict[str, str]) -> tracking.Backend:
        known.append(settings)
        return tracking.Backend(lambda *_: None, lambda *_: None, lambda *_: None)

    monkeypatch.setitem(tracking._OPEN, "tensorboard", opened)
    with tracking.tracked("tensorboard", tmp_path / "out", ManyOptions(vectors=given)) as tracker:
        tracker.numbers(0, {"items": 3.0})
    assert known == [{"vectors": told}]


def interrupted(kind: str, output: Path) -> None:
    with tracking.tracked(kind, output, FewOptions()) as tracker:
        tracker.numbers(1, {"loss": 1.0})
        raise Interrupted


def example(kind: str, output: Path) -> None:
    with tracking.tracked(kind, output, FewOptions(track="mlflow", verbose=True)) as tracker:
        tracker.numbers(3, {"tokens_per_call": 2.5})
        tracker.numbers(5, {"tokens_per_call": 3.5, "recall@10": 0.5})
        tracker.end({"texts": 12, "model": "m", "draft": {"calls": 4}, "exact": True})


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_mlflow_has_settings_numbers_and_summary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow: Any = pytest.importorskip("mlflow", reason=BIG % "mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri((tmp_path / "mlruns").as_uri())
    try:
        example("mlflow", tmp_path / "run")
        with pytest.raises(Interrupted):
            interrupted("mlflow", tmp_path / "cut")
        cut, whole = mlflow.search_runs(experiment_names=["draftrec"], output_format="list")
        assert (whole.info.run_name, whole.info.status) == ("run", "FINISHED")
        assert (cut.info.run_name, cut.info.status) == ("cut", "KILLED")
        values = {"tokens_per_call": 3.5, "summary/texts": 12, "summary/draft/calls": 4}
        values["recall_at_10"] = 0.5
        assert whole.data.metrics == values
        assert whole.data.params == {"epochs": "3"}  # how a command talks is no setting
        client = mlflow.MlflowClient()
        steps = client.get_metric_history(whole.info.run_id, "tokens_per_call")
        assert [(it.step, it.value) for it in steps] == [(3, 2.5), (5, 3.5)]
    finally:
        mlflow.set_tracking_uri(None)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_wandb_writes_a_run_that_can_be_sent_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb", reason=BIG % "wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    example("wandb", tmp_path / "run")
    [file] = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
    words = (b"tokens_per_call", b"draft/calls", b"epochs")
    # Another process writes it, when it comes to it.
    until(lambda: all(word in file.read_bytes() for word in words))


@pytest.mark.parametrize("kind", ["mlflow", "wandb", "tensorboard"])
def test_a_missing_library_is_one_sentence(
    job: list[str],
    kind: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    assert run([*job, "--track", kind]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert f"--track {kind} needs the package {kind}" in line
    assert "pip install" in line
    assert not (tmp_path / "run").exists()


def test_tensorboard_needs_an_output_of_this_machine() -> None:
    with (
        pytest.raises(DraftrecError, match="writes files of this machine"),
        tracking.tracked("tensorboard", "s3://bucket/run", TrackOptions()),
    ):
        pass
    with (
        pytest.raises(DraftrecError, match="which is missing; give an --output"),
        tracking.tracked("tensorboard", None, TrackOptions()),
    ):
        pass


@pytest.mark.slow
def test_a_library_that_fails_costs_nothing_but_itself(
    job: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refused(*_: Any) -> tracking.Backend:
        raise OSError("the server is gone")

    monkeypatch.setitem(tracking._OPEN, "tensorboard", refused)
    assert run([*job, "--track", "tensorboard"]) == 0
    assert capsys.readouterr().err.count("OSError: the server is gone") == 1
    assert (tmp_path / "run" / "summary.json").is_file()


def test_a_training_that_goes_on_counts_its_steps_from_where_it_was() -> None:
    told: list[tuple[int, dict[str, float]]] = []
    backend = tracking.Backend(
        lambda step, values: told.append((step, dict(values))), lambda *_: None, lambda _: None
    )
    watcher = tracking.of_training(tracking.Tracker(lambda: backend), TrainWatcher())
    watcher.note("anything else goes to the watcher itself")
    watcher.begin(Progress(step=2, epochs=[{"steps": 5.0}]), 20)
    watcher.step(None, 0.5)
    watcher.step(None, 0.4)  # too soon for another one
    watcher.epoch({"epoch": 1.0, "steps": 4.0, "train_loss": 0.45})
    assert told == [(8, {"loss": 0.5}), (9, {"epoch": 1.0, "train_loss": 0.45})]


def test_rates_are_those_of_this_life(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[dict[str, float]] = []
    backend = tracking.Backend(
        lambda step, values: told.append(dict(values)), lambda *_: None, lambda _: None
    )
    now = iter([0.0, 0.0, 0.0, 10.0, 10.0])
    monkeypatch.setattr(tracking.time, "monotonic", lambda: next(now))
    state = tracking.of_state(tracking.Tracker(lambda: backend), lambda *_: None, "texts")
    state(500, 1000)  # those of an earlier one
    state(600, 1000)
    assert told == [
        {"texts": 500.0, "texts_per_second": 0.0},
        {"texts": 600.0, "texts_per_second": 10.0},
    ]
