"""A service under load: many clients at once against one at a time, and clients that misbehave.

    PYTHONPATH=src python benchmarks/load.py [--seconds 300] [--clients 32] [--before COMMIT]

Starts `draftrec serve --demo` on a free port of the loopback and asks it, from this process, to
recommend for the embedded shop's readers: one client, then many, for a bounded time and number of
requests. Some answers are compared with those of one request at a time. Then texts, streamed and
whole in turns: time to the first of it. Then the faults: a slow client, one that hangs up, a body
of 10 MB, no JSON, unknown items, a deadline of 1 ms, a flood, long prompts that are refused, idle
connections, a log that nobody reads, SIGTERM in the middle; and those of files (`load_files`): a
pool that is overwritten, a reload of which half fails, odd runs, a long one under many pages, two
additions to a pool. All of it takes about twice `--seconds`. `--before`: as many clients ask an
earlier commit's service and this one in turns, since one machine is not as fast every day.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import subprocess
import tarfile
import tempfile
import time
from collections import Counter
from pathlib import Path
from statistics import median
from typing import Any

import httpx
from common import ROOT, note, write_result
from load_client import Ask, Process, Traffic, asked, items, memory_mib, pump, text
from load_faults import ALONE, FAULTS
from load_files import FILES

#: Whatever happens, no more requests than this are sent in one measurement.
_MOST_REQUESTS = 2_000_000


def quantile(times: list[float], share: float) -> float | None:
    """The time that such a share is below, None where there is none."""
    times = sorted(times)
    return round(times[min(len(times) - 1, int(share * len(times)))], 2) if times else None


def figures(traffic: Traffic) -> dict[str, Any]:
    """Throughput, latencies in milliseconds and what went wrong."""
    times = sorted(traffic.milliseconds)
    answered = sum(n for status, n in traffic.statuses.items() if status == 200)
    return {
        "clients": traffic.clients,
        "seconds": round(traffic.seconds, 2),
        "requests": sum(traffic.statuses.values()),
        "answered": answered,
        "per_second": round(answered / traffic.seconds, 2),
        "ms_p50": quantile(times, 0.5),
        "ms_p90": quantile(times, 0.9),
        "ms_p99": quantile(times, 0.99),
        "ms_max": quantile(times, 1.0),
        "statuses": {str(status): n for status, n in sorted(traffic.statuses.items())},
        "partial": traffic.partial,
        "failed_connections": traffic.broken,
        "errors": sum(traffic.statuses.values()) - answered + traffic.broken,
    }


async def measure(
    url: str, clients: int, seconds: float, bodies: list[Any], ask: Ask = items
) -> Traffic:
    """`clients` that ask one request after another, until the time is over."""
    limits = httpx.Limits(max_connections=clients, max_keepalive_connections=clients)
    async with httpx.AsyncClient(base_url=url, limits=limits, timeout=60) as client:
        traffic = Traffic(clients)
        end = time.perf_counter() + seconds
        start = time.perf_counter()
        each = _MOST_REQUESTS // clients
        await asyncio.gather(
            *(
                pump(client, bodies[i::clients] or bodies, end, each, traffic, ask)
                for i in range(clients)
            )
        )
        traffic.seconds = time.perf_counter() - start
        return traffic


async def answers(url: str, clients: int, bodies: list[Any]) -> list[Any]:
    """The items for every body, asked by so many clients at once."""
    gate = asyncio.Semaphore(clients)

    async with httpx.AsyncClient(base_url=url, timeout=60) as client:

        async def one(body: Any) -> Any:
            async with gate:
                answer = await client.post("/v1/recommend", json=body)
            return [i["item"] for i in answer.raise_for_status().json()["items"]]

        return list(await asyncio.gather(*map(one, bodies)))


def loads(args: argparse.Namespace, bodies: list[Any]) -> dict[str, Any]:
    """One client against many, on one process; every answer must be the same."""
    with Process() as served:
        asyncio.run(measure(served.url, args.clients, 2.0, bodies))
        before = memory_mib(served.pid)
        share = max(2.0, args.seconds / 5)
        found: dict[str, Any] = {}
        for name, clients, seconds in (
            ("one_at_a_time", 1, share),
            ("concurrent", args.clients, args.seconds),
        ):
            found[name] = figures(asyncio.run(measure(served.url, clients, seconds, bodies)))
            note(f"{name}: {found[name]}")
        few = bodies[: args.compare]
        alone = asyncio.run(answers(served.url, 1, few))
        together = asyncio.run(answers(served.url, args.clients, few))
        found["compared"] = len(few)
        found["equal"] = sum(a == b for a, b in zip(alone, together, strict=True))
        found["memory_mib"] = {"before": before, "after": memory_mib(served.pid)}
        found["exit_code"] = served.terminate()
    one, many = found["one_at_a_time"], found["concurrent"]
    found["times_as_many"] = round(many["per_second"] / one["per_second"], 2)
    return found


_ROUNDS = 4


def texts(args: argparse.Namespace) -> dict[str, Any]:
    """Texts as a whole and streamed, in turns, by as many clients."""
    seen = {"whole": Traffic(args.clients), "streamed": Traffic(args.clients)}
    with Process() as served:
        for turn in range(2 * _ROUNDS):
            name = ("whole", "streamed")[turn % 2]
            bodies = [
                {"prompt": f"a reader of {i} books", "max_tokens": 48, "stream": name == "streamed"}
                for i in range(1000)
            ]
            for body in bodies if name == "streamed" else ():
                body["stream_options"] = {"include_usage": True}
            seconds = max(1.0, args.seconds / 5 / _ROUNDS)
            found = asyncio.run(measure(served.url, args.clients, seconds, bodies, text))
            seen[name].add(found)
    told = {
        name: {
            **figures(traffic),
            "tokens_per_second": round(traffic.tokens / traffic.seconds, 1),
            "first_ms_p50": quantile(traffic.first, 0.5),
            "first_ms_p99": quantile(traffic.first, 0.99),
        }
        for name, traffic in seen.items()
    }
    note(f"texts: {told}")
    return told


def in_turns(args: argparse.Namespace, bodies: list[Any]) -> dict[str, Any]:
    """Throughput of an earlier commit's service and of this one, each anew in every round."""
    commit = git("rev-parse", args.before).decode().strip()
    seen: dict[str, list[Traffic]] = {"before": [], "now": []}
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(fileobj=io.BytesIO(git("archive", commit, "src"))) as archive:
            archive.extractall(folder, filter="data")
        earlier = Path(folder) / "src"
        with Process(sources=earlier):
            pass  # its kernels are compiled now
        for turn in range(2 * _ROUNDS):
            name = ("before", "now")[turn % 2]
            with Process(sources=earlier if name == "before" else None) as served:
                asyncio.run(measure(served.url, args.clients, 2.0, bodies))
                seconds = max(1.0, args.seconds / 5 / _ROUNDS)
                seen[name].append(asyncio.run(measure(served.url, args.clients, seconds, bodies)))
    told: dict[str, Any] = {"commit": commit}
    for name, rounds in seen.items():
        whole = Traffic(args.clients)
        for one in rounds:
            whole.add(one)
        told[name] = {**figures(whole), "rounds": [figures(one)["per_second"] for one in rounds]}
    pairs = zip(told["before"]["rounds"], told["now"]["rounds"], strict=True)
    told["ratios"] = [round(now / before, 3) for before, now in pairs]
    told["ratio"] = round(median(told["ratios"]), 3)
    note(f"in turns: {told}")
    return told


def git(*words: str) -> bytes:
    """What git says of this repository."""
    return subprocess.run(["git", "-C", str(ROOT), *words], check=True, capture_output=True).stdout


def faults(bodies: list[Any]) -> dict[str, Any]:
    """Every fault against one service, which has to answer a good request after each."""
    found: dict[str, Any] = {}
    with Process() as served:
        for fault in FAULTS:
            name = fault.__name__
            seen = fault(served, bodies)
            status = httpx.post(
                f"{served.url}/v1/recommend", json=bodies[0], timeout=60
            ).status_code
            found[name] = {**seen, "good_request_after": status, "ok": seen["ok"] and status == 200}
            note(f"{name}: {found[name]}")
    for fault in (*ALONE, *FILES):
        name = fault.__name__
        found[name] = fault(bodies)
        note(f"{name}: {found[name]}")
    return found


def main(argv: list[str] | None = None) -> int:
    """Measure, write benchmarks/results/load.json; 1 if anything failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("-k", type=int, default=10)
    parser.add_argument("--users", type=int, default=2000)
    parser.add_argument("--compare", type=int, default=500, help="answers that are compared")
    parser.add_argument("--before", metavar="COMMIT", help="serve this one as well, in turns")
    parser.add_argument("--results", type=Path, help="folder of the result file")
    args = parser.parse_args(argv)
    bodies = asked(args.users, args.k)
    payload = {
        "k": args.k,
        "load": loads(args, bodies),
        "in_turns": in_turns(args, bodies) if args.before else None,
        "texts": texts(args),
        "faults": faults(bodies),
    }
    load = payload["load"]
    wrong = Counter(
        load=load["concurrent"]["errors"] + load["one_at_a_time"]["errors"],
        texts=sum(found["errors"] for found in payload["texts"].values()),
        unequal=load["compared"] - load["equal"],
        exit_code=load["exit_code"],
        faults=sum(not seen["ok"] for seen in payload["faults"].values()),
    )
    payload["wrong"] = dict(wrong)
    write_result("load", payload, seed=0, folder=args.results)
    return int(any(wrong.values()))


if __name__ == "__main__":
    raise SystemExit(main())
