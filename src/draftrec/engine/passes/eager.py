"""The model as it is: over one row in which all rows of all sequences lie, its attention replaced
by ours, or, without an attention backend (Falcon, GPT-J ...), as a padded batch with a 4-D mask;
what each of its layers caches and sees, found by one token; and its last hidden states.

Where those come from is found by one plain pass: the module whose output the output layer reads, in
most models the last norm. A hook on it takes them from the passes that keep them. In models that do
more between the two (a scale, a cast) no module has what is wanted.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Seq
from contextlib import ExitStack, nullcontext
from typing import Any

import torch
from torch.utils.hooks import RemovableHandle
from transformers import AttentionInterface, PreTrainedModel
from transformers.cache_utils import Cache, CacheLayerMixin

from draftrec.engine.kv_cache import KVShape, KVSlab, RowShape
from draftrec.engine.masks import FULL, PROBE, ColumnMasks, Reach, by_kind
from draftrec.engine.packing import Block, Packed, Segment, pack
from draftrec.engine.passes import attention
from draftrec.engine.passes.attention import Plan
from draftrec.engine.passes.llama_step import LlamaStep
from draftrec.engine.passes.prepacked import RowLinear
from draftrec.engine.rotary import RowFactors
from draftrec.errors import UnsupportedModelError

#: Tokens of the plain pass that finds last hidden states.
TOKENS = (0, 1, 2)


class LastHidden:
    """What `module` gave in the last pass that was `watched`; `expected` `[len(TOKENS), H]`: what
    the output layer reads in a plain pass over `TOKENS`."""

    def __init__(self, module: torch.nn.Module, expected: torch.Tensor) -> None:
        self.module, self.expected = module, expected
        self._rows: torch.Tensor | None = None

    def watched(self) -> RemovableHandle:
        """From now on until the handle is removed, or its context is left."""
        return self.module.register_forward_hook(self._keep)

    def _keep(self, module: Any, args: Any, output: torch.Tensor) -> None:
        self._rows = output

    def taken(self) -> torch.Tensor:
        """`[P, H]`: of all rows of the pass, one after another."""
        rows, self._rows = self._rows, None
        if rows is None:
            raise RuntimeError("no pass was watched")
        return rows.flatten(0, -2)


@torch.inference_mode()
def find_last_hidden(model: PreTrainedModel) -> LastHidden:
    """Raises UnsupportedModelError where no module's output is what the output layer reads."""
    head: Any = model.get_output_embeddings()
    given: list[tuple[torch.nn.Module, torch.Tensor]] = []
    read: list[torch.Tensor] = []

    def note(module: torch.nn.Module, args: Any, output: Any) -> None:
        if isinstance(output, torch.Tensor):
            given.append((module, output))  # kept alive, so that no address is used twice

    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    with ExitStack() as stack:
        stack.callback(model.set_attn_implementation, before or "eager")
        if head is not None:
            stack.enter_context(
                head.register_forward_pre_hook(lambda _, args: read.append(args[0]))
            )
        for module in model.modules():
            if module is not head:
                stack.enter_context(module.register_forward_hook(note))
        model(input_ids=torch.tensor([TOKENS], device=model.device), use_cache=False)
    for module, output in reversed(given):
        if read and output.data_ptr() == read[0].data_ptr() and output.shape == read[0].shape:
            return LastHidden(module, output.flatten(0, -2))
    raise UnsupportedModelError(
        f"{type(model).__name__} cannot be drafted for by a head: its output layer does not read "
        "what any of its modules gives, so that its last hidden states cannot be taken from a "
        "pass; draft without a head, or use another architecture."
    )


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
        return attention.RowPlan(slab.blocks, slab.places, packed.slots, packed.columns, seen)


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
        self.seen: dict[int, RowShape] = {}
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
        self.seen[layer] = RowShape(keys.shape[0], keys.shape[-1], values.shape[-1])
        self.keys[layer], self.values[layer] = keys, values

    def shape(self) -> KVShape:
        if sorted(self.seen) != list(range(len(self.seen))):
            raise UnsupportedModelError(
                f"{self.name} cannot be served: it attends in {len(self.seen)} layers that it does "
                "not number from 0 on; use another architecture."
            )
        return KVShape(tuple(self.seen[layer] for layer in range(len(self.seen))))


class _Layer(CacheLayerMixin):
    """One layer's view of the slab: writes new rows, returns everything up to the longest row."""

    def __init__(self, plan: Plan, index: int) -> None:
        super().__init__()
        self.plan, self.index = plan, index
        self.is_initialized = True

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Nothing to do: the slab exists."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        (block,), slab, back = self.plan.blocks, self.plan.slab, self.plan.packed.back
        rows = (x.transpose(0, 1).flatten(1, 2)[:, back] for x in (key_states, value_states))
        self.plan.write(self.index, *rows)
        here = slice(block.first, block.last), slice(None), slice(block.length)
        return slab.keys[self.index][here], slab.values[self.index][here]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.plan.blocks[0].length, 0

    def get_seq_length(self) -> int:
        return self.plan.blocks[0].length - self.plan.blocks[0].width

    def get_max_length(self) -> int:
        return -1


class PaddedRunner:
    """Runs the model on `[slots, width]` tokens, padded to the widest segment."""

    by_row = False

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.kv_dtype = model.dtype
        self.columns = ColumnMasks(model)
        self.reaches: Mapping[int, Reach] = _reaches(model, self.columns)
        self.padded_rows: Callable[[int], int] = int
        self.hidden: LastHidden | None = None
        names = inspect.signature(model.forward).parameters
        # transformers 5.24 calls it `cache`, earlier releases `past_key_values`.
        self.cache_name = "cache" if "cache" in names else "past_key_values"
        if "position_ids" not in names or self.cache_name not in names:
            raise UnsupportedModelError(
                f"{type(model).__name__} cannot be served: its forward pass takes no position ids "
                "or no cache, so a tree of drafts cannot be placed; use another architecture."
            )

    def keep_features(self, hidden: LastHidden) -> None:
        self.hidden = hidden

    @torch.inference_mode()
    def shape(self) -> KVShape:
        """Run one token through the model with its own cache and read the shapes off."""
        ids = torch.zeros((1, 1), dtype=torch.long, device=self.model.device)
        found = self.model(input_ids=ids, position_ids=ids, use_cache=True)
        layers = found[self.cache_name].layers
        rows = [(x.keys, x.values) for x in layers if getattr(x, "keys", None) is not None]
        return KVShape(tuple(RowShape(k.shape[1], k.shape[3], v.shape[3]) for k, v in rows))

    def run(self, segments: Seq[Segment], slab: KVSlab, factors: RowFactors | None) -> torch.Tensor:
        """Logits `[R, vocabulary]` of the rows that are asked for, segment by segment."""
        reaches = set(self.reaches.values())
        packed = pack(segments, slab.device, reaches, lengths=factors is not None)
        (block,) = packed.blocks

        def padded(flat: torch.Tensor) -> torch.Tensor:
            return flat[block.rows].view(-1, block.width)

        def mask(reach: Reach) -> torch.Tensor:
            hidden = torch.finfo(self.model.dtype).min
            return block.additive(reach, self.model.dtype, hidden)[:, None]

        full = mask(FULL)
        masks = {r: full if r.within(block.length) else mask(r) for r in {FULL, *reaches}}
        own = {i: masks[reach] for i, reach in self.reaches.items()} if len(self.columns) else {}
        plan = Plan(packed, slab, self.reaches)
        cache = Cache(layers=[_Layer(plan, i) for i in range(len(slab.keys))])
        hidden, config = self.hidden, self.model.config.get_text_config()

        def forward() -> torch.Tensor:
            watched = hidden.watched() if hidden else nullcontext()
            with watched, self.columns.replaced(own, block.length):
                return self.model(
                    input_ids=padded(packed.token_ids),
                    position_ids=padded(packed.positions),
                    attention_mask=by_kind(config, masks.__getitem__),
                    use_cache=True,
                    **{self.cache_name: cache},
                ).logits

        if factors is None:
            logits = forward()
        else:
            logits = factors.run(packed.text_lengths, padded(packed.lengths), forward)
        if slab.features is not None and hidden:
            slab.features[packed.slots, packed.columns] = hidden.taken()[packed.back]
        return logits.flatten(0, 1)[packed.back[packed.scored]]


def _reaches(model: PreTrainedModel, columns: ColumnMasks) -> dict[int, Reach]:
    """What each layer sees, as far as the configuration tells.

    Raises UnsupportedModelError for layers whose windows are not part of the mask.
    """
    config = model.config.get_text_config()
    name = type(model).__name__
    if len(columns):
        return columns.reaches(config.window_size)
    kinds = getattr(config, "layer_types", None) or []
    if "local" in (getattr(config, "attention_layers", None) or ()):
        raise UnsupportedModelError(
            f"{name} cannot be served: its local layers cut their window in their own code; use a "
            "model whose windows are part of the mask."
        )
    if "chunked_attention" in kinds:
        raise UnsupportedModelError(
            f"{name} cannot be served: it attends in chunks, and its attention cannot be replaced; "
            "use another model."
        )
    window = getattr(config, "sliding_window", None)
    layers = kinds or ["sliding_attention"] * int(config.num_hidden_layers)
    return {i: Reach(window if k == "sliding_attention" else None) for i, k in enumerate(layers)}
