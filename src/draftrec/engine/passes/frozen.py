"""The pass over few rows, frozen: the unmodified model compiled as one graph, replayed every step.

A small pass is bound by launching kernels and by Python, not by the device. Everything in it but
numbers is made once: its shapes (rows come in few sizes; what is missing is padding that nothing
sees), the place of its inputs (one buffer, filled by one transfer), its kernels. `torch.compile`
traces the model whole, around `tree_attention`, for any number of rows and any slab, and so once in
all; on GPUs the kernels of a pass of each size are then recorded as a CUDA graph when the first
such pass comes. Longer passes, those of prompts, run eagerly over the same slab.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Seq
from dataclasses import replace
from types import FunctionType
from typing import Any

import torch
from torch._dynamo.exc import TorchDynamoException
from torch.fx.experimental import _config as symbols

from draftrec.core import EMPTY_TREE
from draftrec.engine.kv_cache import KVBlock, KVShape, KVSlab
from draftrec.engine.masks import FULL, Reach
from draftrec.engine.packing import Rows, Segment, pack_rows
from draftrec.engine.passes.attention import RowPlan
from draftrec.engine.passes.eager import LastHidden, PackedRunner
from draftrec.engine.rotary import RowFactors
from draftrec.engine.tree import certain

_LOG = logging.getLogger("draftrec")
#: Rows of a frozen pass.
SIZES = (4, 8, 16, 32, 64, 128, 256)
#: The one size of all passes where a row's bits must not follow from it: on a GPU one at which
#: reading the weights still takes longer than the products.
EXACT_SIZE = {"cpu": 16, "cuda": 128}

#: Work on tensors that stay where they are. Recording it gives what does it again.
Work = Callable[[], torch.Tensor]
Record = Callable[[Work], Work]
#: A pass over `Rows` and the slab's keys and values: logits, and last hidden states where they are
#: kept.
Forward = Callable[
    [Rows, Seq[KVBlock], Seq[tuple[int, int]]], tuple[torch.Tensor, torch.Tensor | None]
]


class FrozenRunner:
    """A `target.Runner` that replays its passes; `eager` runs those that are not frozen.

    `exact`: all passes are of one size, longer ones cut into several, so that the same kernels
    compute every row. `record`: a CUDA graph on GPUs, elsewhere the compiled code as it is.
    """

    backend = "inductor"

    def __init__(
        self, eager: PackedRunner, *, exact: bool = False, record: Record | None = None
    ) -> None:
        device = eager.model.device
        self.eager, self.exact = eager, exact
        self.kv_dtype = eager.kv_dtype
        self.sizes = (EXACT_SIZE.get(device.type, 16),) if exact else SIZES
        self.kinds = list(dict.fromkeys([FULL, *eager.reaches.values()]))
        self.padded_rows: Callable[[int], int] = self._padded
        #: The model cannot be frozen, which was said.
        self.broken = False
        self._record = record or (_graphs(device) if device.type == "cuda" else _as_it_is)
        self._forward: Forward | None = None

    @property
    def by_row(self) -> bool:
        return self.eager.by_row if self.broken else self.exact

    def keep_features(self, hidden: LastHidden) -> None:
        """The hook stays: a graph that was compiled with it holds for the same hooks only."""
        self.eager.keep_features(hidden)
        self._forward = None
        hidden.watched()

    def attend_together(self) -> None:
        """Let passes be as long as they come, from now on."""
        self.exact, self.sizes = False, SIZES
        if self.eager.by_row:
            self.eager.attend_together()

    @property
    def reaches(self) -> Mapping[int, Reach]:
        return self.eager.reaches

    def shape(self) -> KVShape:
        return self.eager.shape()

    def run(self, segments: Seq[Segment], slab: KVSlab, factors: RowFactors | None) -> torch.Tensor:
        """Logits `[R, vocabulary]` of the rows that are asked for, segment by segment, in memory
        that the next pass may write to."""
        most = self.sizes[-1]
        fits = sum(s.rows for s in segments) <= most
        passes = [segments] if fits else cut(segments, most) if self.exact else []
        found: list[torch.Tensor] = []
        for part in passes:
            logits = None if self.broken else self._replay(part, slab)
            if logits is not None:
                found.append(logits.clone() if len(passes) > 1 else logits)
        if not passes or self.broken:
            return self.eager.run(segments, slab, factors)
        return found[0] if len(found) == 1 else torch.cat(found)

    def _padded(self, rows: int) -> int:
        most = self.sizes[-1]
        if self.broken or (rows > most and not self.exact):
            return self.eager.padded_rows(rows)
        return next((size for size in self.sizes if size >= rows), -(-rows // most) * most)

    def _replay(self, segments: Seq[Segment], slab: KVSlab) -> torch.Tensor | None:
        """None: the model cannot be frozen."""
        nodes = max(len(s.tree) for s in segments)
        # Few widths of records too: a word of 64 nodes, twice as many and so on.
        words = 1 << (max(1, -(-nodes // 64)) - 1).bit_length()
        size = self._padded(sum(s.rows for s in segments)), words
        host, wanted = pack_rows(segments, self.kinds, size, pinned=slab.device.type == "cuda")
        if size not in slab.passes:
            try:
                slab.passes[size] = self._freeze(host, size, slab)
            except torch.OutOfMemoryError:
                raise
            except (TorchDynamoException, RuntimeError) as error:
                self._give_up(error)
                return None
        buffer, replay = slab.passes[size]
        buffer.copy_(host, non_blocking=True)
        return replay()[:wanted]

    def _freeze(
        self, host: torch.Tensor, size: tuple[int, int], slab: KVSlab
    ) -> tuple[torch.Tensor, Work]:
        """A buffer for the inputs of passes of `size`, and what gives their logits."""
        if self._forward is None:
            _LOG.info("compiling passes over the model, once, which may take minutes")
            self._forward = _compiled(self.eager, self.kinds, self.backend)
        forward, blocks, features = self._forward, slab.blocks, slab.features
        buffer = host.to(slab.device)
        rows = Rows.of(buffer, len(self.kinds), *size)
        for tensor in rows[:-1]:
            torch._dynamo.maybe_mark_dynamic(tensor, 0)
        torch._dynamo.maybe_mark_dynamic(rows.sight, [1, 2])
        for tensor in slab.memory:
            # One slot is no case of its own.
            torch._dynamo.decorators.mark_unbacked(tensor, 1)
            torch._dynamo.maybe_mark_dynamic(tensor, 3)

        def work() -> torch.Tensor:
            logits, hidden = forward(rows, blocks, slab.places)
            if features is not None and hidden is not None:
                features[rows.slots, rows.columns] = hidden
            return logits

        # A pass that happens to have as many rows as the slab has columns is no rule for others.
        every: Any = symbols
        with every.patch(use_duck_shape=False), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the compiler's, about itself
            work()
        return buffer, self._record(work)

    def _give_up(self, error: Exception) -> None:
        self.broken = True
        why = " ".join(f"{type(error).__name__}: {error}".split())[:200].rstrip(". ")
        name = type(self.eager.model).__name__
        _LOG.warning("passes of %s are not frozen, it cannot be compiled whole (%s)", name, why)


def _compiled(eager: PackedRunner, kinds: Seq[Reach], backend: str) -> Forward:
    """The model as one graph."""
    model: Any = eager.model
    keeps, hidden = eager.keeps, eager.hidden
    seen = [kinds.index(eager.reaches[layer]) for layer in range(len(eager.reaches))]

    def forward(
        rows: Rows, blocks: Seq[KVBlock], places: Seq[tuple[int, int]]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        sight = [rows.sight[kind] for kind in seen]
        options: dict[str, Any] = {"logits_to_keep": rows.scored} if keeps else {}
        logits = model(
            input_ids=rows.token_ids[None],
            position_ids=rows.positions[None],
            use_cache=False,
            draftrec_plan=RowPlan(blocks, places, rows.slots, rows.columns, sight),
            **options,
        ).logits[0]
        return logits if keeps else logits[rows.scored], hidden.taken() if hidden else None

    # What was compiled, and how often it may be, is kept by code object, which all models share.
    code = forward.__code__.replace(co_name="forward")
    own = FunctionType(code, forward.__globals__, closure=forward.__closure__)
    return torch.compile(own, fullgraph=True, dynamic=False, backend=backend)


def _as_it_is(work: Work) -> Work:
    return work


def _graphs(device: torch.device) -> Record:
    """Records CUDA graphs, which share their memory: one runs at a time."""
    pool = torch.cuda.graph_pool_handle()

    def record(work: Work) -> Work:
        with torch.cuda.device(device):
            aside = torch.cuda.Stream()
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                work()  # libraries prepare themselves, and kernels are loaded, outside the graph
            torch.cuda.current_stream().wait_stream(aside)
            graph = torch.cuda.CUDAGraph()
            # Other threads may go on: a server's copy what they like.
            with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
                found = work()

        def replay() -> torch.Tensor:
            graph.replay()
            return found

        return replay

    return record


def cut(segments: Seq[Segment], most: int) -> list[list[Segment]]:
    """The same rows in the same order, in passes of at most `most`: what comes later sees what came
    before it in the slab."""
    passes: list[list[Segment]] = []
    room = 0
    for segment in segments:
        left = segment
        while left.rows:
            if not room:
                passes.append([])
                room = most
            first, left = _parted(left, room)
            passes[-1].append(first)
            room -= first.rows
    return passes


def _parted(segment: Segment, rows: int) -> tuple[Segment, Segment]:
    """At most `rows` first rows of a segment, and the others."""
    known = len(segment.pending)
    if rows < known:
        first = replace(segment, pending=segment.pending[:rows], tree=EMPTY_TREE, scored=False)
        start, pending = segment.start + rows, segment.pending[rows:]
        return first, replace(segment, start=start, pending=pending)
    nodes = min(segment.past + rows - known, len(segment.tree))
    tree = certain(segment.tree.token_ids[:nodes], segment.tree.parents[:nodes])
    start, none = segment.start + known, segment.pending[:0]
    return replace(segment, tree=tree), replace(segment, start=start, pending=none, past=nodes)
