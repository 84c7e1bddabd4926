"""Services over toy models, and a client for them."""

from __future__ import annotations

import hashlib
import io
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from starlette.testclient import TestClient

from draftrec.config import BatchConfig, DraftConfig, GenerateConfig, ModelConfig, RecommendConfig
from draftrec.demo.shop import demo_model_path
from draftrec.serve.http.app import create_app
from draftrec.serve.logs import RequestLog
from draftrec.serve.service import Service, ServiceSources, sources_of
from draftrec.serve.settings import KnowledgeSettings, RecommendSettings, ServeSettings
from tests.jobs.recommend.worlds import World

KEY, ADMIN = "a-key-for-tests", "another-key"
KEYS = [
    {"name": "shop", "sha256": hashlib.sha256(KEY.encode()).hexdigest()},
    {"name": "admin", "sha256": hashlib.sha256(ADMIN.encode()).hexdigest(), "admin": True},
]
#: Nothing is measured, so that services start at once.
FIXED = RecommendConfig(k=5, draft_beams=8, draft_steps=2, batch_size=4)


def recommend_settings(
    world: World, draft: str = "model", item_model: Path | None = None, **changes: Any
) -> RecommendSettings:
    config = FIXED.model_copy(update=changes)
    folder = str(world.draft) if draft == "model" else draft
    return RecommendSettings(
        target=world.target,
        sids=world.sids,
        sequences=str(world.sequences),
        draft=folder,
        item_model=item_model,
        settings=config,
    )


def knowledge_settings(pool: Path | None = None, new_tokens: int = 40) -> KnowledgeSettings:
    generate = GenerateConfig(
        target=ModelConfig(model=str(demo_model_path()), device="cpu", dtype="float32"),
        draft=DraftConfig(budget=6),
        batch=BatchConfig(batch_size=3, max_new_tokens=new_tokens),
    )
    return KnowledgeSettings(generate=generate, pool=pool)


def settings(
    recommend: RecommendSettings | None = None,
    knowledge: KnowledgeSettings | None = None,
    **more: Any,
) -> ServeSettings:
    values = {"recommend": recommend, "knowledge": knowledge, "threads": 1, **more}
    return ServeSettings.model_validate(values)


class Running:
    """A service with its client and its log."""

    def __init__(self, service: Service, client: TestClient, log: io.StringIO) -> None:
        self.service, self.client, self._log = service, client, log

    @property
    def log(self) -> list[dict[str, Any]]:
        assert self.service.log.flush()
        return [json.loads(line) for line in self._log.getvalue().splitlines()]

    def recommend(self, history: list[int], **more: Any) -> Any:
        return self.client.post("/v1/recommend", json={"history": history, **more})

    def knowledge(self, *prompts: str, **more: Any) -> Any:
        records = [{"entity_id": f"e{i}", "prompt": p} for i, p in enumerate(prompts)]
        return self.client.post("/v1/knowledge", json={"records": records, **more})


@contextmanager
def running(settings: ServeSettings, sources: ServiceSources | None = None) -> Iterator[Running]:
    """Started, and ready to answer."""
    stream = io.StringIO()
    log = RequestLog(stream, contents=settings.log_contents)
    service = Service(settings, sources or sources_of(settings), log)
    with TestClient(create_app(service)) as client:
        for thread in service.threads:
            assert thread.ready.wait(60), thread.broken
        yield Running(service, client, stream)


def error_of(response: Any, status: int, code: str) -> str:
    """The sentence of an error, after a look at the rest of it."""
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert error.keys() == {"code", "message"}
    assert error["code"] == code
    assert "\n" not in error["message"]
    return error["message"]


@contextmanager
def slow_passes(work: Any, seconds: float = 0.05) -> Iterator[Any]:
    """A service's users or texts under way (`work`), every pass so much longer."""
    real = work.turn

    def slow() -> Any:
        time.sleep(seconds)
        return real()

    work.turn = slow
    try:
        yield work
    finally:
        work.turn = real


def held(service: Service) -> threading.Event:
    """Makes the passes of recommendations wait for the event that is returned, and fail if nobody
    sets it."""
    event, work = threading.Event(), service.recommending
    real = type(work).turn

    def turn() -> Any:
        assert event.wait(60), "the pass was waited for"
        return real(work)  # type: ignore[arg-type]

    work.turn = turn  # type: ignore[union-attr, method-assign]
    return event


def counted(found: Any) -> dict[str, float]:
    """What `found.service` has counted so far, by name, where that is anything."""
    samples = [s for metric in found.service.metrics.registry.collect() for s in metric.samples]
    return {
        s.name.removeprefix("draftrec_"): s.value
        for s in samples
        if s.name.startswith("draftrec_") and s.name.endswith(("_total", "_count")) and s.value
    }
