"""A run of `draftrec generate`, running or finished, as the figures that the dashboard shows."""

from __future__ import annotations

import time
from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from draftrec.core import SOURCES
from draftrec.engine.costs import CostCurve
from draftrec.jobs.knowledge.manifest import Manifest, Totals, read_manifest
from draftrec.serve.dashboard.groups import (
    GroupSums,
    GroupUse,
    PoolUse,
    everyone_use,
    group_uses,
    read_pool,
)
from draftrec.serve.dashboard.metrics import Curves, MetricsTail, Sums, curves, unfinished

State = Literal["running", "quiet", "finished"]

#: Seconds without a word after which a run no longer counts as running.
QUIET_SECONDS = 60.0
#: Settings that the page names, in this order.
_SHOWN = (
    "draft", "accept", "budget", "depth", "top_k", "min_prob", "temperature", "batch_size",
    "max_new_tokens",
)  # fmt: skip
#: Settings that decide what work there is to do.
_SAME = ("side", "chat", "limit", "max_new_tokens", "temperature", "top_p")
_RELAXED_ONLY = {"top_k", "min_prob"}


@dataclass(frozen=True, slots=True)
class Baseline:
    """Plain decoding to compare with: another run, an estimate from this run's own measured costs,
    or nothing. `words` say which."""

    kind: Literal["self", "run", "estimate", "none"]
    tokens_per_second: float
    words: str
    name: str = ""
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class RunData:
    """One run. `totals` and `rates` as in its summary.json, the shard under way included;
    `quiet_seconds`: since its files last changed; `same_job`: what must be equal for two runs to be
    compared; `speedup`: times as fast as `baseline`, None without one."""

    name: str
    path: str
    state: State
    quiet_seconds: float
    settings: dict[str, Any]
    facts: dict[str, str]
    records: int
    records_done: int
    totals: dict[str, Any]
    rates: dict[str, float]
    by_source: dict[str, int]
    curves: Curves
    groups: list[GroupUse]
    everyone: GroupUse | None
    pool: PoolUse | None
    same_job: str
    baseline: Baseline
    speedup: float | None = None


class RunReader:
    """Reads one run folder again and again, each file's new part only."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name
        self._tail = MetricsTail(folder / "metrics.jsonl")
        self._sums = GroupSums(folder)

    def read(self) -> RunData | None:
        """The run as it is now, None where the folder holds none (yet). Raises DraftrecError for a
        manifest that is not of this version."""
        manifest = read_manifest(self.folder / "manifest.json")
        if manifest is None:
            return None
        records = self._tail.read()
        quiet = self._quiet()
        state: State = "running" if quiet < QUIET_SECONDS else "quiet"
        state = "finished" if manifest.finished else state
        pending = unfinished(records) if state == "running" else Sums()
        totals = _with_pending(manifest, pending)
        pool = _pool_of(manifest, self.folder)
        sums = self._sums.read(manifest)
        shown = totals.model_dump()
        by_source: dict[str, int] = dict(zip(SOURCES, shown.pop("accepted_by_source"), strict=True))
        return RunData(
            name=self.name,
            path=str(self.folder),
            state=state,
            quiet_seconds=round(quiet, 1),
            settings=_settings(manifest),
            facts=_facts(manifest),
            records=manifest.input.records,
            records_done=min(
                manifest.records_done + pending.finished // manifest.samples, manifest.input.records
            ),
            totals=shown,
            rates=totals.rates(),
            by_source=by_source,
            curves=curves(records),
            groups=group_uses(sums, pool),
            everyone=everyone_use(sums, pool),
            pool=pool,
            same_job=_same_job(manifest),
            baseline=_own_baseline(manifest, totals),
        )

    def _quiet(self) -> float:
        files = (self.folder / name for name in ("manifest.json", "metrics.jsonl"))
        changed = max((f.stat().st_mtime for f in files if f.exists()), default=0.0)
        return max(0.0, time.time() - changed)


def with_baselines(runs: Seq[RunData]) -> list[RunData]:
    """The same runs, each compared with the plain run of the same job where there is one (the
    fastest of several, finished ones first), else with its own estimate."""
    plain: dict[str, RunData] = {}
    for run in runs:
        best = plain.get(run.same_job)
        if run.settings["draft"] == "none" and (best is None or _worth(run) > _worth(best)):
            plain[run.same_job] = run
    return [_compared(run, plain.get(run.same_job)) for run in runs]


def _worth(run: RunData) -> tuple[bool, float]:
    return run.state == "finished", run.rates["tokens_per_second"]


def _compared(run: RunData, plain: RunData | None) -> RunData:
    if plain is not None and run.settings["draft"] != "none":
        words = f"measured by the run {plain.name} without drafts"
        speed, seconds = plain.rates["tokens_per_second"], plain.totals["wall_seconds"]
        run = replace(run, baseline=Baseline("run", speed, words, plain.name, seconds))
    return replace(run, speedup=_speedup(run, plain))


def _speedup(run: RunData, plain: RunData | None) -> float | None:
    base = run.baseline
    ours = run.totals["wall_seconds"]
    if base.kind in ("self", "none") or not ours or not base.tokens_per_second:
        return None
    if base.kind == "run" and plain is not None and base.seconds:
        both = {run.state, plain.state} == {"finished"}
        if both and run.totals["texts"] == plain.totals["texts"]:
            return round(base.seconds / ours, 3)  # the same texts: seconds against seconds
    return round(run.rates["tokens_per_second"] / base.tokens_per_second, 3)


def _own_baseline(manifest: Manifest, totals: Totals) -> Baseline:
    """What plain decoding would do by the costs that the run measured at its start: full batches to
    the last text, so that it errs on the fast side."""
    if manifest.settings["draft"] == "none":
        rate = totals.rates()["tokens_per_second"]
        return Baseline("self", rate, "this is the baseline", seconds=totals.wall_seconds)
    costs = manifest.cost_state or {}
    if not costs.get("rows") or not totals.new_tokens:
        words = "none: run the same command with --draft none beside it"
        return Baseline("none", 0.0, words)
    texts = manifest.input.records * manifest.samples
    slots = max(1, min(int(costs["slots"]), texts))
    step = float(CostCurve.from_json(costs)(slots))
    seconds = totals.prefill_seconds + totals.new_tokens * step / slots
    words = "an estimate from the cost of a pass that this run measured at its start"
    return Baseline("estimate", totals.new_tokens / seconds, words, seconds=seconds)


def _with_pending(manifest: Manifest, pending: Sums) -> Totals:
    """Totals of finished shards and of what the shard under way has done so far."""
    found = manifest.totals.model_copy(deep=True)
    for name in (
        "new_tokens", "target_calls", "draft_calls", "drafted_tokens", "accepted_tokens",
        "relaxed_tokens",
    ):  # fmt: skip
        setattr(found, name, getattr(found, name) + getattr(pending, name))
    found.entities += pending.finished // manifest.samples
    found.texts += pending.finished
    found.wall_seconds += pending.seconds
    for i, count in enumerate(pending.accepted_by_source):
        found.accepted_by_source[i] += count
    return found


def _settings(manifest: Manifest) -> dict[str, Any]:
    settings = manifest.settings
    relaxed = settings.get("accept") != "strict"
    return {n: settings.get(n) for n in _SHOWN if relaxed or n not in _RELAXED_ONLY}


def _facts(manifest: Manifest) -> dict[str, str]:
    model = Path(str(manifest.settings.get("model", ""))).name
    return {"model": model, "device": manifest.device, "dtype": manifest.dtype}


def _same_job(manifest: Manifest) -> str:
    """Equal for runs whose speeds may be compared: same prompts, model, lengths, temperature and
    device."""
    prints = manifest.fingerprints
    settings = manifest.settings
    parts = [prints.get(name) for name in ("input", "template", "model")]
    parts += [settings.get(name) for name in _SAME]
    parts += [str(manifest.samples)] if manifest.samples > 1 else []
    return "/".join(str(p) for p in (*parts, manifest.device, manifest.dtype))


def _pool_of(manifest: Manifest, folder: Path) -> PoolUse | None:
    """The pool that the run drafts from, else the one that it saved. Paths are those of the command
    line, so they count from where it was given: here, or a folder above the run."""
    for name in ("pool", "save_pool"):
        given = manifest.paths.get(name)
        if given:
            for place in (Path(), *folder.absolute().parents[:3]):
                if (found := read_pool(place / given)) is not None:
                    return found
    return None
