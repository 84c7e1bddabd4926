"""What `draftrec replay` does: read, warm every drafter, replay, one summary per drafter."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from draftrec.data.files.places import Place
from draftrec.data.records import GroupTable
from draftrec.errors import DraftrecError
from draftrec.evaluate.replay.drafters import FROM_FOLDER, FromPool, maker_of
from draftrec.evaluate.replay.loop import Intake, PoolText, ReplaySettings, replay
from draftrec.evaluate.replay.recordings import (
    Recording,
    TextFiles,
    in_order,
    link_steps,
    read_recordings,
)
from draftrec.pool.index import warm_up
from draftrec.pool.store import Pool

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
    warm_up()
    settings = job.settings
    found: dict[str, Any] = {}
    for name in job.drafters:
        given = pool if name == "pool" else None
        drafter = maker_of(name)(tokenizer) if given is None else FromPool(given)
        spent = Intake() if given is None else intake
        spent.add(drafter, _pool_texts(warm))
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


def _pool_texts(recordings: list[Recording]) -> list[PoolText]:
    return [(r.token_ids, r.group) for r in recordings]


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
