"""Choose pool size, depth and budget from recorded texts, without a model.

Every setting is replayed (strict acceptance). With the cost curve of a run, the time per step is
known as well, and settings are compared by the speed they would have: tokens per step over the
seconds of a pass with that many rows and of the lookup. Without one they are compared by tokens
per step alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from draftrec.data.files.places import Place, place
from draftrec.data.records import GroupTable
from draftrec.engine.costs import CostCurve
from draftrec.errors import DraftrecError
from draftrec.evaluate.replay.job import warn_of_own_texts
from draftrec.evaluate.replay.loop import FromPool, replay
from draftrec.evaluate.replay.recordings import Recording, read_recordings
from draftrec.evaluate.settings import ReplaySettings, TuneRun
from draftrec.pool.index import warm_up
from draftrec.pool.store import Pool

# A cheaper setting is taken when it gives up no more than this share of the best one's figure.
_SLACK = 0.01
_HELD_OUT = 0.2


@dataclass(frozen=True)
class TuneJob(TuneRun):
    """`texts`: recorded texts or a run's folder. `pool` is tried in smaller sizes; without one,
    four fifths of the entities' texts are the pool and the others are replayed, `limit` at most.
    """

    texts: str
    tokenizer: str
    pool: Path | None = None
    groups: Place | None = None
    budgets: tuple[int, ...] = (4, 8, 16, 32, 64)
    depths: tuple[int, ...] = (6, 12, 24)
    shares: tuple[float, ...] = (0.125, 0.25, 0.5, 1.0)


@dataclass(frozen=True, slots=True)
class Trial:
    """One setting and what it gave. `speedup` over plain decoding is None without a cost curve.
    `max_bytes`: what the pool was pruned to, None for all of it."""

    pool_tokens: int
    pool_bytes: int
    depth: int
    budget: int
    tokens_per_step: float
    drafted_per_step: float
    lookup_us_p50: float
    speedup: float | None
    max_bytes: int | None = None

    @classmethod
    def plain(cls, tokens: int, nbytes: int, speedup: float | None) -> Trial:
        """Decoding without drafts: what every other setting has to beat."""
        return cls(tokens, nbytes, 0, 0, 1.0, 0.0, 0.0, speedup)

    @property
    def value(self) -> float:
        return self.tokens_per_step if self.speedup is None else self.speedup


def run_tune(
    job: TuneJob,
    watch: Callable[[int, int], None] = lambda done, total: None,
    warn: Callable[[str], None] = lambda message: None,
) -> dict[str, Any]:
    """Sweep budgets at full size, then depths, then sizes; the trials and what was chosen.

    Raises DraftrecError for bad input.
    """
    from draftrec.models.loading import load_tokenizer, tokenizer_fingerprint

    tokenizer = load_tokenizer(job.tokenizer)
    groups = GroupTable.load(job.groups) if job.groups else None
    recordings = read_recordings(job.texts, tokenizer, groups)
    pool, texts = _split(job, recordings, tokenizer_fingerprint(tokenizer))
    if job.pool is not None:
        warn_of_own_texts(texts, pool, warn)
    sweep = _Sweep(texts, _cost_of(place(job.texts)), watch)
    sweep.total = len(job.budgets) + len(job.depths) + len(job.shares) - 2
    warm_up()
    deepest = max(job.depths)
    # Before anything is replayed: a pool notes which texts it was worth something to, and pruned by
    # that it would hold what these very texts need, as no pool does that new texts draft from.
    whole, sizes = _Size(pool), _pruned(pool, job.shares)
    budget = sweep.best([(whole, deepest, n) for n in sorted(job.budgets)]).budget
    depth = sweep.best([(whole, n, budget) for n in sorted(job.depths)]).depth
    chosen = sweep.best([(size, depth, budget) for size in sizes])
    plain = Trial.plain(chosen.pool_tokens, chosen.pool_bytes, 1.0 if sweep.cost else None)
    if chosen.value <= plain.value:  # a tie is plain's: it has nothing that could be noise
        chosen = plain
    return {
        "texts": len(texts),
        "compared_by": "speedup" if sweep.cost else "tokens_per_step",
        "trials": [asdict(t) for t in (plain, *sweep.trials.values())],
        "chosen": asdict(chosen),
    }


@dataclass(frozen=True, slots=True)
class _Size:
    """A pool, pruned to `max_bytes` unless they are None."""

    pool: Pool
    max_bytes: int | None = None


class _Sweep:
    """Replays each setting once."""

    def __init__(
        self,
        texts: Seq[Recording],
        cost: tuple[CostCurve, int] | None,
        watch: Callable[[int, int], None],
    ) -> None:
        self.texts, self.cost, self.watch = texts, cost, watch
        self.trials: dict[tuple[int, int, int], Trial] = {}
        self.total = 0

    def best(self, settings: Seq[tuple[_Size, int, int]]) -> Trial:
        """The first, cheapest one that is about as good as the best."""
        tried = [self._try(*setting) for setting in settings]
        bar = (1.0 - _SLACK) * max(t.value for t in tried)
        return next(t for t in tried if t.value >= bar)

    def _try(self, size: _Size, depth: int, budget: int) -> Trial:
        pool = size.pool
        key = (pool.tokens, depth, budget)
        if key not in self.trials:
            done = replay(FromPool(pool), self.texts, ReplaySettings(budget, depth))
            steps = max(done.steps, 1)
            lookup = float(np.median(done.lookup_ns or [0])) / 1e3
            per_step, drafted = done.tokens / steps, done.drafted / steps
            self.trials[key] = Trial(
                pool.tokens, _file_bytes(pool), depth, budget, round(per_step, 4),
                round(drafted, 2), round(lookup, 1), self._speedup(per_step, drafted, lookup),
                size.max_bytes,
            )  # fmt: skip
            self.watch(len(self.trials), self.total)
        return self.trials[key]

    def _speedup(self, per_step: float, drafted: float, lookup_us: float) -> float | None:
        if self.cost is None:
            return None
        curve, slots = self.cost
        plain, drafting = curve([slots, slots * (1.0 + drafted)])
        return round(float(per_step * plain / (drafting + slots * lookup_us / 1e6)), 4)


def settings_yaml(chosen: dict[str, Any], pool: Path | None) -> str:
    """The content of a settings file for `generate --config`, with the reasons as comments."""
    if not chosen["budget"]:
        return (
            "# No budget, depth or size of the pool that was tried is expected to be faster than\n"
            "# plain decoding.\n"
            "draft: none\n"
        )
    size = [f"# with the whole pool of {chosen['pool_tokens']} tokens"]
    if chosen["max_bytes"] is not None:
        size = [
            f"# with a pool of {chosen['pool_tokens']} tokens; for that size of an existing one:",
            f"#   draftrec pool prune {pool or 'DIR'} --max-bytes {chosen['max_bytes']}",
        ]
    lines = [
        f"# tokens per step {chosen['tokens_per_step']}, speedup {chosen['speedup'] or 'unknown'}",
        *size,
        "# `budget: auto` adapts to every step; a number makes relaxed runs repeatable.",
        f"budget: {chosen['budget']}",
        f"depth: {chosen['depth']}",
    ]
    return "\n".join(lines) + "\n"


def _split(job: TuneJob, recordings: list[Recording], fingerprint: str) -> tuple[Pool, list[Any]]:
    entities = sorted({r.entity_id for r in recordings})
    random = np.random.default_rng(job.seed).permutation(len(entities))
    place = {entities[i]: rank for rank, i in enumerate(random.tolist())}
    shuffled = sorted(recordings, key=lambda r: place[r.entity_id])
    if job.pool is not None:
        return Pool.load(job.pool, fingerprint), _without_previous(shuffled[: job.limit])
    held_out = min(job.limit, int(len(entities) * _HELD_OUT))
    if held_out == 0:
        raise DraftrecError(
            f"{job.texts} has texts of {len(entities)} entities; tuning without --pool holds a "
            f"fifth of them out and needs at least {int(1 / _HELD_OUT)}"
        )
    texts = [r for r in shuffled if place[r.entity_id] < held_out]
    pool = Pool(fingerprint, max_bytes=1 << 62)
    pool.add((r.token_ids, r.group) for r in recordings if place[r.entity_id] >= held_out)
    return pool, _without_previous(texts)


def _pruned(pool: Pool, shares: Seq[float]) -> list[_Size]:
    """The pool in these shares of its size, the smallest first, as `pool prune` would leave it."""
    limits = [None if s == 1.0 else int(_file_bytes(pool) * s) for s in shares]
    sizes = [_Size(pool if limit is None else pool.prune(limit), limit) for limit in limits]
    return sorted((s for s in sizes if len(s.pool)), key=lambda s: s.pool.tokens)


def _without_previous(texts: list[Recording]) -> list[Recording]:
    return [replace(r, previous_ids=None) for r in texts]


def _cost_of(run: Place) -> tuple[CostCurve, int] | None:
    """The cost curve that a run measured and the sequences of its batch, if the texts are a run's
    and it measured one."""
    path = run / "manifest.json"
    if not path.is_file():
        return None
    try:
        state = json.loads(path.read_text()).get("cost_state") or {}
        return (CostCurve.from_json(state), int(state["slots"])) if "rows" in state else None
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise DraftrecError(
            f"{path} is not the manifest of a run ({error}); name its texts only"
        ) from error


def _file_bytes(pool: Pool) -> int:
    """Bytes of the pool's files, about."""
    return pool.nbytes + 4 * pool.tokens
