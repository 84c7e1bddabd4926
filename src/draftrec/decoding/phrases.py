"""Controls that look at the last tokens of a path: repeated n-grams, bad words, biased phrases."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from weakref import WeakKeyDictionary

import numpy as np
import torch

from draftrec.core import IntArray, LongArray
from draftrec.decoding.batch import RunningSequence
from draftrec.decoding.controls import Rows

#: Tokens that stand before the prompt and count as part of it (padding on the left).
Before = Callable[[RunningSequence], IntArray]

# No token, and not the -1 of `Rows.path` either.
_NONE = -2


def nothing_before(_sequence: RunningSequence) -> IntArray:
    """The prompt begins the text."""
    return np.empty(0, np.int32)


class NoRepeatedNGrams:
    """No `size` tokens in a row that prompt and text have had before; `of_prompt`: none that the
    prompt has had, whatever the text repeats.

    The n-grams of the committed text are kept as a table from the first n - 1 tokens to those that
    followed them; n-grams that end inside a draft's path are found by comparing its windows.
    """

    def __init__(
        self, size: int, before: Before = nothing_before, *, of_prompt: bool = False
    ) -> None:
        self.size, self.before, self.of_prompt = size, before, of_prompt
        self._histories: WeakKeyDictionary[RunningSequence, _History] = WeakKeyDictionary()

    def change(self, rows: Rows, logits: torch.Tensor) -> torch.Tensor:
        histories = [self._history(sequence) for sequence in rows.batch]
        lead = self.size - 1
        tails = np.array([h.tail(lead) for h in histories], np.int64).reshape(len(histories), lead)
        windows = np.concatenate([tails[rows.owner], rows.path], 1)
        last = rows.depth[:, None] + np.arange(lead)
        suffixes = np.take_along_axis(windows, last, 1)
        owner: list[int] = rows.owner.tolist()
        keys: list[tuple[int, ...]] = [tuple(suffix) for suffix in suffixes.tolist()]
        banned: list[tuple[int, int]] = []
        for row, (sequence, key) in enumerate(zip(owner, keys, strict=True)):
            banned += [(row, token) for token in histories[sequence].following.get(key, ())]
        if rows.path.shape[1] and not self.of_prompt:
            banned += _inside(rows, windows, suffixes)
        at = np.array([pair for pair in banned if pair[1] < logits.shape[1]], np.int64)
        if len(at):
            row, token = torch.as_tensor(at.T, device=logits.device)
            logits[row, token] = -torch.inf
        return logits

    def _history(self, sequence: RunningSequence) -> _History:
        history = self._histories.get(sequence)
        if history is None:
            history = self._histories[sequence] = _History(self.size)
            history.add(self.before(sequence))
            history.add(sequence.request.prompt_ids)
            history.read = sequence.prompt_tokens
        history.add(sequence.context[history.read :], count=not self.of_prompt)
        history.read = sequence.length
        return history


class _History:
    """The n-grams of one text; `read`: tokens of its context that are in."""

    def __init__(self, size: int) -> None:
        self.size, self.read = size, 0
        self.tokens: list[int] = []
        self.following: dict[tuple[int, ...], list[int]] = {}

    def add(self, tokens: IntArray, *, count: bool = True) -> None:
        """More tokens at the end, their n-grams if they `count`."""
        first = max(0, len(self.tokens) - self.size + 1)
        self.tokens += tokens.tolist()
        if not count:
            return
        known, size = self.tokens, self.size
        for start in range(first, len(known) - size + 1):
            key = tuple(known[start : start + size - 1])
            self.following.setdefault(key, []).append(known[start + size - 1])

    def tail(self, length: int) -> list[int]:
        """The last `length` tokens, on the right."""
        tail = self.tokens[-length:] if length else []
        return [_NONE] * (length - len(tail)) + tail


def _inside(rows: Rows, windows: LongArray, suffixes: LongArray) -> list[tuple[int, int]]:
    """Row and token of n-grams that end in a row's path and begin as the row does."""
    lead = suffixes.shape[1]
    found: list[tuple[int, int]] = []
    for place in range(rows.path.shape[1]):
        same = (windows[:, place : place + lead] == suffixes).all(1) & (place < rows.depth)
        found += [(row, int(rows.path[row, place])) for row in np.flatnonzero(same).tolist()]
    return found


class PhraseBias:
    """Adds to the score of a token what the phrases that it would complete weigh. Minus infinity
    forbids it: bad words. A phrase is a tuple of token ids."""

    def __init__(
        self, phrases: Mapping[tuple[int, ...], float], before: Before = nothing_before
    ) -> None:
        self.before = before
        self._single = {p[0]: bias for p, bias in phrases.items() if len(p) == 1}
        self._longer: dict[int, dict[tuple[int, ...], list[tuple[int, float]]]] = {}
        for phrase, bias in phrases.items():
            if len(phrase) > 1:
                same_length = self._longer.setdefault(len(phrase) - 1, {})
                same_length.setdefault(phrase[:-1], []).append((phrase[-1], bias))
        self._longest = max(self._longer, default=0)

    def change(self, rows: Rows, logits: torch.Tensor) -> torch.Tensor:
        added = self._completed(rows) if self._longer else {}
        device = logits.device
        at = np.array([*added], np.int64).reshape(-1, 2)
        row, token = torch.as_tensor(at.T, device=device)
        sums = torch.tensor([*added.values()], dtype=logits.dtype, device=device)
        wanted = logits[row, token] + sums
        if self._single:
            ids = torch.tensor([*self._single], device=device)
            biases = torch.tensor([*self._single.values()], dtype=logits.dtype, device=device)
            logits[:, ids] += biases
        logits[row, token] = wanted
        return logits

    def _completed(self, rows: Rows) -> dict[tuple[int, int], np.float32]:
        """What is added where a longer phrase ends, by row and token: one number, in which the
        token's own bias comes first, as in transformers."""
        most = self._longest
        tails = np.array([self._tail(s) for s in rows.batch], np.int64)
        windows = np.concatenate([tails[rows.owner], rows.path], 1)
        last = np.take_along_axis(windows, rows.depth[:, None] + np.arange(most), 1).tolist()
        added: dict[tuple[int, int], np.float32] = {}
        for length, phrases in self._longer.items():
            for row, tokens in enumerate(last):
                for token, bias in phrases.get(tuple(tokens[most - length :]), ()):
                    so_far = added.get((row, token), np.float32(self._single.get(token, 0.0)))
                    added[row, token] = so_far + np.float32(bias)
        return added

    def _tail(self, sequence: RunningSequence) -> list[int]:
        most = self._longest
        tail = sequence.context[-most:].tolist()
        if len(tail) < most:
            tail = [*self.before(sequence)[len(tail) - most :].tolist(), *tail]
        return [_NONE] * (most - len(tail)) + tail
