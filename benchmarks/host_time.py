"""Processor time that the host takes to lay out one pass, beside what it took before.

    PYTHONPATH=src python benchmarks/host_time.py

From the drafted trees of a batch to what the device is sent: trees are cut to the depth that their
texts have room for and to the nodes that the budget keeps, rows get tokens, positions and columns,
blocks are chosen, and it is said what every row sees. Drafting and the pass itself are not counted.

`walks_before` is the part of `before` that walked over trees in Python (cutting, placing rows,
visibility), without what blocks and uploads took; `now` counts everything. The three take turns,
on one thread. Each text drafts a quarter more nodes than the case says; the best of all texts are
kept, as many as the case says on average.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import host_before
import numpy as np
import torch
from common import note, paired_ratio, spread, write_result

from draftrec.core import BoolArray, DraftTree
from draftrec.engine.masks import FULL
from draftrec.engine.packing import Packed, Segment, pack
from draftrec.engine.passes import attention
from draftrec.engine.passes.eager import bucket
from draftrec.engine.tree import trim_all, within

CPU = torch.device("cpu")
LEVELS = 16
_LAUNCH = attention.launch_cost(CPU)


@dataclass(frozen=True)
class Drafted:
    """What drafters propose for the texts of one pass, each with one token pending: `trees`, `keep`
    bool of all nodes that the budget keeps of what is within LEVELS, and tokens `written`."""

    trees: list[DraftTree]
    keep: BoolArray
    written: list[int]


def drafted(sequences: int, nodes: int, seed: int) -> Drafted:
    """Trees of mostly chains: seven in ten nodes continue the one before."""
    random = np.random.default_rng([seed, sequences, nodes])
    trees: list[DraftTree] = []
    for _ in range(sequences):
        n = nodes * 5 // 4
        parents = [i - 1 if random.random() < 0.7 else int(random.integers(-1, i)) if i else -1
                   for i in range(n)]  # fmt: skip
        probs = np.ones(n, np.float32)
        for i, parent in enumerate(parents):
            probs[i] = random.uniform(0.3, 1) * (probs[parent] if parent >= 0 else 1)
        tokens = random.choice(32_000, n, replace=False).astype(np.int32)
        trees.append(DraftTree(tokens, np.array(parents, np.int32), probs, np.zeros(n, np.uint8)))
    shallow = within(trees, [LEVELS] * sequences)
    worth = np.concatenate([t.probs for t in shallow])
    keep = np.zeros(len(worth), np.bool_)
    keep[np.argsort(-worth, kind="stable")[: sequences * nodes]] = True
    return Drafted(trees, keep, random.integers(100, 400, sequences).tolist())


def segments(it: Drafted, trees: Seq[DraftTree]) -> list[Segment]:
    """One per text, whose last token is pending. Both sides make them, so nobody counts them."""
    pending = np.ones(1, np.int32)
    return [
        Segment(i, start, pending, tree)
        for i, (start, tree) in enumerate(zip(it.written, trees, strict=True))
    ]


def cut_before(it: Drafted) -> list[DraftTree]:
    """Tree by tree."""
    shallow = [host_before.within(t, LEVELS) for t in it.trees]
    parts = np.split(it.keep, np.cumsum([len(t) for t in shallow])[:-1])
    return [host_before.trim(t, k) for t, k in zip(shallow, parts, strict=True)]


def cut_now(it: Drafted) -> list[DraftTree]:
    """All at once."""
    return trim_all(within(it.trees, [LEVELS] * len(it.trees)), it.keep)


def plan_now(rows: Seq[Segment]) -> Packed:
    """As the runner does for a model on the CPU."""
    return pack(rows, CPU, {FULL}, launch=_LAUNCH, padded=bucket)


def variants(it: Drafted) -> dict[str, Callable[[], object]]:
    """The work by name."""
    kept = segments(it, cut_now(it))
    width = max(s.rows for s in kept)

    def walks_before() -> object:
        return cut_before(it), host_before.visibility(
            host_before.pack(kept), range(len(kept)), width
        )

    def before() -> object:
        return cut_before(it), host_before.plan(host_before.pack(kept), _LAUNCH, bucket)

    def now() -> object:
        return cut_now(it), plan_now(kept)

    return {"before": before, "walks_before": walks_before, "now": now}


def processor_seconds(
    work: Mapping[str, Callable[[], object]], rounds: int
) -> dict[str, list[float]]:
    """Processor time of each, one after another in every round, the first one rotating."""
    names = list(work)
    found: dict[str, list[float]] = {name: [] for name in names}
    for name in names:
        work[name]()  # compiles
    for turn in range(rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            start = time.process_time_ns()
            work[name]()
            found[name].append((time.process_time_ns() - start) / 1e9)
    return found


def measure(sequences: int, nodes: int, rounds: int, seed: int) -> dict[str, Any]:
    """One batch: milliseconds, and how many times less they are now."""
    it = drafted(sequences, nodes, seed)
    seconds = processor_seconds(variants(it), rounds)
    found = {
        "sequences": sequences,
        "nodes": nodes,
        "rows": sum(1 + len(t) for t in cut_now(it)),
        "milliseconds": {n: spread([1e3 * s for s in x]) for n, x in seconds.items()},
        "times_less": {
            name: paired_ratio(seconds[name], seconds["now"]) for name in ("before", "walks_before")
        },
    }
    note(str(found))
    return found


def main(argv: list[str] | None = None) -> int:
    """Parse, measure, write host-time.json."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cases", nargs="+", default=["128x20", "64x16", "16x16", "1x16", "128x0"])
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, help="folder of the result file")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    cases = [tuple(int(n) for n in case.split("x")) for case in args.cases]
    found = [measure(sequences, nodes, args.rounds, args.seed) for sequences, nodes in cases]
    settings = {"cases": args.cases, "rounds": args.rounds, "levels": LEVELS}
    result = {"settings": settings, "passes": found}
    write_result("host-time", result, seed=args.seed, folder=args.results)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
