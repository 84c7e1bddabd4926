"""What each group of a run got out of its drafts, and what its pool costs in memory."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from draftrec.data.files.places import arrow_path
from draftrec.jobs.knowledge.manifest import Manifest

#: The pool of all groups, in `GroupUse.name` of `PoolUse.everyone`.
ALL = "all"
_SUMS = (
    "target_calls", "drafted_tokens", "accepted_tokens", "relaxed_tokens", "accepted_group",
    "accepted_all",
)  # fmt: skip
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
    """Sums over a run's finished shards; each file is read once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._shards: list[tuple[int, dict[str, Counter[str]]]] = []

    def read(self, manifest: Manifest) -> dict[str, Counter[str]]:
        """Counts by group name, "" for entities without one."""
        sizes = [shard.stats_size for shard in manifest.shards]
        if [size for size, _ in self._shards] != sizes[: len(self._shards)]:
            self._shards = []  # the run was started again
        for number in range(len(self._shards), len(sizes)):
            self._shards.append((sizes[number], self._shard(number)))
        total: dict[str, Counter[str]] = {}
        for _, found in self._shards:
            for group, counts in found.items():
                total.setdefault(group, Counter()).update(counts)
        return total

    def _shard(self, number: int) -> dict[str, Counter[str]]:
        part = pq.read_table(
            arrow_path(self._folder / f"part-{number:05d}.parquet"), columns=["group", "new_tokens"]
        )
        stats = pq.read_table(
            arrow_path(self._folder / f"stats-{number:05d}.parquet"), columns=["entity_id", *_SUMS]
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
