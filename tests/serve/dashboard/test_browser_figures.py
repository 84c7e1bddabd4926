"""Figures of the page as a browser shows them: none that misleads, none that is lost."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from draftrec.serve.http.app import render_docs
from tests.serve.dashboard.conftest import served
from tests.serve.run_folders import RunWriter

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

#: What charts write, which is on no element: kept in `window.written`.
_LISTEN = """() => {
  const write = CanvasRenderingContext2D.prototype.fillText;
  window.written = [];
  CanvasRenderingContext2D.prototype.fillText = function (text, ...rest) {
    window.written.push(text);
    return write.call(this, text, ...rest);
  };
}"""
#: A chart of 60 values at 0 to 59, those of `known` and gaps; whether a pixel has its colour.
_DRAW = """async ({known, top}) => {
  const { chart } = await import("/dashboard/static/charts.js");
  const { places } = await import("/dashboard/static/format.js");
  const host = document.createElement("div");
  host.style.cssText = "width: 400px; height: 200px";
  document.body.append(host);
  const x = Array.from({ length: 60 }, (_, i) => i);
  const y = x.map((i) => (known.includes(i) ? top : null));
  const form = (v, step) => v.toFixed(step ? places(step) : 0);
  const series = [{ name: "a", tone: "#ff0000", x, y, gaps: true, dashed: true }];
  chart(host, { series, form, xForm: String, label: "" });
  await new Promise((done) => setTimeout(done, 100));
  const canvas = host.querySelector("canvas");
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  const red = (i) => data[i] > 200 && data[i + 1] < 40 && data[i + 3] > 200;
  return data.some((_, i) => i % 4 === 0 && red(i));
}"""


def test_wide_tables_of_evaluations_scroll_within_a_phone(open_page: Any, tmp_path: Path) -> None:
    """They made their cards, and the page, wider than it."""
    spread = {"mean": 0.71234, "low": 0.70123, "high": 0.72345}
    result = {"model": "din", "adaptor": "contrastive", "seeds": 5, "auc": spread,
              "logloss": spread, "over_none": {"auc": spread}}  # fmt: skip
    content = {"results": [result], "without_vectors": 0}
    (tmp_path / "summary.json").write_text(json.dumps(content))
    with served(tmp_path) as address:
        page = open_page(address, width=390, has_touch=True, is_mobile=True)
        assert "0.7012" in page.inner_text("#quality")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_nothing_is_not_told_as_none_of_something(open_page: Any, tmp_path: Path) -> None:
    """No drafts are not drafts of which none was kept; rejected records are not silent."""
    rests = RunWriter(tmp_path / "rests", draft="none", records=8)
    rests.finish()
    rests.manifest.settings["draft"] = "pool"
    rests.folder.write_manifest(rests.manifest)
    broken = RunWriter(tmp_path / "broken", records=8)
    broken.manifest.totals.rejected = 8
    broken.manifest.totals.wall_seconds = 1.0
    broken.manifest.finished = True
    broken.folder.write_manifest(broken.manifest)
    with served(tmp_path) as address:
        page = open_page(address)
        tiles = page.locator("#tiles .tile")
        assert (
            "1.00 tokens per call, nothing drafted" in tiles.filter(has_text="rests").inner_text()
        )
        told = tiles.filter(has_text="broken").inner_text()
        assert "8 of them rejected" in told
        assert "nothing written" in told
        assert "0 tokens/s" in told
        assert "0.00" not in told
        heads = page.locator("#run-table thead th").all_inner_texts()
        cells = page.locator("#run-table tbody tr").first.locator("th, td").all_inner_texts()
        row = dict(zip(heads, cells, strict=True))
        assert (row["run ↑"], row["rejected"], row["tokens per call"]) == ("broken", "8", "-")
        assert "drafts kept" not in heads


def test_a_short_run_is_in_the_table_beside_a_long_one(open_page: Any, tmp_path: Path) -> None:
    RunWriter(tmp_path / "long", seconds=1.0).finish()
    RunWriter(tmp_path / "short", seconds=0.01).finish()
    with served(tmp_path) as address:
        page = open_page(address)
        page.locator("#speed figure summary").click()
        rows = page.locator("#speed-table tbody tr").all_inner_texts()
        heads = page.locator("#speed-table thead th").all_inner_texts()
        assert heads == ["seconds of work", "long", "short"]
        assert rows[-1].split("\t") == ["at its end", "40", "4,000"]


def test_ticks_of_an_axis_differ_by_what_they_say(open_page: Any, tmp_path: Path) -> None:
    """0.25 % was written 0.3 %, and half a token per second as one."""
    RunWriter(tmp_path / "run", seconds=25.0).finish()  # 1.6 tokens per second
    with served(tmp_path) as address:
        page = open_page(address)
        assert "1.6 tokens/s" in page.inner_text(".tile")
        page.evaluate(_LISTEN)
        page.get_by_label("against").select_option("tokens written")  # draws anew
        page.wait_for_function("window.written.includes('tokens per second')")
        written = page.evaluate("window.written")
        assert {"0.0", "0.5", "1.0", "1.5"} <= set(written)


@pytest.mark.parametrize("known", [[30], [10, 40], []])
def test_a_value_between_gaps_is_seen(open_page: Any, tmp_path: Path, known: list[int]) -> None:
    """A service that is asked now and then had an empty chart of its times."""
    with served(tmp_path) as address:
        page = open_page(address)
        assert page.evaluate(_DRAW, {"known": known, "top": 0.3}) is bool(known)


def test_the_page_says_that_it_reads_before_there_is_anything(
    open_page: Any, browser: Any, tmp_path: Path
) -> None:
    RunWriter(tmp_path / "run").finish()
    with served(tmp_path) as address:
        slow = browser.new_page()
        slow.route("**/dashboard/events", lambda route: None)  # has yet to answer
        slow.goto(f"{address}/dashboard")
        sync_api.expect(slow.locator("#waiting")).to_have_text("Reading the runs.")
        slow.close()
        page = open_page(address)
        assert not page.locator("#waiting").is_visible()


@pytest.mark.parametrize(
    ("asked", "found"),
    [("speed>1,500", ["fast"]), ("speed<1500", ["slow"]), ("kept>50%", ["fast", "slow"]),
     ("kept>0.9", []), ("kept>90%", [])],
)  # fmt: skip
def test_numbers_are_found_as_the_table_writes_them(
    open_page: Callable[..., Any], tmp_path: Path, asked: str, found: list[str]
) -> None:
    RunWriter(tmp_path / "fast", seconds=0.02).finish()
    RunWriter(tmp_path / "slow", seconds=0.04).finish()
    with served(tmp_path) as address:
        page = open_page(address)
        page.get_by_label("Find").fill(asked)
        assert page.locator("#run-table tbody th").all_inner_texts() == found


def test_texts_run_in_their_own_direction(open_page: Any, tmp_path: Path) -> None:
    RunWriter(tmp_path / "run", text="هذا الكتاب قديم!").finish()
    with served(tmp_path) as address:
        page = open_page(address)
        written = page.locator("#texts .written").first
        written.wait_for()
        assert written.evaluate("e => getComputedStyle(e).direction") == "rtl"


def test_the_page_of_the_interface_fits_a_phone(browser: Any) -> None:
    record = {"properties": {f"a_rather_long_name_{i}": {"type": "string"} for i in range(3)}}
    for field in record["properties"].values():
        field["description"] = "what is to be said of the record, and how"
    body = {"properties": {"records": {"type": "array", "items": record}}}
    content = {"application/json": {"schema": body}}
    answers = {"200": {"description": "`text`"}}
    document = {
        "info": {"title": "t", "version": "1", "description": "d"},
        "paths": {"/x": {"post": {"requestBody": {"content": content}, "responses": answers}}},
        "components": {"schemas": {}},
    }
    page = browser.new_page(viewport={"width": 390, "height": 900})
    page.set_content(render_docs(document))
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.locator("td code", has_text="records[].a_rather_long_name_2").is_visible()
    page.close()
