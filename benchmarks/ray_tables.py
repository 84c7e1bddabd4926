"""The tables of jobs on Ray, and of workers' pools, in docs/tables.md."""

from __future__ import annotations

from typing import Any

from markdown import header, row

Result = dict[str, Any]


def ray(result: Result) -> str:
    """What two workers write, what kills change, what one worker costs."""
    out = (
        "## Jobs on a Ray cluster: `benchmarks/ray_jobs.py`\n\n"
        "The embedded model on invented readers, on this machine alone; files are compared byte by "
        "byte with those of one process and the same lag of the pool.\n"
    )
    if same := result.get("same"):
        out += header("two workers", "records", "identical files", "duplicates", "missing")
        for rule in ("strict", "relaxed"):
            r, there = same[rule], same[rule]["complete"]
            files = f"{r['data_files']} of {r['data_files']}"
            if not r["byte_identical"]:
                files = f"not: {', '.join(r['differences'])}"
            out += row(rule, there["records"], files, there["duplicates"], there["missing"])
        calls = same["strict"]["tokens_per_call"]
        equal = "the same" if same["strict"]["texts_equal_with_any_lag"] else "NOT the same"
        out += (
            f"\nWith any lag strict texts are {equal}. Tokens per call with a lag of four shards: "
            f"{calls['ray']:.2f}; by itself, where a shard drafts from all that are finished, "
            f"{calls['ray by itself']:.2f} with two workers and {calls['local by itself']:.2f} in "
            f"one process ({same['strict']['data_files']} shards).\n"
        )
    return out + _kills(result.get("kills")) + _overhead(result.get("overhead"))


def _kills(kills: Result | None) -> str:
    if not kills:
        return ""
    there = kills["complete"]
    outcome = "all files are" if kills["byte_identical"] else "files are NOT"
    return (
        f"\nkill -9 of a worker {kills['worker_kills']} times and of the driver "
        f"{kills['driver_kills']} times, at random moments; each time the same command went on: "
        f"{outcome} those of an undisturbed run, {there['texts']:,} texts and "
        f"{there['rejected']} rejected of {there['records']:,} records, {there['duplicates']} "
        f"twice, {there['missing']} missing, {kills['left_workers']} workers left behind.\n"
    )


def _overhead(found: Result | None) -> str:
    if not found:
        return ""
    seconds = found["seconds"]
    pairs = zip(seconds["local"], seconds["ray"], strict=True)
    rounds = "; ".join(f"{a:,.0f} and {b:,.0f} seconds" for a, b in pairs)
    return (
        f"\nOne worker takes {found['ratio']:.3f} times as long as one process "
        f"({found['ratio_lowest']:.3f} - {found['ratio_highest']:.3f}), whole commands, "
        f"{found['records']:,} records ({rounds}), the same files.\n"
    )


def pool_workers(result: Result) -> str:
    """Tokens per step of every way to share texts."""
    known = result["settings"]
    out = (
        "## Who learns from whom: `benchmarks/pool_workers.py`\n\n"
        f"Recorded texts in shards of {known['shard_size']}, an empty pool at first, "
        f"{known['budget']} nodes a step. Exchanged: a shard drafts from all texts but those of "
        "the last few shards (the lag; twice the workers by default). Apart: every worker drafts "
        "from its own texts alone, shards dealt in turn or every group at one worker. Tokens per "
        "step.\n"
    )
    traces = result["traces"]
    out += header("texts shared", *traces)
    for name in next(iter(traces.values()))["tokens_per_step"]:
        out += row(name, *(f"{t['tokens_per_step'][name]:.2f}" for t in traces.values()))
    return out
