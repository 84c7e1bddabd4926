"""Files that are odd, half written or under two hands, and what service, dashboard and pools make
of them. Each fault: figures and `ok`."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow.parquet as pq
from jobs import command, program, start, write_records
from load_client import Process, memory_mib

from draftrec.data.files.writers import replace_file
from draftrec.demo.shop import demo_model_path, shipped_path
from draftrec.models.loading import load_tokenizer, tokenizer_fingerprint
from draftrec.pool.store import Pool

_GENERATE = {"target": {"model": str(demo_model_path()), "device": "cpu", "dtype": "float32"}}
_TEXT = {"records": [{"entity_id": "x", "prompt": "hello reader"}]}
_SHORT = {**_TEXT, "deadline_ms": 50}
_LINES, _PAGES, _ASKED, _LOOKS, _COPIES = 1_000_000, 8, 20, 9, 40


def overwritten_pool(bodies: list[Any]) -> dict[str, Any]:
    """Texts outlive the pool that they draft from, and are the same without it; addresses that
    clients invent are not believed meanwhile."""
    with tempfile.TemporaryDirectory() as folder:
        pool = write_pool(Path(folder) / "pool")
        settings = {
            "knowledge": {"generate": _GENERATE, "pool": str(pool)},
            "rate": {"per_second": 2, "burst": 5},
        }
        with Process("--config", str(write_settings(folder, settings))) as served:
            before = httpx.post(f"{served.url}/v1/knowledge", json=_TEXT, timeout=60).json()
            invented = [{"x-forwarded-for": f"10.0.0.{i}"} for i in range(40)]
            statuses = [
                httpx.get(f"{served.url}/v1/models", headers=one).status_code for one in invented
            ]
            time.sleep(3)
            (pool / "all.safetensors").write_bytes(b"")
            time.sleep(0.1)
            after = httpx.post(f"{served.url}/v1/knowledge", json=_TEXT, timeout=60).json()
            kinds = [line.get("kind") for line in served.lines()]
            code = served.terminate()
    refused = statuses.count(429)
    return {
        "invented_addresses_refused": refused,
        "same_text": before == after and "texts" in after,
        "noticed": "PoolOverwrittenError" in kinds,
        "exit_code": code,
        "ok": refused > 20 and before == after and "texts" in after and code == 0,
    }


def reload_of_which_half_fails(bodies: list[Any]) -> dict[str, Any]:
    """A new catalogue beside a broken pool: neither goes live, and both do once the pool is
    mended."""
    shipped = shipped_path()
    table = pq.read_table(shipped / "sids.parquet")
    gone = table["item"][-1].as_py()
    with tempfile.TemporaryDirectory() as folder:
        pool, sids = write_pool(Path(folder) / "pool"), Path(folder) / "sids.parquet"
        shutil.copy(shipped / "sids.parquet", sids)
        recommend = {"target": str(shipped / "target"), "sids": str(sids), "device": "cpu"}
        knowledge = {"generate": _GENERATE, "pool": str(pool)}
        settings = write_settings(folder, {"recommend": recommend, "knowledge": knowledge})
        with Process("--config", str(settings)) as served:

            def asked() -> int:
                body = {"history": [gone], "k": 5}
                return httpx.post(f"{served.url}/v1/recommend", json=body, timeout=60).status_code

            whole = (pool / "manifest.json").read_bytes()
            statuses = [asked()]
            pq.write_table(table.slice(0, len(table) - 1), sids)
            replace_file(pool / "manifest.json", whole[: len(whole) // 2])
            statuses.append(reload_and(served, "failed", asked))
            replace_file(pool / "manifest.json", whole)
            statuses.append(reload_and(served, "ok", asked))
            code = served.terminate()
    when = "before", "half_failed", "reloaded"
    return {
        "an_item_that_goes": dict(zip(when, statuses, strict=True)),
        "exit_code": code,
        "ok": statuses == [200, 200, 422] and code == 0,
    }


def odd_runs(bodies: list[Any]) -> dict[str, Any]:
    """Lines and manifests that are no figures hide none but themselves, with a note each."""
    line = '{"kind": "steps", "seconds": %s}\n'
    odd = {
        "null": ("metrics.jsonl", line % "null"),
        "nan": ("metrics.jsonl", line % "NaN"),
        "text": ("metrics.jsonl", line % '"soon"'),
        "deep": ("metrics.jsonl", '{"a":' * 100_000 + "\n"),
        "cut": ("manifest.json", '{"format": "draftrec-run", "sha'),
    }
    with tempfile.TemporaryDirectory() as folder:
        good = write_run(Path(folder) / "good")
        for name, (file, text) in odd.items():
            shutil.copytree(good, Path(folder) / name)
            (Path(folder) / name / file).write_text(text)
        settings = {"knowledge": {"generate": _GENERATE}, "runs": [folder]}
        with Process("--config", str(write_settings(folder, settings))) as served:
            data = httpx.get(f"{served.url}/dashboard/data.json", timeout=60).json()
            code = served.terminate()
    shown = {run["name"] for run in data["runs"]}
    return {
        "runs": len(odd) + 1,
        "shown": len(shown),
        "notes": len(data["notes"]),
        "ok": shown == {"good", *odd} - {"cut"} and len(data["notes"]) == len(odd) and code == 0,
    }


def pages_over_a_long_run(bodies: list[Any]) -> dict[str, Any]:
    """Eight open pages over a run with a million lines of metrics: who asks for a short text waits
    for other texts only, and the run is read once for all pages."""
    with tempfile.TemporaryDirectory() as folder:
        run = write_run(Path(folder) / "long")
        first = (run / "metrics.jsonl").read_bytes().splitlines(keepends=True)[0]
        with (run / "metrics.jsonl").open("ab") as file:
            for _ in range(_LINES // 1000):
                file.write(first * 1000)
        size = (run / "metrics.jsonl").stat().st_size
        settings = {"knowledge": {"generate": _GENERATE}, "runs": [folder]}
        with Process("--config", str(write_settings(folder, settings))) as served:
            before = memory_mib(served.pid)
            alone, during, looks = asyncio.run(_beside_pages(served.url))
            after = memory_mib(served.pid)
            again = statistics.median(later_looks(served.url))
            code = served.terminate()
    return {
        "pages": _PAGES,
        "lines": _LINES,
        "bytes": size,
        "first_look_seconds": round(max(looks), 2),
        "later_look_ms": round(1e3 * again, 2),
        "memory_mib": {"before": before, "after": after},
        "text_ms_before": round(1e3 * alone, 2),
        "text_ms_during": round(1e3 * during, 2),
        "ok": during < max(looks) and again < max(looks) and code == 0,
    }


def later_looks(url: str) -> list[float]:
    """Seconds of looks at the page's data so far apart that each reads the folders again. One
    client for all: its certificates take longer to load than the answer does."""
    seconds: list[float] = []
    with httpx.Client(base_url=url, timeout=60) as client:
        client.get("/healthz").raise_for_status()
        for _ in range(_LOOKS):
            time.sleep(1.1)
            start = time.perf_counter()
            client.get("/dashboard/data.json").raise_for_status()
            seconds.append(time.perf_counter() - start)
    return seconds


async def _beside_pages(url: str) -> tuple[float, float, list[float]]:
    """Seconds of a short text by itself and while pages open, medians; of each page's first
    look."""
    async with httpx.AsyncClient(base_url=url, timeout=600) as client:

        async def short() -> float:
            start = time.perf_counter()
            (await client.post("/v1/knowledge", json=_SHORT)).raise_for_status()
            return time.perf_counter() - start

        async def page() -> float:
            start = time.perf_counter()
            async with client.stream("GET", "/dashboard/events") as events:
                async for line in events.aiter_lines():
                    if line.startswith("data:"):
                        break
            return time.perf_counter() - start

        alone = [await short() for _ in range(_ASKED)]
        pages = [asyncio.create_task(page()) for _ in range(_PAGES)]
        during = [await short() for _ in range(_ASKED)]
        return statistics.median(alone), statistics.median(during), await asyncio.gather(*pages)


def two_additions_to_a_pool(bodies: list[Any]) -> dict[str, Any]:
    """Two `pool add` at once: what says that it added has added, the other one says that it did
    not."""
    with tempfile.TemporaryDirectory() as folder:
        pool, model = write_pool(Path(folder) / "pool"), str(demo_model_path())
        children: list[subprocess.Popen[bytes]] = []
        for part in range(2):
            texts = Path(folder) / f"texts-{part}.jsonl"
            rows = [
                {"entity_id": f"{part}-{i}", "text": f"a story {i} of {part}"} for i in range(3000)
            ]
            texts.write_text("".join(json.dumps(row) + "\n" for row in rows))
            words = ["pool", "add", str(pool), str(texts), "--tokenizer", model]
            children.append(start(program(*words), Path(folder) / "log"))
        codes = sorted(child.wait(300) for child in children)
        held = len(Pool.load(pool, tokenizer_fingerprint(load_tokenizer(model))))
    return {
        "exit_codes": codes,
        "texts": held,
        "ok": codes in ([0, 0], [0, 2]) and held == _COPIES + 3000 * codes.count(0),
    }


def write_pool(folder: Path) -> Path:
    """A pool of one text, `_COPIES` times."""
    tokenizer = load_tokenizer(str(demo_model_path()))
    made = Pool(tokenizer_fingerprint(tokenizer))
    ids = np.array(tokenizer("This reader likes stories of ships.").input_ids, np.int32)
    made.add([(ids, None)] * _COPIES)
    made.save(folder)
    return folder


def write_run(folder: Path) -> Path:
    """A finished run of two short texts."""
    with tempfile.TemporaryDirectory() as scratch:
        records = write_records(Path(scratch) / "records.jsonl", 2)
        job = command(records, demo_model_path(), folder, {"max-new-tokens": 16})
        start(job, Path(scratch) / "log").wait(300)
    return folder


def write_settings(folder: str, settings: dict[str, Any]) -> Path:
    """JSON, which is YAML."""
    path = Path(folder) / "serve.yaml"
    path.write_text(json.dumps(settings))
    return path


def reload_and(served: Process, result: str, then: Callable[[], int]) -> int:
    """SIGHUP; once a reload has ended so, what `then` gives."""
    os.kill(served.pid, signal.SIGHUP)
    line = f'draftrec_reloads_total{{result="{result}"}} 1.0'
    for _ in range(600):
        if line in httpx.get(f"{served.url}/metrics", timeout=60).text:
            return then()
        time.sleep(0.1)
    raise RuntimeError(f"no reload ended with {result}")


#: Each has a service of its own, or none.
FILES = (
    overwritten_pool,
    reload_of_which_half_fails,
    odd_runs,
    pages_over_a_long_run,
    two_additions_to_a_pool,
)
