"""The fallback runner: a padded batch with a 4-D mask, for models without an attention backend.

Works wherever a model takes a cache object and a ready-made mask (Falcon, GPT-J ...). The cache
handed to the model is a thin view of the slab.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Seq
from contextlib import nullcontext
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, CacheLayerMixin

from draftrec.engine.kv_cache import KVShape, KVSlab
from draftrec.engine.masks import FULL, ColumnMasks, Reach
from draftrec.engine.packing import Segment, pack
from draftrec.engine.passes.attention import Plan
from draftrec.engine.passes.last_hidden import LastHidden
from draftrec.engine.rotary import RowFactors
from draftrec.errors import UnsupportedModelError


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
        here = self.index, slice(block.first, block.last), slice(None), slice(block.length)
        return slab.keys[here], slab.values[here]

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
        shapes = {(k.shape[1], k.shape[3], v.shape[3]) for k, v in rows}
        if len(shapes) != 1:
            raise UnsupportedModelError(
                f"{type(self.model).__name__} cannot be served: its layers do not all cache keys "
                "and values of one shape."
            )
        return KVShape(len(rows), *shapes.pop())

    def run(self, segments: Seq[Segment], slab: KVSlab, factors: RowFactors | None) -> torch.Tensor:
        """Logits `[R, vocabulary]` of the rows that are asked for, segment by segment."""
        reaches = set(self.reaches.values())
        packed = pack(segments, slab.keys.device, reaches, lengths=factors is not None)
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
        hidden = self.hidden

        def forward() -> torch.Tensor:
            watched = hidden.watched() if hidden else nullcontext()
            with watched, self.columns.replaced(own, block.length):
                return self.model(
                    input_ids=padded(packed.token_ids),
                    position_ids=padded(packed.positions),
                    attention_mask=self._by_kind(masks),
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

    def _by_kind(self, masks: Mapping[Reach, torch.Tensor]) -> Any:
        """The mask that the model takes, one per layer type where it has several."""
        config = self.model.config.get_text_config()
        kinds = set(getattr(config, "layer_types", None) or ())
        window = Reach(getattr(config, "sliding_window", None))
        if not kinds or kinds == {"full_attention"}:
            # One kind of layer, with a window if the model has one at all.
            return masks[FULL if kinds else window]
        sliding = window if "sliding_attention" in kinds else FULL
        return {"full_attention": masks[FULL], "sliding_attention": masks[sliding]}


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
