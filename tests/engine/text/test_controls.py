from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given

from draftrec.config import AcceptConfig
from draftrec.core import EMPTY_TREE, DraftTree, Request
from draftrec.engine.text.batch import RunningSequence
from draftrec.engine.text.controls import rows_of
from draftrec.engine.text.loop import generate
from tests.engine.text.toy import BushyDrafter, toy_engine, toy_requests
from tests.strategies import trees as any_tree


def running(prompt: list[int], text: list[int], order: int = 0, most: int = 40) -> RunningSequence:
    """A sequence that has written `text` after `prompt`."""
    request = Request(str(order), np.array(prompt, np.int32), key=order)
    sequence = RunningSequence(order, order, request, most)
    sequence._tokens[len(prompt) : len(prompt) + len(text)] = text
    sequence.length += len(text)
    return sequence


def paths(tree: DraftTree) -> list[list[int]]:
    """Brute force: per row, the tokens of the nodes that lead to it."""
    found: list[list[int]] = [[]]
    for token, parent in zip(tree.token_ids.tolist(), tree.parents.tolist(), strict=True):
        found.append([*found[parent + 1], token])
    return found


@pytest.mark.slow
@given(any_tree(9), any_tree(50))
def test_rows_know_their_paths(one: DraftTree, other: DraftTree) -> None:
    batch = [running([1, 2], [3]), running([4], []), running([5], [6, 7])]
    trees = [one, EMPTY_TREE, other]
    rows = rows_of(batch, trees)
    expected = [path for tree in trees for path in paths(tree)]
    assert [p[p >= 0].tolist() for p in rows.path] == expected
    assert rows.depth.tolist() == [len(p) for p in expected]
    assert rows.owner.tolist() == [i for i, t in enumerate(trees) for _ in range(1 + len(t))]
    assert rows.new_tokens[0] == 1
    assert rows.new_tokens[-len(other) - 1 :].tolist() == [2 + len(p) for p in paths(other)]


class Never:
    """Forbids one token everywhere."""

    def __init__(self, token: int) -> None:
        self.token = token

    def apply(self, batch: Any, trees: Any, logits: torch.Tensor) -> torch.Tensor:
        assert logits.dtype == torch.float32
        assert len(logits) == sum(1 + len(tree) for tree in trees)
        logits[:, self.token] = -torch.inf
        return logits


def test_what_a_control_forbids_is_not_accepted_by_any_rule() -> None:
    table = np.zeros((8, 8))
    table[:, 3] = 5.0  # the first choice everywhere
    for rule in ("strict", "relaxed", "typical", "entropy"):
        config = AcceptConfig(accept=rule, top_k=8, min_prob=0.0, epsilon=0.0, window=0)
        engine = toy_engine(table, config, BushyDrafter(8), most=12)
        engine.controls = [Never(3)]
        texts = generate(engine, toy_requests(20))
        assert not any(3 in text.token_ids for text in texts), rule
