"""The draft head: one transformer layer that foretells the target's next hidden states; and its
passes over texts and the trees below them, in a slab of its own.

The EAGLE family's idea (arXiv 2401.15077, 2503.01840), written anew. Row `t` of a text takes the
embedding of token `t` and the target's feature of `t - 1` (its last hidden state, as its output
layer reads it: the one that chose token `t`), and foretells the feature of `t`. The target's own
output layer makes tokens of it, over the `V` draft tokens that texts use most (FR-Spec, arXiv
2502.14856). Where the target has not been yet, the head goes on from what it has foretold itself.

Shapes: `N` rows, `H` width of the target, `V` draft tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from draftrec.engine.kv_cache import KVShape, KVSlab, RowShape
from draftrec.engine.masks import FULL
from draftrec.engine.packing import Packed, Segment, pack
from draftrec.engine.passes import attention
from draftrec.engine.passes.attention import Plan, attend


@dataclass(frozen=True, slots=True)
class HeadShape:
    """Sizes of a head: those of a layer of the target, if nothing speaks against it."""

    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    inner: int
    theta: float = 10_000.0
    epsilon: float = 1e-6

    @classmethod
    def of(cls, config: Any) -> HeadShape:
        """That of a layer of a model with such a text config."""
        heads = int(config.num_attention_heads)
        rope = getattr(config, "rope_parameters", None) or {}
        theta = rope.get("rope_theta", getattr(config, "rope_theta", None))
        hidden = int(config.hidden_size)
        return cls(
            hidden,
            heads,
            int(getattr(config, "num_key_value_heads", None) or heads),
            int(getattr(config, "head_dim", None) or hidden // heads),
            int(getattr(config, "intermediate_size", None) or 4 * hidden),
            float(theta or 10_000.0),
            float(getattr(config, "rms_norm_eps", None) or 1e-6),
        )


class DraftHead(nn.Module):
    """The layer's own weights. What it borrows from the target are its token embeddings and its
    output rows `[V, H]`; neither is trained or kept here."""

    def __init__(self, shape: HeadShape) -> None:
        super().__init__()
        self.shape = shape
        hidden, width = shape.hidden, shape.heads * shape.head_dim
        kv_width = shape.kv_heads * shape.head_dim

        def linear(inner: int, outer: int) -> nn.Linear:
            return nn.Linear(inner, outer, bias=False)

        def norm() -> nn.RMSNorm:
            return nn.RMSNorm(hidden, shape.epsilon)

        self.token_norm, self.feature_norm = norm(), norm()
        self.join = linear(2 * hidden, hidden)
        self.before, self.after, self.last = norm(), norm(), norm()
        self.query, self.out = linear(hidden, width), linear(width, hidden)
        self.key, self.value = linear(hidden, kv_width), linear(hidden, kv_width)
        self.gate, self.up = linear(hidden, shape.inner), linear(hidden, shape.inner)
        self.down = linear(shape.inner, hidden)
        self._frequencies: torch.Tensor | None = None

    def joined(self, embedded: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        """`[N, H]`, the residual stream: of token embeddings and of the features before them,
        zero where there is none."""
        both = [self.token_norm(embedded), self.feature_norm(features)]
        return self.join(torch.cat(both, -1))

    def attended(
        self, stream: torch.Tensor, positions: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries `[N, heads, dim]`, keys and values `[N, kv_heads, dim]`, turned to `positions`
        `[N]`; with more dimensions before `N` where the stream has them."""
        x, dim = self.before(stream), self.shape.head_dim
        query, key, value = (
            linear(x).unflatten(-1, (-1, dim)) for linear in (self.query, self.key, self.value)
        )
        wave = self._wave(positions)
        return _turned(query, wave), _turned(key, wave), value

    def foretold(self, stream: torch.Tensor, mixed: torch.Tensor) -> torch.Tensor:
        """Features `[N, H]` of rows, from what attention gave them, `[N, heads, dim]`."""
        stream = stream + self.out(mixed.flatten(-2))
        x = self.after(stream)
        return self.last(stream + self.down(F.silu(self.gate(x)) * self.up(x)))

    def _wave(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines `[N, 1, dim / 2]`."""
        if self._frequencies is None or self._frequencies.device != positions.device:
            half = torch.arange(0, self.shape.head_dim, 2, device=positions.device)
            self._frequencies = self.shape.theta ** (-half.float() / self.shape.head_dim)
        angle = positions.float()[..., None, None] * self._frequencies
        return angle.cos(), angle.sin()


def _turned(x: torch.Tensor, wave: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Rotary positions over whole heads (arXiv 2104.09864), halves paired as in Llama."""
    cos, sin = (w.to(x.dtype) for w in wave)
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def unrolled(
    head: DraftHead,
    embedded: torch.Tensor,
    features: torch.Tensor,
    first: int,
    steps: int,
    lead: torch.Tensor | None = None,
) -> list[torch.Tensor]:
    """What the head foretells of `B` texts when it goes on from itself, for training.

    `embedded`, `features` `[B, T, H]`: of each token, and of the row before it (zero for the
    first). Item `j` `[B, T - first, H]` holds the features of rows `first ..` as they are foretold
    where the target was last asked `j` rows before: row `t` then follows the head's own `t - 1`,
    which followed its own `t - 2` and so on, `j` times (training-time test, arXiv 2503.01840). Rows
    before `first` are context alone. Rows `t < first + j` of item `j` would follow rows before
    `first`, whose features nobody foretold; they are to be left out of losses.

    `lead` int64 `[B]`: so many of a text's first rows, at most `first`, are padding that no row
    sees; None: none are. What stands behind a text is seen by no row of it.
    """
    positions = torch.arange(embedded.shape[1], device=embedded.device)
    stream = head.joined(embedded, features)
    query, key, value = head.attended(stream, positions)
    n, shape = embedded.shape[1] - first, head.shape
    groups = shape.heads // shape.kv_heads
    own = positions[first:]
    hidden = positions[None] < (0 if lead is None else lead[:, None])
    found: list[torch.Tensor] = []
    # Keys and values of the rows of each step, aligned with the rows themselves.
    keys, values = [key], [value]
    stream, query = stream[:, first:], query[:, first:]
    for step in range(steps):
        if step:
            before = torch.cat([torch.zeros_like(found[-1][:, :1]), found[-1][:, :-1]], 1)
            stream = head.joined(embedded[:, first:], before)
            query, key, value = head.attended(stream, own)
            keys.append(key)
            values.append(value)
        q = query.unflatten(2, (shape.kv_heads, groups)) * shape.head_dim**-0.5
        scores = torch.einsum("bnkgd,bskd->bnkgs", q, keys[0])
        later = positions > own[:, None] - step
        unseen = (later[None] | hidden[:, None])[:, :, None, None]
        scores = scores.masked_fill(unseen, float("-inf"))
        # Row t sees the head's own row t - step + i of step i: one column for each.
        shifted = [_delayed(x, step - i - 1) for i, x in enumerate(keys[1:])]
        columns = [torch.einsum("bnkgd,bnkd->bnkg", q, k)[..., None] for k in shifted]
        weights = torch.cat([scores, *columns], -1).softmax(-1)
        mixed = torch.einsum("bnkgs,bskd->bnkgd", weights[..., : len(positions)], values[0])
        for i, x in enumerate(values[1:]):
            part = weights[..., len(positions) + i, None]
            mixed = mixed + part * _delayed(x, step - i - 1)[:, :, :, None]
        found.append(head.foretold(stream, mixed.reshape(-1, n, shape.heads, shape.head_dim)))
    return found


def _delayed(rows: torch.Tensor, by: int) -> torch.Tensor:
    """Row `t - by` in the place of row `t`, `[B, N, ...]`; zero where there is none."""
    if by == 0:
        return rows
    return torch.cat([torch.zeros_like(rows[:, :by]), rows[:, :-by]], 1)


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
        rows = KVShape((RowShape(shape.kv_heads, shape.head_dim, shape.head_dim),))
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
        head, device = self.head, self.slab.device
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
