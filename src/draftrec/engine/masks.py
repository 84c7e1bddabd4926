"""How far back a layer sees, read off the mask that the model itself asks transformers for.

Some models pass their window to the attention function, others put it into the mask alone, and
some attend in chunks. `PROBE` stands in for a mask function: it makes no mask but says what the
mask would have been, and the model hands that to its layers as it would a mask. Asked once, at
load; later passes need no masks.

GPT-Neo masks by columns, in its own code and whatever mask it is given: each layer takes rows
`columns - queries ..` of a table `bias` bool `[1, 1, N, N]`, as if every text of a batch ended at
the last column. While texts of unequal length are served together, the table is open and the mask
says it all, a window for each local layer included.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AttentionMaskInterface, PreTrainedModel

from draftrec.errors import UnsupportedModelError

PROBE = "draftrec_probe"
_UNKNOWN = "it asks for a mask that is neither causal, a sliding window nor chunks"


@dataclass(frozen=True, slots=True)
class Reach:
    """What a row sees of its own text: everything before it, the last `window` positions (itself
    included), or those of its own chunk of `chunk` positions, counted from the first."""

    window: int | None = None
    chunk: int | None = None

    def within(self, length: int) -> bool:
        """Does a text of `length` tokens never leave it?"""
        return all(size is None or length <= size for size in (self.window, self.chunk))

    @property
    def size(self) -> int:
        """Tokens after which it matters; 0 where it never does."""
        return self.window or self.chunk or 0

    def covers(self, rows: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        """bool: whether rows at positions `rows` int64 see their text's tokens at earlier ones, or
        their own, `keys` int64."""
        if self.chunk:
            return rows // self.chunk == keys // self.chunk
        return rows - keys < (self.window or torch.iinfo(keys.dtype).max)


FULL = Reach()


def by_kind(config: Any, mask: Callable[[Reach], Any]) -> Any:
    """What a model of this configuration takes for a mask: one of its only reach, or one per kind
    of its layers; `mask` makes that of a reach."""
    kinds = set(getattr(config, "layer_types", None) or ())
    window = Reach(getattr(config, "sliding_window", None))
    if not kinds or kinds == {"full_attention"}:
        # One kind of layer, with a window if the model has one at all.
        return mask(FULL if kinds else window)
    if "chunked_attention" in kinds:
        chunk = Reach(chunk=config.attention_chunk_size)
        return {"full_attention": mask(FULL), "chunked_attention": mask(chunk)}
    sliding = window if "sliding_attention" in kinds else FULL
    return {"full_attention": mask(FULL), "sliding_attention": mask(sliding)}


def read_mask(*, mask_function: Callable[..., Any], **facts: Any) -> Reach:
    """What transformers calls in place of a mask: `mask_function(batch, head, query, key)` tells
    whether a query sees a key, `local_size` is the window or chunk.

    Raises UnsupportedModelError for a mask that is neither causal, a window nor chunks.
    """
    size = facts.get("local_size")
    first = torch.zeros((), dtype=torch.long)
    found: set[Reach] = set()
    # Places where a window and a chunk of that size differ, and a usual one.
    for query in (2 * int(size or 1) + 1, 3 * int(size or 1) + 2):
        keys = torch.arange(query + 3)
        seen = mask_function(first, first, torch.tensor(query), keys)
        found.add(_reach(torch.as_tensor(seen).reshape(-1).expand(len(keys)), query, size))
    if len(found) != 1:
        raise UnsupportedModelError(_UNKNOWN)
    return found.pop()


def _reach(seen: torch.Tensor, query: int, size: int | None) -> Reach:
    """The reach that explains what one query sees."""
    keys = torch.arange(len(seen))
    causal = keys <= query
    if size is None:
        if torch.equal(seen, causal):
            return FULL
    elif torch.equal(seen, causal & (keys > query - size)):
        return Reach(window=size)
    elif torch.equal(seen, causal & (keys // size == query // size)):
        return Reach(chunk=size)
    raise UnsupportedModelError(_UNKNOWN)


AttentionMaskInterface.register(PROBE, read_mask)


class ColumnMasks:
    """The model's attention modules, by layer; none for other architectures."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._modules: list[Any] = [m for m in model.modules() if _masks_by_column(m)]

    def __len__(self) -> int:
        return len(self._modules)

    def reaches(self, window: int) -> dict[int, Reach]:
        """What each layer sees."""
        local = [getattr(m, "attention_type", "global") == "local" for m in self._modules]
        return {i: Reach(window) if own else FULL for i, own in enumerate(local)}

    @contextmanager
    def replaced(self, masks: dict[int, torch.Tensor], columns: int) -> Iterator[None]:
        """Within, layers attend by `masks`, additive `[slots, 1, width, columns]` by layer."""
        tables = [module.bias for module in self._modules]
        hooks = [
            module.register_forward_pre_hook(_with_mask(masks[place]), with_kwargs=True)
            for place, module in enumerate(self._modules)
        ]
        for module, table in zip(self._modules, tables, strict=True):
            size = max(columns, table.shape[-1])
            module.bias = torch.ones((), dtype=torch.bool, device=table.device).expand(
                1, 1, size, size
            )
        try:
            yield
        finally:
            for module, table, hook in zip(self._modules, tables, hooks, strict=True):
                module.bias = table
                hook.remove()


def _with_mask(mask: torch.Tensor) -> Callable[..., tuple[Any, dict[str, Any]]]:
    def replace(_: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, kwargs | {"attention_mask": mask}

    return replace


def _masks_by_column(module: Any) -> bool:
    table = getattr(module, "bias", None)
    return (
        isinstance(table, torch.Tensor)
        and table.dtype == torch.bool
        and table.dim() == 4  # one, one, queries, keys
        and hasattr(module, "attention_type")
    )
