"""Align a draft model with a target: train it on what the target recommends.

The paper is AtSpeed (arXiv 2410.05165). A draft pays when all beams that the target keeps are among
those that it drafted; the objectives are in `objectives`. An `Alignment` is what a draft learns
step by step: batches of contexts, the loss on them, and what it is worth.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from collections.abc import Sequence as Seq
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from draftrec.core import IntArray
from draftrec.engine.beams.drafters import ModelDrafter
from draftrec.engine.beams.loop import BeamEngine, search
from draftrec.engine.beams.model import BeamModel, Constraint
from draftrec.engine.beams.pace import FixedPace
from draftrec.engine.beams.state import BeamRequest
from draftrec.engine.target import Target
from draftrec.items.prompts import HistoryEncoder
from draftrec.items.semantic_ids import SemanticIds
from draftrec.items.trie import ItemTrie
from draftrec.models.recommender import (
    Recommender,
    RecommenderInfo,
    check_draft,
    check_ids,
    load_recommender,
)
from draftrec.train import objectives, presets
from draftrec.train.examples import IGNORED, Batch, cuts
from draftrec.train.files import check_apart
from draftrec.train.fit import longest
from draftrec.train.loop import TrainWatcher, Validation, own_attention
from draftrec.train.presets import ModelSource
from draftrec.train.session import RECOMMENDER, Prepared, Session, save_trained
from draftrec.train.settings import (
    ALIGN_DROPOUT,
    DRAFT_PRESET,
    AlignRun,
    ObjectiveSettings,
    TrainSettings,
)
from draftrec.train.teacher_files import (
    Context,
    TeacherFolder,
    TeacherManifest,
    at_rows,
    check_teacher,
    tree_inputs,
    tree_logits,
)

_SLOTS = 32


class Alignment:
    """The task of a draft. Epochs go through the shards in random order, one in memory at a time;
    the last `held` contexts are left out and validated on.

    A batch is that of `teacher_files.tree_inputs`, with `labels` int64 `[B, T]` of the prompts'
    own items; of rows: `codes` int64 `[R, A]` (legal tokens, -1: none), `log_probs` float16 `[R,
    A]` of the target, `beams` float32 `[R]` and `truth` int64 `[R]`; `prompt_codes` and
    `prompt_log_probs`, the same of the labels in their order; and the edges, see `ContextTree`.
    """

    def __init__(
        self,
        objective: ObjectiveSettings,
        settings: TrainSettings,
        folder: TeacherFolder,
        held: int,
        target: Recommender,
    ) -> None:
        manifest = folder.manifest()
        if manifest is None:
            raise ValueError(f"{folder.path} holds no teacher data")
        self.objective, self.settings, self.folder = objective, settings, folder
        self.target, self.beams, self.levels = target, manifest.beams, manifest.levels
        self.shards, self.taught = manifest.shards, manifest.total - held
        self.catalogue = folder.catalogue()

    def steps(self) -> int:
        """Batches of an epoch, the same for all epochs."""
        return self._steps

    def batches(self, epoch: int) -> Iterator[Batch]:
        rng = np.random.default_rng([self.settings.seed, epoch])
        for shard in rng.permutation(len(self.shards)).tolist():
            contexts = self._taught(shard)
            rows = self._rows(contexts)
            order = np.lexsort((rng.random(len(rows)), rows))
            found = cuts(rows[order], self.settings.batch_tokens)
            for cut in rng.permutation(len(found)).tolist():
                first, last = found[cut]
                yield self.batch([contexts[i] for i in order[first:last].tolist()])

    def loss(self, model: Any, batch: Batch) -> Tensor:
        """`(1 - alpha) * next-item loss + alpha * alignment loss`; alpha is 0 for SFT."""
        logits = tree_logits(model, batch)
        rows = at_rows(logits, batch["rows"])
        hard = self.objective.objective == "sft"
        alpha, soft = (0.0, 0.0) if hard else (self.objective.alpha, self.objective.soft)
        next_item = next_item_loss(logits, rows, batch, soft)
        return (1 - alpha) * next_item + alpha * alignment_loss(rows, batch, self.objective)

    def validate(self, model: Any) -> Validation | None:
        """The loss on what was held out, and the target calls of speculative search there with the
        target's K, twice as many draft beams, and all levels but the last drafted."""
        if not self.held_out:
            return None
        total = 0.0
        with torch.inference_mode():
            for first in range(0, len(self.held_out), _SLOTS):
                contexts = self.held_out[first : first + _SLOTS]
                total += len(contexts) * float(self.loss(model, self.batch(contexts)))
        calls = self.target_calls(model)
        return Validation(
            {"valid_loss": total / len(self.held_out), "valid_target_calls": calls}, -calls
        )

    def target_calls(self, model: Any) -> float:
        """Mean passes of the target for a held-out context, 1 at best and L at worst."""
        trie = ItemTrie.build(self.catalogue.items, self.catalogue.item_tokens)
        constraint = Constraint(trie, self.levels)
        both: list[Any] = [model, self.target.model]
        with own_attention(*both):
            draft, target = (BeamModel(Target(m), constraint) for m in both)
            pace = FixedPace(2 * self.beams, self.levels - 1, self.levels)
            drafter = ModelDrafter(draft, self.beams, pace)
            requests = [BeamRequest(i, c.prompt) for i, c in enumerate(self.held_out)]
            found = search(BeamEngine(target, drafter, self.beams, _SLOTS), requests)
        return float(np.mean([beams.target_calls for beams in found]))

    @cached_property
    def held_out(self) -> list[Context]:
        """The contexts that validate."""
        found: list[Context] = []
        for shard, first in enumerate(self._starts):
            if first + self.shards[shard] > self.taught:
                found += self.folder.contexts(shard)[max(0, self.taught - first) :]
        return found

    def batch(self, contexts: Seq[Context]) -> Batch:
        """Contexts as one pass."""
        trees = [context.tree() for context in contexts]
        inputs = tree_inputs([c.prompt for c in contexts], trees)
        labels = np.full(inputs["input_ids"].shape, IGNORED, np.int64)
        for row, context in enumerate(contexts):
            answers = np.flatnonzero(context.answers)
            labels[row, answers] = context.prompt[answers]
        first = np.cumsum([0, *(len(tree.truth) for tree in trees)])
        levels = np.concatenate([tree.next_level for tree in trees])
        arrays: dict[str, npt.NDArray[Any]] = {
            "labels": labels,
            "prompt_codes": self.catalogue.codes[
                np.concatenate([np.arange(len(c.prompt_log_probs)) % self.levels for c in contexts])
            ].astype(np.int64),
            "prompt_log_probs": np.concatenate([c.prompt_log_probs for c in contexts]),
            "codes": self.catalogue.codes[levels].astype(np.int64),
            "log_probs": np.concatenate([c.log_probs for c in contexts]),
            "beams": np.concatenate([tree.beams for tree in trees]),
            "truth": np.concatenate([tree.truth for tree in trees]),
            "edge_rows": np.concatenate(
                [tree.edge_rows + start for tree, start in zip(trees, first, strict=False)]
            ),
            "edge_tokens": np.concatenate([tree.edge_tokens for tree in trees]),
            "edge_beams": np.concatenate([tree.edge_beams for tree in trees]),
        }
        return inputs | {name: torch.from_numpy(array) for name, array in arrays.items()}

    @property
    def _starts(self) -> list[int]:
        """The number of every shard's first context."""
        return np.cumsum([0, *self.shards])[:-1].tolist()

    @cached_property
    def _steps(self) -> int:
        return sum(
            len(cuts(np.sort(self._rows(self._taught(shard))), self.settings.batch_tokens))
            for shard in range(len(self.shards))
        )

    def _taught(self, shard: int) -> list[Context]:
        return self.folder.contexts(shard)[: max(0, self.taught - self._starts[shard])]

    def _rows(self, contexts: Seq[Context]) -> IntArray:
        """int32: rows of each context's pass, at most."""
        deep = self.levels - 1
        return np.array([len(c.prompt) + deep * (len(c.beams) + 1) for c in contexts], np.int32)


def alignment_loss(rows: Tensor, batch: Batch, settings: ObjectiveSettings) -> Tensor:
    """The alignment loss of a batch whose rows have logits `rows` `[R, V]`; 0 for SFT.

    WordKD and TVDKD look at the true item's rows, the others at those of the target's beams, each
    as often as beams go through it.
    """
    if settings.objective == "sft":
        return rows.new_zeros(())
    if settings.objective == "seqkd":
        chosen = rows[batch["edge_rows"]]
        return objectives.token_loss(chosen, batch["edge_tokens"], batch["edge_beams"])
    legal = batch["codes"] >= 0
    z_q = rows.gather(1, batch["codes"].clamp_min(0))
    z_p = batch["log_probs"].float().masked_fill(~legal, 0.0)
    true, beams = (batch["truth"] >= 0).float(), batch["beams"]
    match settings.objective:
        case "wordkd":
            return objectives.word_kd(z_q, z_p, legal, true)
        case "beamkd":
            return objectives.word_kd(z_q, z_p, legal, beams)
        case "tvdkd":
            return objectives.total_variation(z_q, z_p, legal, true, settings.tau)
        case "atspeed-r":
            return objectives.total_variation(z_q, z_p, legal, beams, settings.tau)
        case _:
            return objectives.atspeed_s(z_q, z_p, legal, beams, settings)


def next_item_loss(logits: Tensor, rows: Tensor, batch: Batch, soft: float) -> Tensor:
    """The loss of the prompts' own items and of the true item, over the vocabulary: for a share of
    `soft` against the target's probabilities, for the rest against what users took (SFT)."""
    labels = batch["labels"][:, 1:]
    known, true = labels != IGNORED, batch["truth"] >= 0
    chosen = torch.cat((logits[:, :-1][known], rows[true]))
    weights = torch.ones(len(chosen), device=chosen.device)
    loss = chosen.new_zeros(())
    if soft < 1:
        tokens = torch.cat((labels[known], batch["truth"][true]))
        loss = loss + (1 - soft) * objectives.token_loss(chosen, tokens, weights)
    if soft > 0:
        codes = torch.cat((batch["prompt_codes"], batch["codes"][true]))
        log_p = torch.cat((batch["prompt_log_probs"], batch["log_probs"][true]))
        loss = loss + soft * objectives.soft_token_loss(chosen, codes, log_p, weights)
    return loss


@dataclass(frozen=True)
class AlignSpec(AlignRun):
    """A draft to train on the folder `teacher` of `target`."""

    teacher: Path
    target: str
    output: Path
    source: ModelSource = field(default_factory=lambda: ModelSource("preset", DRAFT_PRESET))
    objective: ObjectiveSettings = field(default_factory=ObjectiveSettings)
    settings: TrainSettings = field(default_factory=lambda: TrainSettings(dropout=ALIGN_DROPOUT))
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
    read = {"TEACHER": spec.teacher, "--target": spec.target, "--from": spec.source.folder}
    check_apart(spec.output, read)
    target = load_recommender(spec.target, spec.settings.device)
    folder = TeacherFolder(spec.teacher)
    manifest = check_teacher(folder, target)
    identity = {
        **presets.source_record(spec.source),
        "teacher": manifest.contexts,
        "target": target.fingerprint,
        "held_out": spec.held_out,
        **asdict(spec.objective),
        **spec.settings.deciding(),
    }
    watcher = watcher or TrainWatcher()
    session = Session(
        spec.output, spec.settings, identity, spec.overwrite, watcher, should_stop, RECOMMENDER
    )
    return session.run(lambda: prepare(spec, target, folder, manifest))


def prepare(
    spec: AlignSpec, target: Recommender, folder: TeacherFolder, manifest: TeacherManifest
) -> Prepared:
    """The draft and its examples. Raises DraftrecError for what cannot be trained."""
    catalogue = folder.catalogue()
    encoder = HistoryEncoder(target.format, target.tokenizer, catalogue.item_tokens)
    sids = folder.sids()
    model: Any = _draft(spec, target, sids, longest(encoder))
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
    save = partial(save_trained, spec.output, model, target.tokenizer, info, sids)
    return Prepared(task, model, note, save)


def _draft(spec: AlignSpec, target: Recommender, sids: SemanticIds | None, context: int) -> Any:
    if spec.source.kind == "checkpoint":
        draft = load_recommender(spec.source.name, "cpu", "float32")
        check_draft(target, draft)
        if sids is not None:
            named = f"those of {spec.teacher}"
            check_ids(draft.info, draft.folder, sids, named, again=True)
        presets.check_servable(draft.model)
        return draft.model
    return presets.untrained(spec.source, target.tokenizer, context, spec.settings.seed)
