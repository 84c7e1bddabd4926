"""The fallback runner: a padded batch with a 4-D mask, for models without an attention backend.

Works wherever a model takes a cache object and a ready-made mask (Falcon, GPT-J ...). The cache
handed to the model is a thin view of the slab.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, CacheLayerMixin

from draftrec.engine.kv_cache import KVShape, KVSlab
from draftrec.engine.masks import ColumnMasks, Reach
from draftrec.engine.packing import Packed, key_positions, row_lengths, visibility
from draftrec.engine.rotary import RowFactors
from draftrec.errors import UnsupportedModelError


class _Layer(CacheLayerMixin):
    """One layer's view of the slab: writes new rows, returns everything up to the longest row."""

    def __init__(self, view: _View, index: int) -> None:
        super().__init__()
        self.view, self.index = view, index
        self.is_initialized = True

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Nothing to do: the slab exists."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        view = self.view
        keys = view.slab.keys[self.index, view.first : view.last]
        values = view.slab.values[self.index, view.first : view.last]
        keys[view.batch, :, view.columns] = key_states[view.batch, :, view.rows]
        values[view.batch, :, view.columns] = value_states[view.batch, :, view.rows]
        return keys[:, :, : view.length], values[:, :, : view.length]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.view.length, 0

    def get_seq_length(self) -> int:
        return self.view.length - self.view.width

    def get_max_length(self) -> int:
        return -1


class _View:
    """Which slots and columns this forward pass writes: `batch`, `rows`, `columns` int64 `[S]`."""

    def __init__(self, packed: Packed, slab: KVSlab) -> None:
        segments = packed.segments
        self.slab = slab
        self.first = min(s.slot for s in segments)
        self.last = max(s.slot for s in segments) + 1
        self.width = max(s.rows for s in segments)
        self.length = max(s.column + s.rows for s in segments)
        device = slab.keys.device

        def flat(parts: list[np.ndarray]) -> torch.Tensor:
            return torch.as_tensor(np.concatenate(parts), device=device)

        self.batch = flat([np.full(s.rows, s.slot - self.first) for s in segments])
        self.rows = flat([np.arange(s.rows) for s in segments])
        self.columns = flat([np.arange(s.column, s.column + s.rows) for s in segments])


class PaddedRunner:
    """Runs the model on `[slots, width]` tokens, padded to the widest segment."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.kv_dtype = model.dtype
        self.columns = ColumnMasks(model)
        self.reaches: Mapping[int, Reach] = _reaches(model, self.columns)
        self.padded_rows: Callable[[int], int] = int
        names = inspect.signature(model.forward).parameters
        # transformers 5.24 calls it `cache`, earlier releases `past_key_values`.
        self.cache_name = "cache" if "cache" in names else "past_key_values"
        if "position_ids" not in names or self.cache_name not in names:
            raise UnsupportedModelError(
                f"{type(model).__name__} cannot be served: its forward pass takes no position ids "
                "or no cache, so a tree of drafts cannot be placed; use another architecture."
            )

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

    def run(self, packed: Packed, slab: KVSlab, factors: RowFactors | None) -> torch.Tensor:
        """Logits `[R, vocabulary]` of the rows in `packed.scored`."""
        view = _View(packed, slab)
        device, slots = slab.keys.device, view.last - view.first
        ids = torch.zeros((slots, view.width), dtype=torch.long, device=device)
        positions = torch.zeros_like(ids)
        ids[view.batch, view.rows] = torch.as_tensor(packed.token_ids, device=device)
        positions[view.batch, view.rows] = torch.as_tensor(packed.positions, device=device)
        cache = Cache(layers=[_Layer(view, i) for i in range(len(slab.keys))])
        masks = self._masks(packed, view)

        def forward() -> torch.Tensor:
            with self.columns.replaced(self._by_layer(packed, view), view.length):
                return self.model(
                    input_ids=ids,
                    position_ids=positions,
                    attention_mask=masks,
                    use_cache=True,
                    **{self.cache_name: cache},
                ).logits

        if factors is None:
            logits = forward()
        else:
            lengths = np.zeros(ids.shape, np.int64)
            lengths[view.batch.cpu(), view.rows.cpu()] = row_lengths(packed)
            logits = factors.run(lengths, forward)
        scored = torch.as_tensor(packed.scored, device=device)
        return logits[view.batch[scored], view.rows[scored]]

    def _masks(self, packed: Packed, view: _View) -> Any:
        """Additive `[slots, 1, width, length]`, one per layer type where the model has several."""
        config = self.model.config.get_text_config()
        kinds = set(getattr(config, "layer_types", None) or ())
        window = getattr(config, "sliding_window", None)
        if not kinds or kinds == {"full_attention"}:
            # One kind of layer, with a window if the model has one at all.
            return self._mask(packed, view, None if kinds else window)
        full = self._mask(packed, view, None)
        sliding = self._mask(packed, view, window) if "sliding_attention" in kinds else full
        return {"full_attention": full, "sliding_attention": sliding}

    def _by_layer(self, packed: Packed, view: _View) -> dict[int, torch.Tensor]:
        """A mask for each layer that would make its own."""
        if not len(self.columns):
            return {}
        kinds = {r.window: self._mask(packed, view, r.window) for r in set(self.reaches.values())}
        return {layer: kinds[reach.window] for layer, reach in self.reaches.items()}

    def _mask(self, packed: Packed, view: _View, window: int | None) -> torch.Tensor:
        slots = view.last - view.first
        visible = np.zeros((slots, view.width, view.length), np.bool_)
        visible[:, :, 0] = True  # rows of padding must see something
        seen = visibility(packed, range(len(packed.segments)), view.width)
        for b, segment in enumerate(packed.segments):
            rows, end = segment.rows, segment.column + segment.rows
            here = visible[segment.slot - view.first]
            here[:rows] = False
            here[:rows, : segment.start] = True
            here[:rows, segment.start : end] = seen[b, :rows, : end - segment.start]
            if window is not None:
                first = int(packed.row_start[b])
                own = packed.positions[first : first + rows]
                theirs = np.concatenate((np.arange(segment.start), key_positions(packed, b)))
                here[:rows, :end] &= theirs[None, :] > own[:, None] - window
        mask = torch.zeros(visible.shape, dtype=self.model.dtype, device=self.model.device)
        hidden = torch.as_tensor(~visible, device=self.model.device)
        return mask.masked_fill_(hidden, torch.finfo(self.model.dtype).min)[:, None]


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
