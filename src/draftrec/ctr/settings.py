"""Settings of training, apart from PyTorch, which takes seconds to load."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FitSettings:
    """Learning rates and batch sizes are tried in all combinations. `size`: of embeddings.
    `patience`: epochs without a better validation AUC before training ends. `contrast`: weight of
    the contrastive adaptor's loss."""

    learning_rates: tuple[float, ...] = (5e-4,)
    batch_sizes: tuple[int, ...] = (512,)
    size: int = 32
    epochs: int = 20
    patience: int = 3
    weight_decay: float = 1e-2
    contrast: float = 0.1
