"""The retrieval index: texts in, draft trees out, drawn best first from several indexes at once."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from typing import Any, NamedTuple

import numpy as np
from numba import njit

from draftrec.core import EMPTY_TREE, DraftTree, IntArray
from draftrec.engine.noise import BELIEF, place_of, weigh
from draftrec.pool import ngrams, suffixes, views
from draftrec.pool.blend import PLACE, RANK, SPAN, TOP, blend, make_room
from draftrec.pool.ngrams import ORDER, START, Arrays
from draftrec.pool.suffix_states import REACH
from draftrec.pool.suffixes import ClosedIndex
from draftrec.pool.views import inlined, kernel

# Columns of a queued node: the place above it, its token, the source that said most.
_ABOVE, _TOKEN, _SOURCE = range(3)


#: How much of what estimates leave to tokens that they do not have counts beside the noise; chosen
#: with `noise.BELIEF`.
UNSEEN = 0.6


class _Queue(NamedTuple):
    """The best nodes not yet drawn, at most as many as the tree has room for.

    Entries `ends[0]` to `ends[1]` of `keys` float64 (path probabilities) and `slots` int32 are in
    use, the best one last. By slot: `nodes` int32 `[slots, 3]`, `leads` int32 `[slots, sources, 2]`
    as in `room.Room`; `free` int32: slots not in use, `ends[2]` of them.
    """

    keys: Any
    slots: Any
    free: Any
    ends: Any
    nodes: Any
    leads: Any


@njit(cache=True, nogil=True)
def draft(sources, noise, wanted, settings, out):
    """One tree per sequence, each from its own sources.

    `sources`: handles int64 `[b, s, FIELDS]`, weights float64 `[b, s]`, tails int32 `[t]`, one
    behind the other, and their ends int64 `[b, s]`, source ids uint8 `[b, s]`. `noise`:
    what each text is drawn by, uint64 `[b]`, and its next place, int64 `[b]`, -1 where it is not.
    `wanted` int64 `[2]`: nodes and levels. `settings` float64: least path probability, as how many
    observations a source counts at most, then the escape weight of each order from 0 on. `out`:
    tokens, parents, probs, source ids `[b, nodes]` and sizes `[b]`.
    """
    handles, weights, tails, ends, names = sources
    tokens, parents, probs, origins, sizes = out
    limit, n = wanted[0], weights.shape[1]
    room, queue = make_room(n), _make_queue(limit, n)
    places, levels = np.empty((limit, n, PLACE), np.int32), np.empty(limit, np.int32)
    at = 0
    for b in range(len(handles)):
        for s in range(n):
            _first(handles[b], s, tails[at : ends[b, s]], places, room.ids)
            at = ends[b, s]
        trees = tokens[b], parents[b], probs[b], origins[b]
        known = handles[b], weights[b], names[b], noise[0][b], noise[1][b]
        sizes[b] = _draw(known, wanted, settings, (room, queue, places, levels), trees)


@njit(cache=True, nogil=True)
def _make_queue(limit, n):
    return _Queue(
        np.empty(2 * limit + 2),
        np.empty(2 * limit + 2, np.int32),
        np.empty(limit + 1, np.int32),
        np.zeros(3, np.int64),
        np.empty((limit + 1, 3), np.int32),
        np.empty((limit + 1, n, 2), np.int32),
    )


@kernel
def _draw(sources, wanted, settings, work, out):
    """Best-first expansion of one tree; returns how many nodes it got."""
    handles, weights, names, drawn_by, start = sources
    room, queue, places, levels = work
    tokens, parents, probs, origins = out
    limit, depth = wanted[0], wanted[1]
    least, most, escape = settings[0], settings[1], settings[2:]
    n = len(weights)
    _empty(queue, limit)
    levels[0] = 0
    made, place, prob = 0, 0, 1.0
    while True:
        space = limit - made
        if levels[place] < depth:
            _shorten(queue, space)
            # A token that is unlikely by itself may be the one that is drawn.
            worth = max(least, _worst(queue, space)) if start < 0 else least
            limits = prob, worth, most
            found = blend(handles, weights, places, place, escape, limits, room)
            if start >= 0:
                probs_here = room.probs[:found]
                rest = UNSEEN * (1.0 - probs_here.sum())
                here = place_of(drawn_by, start + levels[place])
                weigh(probs_here, room.tokens, rest, here, BELIEF, 1.0)
            for i in range(found):
                p = prob * room.probs[i]
                if room.tokens[i] >= 0 and p >= least:
                    _push(queue, space, p, place, room, i)
        if queue.ends[0] == queue.ends[1]:
            return made
        queue.ends[1] -= 1
        slot = queue.slots[queue.ends[1]]
        above, token = queue.nodes[slot, _ABOVE], queue.nodes[slot, _TOKEN]
        prob = queue.keys[queue.ends[1]]
        tokens[made], parents[made] = token, above - 1
        probs[made], origins[made] = prob, names[queue.nodes[slot, _SOURCE]]
        made += 1
        if made == limit:
            return made
        place = made
        levels[place] = levels[above] + 1
        if levels[place] < depth:
            for s in range(n):
                _next(handles, s, places, (above, place), token, queue.leads, slot)
        queue.free[queue.ends[2]] = slot
        queue.ends[2] += 1


@kernel
def _first(handles, s, tail, places, ids):
    """Where a source stands at the root."""
    if handles[s, 0] == views.TRIE:
        top = ngrams.contexts(views.trie_of(handles[s]), tail, places[0, s])
        places[0, s, TOP] = top
        return
    places[0, s, RANK] = places[0, s, SPAN] = 0
    if handles[s, 0] == views.CLOSED:
        rank, length = suffixes.search(views.sorted_of(handles[s]), tail, ids)
        places[0, s, RANK], places[0, s, SPAN] = rank, length


@inlined
def _next(handles, s, places, edge, token, leads, slot):  # noqa: PLR0913
    """Where a source stands after one more token; `edge`: the places before and after it."""
    above, place = edge
    if handles[s, 0] == views.TRIE:
        top, longest = np.int64(0), min(ORDER - 1, np.int64(places[above, s, TOP]))
        places[place, s, 0] = 0
        for j in range(longest + 1):
            node = ngrams.find(views.trie_of(handles[s]), places[above, s, j], token)
            if node == -1:
                break  # a longer context cannot have been followed by it either
            top = j + 1
            places[place, s, top] = node
        places[place, s, TOP] = top
    elif handles[s, 0] == views.CLOSED and leads[slot, s, SPAN] == 0:
        rank, span = np.int64(places[above, s, RANK]), np.int64(places[above, s, SPAN])
        rank, span = suffixes.step(handles, s, rank, span, token)
        places[place, s, RANK], places[place, s, SPAN] = rank, span
    else:
        places[place, s, RANK], places[place, s, SPAN] = leads[slot, s, RANK], leads[slot, s, SPAN]


@inlined
def _empty(queue, limit):
    queue.ends[0] = queue.ends[1] = 0
    queue.ends[2] = limit + 1
    for i in range(limit + 1):
        queue.free[i] = i


@inlined
def _worst(queue, space):
    """The probability that a node must exceed to be among the best."""
    first, last = queue.ends[0], queue.ends[1]
    return queue.keys[first] if last - first == space else 0.0


@inlined
def _shorten(queue, space):
    """Drop what is worse than the best `space` nodes."""
    while queue.ends[1] - queue.ends[0] > space:
        queue.free[queue.ends[2]] = queue.slots[queue.ends[0]]
        queue.ends[2] += 1
        queue.ends[0] += 1


@inlined
def _push(queue, space, prob, place, room, i):
    """Enter a candidate among the `space` best; of two equally good ones the earlier is better."""
    keys, slots, ends = queue.keys, queue.slots, queue.ends
    first, last = ends[0], ends[1]
    if last - first == space:
        if prob <= keys[first]:
            return
        slot = slots[first]
        at = first
        while at + 1 < last and keys[at + 1] < prob:
            keys[at], slots[at] = keys[at + 1], slots[at + 1]
            at += 1
    else:
        ends[2] -= 1
        slot = queue.free[ends[2]]
        at = last
        while at > first and keys[at - 1] >= prob:
            keys[at], slots[at] = keys[at - 1], slots[at - 1]
            at -= 1
        ends[1] += 1
    keys[at], slots[at] = prob, slot
    queue.nodes[slot, _ABOVE], queue.nodes[slot, _TOKEN] = place, room.tokens[i]
    queue.nodes[slot, _SOURCE] = room.origin[i]
    for s in range(queue.leads.shape[1]):
        queue.leads[slot, s, RANK] = room.leads[i, s, RANK]
        queue.leads[slot, s, SPAN] = room.leads[i, s, SPAN]


class NgramIndex:
    """Counts of what followed every context of up to 8 tokens, grown token by token.

    It serves the prompt and text of one sequence, and the fresh texts of a pool until they join the
    closed part. `handle` is what kernels know it by.
    """

    def __init__(self, tokens: int = 64) -> None:
        self._take(_allocate(max(64, 3 * tokens), max(64, tokens)))
        # What is free for certain: of so many nodes that a token may take, it takes fewer.
        self._spare_nodes = self._spare_places = 0
        self.texts = 0
        self.tokens = 0
        self._active = _fresh()

    def add_text(self, token_ids: IntArray) -> None:
        """Count a finished text, its beginning included."""
        self.begin()
        self.extend(np.concatenate((np.array([START], np.int32), token_ids)))
        self.texts += 1

    def begin(self) -> None:
        """Forget the running context: what comes next follows nothing."""
        self._reserve(0, 1)
        self.arrays.size[1] += 1  # a place that stays empty, between this text and the next
        self._active = _fresh()

    def extend(self, token_ids: IntArray) -> None:
        """Count tokens that continue the running text."""
        self._reserve(len(token_ids) * (ORDER + 1), len(token_ids))
        ngrams.insert(self.arrays, token_ids, self._active)
        self.tokens += len(token_ids)

    @property
    def nbytes(self) -> int:
        return sum(a.nbytes for a in self.arrays)

    def _reserve(self, nodes: int, places: int) -> None:
        """Make room for so many more nodes and places of the text, at most."""
        self._spare_nodes -= nodes
        self._spare_places -= places
        if self._spare_nodes >= 0 and self._spare_places > 0:  # a break stays behind the text
            return
        arrays = self.arrays
        used, written = arrays.size.tolist()
        grown = _grown(used + nodes, len(arrays.nodes))
        longer = _grown(written + places + 1, len(arrays.text))
        if grown > len(arrays.nodes) or longer > len(arrays.text):
            self._take(_move(arrays, grown, longer))
        self._spare_nodes = grown - used - nodes
        self._spare_places = longer - written - places

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A copy, or what was in a pickle, has arrays that lie elsewhere."""
        self.__dict__.update(state)
        self._take(self.arrays)

    def _take(self, arrays: Arrays) -> None:
        self.arrays = arrays
        self.handle = views.trie_handle(arrays.nodes, arrays.table, arrays.text)


#: An index, the last tokens of the text to go on with, what one observation counts, a source id.
Source = tuple[NgramIndex | ClosedIndex, IntArray, float, int]
#: Of a text that is sampled: what its tokens are drawn by (`SequenceView.noise`), and the place in
#: the text of the first one to draft.
Noise = tuple[int, int]


class TreeBuilder:
    """Draws merged draft trees from several indexes, open and closed ones.

    `escape` is the weight of what has not been seen after a context (the larger, the more shorter
    contexts are trusted); it counts twice after a single token, which says little. `long_escape` is
    that of contexts of more than 8 tokens: one occurrence is as far as those go, and repeating it
    25 times over would make it a certainty. Where several sources know a context, each counts as
    `most` observations at most: a small group is heard beside a large pool. Paths less likely than
    `least_prob` are not proposed.
    """

    def __init__(
        self,
        escape: float = 5.0,
        long_escape: float = 32.0,
        least_prob: float = 0.001,
        most: float = 16.0,
    ) -> None:
        escapes = np.full(REACH + 1, escape)
        escapes[1] *= 2.0
        escapes[ORDER + 1 :] = long_escape
        self._settings = np.concatenate(([least_prob, most], escapes))

    def build(self, sources: Seq[Source], limit: int, depth: int) -> DraftTree:
        """A tree of at most `limit` nodes from (index, context tail, weight, source id) tuples.

        `weight` says how much one observation in that index counts.
        """
        return self.build_many([sources], limit, depth)[0]

    def build_many(
        self,
        batch: Seq[Seq[Source]],
        limit: int,
        depth: int,
        noise: Seq[Noise | None] | None = None,
    ) -> list[DraftTree]:
        """One tree per sequence, in one call that releases the GIL. `noise`, of each sequence that
        is sampled, has the tree prefer the tokens that will be drawn."""
        width = max((len(sources) for sources in batch), default=0)
        if width == 0 or limit <= 0 or depth <= 0:
            return [EMPTY_TREE] * len(batch)
        sources = _pack(batch, width)
        drawn_by, places = np.zeros(len(batch), np.uint64), np.full(len(batch), -1, np.int64)
        for b, known in enumerate(noise or ()):
            if known is not None:
                drawn_by[b], places[b] = known
        tokens, parents = np.empty((2, len(batch), limit), np.int32)
        probs = np.empty((len(batch), limit), np.float32)
        origins, sizes = np.empty((len(batch), limit), np.uint8), np.empty(len(batch), np.int64)
        draft(
            sources,
            (drawn_by, places),
            np.array([limit, depth]),
            self._settings,
            (tokens, parents, probs, origins, sizes),
        )
        return [
            DraftTree(tokens[b, :n], parents[b, :n], probs[b, :n], origins[b, :n])
            for b, n in enumerate(sizes.tolist())
        ]


def tail_of_text(token_ids: IntArray) -> IntArray:
    """The context that pools are asked for: the last tokens of a text, or its beginning."""
    if len(token_ids) >= REACH:
        return np.ascontiguousarray(token_ids[-REACH:])
    return np.concatenate((np.array([START], np.int32), token_ids))


def warm_up() -> None:
    """Compile the kernels (seconds on first use, then cached on disk), so that no step pays."""
    index = NgramIndex()
    index.add_text(np.arange(4, dtype=np.int32))
    index.extend(np.arange(64, dtype=np.int32))
    closed = ClosedIndex.build([np.arange(32, dtype=np.int32)] * 20)
    tail = tail_of_text(np.arange(2, dtype=np.int32))
    sources: list[Source] = [(index, tail, 1.0, 0), (closed, tail, 1.0, 3)]
    TreeBuilder().build_many([sources], 4, 4, [(1, 0)])
    closed.locate(np.arange(4, dtype=np.int32), np.array([2], np.int64))


_NOTHING, _NOTHING_SAID = views.no_handle(), np.empty(0, np.int32)


def _pack(batch: Seq[Seq[Source]], width: int) -> tuple[Any, Any, Any, Any, Any]:
    """Handles, weights, tails, their ends and source ids as the kernel takes them; missing sources
    are empty."""
    shape = len(batch), width
    handles: list[views.Handle] = []
    tails: list[IntArray] = []
    rest: list[tuple[float, int]] = []
    for sources in batch:
        for index, tail, weight, name in sources:
            handles.append(index.handle)
            tails.append(tail[-REACH:])
            rest.append((weight, name))
        missing = width - len(sources)
        handles += [_NOTHING] * missing
        tails += [_NOTHING_SAID] * missing
        rest += [(0.0, 0)] * missing
    weights, names = np.array(rest).T.reshape(2, *shape)
    return (
        np.concatenate(handles).reshape(*shape, views.FIELDS),
        np.ascontiguousarray(weights),
        np.concatenate(tails),
        np.cumsum([len(tail) for tail in tails], dtype=np.int64).reshape(shape),
        names.astype(np.uint8),
    )


def _fresh() -> IntArray:
    active = np.full(ORDER + 1, -1, np.int32)
    active[0] = 0
    return active


def _grown(needed: int, capacity: int) -> int:
    return capacity if needed <= capacity else max(needed, 3 * capacity // 2)


def _allocate(nodes: int, places: int) -> Arrays:
    table = np.full(1 << (5 * nodes // 4).bit_length(), -1, np.int32)  # at most 4/5 full
    text = np.full(places, ngrams.BREAK, np.int32)
    arrays = Arrays(np.zeros((nodes, 8), np.int32), table, text, np.array([1, 0]))
    arrays.nodes[0, ngrams.CHILD] = -1
    return arrays


def _move(old: Arrays, nodes: int, places: int) -> Arrays:
    """The same index with room for so many nodes and places."""
    new = _allocate(nodes, places)
    used, written = old.size.tolist()
    new.nodes[:used] = old.nodes[:used]
    new.text[:written] = old.text[:written]
    new.size[:] = old.size
    ngrams.rehash(new.nodes, new.table, used)
    return new
