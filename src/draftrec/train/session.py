"""One training from its folder to its model, the same for targets and drafts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from draftrec.items.semantic_ids import SemanticIds
from draftrec.models.recommender import INFO_FILE, RecommenderInfo, read_info, save_recommender
from draftrec.train.files import TrainingFolder
from draftrec.train.loop import Task, Trainer, TrainWatcher
from draftrec.train.presets import merged
from draftrec.train.settings import TrainSettings


def _nothing() -> None:
    """There is nothing to do."""


@dataclass(frozen=True, eq=False)
class Prepared:
    """A model about to be trained. `note` tells people what is ahead; `save` writes the trained
    model's folder, given the record of its training; `begin` is called before the first step, when
    the folder is there."""

    task: Task
    model: Any
    note: str
    save: Callable[[dict[str, Any]], None]
    begin: Callable[[], None] = _nothing


@dataclass(frozen=True, slots=True)
class Kind:
    """What a training makes: `sign`, the file that says that its folder is whole, and the
    `summary` of such a folder."""

    sign: str
    summary: Callable[[Path], dict[str, Any]]


@dataclass(frozen=True, eq=False, slots=True)
class Session:
    """`identity` is everything that decides what the training ends with. `tidy` removes what is of
    no use when the model is whole: also what a kill kept an earlier run from removing."""

    output: Path
    settings: TrainSettings
    identity: dict[str, Any]
    overwrite: bool
    watcher: TrainWatcher
    should_stop: Callable[[], bool] | None
    kind: Kind
    tidy: Callable[[], None] = _nothing

    def run(self, prepare: Callable[[], Prepared]) -> dict[str, Any]:
        """Train and save, go on with what was begun, or find that it is done; a summary.

        Nothing is written before `prepare` has found the input usable. Raises DraftrecError where
        the folder holds another training, another process trains in it, or it is removed meanwhile,
        and Interrupted once `should_stop()` is true.
        """
        folder = TrainingFolder(self.output / "training", self.kind.sign)
        with folder.ledger.held():
            return self._run(folder, prepare)

    def _run(self, folder: TrainingFolder, prepare: Callable[[], Prepared]) -> dict[str, Any]:
        if not self.overwrite:
            folder.check(self.identity)
            if (self.output / self.kind.sign).is_file():
                self.watcher.note(f"{self.output} is already trained; nothing was changed")
                self.tidy()
                return self.kind.summary(self.output)
        prepared = prepare()
        folder.claim(self.identity, overwrite=self.overwrite)
        weights = sum(weight.numel() for weight in prepared.model.parameters())
        self.watcher.note(f"{weights:,} weights, {prepared.note}")
        with folder.kept():
            prepared.begin()
            trainer = Trainer(prepared.task, prepared.model, self.settings, folder)
            progress = trainer.run(self.watcher, self.should_stop)
            prepared.save(
                {
                    **self.identity,
                    "weights": weights,
                    "best_epoch": progress.best_epoch,
                    "seconds": round(progress.seconds, 1),
                    "epochs": progress.epochs,
                }
            )
        self.tidy()
        return self.kind.summary(self.output)


def figures(output: Path, record: dict[str, Any], **what: str) -> dict[str, Any]:
    """What the command line says about a trained model, of the record of its training; `what`: of
    which kind it is."""
    best = record["epochs"][record["best_epoch"]]
    return {
        "output": str(output),
        **what,
        "weights": record["weights"],
        "epochs": len(record["epochs"]),
        "best_epoch": record["best_epoch"] + 1,
        "seconds": record["seconds"],
        **{name: best[name] for name in best if name not in ("epoch", "steps", "seconds")},
    }


def _summary(output: Path) -> dict[str, Any]:
    info = read_info(output)
    return figures(output, info.training, kind=info.kind, objective=info.objective)


RECOMMENDER = Kind(INFO_FILE, _summary)


def save_trained(
    output: Path,
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    info: RecommenderInfo,
    sids: SemanticIds | None,
    record: dict[str, Any],
) -> None:
    """Write the folder of a recommender that was trained."""
    done = info.model_copy(update={"training": record})
    save_recommender(output, merged(model), tokenizer, done, sids)
