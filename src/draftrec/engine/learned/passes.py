"""Passes of a draft head over texts and the trees below them, in a slab of its own."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Seq

import numpy as np
import torch

from draftrec.engine.kv_cache import KVShape, KVSlab
from draftrec.engine.learned.head import DraftHead
from draftrec.engine.masks import FULL
from draftrec.engine.packing import Packed, Segment, pack
from draftrec.engine.passes import attention
from draftrec.engine.passes.attention import Plan, attend

_REACHES = {0: FULL}


class HeadPasses:
    """A head with what it borrows: `embed` gives token embeddings `[N, H]` of int64 `[N]`,
    `output` the logits `[N, V]` of features `[N, H]`."""

    def __init__(
        self,
        head: DraftHead,
        embed: Callable[[torch.Tensor], torch.Tensor],
        output: Callable[[torch.Tensor], torch.Tensor],
    ) -> None:
        self.head, self.embed, self.output = head.eval(), embed, output
        self.slab: KVSlab | None = None
        #: Foretold features `[slots, 1 + nodes, H]`: of the last token of each text, and of the
        #: nodes below it.
        self._foretold = torch.empty(0)

    def reserve(self, slots: int, capacity: int, nodes: int) -> None:
        """Make room for texts of `capacity` rows, the `nodes` below them included."""
        shape, like = self.head.shape, self.head.last.weight
        kept = self.slab and self.slab.slots == slots and self.slab.capacity >= capacity
        if kept and self._foretold.shape[1] > nodes:
            return
        self.slab = None
        rows = KVShape(1, shape.kv_heads, shape.head_dim, shape.head_dim)
        self.slab = KVSlab(rows, slots, -(-capacity // 64) * 64, like.device, like.dtype)
        self._foretold = like.new_zeros((slots, 1 + nodes, shape.hidden))

    @torch.inference_mode()
    def score(self, segments: Seq[Segment], features: torch.Tensor) -> torch.Tensor:
        """Logits `[R, V]` after the last pending token and after the new nodes of each segment.

        `features` `[slots, capacity, H]`: the target's, of every token of the text but the last.
        Nodes follow what was foretold of their parents, in an earlier pass.
        """
        if self.slab is None:
            raise RuntimeError("call reserve() before score()")
        head, device = self.head, self.slab.keys.device
        packed = pack(segments, device, [FULL], launch=attention.launch_cost(device))
        stream = head.joined(self.embed(packed.token_ids), self._before(packed, segments, features))
        query, key, value = head.attended(stream, packed.positions)
        plan = Plan(packed, self.slab, _REACHES)
        plan.write(0, key.transpose(0, 1), value.transpose(0, 1))
        mixed = attend(plan, 0, query, scale=head.shape.head_dim**-0.5)
        asked = packed.scored
        found = head.foretold(stream[asked], mixed[asked])
        slots, places = _places(segments)
        self._foretold[slots.to(device), places.to(device)] = found
        return self.output(found)

    def _before(
        self, packed: Packed, segments: Seq[Segment], features: torch.Tensor
    ) -> torch.Tensor:
        """Features `[N, H]` that each row goes on from."""
        device = packed.positions.device
        own = torch.from_numpy(np.concatenate([_parents(s) for s in segments])).to(device)
        slots, before = packed.slots, packed.positions - 1
        known = features[slots, before.clamp(min=0)].to(self._foretold.dtype)
        known = torch.where(before[:, None] < 0, 0, known)
        return torch.where(own[:, None] < 0, known, self._foretold[slots, own.clamp(min=0)])


def _parents(segment: Segment) -> np.ndarray:
    """int64 `[rows]`: places in `_foretold` of what rows follow; -1 where the target has been."""
    nodes = segment.tree.parents[segment.past :].astype(np.int64) + 1
    return np.concatenate([np.full(len(segment.pending), -1, np.int64), nodes])


def _places(segments: Seq[Segment]) -> tuple[torch.Tensor, torch.Tensor]:
    """Where in `_foretold` the rows that were asked for go: slots and places, int64 `[R]`."""
    slots: list[np.ndarray] = []
    places: list[np.ndarray] = []
    for s in segments:
        here = np.arange(s.past, len(s.tree), dtype=np.int64) + 1
        here = np.concatenate([np.zeros(min(1, len(s.pending)), np.int64), here])
        places.append(here)
        slots.append(np.full(len(here), s.slot, np.int64))
    return torch.from_numpy(np.concatenate(slots)), torch.from_numpy(np.concatenate(places))
