"""One training from its folder to its model, the same for targets and drafts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from draftrec.models.recommender import INFO_FILE, RecommenderInfo, read_info, save_recommender
from draftrec.train.files import TrainingFolder
from draftrec.train.loop import Task, Trainer, TrainWatcher
from draftrec.train.lora import merged
from draftrec.train.settings import TrainSettings


@dataclass(frozen=True, eq=False)
class Prepared:
    """A model about to be trained. `info` describes it, but for the training; `note` tells people
    what is ahead."""

    task: Task
    model: Any
    tokenizer: PreTrainedTokenizerBase
    info: RecommenderInfo
    note: str


@dataclass(frozen=True, eq=False, slots=True)
class Session:
    """`identity` is everything that decides what the training ends with."""

    output: Path
    settings: TrainSettings
    identity: dict[str, Any]
    overwrite: bool
    watcher: TrainWatcher
    should_stop: Callable[[], bool] | None

    def run(self, prepare: Callable[[], Prepared]) -> dict[str, Any]:
        """Train and save, go on with what was begun, or find that it is done; a summary.

        Nothing is written before `prepare` has found the input usable. Raises DraftrecError where
        the folder holds another training, or another process trains in it, and Interrupted
        once `should_stop()` is true.
        """
        folder = TrainingFolder(self.output / "training")
        with folder.ledger.held():
            return self._run(folder, prepare)

    def _run(self, folder: TrainingFolder, prepare: Callable[[], Prepared]) -> dict[str, Any]:
        if not self.overwrite:
            folder.check(self.identity)
            if (self.output / INFO_FILE).is_file():
                self.watcher.note(f"{self.output} is already trained; nothing was changed")
                return summary(self.output, read_info(self.output))
        prepared = prepare()
        folder.claim(self.identity, overwrite=self.overwrite)
        weights = sum(weight.numel() for weight in prepared.model.parameters())
        self.watcher.note(f"{weights:,} weights, {prepared.note}")
        trainer = Trainer(prepared.task, prepared.model, self.settings, folder)
        progress = trainer.run(self.watcher, self.should_stop)
        record = {
            **self.identity,
            "weights": weights,
            "best_epoch": progress.best_epoch,
            "seconds": round(progress.seconds, 1),
            "epochs": progress.epochs,
        }
        info = prepared.info.model_copy(update={"training": record})
        save_recommender(self.output, merged(prepared.model), prepared.tokenizer, info)
        return summary(self.output, info)


def summary(output: Path, info: RecommenderInfo) -> dict[str, Any]:
    """What the command line says about a trained model."""
    record = info.training
    best = record["epochs"][record["best_epoch"]]
    return {
        "output": str(output),
        "kind": info.kind,
        "objective": info.objective,
        "weights": record["weights"],
        "epochs": len(record["epochs"]),
        "best_epoch": record["best_epoch"],
        "seconds": record["seconds"],
        **{name: best[name] for name in best if name not in ("epoch", "steps", "seconds")},
    }
