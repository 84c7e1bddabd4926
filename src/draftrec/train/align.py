"""Align a draft model with a target: train it on what the target recommends.

The paper is AtSpeed (arXiv 2410.05165). A draft pays when all beams that the target keeps are among
those that it drafted; the objectives are in `objectives`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from draftrec.items.prompts import HistoryEncoder
from draftrec.models.recommender import (
    Recommender,
    RecommenderInfo,
    check_draft,
    load_recommender,
)
from draftrec.train import presets
from draftrec.train.align_task import Alignment
from draftrec.train.fit import longest
from draftrec.train.loop import TrainWatcher
from draftrec.train.presets import ModelSource
from draftrec.train.session import Prepared, Session
from draftrec.train.settings import ObjectiveSettings, TrainSettings
from draftrec.train.teacher_files import TeacherFolder, TeacherManifest, check_teacher


@dataclass(frozen=True, slots=True)
class AlignSpec:
    """A draft to train on the folder `teacher` of `target`. The last `held_out` contexts, or a
    tenth if that is less, validate; the best weights are those with the fewest target calls."""

    teacher: Path
    target: str
    output: Path
    source: ModelSource = field(default_factory=lambda: ModelSource("preset", "tiny"))
    objective: ObjectiveSettings = field(default_factory=ObjectiveSettings)
    settings: TrainSettings = field(default_factory=lambda: TrainSettings(dropout=0.0))
    held_out: int = 256
    overwrite: bool = False


def align(
    spec: AlignSpec,
    watcher: TrainWatcher | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> dict[str, Any]:
    """Train the draft and write its folder, or go on where an interruption left off; a summary.

    Raises DraftrecError for unusable input, teacher data of another target among it, and
    Interrupted once `should_stop()` is true.
    """
    target = load_recommender(spec.target, spec.settings.device)
    folder = TeacherFolder(spec.teacher)
    manifest = check_teacher(spec.teacher, folder.manifest(), target)
    identity = {
        "source": f"{spec.source.kind} {spec.source.name}",
        "teacher": manifest.contexts,
        "target": target.fingerprint,
        "held_out": spec.held_out,
        **asdict(spec.objective),
        **spec.settings.deciding(),
    }
    session = Session(
        spec.output, spec.settings, identity, spec.overwrite, watcher or TrainWatcher(), should_stop
    )
    return session.run(lambda: prepare(spec, target, folder, manifest))


def prepare(
    spec: AlignSpec, target: Recommender, folder: TeacherFolder, manifest: TeacherManifest
) -> Prepared:
    """The draft and its lessons. Raises DraftrecError for what cannot be trained."""
    catalogue = folder.catalogue()
    encoder = HistoryEncoder(target.format, target.tokenizer, catalogue.item_tokens)
    model: Any = _draft(spec, target, longest(encoder))
    model.requires_grad_(True)
    held = min(spec.held_out, manifest.total // 10)
    task = Alignment(spec.objective, spec.settings, folder, held, target)
    info = RecommenderInfo(
        kind="draft",
        objective=spec.objective.objective,
        levels=manifest.levels,
        prompt=target.format.as_dict(),
        sids=manifest.sids,
        target=target.fingerprint,
    )
    note = f"{manifest.total - held:,} contexts, {task.steps():,} steps an epoch"
    return Prepared(task, model, target.tokenizer, info, note)


def _draft(spec: AlignSpec, target: Recommender, context: int) -> Any:
    if spec.source.kind == "checkpoint":
        draft = load_recommender(spec.source.name, "cpu", "float32")
        check_draft(target, draft)
        return draft.model
    return presets.untrained(spec.source, target.tokenizer, context, spec.settings.seed)
