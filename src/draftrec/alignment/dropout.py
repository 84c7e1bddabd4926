"""Dropout for models whose configuration has none, such as Llama's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.functional import dropout


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
