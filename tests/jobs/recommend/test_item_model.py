"""An item model beside the target: what it says is its own, and a blend with it is what it should
be, whoever drafts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from draftrec.config import RecommendConfig
from draftrec.data.sequences import read_semantic_ids, write_semantic_ids
from draftrec.engine.packing import Segment
from draftrec.engine.target import Scores, Target
from draftrec.errors import DraftrecError
from draftrec.items.semantic_ids import SemanticIds
from draftrec.jobs.recommend import item_model
from draftrec.jobs.recommend.catalogue import Candidates, Catalogue, Query
from draftrec.jobs.recommend.item_model import ItemModel
from draftrec.jobs.recommend.loading import fit_retriever, parts_of
from draftrec.jobs.recommend.recommender import ItemRecommender
from draftrec.jobs.recommend.setup import TaskSettings, load
from draftrec.models.recommender import load_recommender
from tests.jobs.recommend.test_recommender import queries, same
from tests.jobs.recommend.worlds import World, make_world, save_item_model


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def folder(world: World) -> Path:
    """An item model that does not know the last three items."""
    return save_item_model(world, world.sids.parent / "items", without=3)


def make(world: World, folder: Path, draft: str = "none", **changes: Any) -> ItemRecommender:
    sids = read_semantic_ids(world.sids)
    target = load_recommender(world.target)
    items = fit_retriever(str(world.sequences), sids)
    usual = {"k": 5, "draft_beams": 60, "batch_size": 3, "blend_item_model": 0.4}
    config = RecommendConfig.model_validate({**usual, "blend_candidates": 7, **changes})
    catalogue = Catalogue.of(sids, target)
    small = load_recommender(world.draft) if draft in ("model", "both") else None
    parts = parts_of(target, catalogue, small, items if draft in ("items", "both") else None)
    item_model = ItemModel.of(load_recommender(folder), sids)
    return ItemRecommender(parts, catalogue, config, items, item_model)


def shares_of(folder: Path, sids: SemanticIds, history: np.ndarray) -> np.ndarray:
    """float64 `[items]`: the softmax of a plain pass over the items that the model knows."""
    model = load_recommender(folder)
    vocabulary = model.tokenizer.get_vocab()
    tokens = [vocabulary.get(f"<item_{place}>", -1) for place in range(len(sids))]
    known = [tokens[place] for place in sids.find(history).tolist() if tokens[place] >= 0]
    ids = torch.tensor([[model.tokenizer.bos_token_id, *known[-20:]]])
    with torch.inference_mode():
        logits = model.model(input_ids=ids).logits[0, -1].double().numpy()
    values = np.array([np.exp(logits[token]) if token >= 0 else 0.0 for token in tokens])
    return values / values.sum()


def test_shares_are_the_models_own_of_the_items_it_knows(world: World, folder: Path) -> None:
    sids = read_semantic_ids(world.sids)
    model = ItemModel.of(load_recommender(folder), sids)
    for query in [*queries(4), Query(1, np.array([12, 69, 13, 68]))]:
        wanted = shares_of(folder, sids, query.history)
        history = sids.places(query.history)
        np.testing.assert_allclose(model.shares(history, np.arange(60)), wanted, atol=1e-6)
        best, shares = model.propose(history, 9)
        np.testing.assert_allclose(shares, np.sort(wanted)[::-1][:9], atol=1e-6)
        np.testing.assert_allclose(wanted[best], shares, atol=1e-6)
        assert len(model.propose(history, 99)[0]) == 57  # what it does not know is not proposed


def test_a_blend_of_three_is_their_mixture(world: World, folder: Path) -> None:
    """Item by item: beams of plain search and both others' best, each a part of what all have."""
    blended, plain = make(world, folder, blend=0.35), make(world, folder, blend=0, k=5)
    sids, items = blended.catalogue.sids, blended.popular
    assert items is not None
    for query, answer in zip(queries(4), blended.recommend(queries(4)), strict=True):
        history = sids.places(query.history)
        ((request, beams, _),) = plain.search([query])
        share = items.scores(history).astype(np.float64)
        own = shares_of(folder, sids, query.history)
        ranked = (np.argsort(-values, kind="stable")[:7] for values in (share, own))
        leaves = plain.catalogue.trie.leaves_of(np.concatenate([*ranked]))
        found = {*beams.leaves.tolist(), *leaves.tolist()}
        scores = dict(zip(beams.leaves.tolist(), beams.scores.tolist(), strict=True))
        scores |= dict(zip(request.beside.tolist(), beams.beside.tolist(), strict=True))
        at = plain.catalogue.trie.leaves_of(np.arange(60))
        pool = [place for place in range(60) if at[place] in found]
        probs = np.exp([scores[at[place]] for place in pool])
        parts = ((0.25, probs), (0.35, share[pool]), (0.4, own[pool]))
        total = sum(weight * values / values.sum() for weight, values in parts)
        order = np.argsort(-total, kind="stable")[:5]
        assert answer.items.tolist() == [int(sids.items[pool[i]]) for i in order]
        np.testing.assert_allclose(answer.scores, np.log(total[order]), atol=1e-4)


@pytest.mark.parametrize("draft", ["items", "both"])
@pytest.mark.parametrize("exclude_seen", [False, True])
def test_a_blend_of_three_is_the_same_whoever_drafts(
    world: World,
    folder: Path,
    draft: str,
    exclude_seen: bool,  # noqa: FBT001
) -> None:
    asked = [replace(q, k=1 + i % 5) for i, q in enumerate(queries())]
    asked += [replace(q, allow=np.arange(10, 30)) for q in queries(3)]
    asked += [replace(q, deny=np.arange(12, 40)) for q in queries(3)]
    more: dict[str, Any] = {"blend": 0.3, "exclude_seen": exclude_seen}
    plain = make(world, folder, **more).recommend(asked)
    drafted = make(world, folder, draft, draft_steps=2, prefix_cache=3, **more)
    same(drafted.recommend(asked), plain)
    same(drafted.recommend(asked), plain)  # prompts are kept by now
    for query, answer in zip(asked, plain, strict=True):
        allowed = set(range(10, 70)) if query.allow is None else set(query.allow.tolist())
        denied = set() if query.deny is None else set(query.deny.tolist())
        denied |= set(query.history.tolist()) if exclude_seen else set()
        assert set(answer.items.tolist()) <= allowed - denied


def test_a_share_of_one_is_the_item_models_own_list(world: World, folder: Path) -> None:
    alone = make(world, folder, blend_item_model=1)
    for query, answer in zip(queries(4), alone.recommend(queries(4)), strict=True):
        wanted = shares_of(folder, alone.catalogue.sids, query.history)
        np.testing.assert_allclose(wanted[answer.items - 10], np.sort(wanted)[::-1][:5], atol=1e-6)


def test_whoever_knows_nothing_has_no_say(world: World, folder: Path) -> None:
    """A history of items that the model does not know: the ranking is the others' alone."""
    unknown = [Query(1, np.array([67, 68, 69]))]
    (with_it,) = make(world, folder, blend=0.3, blend_item_model=0.5).recommend(unknown)
    (without,) = make(world, folder, blend=0.6, blend_item_model=0.0).recommend(unknown)
    assert with_it.items.tolist() == without.items.tolist()
    gap = without.scores - with_it.scores
    np.testing.assert_allclose(gap, np.log(2), atol=1e-6)


def test_items_without_any_share_are_left_out_and_never_all() -> None:
    places, model = np.array([4, 7, 9]), [-1.0, -2.0, -3.0]
    some = Candidates(places, np.array([model, [-np.inf, -5.0, -4.0]]))
    assert some.best((0.5,), 3)[0].tolist() == [9, 4, 7]
    assert some.best((1.0,), 3)[0].tolist() == [9, 7]
    nothing = Candidates(places, np.array([model, [-np.inf] * 3]))
    for weight in (0.5, 1.0):
        found, scores = nothing.best((weight,), 2)
        assert found.tolist() == [4, 7]
        assert np.isfinite(scores).all()


def test_a_user_is_rated_once(world: World, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the proposals to the answer, and for the model's own list, of however many users; the
    answers are the same where nothing is kept."""
    recommender, passes = make(world, folder, "items", blend=0.3), list[Target]()
    model, score = recommender.item_model, Target.score
    assert model is not None

    def counted(self: Target, segments: list[Segment]) -> Scores:
        passes.append(self)
        return score(self, segments)

    monkeypatch.setattr(Target, "score", counted)
    monkeypatch.setattr(item_model, "_KEPT", 6 * model.items * 4)  # of three at once
    asked = queries(11)
    once = recommender.recommend(asked)
    assert passes.count(model.model) == 11
    recommender.proposed(asked[-1], model)
    assert passes.count(model.model) == 11
    monkeypatch.setattr(item_model, "_KEPT", 0)
    again = recommender.recommend(asked)
    assert passes.count(model.model) > 22
    for one, other in zip(once, again, strict=True):
        assert one.items.tolist() == other.items.tolist()
        assert one.scores.tolist() == other.scores.tolist()


def test_new_items_are_told_and_have_no_share(
    world: World, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sids = read_semantic_ids(world.sids)
    model = ItemModel.of(load_recommender(folder), sids)
    assert "does not know 3 of 60 items, such as 67" in caplog.text
    assert model.shares(np.array([1, 2]), np.array([57, 58, 59])).tolist() == [0.0, 0.0, 0.0]
    kept = SemanticIds.from_codes(sids.items[:40], sids.codes[:40], sids.tokens)
    fewer = model.over(kept)
    before = model.shares(np.array([1, 2]), np.arange(40))
    np.testing.assert_allclose(
        fewer.shares(np.array([1, 2]), np.arange(40)), before / before.sum(), atol=1e-6
    )


def test_what_makes_no_sense_is_refused(world: World, folder: Path, tmp_path: Path) -> None:
    sids = read_semantic_ids(world.sids)
    with pytest.raises(DraftrecError, match="is no item model but a target"):
        ItemModel.of(load_recommender(world.target), sids)
    others = SemanticIds.from_codes(sids.items + 1000, sids.codes, sids.tokens)
    with pytest.raises(DraftrecError, match="knows none of the catalogue's items"):
        ItemModel.of(load_recommender(folder), others)
    for changes in ({"blend_item_model": None}, {"blend": 0.7, "blend_item_model": 0.4}):
        with pytest.raises(DraftrecError, match=r"belong together|less than nothing"):
            make(world, folder, **changes)
    settings = TaskSettings(
        sequences=str(world.sequences), sids=world.sids, target=world.target, draft="none",
        output=tmp_path / "out.parquet", config=RecommendConfig(k=5, blend_item_model=0.4),
    )  # fmt: skip
    with pytest.raises(DraftrecError, match="give --item-model"):
        load(settings, sids)
    write_semantic_ids(tmp_path / "moved.parquet", replace(sids, codes=sids.codes[::-1].copy()))
    moved = read_semantic_ids(tmp_path / "moved.parquet")
    # What semantic ids are is nothing to an item model.
    one, other = (ItemModel.of(load_recommender(folder), it) for it in (sids, moved))
    history = np.array([3, 4])
    assert one.propose(history, 5)[0].tolist() == other.propose(history, 5)[0].tolist()
