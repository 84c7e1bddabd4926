"""From settings to a beam engine: who drafts, how far ahead, who decides."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from draftrec.config import RecommendConfig
from draftrec.engine.beams.accept import BeamRule, RelaxedDrafter, RelaxedRule, StrictRule, sampled
from draftrec.engine.beams.drafters import (
    BeamDrafter,
    ItemDrafter,
    MixedDrafter,
    ModelDrafter,
    NoBeamDrafter,
    Proposals,
)
from draftrec.engine.beams.loop import BeamEngine
from draftrec.engine.beams.model import BeamModel, Constraint
from draftrec.engine.beams.pace import AutoPace, Costs, FixedPace, Pace, measure_passes, whole
from draftrec.engine.beams.state import BeamRequest, BeamTree, Expansion, Scored, UserSearch, plain
from draftrec.engine.costs import LearningCurve
from draftrec.engine.target import Target
from draftrec.errors import DraftrecError
from draftrec.items.retriever import ItemRetriever
from draftrec.items.trie import ItemTrie


@dataclass(frozen=True, eq=False, slots=True)
class Parts:
    """What an engine is made of; `draft` and `retriever` where they are to draft."""

    target: Target
    trie: ItemTrie
    draft: Target | None = None
    retriever: ItemRetriever | None = None

    @property
    def drafts(self) -> bool:
        return self.draft is not None or self.retriever is not None


@dataclass(eq=False, slots=True)
class Curves:
    """What passes of target and draft model cost, once they have been measured, and as a run's own
    passes correct it: what else a machine does while it is measured would mislead all of a run.
    They do not depend on the catalogue, so that a new one need not wait for another measurement."""

    target: LearningCurve | None = None
    draft: LearningCurve | None = None


#: Where --draft-beams is left to `auto`: how many times as wide a level may be as it usually is,
#: and rows of all users' drafts that a pass may have in any case.
_WIDER, _ROOM = 6, 8192


def check_config(config: RecommendConfig, parts: Parts) -> None:
    """Raise DraftrecError for settings that contradict each other."""
    if config.width < config.k:
        raise DraftrecError(
            f"{config.k} items are asked for but {config.width} beams are kept; let --beams be at "
            "least -k"
        )
    if config.width > config.k and config.verify != "strict":
        raise DraftrecError(
            "the best of more samples are no sample of their own, so --beams needs --verify strict"
        )
    if config.shares and (config.verify != "strict" or config.constraint == "none"):
        raise DraftrecError(
            "a blend ranks the catalogue's items by their probabilities, so --blend needs "
            "--verify strict and --constraint trie"
        )
    if sum(config.shares) > 1:
        raise DraftrecError(
            f"--blend {config.blend:g} and --blend-item-model {config.blend_item_model:g} leave "
            "the target less than nothing; let them come to 1 at most"
        )
    if parts.drafts:
        _check_widths(config, parts.trie.levels)
    if config.verify == "relaxed" and (parts.draft is None or config.constraint == "none"):
        raise DraftrecError(
            "relaxed verification samples from a draft model within the item trie; give --draft a "
            "model's folder and leave --constraint trie"
        )
    if config.verify == "sample" and config.constraint == "none":
        raise DraftrecError("samples are of legal items only; leave --constraint trie")
    if config.constraint == "none" and (parts.retriever is not None or config.renormalise):
        raise DraftrecError(
            "proposed items and renormalised scores need the item trie; leave --constraint trie, "
            "or give --draft none (a model's folder does as well) and --no-renormalise"
        )


def _check_widths(config: RecommendConfig, levels: int) -> None:
    widths = config.draft_widths(levels)
    if len(widths) != levels - 1:
        raise DraftrecError(
            f"--draft-beams has {len(widths)} numbers, but ids of {levels} tokens have "
            f"{levels - 1} levels that are drafted; give one for each, or one for all"
        )
    if min(widths, default=config.width) < config.width:
        least = "-k" if config.beams is None else "--beams"
        raise DraftrecError(
            f"{min(widths)} beams are drafted per level but {config.width} are kept, so no "
            f"level could be accepted; let --draft-beams be at least {least}"
        )


def make_engine(
    parts: Parts, config: RecommendConfig, prompt: int, curves: Curves | None = None
) -> BeamEngine:
    """The engine for prompts of about `prompt` tokens. Measures passes where the pace is auto, as
    far as `curves` does not hold them; they are kept there."""
    constrained = config.constraint == "trie"
    most = max(*config.draft_widths(parts.trie.levels), config.width, 1)
    constraint = Constraint(
        parts.trie if constrained else None, parts.trie.levels, config.renormalise, most
    )
    target = BeamModel(parts.target, constraint)
    draft = BeamModel(parts.draft, constraint) if parts.draft else None
    if not parts.drafts:
        rule = StrictRule(_expansion(config))
        return _engine(config, target, NoBeamDrafter(), rule)
    pace = _pace(parts, (target, draft), config, prompt, curves or Curves())
    return _engine(config, target, *_roles(parts, draft, config, pace))


def _engine(
    config: RecommendConfig, target: BeamModel, drafter: BeamDrafter, rule: BeamRule
) -> BeamEngine:
    return BeamEngine(
        target, drafter, config.width, config.batch_size, rule, config.beside, config.prefix_cache
    )


def _expansion(config: RecommendConfig) -> Expansion:
    """By what beams are chosen."""
    return sampled(config.seed, config.temperature) if config.verify == "sample" else plain


def _roles(
    parts: Parts, draft: BeamModel | None, config: RecommendConfig, pace: Pace
) -> tuple[BeamDrafter, BeamRule]:
    expand = _expansion(config)
    proposals = Proposals(parts.trie, parts.retriever) if parts.retriever else None
    if draft is None:
        assert proposals is not None
        return ItemDrafter(proposals, pace), StrictRule(expand)
    if config.verify == "relaxed":
        relaxed = RelaxedDrafter(draft, config.width, pace, config.seed)
        return relaxed, RelaxedRule(relaxed)
    own = ModelDrafter(draft, config.width, pace, expand)
    if proposals is None or not config.draft_items:
        return own, StrictRule(expand)
    even = config.draft_steps == "auto"
    mixed = MixedDrafter(own, proposals, config.draft_items, even=even)
    return mixed, StrictRule(expand)


def _pace(
    parts: Parts,
    models: tuple[BeamModel, BeamModel | None],
    config: RecommendConfig,
    prompt: int,
    curves: Curves,
) -> Pace:
    target, draft = models
    depth = target.constraint.levels
    widths = config.draft_widths(depth)
    if config.draft_steps != "auto":
        return FixedPace(widths, config.draft_steps, depth)
    if config.verify == "relaxed":  # its drafts are drawn, so that a narrower one says nothing
        return FixedPace(widths, depth - 1, depth)
    users, rows = config.batch_size, sum(map(whole, widths))
    if config.draft_beams is None:  # what pays may be wider where few users leave room for it
        rows = max(rows, _ROOM // users)
        widths = tuple(_WIDER * width for width in widths)
    if curves.target is None:
        most = rows + config.width
        curves.target = LearningCurve(measure_passes(target, users, prompt, most))
    target.costs = curves.target
    if draft:
        if curves.draft is None:
            most = min(rows, whole(max(widths, default=1)))
            curves.draft = LearningCurve(measure_passes(draft, users, prompt, most))
        draft.costs = curves.draft
    sizes = np.diff(parts.trie.level_start).astype(np.float64)
    costs = Costs(
        curves.target,
        curves.draft if draft else None,
        users,
        prompt,
        config.width,
        tuple((sizes[1:] / sizes[:-1]).tolist()) if config.constraint == "trie" else (),
        _propose_seconds(parts) if parts.retriever else 0.0,
        config.draft_items if draft and parts.retriever else 0,
        parts.trie.followed() if config.constraint == "trie" else (),
    )
    return AutoPace(widths, depth, costs, rows)


def _propose_seconds(parts: Parts, users: int = 16) -> float:
    """Host seconds of a user's proposals, by prefix: the median of some users."""
    assert parts.retriever is not None
    proposals = Proposals(parts.trie, parts.retriever)
    places = np.linspace(0, parts.retriever.items - 1, users).astype(np.int64)
    times: list[float] = []
    for place in places:
        tree = BeamTree(parts.trie.levels)
        request = BeamRequest(0, np.zeros(1, np.int32), None, places[places <= place])
        user = UserSearch(0, request, tree, Scored(0, request, tree))
        start = time.perf_counter()
        proposals.below(user, 0, user.kept.nodes, 32)
        times.append(time.perf_counter() - start)
        proposals.stop(user)
    return sorted(times)[len(times) // 2]
