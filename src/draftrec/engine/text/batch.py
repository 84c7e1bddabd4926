"""Running sequences and the slots they occupy: continuous batching without tensors.

A finished sequence frees its slot at once and a waiting request takes it in the same step. Prompt
tokens that already lie in some slot (a template's instructions, say) are not computed again. Of
requests that are known together, a slot takes the one that goes on with most of what it holds: so
every beginning that several share is computed once, and texts of prompts alike are written one
after another, the later ones drafting from the earlier.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from draftrec.core import (
    OWN,
    ByteArray,
    Counts,
    FinishReason,
    Generation,
    IntArray,
    Request,
    TokenScore,
    Verdict,
)
from draftrec.engine.prefixes import SlotPrefixes

# A shared prefix shorter than this is cheaper to compute than to copy, or than to wait for.
_LEAST_COPIED, _LEAST_AWAITED = 4, 16
# Waiting requests that are looked at for one that need not wait longer.
_CANDIDATES = 16


@dataclass(frozen=True, slots=True)
class Limits:
    """Sequences at once, new tokens per text, tokens of prompt and text together, and the longest
    text whose cached rows another with the same beginning can take over."""

    slots: int
    max_new_tokens: int
    context_length: int
    shared_length: int = 1 << 30


class RunningSequence:
    """One text being written. `computed` rows of its context are in the KV slab; `noise` is what
    its tokens are drawn by, if they are (`engine.noise`)."""

    def __init__(self, order: int, slot: int, request: Request, max_new_tokens: int) -> None:
        self.order, self.slot, self.request = order, slot, request
        self.prompt_tokens = len(request.prompt_ids)
        self._tokens = np.empty(self.prompt_tokens + max_new_tokens, np.int32)
        self._tokens[: self.prompt_tokens] = request.prompt_ids
        self.length = self.prompt_tokens
        self.computed = 0
        self.counts = Counts()
        self._sources = np.full(max_new_tokens, OWN, np.uint8)
        self.loss = 0.0
        self.finish: FinishReason | None = None
        self.noise: int | None = None
        self.scores: list[TokenScore] = []

    @property
    def context(self) -> IntArray:
        return self._tokens[: self.length]

    @property
    def new_tokens(self) -> int:
        return self.length - self.prompt_tokens

    @property
    def room(self) -> int:
        return len(self._tokens) - self.length

    @property
    def pending(self) -> int:
        """Known tokens whose KV rows are not there yet; 1 while decoding."""
        return self.length - self.computed

    def note_sources(self, sources: ByteArray) -> None:
        """Where the next tokens were drafted from, before they are taken over."""
        self._sources[self.new_tokens : self.new_tokens + len(sources)] = sources

    def extend(self, verdict: Verdict, eos_ids: frozenset[int]) -> None:
        """Take over a verdict's tokens and finish on EOS or on a full text, if it is not finished
        for another reason."""
        self.computed = self.length + len(verdict.path)
        end = self.length + len(verdict.token_ids)
        self._tokens[self.length : end] = verdict.token_ids
        self.length = end
        self.loss += verdict.loss
        if int(self._tokens[end - 1]) in eos_ids:
            self.finish = "eos"
        elif self.finish is None and self.room == 0:
            self.finish = "length"

    def result(self) -> Generation:
        if self.finish is None:
            raise RuntimeError("this text is not finished")
        new = self._tokens[self.prompt_tokens : self.length].copy()
        counts, scores = self.counts, tuple(self.scores)
        sources = self._sources[: self.new_tokens].copy()
        return Generation(
            self.request.entity_id,
            new,
            self.finish,
            self.prompt_tokens,
            counts,
            self.loss,
            sources,
            scores,
        )


class Batch:
    """At most `slots` running sequences, and the requests that wait. `results` by the requests'
    order: numbers from 0, in which they were added."""

    def __init__(
        self,
        requests: Seq[Request],
        limits: Limits,
        copy_prefix: Callable[[int, int, int], None],
    ) -> None:
        self.waiting: list[tuple[int, Request]] = []
        self.running: list[RunningSequence] = []
        self.results: dict[int, Generation] = {}
        self.added = 0
        self.limits = limits
        self._by_beginning = False
        self._free = list(range(limits.slots))
        # What the slots' rows in the cache are known to be, and what prompts under way will add.
        self._resident, self._coming = SlotPrefixes(limits.slots), SlotPrefixes(limits.slots)
        self._copy_prefix = copy_prefix
        for request in requests:
            self.add(request)

    def add(self, request: Request) -> int:
        """Let one more request wait, behind those that do; its order."""
        self.waiting.append((self.added, request))
        self.added += 1
        return self.added - 1

    def add_all(self, requests: Seq[Request]) -> None:
        """Let requests wait that are all there will be; which is next is up to their beginnings."""
        for request in requests:
            self.add(request)
        self.waiting.sort(key=_beginning)
        self._by_beginning = True

    def drop(self, order: int) -> RunningSequence | None:
        """Take a request out, whether it waits or runs: nobody wants its text any more. Its slot is
        free at once. Returns the sequence if it was running."""
        self.waiting = [pair for pair in self.waiting if pair[0] != order]
        found = next((s for s in self.running if s.order == order), None)
        if found:
            self.running.remove(found)
            self._release(found)
            self._free.sort()
        return found

    @property
    def active(self) -> bool:
        return bool(self.running or self.waiting)

    def refill(self) -> list[RunningSequence]:
        """Give free slots to waiting requests; returns the newcomers."""
        arrived: list[RunningSequence] = []
        while self._free and (place := self._next()) is not None:
            order, request = self.waiting.pop(place)
            shared, source = self._longest_prefix(request.prompt_ids)
            slot = self._take_slot(source, shared)
            sequence = RunningSequence(order, slot, request, self._room(request))
            if shared >= _LEAST_COPIED:
                if source != slot:
                    self._copy_prefix(source, slot, shared)
                sequence.computed = shared
            self._resident.hold(slot, request.prompt_ids[: sequence.computed])
            if len(request.prompt_ids) <= self.limits.shared_length:
                self._coming.hold(slot, request.prompt_ids)
            self.running.append(sequence)
            arrived.append(sequence)
        return arrived

    def note_computed(self, sequence: RunningSequence) -> None:
        """The slot now holds the KV rows of the sequence's first `computed` tokens."""
        computed = 0 if sequence.length > self.limits.shared_length else sequence.computed
        self._resident.go_on(sequence.slot, sequence.context[:computed])
        if sequence.computed >= sequence.prompt_tokens:
            self._coming.cut(sequence.slot, 0)

    def retire(self) -> list[RunningSequence]:
        """Move finished sequences to `results` and free their slots; returns them."""
        done = [s for s in self.running if s.finish]
        for sequence in done:
            self.results[sequence.order] = sequence.result()
            self._release(sequence)
        if done:
            self.running = [s for s in self.running if not s.finish]
            self._free.sort()
        return done

    def finished(self) -> list[Generation]:
        """All results in input order. Raises RuntimeError while some are missing."""
        if len(self.results) != self.added:
            raise RuntimeError("some texts are not finished")
        return [self.results[order] for order in range(self.added)]

    def _release(self, sequence: RunningSequence) -> None:
        self._free.append(sequence.slot)
        self._coming.cut(sequence.slot, 0)

    def _room(self, request: Request) -> int:
        left = self.limits.context_length - len(request.prompt_ids)
        most, wished = self.limits.max_new_tokens, request.wishes.max_new_tokens
        return min(most if wished is None else wished, most, left)

    def _next(self) -> int | None:
        """The place of the waiting request to begin; None: one step later, rows that all those
        looked at need will be there to be copied."""
        for slot in self._free if self._by_beginning else self._free[:1]:
            for place in self._candidates(slot):
                prompt = self.waiting[place][1].prompt_ids
                awaited = self._being_computed(prompt) - _LEAST_AWAITED
                if awaited < 0 or awaited < self._longest_prefix(prompt)[0]:
                    return place
        return None

    def _candidates(self, slot: int) -> Seq[int]:
        """Places of waiting requests, the first one for this slot first."""
        count = len(self.waiting)
        if not self._by_beginning:
            return range(min(count, _CANDIDATES))
        held = self._resident.tokens(slot)
        if not len(held):  # far from where the other slots begin
            at = slot * count // self.limits.slots
            return range(at, min(count, at + _CANDIDATES))
        at = bisect_left(self.waiting, sort_key(held), key=_beginning)
        behind = range(at, min(count, at + _CANDIDATES // 2))
        before = range(max(0, at - _CANDIDATES // 2), at)[::-1]
        return sorted(
            [*behind, *before], key=lambda i: -common_prefix(held, self.waiting[i][1].prompt_ids)
        )

    def _take_slot(self, source: int, shared: int) -> int:
        """The slot that already holds the prefix if it is free, else the lowest free one."""
        if shared >= _LEAST_COPIED and source in self._free:
            self._free.remove(source)
            return source
        return self._free.pop(0)

    def _longest_prefix(self, prompt: IntArray) -> tuple[int, int]:
        """How many first tokens of `prompt` some slot holds, and which; one is left to compute."""
        if len(prompt) > self.limits.shared_length:
            return 0, 0
        shared = self._resident.shared(prompt)
        source = int(shared.argmax())
        return min(int(shared[source]), len(prompt) - 1), source

    def _being_computed(self, prompt: IntArray) -> int:
        if len(prompt) > self.limits.shared_length:
            return 0
        return int(self._coming.shared(prompt).max())


def shared_tokens(prompts: Seq[IntArray]) -> int:
    """How many tokens of prompts, int32 `[n]` each, need not be computed, since an earlier one
    begins with the same: all that any batch could save, but for one token of equal prompts."""
    ordered = sorted(prompts, key=sort_key)
    return sum(common_prefix(a, b) for a, b in pairwise(ordered))


def _beginning(waiting: tuple[int, Request]) -> bytes:
    """What waiting requests are put in order by: those that begin alike lie side by side."""
    return sort_key(waiting[1].prompt_ids)


def sort_key(ids: IntArray) -> bytes:
    """Compares as the token ids do, one by one."""
    return ids.astype(">u4").tobytes()


def common_prefix(a: IntArray, b: IntArray) -> int:
    """Length of the longest common prefix."""
    n = min(len(a), len(b))
    differs = a[:n] != b[:n]
    return int(differs.argmax()) if differs.any() else n
