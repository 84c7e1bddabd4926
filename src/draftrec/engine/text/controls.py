"""What stands between the target's scores and the choice of a token: controls, in their order.

A control sees every row of a pass, those of draft nodes too, and judges each after its own path:
the prompt, the text so far, and the node's ancestors. Rules of acceptance see only what controls
leave, so that a draft changes nothing about them.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from draftrec.core import DraftTree, LongArray
from draftrec.engine.text.batch import RunningSequence


class Control(Protocol):
    """Changes the target's scores; every row is judged after its own path (prompt + text +
    ancestors)."""

    def apply(
        self, batch: Seq[RunningSequence], trees: Seq[DraftTree], logits: torch.Tensor
    ) -> torch.Tensor:
        """float32 `[R, V]`, R = sum(1 + len(tree)): per sequence one row after its last committed
        token, then one after each node. May write into `logits`. A token at -inf is never emitted,
        whatever the acceptance rule. Called in inference mode, once per pass."""
        ...


def controlled(
    controls: Seq[Control],
    batch: Seq[RunningSequence],
    trees: Seq[DraftTree],
    logits: torch.Tensor,
) -> torch.Tensor:
    """The scores after all `controls`, one after the other; as they are where there are none."""
    if not controls:
        return logits
    with torch.inference_mode():
        logits = logits.float()
        for control in controls:
            logits = control.apply(batch, trees, logits)
    return logits


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of one pass as paths. `owner` int64 `[R]`: each row's sequence, a place in `batch`;
    `depth` int64 `[R]`: nodes on its path, 0 for the row after the committed text; `path` int64
    `[R, D]`: their tokens from the root down, -1 past the end."""

    batch: Seq[RunningSequence]
    owner: LongArray
    depth: LongArray
    path: LongArray

    @property
    def room(self) -> LongArray:
        """int64 `[R]`: tokens that may follow the row."""
        return np.array([s.room for s in self.batch], np.int64)[self.owner] - self.depth

    @property
    def new_tokens(self) -> LongArray:
        """int64 `[R]`: tokens of the text up to the row, without the prompt."""
        return np.array([s.new_tokens for s in self.batch], np.int64)[self.owner] + self.depth


class RowControl(Protocol):
    """One of the controls of a `Processors`, which finds the paths once for all of them."""

    def change(self, rows: Rows, logits: torch.Tensor) -> torch.Tensor:
        """float32 `[R, V]`, changed in place or anew."""
        ...


class Processors:
    """Several controls in a row: transformers' logits processors in transformers' order."""

    def __init__(self, controls: Seq[RowControl]) -> None:
        self.controls = controls

    def apply(
        self, batch: Seq[RunningSequence], trees: Seq[DraftTree], logits: torch.Tensor
    ) -> torch.Tensor:
        """All of them, one after the other."""
        rows = rows_of(batch, trees)
        for control in self.controls:
            logits = control.change(rows, logits)
        return logits


def rows_of(batch: Seq[RunningSequence], trees: Seq[DraftTree]) -> Rows:
    """The paths of all rows; as many array operations as the deepest tree has levels."""
    sizes = np.array([1 + len(tree) for tree in trees], np.int64)
    owner = np.repeat(np.arange(len(trees)), sizes)
    first = (np.cumsum(sizes) - sizes)[owner]
    parent, token = np.arange(len(owner)), np.full(len(owner), -1, np.int64)
    nodes = np.flatnonzero(parent > first)
    if not len(nodes):
        return Rows(batch, owner, np.zeros(len(owner), np.int64), token[:, None][:, :0])
    parent[nodes] = np.concatenate([tree.parents for tree in trees]) + 1 + first[nodes]
    token[nodes] = np.concatenate([tree.token_ids for tree in trees])
    levels: list[LongArray] = []  # each row's tokens, from itself upwards
    at = np.arange(len(owner))
    while (token[at] >= 0).any():
        levels.append(token[at])
        at = parent[at]
    upwards = np.stack(levels, 1)
    depth: LongArray = np.count_nonzero(upwards >= 0, axis=1).astype(np.int64)
    downwards: LongArray = depth[:, None] - (1 + np.arange(len(levels), dtype=np.int64))
    path = np.take_along_axis(upwards, np.maximum(downwards, 0), 1)
    return Rows(batch, owner, depth, np.where(downwards >= 0, path, -1))
