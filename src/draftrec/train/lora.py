"""Low-rank adapters for big checkpoints (Hu et al. 2021), through peft; and dropout for models
whose configuration has none, such as Llama's.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.functional import dropout

from draftrec.errors import DraftrecError


@contextmanager
def stream_dropout(model: Any, share: float) -> Iterator[None]:
    """While it lasts, training passes drop `share` of the embeddings and of what each part of each
    layer (attention, feed-forward) adds to the stream. Evaluation and weights are left alone."""

    def drop(module: nn.Module, inputs: Any, output: Any) -> Any:
        if not module.training:
            return output
        if isinstance(output, torch.Tensor):
            return dropout(output, share)
        return (dropout(output[0], share), *output[1:])

    handles: list[Any] = []
    if share:
        parts = [model.get_input_embeddings(), *_parts(model)]
        handles = [part.register_forward_hook(drop) for part in parts]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _parts(model: nn.Module) -> list[nn.Module]:
    """Attention and feed-forward modules: what the layers are made of, norms left out."""
    stacks = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m)]
    if not stacks:
        return []
    layers = stacks[0]
    return [
        part
        for layer in layers
        for name, part in layer.named_children()
        if any(word in name for word in ("attn", "attention", "mlp", "feed_forward", "ffn"))
        and "norm" not in name
    ]


@dataclass(frozen=True, slots=True)
class LoraSettings:
    """Rank, scale and dropout of the adapters, which all linear layers get."""

    rank: int = 8
    alpha: int = 16
    dropout: float = 0.05


def adapted(model: Any, settings: LoraSettings, first_new: int) -> Any:
    """The model with adapters: they and the embedding rows from `first_new` on are trained, the
    rest is frozen. Raises DraftrecError when peft is missing or finds nothing to adapt.

    Without the new rows, semantic ids would keep the random vectors that they began with.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise DraftrecError("--lora needs the package peft; install draftrec[train]") from None
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    try:
        with warnings.catch_warnings():
            # peft asks transformers by a name about to change; users can do nothing about it.
            warnings.simplefilter("ignore", FutureWarning)
            adapted_model: Any = get_peft_model(model, config)
    except ValueError as error:
        raise DraftrecError(
            f"peft cannot adapt this model ({str(error).splitlines()[0]}); train it without --lora"
        ) from error
    train_new_rows(model, first_new)
    return adapted_model


def train_new_rows(model: Any, first_new: int) -> None:
    """Let embedding rows from `first_new` on be trained, at both ends of the model, and keep the
    others as they are."""
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    weights = {id(end.weight): end.weight for end in ends if end is not None}
    for weight in weights.values():
        weight.requires_grad_(True)
        weight.no_decay = True  # the others would shrink without a gradient
        weight.register_hook(lambda gradient: _without_old(gradient, first_new))


def merged(model: Any) -> Any:
    """A plain model again, adapters added to the weights that they adapt."""
    return model.merge_and_unload() if hasattr(model, "merge_and_unload") else model


def _without_old(gradient: torch.Tensor, first_new: int) -> torch.Tensor:
    gradient = gradient.clone()
    gradient[:first_new] = 0
    return gradient
