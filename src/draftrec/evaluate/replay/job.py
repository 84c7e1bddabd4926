"""What `draftrec replay` does: read, warm every drafter, replay, one summary per drafter; and what
the `draftrec pool` commands do: build, add, merge, prune, describe, check.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from draftrec.core import IntArray
from draftrec.data.files.locks import sole_writer
from draftrec.data.files.places import Place
from draftrec.data.records import GroupTable
from draftrec.errors import DraftrecError
from draftrec.evaluate.replay.loop import (
    FROM_FOLDER,
    FromPool,
    Intake,
    ReplaySettings,
    maker_of,
    replay,
)
from draftrec.evaluate.replay.recordings import (
    Recording,
    TextFiles,
    in_order,
    link_steps,
    read_recordings,
)
from draftrec.pool import files
from draftrec.pool.index import warm_up
from draftrec.pool.store import LEVELS, LevelName, Pool, PoolText

_LOG = logging.getLogger(__name__)
Watch = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class ReplayJob:
    """`texts` are replayed; `drafters` draft from `pool` or from the texts in `warm`, or from what
    they see on the way."""

    texts: str | TextFiles
    tokenizer: str
    drafters: tuple[str, ...] = ("pool",)
    pool: Path | None = None
    warm: str | TextFiles | None = None
    groups: Place | None = None
    settings: ReplaySettings = field(default_factory=ReplaySettings)
    limit: int | None = None

    def check(self) -> None:
        """Raise DraftrecError for options that do not go together."""
        for name in self.drafters:
            maker_of(name)
        if self.pool and self.warm:
            raise DraftrecError("--pool and --warm exclude each other; name one of them")
        if self.pool and (needy := [name for name in self.drafters if name not in FROM_FOLDER]):
            raise DraftrecError(
                f"--drafter {needy[0]} cannot draft from a pool's folder; name the texts that the "
                "pool was made of with --warm"
            )


def run_replay(
    job: ReplayJob,
    watch: Watch = lambda drafter, done, total: None,
    warn: Callable[[str], None] = lambda message: None,
) -> dict[str, Any]:
    """The summary: the settings, and the figures by drafter.

    `watch` hears (drafter, texts done, texts in all). Raises DraftrecError for bad input.
    """
    job.check()
    from draftrec.models.loading import load_tokenizer, tokenizer_fingerprint

    tokenizer = load_tokenizer(job.tokenizer)
    pool, intake = None, Intake()
    if job.pool:
        start = time.process_time_ns()
        pool = Pool.load(job.pool, tokenizer_fingerprint(tokenizer))
        intake = Intake((time.process_time_ns() - start) / 1e9, pool.tokens)
    groups = GroupTable.load(job.groups) if job.groups else None
    texts = read_recordings(job.texts, tokenizer, groups, job.limit)
    if job.settings.refresh:
        texts = link_steps(texts, str(job.texts))
    if job.settings.grow:
        texts = in_order(texts)
    warm = read_recordings(job.warm, tokenizer, groups) if job.warm else []
    _warn_of_leaks(texts, warm, warn)
    if pool is not None:
        warn_of_own_texts(texts, pool, warn)
    warm_up()
    settings = job.settings
    found: dict[str, Any] = {}
    for name in job.drafters:
        given = pool if name == "pool" else None
        drafter = maker_of(name)(tokenizer) if given is None else FromPool(given)
        spent = Intake() if given is None else intake
        spent.add(drafter, [(r.token_ids, r.group) for r in warm])
        done = replay(
            drafter, texts, settings, spent, lambda n, name=name: watch(name, n, len(texts))
        )
        found[name] = done.summary(drafter, spent)
    return {
        "budget": settings.budget,
        "depth": settings.depth,
        "order": settings.grow,
        "refresh": settings.refresh,
        "engines": found,
    }


def _warn_of_leaks(
    texts: list[Recording], warm: list[Recording], warn: Callable[[str], None]
) -> None:
    """A pool that holds the replayed entities' texts flatters every drafter."""
    known = {r.entity_id for r in warm}
    shared = sum(r.entity_id in known for r in texts)
    if shared:
        warn(
            f"{shared:,} of {len(texts):,} texts are of entities that --warm holds as well; "
            "figures for new entities will be lower"
        )


def warn_of_own_texts(texts: Seq[Recording], pool: Pool, warn: Callable[[str], None]) -> None:
    """A pool that grew from the very run that is replayed writes each text again at once."""
    if same := held_texts(pool, (r.token_ids for r in texts)):
        warn(
            f"{same:,} of {len(texts):,} texts are in --pool token for token, as a run's are in "
            "the pool that it saved; figures for new texts will be lower"
        )


def held_texts(pool: Pool, texts: Iterable[IntArray]) -> int:
    """How many of `texts`, int32 token ids, are texts of the pool as they are."""
    known = {token_ids.tobytes() for token_ids, _ in pool}
    return sum(token_ids.tobytes() in known for token_ids in texts)


_NO_LIMIT = 1 << 62


def build_pool(
    texts: str | TextFiles,
    tokenizer: str,
    output: Path,
    *,
    groups: Path | None = None,
    levels: Seq[LevelName] = LEVELS,
    max_bytes: int | None = None,
) -> dict[str, Any]:
    """A new pool of the texts; returns `describe` of it. Raises DraftrecError for bad input."""
    _refuse_taken(output)
    loaded, fingerprint = _tokenizer(tokenizer)
    pool = Pool(fingerprint, max_bytes=_NO_LIMIT, levels=levels)
    pool.add(_pool_texts(texts, loaded, groups))
    return _kept(pool, output, max_bytes)


def add_to_pool(
    folder: Path,
    texts: str | TextFiles,
    tokenizer: str,
    *,
    groups: Path | None = None,
    max_bytes: int | None = None,
) -> dict[str, Any]:
    """Add texts to the pool in `folder`, which is replaced at once or not at all. The very texts
    that were added last are not added again: whoever was killed may not know that all was done.

    Raises DraftrecError for bad input, and where another process writes to the pool: what that one
    adds would be lost.
    """
    loaded, fingerprint = _tokenizer(tokenizer)
    with sole_writer(folder):
        pool = Pool.load(folder, fingerprint)
        pool.max_bytes = _NO_LIMIT
        found = list(_pool_texts(texts, loaded, groups))
        added = _fingerprint(found)
        if added == pool.added:
            _LOG.warning("%s: the pool %s has these texts already, added last", texts, folder)
        else:
            pool.add(found)
            pool.added = added
        return _kept(pool, folder, max_bytes)


def merge_pools(one: Path, other: Path, output: Path) -> dict[str, Any]:
    """A new pool of the texts of both, each once."""
    _refuse_taken(output)
    first = Pool.load(one)
    first.max_bytes = _NO_LIMIT
    return _kept(first.merge(Pool.load(other)), output, None)


def prune_pool(folder: Path, max_bytes: int) -> dict[str, Any]:
    """Leave out what was accepted least and longest ago until the files fit `max_bytes`."""
    with sole_writer(folder):
        pool = Pool.load(folder)
        pool.added = ""  # texts of it may go, and be added again
        return _kept(pool, folder, max_bytes)


def check_pool(folder: Path) -> dict[str, Any]:
    """Verify every checksum, and that the indexes hold the texts. Raises DraftrecError if not."""
    pool = Pool.load(folder)
    manifest = files.read_manifest(files.existing(folder))
    return {"pool": str(folder), "files": len(manifest["files"]), "texts": len(pool), "ok": True}


def describe(folder: Path) -> dict[str, Any]:
    """Sizes, and what the pool was worth so far; nothing but the manifest and the texts' rows is
    read."""
    pool = Pool.load(folder, verify=False)
    manifest = files.read_manifest(files.existing(folder))
    size = sum(file["bytes"] for file in manifest["files"].values())
    usage = pool.usage
    rows = pool.rows
    age = (time.time() - np.median(rows["added"])) / 86_400 if len(rows) else 0.0
    return {
        "tokens": pool.tokens,
        "texts": len(pool),
        "groups": len(manifest["groups"]),
        "levels": list(pool.levels),
        "bytes": size,
        "bytes_per_token": round(size / max(pool.tokens, 1), 1),
        "tokenizer": pool.tokenizer_fingerprint,
        "format_version": manifest["format_version"],
        "created": datetime.fromtimestamp(pool.created, UTC).isoformat(timespec="seconds"),
        "median_age_days": round(float(age), 2),
        "drafts": usage.drafts,
        "hits": usage.hits,
        "accepted_tokens": usage.accepted,
        "accepted_per_draft": round(usage.accepted / usage.drafts, 3) if usage.drafts else None,
        "bytes_per_accepted_token": round(size / usage.accepted, 1) if usage.accepted else None,
        "texts_never_used": int((rows["used"] == 0).sum()),
        "accepted_by_match_length": usage.by_length.tolist(),
        "by_group": {
            name: dict(zip(("drafts", "hits", "accepted_tokens"), row, strict=True))
            for name, row in sorted(usage.by_group.items())
        },
    }


def _kept(pool: Pool, folder: Path, max_bytes: int | None) -> dict[str, Any]:
    if max_bytes is not None and len(pool):
        whole, pool = pool, pool.prune(max_bytes)
        pool.usage, pool.created, pool.added = whole.usage, whole.created, whole.added
        if not len(pool):
            raise DraftrecError(
                f"--max-bytes {max_bytes} has no room for a single text; give it more"
            )
    pool.save(folder)
    return describe(folder)


def _pool_texts(texts: str | TextFiles, tokenizer: Any, groups: Path | None) -> Iterator[PoolText]:
    table = GroupTable.load(groups) if groups else None
    return ((r.token_ids, r.group) for r in read_recordings(texts, tokenizer, table))


def _fingerprint(texts: Iterable[PoolText]) -> str:
    whole = hashlib.sha256()
    for token_ids, group in texts:
        whole.update(json.dumps([len(token_ids), group]).encode())
        whole.update(np.ascontiguousarray(token_ids, "<i4").data)
    return whole.hexdigest()


def _tokenizer(path: str) -> tuple[Any, str]:
    from draftrec.models.loading import load_tokenizer, tokenizer_fingerprint

    tokenizer = load_tokenizer(path)
    return tokenizer, tokenizer_fingerprint(tokenizer)


def _refuse_taken(folder: Path) -> None:
    if folder.exists():
        raise DraftrecError(
            f"{folder} exists already; name a new folder, or add to a pool with `draftrec pool add`"
        )
