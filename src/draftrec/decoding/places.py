"""Controls that look at where in the text a path ends: minimal lengths, forced and suppressed
tokens, an end that grows likelier."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Seq

import numpy as np
import torch

from draftrec.core import BoolArray, LongArray
from draftrec.decoding.controls import Rows
from draftrec.decoding.phrases import Before, nothing_before

#: Which rows a control applies to: bool `[R]`.
Due = Callable[[Rows], BoolArray]


def everywhere(rows: Rows) -> BoolArray:
    """Every row."""
    return np.ones(len(rows.owner), np.bool_)


def below(least: int) -> Due:
    """Rows with fewer new tokens than `least`."""
    return lambda rows: rows.new_tokens < least


def shorter(least: int, before: Before = nothing_before) -> Due:
    """Rows whose prompt and text have fewer tokens than `least`."""
    return lambda rows: _lengths(rows, before) < least


def exactly(length: int, before: Before = nothing_before) -> Due:
    """Rows whose prompt and text have `length` tokens."""
    return lambda rows: _lengths(rows, before) == length


def at_start(rows: Rows) -> BoolArray:
    """The place of a text's first token."""
    return rows.new_tokens == 0


def at_end(rows: Rows) -> BoolArray:
    """The place of the last token that a text has room for."""
    return rows.room == 1


def _lengths(rows: Rows, before: Before) -> LongArray:
    lengths = [len(before(s)) + s.length for s in rows.batch]
    return np.array(lengths, np.int64)[rows.owner] + rows.depth


class Suppressed:
    """`tokens` are impossible in the rows that are `due`."""

    def __init__(self, tokens: Seq[int], due: Due = everywhere) -> None:
        self.tokens, self.due = sorted(set(tokens)), due

    def change(self, rows: Rows, logits: torch.Tensor) -> torch.Tensor:
        due = self.due(rows)
        tokens = [t for t in self.tokens if t < logits.shape[1]]
        if due.all():
            logits[:, tokens] = -torch.inf
        elif due.any():
            at = torch.as_tensor(np.flatnonzero(due), device=logits.device)
            logits[at[:, None], torch.tensor(tokens, device=logits.device)] = -torch.inf
        return logits


class Forced:
    """Nothing but `tokens` is possible in the rows that are `due`; all of them equally so."""

    def __init__(self, tokens: Seq[int], due: Due) -> None:
        self.tokens, self.due = sorted(set(tokens)), due

    def change(self, rows: Rows, logits: torch.Tensor) -> torch.Tensor:
        for row in np.flatnonzero(self.due(rows)).tolist():
            logits[row] = -torch.inf
            logits[row, self.tokens] = 0.0
        return logits


class GrowingEnd:
    """From `start` new tokens on, the end grows likelier: every one of `tokens` gains its score's
    size times `factor ** k - 1`, k tokens past the start (transformers'
    `exponential_decay_length_penalty`). Scores that are not finite stay."""

    def __init__(self, start: int, factor: float, tokens: Seq[int]) -> None:
        self.start, self.factor, self.tokens = start, factor, sorted(set(tokens))

    def change(self, rows: Rows, logits: torch.Tensor) -> torch.Tensor:
        past = rows.new_tokens - self.start
        places = np.flatnonzero(past > 0)
        if len(places):
            gains = [float(self.factor ** int(k)) - 1 for k in past[places]]
            row = torch.as_tensor(places, device=logits.device)[:, None]
            tokens = torch.tensor(self.tokens, device=logits.device)
            scores = logits[row, tokens]
            more = scores.abs() * torch.tensor(gains, device=logits.device)[:, None]
            logits[row, tokens] = scores + more.masked_fill(~scores.isfinite(), 0.0)
        return logits


class FiniteScores:
    """Scores that are no number become 0, infinite ones the largest or smallest number."""

    def change(self, rows: Rows, logits: torch.Tensor) -> torch.Tensor:
        most = torch.finfo(logits.dtype)
        return torch.nan_to_num(logits, 0.0, most.max, most.min)
