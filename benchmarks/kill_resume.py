"""Does a killed job end as if nothing had happened? kill -9, the same command again, compare.

    PYTHONPATH=src python benchmarks/kill_resume.py [--records 2000] [--kills 20]

Two jobs: strict with an automatic budget, relaxed with a fixed one. Each runs once undisturbed,
then again under kills at seeded random moments: while it starts, while it writes a shard, and
anywhere. After every kill the same command goes on. Data files must be equal byte by byte.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import shutil
import subprocess
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from common import note, write_result
from jobs import command, manifest_of, model_folder, start, write_records

JOBS = {
    "strict_auto_budget": {"accept": "strict", "budget": "auto"},
    "relaxed_budget_12": {"accept": "relaxed", "budget": 12},
}
#: Of every ten kills: how many fall into the start-up, into the writing of a shard, anywhere.
KINDS = ("start-up", "start-up", "writing", "writing", "writing", *["anywhere"] * 5)
_POLL = 0.0005


class UnexpectedExitError(Exception):
    """A job ended otherwise than finished or killed."""


@dataclass
class Job:
    """One command, the folder it writes to, and how long it takes when left alone."""

    arguments: list[str]
    output: Path
    log: Path
    finished: tuple[int, ...] = (0, 3)
    startup: float = 0.0
    seconds: float = 0.0

    def undisturbed(self) -> None:
        """Run to the end, noting when decoding began and when it was over."""
        begin = time.perf_counter()
        process = start(self.arguments, self.log)
        while process.poll() is None:
            if not self.startup and manifest_of(self.output):
                self.startup = time.perf_counter() - begin
            time.sleep(0.01)
        self.seconds = time.perf_counter() - begin
        self.startup = self.startup or self.seconds
        self.check(process.returncode)

    def check(self, code: int) -> None:
        if code not in self.finished:
            tail = self.log.read_text(errors="replace")[-2000:]
            raise UnexpectedExitError(f"the job ended with exit code {code}; it said:\n{tail}")

    def killed(self, kind: str, rng: random.Random, mean: float) -> dict[str, Any] | None:
        """Start, kill, and say what was there; None if the job was over before the kill."""
        begin = time.perf_counter()
        process = start(self.arguments, self.log)
        if kind == "writing":
            _wait_for_writing(process, self.output, rng)
        else:
            late = rng.uniform(0, 2 * mean) if kind == "anywhere" else -rng.uniform(0, self.startup)
            _wait(process, begin + self.startup + late)
        alive = time.perf_counter() - begin
        process.kill()
        code = process.wait()
        if code != -9:
            self.check(code)
            return None
        done = len((manifest_of(self.output) or {"shards": []})["shards"])
        files = [p.name for p in self.output.glob("*")]
        return {
            "kind": kind,
            "seconds": round(alive, 3),
            "shards_done": done,
            "half_written": sum(name.endswith(".tmp") for name in files),
            "unfinished": sum(name.endswith(".parquet") for name in files) - 2 * done,
        }


def _wait(process: subprocess.Popen[bytes], until: float) -> None:
    while process.poll() is None and (left := until - time.perf_counter()) > 0:
        time.sleep(min(left, 0.05))


def _wait_for_writing(process: subprocess.Popen[bytes], output: Path, rng: random.Random) -> None:
    """Until some file is being written for the n-th time, and a random moment more."""
    seen, writing, wanted = 0, False, rng.randint(1, 8)
    while process.poll() is None:
        now = any(output.glob("*.tmp"))
        seen += now and not writing
        writing = now
        if seen >= wanted:
            time.sleep(rng.uniform(0, 0.004))
            return
        time.sleep(_POLL)


def torment(job: Job, kills: int, rng: random.Random, expected: dict[str, Any]) -> dict[str, Any]:
    """Kill the job `kills` times, let it finish, compare; starts over if it finishes too early."""
    kinds = [KINDS[i % len(KINDS)] for i in range(kills)]
    rng.shuffle(kinds)
    mean = (job.seconds - job.startup) / max(1, kinds.count("anywhere") + kinds.count("writing"))
    history: list[dict[str, Any]] = []
    differences: list[list[str]] = []  # of every time the job came to its end
    while kinds:
        event = job.killed(kinds[0], rng, mean)
        if event:
            kinds.pop(0)
            history.append(event)
            note(f"kill {len(history)}: {event}")
            continue
        differences.append(compare(expected, outcome(job.output)))
        shutil.rmtree(job.output)
    job.undisturbed()
    differences.append(compare(expected, outcome(job.output)))
    return {
        "kills": len(history),
        "by_kind": dict(Counter(event["kind"] for event in history)),
        "left_half_written_files": sum(event["half_written"] > 0 for event in history),
        "left_files_of_unfinished_shards": sum(event["unfinished"] > 0 for event in history),
        "times_finished": len(differences),
        "differences": sorted({name for names in differences for name in names}),
        "history": history,
    }


def outcome(output: Path) -> dict[str, Any]:
    """What must not depend on kills: data files, rejected records, ids in order, no leavings."""
    parts, stats = (sorted(output.glob(f"{name}-*.parquet")) for name in ("part", "stats"))
    rejected = output / "rejected.jsonl"
    manifest = manifest_of(output) or {}
    return {
        "parts": {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in parts},
        "rejected": rejected.read_text().splitlines() if rejected.is_file() else [],
        "ids": _ids(parts),
        "stats_ids": _ids(stats),
        "finished": bool(manifest.get("finished")),
        "leavings": sorted(p.name for p in output.glob("*.tmp")),
    }


def compare(expected: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """Names of what differs; empty is what this benchmark is for."""
    return [name for name in expected if expected[name] != found[name]]


def check_complete(result: dict[str, Any], records: Path) -> dict[str, Any]:
    """Every record is there once, as a text or as a rejected one, in input order."""
    wanted = [json.loads(line)["entity_id"] for line in records.read_text().splitlines()]
    rejected = [json.loads(line)["entity_id"] for line in result["rejected"]]
    refused = set(rejected)
    expected = [i for i in wanted if i not in refused]
    return {
        "records": len(wanted),
        "texts": len(result["ids"]),
        "rejected": len(rejected),
        "duplicates": len(result["ids"]) - len(set(result["ids"])),
        "missing": len(set(expected) - set(result["ids"])),
        "in_order": result["ids"] == expected == result["stats_ids"],
        "finished": result["finished"] and not result["leavings"],
    }


def _ids(files: list[Path]) -> list[str]:
    tables = [pq.read_table(path, columns=["entity_id"]) for path in files]
    return [name for table in tables for name in table["entity_id"].to_pylist()]


def measure(name: str, args: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """One job, undisturbed and killed."""
    records = write_records(scratch / "records.jsonl", args.records, reject_every=400)
    model = model_folder(args.model, scratch)
    options = {
        **JOBS[name],
        "draft": "pool",
        "shard-size": args.shard_size,
        "batch-size": args.batch_size,
        "max-new-tokens": args.max_new_tokens,
    }

    def job(output: Path) -> Job:
        log = scratch / f"{name}.log"
        return Job(command(records, model, output, options), output, log)

    alone, killed = job(scratch / f"{name}-alone"), job(scratch / f"{name}-killed")
    alone.undisturbed()
    note(f"{name}: {alone.seconds:.1f} s undisturbed, decoding from {alone.startup:.1f} s on")
    expected = outcome(alone.output)
    killed.startup, killed.seconds = alone.startup, alone.seconds
    report = torment(killed, args.kills, random.Random(f"{args.seed}:{name}"), expected)
    complete = check_complete(outcome(killed.output), records)
    identical = not report["differences"]
    return {
        "byte_identical": identical,
        "data_files": len(expected["parts"]),
        "complete": complete,
        "undisturbed_seconds": round(alone.seconds, 2),
        "startup_seconds": round(alone.startup, 2),
        "options": options,
        **report,
    }


def main(argv: list[str] | None = None) -> int:
    """Parse, kill, write benchmarks/results/kill-resume.json; 1 if anything differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="default: the embedded model")
    parser.add_argument("--records", type=int, default=2000)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--shard-size", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--max-new-tokens", type=int, default=160)
    parser.add_argument("--only", choices=JOBS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, help="folder of the result file")
    args = parser.parse_args(argv)
    payload: dict[str, Any] = {"jobs": {}}
    for name in [args.only] if args.only else JOBS:
        with tempfile.TemporaryDirectory() as scratch:
            payload["jobs"][name] = measure(name, args, Path(scratch))
    write_result("kill-resume", payload, seed=args.seed, folder=args.results)
    jobs = payload["jobs"].values()
    return int(not all(j["byte_identical"] and j["complete"]["in_order"] for j in jobs))


if __name__ == "__main__":
    raise SystemExit(main())
