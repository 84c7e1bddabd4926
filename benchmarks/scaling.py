"""Planning past one machine: what 100 million texts take on 8, 64 and 512 GPUs.

    python benchmarks/scaling.py

Reads measured numbers from benchmarks/results/ and published and assumed ones from
scaling_inputs.py; looks for the best batch and draft of one GPU (scaling_worker.py), draws how long
its shards take, and plays the whole job through, failures and all (scaling_cluster.py). No GPU was
measured for it: read its answers as what follows from its inputs.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from common import write_result
from scaling_gpu import MAIN, World, checks, one_gpu, passes
from scaling_inputs import A100, H100, LLAMA_8B, QWEN_32B, read_acceptance, read_inputs
from scaling_jobs import GPUS, changes, usual

#: Runs of one job whose mean is reported.
_RUNS = 3


def pools(world: World) -> dict[str, Any]:
    """Memory and time of pools by their tokens, and what a pool of twice the size brings."""
    sizes = {
        "a million": 1e6,
        "the default limit": world.value("pool_tokens"),
        "a billion": 1e9,
        "the most of an index": 2**31,
        "all texts": world.value("entities") * MAIN.workload.text,
    }
    found: dict[str, Any] = {}
    for name, count in sizes.items():
        grown = count * world.value("grown_bytes") * world.value("gpus_per_node")
        found[name] = {
            "tokens": count,
            "closed_bytes_per_node": count * world.value("file_bytes"),
            "grown_bytes_per_node": grown,
            "grown_share_of_memory": round(grown / world.value("node_memory"), 4),
            "build_hours": round(count * world.value("build_us") / 3.6e9, 3),
            "learn_hours_per_worker": round(count * world.value("learn_us") / 3.6e9, 3),
        }
    doubling: dict[str, Any] = {}
    for trace, measured in world.acceptance.items():
        tokens = [pool["tokens"] for pool in measured["pools"].values()]
        steps = [pool["budgets"]["8"]["tokens_per_step"] for pool in measured["pools"].values()]
        slope = np.polyfit(np.log2(tokens), steps, 1)[0] if len(steps) > 1 else 0.0
        doubling[trace] = {
            "tokens": tokens,
            "tokens_per_step": steps,
            "per_doubling": round(float(slope), 4),
        }
    return {"sizes": found, "per_doubling": doubling}


def exchange(world: World, texts_per_second: float, gpus: int) -> dict[str, Any]:
    """What it takes that every worker reads every finished text from shared storage."""
    size = world.value("file_bytes_per_text")
    nodes = gpus / world.value("gpus_per_node")
    rate = texts_per_second * size
    per_token = 1e-6 * world.value("learn_us")
    return {
        "gpus": gpus,
        "texts_per_second": round(texts_per_second),
        "bytes_per_second_per_node": round(rate),
        "share_of_link": round(rate / world.value("node_network"), 6),
        "bytes_per_second_of_storage": round(rate * nodes),
        "bytes_per_node": round(world.value("entities") * size),
        "reading_share_of_a_worker": round(1e-6 * texts_per_second * world.value("fetch_us"), 5),
        "learning_share_without_limit": round(texts_per_second * MAIN.workload.text * per_token, 4),
        "learning_seconds_to_the_limit": round(world.value("pool_tokens") * per_token, 1),
    }


def measure(world: World, seed: int) -> dict[str, Any]:
    """Everything that docs/scaling.md shows."""
    seeds = range(seed, seed + _RUNS)
    speed = world.best(MAIN, "relaxed").texts
    return {
        "passes": passes(world),
        "checks": checks(world),
        "one_gpu": one_gpu(world),
        "jobs": usual(world, seeds),
        "changes": changes(world, seeds),
        "pools": pools(world),
        "exchange": [exchange(world, speed * gpus, gpus) for gpus in GPUS],
        "inputs": {name: asdict(value) for name, value in world.inputs.items()},
        "machines": [asdict(value) for value in (H100, A100, LLAMA_8B, QWEN_32B)],
    }


def main(argv: list[str] | None = None) -> int:
    """Parse, plan, write benchmarks/results/scaling.json."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, help="folder of the result file")
    args = parser.parse_args(argv)
    world = World(read_inputs(), read_acceptance())
    write_result("scaling", measure(world, args.seed), seed=args.seed, folder=args.results)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
