"""A run of `draftrec generate`, running or finished, as the figures that the dashboard shows, with
what each group got out of its drafts, and what its pool costs in memory.
"""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pyarrow.parquet as pq

from draftrec.core import SOURCES
from draftrec.data.files.places import arrow_path
from draftrec.engine.costs import CostCurve
from draftrec.jobs.knowledge.manifest import Manifest, Totals, read_manifest
from draftrec.serve.dashboard.metrics import Curves, MetricsTail, Sums

#: The pool of all groups, in `GroupUse.name` of `PoolUse.everyone`.
ALL = "all"
_SUMS = (
    "target_calls", "drafted_tokens", "accepted_tokens", "relaxed_tokens", "accepted_group",
    "accepted_all",
)  # fmt: skip
_GROUPED = ("group", "new_tokens")
_MB = 1e6


@dataclass(frozen=True, slots=True)
class GroupUse:
    """One group of a run's entities. `from_pool`: accepted tokens out of the group's own pool;
    `pool_bytes`: that pool's index, None where it is not known; `per_mb`: accepted tokens per
    megabyte of it."""

    name: str
    texts: int
    new_tokens: int
    target_calls: int
    drafted_tokens: int
    accepted_tokens: int
    relaxed_tokens: int
    from_pool: int
    pool_bytes: int | None
    per_mb: float | None


@dataclass(frozen=True, slots=True)
class PoolUse:
    """A pool on disk, over its whole life. `by_length[i]`: accepted tokens whose draft the pool
    found by `i` tokens before it. `sizes`: bytes by group, and `everyone` those of all together."""

    path: str
    nbytes: int
    texts: int
    tokens: int
    drafts: int
    hits: int
    accepted: int
    by_length: list[int]
    sizes: dict[str, int]
    everyone: int | None


class GroupSums:
    """Sums over a run's finished shards; each file is read once. `left`: shards to be read yet."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.left = 0
        self._sizes: list[int] = []  # of the shards that are summed
        self._total: dict[str, Counter[str]] = {}
        self._first: tuple[int, int] | None = None

    def read(self, manifest: Manifest, until: float = math.inf) -> dict[str, Counter[str]]:
        """Counts by group name, "" for entities without one. One more shard is read at least, and
        none is begun after `until`, of `time.monotonic()`."""
        sizes = [shard.stats_size for shard in manifest.shards]
        first = self._written_first()
        if first != self._first or self._sizes != sizes[: len(self._sizes)]:
            self._first, self._sizes, self._total = first, [], {}  # the run was started again
        for number in range(len(self._sizes), len(sizes)):
            for group, counts in self._shard(number).items():
                self._total.setdefault(group, Counter()).update(counts)
            self._sizes.append(sizes[number])
            if time.monotonic() >= until:
                break
        self.left = len(sizes) - len(self._sizes)
        return self._total

    def _written_first(self) -> tuple[int, int] | None:
        """Which file the first shard's is, and since when: it stays as long as the run goes on."""
        try:
            found = (self._folder / "stats-00000.parquet").stat()
        except OSError:
            return self._first
        return found.st_ino, found.st_mtime_ns

    def _shard(self, number: int) -> dict[str, Counter[str]]:
        part, stats = (
            pq.ParquetFile(arrow_path(self._folder / f"{kind}-{number:05d}.parquet")).read(names)
            for kind, names in (("part", _GROUPED), ("stats", ("entity_id", *_SUMS)))
        )
        groups = part["group"].fill_null("")
        table = stats.append_column("group", groups).append_column("new_tokens", part["new_tokens"])
        sums = [(name, "sum") for name in (*_SUMS, "new_tokens")]
        found = table.group_by("group").aggregate([*sums, ("entity_id", "count")])
        return {row.pop("group"): _counts(row) for row in found.to_pylist()}


def group_uses(sums: dict[str, Counter[str]], pool: PoolUse | None) -> list[GroupUse]:
    """All groups, those with most accepted tokens first."""
    found = [_use(name, counts, pool) for name, counts in sums.items()]
    return sorted(found, key=lambda g: (-g.accepted_tokens, g.name))


def everyone_use(sums: dict[str, Counter[str]], pool: PoolUse | None) -> GroupUse | None:
    """The pool of all groups as if it were one; None where nothing is known of it."""
    if pool is None or pool.everyone is None:
        return None
    total: Counter[str] = sum(sums.values(), Counter())
    total["accepted_group"] = total["accepted_all"]
    return _use(ALL, total, pool, pool.everyone)


def read_pool(folder: Path) -> PoolUse | None:
    """What a pool's manifest says; None where there is no pool that can be read."""
    try:
        manifest = json.loads((folder / "manifest.json").read_bytes())
        files: dict[str, Any] = manifest["files"]
        sizes = {name: int(file["bytes"]) for name, file in files.items()}
        named = [(f"group-{i:05d}.safetensors", g) for i, g in enumerate(manifest["groups"])]
        usage = manifest["usage"]
        return PoolUse(
            path=str(folder),
            nbytes=sum(sizes.values()),
            texts=int(manifest["texts"]),
            tokens=int(manifest["tokens"]),
            drafts=int(usage["drafts"]),
            hits=int(usage["hits"]),
            accepted=int(usage["accepted"]),
            by_length=[int(n) for n in usage["by_length"]],
            sizes={group: sizes[file] for file, group in named if file in sizes},
            everyone=sizes.get("all.safetensors"),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _counts(row: dict[str, Any]) -> Counter[str]:
    texts = row.pop("entity_id_count")
    counts = Counter({name.removesuffix("_sum"): int(n or 0) for name, n in row.items()})
    counts["texts"] = texts
    return counts


def _use(
    name: str, counts: Counter[str], pool: PoolUse | None, nbytes: int | None = None
) -> GroupUse:
    if nbytes is None and pool is not None:
        nbytes = pool.sizes.get(name)
    from_pool = counts["accepted_group"]
    return GroupUse(
        name=name,
        texts=counts["texts"],
        new_tokens=counts["new_tokens"],
        target_calls=counts["target_calls"],
        drafted_tokens=counts["drafted_tokens"],
        accepted_tokens=counts["accepted_tokens"],
        relaxed_tokens=counts["relaxed_tokens"],
        from_pool=from_pool,
        pool_bytes=nbytes,
        per_mb=round(from_pool / (nbytes / _MB), 1) if nbytes else None,
    )


#: Another one where a file was written anew.
FileState = tuple[int, int, int]


def file_state(path: Path) -> FileState | None:
    """Which file lies there, how long it is, and since when; None for none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


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
    compared, and `same_drafts` what besides for their drafts to be the same; `speedup`: times as
    fast as `baseline`, None without one; `odd_lines`: of its metrics, which are no records."""

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
    same_drafts: str
    baseline: Baseline
    speedup: float | None = None
    odd_lines: int = 0


class RunReader:
    """Reads one run folder again and again, each file's new part only."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name
        self._tail = MetricsTail(folder / "metrics.jsonl")
        self._sums = GroupSums(folder)
        self._manifest: tuple[FileState, Manifest] | None = None

    @property
    def left(self) -> int:
        """Finished shards that its groups do not count yet."""
        return self._sums.left

    def read(self, until: float = math.inf) -> RunData | None:
        """The run as it is now, None where the folder holds none (yet); of its groups what can be
        read `until` then, of `time.monotonic()`. Raises DraftrecError for a manifest that is not of
        this version."""
        manifest = self._read_manifest()
        if manifest is None:
            return None
        progress = self._tail.read()
        quiet = self._quiet()
        state: State = "running" if quiet < QUIET_SECONDS else "quiet"
        state = "finished" if manifest.finished else state
        pending = progress.pending if state == "running" else Sums()
        totals = _with_pending(manifest, pending)
        pool = _pool_of(manifest, self.folder)
        sums = self._sums.read(manifest, until)
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
            curves=progress.curves(),
            groups=group_uses(sums, pool),
            everyone=everyone_use(sums, pool),
            pool=pool,
            same_job=_same_job(manifest),
            same_drafts=_same_drafts(manifest),
            baseline=_own_baseline(manifest, totals),
            odd_lines=progress.odd,
        )

    def _read_manifest(self) -> Manifest | None:
        """Anew only where it has changed: one of many shards takes a while."""
        path = self.folder / "manifest.json"
        state = file_state(path)
        if self._manifest is None or self._manifest[0] != state:
            found = read_manifest(path)
            self._manifest = None if state is None or found is None else (state, found)
        return self._manifest and self._manifest[1]

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
    """What plain decoding would do, by the run's own account of its finished shards, as its last
    lines and its summary have it. Where there is none yet, and of earlier versions, by the costs
    that it measured at its start: full batches to the last text, which errs on the fast side, and
    a clock that may since have become slower."""
    if manifest.settings["draft"] == "none":
        rate = totals.rates()["tokens_per_second"]
        return Baseline("self", rate, "this is the baseline", seconds=totals.wall_seconds)
    if times := manifest.totals.spent.times_plain:
        rate = totals.rates()["tokens_per_second"] / times
        words = "an estimate by what this run's own passes would have taken without drafts"
        return Baseline("estimate", rate, words, seconds=totals.wall_seconds * times)
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
    found.count(pending.counts, pending.new_tokens)
    found.entities += pending.finished // manifest.samples
    found.texts += pending.finished
    found.wall_seconds += pending.seconds
    return found


def _settings(manifest: Manifest) -> dict[str, Any]:
    settings = manifest.settings
    relaxed = settings.get("accept") != "strict"
    shown = {n: settings.get(n) for n in _SHOWN if relaxed or n not in _RELAXED_ONLY}
    # A run knows what its drafter was by the weights alone, wherever they lie.
    drafter = manifest.fingerprints.get("drafter")
    return shown | ({"drafter": f"head {drafter[:12]}"} if drafter else {})


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


def _same_drafts(manifest: Manifest) -> str:
    """Equal for runs that drafted alike: with the same method, budget and depth, from the same
    pool, groups, earlier texts and head."""
    parts = [manifest.settings.get(name) for name in ("draft", "budget", "depth")]
    parts += [manifest.fingerprints.get(name) for name in ("pool", "groups", "previous", "drafter")]
    return "/".join(str(p) for p in parts)


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
