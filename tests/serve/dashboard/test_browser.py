"""The dashboard in a real browser: charts drawn, filters, live data, narrow and dark."""

from __future__ import annotations

import json
import shutil
import socket
import threading
import time
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
from tests.serve.run_folders import GROUPS, RunWriter, write_pool

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
_CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
pytestmark = pytest.mark.skipif(_CHROMIUM is None, reason="no chromium is installed")

#: Whether a chart's canvas shows anything.
_INKED = """host => {
  const canvas = document.querySelector(`${host} canvas`);
  if (!canvas) return false;
  const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
  const colours = new Set();
  for (let i = 0; i < data.length; i += 4) {
    if (data[i + 3] > 200) colours.add(`${data[i]},${data[i + 1]},${data[i + 2]}`);
  }
  return colours.size > 3;
}"""
#: Contrast (WCAG 2) of pairs of the style sheet's colours.
_CONTRASTS = """pairs => {
  const style = getComputedStyle(document.documentElement);
  const light = (name) => {
    const hex = style.getPropertyValue(name).trim().slice(1);
    const parts = [0, 2, 4].map((i) => parseInt(hex.slice(i, i + 2), 16) / 255)
      .map((c) => (c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2];
  };
  return pairs.map(([a, b]) => {
    const [dark, bright] = [light(a), light(b)].sort((x, y) => x - y);
    return (bright + 0.05) / (dark + 0.05);
  });
}"""


@contextmanager
def served(folder: Path, port: int = 0, metrics: ServiceMetrics | None = None) -> Iterator[str]:
    """The dashboard over a folder, on a port of the loopback; its address."""
    listening = socket.create_server(("127.0.0.1", port))
    stop = threading.Event()
    app = dashboard.application(RunSources([folder]), stop.is_set)
    if metrics is not None:
        app.router.routes.clear()
        app.include_router(dashboard.router(RunSources([folder]), metrics, stop.is_set))
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


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=_CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """Opens the dashboard and waits for its data; whatever the console complains of fails."""
    monkeypatch.setattr(dashboard, "FRESH_SECONDS", 0.1)
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


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    pool = write_pool(folder / "pool")
    RunWriter(folder / "plain", draft="none", seconds=0.04).finish()
    RunWriter(folder / "strict", pool=pool).finish()
    RunWriter(folder / "relaxed", pool=pool, accept="relaxed", seconds=0.0195).finish()
    ranking = {"users": 1000, "recall@10": 0.1234, "ndcg@10": 0.05}
    (folder / "evaluate.json").write_text(json.dumps(ranking))
    return folder


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_finished_run_is_complete(open_page: Any, finished: Path, scheme: str) -> None:
    with served(finished) as address:
        page = open_page(address, scheme=scheme)
        for host in ("#speed-chart", "#lengths-chart"):
            assert page.evaluate(_INKED, host), host
            assert page.get_attribute(host, "aria-label")
        tile = page.locator(".tile", has_text="strict")
        assert "2.00 times plain" in tile.inner_text()
        assert "24 of 24 records" in tile.inner_text()
        assert "Relaxed acceptance gains nothing here" in page.inner_text("#advice")
        assert "0.1234" in page.inner_text("#quality")
        assert page.locator("#sources-bars [role=img]").count() == 2
        pairs = [(ink, ground) for ink in ("--ink", "--soft") for ground in ("--card", "--page")]
        pairs += [(f"--{name}", f"--{name}-fill") for name in ("good", "act", "hint")]
        assert min(page.evaluate(_CONTRASTS, pairs)) >= 4.5
        tones = [(f"--c{i}", "--card") for i in range(8)]
        assert min(page.evaluate(_CONTRASTS, tones)) >= 3.0  # lines and bars, not text


def test_filters_and_settings_of_the_page(open_page: Any, finished: Path) -> None:
    with served(finished) as address:
        page = open_page(address)
        assert page.locator("#tiles .tile").count() == 3
        page.get_by_label("plain", exact=True).uncheck()
        assert page.locator("#tiles .tile").count() == 2
        assert "plain" not in page.inner_text("#speed-legend")
        page.get_by_label("Show", exact=True).select_option(label="acceptance rate")
        assert page.inner_text("#speed-caption").startswith("Acceptance rate")
        page.get_by_label("Run", exact=True).select_option(label="strict")
        rows = page.locator("#groups-table tbody tr")
        assert rows.count() == 1 + len(GROUPS)
        page.get_by_label("Group", exact=True).fill("NIGHT")
        assert rows.all_inner_texts()[0].startswith("night readers")
        assert rows.count() == 1
        page.get_by_label("Group", exact=True).fill("")
        page.get_by_role("button", name="group", exact=True).click()
        assert [row.split("\t")[0] for row in rows.all_inner_texts()[1:]] == list(GROUPS)
        assert page.locator("#groups-table th[aria-sort=ascending]").inner_text() == "group ↑"
        page.get_by_label("Price per hour").fill("3600")
        saved = page.locator("#cost-table tr", has_text="strict").inner_text().split("\t")
        assert saved[5] == "0.4800"  # 24 texts, 0.02 s saved on each, at 1 per second
        page.reload()
        page.wait_for_selector("html[data-version]")
        assert page.get_by_label("Price per hour").input_value() == "3600"


def test_the_keyboard_is_enough(open_page: Any, finished: Path) -> None:
    with served(finished) as address:
        page = open_page(address)
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == "Skip to the runs"
        page.locator("#chips input").first.focus()
        page.keyboard.press("Space")
        assert page.locator("#tiles .tile").count() == 2
        page.locator("#groups-table button").first.focus()
        page.keyboard.press("Enter")
        assert page.evaluate("document.activeElement.dataset.key") == "name"  # focus is kept
        page.locator("#speed details summary").focus()
        page.keyboard.press("Enter")
        assert page.locator("#speed-table tbody tr").count() == 12


def test_a_running_run_goes_on_by_itself(open_page: Any, tmp_path: Path) -> None:
    writer = RunWriter(tmp_path / "run", records=40)
    writer.shard()
    seen = threading.Event()

    def write() -> None:
        for _ in range(2):
            time.sleep(0.3)
            writer.shard()
        with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
            file.write('{"kind": "steps", "torn')
        seen.wait(20)
        writer.finish()

    with served(tmp_path) as address:
        page = open_page(address)
        assert "8 of 40 records" in page.inner_text(".tile")
        assert page.inner_text(".tile .badge") == "running"
        page.get_by_label("Show", exact=True).focus()
        thread = threading.Thread(target=write)
        thread.start()
        sync_api.expect(page.locator(".tile")).to_contain_text("24 of 40")
        seen.set()
        sync_api.expect(page.locator(".tile .badge")).to_have_text("finished")
        thread.join()
        assert "40 of 40 records" in page.inner_text(".tile")
        assert page.evaluate("document.activeElement.id") == "measure"
        assert page.evaluate(_INKED, "#speed-chart")


def test_a_lost_connection_comes_back(open_page: Any, tmp_path: Path) -> None:
    writer = RunWriter(tmp_path / "run", records=40)
    with served(tmp_path) as address:
        page = open_page(address)
        sync_api.expect(page.locator("#connection")).to_have_text("live")
    sync_api.expect(page.locator("#connection")).to_contain_text("lost")
    writer.shard()
    with served(tmp_path, int(address.rpartition(":")[2])):
        sync_api.expect(page.locator("#connection")).to_have_text("live")
        sync_api.expect(page.locator(".tile")).to_contain_text("8 of 40")
    complaints = open_page.complaints
    assert all("ERR_" in words for words in complaints)  # the browser's own words for a lost one
    complaints.clear()


def test_a_phone_needs_no_horizontal_scrolling(open_page: Any, finished: Path) -> None:
    with served(finished) as address:
        page = open_page(address, width=390, has_touch=True, is_mobile=True)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        assert page.evaluate(_INKED, "#speed-chart")


def test_the_switch_of_colours_is_remembered(open_page: Any, finished: Path) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    with served(finished) as address:
        page = open_page(address, reduced_motion="reduce")
        light = page.evaluate(ground)
        page.get_by_label("Colours").select_option("dark")
        dark = page.evaluate(ground)
        assert dark != light
        assert page.evaluate(_INKED, "#speed-chart")
        page.reload()
        page.wait_for_selector("html[data-version]")
        assert page.evaluate(ground) == dark


def test_names_are_text_and_nothing_else(open_page: Any, tmp_path: Path) -> None:
    name = "<img src=x onerror=document.title='hit'>"
    RunWriter(tmp_path / name).finish()
    with served(tmp_path) as address:
        page = open_page(address)
        assert name in page.inner_text(".tile .name")
        assert page.locator("main img").count() == 0
        assert page.title() == "draftrec dashboard"


def test_a_service_is_shown_as_well(open_page: Any, tmp_path: Path) -> None:
    metrics = ServiceMetrics()
    metrics.observe_request("/v1/recommend", 200, 0.02)
    with served(tmp_path, metrics=metrics) as address:
        page = open_page(address)
        page.wait_for_selector("#service-answers canvas")
        metrics.observe_request("/v1/recommend", 200, 0.02)
        cells = page.locator("#service-routes tbody td")
        sync_api.expect(cells.first).to_have_text("2")
        assert page.evaluate(_INKED, "#service-answers")
        assert not page.locator("#empty").is_visible()


def test_without_runs_the_page_says_what_it_waits_for(open_page: Any, tmp_path: Path) -> None:
    with served(tmp_path) as address:
        page = open_page(address)
        assert page.locator("#empty").is_visible()
        RunWriter(tmp_path / "run")
        sync_api.expect(page.locator(".tile")).to_contain_text("0 of 24 records")
        assert not page.locator("#empty").is_visible()
