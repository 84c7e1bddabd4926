"""Which tokens slots begin with: what a prompt has in common with one is not computed again.

Plain arrays: whoever shows a batch needs no model library for it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from draftrec.core import IntArray, LongArray


class SlotPrefixes:
    """The token ids that each of some slots begins with, and how much of that others share."""

    def __init__(self, slots: int) -> None:
        self._tokens = np.empty((slots, 0), np.int32)
        self._lengths = np.zeros(slots, np.int64)

    def hold(self, slot: int, tokens: IntArray) -> None:
        """Slot `slot` begins with `tokens` int32 `[n]`, and nothing is known of what is behind."""
        self._lengths[slot] = 0
        self.go_on(slot, tokens)

    def go_on(self, slot: int, tokens: IntArray) -> None:
        """The same, of `tokens` that begin with what is held: the rest is written, if there is
        any."""
        n, known, (slots, room) = len(tokens), self._lengths[slot], self._tokens.shape
        if n > room:
            more = np.empty((slots, max(n, 2 * room) - room), np.int32)
            self._tokens = np.concatenate([self._tokens, more], axis=1)
        self._tokens[slot, known:n] = tokens[known:]
        self._lengths[slot] = n

    def tokens(self, slot: int) -> IntArray:
        """What the slot is known to begin with, int32 `[n]`."""
        return self._tokens[slot, : self._lengths[slot]]

    def cut(self, slot: int, length: int) -> None:
        """At most the first `length` tokens of the slot are still true."""
        if self._lengths[slot] > length:
            self._lengths[slot] = length

    def shared(self, tokens: IntArray, first: int = 0, last: int | None = None) -> LongArray:
        """int64 `[last - first]`: how many first tokens each of these slots, all if none are said,
        has in common with `tokens` int32 `[n]`."""
        held, lengths = self._tokens[first:last], self._lengths[first:last]
        found = np.empty(len(lengths), np.int64)
        _common(held, lengths, np.ascontiguousarray(tokens, np.int32), found)
        return found


# Tokens that are compared at once: whether they differ is asked of all of them together.
_TOGETHER = 16


@njit(cache=True, nogil=True)
def _common(held: Any, lengths: Any, tokens: Any, found: Any) -> None:
    """For every row of `held`, of which `lengths` count, its common prefix with `tokens`."""
    for slot in range(len(lengths)):
        most, same = min(lengths[slot], len(tokens)), 0
        while same + _TOGETHER <= most:
            differ = np.int32(0)
            for i in range(same, same + _TOGETHER):
                differ |= held[slot, i] ^ tokens[i]
            if differ:
                break
            same += _TOGETHER
        while same < most and held[slot, same] == tokens[same]:
            same += 1
        found[slot] = same
