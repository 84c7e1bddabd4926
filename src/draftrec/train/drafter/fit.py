"""Train a draft head on texts that knowledge jobs have written: `draftrec drafter fit`."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from draftrec.config import ModelConfig
from draftrec.core import IntArray
from draftrec.data.files.places import Place
from draftrec.engine.learned.head import DraftHead, HeadShape
from draftrec.engine.passes.prepacked import prepack
from draftrec.engine.selfcheck import checked_target
from draftrec.errors import DraftrecError, Interrupted
from draftrec.models.drafters import (
    INFO_FILE,
    DrafterInfo,
    OutputRows,
    read_drafter_info,
    save_drafter,
    score_transform,
)
from draftrec.models.loading import (
    eos_token_ids,
    load_model,
    load_tokenizer,
    model_fingerprint,
    tokenizer_fingerprint,
    vocabulary,
)
from draftrec.train.drafter.features import FeatureFiles
from draftrec.train.drafter.lesson import Learner, Lesson, draft_vocabulary
from draftrec.train.drafter.mixture import mixture_of
from draftrec.train.drafter.texts import TrainingText, WrittenRun, open_runs
from draftrec.train.loop import Progress, TrainWatcher
from draftrec.train.session import Kind, Prepared, Session, figures
from draftrec.train.settings import HEAD_TRAINING, HeadRun, HeadSettings, TrainSettings


@dataclass(frozen=True, kw_only=True)
class DrafterSpec(HeadRun):
    """A head to train for `model` on texts of `runs`. `records`: those of each run, where they do
    not lie any more where they lay."""

    runs: Seq[Place]
    model: str
    output: Path
    records: Seq[str] = ()
    head: HeadSettings = field(default_factory=HeadSettings)
    settings: TrainSettings = field(default_factory=lambda: TrainSettings(**HEAD_TRAINING))
    overwrite: bool = False


def fit_drafter(
    spec: DrafterSpec,
    watcher: TrainWatcher | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> dict[str, Any]:
    """Train the head and write its folder, or go on where an interruption left off; a summary.

    Raises DraftrecError for unusable input, runs of another model among it, and Interrupted once
    `should_stop()` is true.
    """
    runs, fingerprint = open_runs(spec.runs, spec.records, spec.limit)
    of_model = runs[0].manifest.fingerprints
    identity = {
        "form": "head",
        "texts": sum(len(run.texts) for run in runs),
        "runs": fingerprint,
        "model": of_model["model"],
        "tokenizer": of_model["tokenizer"],
        "held_out": spec.held_out,
        **asdict(spec.head),
        **spec.settings.deciding(),
    }
    watcher = watcher or TrainWatcher()
    session = Session(
        spec.output, spec.settings, identity, spec.overwrite, watcher, should_stop, DRAFTER
    )
    return session.run(lambda: _Making(spec, runs, watcher, should_stop).prepared())


def _summary(output: Path) -> dict[str, Any]:
    info = read_drafter_info(output)
    record = info.training
    found = figures(output, record, kind="draft head", loss=record["loss"])
    more = {name: record[name] for name in ("texts", "levels")}
    return {**found, **more, "vocabulary": info.vocabulary}


# Tokens of a text that show how large a target's features are.
_SAMPLE = 256

DRAFTER = Kind(INFO_FILE, _summary)


class _Making:
    """A head about to be trained, and the target that it learns from, as long as that is needed."""

    def __init__(
        self,
        spec: DrafterSpec,
        runs: Seq[WrittenRun],
        watcher: TrainWatcher,
        should_stop: Callable[[], bool] | None,
    ) -> None:
        self.spec, self.watcher, self.should_stop = spec, watcher, should_stop
        tokenizer = load_tokenizer(spec.model)
        config = ModelConfig(model=spec.model, device=spec.settings.device)
        self.model: Any = load_model(config, packs=True)
        self.fingerprint = {
            "model": model_fingerprint(self.model),
            "tokenizer": tokenizer_fingerprint(tokenizer),
        }
        for run in runs:
            run.check(self.fingerprint)
        self.texts = [it for run in runs for it in run.training_texts(self.model, tokenizer)]
        held = held_out(self.texts, spec.held_out, spec.settings.seed)
        self.held = [i for i in range(len(self.texts)) if self.texts[i].entity_id in held]
        self.taught = [i for i in range(len(self.texts)) if self.texts[i].entity_id not in held]
        ends = eos_token_ids(self.model, tokenizer)
        chosen = [self.texts[i] for i in self.taught]
        size = min(spec.head.vocabulary, vocabulary(self.model))
        self.tokens = torch.from_numpy(draft_vocabulary(chosen, sorted(ends), size)).long()
        ids = [it.ids for it in self.texts]
        folder = spec.output / "training" / "features"
        self.features = FeatureFiles(folder, ids, self.fingerprint["model"])

    def prepared(self) -> Prepared:
        """Raises DraftrecError for a target that no head can be trained for."""
        spec, model = self.spec, self.model
        self.scale, self.cap = score_transform(model)
        output = OutputRows.of(model, self.tokens, torch.float32, self.scale, self.cap)
        torch.manual_seed(spec.settings.seed)
        head = new_head(model, self.texts[self.taught[0]].ids).to(model.device)
        self.learner = Learner(head, model.get_input_embeddings(), output)
        index = torch.full((vocabulary(model),), len(self.tokens))
        index[self.tokens] = torch.arange(len(self.tokens))
        self.lesson = Lesson(
            self.texts,
            self.features,
            self.taught,
            self.held,
            index.to(model.device),
            len(self.tokens),
            spec.head,
            spec.settings.batch_tokens,
            spec.settings.seed,
        )
        note = (
            f"{len(self.taught):,} texts to learn from and {len(self.held):,} to validate on, "
            f"{len(self.tokens):,} draft tokens, {self.lesson.steps():,} steps an epoch"
        )
        return Prepared(self.lesson, self.learner, note, self._save, self._begin)

    def _begin(self) -> None:
        """Have the target read the texts, as far as it has not, and let go of it."""
        self.features.claim()
        if self.features.missing:
            way = "auto" if self.model.device.type == "cpu" else "eager"
            prepack(self.model)
            count = len(self.texts)
            if not self.features.compute(
                checked_target(self.model, way=way),
                lambda done: self.watcher.reading(done, count),
                self.should_stop or (lambda: False),
            ):
                raise Interrupted(Progress())
        self.model = None

    def _save(self, record: dict[str, Any]) -> None:
        head = self.learner.head
        self.watcher.note("fitting how the head and a pool are heard together")
        taught = [self.texts[i] for i in self.taught]
        along = [
            (self.texts[i], partial(self.lesson.probabilities, self.learner, i)) for i in self.held
        ]
        mixture = mixture_of(taught, along, self.tokens.int().numpy(), self.spec.head.levels)
        info = DrafterInfo(
            shape=asdict(head.shape),
            levels=self.spec.head.levels,
            vocabulary=len(self.tokens),
            scale=self.scale,
            cap=self.cap,
            mixing={"weights": mixture.tolist()},
            training=record,
            model=self.fingerprint["model"],
            tokenizer=self.fingerprint["tokenizer"],
        )
        save_drafter(self.spec.output, head.state_dict(), self.tokens, info)
        if not self.spec.keep_features:
            self.features.clear()


def held_out(texts: Seq[TrainingText], count: int, seed: int) -> set[str]:
    """The entities whose texts validate: `count` of them, at most a tenth.

    Raises DraftrecError where nothing is left to learn from.
    """
    entities = sorted({it.entity_id for it in texts})
    if not entities:
        raise DraftrecError("there is no text to learn from; give runs that have written some")
    chosen = np.random.default_rng(seed).permutation(len(entities))
    return {entities[i] for i in chosen[: min(count, len(entities) // 10)].tolist()}


@torch.no_grad()
def new_head(model: Any, ids: IntArray) -> DraftHead:
    """A head of the size of the target's layers, whose features begin as large as the target's own
    of a text `ids`, each of its dimensions: a scale takes a thousand steps to be learnt."""
    head = DraftHead(HeadShape.of(model.config.get_text_config()))
    for weight in head.parameters():
        if weight.ndim > 1:
            nn.init.normal_(weight, std=0.02)
    rows = torch.from_numpy(ids[:_SAMPLE]).long().to(model.device)[None]
    features = model.base_model(input_ids=rows, use_cache=False).last_hidden_state[0].float()
    head.last.weight.copy_(features.square().mean(0).sqrt())
    return head
