"""Penalties for tokens that a path has already seen.

What a text has seen is kept per sequence and grows with it; a pass gathers the scores of those
tokens alone, `[rows, distinct tokens]`, never those of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol
from weakref import WeakKeyDictionary

import numpy as np
import torch

from draftrec.core import IntArray, LongArray
from draftrec.decoding.batch import RunningSequence
from draftrec.decoding.controls import Rows

#: Which tokens count: those handed over at once, and those of the context from a place on.
Scope = Callable[[RunningSequence], tuple[IntArray, int]]

_NOTHING: IntArray = np.empty(0, np.int32)
_NEVER = 1 << 60


def whole_context(_sequence: RunningSequence) -> tuple[IntArray, int]:
    """Prompt and text."""
    return _NOTHING, 0


def text_alone(sequence: RunningSequence) -> tuple[IntArray, int]:
    """New tokens, not the prompt's."""
    return _NOTHING, sequence.prompt_tokens


def prompt_alone(sequence: RunningSequence) -> tuple[IntArray, int]:
    """The prompt's tokens, not the new ones."""
    return sequence.request.prompt_ids, _NEVER


class Change(Protocol):
    """New scores for tokens that were seen `counts` times; where that is 0, the old ones."""

    def __call__(self, scores: torch.Tensor, counts: torch.Tensor) -> torch.Tensor: ...


@dataclass(frozen=True, slots=True)
class Repetition:
    """Scores divided by `penalty` where positive, multiplied where negative, however often a token
    was seen (arXiv 1909.05858)."""

    penalty: float

    def __call__(self, scores: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        changed = torch.where(scores < 0, scores * self.penalty, scores / self.penalty)
        return torch.where(counts > 0, changed, scores)


@dataclass(frozen=True, slots=True)
class PresenceAndFrequency:
    """`frequency` times how often a token was seen is taken off its score, and `presence` once:
    the two penalties of OpenAI's API, which vLLM has too."""

    presence: float
    frequency: float

    def __call__(self, scores: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        return scores - self.frequency * counts - self.presence * (counts > 0)


class SeenTokens:
    """Changes the scores of tokens that a path has seen: those in `scope`, and the node's ancestors
    unless the text does not count at all."""

    def __init__(self, change: Change, scope: Scope = whole_context) -> None:
        self.rescore, self.scope = change, scope
        self._tallies: WeakKeyDictionary[RunningSequence, _Tally] = WeakKeyDictionary()

    def change(self, rows: Rows, logits: torch.Tensor) -> torch.Tensor:
        tallies = [self._tally(sequence, logits.shape[1]) for sequence in rows.batch]
        owner = torch.as_tensor(rows.owner, device=logits.device)
        seen, counts = (torch.as_tensor(a, device=logits.device)[owner] for a in _table(tallies))
        grows = rows.path.shape[1] and all(t.start < _NEVER for t in tallies)
        # A path's tokens come last, because their counts include those of the text before.
        places = [(seen, counts)]
        if grows:
            on_path = _on_paths(rows, tallies, logits.shape[1])
            at, times = (torch.as_tensor(a, device=logits.device) for a in on_path)
            places.append((at, times))
        before = [logits.gather(1, at) for at, _ in places]
        for (at, times), scores in zip(places, before, strict=True):
            logits.scatter_(1, at, self.rescore(scores, times))
        return logits

    def _tally(self, sequence: RunningSequence, vocabulary: int) -> _Tally:
        tally = self._tallies.get(sequence)
        if tally is None:
            first, start = self.scope(sequence)
            tally = self._tallies[sequence] = _Tally(start)
            tally.add(first, vocabulary)
        if tally.start < sequence.length:
            tally.add(sequence.context[tally.start :], vocabulary)
            tally.start = sequence.length
        return tally


@dataclass(slots=True)
class _Tally:
    """Distinct tokens seen so far in rising order, int64, and how often. `start`: the first token
    of the context that is not counted yet."""

    start: int
    ids: LongArray = field(default_factory=lambda: np.empty(0, np.int64))
    counts: LongArray = field(default_factory=lambda: np.empty(0, np.int64))

    def add(self, tokens: IntArray, vocabulary: int) -> None:
        """Count more tokens. One that the head does not have needs no penalty."""
        ids, counts = np.unique(tokens[tokens < vocabulary], return_counts=True)
        at = np.searchsorted(self.ids, ids)
        known = self.times(ids) > 0
        self.counts[at[known]] += counts[known]
        self.ids = np.insert(self.ids, at[~known], ids[~known])
        self.counts = np.insert(self.counts, at[~known], counts[~known])

    def times(self, tokens: IntArray | LongArray) -> LongArray:
        """How often each of `tokens`, of any shape, was seen."""
        if not len(self.ids):
            return np.zeros(tokens.shape, np.int64)
        at = np.minimum(np.searchsorted(self.ids, tokens), len(self.ids) - 1)
        return np.where(self.ids[at] == tokens, self.counts[at], 0)


def _table(tallies: list[_Tally]) -> tuple[LongArray, LongArray]:
    """Tokens and counts `[S, U]`. A row that is shorter repeats its first token, which is written
    twice then, with one value; an empty one has token 0, seen 0 times."""
    width = max(1, *(len(t.ids) for t in tallies))
    ids, counts = np.zeros((2, len(tallies), width), np.int64)
    for row, tally in enumerate(tallies):
        if size := len(tally.ids):
            ids[row, :size], counts[row, :size] = tally.ids, tally.counts
            ids[row, size:], counts[row, size:] = tally.ids[0], tally.counts[0]
    return ids, counts


def _on_paths(rows: Rows, tallies: list[_Tally], vocabulary: int) -> tuple[LongArray, LongArray]:
    """Tokens of the paths `[R, D]` with their counts, those of the text before included."""
    known = np.where(rows.path < vocabulary, rows.path, -1)
    # A place without a token repeats another one of its row, or asks for token 0 once more.
    path = np.where(known < 0, np.maximum(known.max(1), 0)[:, None], known)
    times = (path[:, :, None] == known[:, None, :]).sum(-1)
    for place, tally in enumerate(tallies):
        mine = rows.owner == place
        times[mine] += tally.times(path[mine])
    return path, times
