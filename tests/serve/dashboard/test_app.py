"""The dashboard's routes, its data, its stream of events, and what evaluations look like in it."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from draftrec.errors import DraftrecError
from draftrec.serve.dashboard import app as dashboard
from draftrec.serve.dashboard import sources as dashboard_sources
from draftrec.serve.dashboard.app import History, quantile, service_figures
from draftrec.serve.dashboard.quality import read_evaluations
from draftrec.serve.dashboard.sources import RunSources
from draftrec.serve.metrics import ServiceMetrics
from tests.serve.run_folders import RunWriter, write_pool


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A folder with a plain run, a fast one, and their pool."""
    folder = tmp_path / "runs"
    pool = write_pool(folder / "pool")
    RunWriter(folder / "plain", draft="none", seconds=0.04).finish()
    RunWriter(folder / "fast", pool=pool).finish()
    return folder


def data_of(sources: RunSources) -> dict[str, Any]:
    return json.loads(sources.snapshot().json)


@pytest.mark.slow
def test_page_data_and_files(runs: Path) -> None:
    with TestClient(dashboard.application(RunSources([runs], 2.5))) as client:
        page = client.get("/")
        assert page.status_code == 200
        assert "default-src 'self'" in page.headers["content-security-policy"]
        for name in page.text.split('"'):
            if name.startswith("dashboard/static/"):
                assert client.get(f"/{name}").status_code == 200, name
        assert "http://" not in page.text
        assert "https://" not in page.text
        data = client.get("/dashboard/data.json").json()
        assert [run["name"] for run in data["runs"]] == ["fast", "plain"]
        assert data["price_per_hour"] == 2.5
        script = client.get("/dashboard/static/dashboard.js")
        assert script.headers["content-type"].startswith("text/javascript")
        for name in ("nothing.js", "README.md", "..%2Fdashboard.py", "%2e%2e%2fdashboard.py"):
            assert client.get(f"/dashboard/static/{name}").status_code == 404


def test_pages_may_lie_below_a_path_of_a_proxy() -> None:
    """What they name is beside them, wherever that is."""
    files = [p.read_text() for p in dashboard.STATIC.iterdir() if p.suffix in (".html", ".js")]
    assert not [text for text in files if re.search("[\"'`]/(dashboard|login)", text)]
    with TestClient(dashboard.application(RunSources([]))) as client:
        assert client.get("/", follow_redirects=False).headers["location"] == "dashboard"


def test_groups_of_many_shards_are_read_a_few_at_a_look(tmp_path: Path) -> None:
    RunWriter(tmp_path / "run").finish()
    whole = RunSources([tmp_path]).read().runs[0].groups
    sources = RunSources([tmp_path], seconds=0)
    looks = [sources.read() for _ in range(3)]
    assert [sum(g.texts for g in found.runs[0].groups) for found in looks] == [8, 16, 24]
    assert looks[-1].runs[0].groups == whole
    left = ["2 of its shards", "1 of its shards"]
    assert all(words in found.notes[0] for words, found in zip(left, looks, strict=False))
    assert not looks[-1].notes


def test_a_manifest_that_has_not_changed_is_not_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That of a run of 50,000 shards has megabytes, and folders are looked at every second."""
    run, sources = RunWriter(tmp_path / "run"), RunSources([tmp_path])
    run.shard()
    before, real, read = sources.read(), Path.read_bytes, list[str]()
    monkeypatch.setattr(Path, "read_text", lambda path, **_: read.append(path.name))
    monkeypatch.setattr(Path, "read_bytes", lambda path: read.append(path.name) or real(path))
    assert sources.read().runs[0].totals == before.runs[0].totals
    assert "manifest.json" not in read
    monkeypatch.undo()
    run.shard()
    assert sources.read().runs[0].totals["texts"] == 16


def test_a_run_given_directly_and_its_folder_are_one(runs: Path) -> None:
    data = data_of(RunSources([runs / "fast", runs]))
    assert sorted(run["name"] for run in data["runs"]) == ["fast", "plain"]
    assert [run["speedup"] for run in data["runs"] if run["name"] == "fast"] == [2.0]


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    for shop in ("books", "films"):
        RunWriter(tmp_path / shop / "strict").finish()
    data = data_of(RunSources([tmp_path / "books" / "strict", tmp_path / "films" / "strict"]))
    assert [run["name"] for run in data["runs"]] == ["books/strict", "films/strict"]


def test_a_run_that_is_gone_does_not_stand_for_another_of_its_name(tmp_path: Path) -> None:
    for shop in ("books", "films"):
        (tmp_path / shop).mkdir()
    sources = RunSources([tmp_path / "books", tmp_path / "films"], paths=False)
    for shop in ("books", "films", "books"):
        run = RunWriter(tmp_path / shop / "strict").finish()
        assert [found.name for found in sources.read().runs] == ["strict"]
        page = asyncio.run(sources.texts("strict", 0, 3))
        assert [text.entity_id for text in page.texts] == ["e0", "e1", "e2"]
        shutil.rmtree(run)


def test_a_folder_must_exist_and_a_damaged_run_is_a_note(tmp_path: Path) -> None:
    with pytest.raises(DraftrecError, match="is no folder"):
        RunSources([tmp_path / "nothing"])
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "manifest.json").write_text('{"format": "draftrec-run", "shards": 3}')
    data = data_of(RunSources([tmp_path]))
    assert data["runs"] == []
    assert "odd cannot be shown" in data["notes"][0]


@pytest.mark.parametrize(
    ("file", "content", "note"),
    [
        ("manifest.json", '{"format": "draftrec-run", "sha', "odd cannot be shown"),
        ("manifest.json", "[" * 100_000, "odd cannot be shown"),
        ("metrics.jsonl", '{"kind": "steps", "seconds": null}\n', "odd: 1 line of its metrics"),
        ("metrics.jsonl", '{"kind": "steps", "seconds": NaN}\n', "odd: 1 line of its metrics"),
        ("compare.json", '{"a":' * 100_000, None),
    ],
)
def test_one_odd_run_hides_no_other(
    tmp_path: Path, file: str, content: str, note: str | None
) -> None:
    for name in ("good", "odd"):
        RunWriter(tmp_path / name).finish()
    (tmp_path / "odd" / file).write_text(content)
    data = data_of(RunSources([tmp_path]))
    names = [run["name"] for run in data["runs"]]
    assert names == (["good"] if file == "manifest.json" else ["good", "odd"])
    assert [n.startswith(note or "") for n in data["notes"]] == [True] * bool(note)


def test_a_run_whose_figures_are_no_numbers_is_a_note(tmp_path: Path) -> None:
    for name in ("good", "odd"):
        RunWriter(tmp_path / name).finish()
    path = tmp_path / "odd" / "manifest.json"
    values = json.loads(path.read_text())
    values["totals"]["wall_seconds"] = float("nan")
    values["settings"]["budget"] = {"odd": [None]}
    path.write_text(json.dumps(values))
    data = data_of(RunSources([tmp_path]))
    assert [run["name"] for run in data["runs"]] == ["good"]
    assert len(data["notes"]) == 1


def test_runs_that_begin_later_appear(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dashboard_sources, "FRESH_SECONDS", 0.0)
    sources = RunSources([tmp_path])
    first = sources.snapshot()
    assert json.loads(first.json)["runs"] == []
    assert sources.snapshot().version == first.version
    writer = RunWriter(tmp_path / "run")
    begun = sources.snapshot()
    assert begun.version != first.version
    writer.shard()
    assert sources.snapshot().version != begun.version
    assert data_of(sources)["runs"][0]["records_done"] == 8


def events_of(
    sources: RunSources, count: int, metrics: ServiceMetrics | None = None, last: str = "",
    between: Callable[[], Any] = lambda: None,
) -> list[str]:  # fmt: skip
    """The first messages of a stream; `between` runs after each."""

    async def collect() -> list[str]:
        found: list[str] = []
        async for message in dashboard.event_stream(
            sources, last, metrics, lambda: len(found) >= count
        ):
            found.append(message)
            between()
        return found

    return asyncio.run(collect())


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dashboard, "FRESH_SECONDS", 0.01)
    monkeypatch.setattr(dashboard_sources, "FRESH_SECONDS", 0.0)


@pytest.mark.usefixtures("quick")
def test_the_stream_tells_all_of_it_and_then_what_changed(runs: Path) -> None:
    writer = RunWriter(runs / "new", records=100)
    retry, first, second = events_of(RunSources([runs]), 3, between=writer.shard)
    assert retry == "retry: 2000\n\n"
    told = []
    for message, event in ((first, "data"), (second, "changes")):
        head, kind, body = message.strip().split("\n")
        assert head.startswith("id: ")
        assert kind == f"event: {event}"
        told.append(json.loads(body.removeprefix("data: ")))
    whole, news = told
    places = {run["name"]: run["path"] for run in whole["runs"]}
    assert news["order"] == [places[name] for name in ("fast", "new", "plain")]
    assert list(news["runs"]) == [places["new"]]
    changed = news["runs"][places["new"]]
    assert changed["records_done"] == 16
    assert changed.keys().isdisjoint({"settings", "facts", "name", "baseline"})
    assert news.keys().isdisjoint({"evaluations", "price_per_hour"})


def merged(whole: dict[str, Any], news: dict[str, Any]) -> dict[str, Any]:
    """As the page does it."""
    known = {run["path"]: run for run in whole["runs"]}
    runs = [{**known.get(path, {}), **news["runs"].get(path, {})} for path in news["order"]]
    rest = {name: value for name, value in news.items() if name != "order"}
    return {**whole, **rest, "runs": runs}


@pytest.mark.usefixtures("quick")
def test_changes_make_the_new_data_of_the_old(runs: Path) -> None:
    writer = RunWriter(runs / "new", records=100)
    sources = RunSources([runs])

    def news(since: str) -> dashboard_sources.News:
        return asyncio.run(sources.news(since))

    page = json.loads(news("").json)
    for change in (
        writer.shard,
        lambda: shutil.rmtree(runs / "plain"),
        lambda: (runs / "fast" / "metrics.jsonl").write_text("odd\n"),
        lambda: RunWriter(runs / "later").finish(),
    ):
        assert news(page["version"]).event == ""
        change()
        told = news(page["version"])
        assert told.event == "changes"
        page = merged(page, json.loads(told.json))
        quiet = [{**run, "quiet_seconds": 0} for run in page["runs"]]
        whole = data_of(sources)
        assert {**page, "runs": quiet} == {
            **whole, "runs": [{**run, "quiet_seconds": 0} for run in whole["runs"]]
        }  # fmt: skip
    for _ in range(10):
        writer.shard()
        sources.snapshot()
    assert news(page["version"]).event == "data"  # what it knows is long forgotten


def test_a_page_for_everybody_knows_names_only(runs: Path) -> None:
    (runs / "odd").mkdir()
    (runs / "odd" / "manifest.json").write_text('{"format": "draftrec-run", "shards": 3}')
    sources = RunSources([runs], paths=False)
    with TestClient(dashboard.application(sources)) as client:
        found = client.get("/dashboard/data.json")
        assert str(runs) not in found.text
        assert [run["path"] for run in found.json()["runs"]] == ["fast", "plain"]
        assert found.json()["runs"][0]["pool"]["path"] == "pool"
        asked = {"run": "fast", "other": "plain"}
        page = client.get("/dashboard/texts.json", params=asked).json()
        assert [text["entity_id"] for text in page["others"]] == ["e0", "e1", "e2"]
        assert client.get("/dashboard/texts.json", params={"run": str(runs / "fast")}).is_error
        (runs / "fast" / "part-00000.parquet").unlink()
        answer = client.get("/dashboard/texts.json", params={"run": "fast"})
        assert answer.status_code == 409
        assert str(runs) not in answer.text


@pytest.mark.usefixtures("quick")
def test_a_page_that_comes_back_gets_only_what_is_new(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dashboard, "_HEARTBEAT", 0.02)
    sources = RunSources([runs])
    version = sources.snapshot().version
    assert events_of(sources, 2, last=version)[1] == ": still here\n\n"
    assert f"id: {version}\n" in events_of(sources, 2, last="older")[1]


@pytest.mark.usefixtures("quick")
def test_a_service_shows_its_own_figures(tmp_path: Path) -> None:
    metrics = ServiceMetrics()
    for seconds in (0.02, 0.03, 0.2, 0.04):
        metrics.observe_request("/v1/recommend", 200, seconds)
    metrics.observe_request("/v1/recommend", 503, 0.001)
    metrics.observe_request("/v1/recommend", 429, 0.001)
    metrics.observe_request("/v1/recommend", 422, 0.001)
    metrics.observe_request("/v1/recommend", 499, 0.02)
    message = events_of(RunSources([tmp_path]), 2, metrics)[1]
    figures = json.loads(message.split("event: service\ndata: ")[1])
    assert figures["counters"]["requests"] == 8
    route = figures["routes"]["/v1/recommend"]
    named = ("requests", "failed", "refused", "wrong", "gone")
    assert [route[n] for n in named] == [8, 1, 1, 1, 1]
    assert 0.01 < route["p50"] <= 0.025
    assert 0.1 < route["p99"] <= 0.25
    assert service_figures(ServiceMetrics())["routes"] == {}


def test_quantiles_lie_within_their_bucket() -> None:
    buckets = [(1.0, 10.0), (2.0, 20.0), (float("inf"), 40.0)]
    assert quantile(buckets, 0.25) == 1.0
    assert quantile(buckets, 0.375) == 1.5
    assert quantile(buckets, 0.9) == 2.0  # above the last bound, nothing is known
    assert quantile([(1.0, 0.0), (float("inf"), 0.0)], 0.5) == 0.0
    assert quantile([], 0.5) == 0.0


def estimate(value: float) -> dict[str, float]:
    return {"value": value, "low": value - 0.01, "high": value + 0.01}


def test_a_comparison_shows_its_gate_and_broken_limits_first(tmp_path: Path) -> None:
    def limit(outcome: str, bound: float) -> dict[str, Any]:
        return {"run": "relaxed", "metric": "relaxed_share", "key": "max_value", "bound": bound,
                "found": estimate(0.2), "outcome": outcome, "reason": ""}  # fmt: skip

    change = {"mean": 0.0021, "low": 0.001, "high": 0.003}
    click = {"model": "din", "adaptor": "moe", "metric": "auc", "value": {"mean": 0.7012}}
    click |= {"seeds": 5, "change": change}
    limits = [limit("kept", 0.3), limit("broken", 0.1), limit("not measured", 0.2)]
    runs = {"plain": {}, "relaxed": {"limits": limits, "click_models": [click]}}
    content = {"passed": False, "baseline": "plain", "runs": runs, "findings": ["It broke."]}
    (tmp_path / "compare.json").write_text(json.dumps(content))
    [found] = read_evaluations(tmp_path, "gate")
    assert (found.name, found.kind, found.verdict) == ("gate", "comparison", "closed")
    limits_table, clicks = found.tables
    assert [row[-1] for row in limits_table.rows] == ["broken", "kept"]
    assert limits_table.rows[0][1] == "relaxed tokens at most 10.0 %"
    assert limits_table.rows[0][2] == "20.0 % (19.0 % to 21.0 %)"
    assert clicks.rows[0][4:] == ("0.7012", "+0.0021", "+0.0010 to +0.0030")


def test_click_models_rankings_and_recommendations(tmp_path: Path) -> None:
    auc = {"mean": 0.71, "low": 0.70, "high": 0.72}
    result = {"model": "din", "adaptor": "moe", "seeds": 5, "auc": auc, "logloss": {"mean": 0.4},
              "over_none": {"auc": {"mean": 0.003}}}  # fmt: skip
    contents = {
        "summary": {"results": [result], "without_vectors": {}},
        "evaluate": {"users": 1200, "recall@5": 0.05, "recall@10": 0.1, "ndcg@5": 0.03,
                     "ndcg@10": 0.04},
        "settings": {"k": 3},
    }  # fmt: skip
    for name, content in contents.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "odd.json").write_text('{"recall@x": 1}')
    ranking, study = read_evaluations(tmp_path, "run")
    assert ranking.name == "run/evaluate"
    assert ranking.tables[0].rows == (("5", "0.0500", "0.0300"), ("10", "0.1000", "0.0400"))
    assert study.name == "run"
    assert study.tables[0].rows == (
        ("din, moe", "5", "0.7100", "0.7000 to 0.7200", "0.4000", "+0.0030"),
    )


def test_recommendations_under_way_are_summed_up(tmp_path: Path) -> None:
    parts = tmp_path / ".out.parquet.parts"
    parts.mkdir()
    facts = {
        "users": 10, "popular": 0, "walltime_seconds": 2.0, "ms": [5.0] * 10, "target_calls": 20,
        "accepted_steps": 20, "draft_calls": 30, "drafted": 100, "invalid": 0, "beams": 100,
        "shadow_users": 0, "shadow_same": 0, "shadow_gap": 0.0,
    }  # fmt: skip
    for number in range(2):
        (parts / f"facts-{number:05d}.json").write_text(json.dumps(facts))
    [found] = read_evaluations(tmp_path, "genrec")
    assert found.name == "genrec/out.parquet"
    assert found.findings == ("20 users in 4.0 s so far.",)
    assert ("target calls per user", "2.00") in found.tables[0].rows


def test_texts_are_read_by_page_by_entity_and_beside_another_run(runs: Path) -> None:
    with TestClient(dashboard.application(RunSources([runs]))) as client:
        client.get("/dashboard/data.json")
        asked = {
            "run": str(runs / "fast"),
            "other": str(runs / "plain"),
            "start": "7",
            "count": "3",
        }
        page = client.get("/dashboard/texts.json", params=asked).json()
        assert (page["start"], page["total"]) == (7, 24)
        assert [text["entity_id"] for text in page["texts"]] == ["e7", "e8", "e9"]
        assert [text["target_calls"] for text in page["others"]] == [40, 40, 40]
        found = client.get("/dashboard/texts.json", params={**asked, "entity": "e20"}).json()
        assert [text["entity_id"] for text in found["texts"]] == ["e20"]
        for odd in ({"run": "/etc"}, {**asked, "other": "../fast"}, {"run": str(runs / "pool")}):
            assert client.get("/dashboard/texts.json", params=odd).status_code == 404
        far = {**asked, "start": "99999999", "count": "-5"}
        assert client.get("/dashboard/texts.json", params=far).json()["texts"] == []
        (runs / "fast" / "part-00000.parquet").write_bytes(b"PAR1 nothing")
        (runs / "plain" / "stats-00000.parquet").unlink()
        for run in ("fast", "plain"):
            answer = client.get("/dashboard/texts.json", params={"run": str(runs / run)})
            assert answer.status_code == 409
            assert answer.json()["note"].startswith("the texts cannot be read: ")


def test_a_service_keeps_what_happened_between_two_looks() -> None:
    metrics = ServiceMetrics()
    history = History(metrics)
    metrics.observe_request("/v1/recommend", 200, 5.0)
    history.look()
    assert history.since(0) == []
    for seconds in (0.02, 0.02, 0.02, 0.2):
        metrics.observe_request("/v1/recommend", 200, seconds)
    metrics.observe_request("/v1/knowledge", 429, 0.001)
    metrics.observe_request("/v1/knowledge", 499, 0.001)
    metrics.observe_request("/healthz", 200, 0.001)
    history.look()
    [point] = history.since(0)
    median, slow = point["times"]["request_seconds"]["/v1/recommend"]
    assert 0.01 < median <= 0.025  # and not the five seconds of before
    assert 0.1 < slow <= 0.25
    assert point["answers"]["2xx"] == pytest.approx(4 * point["answers"]["429"], rel=1e-3)
    assert point["answers"]["499"] == point["answers"]["429"]
    assert not point["answers"].get("4xx")
    history.look()
    assert history.since(0)[-1]["times"] == {}
    assert history.since(point["at"] + 1000) == []
