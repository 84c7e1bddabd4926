"""Controls of rows: phrases that may not follow, places where tokens are forced or suppressed,
penalties for tokens that a path has seen, and a caller's own processors.

What a text has seen is kept per sequence and grows with it; a pass gathers the scores of those
tokens alone, `[rows, distinct tokens]`, never those of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from typing import Any, Protocol, cast
from weakref import WeakKeyDictionary

import numpy as np
import torch

from draftrec.core import BoolArray, DraftTree, IntArray, LongArray
from draftrec.engine.text.batch import RunningSequence
from draftrec.engine.text.controls import Rows, rows_of
from draftrec.errors import DraftrecError

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
            known = [t for t in self.tokens if t < logits.shape[1]]
            tokens = torch.tensor(known, dtype=torch.int64, device=logits.device)
            scores = logits[row, tokens]
            more = scores.abs() * torch.tensor(gains, device=logits.device)[:, None]
            logits[row, tokens] = scores + more.masked_fill(~scores.isfinite(), 0.0)
        return logits


class FiniteScores:
    """Scores that are no number become 0, infinite ones the largest or smallest number."""

    def change(self, rows: Rows, logits: torch.Tensor) -> torch.Tensor:
        most = torch.finfo(logits.dtype)
        return torch.nan_to_num(logits, 0.0, most.max, most.min)


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


class LogitsProcessor(Protocol):
    """Prefixes in, scores out: what transformers calls a `LogitsProcessor`.

    It must depend on its arguments alone, row by row: rows are nodes of draft trees, so that it is
    asked about texts that are never written, and about one text several times.
    """

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, /) -> torch.Tensor:
        """`input_ids` int64 `[n, length]`, prompt and text of each row; `scores` float32 `[n, V]`,
        the next token's. Returns the new scores, of the same shape."""
        ...


def check_processors(given: Any) -> None:
    """Raise DraftrecError unless they are logits processors, in a list."""
    if not isinstance(given, list | tuple):
        raise DraftrecError(
            f"processors={given} is no list of logits processors; put a single one into a list"
        )
    if unfit := [it for it in cast("Seq[Any]", given) if not callable(it)]:
        raise DraftrecError(
            f"processors has {unfit[0]!r}, which cannot be called; a logits processor is a "
            f"function of token ids and scores"
        )


class OwnProcessors:
    """Applies `processors` in order, once per length among the rows of a pass.

    What it costs: as many calls as there are different lengths, and the processors' own time for
    one row per draft node beside that of the text; prefixes are copied for every row.
    """

    def __init__(self, processors: Seq[LogitsProcessor], before: Before = nothing_before) -> None:
        self.processors, self.before = processors, before

    def apply(
        self, batch: Seq[RunningSequence], trees: Seq[DraftTree], logits: torch.Tensor
    ) -> torch.Tensor:
        """Raises DraftrecError for a processor that returns scores of another shape."""
        rows = rows_of(batch, trees)
        texts = [np.concatenate([self.before(s), s.context]) for s in batch]
        lengths = np.array([len(text) for text in texts])[rows.owner] + rows.depth
        for length in np.unique(lengths).tolist():
            places = np.flatnonzero(lengths == length)
            ids = np.empty((len(places), length), np.int64)
            for prefix, row in zip(ids, places.tolist(), strict=True):
                text = texts[int(rows.owner[row])]
                prefix[: len(text)] = text
                prefix[len(text) :] = rows.path[row, : int(rows.depth[row])]
            at, prefixes = (torch.as_tensor(a, device=logits.device) for a in (places, ids))
            logits[at] = self._processed(prefixes, logits[at])
        return logits

    def _processed(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        shape = scores.shape
        for process in self.processors:
            made: Any = process(ids, scores)
            if not isinstance(made, torch.Tensor) or made.shape != shape:
                found = list(made.shape) if isinstance(made, torch.Tensor) else type(made).__name__
                raise DraftrecError(
                    f"The logits processor {type(process).__name__} was given scores of shape "
                    f"{list(shape)} and returned {found}; it must return new scores of that shape."
                )
            scores = made
        return scores.to(torch.float32)
