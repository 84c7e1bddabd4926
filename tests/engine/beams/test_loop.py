"""Beam search finds what beam search finds: without a tree, in transformers, and when drafted."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
import transformers as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from draftrec.engine.beams.drafters import ModelDrafter
from draftrec.engine.beams.loop import (
    BeamEngine,
    SearchBatch,
    accept,
    admit,
    commit,
    reserve,
    retire,
    score,
)
from draftrec.engine.beams.model import BeamModel, Constraint
from draftrec.engine.beams.pace import FixedPace
from draftrec.engine.target import Target
from draftrec.items.trie import Filter, ItemTrie
from tests.engine.beams import toys
from tests.engine.beams.toys import Setting


@cache
def plain(seed: int) -> tf.PreTrainedModel:
    return toys.model(seed)


@cache
def target(seed: int, scale: float = 0.5, layers: int = 2) -> Target:
    return Target(toys.model(seed, scale, layers))


def filters(trie: ItemTrie, seed: int) -> list[Filter | None]:
    random = np.random.default_rng(seed)
    some = random.permutation(len(trie.items))
    return [None, Filter.deny(trie, some[: len(some) // 3]), Filter.allow(trie, some[:5])]


@pytest.mark.slow
@pytest.mark.parametrize("renormalise", [False, True])
@settings(max_examples=15)
@given(seed=st.integers(0, 10_000))
def test_plain_search_is_beam_search(seed: int, *, renormalise: bool) -> None:
    levels = 1 + seed % 4
    trie, ids = toys.catalogue(seed, 5 + seed % 40, levels, 4 + seed % 9)
    setting = Setting(width=1 + seed % 6, slots=1 + seed % 3, renormalise=renormalise)
    asked = toys.requests(seed, 4, filters(trie, seed))
    found = toys.run(target(seed % 3), trie, asked, setting)
    for request, beams in zip(asked, found, strict=True):
        expected = toys.slow_beams(plain(seed % 3), ids, request, setting)
        assert [tuple(t) for t in beams.tokens.tolist()] == [path for path, _ in expected]
        np.testing.assert_allclose(beams.scores, [s for _, s in expected], atol=1e-4)
        assert (trie.walk(beams.tokens)[:, -1] == beams.leaves).all()
        assert (beams.target_calls <= levels) if renormalise else (beams.target_calls == levels)


def test_transformers_finds_the_same_beams() -> None:
    """`generate(num_beams=K, prefix_allowed_tokens_fn=...)`: equal items, order and scores."""
    trie, ids = toys.catalogue(3, 60, 4, 6)
    asked = toys.requests(5, 6)
    found = toys.run(target(1), trie, asked, Setting(width=5))
    followers: dict[tuple[int, ...], set[int]] = {}
    for row in ids.tolist():
        for level in range(4):
            followers.setdefault(tuple(row[:level]), set()).add(row[level])
    for request, beams in zip(asked, found, strict=True):
        p = len(request.prompt_ids)
        answer = plain(1).generate(
            torch.tensor([request.prompt_ids.tolist()]),
            attention_mask=torch.ones((1, p), dtype=torch.long),
            num_beams=5,
            num_return_sequences=5,
            min_new_tokens=4,
            max_new_tokens=4,
            do_sample=False,
            length_penalty=0.0,
            prefix_allowed_tokens_fn=lambda _, ids, p=p: list(followers[tuple(ids[p:].tolist())]),
            return_dict_in_generate=True,
            output_scores=True,
        )
        assert answer.sequences[:, p:].tolist() == beams.tokens.tolist()
        np.testing.assert_allclose(answer.sequences_scores.numpy(), beams.scores, atol=1e-4)


#: Seed, scale of the weights and layers.
DRAFTS = {
    "perfect": (0, 0.5, 2),
    "other": (7, 0.5, 2),
    "shallow": (0, 0.5, 1),
    "flat": (8, 0.01, 1),
}


@pytest.mark.slow
@pytest.mark.parametrize("draft", DRAFTS)
@settings(max_examples=25)
@given(data=st.data())
def test_drafted_beams_are_the_plain_ones(draft: str, data: st.DataObject) -> None:
    """Whatever the draft model, N, gamma, K, batch, constraint and filters."""
    seed = data.draw(st.integers(0, 10_000))
    levels = data.draw(st.integers(1, 5))
    items, codes = data.draw(st.integers(3, 80)), data.draw(st.integers(2, 12))
    trie, _ = toys.catalogue(seed, items, levels, codes)
    width = data.draw(st.integers(1, 8))
    setting = Setting(
        width,
        width + data.draw(st.integers(0, 8)),
        data.draw(st.integers(0, 5)),
        data.draw(st.integers(1, 4)),
        data.draw(st.booleans()),
    )
    asked = toys.requests(seed, data.draw(st.integers(1, 8)), filters(trie, seed))
    wanted = toys.run(target(0), trie, asked, setting)
    found = toys.run(target(0), trie, asked, setting, target(*DRAFTS[draft]))
    assert toys.same(found, wanted)
    for a, b in zip(found, wanted, strict=True):
        assert a.key == b.key
        assert 1 <= a.target_calls <= b.target_calls


@pytest.mark.slow
@settings(max_examples=30)
@given(seed=st.integers(0, 10_000), width=st.integers(1, 6), more=st.integers(0, 5))
def test_a_perfect_draft_is_always_accepted(seed: int, width: int, more: int) -> None:
    trie, _ = toys.catalogue(seed, 70, 4, 8)
    setting = Setting(width, width + more, 3)
    for beams in toys.run(target(2), trie, toys.requests(seed, 5), setting, target(2)):
        assert beams.target_calls == 1
        assert beams.accepted_steps == 3


def test_caches_keep_the_rows_of_kept_beams_alone() -> None:
    """Drafts that were wrong leave nothing behind, in the target's cache and in the draft's."""
    trie, _ = toys.catalogue(3, 60, 4, 6)
    big, small = (BeamModel(m, Constraint(trie, 4)) for m in (target(0), target(7, layers=1)))
    drafter = ModelDrafter(small, 3, FixedPace(6, 2, 4))
    engine, requests = BeamEngine(big, drafter, 3, 4), toys.requests(3, 4)
    reserve(engine, max(len(r.prompt_ids) for r in requests))
    batch = SearchBatch(requests, engine.slots)
    unfinished = 0
    while batch.active:
        admit(engine, batch)
        drafter.draft(batch.running)
        for s in batch.running:
            mine = s.tree.closure(np.concatenate((s.kept.nodes, *s.levels)))
            assert np.isin(drafter._users[s.order].order, mine).all()
        score(engine, batch.running)
        accept(engine, batch.running)
        commit(engine, batch.running)
        for s in (s for s in batch.running if not s.done):
            unfinished += 1
            assert np.isin(s.target.order, s.tree.closure(s.kept.nodes)).all()
        drafter.observe(batch.running)
        retire(engine, batch)
    assert unfinished > 0
