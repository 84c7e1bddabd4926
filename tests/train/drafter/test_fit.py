"""Training heads: one learns what can be known, stops and goes on, and is refused what is not its
target's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from draftrec.config import ModelConfig
from draftrec.engine.learned.rules import ScoreRules
from draftrec.errors import DraftrecError, Interrupted
from draftrec.jobs.knowledge.generator import fingerprint_of
from draftrec.models.drafters import load_drafter
from draftrec.models.loading import load_model, load_tokenizer
from draftrec.train.drafter.fit import fit_drafter, held_out
from draftrec.train.drafter.texts import TrainingText
from draftrec.train.loop import TrainWatcher
from draftrec.train.settings import HeadSettings
from tests.fakes import Killed
from tests.train.drafter.worlds import (
    HEAD,
    SETTINGS,
    drafter_spec,
    make_target,
    write_records,
    write_run,
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A target that counts, and two runs of it."""
    folder = tmp_path_factory.mktemp("world")
    make_target(folder / "target", counts=True)
    for i in range(2):
        records = write_records(folder / f"records{i}.jsonl", 20, seed=i)
        write_run(folder / f"run{i}", folder / "target", records)
    return folder


class Notes(TrainWatcher):
    """Keeps what it is told; `read`: texts read so far, at every turn."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.read: list[int] = []
        self.losses: list[float] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def reading(self, done: int, texts: int) -> None:
        self.read.append(done)

    def epoch(self, record: dict[str, float]) -> None:
        self.losses.append(record["valid_loss"])


@pytest.mark.parametrize("loss", ["kl", "ce"])
def test_a_head_drafts_what_can_be_known(world: Path, tmp_path: Path, loss: str) -> None:
    settings = replace(SETTINGS, epochs=4)
    spec = drafter_spec(
        world / "target", [world / "run0", world / "run1"], tmp_path / "d",
        head=HeadSettings(loss=loss, vocabulary=97, levels=3), settings=settings,  # type: ignore[arg-type]
    )  # fmt: skip
    watcher = Notes()
    found = fit_drafter(spec, watcher)
    # 16 tokens: one by the prompt's pass, then four by every other.
    assert found["valid_tokens_per_call"] == pytest.approx(16 / 5)
    assert found["kind"] == "draft head"
    assert (found["texts"], found["levels"], found["vocabulary"]) == (40, 3, found["vocabulary"])
    assert watcher.read == list(range(1, 41))
    assert watcher.losses[-1] < watcher.losses[0]
    assert not (tmp_path / "d" / "training" / "features").exists()

    model = load_model(ModelConfig(model=str(world / "target"), device="cpu"))
    tokenizer = load_tokenizer(world / "target")
    drafter = load_drafter(tmp_path / "d", model, fingerprint_of(model, tokenizer))
    assert drafter.info.training["best_epoch"] + 1 == found["best_epoch"]
    assert 2 in drafter.tokens.tolist(), "the end of texts can be drafted"
    # After a lone token 20 comes 21, whatever came before.
    head, embedded = drafter.head, model.get_input_embeddings()(torch.tensor([20]))
    stream = head.joined(embedded, torch.zeros(1, 32))
    _, _, value = head.attended(stream, torch.tensor([0]))
    mixed = value.repeat_interleave(head.shape.heads // head.shape.kv_heads, 1)
    best = drafter.output(head.foretold(stream, mixed)).argmax(-1)
    assert drafter.tokens[best].tolist() == [21]


def test_an_interrupted_reading_goes_on(world: Path, tmp_path: Path) -> None:
    watcher = Notes()
    spec = drafter_spec(world / "target", [world / "run0"], tmp_path / "d", keep_features=True)
    with pytest.raises(Interrupted) as event:
        fit_drafter(spec, watcher, lambda: len(watcher.read) == 7)
    assert event.value.progress.step == 0
    fit_drafter(spec, watcher)
    assert watcher.read[-1] == 20
    seen = len(watcher.read)
    fit_drafter(replace(spec, head=replace(HEAD, loss="ce"), overwrite=True), watcher)
    assert len(watcher.read) == seen, "features were kept for another training"
    fit_drafter(replace(spec, head=replace(HEAD, loss="ce")), watcher)
    assert "is already trained" in watcher.notes[-1]


def test_features_that_a_kill_has_left_go_with_the_next_run(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The head was whole, and they, which are most of what is written, stayed for good."""

    def killed(*_: object, **__: object) -> None:
        raise Killed

    spec = drafter_spec(world / "target", [world / "run0"], tmp_path / "d")
    with monkeypatch.context() as patch:
        patch.setattr("draftrec.train.drafter.fit.shutil.rmtree", killed)
        with pytest.raises(Killed):
            fit_drafter(spec)
    features = tmp_path / "d" / "training" / "features"
    assert features.is_dir()
    watcher = Notes()
    fit_drafter(spec, watcher)
    assert "is already trained" in watcher.notes[-1]
    assert not features.exists()


def test_runs_of_another_model_are_refused(world: Path, tmp_path: Path) -> None:
    other = make_target(tmp_path / "other")
    spec = drafter_spec(other, [world / "run0"], tmp_path / "d")
    with pytest.raises(DraftrecError, match=r"run0 was written with another model than"):
        fit_drafter(spec)
    assert not (tmp_path / "d" / "training").exists()
    write_run(tmp_path / "run", other, world / "records0.jsonl")
    mixed = replace(spec, runs=[world / "run0", tmp_path / "run"])
    with pytest.raises(DraftrecError, match=r"run was written with another model than"):
        fit_drafter(mixed)


def test_entities_are_held_out_whole() -> None:
    import numpy as np

    ids = np.arange(4, dtype=np.int32)
    texts = [TrainingText(f"e{i % 30}", ids, 2, ScoreRules()) for i in range(90)]
    found = held_out(texts, 128, 0)
    assert len(found) == 3
    assert held_out(texts, 2, 0) < found
    assert held_out(texts, 128, 1) != found
    assert held_out(texts[:9], 128, 0) == set()
