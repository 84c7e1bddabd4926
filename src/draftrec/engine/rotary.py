"""Rotary factors that follow a text's length, for texts of many lengths in one pass.

Two kinds of RoPE change their factors where texts grow long: `longrope` (Phi-3.5, Phi-4-mini) has
one set for texts up to the length it was trained on and another for longer ones, `dynamic` (NTK
scaling) computes a set for every length beyond. transformers takes the longest position of a pass
for the length, which is right for one text at a time. Here every row gets the factors of its own
text, computed by the model's own rotary module.

What `generate` does with its cache is followed: with `longrope`, a text that grows past the limit
has all its rows computed anew; with `dynamic`, rows keep the factors that they were computed with.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from draftrec.core import LongArray

_LIMIT = "original_max_position_embeddings"


@dataclass(frozen=True, slots=True)
class LengthRule:
    """Up to `limit` tokens, all texts share one set of factors. `anew`: the rows of a text that
    grows past it are computed again, from its first token on."""

    limit: int
    anew: bool

    def key(self, lengths: torch.Tensor) -> torch.Tensor:
        """The length whose factors stand for each length: int64, of the same shape."""
        return lengths.clamp(self.limit, self.limit + 1 if self.anew else None)

    def values(self, lengths: LongArray) -> list[int]:
        """Those that `key` gives, each once, ascending."""
        return self.key(torch.as_tensor(lengths)).unique().tolist()


@dataclass(frozen=True, slots=True)
class Rope:
    """What a model's configuration says of its rotary positions: the kinds in use, the parameters
    of each."""

    kinds: frozenset[str]
    parameters: tuple[dict[str, Any], ...]


def rope_of(config: Any) -> Rope:
    """Read `rope_parameters`, one set for all layers or one per kind of layer."""
    found = getattr(config, "rope_parameters", None) or {}
    nested = [value for value in found.values() if isinstance(value, dict)]
    sets = tuple(nested or ([found] if found else []))
    return Rope(frozenset(str(p.get("rope_type", "default")) for p in sets), sets)


def extended_length(config: Any, trained: int) -> int:
    """Tokens that RoPE is scaled to, at least `trained`: YaRN's and dynamic scaling's factor times
    the length before scaling. Other kinds name the scaled length themselves."""
    lengths = [trained]
    for parameters in rope_of(config).parameters:
        kind, factor = parameters.get("rope_type"), float(parameters.get("factor") or 1.0)
        if kind == "yarn":
            lengths.append(int(factor * (parameters.get(_LIMIT) or trained)))
        elif kind == "dynamic":
            lengths.append(int(factor * trained))
    return max(lengths)


def length_rule(model: PreTrainedModel) -> LengthRule | None:
    """How the model's rotary factors follow a text's length; None where they do not."""
    config = model.config.get_text_config()
    rope = rope_of(config)
    if "longrope" in rope.kinds:
        limits = [int(p[_LIMIT]) for p in rope.parameters if p.get("rope_type") == "longrope"]
        return LengthRule(min(limits), anew=True)
    if any("dynamic" in kind for kind in rope.kinds):
        return LengthRule(int(config.max_position_embeddings), anew=False)
    return None


def short_limit(model: PreTrainedModel) -> int | None:
    """Tokens up to which texts can be served, where that is fewer than the model reads.

    `longrope` in a model whose own `generate` does not compute rows anew: what lies beyond depends
    on its cache. Attention temperatures (Llama 4) that count rows and not positions.
    """
    config = model.config.get_text_config()
    if getattr(config, "attn_temperature_tuning", False) and getattr(config, "floor_scale", None):
        return int(config.floor_scale) - 1  # up to there, all temperatures are 1
    rule = length_rule(model)
    if rule is None or not rule.anew:
        return None
    method: Any = getattr(type(model), "prepare_inputs_for_generation", None)
    code = getattr(inspect.unwrap(method), "__code__", None) if method else None
    knows = code is not None and _LIMIT in code.co_names
    single = len(rope_of(config).parameters) == 1
    return None if knows and single else rule.limit


def uniform_length(model: PreTrainedModel, most: int) -> int:
    """Of `most` tokens, those up to which all texts share one set of factors."""
    rule = length_rule(model)
    return most if rule is None else min(most, rule.limit)


class RowFactors:
    """Stands before a model's rotary modules while a pass runs, so that rows get the factors of
    their own lengths; the modules are as they were before and afterwards."""

    def __init__(self, model: PreTrainedModel, rule: LengthRule) -> None:
        self.rule = rule
        self._modules = [m for m in model.modules() if _follows_length(m)]

    def run(self, every: LongArray, lengths: torch.Tensor, forward: Callable[[], Any]) -> Any:
        """`forward()`, with `lengths` int64 `[batch, rows]`: tokens of the text of every row, each
        of them in `every` on the host."""
        keys, values = self.rule.key(lengths), self.rule.values(every)
        with ExitStack() as stack:
            for module in self._modules:
                stack.enter_context(self._standing_before(module, keys, values))
            return forward()

    @contextmanager
    def _standing_before(
        self, module: Any, keys: torch.Tensor, values: list[int]
    ) -> Iterator[None]:
        own: Callable[..., Any] | None = vars(module).get("forward")
        inner: Callable[..., Any] = module.forward

        def forward(x: torch.Tensor, position_ids: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            if values == [self.rule.limit]:
                _reset(module)
                return inner(x, position_ids, *args, **kwargs)
            found: Any = None
            for value in values:
                mine = keys == value
                # The last position decides: the others of this set are no longer than that.
                last = torch.full_like(position_ids[:, :1], value - 1)
                asked = torch.cat([torch.where(mine, position_ids, 0), last], dim=1)
                _reset(module)
                rows = _map(lambda t: t[:, :-1], inner(x, asked, *args, **kwargs))
                found = rows if found is None else _merge(mine, rows, found)
            return found

        module.forward = forward
        try:
            yield
        finally:
            del module.forward
            if own is not None:
                module.forward = own
            _reset(module)


def _follows_length(module: Any) -> bool:
    kinds = getattr(module, "rope_type", None)
    kinds = kinds.values() if isinstance(kinds, dict) else [kinds]
    return any(k is not None and (k == "longrope" or "dynamic" in str(k)) for k in kinds)


def _reset(module: Any) -> None:
    """Forget the longest text that the module has seen."""
    for name, original in list(_originals(module)):
        prefix = name.removesuffix("original_inv_freq")
        module.register_buffer(f"{prefix}inv_freq", original.clone(), persistent=False)
        if hasattr(module, f"{prefix}max_seq_len_cached") or not prefix:
            setattr(module, f"{prefix}max_seq_len_cached", module.original_max_seq_len)


def _originals(module: Any) -> Iterator[tuple[str, torch.Tensor]]:
    for name in [*module._buffers, *vars(module)]:
        if name.endswith("original_inv_freq"):
            device = next(iter(module.buffers())).device
            yield name, getattr(module, name).to(device)


def _map(change: Callable[[torch.Tensor], torch.Tensor], found: Any) -> Any:
    """Rotary modules return cosines and sines, or one complex tensor."""
    return tuple(change(t) for t in found) if isinstance(found, tuple) else change(found)


def _merge(mine: torch.Tensor, rows: Any, others: Any) -> Any:
    if isinstance(rows, tuple):
        pairs = zip(rows, others, strict=True)
        return tuple(torch.where(mine[..., None], a, b) for a, b in pairs)
    return torch.where(mine[..., None], rows, others)


def context_length(model: PreTrainedModel) -> int:
    """Most tokens of prompt and text together, rotary positions scaled as the model asks."""
    config = model.config.get_text_config()
    for name in ("max_position_embeddings", "n_positions", "max_sequence_length"):
        if isinstance(found := getattr(config, name, None), int) and found > 0:
            most = extended_length(config, found)
            return min(most, short_limit(model) or most)
    return 1 << 20
