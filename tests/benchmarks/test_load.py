"""What the load generator makes of traffic, and that it counts what goes wrong."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter

import httpx
import load
from load_client import Traffic, asked, items, pump, text


def test_figures_of_known_traffic() -> None:
    traffic = Traffic(4, 2.0, [float(i) for i in range(100, 0, -1)], Counter({200: 98, 429: 2}), 1)
    found = load.figures(traffic)
    assert (found["requests"], found["answered"], found["per_second"]) == (100, 98, 49.0)
    assert (found["ms_p50"], found["ms_p99"], found["ms_max"]) == (51.0, 100.0, 100.0)
    assert found["errors"] == 3
    assert load.figures(Traffic(1, 1.0))["ms_p50"] is None


def test_a_client_asks_until_its_bounds_and_counts_broken_connections() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        if b"13" in request.content:
            raise httpx.ReadError("gone")
        return httpx.Response(200, json={"items": [], "partial": b"7" in request.content})

    async def run(most: int, seconds: float) -> Traffic:
        traffic = Traffic(1)
        transport = httpx.MockTransport(answer)
        async with httpx.AsyncClient(base_url="http://test", transport=transport) as client:
            end = time.perf_counter() + seconds
            bodies = [{"history": [n]} for n in (1, 13, 7)]
            await pump(client, bodies, end, most, traffic, items)
        return traffic

    found = asyncio.run(run(6, 60))
    assert (found.statuses, found.broken, found.partial) == (Counter({200: 4}), 2, 2)
    assert not asyncio.run(run(6, 0)).statuses


def test_streamed_texts_are_timed_to_their_first_word() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        if b"true" not in request.content:
            return httpx.Response(200, json={"usage": {"completion_tokens": 3}})
        events = [
            {"choices": [{"text": ""}]},
            {"choices": [{"text": "a"}]},
            {"choices": [{"text": "b"}]},
            {"choices": [], "usage": {"completion_tokens": 5}},
        ]
        lines = [f"data: {json.dumps(event)}\n\n" for event in events]
        return httpx.Response(200, text="".join([*lines, "data: [DONE]\n\n"]))

    async def run(*, stream: bool) -> Traffic:
        traffic = Traffic(1)
        transport = httpx.MockTransport(answer)
        async with httpx.AsyncClient(base_url="http://test", transport=transport) as client:
            end = time.perf_counter() + 60
            await pump(client, [{"prompt": "x", "stream": stream}], end, 4, traffic, text)
        return traffic

    both = asyncio.run(run(stream=True))
    assert (len(both.first), both.tokens, both.statuses) == (4, 20, Counter({200: 4}))
    assert all(first <= whole for first, whole in zip(both.first, both.milliseconds, strict=True))
    whole = asyncio.run(run(stream=False))
    assert (whole.first, whole.tokens) == ([], 12)
    both.add(whole)
    assert (both.tokens, both.statuses, len(both.milliseconds)) == (32, Counter({200: 8}), 8)


def test_requests_are_of_the_embedded_readers() -> None:
    bodies = asked(5, 7)
    assert len(bodies) == 5
    assert all(b["k"] == 7 and b["history"] for b in bodies)
