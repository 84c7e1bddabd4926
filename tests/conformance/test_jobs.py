"""Every kind of job that can be resumed, held to one list: it goes on after a kill and ends in the
same bytes, other settings are refused by name, --overwrite begins anew, a second writer is refused,
and what is finished is not done again."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from draftrec.config import (
    DraftConfig,
    EncodeConfig,
    GenerateConfig,
    JobConfig,
    ModelConfig,
    RecommendConfig,
)
from draftrec.errors import DraftrecError
from draftrec.jobs.encode.inputs import EncodeSpec
from draftrec.jobs.encode.job import run_encode
from draftrec.jobs.knowledge.job import JobSpec
from draftrec.jobs.knowledge.job import run_job as run_generate
from draftrec.jobs.recommend.job import run_job as run_recommend
from draftrec.jobs.recommend.setup import TaskSettings, prepare
from draftrec.jobs.trials import Settings, TrialStore, run_trials
from draftrec.models.encoders import Document, Encoded
from draftrec.train.align import AlignSpec, align
from draftrec.train.drafter.fit import fit_drafter
from draftrec.train.fit import fit
from draftrec.train.loop import TrainWatcher
from draftrec.train.presets import ModelSource
from draftrec.train.settings import TeachSettings, TrainSettings
from draftrec.train.teacher import TeachSpec, TeachWatcher, teach
from tests.fakes import FakeGenerator, Killed
from tests.jobs.recommend.worlds import World, make_world
from tests.locks import held_elsewhere
from tests.train.drafter import worlds
from tests.train.drafter.worlds import drafter_spec, make_target, write_records, write_run
from tests.train.small import SETTINGS, fit_spec

#: Is called at every piece of work that is done; the place to be killed at.
Tick = Callable[[], None]
FIT = replace(SETTINGS, epochs=1, save_steps=2)
DRAFTER = replace(worlds.SETTINGS, save_steps=2)
ALIGN = TrainSettings(epochs=1, batch_tokens=600, dropout=0.0, device="cpu", save_steps=2)


@dataclass(frozen=True)
class Job:
    """`run` does all of it that is left. `change`: a setting that decides what is written, by its
    name in a refusal. `inside`: the output is a folder that holds its lock. `data`: the files that
    must have the same bytes however often the job was interrupted. `repeats`: asked for again when
    it is finished, it says what it did; else it refuses to replace the file."""

    run: Callable[..., Any]
    change: str
    output: str
    data: tuple[str, ...]
    inside: bool = False
    kill_at: int = 3
    repeats: bool = True


@dataclass(frozen=True)
class Inputs:
    """What the jobs read: one folder for all of them, which they do not change."""

    folder: Path
    world: World

    def generate(self, output: Path, tick: Tick, *, other: bool, overwrite: bool) -> None:
        config = JobConfig(
            generate=GenerateConfig(
                target=ModelConfig(model="fake"),
                draft=DraftConfig(budget=9 if other else 8),
            ),
            shard_size=2,
        )
        spec = JobSpec(config, str(self.folder / "records.jsonl"), output, overwrite=overwrite)
        run_generate(spec, load=lambda *_: FakeGenerator(on_request=lambda _: tick()))

    def encode(self, output: Path, tick: Tick, *, other: bool, overwrite: bool) -> None:
        class Encoder:
            fingerprint, dim, pooling, max_tokens = "fake", 2, "words", None

            def encode_documents(self, documents: list[Document], watch: Any) -> Encoded:
                tick()
                ones = np.ones(len(documents), np.int64)
                sizes = np.array([[len(d.knowledge), 1.0] for d in documents], np.float32)
                return Encoded(sizes.reshape(-1, 2), ones, 0 * ones, 0 * ones, ones)

        config = EncodeConfig(encoder="fake", shard_size=3 if other else 2)
        texts = str(self.folder / "texts.jsonl")
        spec = EncodeSpec(config, texts, output, overwrite=overwrite)
        run_encode(spec, load=lambda config, texts: Encoder())  # type: ignore[arg-type, return-value]

    def recommend(self, output: Path, tick: Tick, *, other: bool, overwrite: bool) -> None:
        settings = TaskSettings(
            sequences=str(self.world.sequences), sids=self.world.sids, target=self.world.target,
            draft="none", output=output, shard_size=4,
            config=RecommendConfig(k=3 if other else 2), overwrite=overwrite,
        )  # fmt: skip
        task = prepare(settings)
        run_recommend(task.job, task.executor, task.histories, lambda users: tick())

    def fit(self, output: Path, tick: Tick, *, other: bool, overwrite: bool) -> None:
        settings = replace(FIT, lr=1e-4) if other else FIT
        spec = fit_spec(self.folder, settings=settings, recall_users=0, overwrite=overwrite)
        fit(replace(spec, output=output), Steps(tick))

    def teach(self, output: Path, tick: Tick, *, other: bool, overwrite: bool) -> None:
        class Shards(TeachWatcher):
            def shard(self, manifest: Any) -> None:
                tick()

        settings = TeachSettings(beams=3 if other else 2, shard_size=8)
        spec = TeachSpec(
            str(self.folder / "target"), str(self.folder / "sequences.jsonl"),
            str(self.folder / "sids.jsonl"), output, settings, device="cpu", overwrite=overwrite,
        )  # fmt: skip
        teach(spec, Shards())

    def align(self, output: Path, tick: Tick, *, other: bool, overwrite: bool) -> None:
        spec = AlignSpec(
            self.folder / "teacher", str(self.folder / "target"), output,
            ModelSource("preset", "tiny"), settings=replace(ALIGN, lr=1e-4) if other else ALIGN,
            held_out=4, overwrite=overwrite,
        )  # fmt: skip
        align(spec, Steps(tick))

    def drafter(self, output: Path, tick: Tick, *, other: bool, overwrite: bool) -> None:
        spec = drafter_spec(
            self.folder / "words", [self.folder / "run"], output,
            settings=replace(DRAFTER, lr=2e-3 if other else 1e-3), overwrite=overwrite,
        )  # fmt: skip
        fit_drafter(spec, Steps(tick))

    def trials(self, output: Path, tick: Tick, *, other: bool, overwrite: bool) -> None:
        def square(settings: Settings) -> Mapping[str, Any]:
            tick()
            return {"square": int(settings["x"] or 0) ** 2}

        store = TrialStore(output, {"positive": 4 if other else 3}, overwrite)
        run_trials(square, [{"x": x} for x in range(6)], store)


class Steps(TrainWatcher):
    def __init__(self, tick: Tick) -> None:
        self._tick = tick

    def step(self, progress: Any, loss: float) -> None:
        self._tick()


JOBS = {
    "generate": Job(
        Inputs.generate, "budget", "run", ("part-*.parquet", "stats-*.parquet"), inside=True
    ),
    "encode": Job(Inputs.encode, "shard_size", "v.parquet", ("v.parquet",)),
    "recommend": Job(Inputs.recommend, "k", "lists.parquet", ("lists.parquet",), repeats=False),
    "fit": Job(Inputs.fit, "lr", "model", ("model.safetensors",)),
    "teach": Job(Inputs.teach, "beams", "teacher", ("*.safetensors",), kill_at=2),
    "align": Job(Inputs.align, "lr", "draft", ("model.safetensors",)),
    "drafter": Job(Inputs.drafter, "lr", "drafter", ("head.safetensors",)),
    # A study of `ctr`, and what `tune --model` tries.
    "trials": Job(Inputs.trials, "positive", "study", ("trials.*",), inside=True),
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    folder = tmp_path_factory.mktemp("inputs")
    for name, column in (("records", "prompt"), ("texts", "text")):
        rows = [{"entity_id": f"u{i}", column: f"about {i}"} for i in range(7)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "world").mkdir()
    found = Inputs(folder, make_world(folder / "world"))
    found.fit(folder / "target", count(), other=False, overwrite=False)
    found.teach(folder / "teacher", count(), other=False, overwrite=False)
    words = make_target(folder / "words", counts=True)
    write_run(folder / "run", words, write_records(folder / "words.jsonl", 20))
    return found


def count(kill_at: int | None = None) -> Any:
    """A tick that counts, and kills when it comes to `kill_at`."""

    def tick() -> None:
        tick.done += 1  # type: ignore[attr-defined]
        if tick.done == kill_at:  # type: ignore[attr-defined]
            raise Killed

    tick.done = 0  # type: ignore[attr-defined]
    return tick


class Runs:
    """One kind of job, run in a folder of its own."""

    def __init__(self, job: Job, inputs: Inputs, folder: Path) -> None:
        self.job, self.inputs, self.folder = job, inputs, folder

    def __call__(
        self, name: str = "a", kill_at: int | None = None, *, other: bool = False,
        overwrite: bool = False,
    ) -> int:  # fmt: skip
        """Run it in the folder `name`; how many pieces of work were done."""
        tick = count(kill_at)
        (self.folder / name).mkdir(exist_ok=True)
        self.job.run(self.inputs, self.output(name), tick, other=other, overwrite=overwrite)
        return tick.done

    def output(self, name: str = "a") -> Path:
        return self.folder / name / self.job.output

    def data(self, name: str = "a") -> dict[str, bytes]:
        """Contents of the files that count."""
        output = self.output(name)
        folder = output if output.is_dir() else output.parent
        found = [path for pattern in self.job.data for path in folder.glob(pattern)]
        assert found
        return {path.name: path.read_bytes() for path in found}


@pytest.fixture(params=JOBS)
def runs(request: pytest.FixtureRequest, inputs: Inputs, tmp_path: Path) -> Runs:
    return Runs(JOBS[request.param], inputs, tmp_path)


@pytest.mark.slow
def test_it_goes_on_after_a_kill_and_ends_in_the_same_bytes(runs: Runs) -> None:
    whole = runs("whole")
    with pytest.raises(Killed):
        runs(kill_at=runs.job.kill_at)
    assert runs() < whole  # what was finished is not done again
    assert runs.data() == runs.data("whole")


@pytest.mark.slow
def test_what_is_finished_is_not_done_again(runs: Runs) -> None:
    runs()
    before = runs.data()
    if runs.job.repeats:
        assert runs() == 0
    else:
        with pytest.raises(DraftrecError, match=r"exists.*--overwrite"):
            runs()
    assert runs.data() == before


@pytest.mark.slow
def test_other_settings_are_refused_by_name_and_overwrite_begins_anew(runs: Runs) -> None:
    whole = runs("other", other=True)
    with pytest.raises(Killed):
        runs(kill_at=runs.job.kill_at)
    with pytest.raises(DraftrecError, match=rf"\b{runs.job.change} (was|changed).*--overwrite"):
        runs(other=True)
    assert runs(other=True, overwrite=True) == whole  # nothing of the other job is kept
    assert runs.data() == runs.data("other")


@pytest.mark.slow
def test_a_second_writer_is_refused(runs: Runs) -> None:
    with held_elsewhere(runs.output(), inside=runs.job.inside):
        with pytest.raises(DraftrecError, match="another process is writing to"):
            runs()
        assert all(path.name.endswith(".lock") for path in runs.folder.rglob("*") if path.is_file())
    runs()
    assert not list(runs.folder.rglob("*.lock"))
