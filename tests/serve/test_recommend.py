"""`POST /v1/recommend`: what `genrec recommend` says, whoever else is being served."""

from __future__ import annotations

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
from draftrec.data.sequences import read_semantic_ids, write_semantic_ids
from draftrec.demo.shop import histories, readings, sequences, shipped_path
from draftrec.items.semantic_ids import SemanticIds
from draftrec.jobs.recommend.catalogue import Query
from draftrec.serve.loading import FileCatalogue, demo_sources
from draftrec.serve.settings import demo_settings
from tests.jobs.recommend.worlds import World, make_world, named, reassigned, with_texts
from tests.serve.services import Running, error_of, recommend_settings, running, settings


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
        ([], "body: "),
        ("text", "body: "),
    ],
)
def test_impossible_questions_are_refused(shop: Running, body: Any, words: str) -> None:
    answer = shop.client.post("/v1/recommend", json=body)
    assert words in error_of(answer, 422, "invalid_request")


def test_unknown_items_are_named(shop: Running) -> None:
    message = error_of(shop.recommend([10, 4711, 4712]), 422, "unknown_item")
    assert "item 4711" in message


@pytest.mark.slow
def test_a_deadline_of_a_millisecond_is_kept_with_a_quick_answer(world: World) -> None:
    with running(settings(recommend_settings(world, "none"))) as shop:
        work = shop.service.recommending
        assert work
        real = work.turn

        def turn() -> Any:
            threading.Event().wait(0.5)
            return real()

        work.turn = turn  # type: ignore[method-assign]
        body = shop.recommend([12, 30], k=3, deadline_ms=1).json()
        assert body["partial"] is True
        expected = work.recommender.quick_answer(Query(0, np.array([12, 30]), k=3))
        assert [i["item"] for i in body["items"]] == expected.items.tolist()
        assert shop.log[-1]["ms"] < 400, "it did not even wait for the pass under way"
        work.turn = real  # type: ignore[method-assign]
        assert shop.recommend([12, 30], k=3, deadline_ms=60_000).json()["partial"] is False
        assert not work._asked, "the search that nobody waited for has left the batch"
        assert "draftrec_beam_partial_users_total 1.0" in shop.client.get("/metrics").text


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
