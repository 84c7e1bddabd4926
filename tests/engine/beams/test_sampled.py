"""Shared noise gives an exact sample without replacement; the published rule is as published."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from draftrec.engine.beams.accept import (
    BeamRule,
    RelaxedDrafter,
    RelaxedRule,
    StrictRule,
    draw,
    sampled,
    verify_level,
)
from draftrec.engine.beams.drafters import BeamDrafter, ModelDrafter, NoBeamDrafter
from draftrec.engine.beams.loop import BeamEngine, search
from draftrec.engine.beams.model import BeamModel, Constraint
from draftrec.engine.beams.pace import FixedPace
from draftrec.engine.beams.state import BeamRequest, Beams
from draftrec.engine.target import Target
from draftrec.items.trie import ItemTrie
from tests.engine.beams import toys
from tests.engine.beams.toys import Setting

TARGET = Target(toys.model(0, 0.3))
OTHER = Target(toys.model(5, 0.3, 1))
PROMPT = np.array([4, 9, 7], np.int32)


def users(count: int) -> list[BeamRequest]:
    return [BeamRequest(key, PROMPT) for key in range(count)]


def run(
    trie: ItemTrie, asked: list[BeamRequest], width: int, drafter: BeamDrafter, rule: BeamRule
) -> list[Beams]:
    constraint = Constraint(trie, trie.levels)
    return search(BeamEngine(BeamModel(TARGET, constraint), drafter, width, 64, rule), asked)


def shares(trie: ItemTrie) -> dict[tuple[int, ...], float]:
    """The probability of every item, when sampled token by token among legal ones."""
    ids = trie.paths(np.arange(trie.level_start[-2], trie.nodes))
    found = toys.slow_beams(
        toys.model(0, 0.3), ids, BeamRequest(0, PROMPT), Setting(width=len(ids), renormalise=True)
    )
    return {path: float(np.exp(score)) for path, score in found}


@pytest.mark.slow
def test_sampled_beams_are_a_sample_without_replacement() -> None:
    """First and second of K follow p, and p of what is left: chi-square over 4,000 users."""
    trie, _ = toys.catalogue(2, 7, 2, 3)
    p = shares(trie)
    found = run(trie, users(4_000), 2, NoBeamDrafter(), StrictRule(sampled(11)))
    first_of: Counter[tuple[int, ...]] = Counter()
    pairs: Counter[frozenset[tuple[int, ...]]] = Counter()
    for beams in found:
        a, b = (tuple(t) for t in beams.tokens.tolist())
        pairs[frozenset((a, b))] += 1
        first_of[a] += 1
        assert beams.scores[0] >= beams.scores[1]  # best first, in whatever order they were drawn
        assert beams.scores == pytest.approx([np.log(p[a]), np.log(p[b])], abs=1e-4)
    expected = {
        frozenset((a, b)): p[a] * p[b] / (1 - p[a]) + p[b] * p[a] / (1 - p[b])
        for a in p
        for b in p
        if a < b
    }
    assert sum(expected.values()) == pytest.approx(1, abs=1e-4)
    counts = np.array([pairs[pair] for pair in expected])
    wanted = np.array(list(expected.values())) * counts.sum() / sum(expected.values())
    assert chisquare(counts, wanted).pvalue > 1e-3


@pytest.mark.slow
@settings(max_examples=25)
@given(seed=st.integers(0, 10_000), width=st.integers(1, 5), steps=st.integers(0, 4))
def test_whoever_drafts_the_sample_is_the_same(seed: int, width: int, steps: int) -> None:
    trie, _ = toys.catalogue(seed, 60, 1 + seed % 4, 7)
    asked = toys.requests(seed, 5)
    expand = sampled(seed)
    rule = StrictRule(expand)
    plain = run(trie, asked, width, NoBeamDrafter(), rule)
    for draft in (TARGET, OTHER):
        # A target cannot be its own drafter's cache.
        model = BeamModel(Target(toys.model(0, 0.3)) if draft is TARGET else draft,
                          Constraint(trie, trie.levels))  # fmt: skip
        pace = FixedPace(width + 4, steps, trie.levels)
        found = run(trie, asked, width, ModelDrafter(model, width, pace, expand), rule)
        assert toys.same(found, plain)
        if draft is TARGET and steps >= trie.levels - 1:
            assert all(b.target_calls == 1 for b in found)
    others = run(trie, asked, width, NoBeamDrafter(), StrictRule(sampled(seed + 1)))
    assert len(trie.items) < 20 or trie.levels < 3 or not toys.same(others, plain)


def test_users_and_seeds_far_apart_draw_by_themselves() -> None:
    """Users whose numbers are equal in 32 bits had one noise; a text is 63 bits."""
    trie, _ = toys.catalogue(2, 60, 3, 7)
    keys = [7, 7 + 2**32, 7 - 2**32, 7 + 2**62]
    asked = [BeamRequest(key, PROMPT) for key in keys]
    lists = [
        tuple(beams.leaves.tolist())
        for seed in (3, 3 + 2**32)
        for beams in run(trie, asked, 3, NoBeamDrafter(), StrictRule(sampled(seed)))
    ]
    assert len(set(lists)) == 8


def slow_level(
    p: np.ndarray, q: np.ndarray, drafted: np.ndarray, most: int, random: np.random.Generator
) -> tuple[set[int], bool]:
    """The published rule, one candidate at a time, drawing the same random numbers."""
    uniforms = random.random(len(p))
    accepted = [i for i in range(len(p)) if drafted[i] and p[i] > 0 and uniforms[i] * q[i] <= p[i]]
    if len(accepted) >= most:
        return set(random.choice(np.array(accepted), most, replace=False).tolist()), True
    left = [0.0 if i in accepted else max(0.0, float(p[i] - q[i])) for i in range(len(p))]
    noise = random.gumbel(size=len(p))
    ranked = sorted((i for i in range(len(p)) if left[i] > 0),
                    key=lambda i: -(np.log(left[i]) + noise[i]))  # fmt: skip
    return {*accepted, *ranked[: most - len(accepted)]}, False


@pytest.mark.slow
@settings(max_examples=200)
@given(seed=st.integers(0, 100_000), most=st.integers(1, 5))
def test_a_relaxed_level_is_the_published_rule(seed: int, most: int) -> None:
    random = np.random.default_rng(seed)
    p, q = random.dirichlet(np.full(12, 0.6), 2)
    drafted = np.zeros(12, np.bool_)
    drafted[random.choice(12, 8, replace=False)] = True
    step = verify_level(p, q, drafted, most, np.random.default_rng(seed + 1))
    wanted, whole = slow_level(p, q, drafted, most, np.random.default_rng(seed + 1))
    assert step.whole == whole
    assert wanted <= set(step.chosen.tolist())
    assert len(step.chosen) == most


def test_one_draw_with_equal_models_is_always_accepted() -> None:
    p = np.array([0.5, 0.3, 0.2, 0.0])
    for seed in range(50):
        random = np.random.default_rng(seed)
        drafted = np.zeros(4, np.bool_)
        drafted[draw(p, 2, random)] = True
        step = verify_level(p, p, drafted, 2, random)
        assert step.whole
        assert sorted(step.chosen) == np.flatnonzero(drafted).tolist()


@pytest.mark.slow
@settings(max_examples=20)
@given(seed=st.integers(0, 10_000), width=st.integers(1, 4), steps=st.integers(0, 4))
def test_relaxed_searches_end_in_distinct_items(seed: int, width: int, steps: int) -> None:
    trie, _ = toys.catalogue(seed, 60, 1 + seed % 4, 7)
    asked = toys.requests(seed, 5)
    pace = FixedPace(width + 4, steps, trie.levels)
    drafter = RelaxedDrafter(BeamModel(OTHER, Constraint(trie, trie.levels)), width, pace, seed)
    found = run(trie, asked, width, drafter, RelaxedRule(drafter))
    again = RelaxedDrafter(BeamModel(OTHER, Constraint(trie, trie.levels)), width, pace, seed)
    assert toys.same(run(trie, asked[:2], width, again, RelaxedRule(again)), found[:2], 1e-3)
    for beams in found:
        assert len(beams.tokens) == min(width, trie.leaves)
        assert len(np.unique(beams.leaves)) == len(beams.leaves)
        assert (trie.walk(beams.tokens)[:, -1] == beams.leaves).all()
        assert (np.diff(beams.scores) <= 0).all()
        assert 1 <= beams.target_calls <= trie.levels
