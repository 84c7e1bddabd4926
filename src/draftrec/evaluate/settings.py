"""What is measured, and how often. Apart from what measures, which loads NumPy and more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from draftrec.config import Depth, DraftConfig, Side, Size
from draftrec.knobs import knob, knobs

Part = Literal["train", "valid", "test"]
Definition = Literal["multi", "single"]
Metric = Literal["recall", "ndcg"]
Framework = Literal["kar", "trawl", "once", "rlmrec"]
_DEPTH: int = knobs(DraftConfig)["depth"].default
Seed = Annotated[int, knob("Seed of the choice of texts and of the search.")]


@dataclass(frozen=True, slots=True)
class ReplaySettings:
    """`budget` nodes per tree, `depth` levels. `grow`: finished texts join the pool. `refresh`:
    only texts with a previous one are replayed; the others still join the pool."""

    budget: Annotated[int, knob("Draft tokens per pass.", ge=0, le=4096)] = 64
    depth: Depth = _DEPTH
    grow: Annotated[
        bool, knob("Replay in order of timestamp, step or file; pools grow on the way.")
    ] = False
    refresh: Annotated[
        bool, knob("Replay updates: each text drafts from its entity's step before.")
    ] = False


@dataclass(frozen=True, kw_only=True)
class TuneRun:
    """How many recorded texts `tune` replays, and which."""

    limit: Annotated[int, knob("Most texts that are replayed.", ge=1)] = 60
    seed: Seed = 0


@dataclass(frozen=True, kw_only=True)
class QualityRun:
    """How often `tune` writes with a model. `trials` searches the space with optuna where its grid
    is larger."""

    sample: Annotated[int, knob("Records that are written.", ge=1)] = 64
    rounds: Annotated[int, knob("Times that each is timed.", ge=1)] = 3
    trials: Annotated[Size | None, knob("Search so many settings where the grid has more.")] = None
    seed: Seed = 0


@dataclass(frozen=True, kw_only=True)
class BlendRun:
    """By what `genrec tune` chooses the weight of a blend, and item-item's settings before."""

    metric: Annotated[Metric, knob("Choose by Recall@K or by NDCG@K.")] = "recall"
    item_item_draws: Annotated[
        int,
        knob(
            "Tune item-item first: so many random settings, then the best of them step by step. 0: "
            "the defaults, which were tuned on Amazon Beauty.",
            ge=0,
        ),
    ] = 0
    seed: Annotated[int, knob("Seed of the random settings.", ge=0)] = 0


@dataclass(frozen=True, kw_only=True)
class CompareRun:
    """What texts must look like (None: as the runs' manifests say), and how much is drawn."""

    framework: Annotated[
        Framework | None, knob("Form to check; by default that of the runs' template.")
    ] = None
    side: Annotated[Side | None, knob("Side of the form; by default the runs'.")] = None
    seed: Annotated[int, knob("Seed of resamples and samples.")] = 0
    resamples: Annotated[int, knob("Bootstrap resamples of the entities.", ge=100)] = 1000


@dataclass(frozen=True, kw_only=True)
class RankingRun:
    """Which items of a user are the targets, and which lengths of list are scored."""

    ks: Annotated[
        tuple[Size, ...], knob("Lengths of list to score, as in -k 1 3 5.", unset="1 3 5 10 20")
    ] = (1, 3, 5, 10, 20)
    part: Annotated[Part, knob("Part whose items are the targets.")] = "test"
    definition: Annotated[
        Definition,
        knob("multi: all items of the part are targets; single: the first one alone."),
    ] = "multi"
