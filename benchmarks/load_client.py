"""The service as a child process, and clients that ask it."""

from __future__ import annotations

import asyncio
import json
import re
import resource
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx
from jobs import environment, program

from draftrec.demo.shop import histories, readings

_START_SECONDS, _END_SECONDS = 120.0, 60.0


def memory_mib(pid: int) -> float | None:
    """Resident memory of a process; None where the system does not say."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
        line = next(line for line in lines if line.startswith("VmRSS"))
    except (OSError, StopIteration):
        return None
    return round(int(line.split()[1]) / 1024, 1)


class Process:
    """`draftrec serve --demo` on a free port of the loopback, ready to answer, until the end."""

    def __init__(
        self,
        *words: str,
        stalled: bool = False,
        files: int | None = None,
        sources: Path | None = None,
    ) -> None:
        """`stalled`: nobody reads the log. `files`: how many it may have open. `sources`: the
        folder of another version's package."""
        self._words, self._sources = words or ("--demo",), sources
        self._stalled, self._files = stalled, files

    def __enter__(self) -> Process:
        self._folder = tempfile.TemporaryDirectory()
        self.log = Path(self._folder.name) / "log.jsonl"
        said = self.said = Path(self._folder.name) / "said.txt"
        command = program("serve", *self._words, "--port", "0")
        with self.log.open("wb") as out, said.open("wb") as err:
            self._child = subprocess.Popen(
                command,
                stdout=subprocess.PIPE if self._stalled else out,
                stderr=err,
                env=environment(self._sources),
                preexec_fn=self._limit,
            )
        end = time.monotonic() + _START_SECONDS
        while not (found := re.search(r"serving on (http://\S+),", said.read_text())):
            self._check(said, end)
        self.url, self.pid = found[1], self._child.pid
        while httpx.get(f"{self.url}/readyz").status_code != 200:
            self._check(said, end)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._child.kill()
        self._child.wait()
        self._folder.cleanup()

    def _limit(self) -> None:
        if self._files:
            resource.setrlimit(resource.RLIMIT_NOFILE, (self._files, self._files))

    def signal(self) -> None:
        """SIGTERM, without waiting for its effect."""
        self._child.send_signal(signal.SIGTERM)

    def terminate(self) -> int:
        """SIGTERM; the exit code."""
        self.signal()
        return self.wait()

    def wait(self) -> int:
        """The exit code, once it has ended by itself."""
        return self._child.wait(_END_SECONDS)

    def lines(self) -> list[dict[str, Any]]:
        """The log so far."""
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def _check(self, said: Path, end: float) -> None:
        if self._child.poll() is not None or time.monotonic() > end:
            raise RuntimeError(f"the service did not start; it said:\n{said.read_text()}")
        time.sleep(0.1)


@dataclass
class Traffic:
    """What clients saw: milliseconds of each answer, and to the `first` text of a streamed one, how
    many had which status, `broken` connections, answers that a deadline cut short, and `tokens` of
    texts."""

    clients: int
    seconds: float = 0.0
    milliseconds: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    broken: int = 0
    partial: int = 0
    first: list[float] = field(default_factory=list)
    tokens: int = 0

    def add(self, other: Traffic) -> None:
        """Count another round's as well."""
        self.seconds += other.seconds
        self.milliseconds += other.milliseconds
        self.first += other.first
        self.statuses += other.statuses
        self.broken += other.broken
        self.tokens += other.tokens


def asked(users: int, k: int) -> list[dict[str, Any]]:
    """Requests for the embedded shop's readers, whose last book is to be predicted."""
    return [{"history": h.items.tolist(), "k": k} for h in histories(readings(users), "test")]


Ask = Callable[[httpx.AsyncClient, Any, float, Traffic], Awaitable[None]]


async def pump(
    client: httpx.AsyncClient, bodies: list[Any], end: float, most: int, traffic: Traffic, ask: Ask
) -> None:
    """One client: a request, its answer, the next one."""
    for i in range(most):
        if time.perf_counter() >= end:
            return
        start = time.perf_counter()
        try:
            await ask(client, bodies[i % len(bodies)], start, traffic)
        except httpx.HTTPError:
            traffic.broken += 1
            await asyncio.sleep(0.01)
            continue
        traffic.milliseconds.append(1e3 * (time.perf_counter() - start))


async def items(client: httpx.AsyncClient, body: Any, start: float, traffic: Traffic) -> None:
    """Ask for recommendations."""
    answer = await client.post("/v1/recommend", json=body)
    traffic.statuses[answer.status_code] += 1
    traffic.partial += answer.status_code == 200 and answer.json()["partial"]


async def text(client: httpx.AsyncClient, body: Any, start: float, traffic: Traffic) -> None:
    """Ask for a text (`/v1/completions`), streamed where the body says so."""
    async with client.stream("POST", "/v1/completions", json=body) as answer:
        traffic.statuses[answer.status_code] += 1
        if answer.status_code != 200 or not body["stream"]:
            whole = json.loads(await answer.aread())
            traffic.tokens += whole.get("usage", {}).get("completion_tokens", 0)
            return
        waiting = True
        async for line in answer.aiter_lines():
            if not line.startswith("data: {"):
                continue
            event = json.loads(line.removeprefix("data: "))
            if waiting and any(choice["text"] for choice in event.get("choices", ())):
                traffic.first.append(1e3 * (time.perf_counter() - start))
                waiting = False
            traffic.tokens += (event.get("usage") or {}).get("completion_tokens", 0)
