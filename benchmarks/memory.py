"""Does peak memory depend on the number of records? One job per size, in a process of its own.

    PYTHONPATH=src python benchmarks/memory.py [--sizes 1000 20000]

Records of the fictional bookshop, eight new tokens each, drafting from a pool that grows with
every shard. Reported is the peak resident memory that the system has seen of each process.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import note, write_result
from jobs import command, model_folder, start, write_records


def peak_of(arguments: list[str], log: Path) -> tuple[int, float]:
    """Peak resident bytes and seconds of a command. Raises RuntimeError if it fails."""
    begin = time.perf_counter()
    process = start(arguments, log)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)  # Popen must not wait for it again
    if process.returncode != 0:
        raise RuntimeError(f"exit code {process.returncode}:\n{log.read_text()[-2000:]}")
    # Linux counts in KiB, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    return usage.ru_maxrss * unit, time.perf_counter() - begin


def measure(size: int, model: Path, options: dict[str, Any], scratch: Path) -> dict[str, Any]:
    """One job over `size` records."""
    records = write_records(scratch / f"records-{size}.jsonl", size, side="item")
    output = scratch / f"run-{size}"
    arguments = command(records, model, output, options)
    peak, seconds = peak_of(arguments, scratch / f"run-{size}.log")
    summary = json.loads((output / "summary.json").read_text())
    note(f"{size:,} records: {peak / 2**20:,.1f} MiB, {seconds:.1f} s")
    return {
        "records": size,
        "texts": summary["entities"],
        "new_tokens": summary["new_tokens"],
        "accepted_tokens": summary["accepted_tokens"],
        "input_bytes": records.stat().st_size,
        "peak_resident_bytes": peak,
        "seconds": round(seconds, 2),
    }


def main(argv: list[str] | None = None) -> int:
    """Parse, run each size, write benchmarks/results/memory.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="default: the embedded model")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 20_000])
    parser.add_argument("--shard-size", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--max-new-tokens", type=int, default=8)
    parser.add_argument("--draft", choices=["pool", "prompt", "none"], default="pool")
    parser.add_argument("--repeats", type=int, default=1, help="jobs per size, in turn")
    parser.add_argument("--results", type=Path, help="folder of the result file")
    args = parser.parse_args(argv)
    options = {
        "draft": args.draft,
        "shard-size": args.shard_size,
        "batch-size": args.batch_size,
        "max-new-tokens": args.max_new_tokens,
    }
    runs: list[dict[str, Any]] = []
    for _ in range(args.repeats):
        for size in args.sizes:
            with tempfile.TemporaryDirectory() as folder:
                scratch = Path(folder)
                model = model_folder(args.model, scratch)
                runs.append(measure(size, model, options, scratch))
    peaks = {
        size: max(r["peak_resident_bytes"] for r in runs if r["records"] == size)
        for size in args.sizes
    }
    smallest, largest = peaks[min(args.sizes)], peaks[max(args.sizes)]
    payload = {
        "options": options,
        "peak_resident_bytes": {str(size): peak for size, peak in peaks.items()},
        "ratio": round(largest / smallest, 4),
        "growth_bytes": largest - smallest,
        "runs": runs,
    }
    write_result("memory", payload, seed=0, folder=args.results)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
