"""Acceptance rules against slow references, verdict by verdict."""

from __future__ import annotations

import math
from collections.abc import Sequence as Seq
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from draftrec.config import AcceptConfig
from draftrec.core import DraftTree, Request, Verdict
from draftrec.engine.text.accept import Relaxed, Strict, make_rule
from draftrec.engine.text.batch import RunningSequence
from draftrec.engine.tree import chain, make_tree
from tests.engine.text.toy import EOS
from tests.strategies import children, trees

VOCABULARY = 7
NO_EOS: frozenset[int] = frozenset()
PAPER: dict[str, Any] = {"accept": "relaxed", "eos_guard": False, "tie_break": "first"}


def sequence(room: int = 50, prompt: Seq[int] = (1,)) -> RunningSequence:
    return RunningSequence(0, 0, Request("a", np.array(prompt, np.int32)), room)


def verdict_of(
    config: AcceptConfig,
    tree: DraftTree,
    logits: torch.Tensor,
    eos: frozenset[int] = NO_EOS,
    room: int = 50,
) -> Verdict:
    return make_rule(config, eos).accept([sequence(room)], [tree], logits)[0]


@st.composite
def scored_trees(draw: st.DrawFn) -> tuple[DraftTree, torch.Tensor]:
    """A tree in depth-first order and logits `[1 + nodes, V]` without ties."""
    tree = depth_first(draw(trees(VOCABULARY, 10)))
    seed = draw(st.integers(0, 10_000))
    scale = draw(st.sampled_from([0.3, 1.0, 3.0]))
    logits = np.random.default_rng(seed).normal(0, scale, (1 + len(tree), VOCABULARY))
    return tree, torch.as_tensor(logits, dtype=torch.float32)


def depth_first(tree: DraftTree) -> DraftTree:
    order: list[int] = []
    stack = children(tree, -1)[::-1]
    while stack:
        order.append(stack.pop())
        stack += children(tree, order[-1])[::-1]
    place = {node: i for i, node in enumerate(order)} | {-1: -1}
    return make_tree(tree.token_ids[order].tolist(), [place[int(tree.parents[i])] for i in order])


def branches(tree: DraftTree) -> list[list[int]]:
    """Every path from the root to a leaf, in the order of the leaves."""
    found: list[list[int]] = []
    for leaf in range(len(tree)):
        if not children(tree, leaf):
            path = [leaf]
            while tree.parents[path[-1]] >= 0:
                path.append(int(tree.parents[path[-1]]))
            found.append(path[::-1])
    return found or [[]]


def allowed(row: torch.Tensor, top_k: int, min_prob: float) -> set[int]:
    """S = TopK(q) with q(x) > p; the argmax alone where no token exceeds p."""
    probs = torch.softmax(row.double(), -1).tolist()
    best = sorted(range(len(probs)), key=lambda i: -probs[i])
    return {i for i in best[:top_k] if probs[i] > min_prob} or {best[0]}


def papers_rule(tree: DraftTree, logits: torch.Tensor, top_k: int, min_prob: float) -> list[int]:
    """Relaxed verification as published, branch by branch (arXiv 2408.05676)."""
    best: list[int] = []
    for branch in branches(tree):
        out: list[int] = []
        for i in range(len(branch) + 1):
            row = logits[branch[i - 1] + 1 if i else 0]
            if i < len(branch) and int(tree.token_ids[branch[i]]) in allowed(row, top_k, min_prob):
                out.append(int(tree.token_ids[branch[i]]))
            else:
                out.append(int(row.argmax()))
                break
        if len(out) > len(best):
            best = out
    return best


@pytest.mark.slow
@settings(max_examples=300)
@given(
    scored=scored_trees(),
    top_k=st.integers(1, 4),
    min_prob=st.sampled_from([0.0, 0.04, 0.1, 0.23, 0.6]),
)
def test_papers_rule_is_a_setting(
    scored: tuple[DraftTree, torch.Tensor], top_k: int, min_prob: float
) -> None:
    tree, logits = scored
    config = AcceptConfig(**PAPER, top_k=top_k, min_prob=min_prob)
    verdict = verdict_of(config, tree, logits)
    assert verdict.token_ids.tolist() == papers_rule(tree, logits, top_k, min_prob)


def slow_best(
    tree: DraftTree, logits: torch.Tensor, config: AcceptConfig, eos: frozenset[int]
) -> list[int]:
    """Our own rule from its definition: all reachable paths, longest first, then most probable."""
    log_probs = torch.log_softmax(logits.double(), -1)
    best: tuple[tuple[int, float], list[int]] = ((0, 0.0), [])
    for branch in branches(tree):
        score = 0.0
        for length, node in enumerate(branch, 1):
            row, token = int(tree.parents[node]) + 1, int(tree.token_ids[node])
            own = int(logits[row].argmax())
            guarded = config.eos_guard and own in eos and token not in eos
            if token not in allowed(logits[row], config.top_k, config.min_prob) or guarded:
                break
            score += float(log_probs[row, token])
            key = (length, score)
            if key > best[0] and (length > best[0][0] or score > best[0][1] + 1e-4):
                best = (key, branch[:length])
            if token in eos:
                break
    return best[1]


@pytest.mark.slow
@settings(max_examples=300)
@given(scored=scored_trees(), top_k=st.integers(1, 4), guard=st.booleans())
def test_longest_then_most_probable_path_wins(
    scored: tuple[DraftTree, torch.Tensor], top_k: int, *, guard: bool
) -> None:
    tree, logits = scored
    eos = frozenset([2, 3])
    config = AcceptConfig(accept="relaxed", top_k=top_k, min_prob=0.04, eos_guard=guard)
    verdict = verdict_of(config, tree, logits, eos)
    path = slow_best(tree, logits, config, eos)
    assert verdict.path.tolist() == path
    tokens = tree.token_ids[path].tolist()
    own = [int(logits[p + 1].argmax()) for p in tree.parents[path].tolist()]
    assert verdict.relaxed == sum(t != o for t, o in zip(tokens, own, strict=True))
    lost = sum(
        float(logits[int(tree.parents[n]) + 1, o] - logits[int(tree.parents[n]) + 1, t])
        for n, t, o in zip(path, tokens, own, strict=True)
    )
    assert verdict.loss == pytest.approx(lost, abs=1e-4)


@pytest.mark.slow
@settings(max_examples=100)
@given(scored=scored_trees(), eos=st.sampled_from([NO_EOS, frozenset([1, 4])]))
def test_one_token_and_no_threshold_is_strict(
    scored: tuple[DraftTree, torch.Tensor], eos: frozenset[int]
) -> None:
    tree, logits = scored
    strict = verdict_of(AcceptConfig(), tree, logits, eos)
    one = AcceptConfig(accept="relaxed", top_k=1, min_prob=0.0)
    for config in (one, one.model_copy(update={"eos_guard": False, "tie_break": "first"})):
        relaxed = verdict_of(config, tree, logits, eos)
        assert relaxed.path.tolist() == strict.path.tolist()
        assert relaxed.token_ids.tolist() == strict.token_ids.tolist()
        assert (relaxed.relaxed, relaxed.loss) == (0, 0.0)


@pytest.mark.parametrize("vocabulary", [7, 50])
def test_exact_ties_go_to_the_greedy_token(vocabulary: int) -> None:
    """Equal logits are common in bfloat16, and `topk` picks any of them."""
    tree = make_tree(range(vocabulary)[::-1], [-1] * vocabulary)
    random = np.random.default_rng(0)
    for _ in range(20):
        logits = torch.as_tensor(random.integers(0, 2, (1 + vocabulary, vocabulary))).float()
        strict = verdict_of(AcceptConfig(), tree, logits)
        relaxed = verdict_of(AcceptConfig(accept="relaxed", top_k=1, min_prob=0.0), tree, logits)
        assert relaxed.token_ids.tolist() == strict.token_ids.tolist()


@pytest.mark.slow
@settings(max_examples=100)
@given(scored=scored_trees())
def test_strict_path_is_the_argmax_chain(scored: tuple[DraftTree, torch.Tensor]) -> None:
    tree, logits = scored
    verdict = verdict_of(AcceptConfig(), tree, logits)
    node, tokens = -1, []
    while True:
        token = int(logits[node + 1].argmax())
        tokens.append(token)
        below = [c for c in children(tree, node) if int(tree.token_ids[c]) == token]
        if not below:
            break
        node = below[0]
    assert verdict.token_ids.tolist() == tokens
    assert tree.token_ids[verdict.path].tolist() == tokens[:-1]


def peaked(*rows: dict[int, float]) -> torch.Tensor:
    """Logits whose softmax has the given probabilities, the rest spread evenly."""
    table = np.empty((len(rows), VOCABULARY))
    for i, row in enumerate(rows):
        table[i] = (1 - sum(row.values())) / (VOCABULARY - len(row))
        for token, p in row.items():
            table[i, token] = p
    return torch.as_tensor(np.log(table), dtype=torch.float32)


def test_guard_stops_at_an_eos_that_is_the_argmax() -> None:
    tree = chain([3, 4])
    logits = peaked({EOS: 0.5, 3: 0.4}, {4: 0.9}, {5: 0.9})
    eos = frozenset([EOS])
    relaxed = AcceptConfig(accept="relaxed")
    assert verdict_of(relaxed, tree, logits, eos).token_ids.tolist() == [EOS]
    free = relaxed.model_copy(update={"eos_guard": False})
    assert verdict_of(free, tree, logits, eos).token_ids.tolist() == [3, 4, 5]


def test_guard_holds_where_eos_ties_with_another_token() -> None:
    tree = chain([3, 4])
    logits = peaked({EOS: 0.45, 3: 0.45}, {4: 0.9}, {5: 0.9})
    assert int(logits[0].argmax()) == EOS
    found = verdict_of(AcceptConfig(accept="relaxed"), tree, logits, frozenset([EOS]))
    assert found.token_ids.tolist() == [EOS]


def test_equally_long_paths_go_to_the_more_probable_one() -> None:
    tree = make_tree([3, 4], [-1, -1])
    logits = peaked({3: 0.3, 4: 0.5}, {5: 0.9}, {6: 0.9})
    relaxed = AcceptConfig(accept="relaxed")
    assert verdict_of(relaxed, tree, logits).token_ids.tolist() == [4, 6]
    first = relaxed.model_copy(update={"tie_break": "first"})
    assert verdict_of(first, tree, logits).token_ids.tolist() == [3, 5]


@pytest.mark.parametrize("accept", ["strict", "relaxed"])
@pytest.mark.parametrize("room", [1, 2, 3, 4])
def test_verdicts_fit_the_room_and_their_counts_are_of_what_is_kept(accept: str, room: int) -> None:
    tree = chain([3, 4, 5])
    logits = peaked({3: 0.5}, {6: 0.5, 4: 0.4}, {6: 0.5, 5: 0.4}, {1: 0.5})
    found = verdict_of(AcceptConfig.model_validate({"accept": accept}), tree, logits, room=room)
    whole = [3, 4, 5, 1] if accept == "relaxed" else [3, 6]
    assert found.token_ids.tolist() == whole[:room]
    assert len(found.path) == min(len(whole) - 1, room)
    kept = max(0, len(found.path) - 1) if accept == "relaxed" else 0
    assert found.relaxed == kept
    assert found.loss == pytest.approx(kept * math.log(0.5 / 0.4), abs=1e-5)


def test_rules_read_each_sequences_own_rows() -> None:
    trees_ = [chain([3]), make_tree([], []), make_tree([4, 5], [-1, -1])]
    logits = peaked({3: 0.9}, {6: 0.9}, {2: 0.9}, {5: 0.9}, {1: 0.9}, {4: 0.9})
    for rule in (Strict(AcceptConfig(), NO_EOS), Relaxed(AcceptConfig(accept="relaxed"), NO_EOS)):
        found = rule.accept([sequence() for _ in trees_], trees_, logits)
        assert [v.token_ids.tolist() for v in found] == [[3, 6], [2], [5, 4]]
        assert [v.path.tolist() for v in found] == [[0], [], [1]]
