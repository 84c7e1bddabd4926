"""The contexts of one prompt that a draft is aligned at, as one tree that one pass goes through.

Twenty beams of four codes share most of their prefixes: a tree holds each prefix once, and counts
how many beams go through it. So the prompt is computed once instead of twenty times.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from draftrec.core import BoolArray, FloatArray, IntArray, LongArray


@dataclass(frozen=True, eq=False, slots=True)
class ContextTree:
    """`m` prefixes of beams and of the true item, shorter than an item; parents before children.

    `tokens`, `parents` int32 `[m]` (-1: the prompt's end) and `levels` int32 `[m]`, from 1. A *row*
    is a context: row 0 is the prompt's end, row i + 1 what follows prefix i. Of rows `[m + 1]`:
    `next_level` int32, the level of the code to choose there; `beams` float32, how many beams go
    through; `truth` int64, the true item's next token there, -1 off its path. Edges are the tokens
    that beams choose: `edge_rows`, `edge_tokens` int64 `[e]`, and `edge_beams` float32 `[e]`.
    """

    tokens: IntArray
    parents: IntArray
    levels: IntArray
    beams: FloatArray
    truth: LongArray
    edge_rows: LongArray
    edge_tokens: LongArray
    edge_beams: FloatArray

    @property
    def next_level(self) -> IntArray:
        return np.concatenate((np.zeros(1, np.int32), self.levels))

    def sees(self) -> BoolArray:
        """bool `[m, m]`: which prefixes lead to which, themselves included."""
        seen = np.eye(len(self.tokens), dtype=np.bool_)
        for level in range(2, int(self.levels.max(initial=0)) + 1):
            here = np.flatnonzero(self.levels == level)
            seen[here] |= seen[self.parents[here]]
        return seen


def context_tree(beams: IntArray, truth: IntArray) -> ContextTree:
    """The tree of `beams` int32 `[k, L]` and of the true item, `truth` int32 `[L]`, or `[0]` where
    nobody knows it."""
    paths = np.concatenate((beams, truth.reshape(-1, beams.shape[1])))
    weights = (np.arange(len(paths)) < len(beams)).astype(np.float32)
    known = np.flatnonzero(weights == 0)
    tokens, parents, levels = [np.empty(0, np.int32)], [np.empty(0, np.int32)], [0]
    rows = np.zeros(len(paths), np.int64)  # the row of every path's prefix so far
    counts, nexts = [np.array([len(beams)], np.float32)], {}
    edges: list[tuple[LongArray, LongArray, FloatArray]] = []
    count = 0
    for level in range(paths.shape[1]):
        pairs = np.stack((rows, paths[:, level].astype(np.int64)), axis=1)
        unique, inverse = np.unique(pairs, axis=0, return_inverse=True)
        inverse = inverse.reshape(-1)
        through = np.bincount(inverse, weights, len(unique)).astype(np.float32)
        edges.append((unique[:, 0], unique[:, 1], through))
        nexts |= {int(rows[i]): int(paths[i, level]) for i in known}
        if level + 1 < paths.shape[1]:
            parents.append((unique[:, 0] - 1).astype(np.int32))
            tokens.append(unique[:, 1].astype(np.int32))
            levels += [level + 1] * len(unique)
            counts.append(through)
            rows = inverse + count + 1
            count += len(unique)
    truths = np.full(count + 1, -1, np.int64)
    truths[list(nexts)] = list(nexts.values())
    return ContextTree(
        np.concatenate(tokens), np.concatenate(parents), np.array(levels[1:], np.int32),
        np.concatenate(counts), truths, np.concatenate([rows for rows, _, _ in edges]),
        np.concatenate([chosen for _, chosen, _ in edges]),
        np.concatenate([through for _, _, through in edges]),
    )  # fmt: skip


def tree_inputs(prompts: Seq[IntArray], trees: Seq[ContextTree]) -> dict[str, torch.Tensor]:
    """One pass over prompts and their trees, padded on the right.

    `input_ids`, `position_ids` int64 `[B, T]`; `sees` bool `[B, 1, T, T]`; `rows` int64 `[R, 2]`:
    where, as (batch, column), the logits of all rows of all trees lie, one tree after another.
    """
    longest = max(len(p) + len(t.tokens) for p, t in zip(prompts, trees, strict=True))
    shape = (len(prompts), longest)
    ids, positions = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    sees = np.zeros((len(prompts), 1, longest, longest), np.bool_)
    sees[:, :, np.arange(longest), np.arange(longest)] = True  # padding has to see something
    rows: list[LongArray] = []
    for i, (prompt, tree) in enumerate(zip(prompts, trees, strict=True)):
        p, end = len(prompt), len(prompt) + len(tree.tokens)
        ids[i, :p], ids[i, p:end] = prompt, tree.tokens
        positions[i, :p], positions[i, p:end] = np.arange(p), p - 1 + tree.levels
        sees[i, 0, :p, :p] = np.tri(p, dtype=np.bool_)
        sees[i, 0, p:end, :p] = True
        sees[i, 0, p:end, p:end] = tree.sees()
        columns = np.arange(p - 1, end)
        rows.append(np.stack((np.full(len(columns), i), columns), axis=1))
    arrays = {"input_ids": ids, "position_ids": positions, "sees": sees}
    arrays["rows"] = np.concatenate(rows).astype(np.int64)
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def tree_logits(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Logits `[B, T, V]` of the pass that `tree_inputs` describes."""
    weights = next(iter(model.parameters()))
    sees = batch["sees"].to(weights.device)
    if model.config._attn_implementation != "sdpa":  # the others add their mask to the scores
        hidden = torch.zeros(sees.shape, dtype=weights.dtype, device=weights.device)
        sees = hidden.masked_fill_(~sees, torch.finfo(weights.dtype).min)
    return model(
        input_ids=batch["input_ids"].to(weights.device),
        position_ids=batch["position_ids"].to(weights.device),
        attention_mask=sees,
        use_cache=False,
    ).logits


def row_logits(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Logits `[R, V]` of the rows."""
    return at_rows(tree_logits(model, batch), batch["rows"])


def at_rows(logits: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """`[R, V]` out of `[B, T, V]`, at (batch, column) pairs `[R, 2]`."""
    rows = rows.to(logits.device)
    return logits[rows[:, 0], rows[:, 1]]
