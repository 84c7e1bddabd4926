"""The page as a browser has it."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from draftrec.serve.dashboard import app as dashboard
from draftrec.serve.dashboard import sources as dashboard_sources
from draftrec.serve.dashboard.sources import RunSources
from draftrec.serve.metrics import ServiceMetrics


@contextmanager
def served(folder: Path, port: int = 0, metrics: ServiceMetrics | None = None) -> Iterator[str]:
    """The dashboard over a folder, on a port of the loopback; its address."""
    listening = socket.create_server(("127.0.0.1", port))
    stop = threading.Event()
    app = dashboard.application(RunSources([folder]), stop.is_set)
    if metrics is not None:
        app.router.routes.clear()
        about: dict[str, Any] = {"version": "1.2.3", "uptime": 5.0, "settings": {"port": 1}}
        about["models"] = {"knowledge": "toy-lm"}
        sources = RunSources([folder])
        app.include_router(dashboard.router(sources, metrics, stop.is_set, lambda: about))
    config = uvicorn.Config(app, log_level="error", ws="none", timeout_graceful_shutdown=2)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        stop.set()
        server.should_exit = True
        thread.join(20)
        listening.close()


@pytest.fixture
def open_page(browser: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """Opens the dashboard and waits for its data; whatever the console complains of fails."""
    monkeypatch.setattr(dashboard, "FRESH_SECONDS", 0.1)
    monkeypatch.setattr(dashboard, "POINT_SECONDS", 0.1)
    monkeypatch.setattr(dashboard_sources, "FRESH_SECONDS", 0.1)
    complaints: list[str] = []
    contexts: list[Any] = []

    def opened(address: str, width: int = 1280, scheme: str = "light", **more: Any) -> Any:
        size = {"width": width, "height": 900}
        contexts.append(browser.new_context(viewport=size, color_scheme=scheme, **more))
        page = contexts[-1].new_page()
        page.set_default_timeout(8000)
        page.on("console", lambda m: complaints.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda e: complaints.append(str(e)))
        page.on("request", lambda r: None if address in r.url else complaints.append(r.url))
        page.goto(f"{address}/dashboard")
        page.wait_for_selector("html[data-version]")
        return page

    opened.complaints = complaints  # type: ignore[attr-defined]
    yield opened
    for context in contexts:
        context.close()
    assert complaints == []
