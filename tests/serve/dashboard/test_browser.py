"""The dashboard in a real browser: charts drawn, filters, live data, narrow and dark."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from draftrec.serve.metrics import ServiceMetrics
from tests.serve.dashboard.conftest import served
from tests.serve.run_folders import GROUPS, RunWriter, write_pool

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

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


def open_section(page: Any, name: str) -> None:
    page.locator(f"#{name} > details > summary h2").click()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_finished_run_is_complete(open_page: Any, finished: Path, scheme: str) -> None:
    with served(finished) as address:
        page = open_page(address, scheme=scheme)
        open_section(page, "retrieval")
        for host in ("#speed-chart", "#lengths-chart"):
            assert page.evaluate(_INKED, host), host
            assert page.get_attribute(host, "aria-label")
        tile = page.locator(".tile", has_text="strict")
        assert "2.00 times plain" in tile.inner_text()
        assert "24 of 24 records" in tile.inner_text()
        assert "Relaxed acceptance gains nothing here" in page.inner_text("#advice")
        assert "0.1234" in page.inner_text("#quality")
        assert page.locator("#sources-bars [role=img]").count() == 2
        assert page.inner_text("#sources-legend").split("\n") == [
            "group pool", "pool of all", "the model itself",
        ]  # fmt: skip
        pairs = [(ink, ground) for ink in ("--ink", "--soft") for ground in ("--card", "--page")]
        pairs += [(f"--{name}", f"--{name}-fill") for name in ("good", "act", "hint")]
        assert min(page.evaluate(_CONTRASTS, pairs)) >= 4.5
        tones = [(f"--c{i}", "--card") for i in range(8)]
        assert min(page.evaluate(_CONTRASTS, tones)) >= 3.0  # lines and bars, not text
        hint = "getComputedStyle(document.querySelector('#find'), '::placeholder').color"
        note = "getComputedStyle(document.querySelector('#run-note')).color"
        assert page.evaluate(hint) == page.evaluate(note)  # --soft, of those above


def test_filters_and_settings_of_the_page(open_page: Any, finished: Path) -> None:
    with served(finished) as address:
        page = open_page(address)
        assert page.locator("#tiles .tile").count() == 3
        open_section(page, "groups")
        open_section(page, "cost")
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
        page.locator("#run-table input").first.focus()
        page.keyboard.press("Space")
        assert page.locator("#tiles .tile").count() == 2
        page.locator("#groups summary").first.focus()
        page.keyboard.press("Enter")
        page.locator("#groups-table button").first.focus()
        page.keyboard.press("Enter")
        assert page.evaluate("document.activeElement.dataset.key") == "name"  # focus is kept
        page.locator("#speed-chart").focus()
        page.keyboard.press("+")
        assert "from=" in page.url
        page.keyboard.press("0")
        assert "from=" not in page.url
        page.locator("#speed details details summary").focus()
        page.keyboard.press("Enter")
        assert page.locator("#speed-table tbody tr").count() == 12 + 1


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
        page.reload()  # the server has kept what was before
        page.wait_for_selector("#service-answers canvas")
        assert "1.2.3, knowledge: toy-lm, up for" in page.inner_text("#service-about")
        assert "/v1/recommend, median" in page.inner_text("#service-latency-legend")
        assert not page.locator("#empty").is_visible()


def test_without_runs_the_page_says_what_it_waits_for(open_page: Any, tmp_path: Path) -> None:
    with served(tmp_path) as address:
        page = open_page(address)
        assert page.locator("#empty").is_visible()
        RunWriter(tmp_path / "run")
        sync_api.expect(page.locator(".tile")).to_contain_text("0 of 24 records")
        assert not page.locator("#empty").is_visible()


def test_a_table_of_many_runs_is_sorted_searched_and_linked_to(
    open_page: Any, tmp_path: Path
) -> None:
    for number in range(20):
        accept = "relaxed" if number % 2 else "strict"
        seconds = 0.01 + 0.001 * number
        RunWriter(
            tmp_path / f"run-{number:02d}", accept=accept, seconds=seconds, records=8
        ).finish()
    with served(tmp_path) as address:
        page = open_page(address)
        rows = page.locator("#run-table tbody tr")
        assert rows.count() == 20
        assert page.locator("#tiles .tile").count() == 7  # more than the eye can tell apart
        heads = page.locator("#run-table thead th").all_inner_texts()
        assert "accept" in heads  # runs differ in it
        assert "temperature" not in heads  # but not in this
        assert "cut off" not in heads  # nothing to say
        assert "temperature 0" in page.inner_text("#run-note")
        page.get_by_role("button", name="tokens/s").click()
        assert rows.first.locator("th").inner_text() == "run-00"
        page.get_by_label("Find").fill("constructor=1")  # no column, though every object has one
        assert rows.count() == 0
        page.get_by_label("Find").fill("accept=relaxed speed<2500")
        assert rows.count() == 11 - 4
        page.get_by_role("button", name="Show none").click()
        assert page.locator("#tiles .tile").count() == 0
        rows.nth(1).get_by_role("checkbox").check()
        name = rows.nth(1).locator("th").inner_text()
        open_section(page, "settings")
        page.get_by_label("against").select_option("tokens written")
        link = page.url
        other = open_page(address)
        other.goto("about:blank")
        other.goto(link)
        other.wait_for_selector("html[data-version]")
        assert other.locator("#tiles .tile").count() == 1
        assert name in other.inner_text("#tiles")
        assert other.locator("#run-table tbody tr").count() == rows.count()
        assert other.locator("#settings-table").is_visible()
        assert "against the tokens" in other.inner_text("#speed-caption")


def test_two_runs_side_by_side_show_what_differs_and_their_texts(
    open_page: Any, tmp_path: Path
) -> None:
    words = "Sea <b>tales</b> and more sea tales"
    pieces = (("model", 4), ("all", 12), ("prompt", len(words) - 16))
    RunWriter(tmp_path / "one", text=words, pieces=pieces).finish()
    RunWriter(tmp_path / "other", text=words[:-1], accept="relaxed").finish()
    with served(tmp_path) as address:
        page = open_page(address)
        page.get_by_label("One", exact=True).select_option("one")
        page.get_by_label("Other", exact=True).select_option("other")
        article = page.locator("#texts article").first
        article.get_by_text("texts differ").wait_for()
        written = article.locator(".written")
        assert written.all_inner_texts() == [words, words[:-1]]
        assert written.first.locator("mark").all_inner_texts() == [words[4:16], words[16:]]
        assert written.last.locator("mark").count() == 0  # nobody noted it there
        assert "pool of all" in page.inner_text("#texts-legend")
        assert page.locator("#texts b").count() == 0
        assert "accept\tstrict\trelaxed" in page.inner_text("#pair-table")
        page.get_by_label("Entity").fill("e7")
        page.keyboard.press("Enter")
        sync_api.expect(page.locator("#texts h3")).to_have_text(["e7"])
        page.get_by_label("Entity").fill("nobody")
        page.keyboard.press("Enter")
        sync_api.expect(page.locator("#texts-note")).to_contain_text("no text of nobody")


def test_one_run_fits_on_two_screens(open_page: Any, tmp_path: Path) -> None:
    """However long its texts are."""
    words = "Sea tales and more sea tales. " * 100
    RunWriter(tmp_path / "run", pool=write_pool(tmp_path / "pool"), text=words).finish()
    with served(tmp_path) as address:
        page = open_page(address)
        page.wait_for_selector("#texts article")
        assert page.evaluate("document.documentElement.scrollHeight") <= 2 * 900


def test_targets_are_large_enough_and_estimates_look_like_estimates(
    open_page: Any, tmp_path: Path
) -> None:
    costs = {"slots": 4, "rows": [1, 4, 16], "seconds": [0.001, 0.0011, 0.002]}
    writer = RunWriter(tmp_path / "run", cost_state=costs)
    writer.shard()
    RunWriter(tmp_path / "other", cost_state=costs, source="of its own").finish()
    script = """() => [...document.querySelectorAll('button, select, summary, a, label, input')]
      .filter((e) => e.offsetParent && !e.matches('.skip, label *, input[type=checkbox]'))
      .filter((e) => e.tagName !== 'LABEL' || e.querySelector('input'))
      .filter((e) => Math.min(e.offsetWidth, e.offsetHeight) < 24).map((e) => e.outerHTML)"""
    with served(tmp_path) as address:
        page = open_page(address, width=390, has_touch=True, is_mobile=True)
        page.wait_for_selector("#texts article")
        assert page.evaluate(script) == []
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        tile = page.locator(".tile.estimated", has_text="of 24").first
        assert tile.locator(".guess").first.inner_text().startswith("≈")
        assert "left" in page.inner_text("#tiles")
