"""Llama-shaped models on CPU: their pass written by hand, over their own weights.

A third of such a model's step is small operators and the Python between them, and its attention
copies what it reads. Here a layer is four matrix products, its attention and four compiled loops
over rows. Every loop rounds where the model's own operators round, and gives a row what does not
depend on the other rows. The unmodified model stays the reference: it is asked at load
(`engine.selfcheck`), and runs whatever does not fit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numba import njit, types
from numba.extending import overload
from torch import nn
from transformers import PreTrainedModel
from transformers.activations import SiLUActivation

from draftrec.engine.packing import Packed
from draftrec.engine.passes.attention import Plan
from draftrec.engine.passes.exponentials import SUMS, exponential
from draftrec.engine.passes.prepacked import (
    Part,
    RowLinear,
    stored,
    tensor_of,
)
from draftrec.engine.passes.row_attention import attend_arrays
from draftrec.engine.passes.row_products import lines
from draftrec.engine.passes.team import over_rows

#: Architectures of this shape: RMS norms before attention and before the feed-forward block, rotary
#: positions over whole heads, grouped keys, SiLU gates; with or without biases, and with or without
#: norms of queries and keys.
_SHAPED = {"LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"}
_MODULES = {nn.Linear, nn.Embedding, nn.ModuleList, nn.SiLU, SiLUActivation, Part, RowLinear}
_QUERY_KEY_VALUE = ("q_proj", "k_proj", "v_proj")
_GATE_UP = ("gate_proj", "up_proj")
_NO_NORM = np.empty(0, np.float32)


def fits(model: PreTrainedModel) -> bool:
    """Is the model one of `_SHAPED` on a CPU, made of transformers' own modules and `prepack`'s:
    no adapter, no quantized weight, no hook?"""
    home = type(model).__module__
    ours = type(model).__name__ in _SHAPED and home.startswith("transformers.models.")
    narrow = model.dtype in (torch.float32, torch.bfloat16)
    if not (ours and narrow and model.device.type == "cpu"):
        return False
    if model.config.hidden_act not in ("silu", "swish"):
        return False
    inner: Any = model.model
    if any(2 * len(inner.rotary_emb.inv_freq) != x.self_attn.head_dim for x in inner.layers):
        return False
    of_products = {p for m in model.modules() if isinstance(m, RowLinear) for p in m.parameters()}
    return all(
        (type(m) in _MODULES or type(m).__module__ == home)
        and not (m._forward_hooks or m._forward_pre_hooks or "forward" in vars(m))
        for m in model.modules()
    ) and {p.dtype for p in model.parameters() if p not in of_products} == {model.dtype}


@dataclass(slots=True)
class _Layer:
    """Weights of one layer; arrays hold bfloat16 as int16. `size`: query heads, key heads, width of
    a head."""

    before: Any
    query_key_value: _Product
    heads_norm: tuple[Any, ...]
    out: _Product
    after: Any
    gate_up: _Product
    down: _Product
    size: tuple[int, int, int]
    scale: float


class LlamaStep:
    """Logits of the rows of a pass, of a model that `fits`; it copies no weights."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model: Any = model.model
        self._dtype = model.dtype
        self._layers = [_layer(x) for x in self._model.layers]
        self._norm = stored(self._model.norm.weight)
        self._epsilon = np.float32(model.config.rms_norm_eps)
        self._head = _Product(model.get_output_embeddings())
        products = [p for x in self._layers for p in (x.query_key_value, x.out, x.gate_up, x.down)]
        self._room = max(p.room for p in products)
        self._waves = np.empty((0, 2, 0), np.float32)

    def __call__(self, packed: Packed, plan: Plan) -> torch.Tensor:
        """`[len(packed.scored), vocabulary]`; writes the keys and values of all rows, which the
        slab has in the model's dtype, and their features where they are kept."""
        x = self._model.embed_tokens(packed.token_ids)
        rows, inner = packed.rows, self._layers[0].gate_up.width // 2
        heads, _, dim = self._layers[0].size
        stream, found = stored(x), np.zeros((len(x), heads, dim), np.float32)
        asked = np.empty(found.shape, stream.dtype)
        h, act = lines(stream, *stream.shape), lines(stream, len(stream), inner)
        joined = found.reshape(len(stream), -1)
        narrow = lines(stream, *joined.shape) if stream.dtype == np.int16 else joined
        (room,) = lines(stream, 1, len(stream) * self._room)  # of one product at a time
        epsilon = self._epsilon
        slots, columns = packed.slots.numpy(), packed.columns.numpy()
        where = packed.positions.numpy(), slots, columns
        sights = {reach: packed.seen(reach).numpy() for reach in set(plan.reaches.values())}
        (block,) = plan.slab.blocks
        slab = stored(block.keys), stored(block.values)
        waves = self._tables(plan.slab.capacity)
        over_rows(_norm, len(h), stream.size, stream, self._layers[0].before, epsilon, h)
        for place, layer in enumerate(self._layers):
            keys, values = slab[0][place], slab[1][place]
            both = layer.query_key_value.parts(h, room)
            over_rows(
                _rotate, rows, 3 * stream.size, *both, layer.size, where, waves, layer.heads_norm,
                epsilon, asked[:, :, None], keys, values,
            )  # fmt: skip
            seen = slots[:rows], sights[plan.reaches[place]]
            attend_arrays(asked[:rows], keys, values, seen, found[:rows], layer.scale)
            if narrow is not joined:
                over_rows(_narrow, len(h), stream.size, joined, narrow)
            delta = layer.out(narrow, room)
            over_rows(_add_norm, len(h), stream.size, stream, delta, layer.after, epsilon, h)
            over_rows(_gate, len(h), act.size, *layer.gate_up.parts(h, room), act)
            delta = layer.down(act, room)
            last = place + 1 == len(self._layers)
            weight = self._norm if last else self._layers[place + 1].before
            over_rows(_add_norm, len(h), stream.size, stream, delta, weight, epsilon, h)
        if plan.slab.features is not None:
            plan.slab.features[packed.slots, packed.columns] = tensor_of(h)
        return tensor_of(self._head(h[packed.scored.numpy()]))[:, : self._head.width]

    def _tables(self, positions: int) -> Any:
        """Cosines and sines `[positions, 2, dim / 2]`, as the model's own module gives them."""
        if len(self._waves) < positions:
            place = torch.arange(positions)[None]
            example = torch.empty(0, dtype=self._dtype)
            cos, sin = self._model.rotary_emb(example, position_ids=place)
            half = cos.shape[-1] // 2
            waves = torch.stack([cos[0, :, :half], sin[0, :, :half]], 1)
            self._waves = waves.float().contiguous().numpy()
        return self._waves


class _Product:
    """Rows times the weights of linear layers that read the same, in one product where `prepack`
    has joined them."""

    def __init__(self, *linears: Any) -> None:
        self.width = sum(x.out_features for x in linears)
        first = linears[0]
        packed = first.whole if isinstance(first, Part) else first
        joined = self._ours = isinstance(packed, RowLinear)
        self._linears = (packed,) if joined else linears
        ends = np.cumsum([0, *(x.out_features for x in linears[:-1])]).tolist()
        self._begins = tuple(ends) if joined else (0,) * len(linears)

    @property
    def room(self) -> int:
        """Numbers that it gives of a row, if it can put them where it is told."""
        return self._linears[0].laid_outputs if self._ours else 0

    def __call__(self, rows: Any, room: Any = None) -> Any:
        """`[R, in]` to `[R, >= width]`, of a single layer, both as `stored`; in `room`, if that is
        given, until another product is put there."""
        return self._times(self._linears[0], rows, room)

    def parts(self, rows: Any, room: Any) -> tuple[tuple[Any, ...], tuple[int, ...]]:
        """Of each layer an array `[R, >= out]` that holds what it gives, and its first column."""
        found = [self._times(linear, rows, room) for linear in self._linears]
        return tuple(found * (len(self._begins) // len(found))), self._begins

    def _times(self, linear: Any, rows: Any, room: Any) -> Any:
        if self._ours:
            return linear.times(rows, room)
        return stored(linear(tensor_of(rows)))


def _layer(layer: Any) -> _Layer:
    attention, mlp = layer.self_attn, layer.mlp
    dim = attention.head_dim
    norms = [getattr(attention, name, None) for name in ("q_norm", "k_norm")]
    return _Layer(
        before=stored(layer.input_layernorm.weight),
        query_key_value=_Product(*(getattr(attention, name) for name in _QUERY_KEY_VALUE)),
        heads_norm=tuple(_NO_NORM if n is None else stored(n.weight) for n in norms),
        out=_Product(attention.o_proj),
        after=stored(layer.post_attention_layernorm.weight),
        gate_up=_Product(*(getattr(mlp, name) for name in _GATE_UP)),
        down=_Product(mlp.down_proj),
        size=(attention.q_proj.out_features // dim, attention.k_proj.out_features // dim, dim),
        scale=float(attention.scaling),
    )


def _number(bits: Any) -> Any:
    """float32 of a stored number."""
    raise NotImplementedError(bits)


def _stored(number: Any, stored: Any) -> Any:
    """What is stored for a float32 number, in an array with elements like `stored`."""
    raise NotImplementedError(number, stored)


@overload(_number, inline="always")
def _number_of(stored: Any) -> Any:
    def wide(stored: Any) -> Any:
        return np.int32(stored << 16).view(np.float32)

    def same(stored: Any) -> Any:
        return stored

    return wide if stored == types.int16 else same


@overload(_stored, inline="always")
def _stored_of(number: Any, stored: Any) -> Any:
    def narrow(number: Any, stored: Any) -> Any:  # to the nearest, ties to even
        bits = np.float32(number).view(np.int32)
        return np.int16((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16)

    def same(number: Any, stored: Any) -> Any:
        return number

    return narrow if stored == types.int16 else same


@njit(cache=True, nogil=True, inline="always")
def _rounded(number: Any, stored: Any) -> Any:
    """The float32 number as an array with elements like `stored` would give it back."""
    return _number(_stored(number, stored))


@njit(cache=True, nogil=True, fastmath=SUMS, inline="always")
def _scaled(x: Any, weight: Any, epsilon: Any, out: Any) -> None:
    """`LlamaRMSNorm` of one row."""
    total = np.float32(0)
    for i in range(len(x)):
        v = _number(x[i])
        total += v * v
    inverse = np.float32(1) / np.sqrt(total / np.float32(len(x)) + epsilon)
    for i in range(len(x)):
        v = _rounded(_number(x[i]) * inverse, out[i])
        out[i] = _stored(_number(weight[i]) * v, out[i])


@njit(cache=True, nogil=True)
def _narrow(first: int, last: int, x: Any, out: Any) -> None:
    """The float32 rows as bfloat16."""
    for row in range(first, last):
        for i in range(x.shape[1]):
            out[row, i] = _stored(x[row, i], out[row, i])


@njit(cache=True, nogil=True)
def _norm(first: int, last: int, x: Any, weight: Any, epsilon: Any, out: Any) -> None:
    for row in range(first, last):
        _scaled(x[row], weight, epsilon, out[row])


@njit(cache=True, nogil=True)
def _add_norm(  # noqa: PLR0913
    first: int, last: int, x: Any, delta: Any, weight: Any, epsilon: Any, out: Any
) -> None:
    """Add `delta` to the residual stream `x`; `out` is its norm."""
    for row in range(first, last):
        own, more = x[row], delta[row]
        for i in range(len(own)):
            own[i] = _stored(_number(own[i]) + _number(more[i]), own[i])
        _scaled(own, weight, epsilon, out[row])


@njit(cache=True, nogil=True, fastmath={"contract"}, error_model="numpy")
def _gate(first: int, last: int, parts: Any, begins: Any, out: Any) -> None:
    """SiLU of the gates times the ups. The divisor is never zero; a check for it would make the
    loop run one by one, eight times as long."""
    for row in range(first, last):
        result = out[row]
        gate = parts[0][row, begins[0] : begins[0] + len(result)]
        up = parts[1][row, begins[1] : begins[1] + len(result)]
        for i in range(len(result)):
            g = _number(gate[i])
            silu = _rounded(g / (np.float32(1) + exponential(-g)), result[i])
            result[i] = _stored(silu * _number(up[i]), result[i])


@njit(cache=True, nogil=True)
def _rotate(  # noqa: PLR0913
    first: int, last: int, parts: Any, begins: Any, size: Any, where: Any, waves: Any, norms: Any,
    epsilon: Any, query: Any, keys: Any, values: Any,
) -> None:  # fmt: skip
    """Rotary factors, after norms of heads where there are some: queries to `query` `[R, heads,
    1, dim]`, keys and values to `keys` and `values` at each row's slot and column."""
    heads, kv_heads, dim = size
    positions, slots, columns = where
    asks, holds, gives = parts
    ask, hold, give = begins
    normed = np.empty((1, heads * dim), asks.dtype)
    for row in range(first, last):
        slot, column, position = slots[row], columns[row], positions[row]
        if len(norms[0]):
            _normed(asks, row, ask, heads, norms[0], epsilon, normed)
            _turn(normed, 0, 0, heads, waves, position, query, row, 0)
            _normed(holds, row, hold, kv_heads, norms[1], epsilon, normed)
            _turn(normed, 0, 0, kv_heads, waves, position, keys, slot, column)
        else:
            _turn(asks, row, ask, heads, waves, position, query, row, 0)
            _turn(holds, row, hold, kv_heads, waves, position, keys, slot, column)
        for head in range(kv_heads):
            for i in range(dim):
                values[slot, head, column, i] = gives[row, give + head * dim + i]


@njit(cache=True, nogil=True)
def _normed(  # noqa: PLR0913
    x: Any, row: int, begin: int, heads: int, weight: Any, epsilon: Any, out: Any
) -> None:
    """One row's heads, those of `x` from `begin` on, after the norm of each, to `out` `[1, ..]`."""
    dim = len(weight)
    for head in range(heads):
        here = head * dim
        own = x[row, begin + here : begin + here + dim]
        _scaled(own, weight, epsilon, out[0, here : here + dim])


@njit(cache=True, nogil=True)
def _turn(  # noqa: PLR0913
    x: Any, row: int, begin: int, heads: int, waves: Any, position: int, out: Any, a: int, c: int
) -> None:
    """`apply_rotary_pos_emb` of one row's heads, those of `x` from `begin` on, to `out` `[a, head,
    c]`."""
    # Whole numbers without a sign: of others each index would be asked whether it is negative.
    half, like = np.uintp(waves.shape[2]), x[row, begin]
    for head in range(np.uintp(heads)):
        low = np.uintp(begin) + np.uintp(2) * half * head
        high = low + half
        for i in range(half):
            own = _rounded(_number(x[row, low + i]) * waves[position, 0, i], like)
            other = _rounded(-_number(x[row, high + i]) * waves[position, 1, i], like)
            out[a, head, c, i] = _stored(own + other, like)
        for i in range(half):
            own = _rounded(_number(x[row, high + i]) * waves[position, 0, i], like)
            other = _rounded(_number(x[row, low + i]) * waves[position, 1, i], like)
            out[a, head, c, half + i] = _stored(own + other, like)
