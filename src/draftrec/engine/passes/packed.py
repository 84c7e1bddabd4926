"""The model as it is, over one row in which all rows of all sequences lie, its attention replaced
by ours; and what each of its layers caches and sees, found by one token.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Seq
from contextlib import nullcontext
from typing import Any

import torch
from transformers import AttentionInterface, PreTrainedModel

from draftrec.engine.kv_cache import KVShape, KVSlab
from draftrec.engine.masks import FULL, PROBE, Reach
from draftrec.engine.packing import Block, Packed, Segment, pack
from draftrec.engine.passes import attention
from draftrec.engine.passes.last_hidden import LastHidden
from draftrec.engine.passes.llama_step import LlamaStep
from draftrec.engine.passes.prepacked import RowLinear
from draftrec.engine.rotary import RowFactors
from draftrec.errors import UnsupportedModelError

for _name in (attention.NAME, PROBE):
    AttentionInterface.register(_name, attention.packed_attention)


class PackedRunner:
    """All rows of all sequences as one row, attention through `passes.attention`."""

    def __init__(self, model: PreTrainedModel, *, by_row: bool = False) -> None:
        self.model, self.by_row = model, by_row
        self.reaches: Mapping[int, Reach] = {}
        model.set_attn_implementation(attention.NAME)
        cpu = model.device.type == "cpu"
        # Exact attention: in bfloat16 more near-ties between tokens fall otherwise, a step with a
        # draft is little faster, one without slower.
        self.kv_dtype = torch.float32 if cpu else model.dtype
        # See `bucket`: oneDNN runs bfloat16 layers that are not ours.
        by_rows = any(isinstance(m, RowLinear) for m in model.modules())
        one_dnn = cpu and model.dtype != torch.float32 and not by_rows
        self._usual: Callable[[int], int] = bucket if one_dnn else int
        self.padded_rows = self._usual
        if by_row and not (one_dnn or by_rows):
            self.padded_rows = sixteens
        #: What runs in place of the model, where its architecture has a pass written by hand.
        self.step: LlamaStep | None = None
        self.hidden: LastHidden | None = None
        self.keeps = "logits_to_keep" in inspect.signature(model.forward).parameters

    def keep_features(self, hidden: LastHidden) -> None:
        self.hidden = hidden

    def run_by_hand(self) -> None:
        """From now on run the pass that is written for the model's architecture. Its keys and
        values are rounded to the model's dtype as the model rounds them, so that caching them in it
        loses nothing."""
        self.step, self.kv_dtype = LlamaStep(self.model), self.model.dtype

    def attend_together(self) -> None:
        """Let rows share what computes them, which is faster, from now on."""
        self.by_row, self.padded_rows = False, self._usual

    @torch.inference_mode()
    def shape(self) -> KVShape:
        """Run one token through the model; note what each layer asks to be cached and how far back
        it sees."""
        name = type(self.model).__name__
        probe = _Probe(name)
        ids = torch.zeros((1, 1), dtype=torch.long, device=self.model.device)
        options: dict[str, Any] = {"attention_mask": torch.ones_like(ids), "draftrec_plan": probe}
        self.model.set_attn_implementation(PROBE)
        try:
            self.model(input_ids=ids, position_ids=ids, use_cache=False, **options)
        except attention.PlanLostError:
            raise
        except UnsupportedModelError as error:
            raise UnsupportedModelError(f"{name} cannot be served: {error}.") from error
        finally:
            self.model.set_attn_implementation(attention.NAME)
        self.reaches = probe.reaches
        return probe.shape()

    def run(self, segments: Seq[Segment], slab: KVSlab, factors: RowFactors | None) -> torch.Tensor:
        """Logits `[R, vocabulary]` of the rows that are asked for, segment by segment."""
        device = self.model.device
        packed = pack(
            segments,
            device,
            set(self.reaches.values()),
            launch=attention.launch_cost(device),
            padded=self.padded_rows,
            lengths=factors is not None,
        )
        if self.step:
            plan = attention.Plan(packed, slab, self.reaches)
            return self.step(packed, plan)[: packed.wanted]
        hidden = self.hidden
        options: dict[str, Any] = {"draftrec_plan": self._plan(packed, slab)}
        if self.keeps:
            options["logits_to_keep"] = packed.scored

        def forward() -> torch.Tensor:
            with hidden.watched() if hidden else nullcontext():
                return self.model(
                    input_ids=packed.token_ids[None],
                    position_ids=packed.positions[None],
                    use_cache=False,
                    **options,
                ).logits[0]

        if factors is None:
            logits = forward()
        else:
            logits = factors.run(packed.text_lengths, packed.lengths[None], forward)
        if slab.features is not None and hidden:
            slab.features[packed.slots, packed.columns] = hidden.taken()
        return (logits if self.keeps else logits[packed.scored])[: packed.wanted]

    def _plan(self, packed: Packed, slab: KVSlab) -> attention.Plan | attention.RowPlan:
        if not self.by_row:
            return attention.Plan(packed, slab, self.reaches)
        seen = [packed.seen(self.reaches[i]) for i in range(len(slab.keys))]
        return attention.RowPlan(slab.keys, slab.values, packed.slots, packed.columns, seen)


def bucket(rows: int) -> int:
    """Rows that a pass over `rows` rows is padded to where oneDNN runs the linear layers.

    It compiles and keeps a kernel for every number of rows, some 0.7 MB and a millisecond each
    per layer shape, so the numbers must be few. One row takes another kernel than two, with other
    rounding, and one and two take longer than four.
    """
    step = 1 if rows <= 16 else 4 if rows <= 64 else 16 if rows <= 256 else 64
    return max(4, -(-rows // step) * step)


def sixteens(rows: int) -> int:
    """Rows that a pass over `rows` rows is padded to where products sum otherwise for a few rows
    than for many, and threads shall get as many rows each."""
    return max(bucket(rows), -(-rows // 16) * 16)


class _Probe:
    """Stands in for a plan during the one-token forward pass that finds the KV shape."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.reaches: dict[int, Reach] = {}
        self.seen: dict[int, tuple[int, int, int]] = {}
        self.blocks: list[Block] = []
        self.slab = self
        self.keys: dict[int, torch.Tensor] = {}
        self.values: dict[int, torch.Tensor] = {}

    def reach(self, layer: int, window: int | None, mask: Any) -> Reach:
        if mask is not None and not isinstance(mask, Reach):
            raise UnsupportedModelError("it brings a mask of its own")
        if layer in self.reaches:
            raise UnsupportedModelError(f"it attends more than once in layer {layer}")
        self.reaches[layer] = Reach(window) if mask is None else mask
        return FULL

    def write(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        self.seen[layer] = (keys.shape[0], keys.shape[-1], values.shape[-1])
        self.keys[layer], self.values[layer] = keys, values

    def shape(self) -> KVShape:
        shapes = set(self.seen.values())
        if len(shapes) != 1 or sorted(self.seen) != list(range(len(self.seen))):
            raise UnsupportedModelError(
                f"{self.name} cannot be served: its layers cache keys and values of different "
                f"shapes ({len(shapes)} found); draftrec needs the same in every layer."
            )
        return KVShape(len(self.seen), *shapes.pop())
