"""Clients that misbehave, and what the service has to make of it. Each fault: figures and `ok`."""

from __future__ import annotations

import asyncio
import json
import resource
import socket
import time
from collections import Counter
from contextlib import ExitStack
from typing import Any
from urllib.parse import urlsplit

import httpx
from load_client import Process

_JSON = {"content-type": "application/json"}


def slow_client(served: Process, bodies: list[Any]) -> dict[str, Any]:
    """Announces a body, sends half of it and waits; others are answered meanwhile."""
    with _connection(served) as link:
        link.sendall(_head(100) + b'{"history": [')
        start = time.perf_counter()
        others = [_post(served, body).status_code for body in bodies[:20]]
        meanwhile = time.perf_counter() - start
        answer = link.recv(4096).decode()
        waited = time.perf_counter() - start
    status = int(answer.split()[1]) if answer else None
    return {
        "status": status,
        "after_seconds": round(waited, 2),
        "others_answered": others.count(200),
        "others_seconds": round(meanwhile, 2),
        "ok": status == 408 and others.count(200) == 20 and meanwhile < waited,
    }


def disconnect(served: Process, bodies: list[Any]) -> dict[str, Any]:
    """Many ask for texts and hang up; their texts leave the batch long before they are done."""
    body = {"records": [{"entity_id": "x", "prompt": "hello reader"}] * 16}
    raw = json.dumps(body).encode()
    for _ in range(8):
        with _connection(served) as link:
            link.sendall(_head(len(raw), "/v1/knowledge") + raw)
            time.sleep(0.05)
    end = time.perf_counter() + 10
    while _running(served) and time.perf_counter() < end:
        time.sleep(0.1)
    gone = sum(line.get("status") == 499 for line in served.lines())
    left = _running(served)
    return {"hung_up": 8, "noticed": gone, "still_running": left, "ok": gone == 8 and not left}


def body_of_10_mb(served: Process, bodies: list[Any]) -> dict[str, Any]:
    """Refused before it is read, whether its length is announced or not."""
    large = b" " * 10_000_000
    announced = httpx.post(
        f"{served.url}/v1/recommend", content=large, headers=_JSON, timeout=60
    ).status_code
    pieces = (large[i : i + 100_000] for i in range(0, len(large), 100_000))
    chunked = httpx.post(
        f"{served.url}/v1/recommend", content=pieces, headers=_JSON, timeout=60
    ).status_code
    return {
        "announced": announced,
        "chunked": chunked,
        "ok": (announced, chunked) == (413, 413),
    }


def malformed_json(served: Process, bodies: list[Any]) -> dict[str, Any]:
    """No JSON, half of it, other types: 400 or 422, as JSON."""
    texts = (
        b"",
        b"{",
        b"[[[[" * 5000,
        b"\xff\xfe\x00",
        b'"text"',
        b"null",
        b'{"history": {}}',
        b'{"history": [1e999]}',
        b'{"history": [NaN]}',
        b'{"history": [' + b"9" * 9000 + b"]}",
    )
    found: Counter[int] = Counter()
    for text in texts:
        answer = httpx.post(f"{served.url}/v1/recommend", content=text, headers=_JSON, timeout=60)
        found[answer.status_code] += "error" in answer.json()
    ok = found.keys() <= {400, 422} and found.total() == len(texts)
    return {"statuses": dict(found), "ok": ok}


def unknown_ids(served: Process, bodies: list[Any]) -> dict[str, Any]:
    """422, naming all of them."""
    answer = _post(served, {"history": [1, 987_654, 987_655]})
    message = answer.json()["error"]["message"]
    return {
        "status": answer.status_code,
        "message": message,
        "ok": answer.status_code == 422 and "987654" in message and "987655" in message,
    }


def deadline_of_1_ms(served: Process, bodies: list[Any]) -> dict[str, Any]:
    """Among 32 clients without deadlines: an answer all the same, and a quick one."""

    async def both() -> tuple[list[float], Counter[str], int]:
        times: list[float] = []
        kinds: Counter[str] = Counter()
        async with (
            httpx.AsyncClient(base_url=served.url, timeout=60) as many,
            httpx.AsyncClient(base_url=served.url, timeout=60) as hurried,
        ):
            others = bodies[:320]
            gate = asyncio.Semaphore(32)

            async def patient(body: Any) -> int:
                async with gate:
                    return (await many.post("/v1/recommend", json=body)).status_code

            crowd = [asyncio.create_task(patient(body)) for body in others]
            for body in bodies[:50]:
                start = time.perf_counter()
                answer = await hurried.post("/v1/recommend", json={**body, "deadline_ms": 1})
                times.append(1e3 * (time.perf_counter() - start))
                told = answer.json()
                if answer.status_code != 200 or len(told["items"]) != body["k"]:
                    kinds["bad"] += 1
                else:
                    kinds["partial" if told["partial"] else "whole"] += 1
            lost = len(others) - (await asyncio.gather(*crowd)).count(200)
        return times, kinds, lost

    times, kinds, lost = asyncio.run(both())
    return {
        "asked": len(times),
        "ms_median": round(sorted(times)[len(times) // 2], 2),
        "ms_max": round(max(times), 2),
        "kinds": dict(kinds),
        "others_lost": lost,
        "ok": not kinds["bad"] and not lost,
    }


def flood(served: Process, bodies: list[Any]) -> dict[str, Any]:
    """More at once than the queue holds: each is answered, or told when to come back."""

    async def all_at_once() -> list[httpx.Response]:
        limits = httpx.Limits(max_connections=900)
        async with httpx.AsyncClient(base_url=served.url, timeout=60, limits=limits) as client:
            one = [client.post("/v1/recommend", json=body) for body in bodies[:900]]
            return list(await asyncio.gather(*one))

    answers = asyncio.run(all_at_once())
    statuses = Counter(a.status_code for a in answers)
    waits = [int(a.headers["retry-after"]) for a in answers if a.status_code == 429]
    return {
        "statuses": dict(statuses),
        "retry_after_most": max(waits, default=0),
        "ok": statuses.keys() <= {200, 429} and statuses[200] > 0,
    }


def refused_long_prompts(served: Process, bodies: list[Any]) -> dict[str, Any]:
    """Eight clients whose prompts of a megabyte are refused; who asks for a short text waits no
    longer than for some of those bodies to be read."""
    long = {"records": [{"entity_id": "x", "prompt": "hello reader " * 75_000}]}
    short = {"records": [{"entity_id": "x", "prompt": "hello reader"}], "deadline_ms": 50}

    async def both() -> tuple[list[float], Counter[int]]:
        times: list[float] = []
        statuses: Counter[int] = Counter()
        over = False
        async with httpx.AsyncClient(base_url=served.url, timeout=60) as client:

            async def refused() -> None:
                while not over:
                    answer = await client.post("/v1/knowledge", json=long)
                    statuses[answer.status_code] += 1

            crowd = [asyncio.create_task(refused()) for _ in range(8)]
            for _ in range(20):
                start = time.perf_counter()
                (await client.post("/v1/knowledge", json=short)).raise_for_status()
                times.append(1e3 * (time.perf_counter() - start))
            over = True
            await asyncio.gather(*crowd)
        return times, statuses

    times, statuses = asyncio.run(both())
    return {
        "statuses": dict(statuses),
        "ms_median": round(sorted(times)[len(times) // 2], 2),
        "ok": statuses.keys() <= {413, 422} and statuses.total() > 8,
    }


FAULTS = (
    refused_long_prompts,
    slow_client,
    disconnect,
    body_of_10_mb,
    malformed_json,
    unknown_ids,
    deadline_of_1_ms,
    flood,
)


def sigterm_in_the_middle(bodies: list[Any]) -> dict[str, Any]:
    """What a service makes of SIGTERM under load."""
    with Process() as served:
        return _sigterm(served, bodies)


def idle_connections(bodies: list[Any]) -> dict[str, Any]:
    """More connections that say nothing than the service may have files: probes are answered, and
    standard error does not fill."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 4096)), hard))
    with Process(files=1024) as served, ExitStack() as idle:
        for _ in range(1015):
            idle.enter_context(_connection(served))
        times: list[float] = []
        for _ in range(20):
            start = time.perf_counter()
            httpx.get(f"{served.url}/healthz", timeout=60).raise_for_status()
            times.append(1e3 * (time.perf_counter() - start))
        said = served.said.stat().st_size
    return {
        "connections": 1015,
        "files": 1024,
        "probe_ms_max": round(max(times), 2),
        "stderr_bytes": said,
        "ok": said < 100_000,
    }


def log_that_nobody_reads(bodies: list[Any]) -> dict[str, Any]:
    """More lines than a pipe and the queue hold: requests, probes and SIGTERM are answered."""
    with Process(stalled=True) as served:

        async def ask() -> Counter[int]:
            async with httpx.AsyncClient(base_url=served.url, timeout=60) as client:
                gate = asyncio.Semaphore(16)

                async def one() -> int:
                    async with gate:
                        return (await client.get("/v1/models")).status_code

                return Counter(await asyncio.gather(*(one() for _ in range(13_000))))

        statuses = asyncio.run(ask())
        healthy = httpx.get(f"{served.url}/healthz", timeout=60).status_code
        text = httpx.get(f"{served.url}/metrics", timeout=60).text
        line = next(x for x in text.splitlines() if x.startswith("draftrec_log_dropped_lines_t"))
        code = served.terminate()
    dropped = int(float(line.split()[1]))
    return {
        "statuses": dict(statuses),
        "healthz": healthy,
        "dropped_lines": dropped,
        "exit_code": code,
        "ok": statuses.keys() == {200} and healthy == 200 and code == 0 and dropped > 0,
    }


#: Those that need a service of their own.
ALONE = (
    idle_connections,
    log_that_nobody_reads,
    sigterm_in_the_middle,
)


def _sigterm(served: Process, bodies: list[Any]) -> dict[str, Any]:
    """Every accepted request is answered, others are refused or find the port closed, exit 0."""
    statuses: Counter[int] = Counter()
    broken: Counter[str] = Counter()

    async def crowd() -> None:
        async with httpx.AsyncClient(base_url=served.url, timeout=60) as client:
            clients = [
                asyncio.create_task(_until_broken(client, bodies[i:], statuses, broken))
                for i in range(32)
            ]
            await asyncio.sleep(2.0)
            served.signal()
            await asyncio.wait(clients, timeout=30)

    asyncio.run(crowd())
    code = served.wait()
    logged = Counter(
        line["status"] for line in served.lines() if line.get("route") == "/v1/recommend"
    )
    return {
        "statuses": dict(statuses),
        "broken": dict(broken),
        "accepted": logged[200],
        "exit_code": code,
        "ok": code == 0 and statuses.keys() <= {200, 503} and logged[200] == statuses[200],
    }


async def _until_broken(
    client: httpx.AsyncClient, bodies: list[Any], statuses: Counter[int], broken: Counter[str]
) -> None:
    """Ask until the connection fails, for the port is closed at last."""
    for body in bodies * 100:
        try:
            answer = await client.post("/v1/recommend", json=body)
        except httpx.HTTPError as error:
            broken[type(error).__name__] += 1
            return
        statuses[answer.status_code] += 1
        if answer.status_code == 503:
            await asyncio.sleep(0.02)


def _post(served: Process, body: Any) -> httpx.Response:
    return httpx.post(f"{served.url}/v1/recommend", json=body, timeout=60)


def _connection(served: Process) -> socket.socket:
    place = urlsplit(served.url)
    return socket.create_connection((place.hostname or "", place.port or 0), timeout=60)


def _head(length: int, path: str = "/v1/recommend") -> bytes:
    lines = (
        f"POST {path} HTTP/1.1",
        "host: localhost",
        "content-type: application/json",
        f"content-length: {length}",
    )
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def _running(served: Process) -> int:
    """Texts that run or wait, as the metrics tell of the last pass; 0 if passes have stopped."""

    def passes() -> str:
        text = httpx.get(f"{served.url}/metrics").text
        return next(x for x in text.splitlines() if x.startswith("draftrec_passes_total"))

    before = passes()
    time.sleep(0.3)
    return int(passes() != before)
