"""GPT-Neo, whose attention masks by columns: in its own code, whatever mask it is given.

Each layer takes rows `columns - queries ..` of a table `bias` bool `[1, 1, N, N]`, as if every text
of a batch ended at the last column. While texts of unequal length are served together, the table is
open and the mask says it all, a window for each local layer included.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PreTrainedModel

from draftrec.models.reach import FULL, Reach


class ColumnMasks:
    """The model's attention modules, by layer; none for other architectures."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._modules: list[Any] = [m for m in model.modules() if _masks_by_column(m)]
        self._masks: dict[int, torch.Tensor] = {}
        for place, module in enumerate(self._modules):
            module.register_forward_pre_hook(self._hook(place), with_kwargs=True)

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
        self._masks = masks
        for module, table in zip(self._modules, tables, strict=True):
            size = max(columns, table.shape[-1])
            module.bias = torch.ones((), dtype=torch.bool, device=table.device).expand(
                1, 1, size, size
            )
        try:
            yield
        finally:
            self._masks = {}
            for module, table in zip(self._modules, tables, strict=True):
                module.bias = table

    def _hook(self, place: int) -> Any:
        def replace(_: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
            if place not in self._masks:
                return None
            return args, kwargs | {"attention_mask": self._masks[place]}

        return replace


def _masks_by_column(module: Any) -> bool:
    table = getattr(module, "bias", None)
    return (
        isinstance(table, torch.Tensor)
        and table.dtype == torch.bool
        and table.dim() == 4  # one, one, queries, keys
        and hasattr(module, "attention_type")
    )
