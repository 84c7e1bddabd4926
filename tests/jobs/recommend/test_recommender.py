"""Histories in, items out: the catalogue's, the same whoever drafts, none that was forbidden."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from draftrec.config import RecommendConfig
from draftrec.data.sequences import read_semantic_ids, write_semantic_ids
from draftrec.errors import DraftrecError, Interrupted
from draftrec.items.retriever import ItemRetriever
from draftrec.jobs.recommend import engines
from draftrec.jobs.recommend import recommender as recommender_module
from draftrec.jobs.recommend.catalogue import Catalogue, Query, Recommendation
from draftrec.jobs.recommend.job import RecommendJob, _join, run_job
from draftrec.jobs.recommend.loading import fit_retriever, parts_of
from draftrec.jobs.recommend.recommender import ItemRecommender
from draftrec.jobs.recommend.setup import TaskSettings, load, prepare, read_inputs
from draftrec.jobs.recommend.worker import NUMBERS, shadowed, to_table
from draftrec.models.recommender import load_recommender
from tests.jobs.recommend.worlds import World, make_world, reassigned, save_model, with_texts


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


def make(world: World, draft: str = "none", **changes: Any) -> ItemRecommender:
    sids = read_semantic_ids(world.sids)
    target = load_recommender(world.target)
    items = fit_retriever(str(world.sequences), sids)
    config = RecommendConfig(**{"k": 5, "draft_beams": 8, "batch_size": 3, **changes})
    catalogue = Catalogue.of(sids, target)
    small = load_recommender(world.draft) if draft in ("model", "both") else None
    parts = parts_of(target, catalogue, small, items if draft in ("items", "both") else None)
    return ItemRecommender(parts, catalogue, config, items)


def queries(count: int = 9) -> list[Query]:
    random = np.random.default_rng(4)
    return [
        Query(100 + u, random.integers(10, 70, random.integers(1, 30)).astype(np.int64))
        for u in range(count)
    ]


def same(a: list[Recommendation], b: list[Recommendation]) -> None:
    for x, y in zip(a, b, strict=True):
        assert x.user == y.user
        assert x.items.tolist() == y.items.tolist()
        np.testing.assert_allclose(x.scores, y.scores, atol=1e-4)
        assert x.sids == y.sids


DRAFTS = ["model", "items", "both"]


@pytest.mark.slow
@pytest.mark.parametrize("steps", ["auto", 2])
@pytest.mark.parametrize("draft", DRAFTS)
def test_whoever_drafts_the_items_are_the_same(world: World, draft: str, steps: Any) -> None:
    plain = make(world).recommend(queries())
    drafted = make(world, draft, draft_steps=steps)
    same(drafted.recommend(queries()), plain)
    same(drafted.plain().recommend(queries()), plain)
    known = read_semantic_ids(world.sids)
    for answer in plain:
        assert len(answer.items) == 5
        assert len(set(answer.items.tolist())) == 5
        assert known.sids_of(answer.items) == answer.sids
        assert answer.target_calls == 3
        assert answer.invalid == 0
        assert answer.seconds > 0


def test_scores_are_the_models_own(world: World) -> None:
    """Each score is the summed log-probability of the item's tokens after the prompt."""
    import torch

    recommender, target = make(world), load_recommender(world.target)
    query = queries(1)[0]
    answer = recommender.recommend([query])[0]
    catalogue = recommender.catalogue
    prompt = catalogue.encoder.encode(catalogue.sids.places(query.history))
    for item, score in zip(answer.items.tolist(), answer.scores.tolist(), strict=True):
        own = catalogue.encoder.item_tokens[catalogue.sids.places([item])[0]]
        ids = torch.tensor([[*prompt.tolist(), *own.tolist()]])
        with torch.inference_mode():
            rows = torch.log_softmax(target.model(input_ids=ids).logits[0].float(), -1)
        expected = sum(float(rows[len(prompt) - 1 + i, t]) for i, t in enumerate(own.tolist()))
        assert score == pytest.approx(expected, abs=1e-4)


def blended(
    world: World, query: Query, weight: float, n: int, beams: int
) -> list[tuple[int, float]]:
    """What a blend should say, item by item: beams of plain search and item-item's best `n`, each
    item scored by a forward pass of its own."""
    recommender, target = make(world, k=beams, draft_beams=60), load_recommender(world.target)
    catalogue, items = recommender.catalogue, recommender.popular
    assert items is not None
    sids, allowed = catalogue.sids, catalogue.filter_of(query, exclude_seen=False)
    legal = (
        np.arange(len(sids))
        if allowed is None
        else np.flatnonzero(allowed.keeps(np.arange(len(sids))))
    )
    history = sids.places(query.history)
    share = items.scores(history).astype(np.float64)
    best = legal[np.lexsort((legal, -share[legal]))][:n]
    ((_, wide, _),) = recommender.search([replace(query, k=beams)])
    at = [catalogue.trie.items_at(leaf)[:1] for leaf in wide.leaves.tolist()]
    beam_leaves = {tuple(sid) for sid in sids.sids_at(np.concatenate(at))}
    pool_leaves = beam_leaves | {tuple(sid) for sid in sids.sids_at(best)}
    prompt = catalogue.encoder.encode(history)
    found = []
    for place in legal.tolist():
        if tuple(sids.sids_at(np.array([place]))[0]) not in pool_leaves:
            continue
        own = catalogue.encoder.item_tokens[place].tolist()
        with torch.inference_mode():
            logits = target.model(input_ids=torch.tensor([[*prompt.tolist(), *own]])).logits[0]
        rows = torch.log_softmax(logits.float(), -1)
        score = sum(float(rows[len(prompt) - 1 + i, t]) for i, t in enumerate(own))
        found.append((int(sids.items[place]), np.exp(score), share[place]))
    probs, shares = (sum(row[i] for row in found) for i in (1, 2))
    return sorted(
        ((item, np.log((1 - weight) * p / probs + weight * s / shares)) for item, p, s in found),
        key=lambda pair: -pair[1],
    )


@pytest.mark.parametrize("weight", [0.0, 0.4, 0.97])
def test_a_blend_ranks_beams_and_item_items_best_by_both(world: World, weight: float) -> None:
    """The same items in the same order as item by item, forbidden ones left out."""
    recommender = make(world, blend=weight, blend_candidates=7, k=6)
    deny = np.array([12, 15, 33])
    asked = [replace(q, deny=d) for q in queries(3) for d in (None, deny)]
    for query, answer in zip(asked, recommender.recommend(asked), strict=True):
        wanted = blended(world, query, weight, 7, 6)[:6]
        np.testing.assert_allclose(answer.scores, [score for _, score in wanted], atol=1e-3)
        assert answer.items.tolist() == [item for item, _ in wanted]
        assert not set(answer.items.tolist()) & set([] if query.deny is None else deny.tolist())


@pytest.mark.slow
@pytest.mark.parametrize("steps", ["auto", 2])
@pytest.mark.parametrize("draft", DRAFTS)
@pytest.mark.parametrize("renormalise", [False, True])
def test_a_blend_is_the_same_whoever_drafts(
    world: World,
    draft: str,
    steps: Any,
    renormalise: bool,  # noqa: FBT001
) -> None:
    more = {"blend": 0.3, "blend_candidates": 10, "renormalise": renormalise}
    asked = [replace(q, k=1 + i % 5) for i, q in enumerate(queries())]
    asked += [replace(q, allow=np.arange(10, 30)) for q in queries(3)]
    for exclude_seen in (False, True):
        plain = make(world, exclude_seen=exclude_seen, **more)
        drafted = make(world, draft, draft_steps=steps, exclude_seen=exclude_seen, **more)
        same(drafted.recommend(asked), plain.recommend(asked))
        same(drafted.plain().recommend(asked), plain.recommend(asked))


def test_a_blend_of_one_is_item_items_own_list_and_of_none_the_models(world: World) -> None:
    items = make(world).popular
    assert items is not None
    heavy = make(world, blend=1).recommend(queries(4))
    for query, answer in zip(queries(4), heavy, strict=True):
        _, shares = items.propose(query.history - 10, 5)
        theirs = items.shares(query.history - 10, answer.items - 10)
        np.testing.assert_allclose(theirs, shares, rtol=1e-6)
    # So wide that candidates add nothing.
    everything: dict[str, Any] = {"beams": 60, "draft_beams": 60}
    none = make(world, blend=0, **everything).recommend(queries(4))
    for ours, model in zip(none, make(world, **everything).recommend(queries(4)), strict=True):
        assert ours.items.tolist() == model.items.tolist()
        above = ours.scores - model.scores  # as parts of what all that are ranked have
        np.testing.assert_allclose(above, above[0], atol=1e-4)
        assert above[0] > 0


def test_prefix_cache_adds_slots_and_changes_no_list(world: World) -> None:
    asked = [*queries(6), *queries(6)]
    kept = make(world, prefix_cache=6, batch_size=2)
    assert kept.engine(10).prefixes == 6
    same(kept.recommend(asked), make(world).recommend(asked))
    assert kept.parts.target.slab is not None
    assert kept.parts.target.slab.slots == 8


@pytest.mark.slow
def test_calls_of_several_threads_wait_for_each_other(world: World) -> None:
    recommender, calls = make(world), list[Future[list[Recommendation]]]()
    expected = recommender.recommend(queries())
    with ThreadPoolExecutor(1) as threads:

        def meanwhile(_: int) -> None:
            if not calls:
                calls.append(threads.submit(recommender.recommend, queries()[::-1]))
            time.sleep(0.02)

        same(recommender.recommend(queries(), on_done=meanwhile), expected)
        same(calls[0].result(60)[::-1], expected)


def test_blends_that_make_no_sense_are_refused(world: World) -> None:
    with pytest.raises(DraftrecError, match="--blend needs"):
        make(world, blend=0.1, verify="sample")
    with pytest.raises(DraftrecError, match="--blend needs"):
        make(world, blend=0.1, constraint="none")
    whole = make(world)
    with pytest.raises(DraftrecError, match="sequences that it is fitted to"):
        ItemRecommender(whole.parts, whole.catalogue, RecommendConfig(k=2, blend=0.1))
    for weight in (-0.1, 1.1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="blend"):
            RecommendConfig(blend=weight)


@pytest.mark.slow
@pytest.mark.parametrize("draft", ["none", "both"])
def test_what_is_forbidden_is_never_recommended(world: World, draft: str) -> None:
    """And nothing is missed for it: the best of the allowed items remain."""
    recommender = make(world, draft, k=40, draft_beams=50)  # so wide that nothing is pruned
    everything = make(world, k=60, draft_beams=60).recommend(queries(3))
    for query, whole in zip(queries(3), everything, strict=True):
        best = whole.items.tolist()
        deny = np.array([*best[:4], 999_999])
        denied = recommender.recommend([Query(1, query.history, deny)])[0]
        assert denied.items.tolist() == best[4:44]
        allow = np.array(best[20:30])
        allowed = recommender.recommend([Query(1, query.history, None, allow)])[0]
        assert allowed.items.tolist() == best[20:30]
        both = recommender.recommend([Query(1, query.history, allow[:3], allow)])[0]
        assert both.items.tolist() == best[23:30]


@pytest.mark.parametrize("draft", ["none", "both"])
def test_where_all_allowed_items_are_forbidden_nothing_is_recommended(
    world: World, draft: str
) -> None:
    """Of a list of seen items the answer was that the catalogue has none of them."""
    (query,) = queries(1)
    allow = query.history[:3]
    asked = [
        Query(1, query.history, deny=allow, allow=allow),
        Query(2, query.history[:0], deny=allow, allow=allow),
    ]
    for recommender in (make(world, draft), make(world, draft, blend=0.5, draft_steps=1)):
        assert [len(answer.items) for answer in recommender.recommend(asked)] == [0, 0]
        assert len(recommender.quick_answer(asked[0]).items) == 0
    seen = make(world, draft, exclude_seen=True).recommend([replace(query, allow=allow)])
    assert len(seen[0].items) == 0


@pytest.mark.slow
def test_seen_items_can_be_left_out(world: World) -> None:
    for query, answer in zip(
        queries(), make(world, "both", exclude_seen=True).recommend(queries()), strict=True
    ):
        assert not set(answer.items.tolist()) & set(query.history.tolist())
        assert len(answer.items) == 5


def test_without_a_history_the_popular_items_answer(world: World) -> None:
    recommender = make(world)
    assert recommender.popular is not None
    nobody = Query(5, np.empty(0, np.int64))
    asked = [queries(1)[0], nobody, Query(6, np.empty(0, np.int64), np.array([10]))]
    known, answer, denied = recommender.recommend(asked)
    popular = recommender.catalogue.sids.items[recommender.popular.popular]
    assert answer.popular
    assert not known.popular
    assert answer.items.tolist() == popular[:5].tolist()
    assert denied.items.tolist() == [i for i in popular.tolist() if i != 10][:5]
    assert (np.diff(answer.scores) <= 0).all()


def test_allowed_and_popular_items_are_found_without_ranking_all(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A list of three allowed items, or a user without a history, was a ranking of everything."""
    asked: list[int] = []
    propose = ItemRetriever.propose

    def noted(self: ItemRetriever, history: Any, m: int, **more: Any) -> Any:
        asked.append(m)
        return propose(self, history, m, **more)

    monkeypatch.setattr(ItemRetriever, "propose", noted)
    recommender = make(world, blend=0.5, blend_candidates=7)
    allow, nothing = np.array([12, 30, 44, 51]), np.empty(0, np.int64)
    found = recommender.recommend(
        [
            Query(1, queries(1)[0].history, allow=allow),
            Query(2, nothing),
            Query(3, nothing, deny=np.array([10, 11])),
            Query(4, nothing, allow=allow, deny=allow[:1]),
        ]
    )
    assert asked == [5, 7]
    assert [len(answer.items) for answer in found] == [4, 5, 5, 3]
    recommender.quick_answer(Query(1, queries(1)[0].history, allow=allow))
    assert asked == [5, 7]


def test_long_histories_keep_the_most_recent(world: World) -> None:
    recommender = make(world)
    long = np.random.default_rng(0).integers(10, 70, 200).astype(np.int64)
    short = long[-recommender.catalogue.encoder.form.max_items :]
    assert len(short) < 21
    same(recommender.recommend([Query(1, long)]), recommender.recommend([Query(1, short)]))


@pytest.mark.slow
def test_a_catalogue_is_swapped_while_the_models_stay(world: World) -> None:
    """Items come and go; the new catalogue's answers are those of a fresh start with it."""
    recommender = make(world, "model")
    before = recommender.recommend(queries(4))
    sids = recommender.catalogue.sids
    kept = np.arange(0, 60, 2)
    fewer = type(sids).of(sids.items[kept], sids.sids_of(sids.items[kept]))
    target = load_recommender(world.target)
    catalogue = Catalogue.of(fewer, target)
    asked = [Query(q.user, q.history[q.history % 2 == 0]) for q in queries(9)]
    asked = [q for q in asked if len(q.history)][:4]
    swapped = recommender.swapped(catalogue).recommend(asked)
    fresh = ItemRecommender(parts_of(target, catalogue), catalogue, recommender.config)
    same(swapped, fresh.recommend(asked))
    assert all(set(a.items.tolist()) <= set(fewer.items.tolist()) for a in swapped)
    same(recommender.recommend(queries(4)), before)


@pytest.mark.parametrize("role", ["target", "draft"])
def test_a_catalogue_needs_the_ids_that_its_models_know(
    world: World, tmp_path: Path, role: str
) -> None:
    sids = read_semantic_ids(world.sids)
    other = reassigned(sids)
    save_model(tmp_path / "other", other, 0, 2, role)
    folders = {"target": world.target, "draft": world.draft, role: tmp_path / "other"}
    target, draft = (load_recommender(folders[name]) for name in ("target", "draft"))
    with pytest.raises(DraftrecError, match="other was trained on other semantic ids than x are"):
        Catalogue.of(sids, target, draft, "x")


@pytest.mark.slow
@pytest.mark.parametrize("verify", ["sample", "relaxed"])
def test_samples_depend_on_seed_and_user_alone(world: World, verify: str) -> None:
    draft = "model" if verify == "relaxed" else "both"
    first = make(world, draft, verify=verify, draft_steps=2).recommend(queries())
    alone = make(world, draft, verify=verify, draft_steps=2).recommend(queries()[4:5])
    same(alone, first[4:5])
    other = make(world, draft, verify=verify, draft_steps=2, seed=1).recommend(queries())
    assert [a.items.tolist() for a in other] != [a.items.tolist() for a in first]


def test_a_shorter_sample_is_the_beginning_of_a_longer_one(world: World) -> None:
    """Also where items share an id, so that not all ids that were drawn are used: to take the
    likeliest of them instead of the first ones would be no sample."""
    recommender = make(world, verify="sample")
    asked = queries(40)
    before: list[set[int]] = [set() for _ in asked]
    for k in range(1, 6):
        answers = recommender.recommend([replace(query, k=k) for query in asked])
        lists = [set(answer.items.tolist()) for answer in answers]
        assert all(len(found) == k for found in lists)
        assert all(fewer <= more for fewer, more in zip(before, lists, strict=True))
        assert all((np.diff(answer.scores) <= 0).all() for answer in answers)
        before = lists


@pytest.mark.slow
def test_a_call_that_was_stopped_leaves_the_next_one_nothing(world: World) -> None:
    """Neither random numbers nor proposals of users that it was about."""
    sampled = make(world, "model", verify="relaxed", draft_steps=1)
    expected = sampled.recommend(queries())
    passes = iter([False, True])
    with pytest.raises(Interrupted):
        sampled.recommend(queries()[::-1], should_stop=lambda: next(passes))
    same(sampled.recommend(queries()), expected)


def test_unconstrained_searches_may_find_no_item(world: World) -> None:
    answers = make(world, constraint="none", k=20).recommend(queries())
    assert sum(a.invalid for a in answers) > 0
    known = set(read_semantic_ids(world.sids).items.tolist())
    assert all(set(a.items.tolist()) <= known for a in answers)


def test_the_share_of_beams_that_are_no_item_counts_beams(world: World, tmp_path: Path) -> None:
    """Popular items, which no beam found, and beams beyond the list counted, or not."""
    config = RecommendConfig(k=2, beams=20, batch_size=3, constraint="none")
    asked = replace(task(world, tmp_path / "a.parquet", config=config, shadow=0.0), draft="none")
    found = prepare(asked)
    summary = run_job(found.job, found.executor, found.histories)
    wide = make(world, k=20, draft_beams=20, constraint="none")
    searched = [Query(h.user, h.items) for h in found.histories if len(h.items)]
    assert summary["popular_users"] == len(found.histories) - len(searched) > 0
    invalid = sum(answer.invalid for answer in wide.recommend(searched))
    assert summary["invalid_rate"] == round(invalid / (20 * len(searched)), 6) > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("draft", "changes", "message"),
    [
        ("none", {"k": 61}, "the catalogue has 60"),
        ("both", {"k": 9}, "let --draft-beams be at least -k"),
        ("both", {"draft_beams": (9, 9, 9)}, "has 3 numbers, but ids of 3 tokens have 2 levels"),
        ("both", {"draft_beams": (9, 3)}, "3 beams are drafted per level but 5"),
        ("both", {"beams": 9}, "let --draft-beams be at least --beams"),
        ("none", {"beams": 4}, "let --beams be at least -k"),
        ("none", {"beams": 9, "verify": "sample"}, "needs --verify strict"),
        ("items", {"verify": "relaxed"}, "give --draft a model"),
        ("none", {"verify": "sample", "constraint": "none"}, "leave --constraint trie"),
        ("items", {"constraint": "none"}, "leave --constraint trie"),
    ],
)
def test_impossible_settings_are_named(
    world: World, draft: str, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(DraftrecError, match=message):
        make(world, draft, **changes)


def test_unknown_items_are_left_out_and_other_vocabularies_named(
    world: World, tmp_path: Path
) -> None:
    odd, even, none = make(world).recommend(
        [Query(1, np.array([11, 4711])), Query(1, np.array([11])), Query(1, np.array([4711]))]
    )
    same([odd], [even])
    assert (odd.unknown, even.unknown, none.unknown, none.popular) == (1, 0, 1, True)
    sids = read_semantic_ids(world.sids)
    reversed_ids = type(sids)(sids.items, sids.codes, sids.tokens[::-1])
    save_model(tmp_path / "other", reversed_ids, 3, 1, "draft")
    with pytest.raises(DraftrecError, match="another vocabulary"):
        make(World(world.sequences, world.sids, world.target, tmp_path / "other"), "model")


def task(world: World, output: Path, **changes: Any) -> TaskSettings:
    config = RecommendConfig(k=5, draft_beams=8, batch_size=3, draft_steps=2)
    return TaskSettings(
        sequences=str(world.sequences), sids=world.sids, target=world.target,
        draft=str(world.draft), output=output,
        **{"config": config, "shadow": 0.5, **changes},
    )  # fmt: skip


def test_it_is_said_where_nobody_takes_an_item_twice(
    world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Of a hundred users; one who does, or lists without seen items, and nothing is said."""
    caplog.set_level("INFO", "draftrec")
    usual, unseen = RecommendConfig(k=5), RecommendConfig(k=5, exclude_seen=True)
    for users, last, config, said in (
        (100, 13, usual, True), (100, 10, usual, False), (100, 13, unseen, False),
        (99, 13, usual, False),
    ):  # fmt: skip
        rows = [
            {"user": user, "items": items, "part": part}
            for user in range(users)
            for part, items in (("train", [10, 11, 12]), ("test", [13]))
        ]
        rows[-1]["items"] = [last]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "sequences.parquet")
        caplog.clear()
        other = replace(world, sequences=tmp_path / "sequences.parquet")
        read_inputs(task(other, tmp_path / "out.parquet", config=config))
        assert ("nobody takes an item twice" in caplog.text) == said


def stopper(after: int) -> Callable[[], bool]:
    calls = iter(range(10_000))
    return lambda: next(calls) >= after


@pytest.mark.slow
def test_an_interrupted_job_ends_in_the_same_file(world: World, tmp_path: Path) -> None:

    def ready(name: str, **changes: Any) -> Any:
        found = prepare(task(world, tmp_path / name, **changes))
        return found, replace(found.job, shard_size=4)

    whole, job = ready("whole.parquet")
    summary = run_job(job, whole.executor, whole.histories)
    table = pq.read_table(tmp_path / "whole.parquet")
    assert table["user"].to_pylist() == list(range(12))
    assert summary["users"] == 12
    assert summary["popular_users"] == 1
    assert summary["shadow_exact_rate"] == 1.0
    assert summary["shadow_users"] == 6
    assert summary["invalid_rate"] == 0.0
    assert 1 <= summary["mean_target_calls"] <= 3
    for after in (0, 3, 8):
        halted, job = ready("halted.parquet")
        with pytest.raises(Interrupted):
            run_job(job, halted.executor, halted.histories, None, stopper(after))
        assert not (tmp_path / "halted.parquet").exists()
    with pytest.raises(DraftrecError, match="limit was unset, now 3"):
        ready("halted.parquet", limit=3)
    halted, job = ready("halted.parquet")
    told: list[int] = []
    again = run_job(job, halted.executor, halted.histories, told.append)
    assert sum(told) == 12  # those of finished shards and users without a history among them
    timeless = {k for k in summary if "walltime" not in k and "ms_" not in k}
    assert {k: again[k] for k in timeless} == {k: summary[k] for k in timeless}
    a, b = (tmp_path / n for n in ("whole.parquet", "halted.parquet"))
    assert a.read_bytes() == b.read_bytes()
    assert not list(tmp_path.glob(".*.parts"))
    with pytest.raises(DraftrecError, match=re.escape("halted.parquet exists")):
        run_job(job, halted.executor, halted.histories)
    fewer, job = ready("halted.parquet", limit=3, overwrite=True)
    assert run_job(job, fewer.executor, fewer.histories)["users"] == 3


def test_users_answered_again_are_a_share_of_the_job_wherever_shards_end() -> None:
    """Of shards of 20 users a hundredth was nobody, and the summary said that none was the same."""
    for size in (1, 20, 64, 1000):
        found = [
            first + i
            for first in range(0, 1000, size)
            for i in shadowed(first, min(size, 1000 - first), 0.01)
        ]
        assert found == list(range(0, 1000, 100))
    assert shadowed(0, 20, 0.01) == [0]
    assert shadowed(0, 3, 1.0) == [0, 1, 2]
    assert shadowed(0, 3, 0.0) == []


def test_another_precision_does_not_go_on_with_a_job(world: World, tmp_path: Path) -> None:
    changes: dict[str, Any] = {
        "config": RecommendConfig(k=5, batch_size=3), "draft": "none", "shadow": 0.0,
    }  # fmt: skip

    def ready(dtype: str) -> Any:
        return prepare(replace(task(world, tmp_path / "a.parquet"), dtype=dtype, **changes))

    begun = ready("float32")
    with pytest.raises(Interrupted):
        run_job(begun.job, begun.executor, begun.histories, None, stopper(3))
    with pytest.raises(DraftrecError, match="dtype was float32, now bfloat16"):
        ready("bfloat16")
    again = ready("float32")
    assert run_job(again.job, again.executor, again.histories)["users"] == 12


def test_shards_are_put_together_by_number(tmp_path: Path) -> None:
    """By name, part-100000 came before part-99999."""
    done = RecommendJob(tmp_path / "lists.parquet", {})
    done.parts.mkdir()
    for number in (99_999, 100_000):
        answer = Recommendation(number, np.array([7]), np.zeros(1), [["<a_1>"]])
        pq.write_table(to_table([answer], NUMBERS), done.parts / f"part-{number:05d}.parquet")
    _join(done, done.output)
    assert pq.read_table(done.output)["user"].to_pylist() == [99_999, 100_000]


@pytest.mark.parametrize("catalogue", ["numbers", "texts"])
def test_finished_users_of_a_shard_survive_whatever_ends_it(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, catalogue: str
) -> None:
    """An interruption lost up to 2,047 of them."""
    world = with_texts(world) if catalogue == "texts" else world

    def run(name: str, stop: Callable[[], bool] | None = None) -> list[int]:
        told: list[int] = []
        found = prepare(task(world, tmp_path / name, shadow=0.0))
        run_job(found.job, found.executor, found.histories, told.append, stop)
        return told

    run("whole.parquet")
    with pytest.raises(Interrupted):
        run("halted.parquet", stopper(5))
    journal = tmp_path / ".halted.parquet.parts" / "journal-00000.jsonl"
    kept = journal.read_bytes().splitlines()
    assert 1 < len(kept) < 12
    journal.write_bytes(journal.read_bytes() + kept[-1][:40])  # torn by a crash
    asked: list[Any] = []
    request = ItemRecommender.request

    def noted(self: ItemRecommender, query: Query) -> Any:
        asked.append(query)
        return request(self, query)

    monkeypatch.setattr(ItemRecommender, "request", noted)
    told = run("halted.parquet")
    assert told[0] == len(kept)
    assert sum(told) == 12
    assert len(asked) == 12 - len(kept)
    whole, halted = (tmp_path / f"{name}.parquet" for name in ("whole", "halted"))
    assert halted.read_bytes() == whole.read_bytes()
    assert not journal.parent.exists()


@pytest.mark.slow
@pytest.mark.parametrize("draft", ["none", "both"])
def test_every_query_may_ask_for_its_own_number_of_items(world: World, draft: str) -> None:
    """The answer is that of a recommender which keeps so many beams for everyone."""
    asked = [Query(q.user, q.history, k=1 + i % 5) for i, q in enumerate(queries())]
    mixed = make(world, draft).recommend(asked)
    for query, found in zip(asked, mixed, strict=True):
        assert query.k is not None
        same([found], make(world, k=query.k).recommend([Query(query.user, query.history)]))
    with pytest.raises(DraftrecError, match="6 items are asked for"):
        make(world).recommend([Query(1, asked[0].history, k=6)])


def test_a_quick_answer_needs_no_model_and_keeps_to_the_query(world: World) -> None:
    recommender = make(world, exclude_seen=True)
    query = queries()[3]
    found = recommender.quick_answer(query)
    assert len(found.items) == 5
    assert not set(found.items.tolist()) & set(query.history.tolist())
    assert (np.diff(found.scores) <= 0).all()
    assert found.sids == recommender.catalogue.sids.sids_of(found.items)
    deny = found.items[:2]
    other = recommender.quick_answer(Query(1, query.history, deny=deny, k=3))
    assert other.items.tolist() == found.items[2:5].tolist()
    allow = np.array([12, 30, 44], np.int64)
    few = recommender.quick_answer(Query(1, np.empty(0, np.int64), allow=allow))
    assert set(few.items.tolist()) == set(allow.tolist())
    recommender.popular = None
    assert len(recommender.quick_answer(query).items) == 0
    with pytest.raises(DraftrecError, match="item 4711"):
        recommender.quick_answer(Query(1, np.array([4711])))


@pytest.mark.slow
def test_another_catalogue_needs_no_new_measurement(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[int] = []
    real = engines.measure_passes

    def counted(*args: Any) -> Any:
        measured.append(1)
        return real(*args, 0.01)

    monkeypatch.setattr(engines, "measure_passes", counted)
    first = make(world, "both", draft_steps="auto")
    first.recommend(queries(2))
    assert len(measured) == 2, "target and draft"
    learnt = first._curves.target
    assert learnt is not None
    assert learnt.passes > 0, "a run's own passes count"
    items = first.parts.retriever
    other = first.swapped(first.catalogue, items, items)
    same(other.recommend(queries()), make(world).recommend(queries()))
    assert len(measured) == 2


def brute_force(world: World, query: Query, width: int) -> tuple[list[int], list[float]]:
    """Items that `width` beams find and their scores, best first, by transformers alone."""
    recommender, loaded = make(world), load_recommender(world.target)
    sids = recommender.catalogue.sids
    tokens = sids.token_ids(loaded.tokenizer.get_vocab())
    prompt = recommender.request(replace(query, k=None)).prompt_ids
    rows = np.concatenate((np.tile(prompt, (len(tokens), 1)), tokens), axis=1)
    with torch.inference_mode():
        logits = loaded.model.eval()(torch.as_tensor(rows, dtype=torch.long)).logits
    log_probs = logits[:, len(prompt) - 1 : -1].double().log_softmax(-1)
    steps = log_probs.gather(2, torch.as_tensor(tokens, dtype=torch.long)[:, :, None])[..., 0]
    sums = steps.cumsum(1).numpy()
    kept = {(): 0.0}
    for level in range(1, tokens.shape[1] + 1):
        below: dict[tuple[int, ...], float] = {}
        for row, total in zip(tokens.tolist(), sums[:, level - 1].tolist(), strict=True):
            if tuple(row[: level - 1]) in kept:
                below[tuple(row[:level])] = total
        kept = dict(sorted(below.items(), key=lambda pair: -pair[1])[:width])
    paths = [tuple(row) for row in tokens.tolist()]
    found = [
        (int(sids.items[i]), score) for path, score in kept.items()
        for i, other in enumerate(paths) if other == path
    ]  # fmt: skip
    return [item for item, _ in found], [score for _, score in found]


@pytest.mark.parametrize("draft", ["none", *DRAFTS])
@settings(max_examples=6, deadline=None)
@given(data=st.data())
def test_the_best_of_more_beams_are_those_that_a_search_by_hand_finds(
    world: World, draft: str, data: st.DataObject
) -> None:
    beams = data.draw(st.integers(1, 60), label="beams")
    k = data.draw(st.integers(1, beams), label="k")
    fewer = data.draw(st.none() | st.integers(1, k), label="fewer")
    history = data.draw(st.lists(st.integers(10, 69), min_size=1, max_size=8), label="history")
    query = Query(1, np.array(history, np.int64), k=fewer)
    recommender = make(world, draft, k=k, beams=beams, draft_beams=None, draft_steps=2)
    (answer,) = recommender.recommend([query])
    items, scores = brute_force(world, query, beams)
    assert answer.items.tolist() == items[: fewer or k]
    np.testing.assert_allclose(answer.scores, scores[: fewer or k], atol=1e-4)


@pytest.mark.parametrize("draft", DRAFTS)
def test_levels_may_have_widths_of_their_own(world: World, draft: str) -> None:
    plain = make(world, k=3, beams=5).recommend(queries())
    calls: list[float] = []
    for widths in ("5", "6,30", (20, 60)):
        it = make(world, draft, k=3, beams=5, draft_beams=widths, draft_steps=3)
        found = it.recommend(queries())
        same(found, plain)
        calls.append(float(np.mean([a.target_calls for a in found])))
    assert calls[0] >= calls[1] >= calls[2], "wider drafts never take more passes"


@pytest.mark.parametrize("draft", DRAFTS)
def test_default_drafts_follow_k(world: World, draft: str) -> None:
    wide = make(world, draft, k=50, draft_beams=None)
    same(wide.recommend(queries(2)), wide.plain().recommend(queries(2)))


def test_a_run_with_the_former_defaults_goes_on(world: World, tmp_path: Path) -> None:
    config = RecommendConfig(k=5, batch_size=3)
    job = prepare(task(world, tmp_path / "out.parquet", config=config)).job
    assert job.settings["draft_beams"] == 40
    assert "beams" not in job.settings


def test_a_recommender_is_loaded_from_its_files_in_one_call(world: World, tmp_path: Path) -> None:
    """With the ids that its target keeps, and lists of any kind for histories."""
    write_semantic_ids(world.target / "sids.parquet", read_semantic_ids(world.sids))
    short = ItemRecommender.from_pretrained(
        world.target, sequences=str(world.sequences), draft=world.draft, k=4, exclude_seen=True
    )
    long = load(
        TaskSettings(
            target=world.target,
            sids=world.sids,
            sequences=str(world.sequences),
            draft=str(world.draft),
            output=tmp_path / "unwritten.parquet",
            part="all",
            config=RecommendConfig(k=4, exclude_seen=True),
        ),
        read_semantic_ids(world.sids),
    ).recommender
    lists = [[12, 30], (12, 30), np.array(["12", "30"]), np.array([12, 30], np.uint8), ["12", 30]]
    found = short.recommend([Query(i, history, deny=[41]) for i, history in enumerate(lists)])
    asked = [Query(i, np.array([12, 30]), np.array([41])) for i in range(len(lists))]
    same(found, long.recommend(asked))
    alone = ItemRecommender.from_pretrained(world.target, k=4)
    assert alone.parts.retriever is None
    assert len(alone.recommend([Query("somebody", [])])[0].items) == 4


@pytest.mark.parametrize(
    ("asked", "wanted"),
    [
        ({"history": "12"}, "no list of ids"),
        ({"history": None}, "no list of ids"),
        ({"history": np.array([[12]])}, "no list of ids"),
        ({"history": [12.0]}, "holds 12.0, which is no id"),
        ({"history": [2**63]}, "which is no id"),
        ({"history": [], "deny": [True]}, "deny holds True"),
        ({"history": [], "allow": 12}, "allow=12 is no list"),
        ({"history": [], "user": None}, "user holds None"),
    ],
)
def test_what_is_no_id_is_refused_where_a_query_is_made(asked: dict[str, Any], wanted: str) -> None:
    with pytest.raises(DraftrecError, match=wanted):
        Query(**{"user": 1, **asked})


def test_what_cannot_be_loaded_is_said(world: World, tmp_path: Path) -> None:
    for changes, wanted in (
        ({"kk": 5}, "is 'k' meant"),
        ({"k": 0}, "k=0 is not allowed"),
        ({"draft": "items"}, "give sequences"),
    ):
        with pytest.raises(DraftrecError, match=wanted):
            ItemRecommender.from_pretrained(world.target, **changes)
    with pytest.raises(DraftrecError, match=r"no genrec\.json"):
        ItemRecommender.from_pretrained(tmp_path)
    copied = tmp_path / "old"
    shutil.copytree(world.target, copied)
    (copied / "sids.parquet").unlink(missing_ok=True)
    with pytest.raises(DraftrecError, match="keeps no semantic ids"):
        ItemRecommender.from_pretrained(copied)


@pytest.mark.parametrize("few", [0, 10_000])
def test_lists_that_all_share_and_what_a_user_has_seen_hold_together(
    world: World, monkeypatch: pytest.MonkeyPatch, few: int
) -> None:
    """However many are allowed: a blend rates all, or proposes until enough are."""
    monkeypatch.setattr(recommender_module, "_FEW", few)
    recommender = make(world, "items", exclude_seen=True, blend=0.5, blend_candidates=4)
    allow, deny = np.arange(10, 50), np.arange(20, 25)
    asked = [replace(q, allow=allow, deny=deny) for q in queries()]
    for query, answer in zip(asked, recommender.recommend(asked), strict=True):
        left = set(range(10, 50)) - set(range(20, 25)) - set(query.history.tolist())
        assert len(answer.items) == 5
        assert set(answer.items.tolist()) <= left
    (own,) = recommender.recommend([replace(asked[0], allow=allow.copy(), deny=deny.copy())])
    same([own], recommender.recommend(asked[:1]))
    sids = recommender.catalogue.sids
    recommender.catalogue = recommender.catalogue.narrowed(sids.find(allow), sids.find(deny))
    same(recommender.recommend(queries()), recommender.recommend(asked))
    left = [replace(q, allow=np.arange(30, 60)) for q in queries()]
    both = [replace(q, allow=np.arange(30, 50)) for q in queries()]
    same(recommender.recommend(left), recommender.recommend(both))


def test_items_are_proposed_until_enough_are_allowed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the best that are known are all left out."""
    monkeypatch.setattr(recommender_module, "_FEW", 0)
    recommender = make(world)
    assert recommender.popular is not None
    best = recommender.catalogue.sids.items[recommender.popular.popular]
    (denied,) = recommender.recommend([Query(1, [], deny=best[:50])])
    (allowed,) = recommender.recommend([Query(1, [], allow=best[50:])])
    assert denied.items.tolist() == allowed.items.tolist() == best[50:55].tolist()
