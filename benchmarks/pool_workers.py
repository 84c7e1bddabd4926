"""What workers lose who do not see each other's latest texts, and whether groups should be kept
together.

Recorded texts, nothing in the pool at first, in shards dealt to workers. Either all texts are
exchanged, and a shard drafts from the shards that lie more than a lag before it; or every worker
keeps its texts to itself, with shards dealt in turn, or with every group at one worker. Tokens per
step of replay (strict, no model), which do not depend on the machine.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence as Seq
from pathlib import Path
from typing import Any

from common import SHARED, note, write_result
from pool_traces import RECORDED, Sizes, Trace, recorded_trace

from draftrec.evaluate.replay.loop import FromPool, PoolText, Replayed, ReplaySettings, replay
from draftrec.evaluate.replay.recordings import Recording
from draftrec.models.loading import load_tokenizer
from draftrec.pool.index import warm_up
from draftrec.pool.store import Pool

Shards = Seq[Seq[Recording]]


def shards_of(texts: Seq[Recording], size: int) -> list[Seq[Recording]]:
    """Texts in their order, `size` together."""
    return [texts[i : i + size] for i in range(0, len(texts), size)]


def exchanged(shards: Shards, lag: int, budget: int) -> Replayed:
    """All workers learn all shards, each shard those that lie more than `lag` before it."""
    drafter, total = FromPool(Pool("replay")), Replayed()
    learned = 0
    for number, shard in enumerate(shards):
        while learned < number - lag:
            drafter.add(_pool_texts(shards[learned]))
            learned += 1
        _add(total, replay(drafter, shard, ReplaySettings(budget)))
    return total


def kept_apart(dealt: Seq[Shards], budget: int) -> Replayed:
    """Every worker learns its own shards only, each before its next one."""
    total = Replayed()
    for shards in dealt:
        _add(total, exchanged(shards, 0, budget))
    return total


def dealt_in_turn(shards: Shards, workers: int) -> list[Shards]:
    return [shards[w::workers] for w in range(workers)]


def dealt_by_group(texts: Seq[Recording], workers: int, size: int) -> list[Shards]:
    """Every group at one worker, the largest first to whoever has least."""
    groups: dict[str, list[Recording]] = {}
    for text in texts:
        groups.setdefault(text.group or "", []).append(text)
    own: list[list[Recording]] = [[] for _ in range(workers)]
    for _, members in sorted(groups.items(), key=lambda item: (-len(item[1]), item[0])):
        min(own, key=len).extend(members)
    order = {text.entity_id: i for i, text in enumerate(texts)}
    return [shards_of(sorted(mine, key=lambda t: order[t.entity_id]), size) for mine in own]


def measure(trace: Trace, args: argparse.Namespace) -> dict[str, Any]:
    """Tokens per step of every way to share texts."""
    shards = shards_of(trace.texts, args.shard_size)
    found: dict[str, Any] = {}

    def keep(name: str, replayed: Replayed) -> None:
        found[name] = round(replayed.tokens / replayed.steps, 4)
        note(f"{trace.name}, {name}: {found[name]}")

    for lag in (0, *args.lags):
        keep(f"exchanged, lag {lag}", exchanged(shards, lag, args.budget))
    for workers in args.workers:
        keep(
            f"apart, {workers} workers",
            kept_apart(dealt_in_turn(shards, workers), args.budget),
        )
        by_group = dealt_by_group(trace.texts, workers, args.shard_size)
        keep(f"apart by group, {workers} workers", kept_apart(by_group, args.budget))
    return {"shards": len(shards), "tokens_per_step": found, **trace.facts()}


def _pool_texts(shard: Seq[Recording]) -> list[PoolText]:
    return [(text.token_ids, text.group) for text in shard]


def _add(total: Replayed, part: Replayed) -> None:
    total.texts += part.texts
    total.tokens += part.tokens
    total.steps += part.steps


def main(argv: list[str] | None = None) -> int:
    """Replay, write benchmarks/results/pool-workers.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=SHARED / "data")
    parser.add_argument("--tokenizer", type=Path, default=SHARED / "models" / "profile-lm")
    parser.add_argument("--traces", nargs="*", default=["chatqa_ml1m_user", "gear_ml1m_item"])
    parser.add_argument("--texts", type=int, default=3000)
    parser.add_argument("--shard-size", type=int, default=32)
    parser.add_argument("--lags", type=int, nargs="*", default=[2, 4, 8, 16, 32])
    parser.add_argument("--workers", type=int, nargs="*", default=[2, 8, 16])
    parser.add_argument("--budget", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, help="folder of the result file")
    args = parser.parse_args(argv)
    if unknown := set(args.traces) - set(RECORDED):
        parser.error(f"unknown trace {sorted(unknown)[0]}; known are {', '.join(RECORDED)}")
    warm_up()
    tokenizer = load_tokenizer(str(args.tokenizer))
    traces = {}
    for name in args.traces:
        trace = recorded_trace(args.data, name, tokenizer, Sizes(args.texts, 0, args.seed))
        traces[name] = measure(trace, args)
    settings = {k: getattr(args, k) for k in ("texts", "shard_size", "lags", "workers", "budget")}
    write_result(
        "pool-workers",
        {"settings": settings, "traces": traces},
        seed=args.seed,
        folder=args.results,
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
