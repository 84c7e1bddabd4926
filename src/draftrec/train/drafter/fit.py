"""Train a draft head on texts that knowledge jobs have written: `draftrec drafter fit`.

Last comes how far to believe the head and a pool where both speak: weights for
`engine.learned.growth`, fitted on texts that neither has learnt from. At every place of a text the
pool draws its tree as it would for a job, the head says what it thinks along the text, and each
token that one of them proposes either comes next or does not: a logistic regression for each level,
and for each way of being proposed. So estimates are calibrated where they meet, and nothing is
counted twice.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator
from collections.abc import Sequence as Seq
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from draftrec.config import ModelConfig
from draftrec.core import BoolArray, DoubleArray, DraftTree, IntArray, Request, Verdict
from draftrec.data.files.places import Place
from draftrec.engine.learned.drafter import BRANCHES
from draftrec.engine.learned.growth import DEFAULT, default_weights
from draftrec.engine.learned.head import DraftHead, HeadShape
from draftrec.engine.passes.prepacked import prepack
from draftrec.engine.selfcheck import checked_target
from draftrec.engine.text.budget import log_odds
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
from draftrec.pool.drafter import PoolDrafter
from draftrec.pool.store import Pool
from draftrec.train.drafter.task import HeadModel, HeadTask, draft_vocabulary
from draftrec.train.drafter.texts import FeatureFiles, TrainingText, WrittenRun, open_runs
from draftrec.train.files import TrainingFolder, check_apart
from draftrec.train.loop import Progress, TrainWatcher
from draftrec.train.session import Kind, Prepared, Session, figures
from draftrec.train.settings import HEAD_TRAINING, HeadRun, HeadSettings, TrainSettings

#: Columns of a level's weights (`growth.WEIGHTS`) that each case has: proposed by both, by the head
#: alone, by the pool alone.
_CASES = (slice(0, 3), slice(3, 6), slice(6, 8))
# Nodes of the pool's trees, their levels, and the texts that are gone along.
_NODES, _DEPTH, _TEXTS = 16, 24, 48
# What the usual weights count for, in observations of probability one half.
_PRIOR = 16.0


@dataclass(frozen=True, slots=True)
class Observations:
    """Tokens proposed at one level, to fit weights on: `inputs` float64 `[n, 3]`, a case's columns
    (the rest zero), `cases` `[n]`, and whether the text went on so, bool `[n]`."""

    inputs: DoubleArray
    cases: IntArray
    came: BoolArray


def observations_of(
    tree: DraftTree, probs: DoubleArray, tokens: IntArray, known: IntArray, text: IntArray
) -> list[Observations]:
    """What a pool's `tree` and a head propose for how a text goes on, level by level.

    `probs` float64 `[levels, V]`: the head's, along the text, over draft `tokens` int32 `[V]`;
    `known` int32 `[vocabulary]`: their numbers, -1 for others; `text` int32: what came.
    """
    found: list[Observations] = []
    node = -1
    for level in range(min(len(probs), len(text))):
        below = np.flatnonzero(tree.parents == node) if node > -2 else np.empty(0, np.int64)
        over = float(tree.probs[node]) if node >= 0 else 1.0
        ids = tree.token_ids[below]
        given = tree.probs[below] / over
        numbers = np.where(ids < len(known), known[np.minimum(ids, len(known) - 1)], -1)
        both = numbers >= 0
        q = np.where(both, probs[level, np.maximum(numbers, 0)], 0.5)
        rows = [np.stack([np.ones(len(ids)), log_odds(given), np.where(both, log_odds(q), 0)], 1)]
        own = np.argpartition(-probs[level], min(BRANCHES, len(tokens)) - 1)[:BRANCHES]
        own = own[~np.isin(tokens[own], ids)]
        left = np.full(len(own), 1.0 - given.sum())
        rows.append(np.stack([np.ones(len(own)), log_odds(probs[level, own]), log_odds(left)], 1))
        cases = np.concatenate([np.where(both, 0, 2), np.ones(len(own), np.int64)])
        came = np.concatenate([ids, tokens[own]]) == text[level]
        found.append(Observations(np.concatenate(rows), cases.astype(np.int32), came))
        on = below[ids == text[level]]
        node = int(on[0]) if len(on) else -2
    return found


def mixture_of(
    training: Seq[TrainingText],
    held_out: Seq[tuple[TrainingText, Callable[[], DoubleArray]]],
    tokens: IntArray,
    levels: int,
) -> DoubleArray:
    """float64 `[levels, 8]` for a pool of the `training` texts, from `held_out` ones and what
    the head says along each, float64 `[levels, n, V]`: row i of a level is about its token i."""
    pool = Pool("")
    pool.add((it.ids[it.first :], None) for it in training)
    largest = max(int(tokens.max()), *(int(it.ids.max()) for it in training))
    known = np.full(1 + largest, -1, np.int32)
    known[tokens] = np.arange(len(tokens), dtype=np.int32)

    def observed() -> Iterator[list[Observations]]:
        for text, probs in held_out[:_TEXTS]:
            yield from _observations_along(PoolDrafter(pool), text, probs(), tokens, known)

    return fit_mixture(observed(), levels)


def _observations_along(
    drafter: PoolDrafter, text: TrainingText, probs: DoubleArray, tokens: IntArray, known: IntArray
) -> Iterator[list[Observations]]:
    """What is proposed after every token of a text but the last."""
    along = _Along(Request(text.entity_id, text.ids[: text.first]), text.ids)
    drafter.start(along)
    nothing = np.empty(0, np.int32)
    for at in range(text.first + 1, len(text.ids)):
        along.length = at
        drafter.observe([along], [Verdict(nothing, text.ids[at - 1 : at])])
        tree = drafter.draft([along], _NODES, _DEPTH)[0]
        first = at - text.first
        rows = [level[first + i] for i, level in enumerate(probs) if first + i < len(level)]
        yield observations_of(tree, np.stack(rows), tokens, known, text.ids[at:])
    drafter.stop(along)


@dataclass(eq=False, slots=True)
class _Along:
    """A text under way as a drafter sees it: its first `length` tokens."""

    request: Request
    ids: IntArray
    length: int = 0
    slot: int = 0
    noise: int | None = None

    @property
    def context(self) -> IntArray:
        return self.ids[: self.length]

    @property
    def room(self) -> int:
        return len(self.ids) - self.length

    @property
    def computed(self) -> int:
        return self.length - 1


def fit_mixture(observed: Iterable[list[Observations]], levels: int) -> DoubleArray:
    """float64 `[levels, 8]` from what was proposed at many places."""
    by_level: list[list[Observations]] = [[] for _ in range(levels)]
    for place in observed:
        for level, found in enumerate(place[:levels]):
            by_level[level].append(found)
    weights = default_weights(levels)
    for level, found in enumerate(by_level):
        if not found:
            continue
        inputs = np.concatenate([s.inputs for s in found])
        cases, came = (np.concatenate([getattr(s, n) for s in found]) for n in ("cases", "came"))
        for case, columns in enumerate(_CASES):
            usual = DEFAULT[columns]
            chosen = inputs[cases == case][:, : len(usual)]
            weights[level, columns] = _regression(chosen, came[cases == case], usual)
    return weights


def _regression(inputs: DoubleArray, came: BoolArray, usual: DoubleArray) -> DoubleArray:
    """Logistic regression by Newton's method, drawn towards the `usual` weights."""
    weights = usual.copy()
    if not len(inputs):
        return weights
    prior = 0.25 * _PRIOR * np.eye(len(usual))

    def loss(w: DoubleArray) -> float:
        z = inputs @ w
        off = w - usual
        return float((np.logaddexp(0.0, z) - came * z).sum() + 0.5 * off @ prior @ off)

    here = loss(weights)
    for _ in range(100):
        p = 1.0 / (1.0 + np.exp(-(inputs @ weights)))
        slope = inputs.T @ (came - p) - prior @ (weights - usual)
        curve = (inputs * (p * (1 - p))[:, None]).T @ inputs + prior
        step = np.linalg.solve(curve, slope)
        while (there := loss(weights + step)) > here and np.abs(step).max() > 1e-9:
            step = step / 2  # far from the optimum, the parabola leads astray
        weights, gained, here = weights + step, here - there, there
        if gained < 1e-6 * max(1.0, here):
            break
    return weights


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
    check_apart(spec.output, {"--model": spec.model})
    runs, identity = _identity(spec)
    watcher = watcher or TrainWatcher()
    tidy = partial(_tidy, spec)
    session = Session(
        spec.output, spec.settings, identity, spec.overwrite, watcher, should_stop, DRAFTER, tidy
    )
    return session.run(lambda: _HeadTraining(spec, runs, watcher, should_stop).prepared())


def _features(spec: DrafterSpec) -> Path:
    return spec.output / "training" / "features"


def _tidy(spec: DrafterSpec) -> None:
    """Remove the target's features, unless they are to stay."""
    if not spec.keep_features:
        shutil.rmtree(_features(spec), ignore_errors=True)


def resumed(spec: DrafterSpec) -> DrafterSpec:
    """The same training, on as many texts as it was begun with, where its runs have grown since;
    anew where it was not begun, or otherwise."""
    folder = TrainingFolder(spec.output / "training", DRAFTER.sign)
    try:
        begun = folder.ledger.begun()
        if begun is not None:
            spec = replace(spec, limit=begun.get("texts"))
            folder.check(_identity(spec)[1])
    except DraftrecError:
        begun = None
    return spec if begun is not None else replace(spec, limit=None, overwrite=True)


def _identity(spec: DrafterSpec) -> tuple[list[WrittenRun], dict[str, Any]]:
    """The runs, and all that decides what the training ends with."""
    runs, fingerprint = open_runs(spec.runs, spec.records, spec.limit)
    of_model = runs[0].manifest.fingerprints
    return runs, {
        "form": "head",
        "texts": sum(len(run.texts) for run in runs),
        "runs": fingerprint,
        "model": of_model["model"],
        "tokenizer": of_model["tokenizer"],
        "held_out": spec.held_out,
        **asdict(spec.head),
        **spec.settings.deciding(),
    }


def _summary(output: Path) -> dict[str, Any]:
    info = read_drafter_info(output)
    record = info.training
    found = figures(output, record, kind="draft head", loss=record["loss"])
    more = {name: record[name] for name in ("texts", "levels")}
    return {**found, **more, "vocabulary": info.vocabulary}


# Tokens of a text that show how large a target's features are.
_SAMPLE = 256

DRAFTER = Kind(INFO_FILE, _summary)


class _HeadTraining:
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
        self.training = [i for i in range(len(self.texts)) if self.texts[i].entity_id not in held]
        ends = eos_token_ids(self.model, tokenizer)
        chosen = [self.texts[i] for i in self.training]
        size = min(spec.head.vocabulary, vocabulary(self.model))
        self.tokens = torch.from_numpy(draft_vocabulary(chosen, sorted(ends), size)).long()
        ids = [it.ids for it in self.texts]
        self.features = FeatureFiles(_features(spec), ids, self.fingerprint["model"])

    def prepared(self) -> Prepared:
        """Raises DraftrecError for a target that no head can be trained for."""
        spec, model = self.spec, self.model
        self.scale, self.cap = score_transform(model)
        output = OutputRows.of(model, self.tokens, torch.float32, self.scale, self.cap)
        torch.manual_seed(spec.settings.seed)
        head = new_head(model, self.texts[self.training[0]].ids).to(model.device)
        self.trained = HeadModel(head, model.get_input_embeddings(), output)
        index = torch.full((vocabulary(model),), len(self.tokens))
        index[self.tokens] = torch.arange(len(self.tokens))
        self.task = HeadTask(
            self.texts,
            self.features,
            self.training,
            self.held,
            index.to(model.device),
            len(self.tokens),
            spec.head,
            spec.settings.batch_tokens,
            spec.settings.seed,
        )
        note = (
            f"{len(self.training):,} texts to learn from and {len(self.held):,} to validate on, "
            f"{len(self.tokens):,} draft tokens, {self.task.steps():,} steps an epoch"
        )
        return Prepared(self.task, self.trained, note, self._save, self._begin)

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
        head = self.trained.head
        self.watcher.note("fitting how the head and a pool are heard together")
        training = [self.texts[i] for i in self.training]
        along = [
            (self.texts[i], partial(self.task.probabilities, self.trained, i)) for i in self.held
        ]
        mixture = mixture_of(training, along, self.tokens.int().numpy(), self.spec.head.levels)
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
