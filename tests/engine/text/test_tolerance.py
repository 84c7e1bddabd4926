"""Typical acceptance and the entropy gate against slow references, path by path."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from draftrec.config import AcceptConfig
from draftrec.core import DraftTree, Verdict
from draftrec.engine.text.accept import Queries, entropy, make_rule, make_tolerance
from draftrec.engine.text.loop import generate
from draftrec.engine.tree import chain, make_tree
from tests.engine.text.test_acceptance import (
    NO_EOS,
    VOCABULARY,
    branches,
    peaked,
    scored_trees,
    sequence,
    verdict_of,
)
from tests.engine.text.test_relaxed_texts import TABLE, passes_eos, recount
from tests.engine.text.toy import EOS, BushyDrafter, toy_engine, toy_requests

#: Is the deviation at place `i` of a branch tolerated?
Allows = Callable[[list[int], int], bool]


def probs_of(row: torch.Tensor) -> list[float]:
    return torch.softmax(row.double(), -1).tolist()


def nats(row: torch.Tensor) -> float:
    return -sum(p * math.log(p) for p in probs_of(row) if p > 0)


def best_path(
    tree: DraftTree, logits: torch.Tensor, allows: Allows, eos: frozenset[int]
) -> list[int]:
    """Every branch from its start to where it is rejected; the longest, then the likeliest."""
    best: tuple[tuple[int, float], list[int]] = ((0, 0.0), [])
    for branch in branches(tree):
        score = 0.0
        for i, node in enumerate(branch):
            row, token = logits[int(tree.parents[node]) + 1], int(tree.token_ids[node])
            own = int(row.argmax())
            if token != own and ((own in eos and token not in eos) or not allows(branch, i)):
                break
            score += math.log(probs_of(row)[token])
            better = score > best[0][1] + 1e-4 if i + 1 == best[0][0] else i + 1 > best[0][0]
            if better:
                best = ((i + 1, score), branch[: i + 1])
            if token in eos:
                break
    return best[1]


def check(tree: DraftTree, logits: torch.Tensor, config: AcceptConfig, allows: Allows) -> None:
    """Path, tokens, deviations and loss are the reference's."""
    eos = frozenset([2])
    found = verdict_of(config, tree, logits, eos)
    path = best_path(tree, logits, allows, eos)
    assert found.path.tolist() == path
    rows = [logits[int(p) + 1] for p in tree.parents[path]]
    tokens = tree.token_ids[path].tolist()
    own = [int(row.argmax()) for row in rows]
    assert found.relaxed == sum(t != o for t, o in zip(tokens, own, strict=True))
    lost = sum(float(r[o] - r[t]) for r, o, t in zip(rows, own, tokens, strict=True))
    assert found.loss == pytest.approx(lost, abs=1e-4)


@pytest.mark.slow
@settings(max_examples=200)
@given(
    scored=scored_trees(),
    epsilon=st.sampled_from([0.0, 0.09, 0.21, 1.0]),
    delta=st.sampled_from([0.0, 0.31, 0.8, 20.0]),
)
def test_typical_acceptance_is_as_published(
    scored: tuple[DraftTree, torch.Tensor], epsilon: float, delta: float
) -> None:
    tree, logits = scored

    def allows(branch: list[int], i: int) -> bool:
        row = logits[int(tree.parents[branch[i]]) + 1]
        threshold = min(epsilon, delta * math.exp(-nats(row)))
        return probs_of(row)[int(tree.token_ids[branch[i]])] > threshold

    check(tree, logits, AcceptConfig(accept="typical", epsilon=epsilon, delta=delta), allows)


@pytest.mark.slow
@settings(max_examples=300)
@given(
    scored=scored_trees(), gate=st.sampled_from([0.0, 0.41, 0.83, 0.97]), window=st.integers(0, 3)
)
def test_the_entropy_gate_has_a_deferred_window_on_every_path(
    scored: tuple[DraftTree, torch.Tensor], gate: float, window: int
) -> None:
    tree, logits = scored

    def allows(branch: list[int], i: int) -> bool:
        if nats(logits[int(tree.parents[branch[i]]) + 1]) / math.log(VOCABULARY) < gate:
            return False
        following = branch[i + 1 : i + 1 + window]
        ended = any(int(tree.token_ids[n]) == 2 for n in branch[i : i + window])
        own = [int(logits[int(tree.parents[n]) + 1].argmax()) for n in following]
        agreed = own == tree.token_ids[following].tolist()
        return agreed and len(following) == window and not (window and ended)

    config = AcceptConfig(accept="entropy", entropy_gate=gate, window=window)
    check(tree, logits, config, allows)


NOTHING: list[dict[str, Any]] = [
    {"accept": "typical", "epsilon": 1.0, "delta": 1e9},
    {"accept": "entropy", "entropy_gate": 1.0, "window": 0},
    {"accept": "entropy", "entropy_gate": 0.0, "window": 11},
]
EVERYTHING: list[dict[str, Any]] = [
    {"accept": "typical", "epsilon": 0.0},
    {"accept": "typical", "delta": 0.0},
    {"accept": "entropy", "entropy_gate": 0.0, "window": 0},
]


@pytest.mark.slow
@pytest.mark.parametrize("limits", NOTHING)
@given(scored=scored_trees())
def test_rules_that_tolerate_nothing_are_strict(
    limits: dict[str, Any], scored: tuple[DraftTree, torch.Tensor]
) -> None:
    strict = verdict_of(AcceptConfig(), *scored)
    found = verdict_of(AcceptConfig.model_validate(limits), *scored)
    assert found.token_ids.tolist() == strict.token_ids.tolist()
    assert (found.relaxed, found.loss) == (0, 0.0)


@pytest.mark.slow
@pytest.mark.parametrize("limits", EVERYTHING)
@given(scored=scored_trees())
def test_rules_that_tolerate_everything_take_the_longest_branch(
    limits: dict[str, Any], scored: tuple[DraftTree, torch.Tensor]
) -> None:
    found = verdict_of(AcceptConfig.model_validate(limits), *scored)
    assert len(found.path) == max(map(len, branches(scored[0])))


def test_a_second_deviation_waits_for_the_window() -> None:
    """3 and 5 are deviations, one own choice apart."""
    tree = chain([3, 4, 5, 6])
    flat = {1: 0.2}
    logits = peaked(flat, {4: 0.9}, flat, {6: 0.9}, {2: 0.9})
    gate = AcceptConfig(accept="entropy", entropy_gate=0.5)
    for window, tokens in ((0, [3, 4, 5, 6, 2]), (1, [3, 4, 5, 6, 2]), (2, [1])):
        config = gate.model_copy(update={"window": window})
        assert verdict_of(config, tree, logits).token_ids.tolist() == tokens


def test_a_window_may_be_met_on_another_path_of_the_tree() -> None:
    tree = make_tree([3, 4, 5, 6], [-1, 0, 0, 1])
    flat = {1: 0.2}
    logits = peaked(flat, {4: 0.9}, {6: 0.9}, flat, {2: 0.9})
    config = AcceptConfig(accept="entropy", entropy_gate=0.5, window=2)
    found = verdict_of(config, tree, logits)
    assert found.path.tolist() == [0, 1, 3]
    assert found.relaxed == 1


@pytest.mark.parametrize(("below", "again"), [(0, False), (1, False), (2, True)])
def test_a_path_deviates_again_only_after_its_window(below: int, *, again: bool) -> None:
    """Node 0 deviates; its own choices, nodes 1 and 2, follow. Node 3 deviates below node `below`,
    and is followed by three own choices, so that its path is the longest."""
    tree = make_tree([3, 4, 4, 5, 4, 4, 4], [-1, 0, 1, below, 3, 4, 5])
    logits = peaked({1: 0.2}, *[{4: 0.6}] * 7)
    config = AcceptConfig(accept="entropy", entropy_gate=0.4, window=2)
    found = verdict_of(config, tree, logits)
    assert found.path.tolist() == ([0, 1, 2, 3, 4, 5, 6] if again else [0, 1, 2])
    assert found.relaxed == 1 + again


def test_the_gate_is_shut_where_the_model_is_sure() -> None:
    tree = chain([3, 4])
    logits = peaked({1: 0.95}, {4: 0.9}, {2: 0.9})
    config = AcceptConfig(accept="entropy", entropy_gate=0.3, window=1)
    assert verdict_of(config, tree, logits).token_ids.tolist() == [1]
    low = config.model_copy(update={"entropy_gate": 0.1})
    assert verdict_of(low, tree, logits).token_ids.tolist() == [3, 4, 2]


def test_entropy_is_in_nats_and_bears_impossible_tokens() -> None:
    rows = torch.tensor([[0.0, 0.0, -torch.inf], [5.0, 5.0, 5.0], [90.0, 0.0, 0.0]])
    none = torch.empty(0)
    found = entropy(Queries(rows, rows.logsumexp(-1), none, none, none))
    assert found.tolist() == pytest.approx([math.log(2), math.log(3), 0.0], abs=1e-5)


def test_strict_has_no_tolerance() -> None:
    with pytest.raises(ValueError, match="no other token"):
        make_tolerance(AcceptConfig())


@pytest.mark.parametrize("accept", ["relaxed", "typical", "entropy"])
def test_a_known_deviation_stands_in_the_prompt_or_in_the_text(accept: str) -> None:
    """The first token of a tree deviates: 5 is new, 4 was prompted, 3 was written."""
    made = sequence(prompt=[4, 1])
    made.extend(Verdict(np.empty(0, np.int32), np.array([3], np.int32)), NO_EOS)
    logits = torch.zeros(2, VOCABULARY)
    logits[:, 1] = 0.1
    config = AcceptConfig.model_validate(
        {"accept": accept, "top_k": VOCABULARY, "min_prob": 0.0, "window": 0, "entropy_gate": 0.1}
    )
    for token in (3, 4, 5):
        tree = chain([token])
        (free,) = make_rule(config, NO_EOS).accept([made], [tree], logits)
        known = config.model_copy(update={"deviate_to": "known"})
        (held,) = make_rule(known, NO_EOS).accept([made], [tree], logits)
        assert free.token_ids.tolist() == [token, 1]
        assert held.token_ids.tolist() == ([token, 1] if token != 5 else [1])
        assert held.relaxed == (token != 5)


@pytest.mark.slow
@pytest.mark.parametrize("rule", [EVERYTHING[0], EVERYTHING[2]])
def test_counts_caps_and_the_guard_hold_for_whole_texts(rule: dict[str, Any]) -> None:
    def texts(**changes: Any) -> Any:
        config = AcceptConfig.model_validate({**rule, **changes})
        drafter = BushyDrafter(VOCABULARY, 0)
        return generate(toy_engine(TABLE, config, drafter, most=30), toy_requests(20))

    free, few, cheap = texts(), texts(max_deviations=2), texts(max_loss=1.0)
    assert all(t.counts.relaxed_tokens == recount(t)[0] for t in free)
    assert [t.loss for t in free] == pytest.approx([recount(t)[1] for t in free], abs=1e-4)
    assert max(recount(t)[0] for t in few) == 2 < max(recount(t)[0] for t in free)
    assert 0.4 < max(recount(t)[1] for t in cheap) <= 1.0 + 1e-6
    assert not any(passes_eos(t) for t in free)
    assert any(passes_eos(t) for t in texts(eos_guard=False))


@pytest.mark.parametrize("accept", ["relaxed", "typical", "entropy"])
def test_a_batch_is_judged_as_its_sequences_alone(accept: str) -> None:
    random = np.random.default_rng(5)
    trees = [chain([3, 4, 5]), make_tree([], []), make_tree([4, EOS, 5], [-1, -1, 0])]
    logits = torch.as_tensor(random.normal(0, 1, (9, VOCABULARY)), dtype=torch.float32)
    config = AcceptConfig.model_validate({"accept": accept, "window": 1, "entropy_gate": 0.2})
    rule = make_rule(config, NO_EOS)
    together = rule.accept([sequence() for _ in trees], trees, logits)
    parts = logits.split([1 + len(t) for t in trees])
    for verdict, tree, part in zip(together, trees, parts, strict=True):
        alone = rule.accept([sequence()], [tree], part)[0]
        assert verdict.token_ids.tolist() == alone.token_ids.tolist()
        assert (verdict.relaxed, verdict.loss) == (alone.relaxed, pytest.approx(alone.loss))
