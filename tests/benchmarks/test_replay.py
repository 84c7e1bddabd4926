"""The replay rule is the strict rule of a model that writes the recorded texts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from replay import ReplayRule

from draftrec.config import AcceptConfig
from draftrec.core import DraftTree, Request
from draftrec.engine.text.accept import Strict
from draftrec.engine.text.batch import RunningSequence
from draftrec.engine.tree import make_tree

EOS = 0
VOCABULARY = 4


@st.composite
def trees(draw: st.DrawFn) -> DraftTree:
    """Small trees over few tokens, so that they often agree with a recording."""
    tokens: list[int] = []
    parents: list[int] = []
    for _ in range(draw(st.integers(0, 12))):
        parent = draw(st.integers(-1, len(tokens) - 1))
        taken = {t for t, p in zip(tokens, parents, strict=True) if p == parent}
        free = [t for t in range(VOCABULARY) if t not in taken]
        if free:
            tokens.append(draw(st.sampled_from(free)))
            parents.append(parent)
    return make_tree(tokens, parents)


def sequence_after(written: list[int], room: int) -> RunningSequence:
    sequence = RunningSequence(0, 0, Request("a", np.array([9], np.int32)), len(written) + room)
    sequence._tokens[1 : 1 + len(written)] = written
    sequence.length += len(written)
    return sequence


def logits_that_say(tree: DraftTree, rest: list[int]) -> torch.Tensor:
    """What the recorded model's logits would be: its next token wherever the path agrees."""
    logits = torch.zeros(1 + len(tree), VOCABULARY)
    place = {-1: 0}
    logits[0, rest[0]] = 1
    for node, (token, parent) in enumerate(
        zip(tree.token_ids.tolist(), tree.parents.tolist(), strict=True)
    ):
        here = place.get(parent)
        if here is not None and token == rest[here] and here + 1 < len(rest):
            place[node] = here + 1
            logits[node + 1, rest[here + 1]] = 1
    return logits


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(trees(), st.lists(st.integers(1, 3), max_size=8), st.integers(0, 3), st.integers(1, 6))
def test_it_decides_as_strict_does(tree: DraftTree, text: list[int], done: int, room: int) -> None:
    recorded = [*text, EOS]
    done = min(done, len(text))
    sequence = sequence_after(recorded[:done], room)
    rule = ReplayRule({"a": np.array(recorded, np.int32)})
    logits = logits_that_say(tree, recorded[done:])
    strict = Strict(AcceptConfig(), frozenset([EOS])).accept([sequence], [tree], logits)[0]
    noise = torch.randn(1 + len(tree), VOCABULARY)
    verdict = rule.accept([sequence], [tree], noise)[0]
    assert verdict.path.tolist() == strict.path.tolist()
    assert verdict.token_ids.tolist() == strict.token_ids.tolist()


def test_a_recording_without_an_end_is_refused() -> None:
    sequence = sequence_after([1, 2], room=3)
    rule = ReplayRule({"a": np.array([1, 2], np.int32)})
    with pytest.raises(ValueError, match="does not end"):
        rule.accept([sequence], [make_tree([], [])], torch.zeros(1, VOCABULARY))
