"""Do jobs on a Ray cluster write what a local job writes, also when workers and drivers are killed?

    PYTHONPATH=src python benchmarks/ray_jobs.py [--records 2000] [--part same|kills|overhead]

`same`: two workers against one process, strict and relaxed, every data file byte by byte. `kills`:
kill -9 of a worker, and of the driver, at seeded random moments; the same command goes on.
`overhead`: one worker against one process in turn, whole commands.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
from common import RESULTS, machine, note, write_result
from jobs import command, manifest_of, model_folder, start, write_records
from kill_resume import check_complete, compare, outcome

from draftrec.jobs import ray as on_cluster

PARTS = ("same", "kills", "overhead")
ON_RAY = {"engine": "ray", "workers": 2}
LAG = {"pool-lag": 4}
RULES = {"strict": {"accept": "strict"}, "relaxed": {"accept": "relaxed"}}
#: How Ray names the processes of workers.
_ACTOR = f"ray::{on_cluster._Actor.__name__}"
_GONE_SECONDS = 30.0


class Bench:
    """A model, its records, and the options that all jobs of a run share."""

    def __init__(self, args: argparse.Namespace, scratch: Path) -> None:
        self.args, self.scratch = args, scratch
        self.records = write_records(scratch / "in.jsonl", args.records, reject_every=400)
        self.model = model_folder(args.model, scratch)
        self.options = {
            "budget": 12,
            "batch-size": args.batch_size,
            "shard-size": args.shard_size,
            "max-new-tokens": args.max_new_tokens,
        }

    def start(self, name: str, **options: Any) -> subprocess.Popen[bytes]:
        line = command(self.records, self.model, self.scratch / name, {**self.options, **options})
        return start(line, self.scratch / f"{name}.log")

    def finish(self, name: str, process: subprocess.Popen[bytes]) -> None:
        if process.wait() not in (0, 3):
            raise RuntimeError((self.scratch / f"{name}.log").read_text()[-2000:])

    def run(self, name: str, **options: Any) -> float:
        """A whole job; seconds that the command took."""
        begin = time.perf_counter()
        self.finish(name, self.start(name, **options))
        seconds = time.perf_counter() - begin
        note(f"{name}: {seconds:.1f} s")
        return seconds

    def outcome(self, name: str) -> dict[str, Any]:
        """Everything that two equal runs have in common. Not the statistics: what a text cost
        depends on which texts were finished before it."""
        return outcome(self.scratch / name)


def same(bench: Bench) -> dict[str, Any]:
    """Two workers, and one process with the same lag of the pool; strict also as it is by itself,
    when a shard drafts from whatever is finished."""
    found: dict[str, Any] = {}
    for name, rule in RULES.items():
        bench.run(f"{name}-local", **rule, **LAG)
        bench.run(f"{name}-ray", **rule, **ON_RAY, **LAG)
        expected, got = bench.outcome(f"{name}-local"), bench.outcome(f"{name}-ray")
        found[name] = {
            "byte_identical": not compare(expected, got),
            "differences": compare(expected, got),
            "data_files": len(expected["parts"]),
            "complete": check_complete(got, bench.records),
            "tokens_per_call": {
                engine: _summary(bench.scratch / f"{name}-{engine}")["tokens_per_call"]
                for engine in ("local", "ray")
            },
        }
    by_itself = {"local": {}, "ray": ON_RAY}
    for name, where in by_itself.items():
        bench.run(f"auto-{name}", **RULES["strict"], **where)
    texts = [bench.outcome(name)["parts"] for name in ("strict-ray", "auto-local", "auto-ray")]
    found["strict"]["texts_equal_with_any_lag"] = texts[0] == texts[1] == texts[2]
    found["strict"]["tokens_per_call"] |= {
        f"{name} by itself": _summary(bench.scratch / f"auto-{name}")["tokens_per_call"]
        for name in by_itself
    }
    return found


def kills(bench: Bench) -> dict[str, Any]:
    """Kill workers and drivers until all kills are done, then let the job finish."""
    options = {**RULES["strict"], **ON_RAY, **LAG}
    seconds = bench.run("alone", **options)
    expected = bench.outcome("alone")
    rng = random.Random(bench.args.seed)
    events = ["worker"] * bench.args.worker_kills + ["driver"] * bench.args.driver_kills
    rng.shuffle(events)
    history: list[dict[str, Any]] = []
    differences: list[list[str]] = []
    while events:
        process = bench.start("killed", **options)
        while events and process.poll() is None:
            event = _strike(bench, process, events[0], rng)
            if event is None:
                break
            events.pop(0)
            history.append(event)
            note(f"kill {len(history)}: {event}")
        if process.poll() is None and not events:
            bench.finish("killed", process)
        if process.wait() in (0, 3):
            differences.append(compare(expected, bench.outcome("killed")))
            if events:
                shutil.rmtree(bench.scratch / "killed")
    if not (manifest_of(bench.scratch / "killed") or {}).get("finished"):
        bench.run("killed", **options)
        differences.append(compare(expected, bench.outcome("killed")))
    return {
        "worker_kills": sum(e["what"] == "worker" for e in history),
        "driver_kills": sum(e["what"] == "driver" for e in history),
        "times_finished": len(differences),
        "byte_identical": not any(differences),
        "differences": sorted({name for found in differences for name in found}),
        "complete": check_complete(bench.outcome("killed"), bench.records),
        "left_workers": sum(e["left_workers"] for e in history),
        "undisturbed_seconds": round(seconds, 1),
        "history": history,
    }


def _strike(
    bench: Bench, driver: subprocess.Popen[bytes], what: str, rng: random.Random
) -> dict[str, Any] | None:
    """Wait for a random number of shards, then a random while, and kill; None if the job ended
    before. By the clock alone, all kills would fall into the starting of workers."""
    tree = psutil.Process(driver.pid)
    kills = bench.args.worker_kills + bench.args.driver_kills
    most = max(1, round(2 * bench.args.records / bench.args.shard_size / (kills + 1)))
    wanted = _shards_done(bench) + rng.randint(0, most)
    while driver.poll() is None and (_shards_done(bench) < wanted or not _actors(tree)):
        time.sleep(0.05)
    _sleep_beside(driver, rng.uniform(0, bench.args.pause))
    actors = _actors(tree) if driver.poll() is None else []
    if driver.poll() is not None or (what == "worker" and not actors):
        return None
    event = {
        "what": what,
        "shards_done": _shards_done(bench),
        "workers": len(actors),
        "left_workers": 0,
    }
    if what == "worker":
        rng.choice(actors).kill()
        return event
    driver.kill()
    driver.wait()
    # Ray's two agents, which hold nothing, notice a minute later; a worker holds a model.
    _, left = psutil.wait_procs(actors, timeout=_GONE_SECONDS)
    return {**event, "left_workers": sum(map(_lives, left))}


def _shards_done(bench: Bench) -> int:
    return len((manifest_of(bench.scratch / "killed") or {"shards": []})["shards"])


def _sleep_beside(driver: subprocess.Popen[bytes], seconds: float) -> None:
    end = time.perf_counter() + seconds
    while driver.poll() is None and (left := end - time.perf_counter()) > 0:
        time.sleep(min(left, 0.05))


def _actors(driver: psutil.Process) -> list[psutil.Process]:
    try:
        family = driver.children(recursive=True)
    except psutil.NoSuchProcess:
        return []
    return [p for p in family if _name(p).startswith(_ACTOR)]


def _lives(process: psutil.Process) -> bool:
    """Is it more than an entry that nobody has collected?"""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _name(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def overhead(bench: Bench) -> dict[str, Any]:
    """Whole commands in turn, strict."""
    options = RULES["strict"]
    seconds: dict[str, list[float]] = {"local": [], "ray": []}
    decoding: dict[str, list[float]] = {"local": [], "ray": []}
    for i in range(bench.args.rounds):
        for name, where in (("local", {}), ("ray", {"engine": "ray", "workers": 1})):
            shutil.rmtree(bench.scratch / name, ignore_errors=True)
            seconds[name].append(bench.run(name, **options, **where))
            decoding[name].append(_summary(bench.scratch / name)["wall_seconds"])
        note(f"round {i + 1}: {seconds['ray'][-1] / seconds['local'][-1]:.3f} times the local job")
    ratios = [r / one for one, r in zip(seconds["local"], seconds["ray"], strict=True)]
    return {
        "ratio": round(statistics.median(ratios), 4),
        "ratio_lowest": round(min(ratios), 4),
        "ratio_highest": round(max(ratios), 4),
        "seconds": {k: [round(x, 1) for x in v] for k, v in seconds.items()},
        "decoding_seconds": {k: [round(x, 1) for x in v] for k, v in decoding.items()},
        "byte_identical": not compare(bench.outcome("local"), bench.outcome("ray")),
        "tokens_per_call": {k: _summary(bench.scratch / k)["tokens_per_call"] for k in seconds},
        "records": bench.args.records,
        "options": {**bench.options, **options},
    }


def _summary(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text())


def main(argv: list[str] | None = None) -> int:
    """Run the parts, write benchmarks/results/ray.json; 1 if anything differs or is missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=PARTS, action="append", help="default: all of them")
    parser.add_argument("--model", type=Path, help="default: the embedded model")
    parser.add_argument("--records", type=int, default=2000)
    parser.add_argument("--shard-size", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--worker-kills", type=int, default=10)
    parser.add_argument("--driver-kills", type=int, default=5)
    parser.add_argument("--pause", type=float, default=4.0, help="most seconds before a kill")
    parser.add_argument("--rounds", type=int, default=1, help="of the overhead")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, help="folder of the result file")
    args = parser.parse_args(argv)
    found: dict[str, Any] = {}
    for part in args.part or PARTS:
        with tempfile.TemporaryDirectory() as scratch:
            measured = globals()[part](Bench(args, Path(scratch)))
        found[part] = {"measured_on": machine(), **measured}
    # Parts that this run left out stay as they were measured.
    path = (args.results or RESULTS) / "ray.json"
    before = json.loads(path.read_text()) if path.is_file() else {}
    kept = {part: before[part] for part in PARTS if part in before}
    write_result("ray", {**kept, **found}, seed=args.seed, folder=args.results)
    equal = [found["same"][rule]["byte_identical"] for rule in RULES if "same" in found]
    equal += [found[p]["byte_identical"] for p in ("kills", "overhead") if p in found]
    return int(not all(equal))


if __name__ == "__main__":
    raise SystemExit(main())
