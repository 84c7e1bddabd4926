"""`POST /v1/recommend`: what `genrec recommend` says, whoever else is being served."""

from __future__ import annotations

import asyncio
import json
import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from draftrec.cli.main import run
from draftrec.config import RetrieverSettings
from draftrec.data.sequences import read_semantic_ids, write_semantic_ids
from draftrec.demo.shop import histories, readings, sequences, shipped_path
from draftrec.items.semantic_ids import SemanticIds
from draftrec.jobs.recommend.catalogue import Query
from draftrec.serve.service import FileCatalogue, demo_sources
from draftrec.serve.settings import RateSettings, demo_settings
from tests.jobs.recommend.worlds import (
    World,
    make_world,
    named,
    reassigned,
    save_item_model,
    with_texts,
)
from tests.serve.services import (
    Running,
    counted,
    error_of,
    held,
    recommend_settings,
    running,
    settings,
    slow_passes,
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def shop(world: World) -> Iterator[Running]:
    with running(settings(recommend_settings(world))) as found:
        yield found


def asked(count: int) -> list[list[int]]:
    random = np.random.default_rng(5)
    return [random.integers(10, 70, random.integers(1, 20)).tolist() for _ in range(count)]


def reference(world: World, folder: Path, k: int, rows: list[list[int]]) -> list[dict[str, Any]]:
    """What the command line says of the same histories, by plain search."""
    folder.mkdir()
    lines = [
        f'{{"user": {i}, "items": {items}, "part": "{part}"}}\n'
        for i, history in enumerate(rows)
        for items, part in ((history, "train"), ([10], "test"))
    ]
    (folder / "rows.jsonl").write_text("".join(lines))
    output = folder / "out.parquet"
    words = [
        "genrec", "recommend", str(folder / "rows.jsonl"), "--target", str(world.target), "--sids",
        str(world.sids), "--output", str(output), "-k", str(k), "--draft", "none",
    ]  # fmt: skip
    assert run(words) == 0
    return pq.read_table(output).to_pylist()


def agree(answer: Any, row: dict[str, Any]) -> None:
    """The same items and semantic ids; scores up to rounding."""
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert body["partial"] is False
    assert [i["item"] for i in body["items"]] == row["items"]
    assert [i["sid"] for i in body["items"]] == row["sids"]
    np.testing.assert_allclose([i["score"] for i in body["items"]], row["scores"], atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("draft", ["none", "items", "model"])
def test_concurrent_clients_get_what_the_command_line_gives(
    world: World, tmp_path: Path, draft: str
) -> None:
    rows = asked(24)
    expected = {k: reference(world, tmp_path / str(k), k, rows) for k in (2, 5)}
    with running(settings(recommend_settings(world, draft))) as served:
        with ThreadPoolExecutor(8) as clients:
            jobs = [(clients.submit(served.recommend, r, k=k), i, k)
                    for i, r in enumerate(rows) for k in (2, 5)]  # fmt: skip
            for job, i, k in jobs:
                agree(job.result(), expected[k][i])
        assert max(r["passes"] for r in served.log) <= 3


@pytest.mark.parametrize("draft", ["items", "model"])
def test_a_blend_is_that_of_plain_search_for_concurrent_clients(world: World, draft: str) -> None:
    rows, wanted = asked(12), recommend_settings(world, "none", blend=0.5, blend_candidates=9)
    queries = [Query(0, np.array(row), k=k) for row in rows for k in (2, 5)]
    expected = FileCatalogue(wanted).load().recommend(queries)
    assert any(
        a.items.tolist() != b.items.tolist()
        for a, b in zip(
            expected,
            FileCatalogue(recommend_settings(world, "none")).load().recommend(queries),
            strict=True,
        )
    )
    served_by = recommend_settings(world, draft, blend=0.5, blend_candidates=9)
    with running(settings(served_by)) as served, ThreadPoolExecutor(8) as clients:
        jobs = [clients.submit(served.recommend, q.history.tolist(), k=q.k) for q in queries]
        for job, answer in zip(jobs, expected, strict=True):
            row = {"items": answer.items.tolist(), "sids": answer.sids, "scores": answer.scores}
            agree(job.result(), row)


def test_an_item_model_is_blended_in_and_stays_at_a_reload(world: World, tmp_path: Path) -> None:
    folder = save_item_model(world, tmp_path / "items")
    shares = {"blend": 0.3, "blend_item_model": 0.5, "blend_candidates": 9}
    queries = [Query(0, np.array(row), k=5) for row in asked(6)]
    wanted = recommend_settings(world, "none", folder, **shares)
    expected = FileCatalogue(wanted).load().recommend(queries)
    catalogue = FileCatalogue(recommend_settings(world, "model", folder, **shares))
    recommender = catalogue.load()
    for one in (recommender, catalogue.reload(recommender)):
        for answer, other in zip(one.recommend(queries), expected, strict=True):
            assert answer.items.tolist() == other.items.tolist()
            np.testing.assert_allclose(answer.scores, other.scores, atol=1e-4)


def test_item_item_is_fitted_as_the_settings_say_at_a_reload_too(world: World) -> None:
    chosen = RetrieverSettings(last=9)
    catalogue = FileCatalogue(recommend_settings(world, "items", item_item=chosen))
    recommender = catalogue.load()
    for one in (recommender, catalogue.reload(recommender)):
        assert one.parts.retriever
        assert one.parts.retriever.settings == chosen


@pytest.mark.slow
def test_readers_of_the_demo_get_what_the_command_line_gives(tmp_path: Path) -> None:
    read = readings(50)
    (tmp_path / "rows.jsonl").write_text(sequences(read))
    folder = shipped_path()
    expected: dict[int, list[dict[str, Any]]] = {}
    for k in (3, 10):
        output = tmp_path / f"{k}.parquet"
        words = [
            "genrec", "recommend", str(tmp_path / "rows.jsonl"), "--target", str(folder / "target"),
            "--sids", str(folder / "sids.parquet"), "--output", str(output), "-k", str(k),
            "--draft", "none", "--exclude-seen", "--dtype", "float32",
        ]  # fmt: skip
        assert run(words) == 0
        expected[k] = pq.read_table(output).to_pylist()
    shop = running(demo_settings(), replace(demo_sources(), knowledge=None))
    with shop as served, ThreadPoolExecutor(16) as clients:
        jobs = [
            (clients.submit(served.recommend, h.items.tolist(), k=k), i, k)
            for i, h in enumerate(histories(read, "test"))
            for k in (3, 10)
        ]
        for job, i, k in jobs:
            agree(job.result(), expected[k][i])


@pytest.mark.slow
def test_lists_narrow_the_answer(shop: Running) -> None:
    history = asked(1)[0]
    best = [i["item"] for i in shop.recommend(history, k=5).json()["items"]]
    without = shop.recommend(history, k=5, deny=[*best[:2], 4711]).json()["items"]
    assert not {i["item"] for i in without} & set(best[:2])
    only = shop.recommend(history, k=5, allow=[best[3], best[0], 4711]).json()["items"]
    assert [i["item"] for i in only] == [best[0], best[3]]
    everything = list(range(10, 70))
    assert shop.recommend(history, deny=everything).json() == {"items": [], "partial": False}
    message = error_of(shop.recommend(history, allow=[4711]), 422, "unusable")
    assert "none of the allowed items" in message


def test_no_history_gives_the_popular_items(shop: Running) -> None:
    body = shop.recommend([], k=4).json()
    recommender = shop.service.recommending
    assert recommender
    popular = recommender.recommender.popular
    assert popular
    sids = recommender.recommender.catalogue.sids
    assert [i["item"] for i in body["items"]] == sids.items[popular.popular[:4]].tolist()


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"history": [10], "k": 6}, "at most 5 items"),
        ({"history": [10], "k": 0}, "k: "),
        ({"history": [10], "k": True}, "k: "),
        ({"history": [""]}, "history.0: "),
        ({"history": [True]}, "history.0: "),
        ({"history": ["x" * 513]}, "history.0: "),
        ({"history": [10], "user": None}, "user: "),
        ({"history": [10.5]}, "history.0: "),
        ({"history": [2**63]}, "history.0: "),
        ({"history": None}, "history: "),
        ({}, "history: Field required"),
        ({"history": [10], "deadline_ms": 0}, "deadline_ms: "),
        ({"history": [10], "top": 3}, "unknown field top"),
        ({"history": [10] * 1001}, "history: at most 1000 items"),
        ({"history": [10], "deny": [10] * 10_001}, "deny: at most 10000 items"),
        ([], "must be a JSON object"),
        ("text", "must be a JSON object"),
    ],
)
def test_impossible_questions_are_refused(shop: Running, body: Any, words: str) -> None:
    answer = shop.client.post("/v1/recommend", json=body)
    assert words in error_of(answer, 422, "invalid_request")


def test_unknown_items_are_named(shop: Running) -> None:
    """All of them at once, or who has asked for two would be told of the second next time."""
    message = error_of(shop.recommend([10, 4711, 4712, 4711]), 422, "unknown_item")
    assert message.startswith("item 4711, item 4712 have no semantic id; ")
    message = error_of(ask_for(shop, [10], [4711], [11, 4712, 4713]), 422, "unknown_item")
    assert message.startswith(
        "users.1: item 4711 has no semantic id; "
        "users.2: item 4712, item 4713 have no semantic id; add"
    )
    found = shop.recommend([10, 4711, 12, 4712, 4711], k=3, skip_unknown=True).json()
    expected = shop.recommend([10, 12], k=3).json() | {"skipped": [4711, 4712]}
    assert [found] == rounded(expected)
    found = ask_for(shop, ["4711"], k=3, skip_unknown=True).json()["users"][0]
    assert found.pop("user") == "u0"
    assert found.pop("skipped") == ["4711"], "as it was asked"
    spelt = [{**i, "item": str(i["item"])} for i in shop.recommend([], k=3).json()["items"]]
    assert found == {"items": spelt, "partial": False}
    assert "skipped" not in shop.recommend([10]).json()


def ask_for(shop: Running, *histories: list[Any], **more: Any) -> Any:
    users = [{"user": f"u{i}", "history": history} for i, history in enumerate(histories)]
    return shop.client.post("/v1/recommend", json={"users": users, **more})


def test_null_is_nothing_said(shop: Running) -> None:
    """Clients that write all fields down must not lose what holds for all."""
    nothing = dict.fromkeys(("k", "allow", "deny", "deadline_ms"))
    users = [{"history": [10, 12], **nothing}, {"history": [10, 12], **nothing, "k": 2}]
    shared = {"k": 3, "deny": [14, 15], "allow": list(range(10, 30))}
    found = shop.client.post("/v1/recommend", json={"users": users, **shared}).json()["users"]
    expected = [shop.recommend([10, 12], **{**shared, "k": k}).json() for k in (3, 2)]
    assert [user | {"user": None} for user in found] == [
        user | {"user": None} for user in rounded(*expected)
    ]


def test_many_users_get_what_each_gets_alone(shop: Running) -> None:
    rows = [*asked(7), []]
    alone = [shop.recommend(history, k=4, deny=[12]).json() for history in rows]
    before = users_counted(shop)
    found = ask_for(shop, *rows, k=4, deny=[12]).json()
    assert found.keys() == {"users"}
    assert [user.pop("user") for user in found["users"]] == [f"u{i}" for i in range(8)]
    assert found["users"] == rounded(*alone)
    assert users_counted(shop) == before + 8, "one request of eight users"
    assert shop.log[-1]["users"] == 8
    assert ask_for(shop, *rows[:1]).json()["users"][0]["items"][:4]
    own = [{"history": rows[0], "k": 2}, {"history": [*rows[1], 4711], "skip_unknown": True}]
    body = {"users": own, "k": 3, "deny": [12]}
    first, second = shop.client.post("/v1/recommend", json=body).json()["users"]
    last = shop.recommend(rows[1], k=3, deny=[12]).json() | {"skipped": [4711]}
    assert [first, second] == rounded(shop.recommend(rows[0], k=2, deny=[12]).json(), last)
    assert "user" not in first, "who names no user is not named"


def rounded(*answers: dict[str, Any]) -> list[dict[str, Any]]:
    """With scores as near as passes of different batches are."""
    for answer in answers:
        for item in answer["items"]:
            item["score"] = pytest.approx(item["score"], abs=1e-4)
    return list(answers)


def users_counted(shop: Running) -> float:
    text = shop.client.get("/metrics").text
    line = re.search(r'^draftrec_recommend_users_total{status="200"} (\S+)$', text, re.MULTILINE)
    assert line
    waited = re.search(r'^draftrec_queue_seconds_count{route="/v1/recommend"} (\S+)$', text, re.M)
    assert waited
    assert waited[1] == line[1], "each user's own wait"
    return float(line[1])


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"users": []}, "users: "),
        ({"users": None}, "users: "),
        ({"users": [{}]}, "users.0.history: Field required"),
        ({"users": [{"history": [10]}, {"history": [10.5]}]}, "users.1.history.0: "),
        ({"users": [{"history": [10], "top": 3}]}, "unknown field users.0.top"),
        ({"users": [{"history": [10]}], "history": [10]}, "unknown field history"),
        ({"history": [10], "(users)": 3}, "unknown field (users)"),
        ({"users": [{"history": [10]}] * 5}, "users: at most 4 at once"),
        ({"users": [{"history": [10]}, {"history": [10], "k": 6}]}, "users.1.k: this service"),
        ({"users": [{"history": [10]}], "k": 6}, "users.0.k: this service"),
        ({"users": [{"history": [10] * 1001}]}, "users.0.history: at most 1000 items"),
    ],
)
def test_impossible_questions_of_many_are_refused(few: Running, body: Any, words: str) -> None:
    answer = few.client.post("/v1/recommend", json=body)
    assert words in error_of(answer, 422, "invalid_request")


@pytest.fixture(scope="module")
def few(world: World) -> Iterator[Running]:
    """A service that lets four users wait, and a hundred in at once."""
    chosen = settings(
        recommend_settings(world, "none"),
        limits={"queue": 4, "records": 4},
        rate={"per_second": 1e-6, "burst": 100},
    )
    with running(chosen) as found:
        yield found


def test_rate_and_queue_count_users(few: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    message = error_of(ask_for(few, [10], [11], allow=[4711]), 422, "unusable")
    assert message.startswith("users.0: none of the allowed items")
    thread, buckets = few.service.recommend, few.service.buckets
    assert thread
    assert buckets
    buckets._buckets.clear()
    assert ask_for(few, [10], [11], [12]).status_code == 200
    assert 96.9 < next(iter(buckets._buckets.values()))[0] < 97.1
    caller = next(iter(buckets._buckets))
    buckets._buckets[caller] = 2.5, time.monotonic()
    refused = ask_for(few, [10], [11], [12])
    assert error_of(refused, 429, "rate_limited")
    assert int(refused.headers["retry-after"]) > 1e6, "until there are three, not one"
    assert ask_for(few, [10]).status_code == 200, "the refused ones cost one"
    buckets._buckets.clear()
    thread.most, most = 3, thread.most
    error_of(ask_for(few, [10], [11], [12], [13]), 429, "queue_full")
    thread.most = most
    less = few.service.settings.model_copy(update={"rate": RateSettings(per_second=1, burst=2)})
    monkeypatch.setattr(few.service, "settings", less)
    message = error_of(ask_for(few, [10], [11], [12]), 422, "invalid_request")
    assert message == "users: at most 2 at once, as many as the rate allows"


def test_who_hangs_up_takes_all_users_along(few: Running) -> None:
    work, thread = few.service.recommending, few.service.recommend
    assert work
    assert thread
    hold = held(few.service)

    async def hang_up() -> None:
        body = json.dumps({"users": [{"history": [i]} for i in range(10, 14)]}).encode()
        messages = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> Any:
            if messages:
                return messages.pop()
            while not work._asked:
                await asyncio.sleep(0.01)
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            raise AssertionError(message)

        headers = [(b"content-type", b"application/json"), (b"host", b"testserver")]
        scope = {
            "type": "http", "method": "POST", "path": "/v1/recommend", "headers": headers,
            "query_string": b"", "client": ("other", 1), "http_version": "1.1", "scheme": "http",
            "asgi": {"version": "3.0"}, "root_path": "", "raw_path": b"/v1/recommend",
        }  # fmt: skip
        await few.client.app(scope, receive, send)

    few.client.portal.call(hang_up)  # type: ignore[union-attr]
    assert few.log[-1]["status"] == 499
    assert few.log[-1]["users"] == 4
    hold.set()
    del work.turn  # type: ignore[attr-defined]
    assert ask_for(few, [10]).status_code == 200
    assert not work._asked, "the searches that nobody waited for have left the batch"


def test_each_user_has_a_deadline(world: World) -> None:
    """Who cannot wait gets a quick answer, and costs the others nothing."""
    with (
        running(settings(recommend_settings(world, "none"))) as shop,
        slow_passes(shop.service.recommending, 0.1),
    ):
        users = [{"history": [12, 30], "deadline_ms": 1}, {"history": [30, 12], "k": 3}]
        body = {"users": users, "deadline_ms": 60_000}
        found = shop.client.post("/v1/recommend", json=body).json()["users"]
        assert [user["partial"] for user in found] == [True, False]
        assert found[1:] == rounded(shop.recommend([30, 12], k=3).json())


@pytest.mark.slow
def test_a_deadline_of_a_millisecond_is_kept_with_a_quick_answer(world: World) -> None:
    with running(settings(recommend_settings(world, "none"))) as shop:
        event, work = held(shop.service), shop.service.recommending
        assert work is not None
        body = shop.recommend([12, 30], k=3, deadline_ms=1).json()
        assert body["partial"] is True, "it did not even wait for the pass under way"
        expected = work.recommender.quick_answer(Query(0, np.array([12, 30]), k=3))
        assert [i["item"] for i in body["items"]] == expected.items.tolist()
        event.set()
        assert shop.recommend([12, 30], k=3, deadline_ms=60_000).json()["partial"] is False
        assert not work._asked, "the search that nobody waited for has left the batch"
        assert counted(shop)["beam_partial_users_total"] == 1


@pytest.mark.slow
def test_another_catalogue_comes_in_under_load(world: World, tmp_path: Path) -> None:
    """Nothing is lost, every answer is of one catalogue or the other, and the new one stays."""
    sids = read_semantic_ids(world.sids)
    path = tmp_path / "sids.parquet"
    write_semantic_ids(path, sids)
    fewer = SemanticIds.of(sids.items[:40], sids.sids_of(sids.items[:40]))
    chosen = recommend_settings(world).model_copy(update={"sids": path, "sequences": None})
    history, stop = [12, 30, 31], threading.Event()
    answers: list[Any] = []

    def client() -> None:
        while not stop.is_set():
            answers.append(served.recommend(history, k=5))

    with running(settings(chosen)) as served, ThreadPoolExecutor(6) as clients:
        before = served.recommend(history, k=5).json()
        write_semantic_ids(path, fewer)
        jobs = [clients.submit(client) for _ in range(6)]
        for _ in range(5):
            facts = served.client.portal.call(served.service.reload)  # type: ignore[union-attr]
            assert facts == {"items": 40}
        after = served.recommend(history, k=5).json()
        while len(answers) <= 20 and not any(job.done() for job in jobs):  # however slow it is
            time.sleep(0.01)
        stop.set()
        for job in jobs:
            job.result()
        path.write_text("broken")
        with pytest.raises(Exception, match="the old files stay in use"):
            served.client.portal.call(served.service.reload)  # type: ignore[union-attr]
        write_semantic_ids(path, reassigned(sids))
        with pytest.raises(Exception, match="target was trained on other semantic ids"):
            served.client.portal.call(served.service.reload)  # type: ignore[union-attr]
        assert served.recommend(history, k=5).json() == after
    assert before["items"] != after["items"]
    assert max(i["item"] for i in after["items"]) < 50
    assert len(answers) > 20
    for answer in answers:
        assert answer.status_code == 200
        items = [i["item"] for i in answer.json()["items"]]
        assert items in ([i["item"] for i in before["items"]], [i["item"] for i in after["items"]])


@pytest.mark.slow
def test_ids_come_back_in_the_type_they_came_in(shop: Running, world: World) -> None:
    history = [20, 31, 12]
    plain = shop.recommend(history, deny=[13]).json()["items"]
    spelt = shop.recommend(list(map(str, history)), deny=["13"]).json()["items"]
    assert [{**i, "item": str(i["item"])} for i in plain] == spelt
    texts = with_texts(world)
    with running(settings(recommend_settings(texts))) as served:
        found = served.recommend(list(map(named, history)), deny=[named(13)], user="u-1")
        assert found.status_code == 200, found.text
        assert [i["item"] for i in found.json()["items"]] == [named(i["item"]) for i in plain]
        allowed = [named(i) for i in (40, 41, 42)]
        found = served.recommend([], allow=[*allowed, "absent"]).json()["items"]
        assert {i["item"] for i in found} == set(allowed)
        answer = served.recommend([named(20), "B1"])
        assert answer.status_code == 422
        assert "item B1 has no semantic id" in answer.text


def test_what_a_service_prepares_with_is_counted_nowhere(world: World) -> None:
    with running(settings(recommend_settings(world))) as found:
        assert counted(found) == {}
        assert found.recommend([10]).status_code == 200
        counts = counted(found)
        assert (counts["beam_users_total"], counts["beam_results_total"]) == (1, 5)
