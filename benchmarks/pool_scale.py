"""Draft pools of 1, 10 and 100 million tokens: building, bytes, opening, lookups, growth.

Texts are the synthetic workload's, with as many groups as texts allow. Lookups are timed one by one
in processor time, in contexts of texts that are not in the pool, with the arrays mapped from disk;
each tree is drawn from the pool of all and the running text, as in `generate`. One JSON line last.
"""

from __future__ import annotations

import argparse
import gc
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import note, spread, write_result
from workload import Workload, make_texts

from draftrec.core import IntArray
from draftrec.pool.index import NgramIndex, TreeBuilder, tail_of_text, warm_up
from draftrec.pool.ngrams import ORDER
from draftrec.pool.store import Level, Pool
from draftrec.pool.suffixes import ClosedIndex

_HELD_OUT = 200
# Opens a pool, touches every page, waits for a line, says what memory is its own, waits again.
_READER = """
import sys, time, pathlib, numpy as np
from draftrec.pool.store import Pool
start = time.perf_counter(); pool = Pool.load(pathlib.Path(sys.argv[1]), verify=False)
opened = 1e3 * (time.perf_counter() - start)
touched = sum(int(a[::256].sum()) for a in pool.all.closed.arrays().values())
print("ready", flush=True); sys.stdin.readline()
facts = {"Pss": 0, "Rss": 0}; inside = False
for line in open("/proc/self/smaps"):
    if "-" in line.split(" ")[0]: inside = "safetensors" in line
    elif inside and line.split(":")[0] in facts: facts[line.split(":")[0]] += int(line.split()[1])
print(opened, facts["Rss"] * 1024, facts["Pss"] * 1024, flush=True); sys.stdin.readline()
"""


def lookups(index: Any, texts: list[IntArray], budgets: list[int]) -> dict[str, Any]:
    """Microseconds of lookups along texts that are not in the pool."""
    found: dict[str, Any] = {}
    builder = TreeBuilder()
    for budget in budgets:
        times: list[float] = []
        for text in texts:
            own = NgramIndex(len(text))
            for start in range(0, len(text) - 1, 7):
                own.extend(text[max(0, start - 7) : start])
                tail = tail_of_text(text[:start])
                sources = [
                    (own, text[max(0, start - ORDER) : start], 1.0, 0),
                    (index, tail, 1.0, 3),
                ]
                clock = time.process_time_ns()
                builder.build(sources, budget, 24)
                times.append((time.process_time_ns() - clock) / 1e3)
        found[str(budget)] = {
            "p50_us": round(float(np.percentile(times, 50)), 1),
            "p99_us": round(float(np.percentile(times, 99)), 1),
            "lookups": len(times),
        }
    return found


def growth(texts: list[IntArray]) -> dict[str, Any]:
    """Microseconds and bytes per token of texts that are counted one by one."""
    index, tokens = NgramIndex(), sum(map(len, texts))
    clock = time.process_time_ns()
    for text in texts:
        index.add_text(text)
    insert = (time.process_time_ns() - clock) / 1e3 / tokens
    used = int(index.arrays.size[0]) * 32
    pool = Level()
    clock = time.process_time_ns()
    for text in texts:
        pool.add([text])
    settled = (time.process_time_ns() - clock) / 1e3 / tokens
    return {
        "tokens": tokens,
        "open_us_per_token": round(insert, 3),
        "open_bytes_per_token": round(index.nbytes / tokens, 1),
        "open_nodes_bytes_per_token": round(used / tokens, 1),
        "one_by_one_with_settling_us_per_token": round(settled, 3),
        "one_by_one_bytes_per_token": round(pool.nbytes / tokens, 1),
    }


def readers(folder: Path, count: int = 2) -> dict[str, Any]:
    """Milliseconds to open, and memory, of processes that read one pool at once."""
    command = [sys.executable, "-c", _READER, str(folder)]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    running: list[Any] = [subprocess.Popen(command, **pipes) for _ in range(count)]
    told = [process.stdout.readline() for process in running]  # all have the pool open now
    rows: list[list[str]] = []
    for process in running:
        process.stdin.write("\n")
        process.stdin.flush()
        rows.append(process.stdout.readline().split())
    for process in running:
        process.communicate("\n")
    if any(line.strip() != "ready" for line in told):
        raise RuntimeError(f"a reader failed: {told}")
    return {
        "processes": count,
        "open_ms": [round(float(r[0]), 1) for r in rows],
        "mapped_bytes_each": int(rows[0][1]),
        "proportional_bytes_all": sum(int(r[2]) for r in rows),
    }


def measure(millions: float, args: argparse.Namespace) -> dict[str, Any]:
    """All figures of one size."""
    count = int(millions * 1e6 / Workload.length)
    workload = Workload(texts=count + _HELD_OUT, groups=max(50, count // 40))
    made = [ids for ids, _ in make_texts(workload, args.seed)]
    warm, held_out = made[:count], made[count:]
    tokens = sum(map(len, warm))
    clock = time.process_time_ns()
    index = ClosedIndex.build(warm)
    build = (time.process_time_ns() - clock) / 1e3 / tokens
    found: dict[str, Any] = {
        "tokens": tokens,
        "texts": count,
        "build_us_per_token": round(build, 3),
        "closed_bytes_per_token": round(index.nbytes / tokens, 2),
        "growth": growth(warm[: min(count, 2000)]),
    }
    del index, made
    gc.collect()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        pool = Pool("benchmark", max_bytes=1 << 40, levels=("all",))
        pool.add((ids, None) for ids in warm)
        pool.save(Path(folder) / "pool")
        del pool, warm
        gc.collect()
        files = list((Path(folder) / "pool").iterdir())
        found["file_bytes_per_token"] = round(sum(f.stat().st_size for f in files) / tokens, 2)
        opening: list[float] = []
        for _ in range(5):
            start = time.perf_counter()
            opened = Pool.load(Path(folder) / "pool", verify=False)
            opening.append(1e3 * (time.perf_counter() - start))
        found["open_ms"] = spread(opening)
        start = time.perf_counter()
        Pool.load(Path(folder) / "pool")
        found["open_with_checksums_ms"] = round(1e3 * (time.perf_counter() - start), 1)
        found["readers"] = readers(Path(folder) / "pool")
        found["lookup"] = lookups(opened.all.closed, held_out, args.budgets)
    return found


def main(argv: list[str] | None = None) -> None:
    """Parse, measure every size, write pool-scale.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--millions", type=float, nargs="+", default=[1.0, 10.0, 100.0])
    parser.add_argument("--budgets", type=int, nargs="+", default=[8, 16, 64])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where the pools are written, and removed")
    parser.add_argument("--results", type=Path, help="folder of the result file")
    args = parser.parse_args(argv)
    warm_up()
    sizes: dict[str, Any] = {}
    for millions in args.millions:
        sizes[f"{millions:g}M"] = measure(millions, args)
        note(f"{millions:g} million tokens: {sizes[f'{millions:g}M']}")
    settings = {"millions": args.millions, "budgets": args.budgets}
    payload = {"settings": settings, "sizes": sizes}
    write_result("pool-scale", payload, seed=args.seed, folder=args.results)


if __name__ == "__main__":
    main()
