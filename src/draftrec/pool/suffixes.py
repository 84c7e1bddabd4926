"""The closed part of a pool: its texts sorted by context, in arrays that are mapped, not loaded.

Every place of every text is ranked by what stands before it, read backwards. Places with the same
last tokens are then neighbours: the longest context is at the middle, shorter ones lie around it,
and what follows them and where that leads is written beside them. Nothing is built on opening.

Compiled kernels find contexts in it, and what lies around those. A context is a rank and a length:
the last `length` tokens before the place at `rank`, at most. Runs of ranks that share fewer tokens
with it are its shorter orders.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numba import njit
from safetensors.numpy import save_file

from draftrec.core import ByteArray, IntArray
from draftrec.errors import DraftrecError
from draftrec.pool import files, suffix_states, views
from draftrec.pool.ngrams import START
from draftrec.pool.suffix_states import (
    BLOCK,
    FIRST,
    FOLLOWS,
    HIGH,
    KINDS,
    LENGTH,
    LOW,
    MANY,
    PARENT,
    REACH,
)
from draftrec.pool.views import inlined, kernel

#: Neighbours read around a rare context.
WINDOW = 24
#: Columns of a walk: the ranks reached to both sides, and the tokens shared by the context itself
#: (0 once it was visited) and by the next ranks to both sides.
LEFT, RIGHT, NEAR_SELF, NEAR_LEFT, NEAR_RIGHT = range(5)
WALK = 5


@kernel
def search(index, tail, ids):
    """The rank whose context shares most tokens with the end of `tail`, and how many (0: none).

    `tail` int32, the last tokens of a text; `START` in it is the text's beginning. `ids` int32
    `[REACH]` is room to work in.
    """
    wanted = 0
    while wanted < min(REACH, len(tail)):
        token = tail[len(tail) - 1 - wanted]
        dense = 0 if token == START else dense_id(index, token)
        if dense < 0:
            break
        ids[wanted] = dense
        wanted += 1
        if dense == 0:
            break
    if wanted == 0:
        return 0, 0
    low, high = index.starts[ids[0]], index.starts[ids[0] + 1]
    rank, length = low, 1
    low_shared, high_shared = 1, 1  # what the ends of the run have in common with the tail
    while low < high:
        middle = (low + high) // 2
        place = index.order[middle]
        k = min(low_shared, high_shared)
        # Ranks that are not in order may believe that more is shared than there is.
        while k < wanted and k <= place and index.tokens[place - k] == ids[k]:
            k += 1
        if k > length:
            rank, length = middle, k
        if k == wanted:
            return rank, length
        if k <= place and index.tokens[place - k] < ids[k]:
            low, low_shared = middle + 1, k
        else:
            high, high_shared = middle, k
    return rank, length


@njit(cache=True, nogil=True)
def locate(handle, text, ends):
    """For every end, the place of the last token of the context that agrees longest with the tokens
    of `text` before it (its beginning included), and how many agree."""
    index = views.sorted_of(handle)
    places, lengths = np.zeros(len(ends), np.int64), np.zeros(len(ends), np.int64)
    whole, ids = np.empty(len(text) + 1, np.int32), np.empty(REACH, np.int32)
    whole[0] = START
    whole[1:] = text
    for i in range(len(ends)):
        first = max(0, ends[i] + 1 - REACH)
        rank, length = search(index, whole[first : ends[i] + 1], ids)
        places[i], lengths[i] = index.order[rank], length
    return places, lengths


@kernel
def dense_id(index, token):
    """The dense id of a token, -1 if it does not occur."""
    low, high = 0, len(index.vocabulary)
    while low < high:
        middle = (low + high) // 2
        if index.vocabulary[middle] < token:
            low = middle + 1
        else:
            high = middle
    if low < len(index.vocabulary) and index.vocabulary[low] == token:
        return low + 1
    return -1


@inlined
def innermost(handles, s, rank):
    """The innermost state around a rank, -1: none."""
    states, blocks = views.states_of(handles, s), views.blocks_of(handles, s)
    block = rank // BLOCK
    left, right = np.int64(blocks[block]), np.int64(blocks[block + 1])
    while left >= 0 and states[left, HIGH] <= rank:
        left = np.int64(states[left, PARENT])
    while right >= 0 and states[right, LOW] > rank:
        right = np.int64(states[right, PARENT])
    # Both are around the rank, so one is inside the other; inner states have smaller numbers.
    return max(left, right) if min(left, right) < 0 else min(left, right)


@inlined
def outwards(states, state, length):
    """From a state at or inside it, the state of the longest frequent context that ends the first
    `length` tokens at a rank.

    Its own length may exceed `length`: then all contexts of that length continue alike. -1: none.
    """
    while state >= 0:
        outer = np.int64(states[state, PARENT])
        if outer < 0 or states[outer, LENGTH] < length:
            break
        state = outer
    return state


@inlined
def begin_walk(handles, s, rank, length, walks):
    """Start to walk from a context to the ranks that share most tokens with it, itself first."""
    shared = views.shared_of(handles, s)
    walks[s, LEFT] = walks[s, RIGHT] = rank
    walks[s, NEAR_SELF], walks[s, NEAR_RIGHT] = length, 0
    walks[s, NEAR_LEFT] = min(length, np.int64(shared[rank]))
    if rank + 1 < len(shared):
        walks[s, NEAR_RIGHT] = min(length, np.int64(shared[rank + 1]))


@inlined
def nearest(walks, s):
    """How many tokens the next rank of a walk shares."""
    return max(
        np.int64(walks[s, NEAR_SELF]), np.int64(walks[s, NEAR_LEFT]), np.int64(walks[s, NEAR_RIGHT])
    )


@inlined
def walk(shared, walks, s):
    """The next rank of a walk."""
    if walks[s, NEAR_SELF] > 0:
        walks[s, NEAR_SELF] = 0
        return np.int64(walks[s, LEFT])
    if walks[s, NEAR_LEFT] >= walks[s, NEAR_RIGHT]:
        rank = np.int64(walks[s, LEFT]) - 1
        walks[s, LEFT] = rank
        walks[s, NEAR_LEFT] = min(np.int64(walks[s, NEAR_LEFT]), np.int64(shared[rank]))
        return rank
    rank = np.int64(walks[s, RIGHT]) + 1
    walks[s, RIGHT] = rank
    further = np.int64(shared[rank + 1]) if rank + 1 < len(shared) else 0
    walks[s, NEAR_RIGHT] = min(np.int64(walks[s, NEAR_RIGHT]), further)
    return rank


@kernel
def step(handles, s, rank, length, token):
    """A context that ends in `token` after the given one, and its length (0: never seen).

    Only the frequent orders are asked; failing those, any place of the token will do.
    """
    states, children = views.states_of(handles, s), views.children_of(handles, s)
    state = outwards(states, innermost(handles, s, rank), length) if length > 0 else -1
    while state >= 0:
        first = np.int64(states[state, FIRST])
        for child in range(first, first + states[state, MANY]):
            if children[child, 0] == token:
                shared = min(np.int64(states[state, LENGTH]), length)
                return np.int64(children[child, 2]), min(shared + 1, REACH)
        state = np.int64(states[state, PARENT])
    dense = dense_id(views.sorted_of(handles[s]), token)
    if dense < 0:
        return 0, 0
    return np.int64(views.sorted_of(handles[s]).starts[dense]), 1


_TYPES = {"shared": np.uint8}
_WIDTHS = {"follows": (2,), "states": (8,), "children": (3,)}
# What files of whatever content may make of their reader.
_UNREADABLE = (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError,
               RecursionError, MemoryError)  # fmt: skip
# Tokens that may be drafted where no context says anything.
_COMMON = 32


@dataclass(frozen=True, eq=False)
class ClosedIndex:
    """`n` places: all tokens and one mark before each text; arrays are read-only.

    `vocabulary` int32 `[v]`: the tokens that occur, sorted; the dense id of one is its position
    plus 1. `tokens` int32 `[n]`: dense ids, 0 for the mark. `order` int32 `[n]`: the place at each
    rank. `starts` int32 `[v + 2]`: the first rank whose last token is that id. `shared` uint8
    `[n]`: tokens of context that a rank has in common with the one before. `follows` int32
    `[n, 2]`: the next token (its own value) and the rank of the context it ends, -1 where nothing
    follows. `states`, `children`, `blocks`: see `suffix_states`. `common` int32 `[k, 3]`: the most
    frequent tokens, how often each occurs and the first rank that ends in it, and `texts`, how many
    were indexed, are not kept in the file. `watch`: the file that is mapped.
    """

    vocabulary: IntArray
    tokens: IntArray
    order: IntArray
    starts: IntArray
    shared: ByteArray
    follows: IntArray
    states: IntArray
    children: IntArray
    blocks: IntArray
    watch: files.Watch | None = None
    common: IntArray = field(init=False)
    texts: int = field(init=False)

    def __post_init__(self) -> None:
        for name, array in self.arrays().items():
            array.setflags(write=False)
            flags, shape = array.flags, array.shape[1:]
            fits = flags.c_contiguous and flags.aligned and shape == _WIDTHS.get(name, ())
            if array.dtype != _TYPES.get(name, np.int32) or not array.ndim or not fits:
                raise DraftrecError(f"{name} of a closed index has the wrong type or layout")
        object.__setattr__(self, "texts", int(self.starts[1]))
        object.__setattr__(self, "common", _most_frequent(self.vocabulary, self.starts))

    @cached_property
    def handle(self) -> views.Handle:
        """What kernels know it by. They look nowhere but at the numbers in the arrays, so all of
        these are read once before. Raises DraftrecError for one that points outside."""
        try:
            self.check_bounds()
        except ValueError as error:
            where = f"The pool file {self.watch.path}" if self.watch else "A pool's index"
            raise DraftrecError(f"{where} is damaged ({error}); build the pool again.") from error
        return views.closed_handle(self)

    @classmethod
    def build(cls, texts: Seq[IntArray]) -> ClosedIndex:
        """Index finished texts, int32 token ids each, EOS included where it was written."""
        vocabulary, tokens = _densify(texts)
        kinds = len(vocabulary) + 1
        order, shared, starts = suffix_states.sort_contexts(tokens, kinds)
        follows = suffix_states.link(tokens, order)
        states = suffix_states.find_states(shared, suffix_states.REACH)
        children = suffix_states.count_children(states, follows, kinds)
        blocks = suffix_states.find_blocks(states, len(tokens))
        # Drafts of several indexes are merged by token, so continuations carry their own values.
        values = np.concatenate((np.full(1, -1, np.int32), vocabulary))
        follows[:, 0] = values[follows[:, 0]]
        children[:, 0] = values[children[:, 0]]
        made = cls(vocabulary, tokens, order, starts, shared, follows, states, children, blocks)
        made._trust()
        return made

    def save(self, path: Path) -> None:
        """Write all arrays to one safetensors file."""
        save_file(self.arrays(), path)

    @classmethod
    def open(cls, path: Path) -> ClosedIndex:
        """Map a file that `save` wrote into memory: read-only, shared between processes, nothing
        read until it is asked for.

        Raises DraftrecError if it is no such file or was cut off. That its numbers point to where
        something is turns out when it is first used (`handle`).
        """
        try:
            watch = files.Watch(path)
            return cls(**_mapped(path), watch=watch)
        except (OSError, DraftrecError, *_UNREADABLE) as error:
            raise DraftrecError(f"The pool file {path} is damaged ({error}).") from error

    def check(self, texts: Seq[IntArray]) -> None:
        """Raise ValueError unless this is an index of these non-empty texts, as far as reading its
        arrays once tells: nothing points outside, and it has these texts' tokens."""
        self.check_bounds()
        self._trust()
        if self.texts != len(texts):
            raise ValueError(f"it holds {self.texts} texts instead of {len(texts)}")
        wanted = np.concatenate([np.empty(0, np.int32), *texts])
        if not np.array_equal(self.vocabulary[self.tokens[self.tokens > 0] - 1], wanted):
            raise ValueError("it belongs to other texts")

    def __getstate__(self) -> dict[str, Any]:
        """All but the handle: the arrays of a copy, and of what was in a pickle, lie elsewhere."""
        return {name: value for name, value in self.__dict__.items() if name != "handle"}

    def _trust(self) -> None:
        """Let kernels know it as it is: nothing in it points outside."""
        self.__dict__["handle"] = views.closed_handle(self)

    def check_bounds(self) -> None:
        """Raise ValueError unless kernels find an end, and everything in its place, whatever they
        look for: every number that they go on from is one of a row that there is."""
        places, kinds = len(self.tokens), len(self.vocabulary) + 1
        lengths = [len(self.order), len(self.shared), len(self.follows)]
        if lengths != [places] * 3 or len(self.blocks) != places // BLOCK + 2:
            raise ValueError("its arrays have different lengths")
        starts = self.starts
        if len(starts) != kinds + 1 or starts[0] != 0 or int(starts[-1]) != places:
            raise ValueError("its first ranks are not those of its tokens")
        if not places:
            return
        if (starts[1:] <= starts[:-1]).any() or self.shared[0] > 0:
            raise ValueError("its ranks are not in order")
        vocabulary = self.vocabulary
        last = int(vocabulary[-1]) if len(vocabulary) else -1
        if len(vocabulary) and (vocabulary[0] < 0 or (vocabulary[1:] <= vocabulary[:-1]).any()):
            raise ValueError("its tokens are not in order")
        _within(self.tokens, 0, kinds)
        _within(self.order, 0, places)
        _within(self.follows[:, 0], -1, last + 1)
        _within(self.follows[:, 1], -1, places)
        _within(self.blocks, -1, len(self.states))
        _within(self.children[:, 0], 0, last + 1)
        _within(self.children[:, 1], 0, 2**31)
        _within(self.children[:, 2], 0, places)
        self._check_states()

    def _check_states(self) -> None:
        """Raise ValueError unless states lie in wider ones, up to one that lies in none, have their
        rows of `children`, and count no more in these than they say."""
        states = self.states
        parents = states[:, PARENT]
        _within(parents, -1, len(states))
        _within(states[:, LENGTH], 0, REACH + 1)
        if ((parents >= 0) & (parents <= np.arange(len(states)))).any():
            raise ValueError("its states lie in each other")
        for column in (FOLLOWS, KINDS, FIRST, MANY):
            _within(states[:, column], 0, 2**31)
        first = states[:, FIRST].astype(np.int64)
        end = first + states[:, MANY]
        if len(states) and int(end.max()) > len(self.children):
            raise ValueError("it points outside of itself")
        sums = np.concatenate(
            (np.zeros(1, np.int64), np.cumsum(self.children[:, 1], dtype=np.int64))
        )
        if (sums[end] - sums[first] > states[:, FOLLOWS]).any():
            raise ValueError("its counts do not add up")

    def arrays(self) -> dict[str, Any]:
        """The arrays by name."""
        return {name: getattr(self, name) for name in views.Sorted._fields}

    @property
    def overwritten(self) -> bool:
        """Was its file written to since it was opened?"""
        return self.watch is not None and self.watch.written

    def locate(self, text: IntArray, ends: Any) -> tuple[Any, Any]:
        """Where the pool agrees longest with `text` up to each of `ends` int64 `[k]`: places int64
        `[k]` of the last token, and how many tokens agree there, at most `REACH`. Not of an empty
        index."""
        # Compiled for one layout: of `ends`, columns of a table come here.
        return locate(self.handle, np.ascontiguousarray(text), np.ascontiguousarray(ends))

    def owners(self, places: Any) -> Any:
        """Numbers int64 `[k]` of the texts that hold `places`."""
        marks = self.order[: self.texts]  # the mark's ranks come first, in the order of places
        return np.searchsorted(marks, places, side="right") - 1

    def texts_in_order(self) -> Iterator[IntArray]:
        """The texts that were indexed, int32 each. Raises PoolOverwrittenError."""
        if self.watch:
            self.watch.check()
        marks = np.flatnonzero(self.tokens == 0).tolist()
        for first, last in zip(marks, [*marks[1:], len(self.tokens)], strict=True):
            yield self.vocabulary[self.tokens[first + 1 : last] - 1]

    @property
    def nbytes(self) -> int:
        return sum(a.nbytes for a in self.arrays().values())


def _within(values: Any, low: int, high: int) -> None:
    """Raise ValueError unless all of them are at least `low` and below `high`."""
    if len(values) and not low <= int(values.min()) <= int(values.max()) < high:
        raise ValueError("it points outside of itself")


def _most_frequent(vocabulary: IntArray, starts: IntArray) -> IntArray:
    """Rows of at most `_COMMON` tokens, the most frequent first: token, count, first rank."""
    counts = np.diff(starts[1:])
    most = np.argsort(-counts, kind="stable")[:_COMMON]
    columns = vocabulary[most], counts[most], starts[1:][most]
    return np.ascontiguousarray(np.stack(columns, axis=1), np.int32)


def _mapped(path: Path) -> dict[str, Any]:
    """The arrays of a safetensors file as views of one memory map."""
    content = np.memmap(path, np.uint8, "r")
    start = 8 + int(content[:8].view("<u8")[0])
    found: dict[str, Any] = {}
    for name, entry in json.loads(content[8:start].tobytes()).items():
        first, last = entry["data_offsets"]
        if start + last > len(content):
            raise ValueError("it ends too early")
        values = np.asarray(content[start + first : start + last])
        found[name] = values.view(_TYPES.get(name, np.int32)).reshape(entry["shape"])
    return found


def _densify(texts: Seq[IntArray]) -> tuple[IntArray, IntArray]:
    """The sorted vocabulary, and all texts in dense ids with a 0 before each.

    Raises DraftrecError for more of them than an index has numbers for.
    """
    lengths = np.array([len(t) for t in texts], np.int64)
    if lengths.sum() + len(texts) >= 2**31:
        raise DraftrecError(
            f"{len(texts):,} texts have {int(lengths.sum()):,} tokens; an index holds less than "
            f"{2**31:,} with one more for each text. Index groups alone (--levels group), or keep "
            "the texts that are worth most (draftrec pool prune, --max-bytes)"
        )
    flat = np.concatenate([np.empty(0, np.int32), *texts]).astype(np.int32, copy=False)
    vocabulary = _distinct(flat)
    tokens = np.zeros(len(flat) + len(texts), np.int32)
    inside = np.ones(len(tokens), np.bool_)
    inside[np.cumsum(lengths + 1) - lengths - 1] = False
    tokens[inside] = _positions(vocabulary, flat) + 1
    return vocabulary, tokens


#: Token values below this are looked up in a table, which is faster than searching.
_TABLE = 1 << 22


def _distinct(flat: IntArray) -> IntArray:
    if len(flat) and flat.min() >= 0 and flat.max() < _TABLE:
        return np.flatnonzero(np.bincount(flat)).astype(np.int32)
    return np.unique(flat)


def _positions(vocabulary: IntArray, flat: IntArray) -> IntArray:
    if len(vocabulary) and vocabulary[0] >= 0 and vocabulary[-1] < _TABLE:
        table = np.empty(int(vocabulary[-1]) + 1, np.int32)
        table[vocabulary] = np.arange(len(vocabulary), dtype=np.int32)
        return table[flat]
    return np.searchsorted(vocabulary, flat).astype(np.int32)
