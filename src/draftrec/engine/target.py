"""The target adapter: an unmodified transformers causal LM that scores draft trees.

One call, `score`, runs one forward pass over pending tokens and draft nodes of any number of
sequences; `commit` keeps the KV rows of what was accepted. Four ways to run the model stand behind
it (`pick_runner`, `engine.passes`): packed rows with our own attention function (models with an
attention backend), the same with small passes frozen or with a pass written for the architecture in
the model's place, and a padded batch with a 4-D mask over the same slab (the others).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache

from draftrec.core import EMPTY_TREE, IntArray, LongArray, Turn
from draftrec.engine.kv_cache import KVShape, KVSlab
from draftrec.engine.masks import Reach
from draftrec.engine.packing import Segment
from draftrec.engine.passes import attention
from draftrec.engine.passes.eager import (
    TOKENS,
    LastHidden,
    PackedRunner,
    PaddedRunner,
    find_last_hidden,
)
from draftrec.engine.passes.frozen import FrozenRunner
from draftrec.engine.passes.llama_step import fits
from draftrec.engine.passes.tree_attention import has_kernels
from draftrec.engine.rotary import LengthRule, RowFactors, length_rule
from draftrec.errors import UnsupportedModelError

_LOG = logging.getLogger("draftrec")
#: How passes run: `frozen` as one graph; `auto` so on GPUs, on CPU by hand where that is written.
Way = Literal["auto", "eager", "frozen"]
_SERVED_LAYERS = {"full_attention", "sliding_attention", "chunked_attention"}


@dataclass(frozen=True, slots=True)
class Scores:
    """Logits `[R, vocabulary]` of one forward pass, on the device, and the segments they answer.
    Frozen passes write theirs where those of the pass before lie.

    Rows come segment by segment: the last pending token's, then its nodes'. `segments` are the
    positions, in the call, of the segments that were scored.
    """

    logits: torch.Tensor
    segments: list[int]


class Runner(Protocol):
    """One way of running the model over a slab. `by_row`: a row's attention does not depend on the
    other rows of its pass."""

    kv_dtype: torch.dtype
    padded_rows: Callable[[int], int]

    @property
    def by_row(self) -> bool: ...
    @property
    def reaches(self) -> Mapping[int, Reach]: ...
    def shape(self) -> KVShape: ...
    def keep_features(self, hidden: LastHidden) -> None: ...
    def run(
        self, segments: Seq[Segment], slab: KVSlab, factors: RowFactors | None
    ) -> torch.Tensor: ...


class Target:
    """A causal LM, a KV slab, and nothing else.

    `by_row`: attend so that a row's result does not depend on the other rows of its pass, as far as
    that is built (`attends_by_row`). `narrow_kv`: cache keys and values in the model's dtype on CPU
    also where float32 is exact and that is not. `way`: how passes run. Raises UnsupportedModelError
    when the architecture cannot be served exactly.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        by_row: bool = False,
        narrow_kv: bool = False,
        way: Way = "eager",
    ) -> None:
        check_served(model)
        self.model = model.eval()
        self.device = model.device
        self.dtype = model.dtype
        self.rule: LengthRule | None = length_rule(model)
        self._factors = RowFactors(model, self.rule) if self.rule else None
        self.runner, self.kv_shape = pick_runner(model, way, by_row=by_row)
        _check_cache(model, self.kv_shape, self.runner.reaches)
        if narrow_kv:
            self.runner.kv_dtype = model.dtype
        self.slab: KVSlab | None = None
        self._features: tuple[int, torch.dtype] | None = None
        #: A row gives the same bits whatever else is in its pass, as far as the check at load saw.
        self.exact = False
        #: Of whoever has texts or searches in the slab: one batch at a time.
        self.turn = Turn()

    @property
    def shared_length(self) -> int:
        """Longest text whose cached rows any text with the same beginning can take over: beyond,
        rotary factors follow the text's length."""
        return self.rule.limit if self.rule else 1 << 30

    @property
    def anew_length(self) -> int:
        """Longest text that keeps its cached rows. One that grows past it is computed anew from its
        first token on, and no draft may pass it."""
        return self.rule.limit if self.rule and self.rule.anew else 1 << 30

    @property
    def longest_reach(self) -> int:
        """Tokens of the widest window or chunk of any layer; 0 where all see everything."""
        return max((r.size for r in self.runner.reaches.values()), default=0)

    @property
    def bytes_per_token(self) -> int:
        """Bytes that one token of one sequence takes in the slab."""
        width, dtype = self._features or (0, self.dtype)
        return self.kv_shape.bytes_per_token(self.runner.kv_dtype) + width * dtype.itemsize

    @property
    def attends_by_row(self) -> bool:
        return self.runner.by_row

    @property
    def by_hand(self) -> bool:
        """Does a pass written for the model's architecture run in its place?"""
        return isinstance(self.runner, PackedRunner) and self.runner.step is not None

    def padded_rows(self, rows: int) -> int:
        """Rows that the linear layers compute in a pass over `rows` rows."""
        return self.runner.padded_rows(rows)

    def reserve(self, slots: int, capacity: int) -> None:
        """Make room for `slots` sequences of `capacity` rows. Forgets whatever was cached."""
        if self.slab and self.slab.slots == slots and self.slab.capacity >= capacity:
            return
        self.slab = None  # free the old memory before taking the new
        rounded = -(-capacity // 64) * 64
        self.slab = KVSlab(self.kv_shape, slots, rounded, self.device, self.runner.kv_dtype)
        if self._features:
            self.slab.keep_features(*self._features)

    def keep_features(self) -> None:
        """From now on keep the last hidden states of all rows in `slab.features`. Forgets whatever
        was cached; a second call does nothing.

        They are what the model's output layer reads, before it scales or caps logits. Raises
        UnsupportedModelError where they cannot be had, as far as a short text shows.
        """
        if self._features:
            return
        hidden = find_last_hidden(self.model)
        expected = hidden.expected
        self.runner.keep_features(hidden)
        self._features, self.slab = (expected.shape[1], expected.dtype), None
        ids = np.array(TOKENS, np.int32)
        self.reserve(1, len(ids))
        self.score([Segment(0, 0, ids, EMPTY_TREE)])
        slab: Any = self.slab
        error = (slab.features[0, : len(ids)].float() - expected.float()).norm()
        self.slab = None
        allowed = 2e-3 if self.dtype == torch.float32 else 0.3
        if not error <= allowed * expected.float().norm():
            raise UnsupportedModelError(
                f"{type(self.model).__name__} cannot be drafted for by a head: the hidden states "
                "taken from its passes are not those that its output layer reads in a plain one; "
                "draft without a head, or use another architecture."
            )

    @torch.inference_mode()
    def score(self, segments: Seq[Segment]) -> Scores:
        """One forward pass. Writes KV columns `column ..` of every segment's slot, one per row, and
        `slab.features` there if they are kept."""
        if self.slab is None:
            raise RuntimeError("call reserve() before score()")
        for segment in segments:
            self.slab.held.cut(segment.slot, segment.column)
        with attention.steady_kernels(self.device):
            logits = self.runner.run(segments, self.slab, self._factors)
        return Scores(logits, [i for i, s in enumerate(segments) if s.scored])

    def hold(self, slot: int, tokens: IntArray) -> None:
        """Note that the slot's first rows are those of `tokens` int32 `[n]`, until a pass writes
        over them, and that no others are known."""
        if self.slab and not (self.rule and len(tokens) > self.rule.limit):
            self.slab.held.hold(slot, tokens)

    def shared(self, tokens: IntArray, first: int = 0, last: int | None = None) -> LongArray:
        """int64 `[last - first]`: how many first rows of each of these slots, all if none are said,
        are known to be those of `tokens`."""
        if self.slab is None:
            return np.zeros(0, np.int64)
        return self.slab.held.shared(tokens, first, last)

    @torch.inference_mode()
    def commit(self, segments: Seq[Segment], paths: Seq[IntArray]) -> None:
        """Keep the rows of the accepted nodes: `paths[i]` int32, root down, of `segments[i]`.

        Afterwards rows `0 .. start + pending + len(path) - 1` of the slot are the committed text.
        """
        moves: list[tuple[int, int, int]] = []
        for segment, path in zip(segments, paths, strict=True):
            base = segment.start + len(segment.pending)
            moves += [
                (segment.slot, base + node, base + place)
                for place, node in enumerate(path.tolist())
                if node != place
            ]
        if self.slab:
            self.slab.move_rows(moves)


def pick_runner(model: PreTrainedModel, way: Way, *, by_row: bool) -> tuple[Runner, KVShape]:
    """The way to run the model, and what it caches: packed where its attention can be replaced, and
    frozen where that is asked for, or on a GPU left to us. On a CPU left to us a pass written for
    the model's architecture runs in place of the model, where there is one (`passes.llama_step`).

    A model that says so and does not hand its attention function what it is given runs padded.
    """
    on_gpu = model.device.type == "cuda"
    frozen = way == "frozen" or (way == "auto" and on_gpu and has_kernels())
    before = model.config._attn_implementation or "eager"
    if getattr(model, "_supports_attention_backend", False):
        try:
            packed = PackedRunner(model, by_row=by_row and not on_gpu)
            shape = packed.shape()
            if frozen and not length_rule(model):
                return FrozenRunner(packed, exact=by_row), shape
            if way == "auto" and not length_rule(model) and fits(model):
                packed.run_by_hand()
            _say_eager(model, way, "its rotary factors follow each text's length")
            return packed, shape
        except attention.PlanLostError:
            model.set_attn_implementation(before)
    _say_eager(model, way, "its attention cannot be replaced")
    runner = PaddedRunner(model)
    return runner, runner.shape()


def _say_eager(model: PreTrainedModel, way: Way, why: str) -> None:
    if way == "frozen":
        _LOG.warning("passes of %s are not frozen: %s", type(model).__name__, why)


def _check_cache(model: PreTrainedModel, shape: KVShape, reaches: Mapping[int, Reach]) -> None:
    """Refuse models that cache no keys and values, and those whose window is in their cache alone
    (Moshi): `generate` sees all of a prompt while that is computed, and then only what the cache
    has kept."""
    if not shape.layers:
        raise UnsupportedModelError(
            f"{type(model).__name__} cannot be served: none of its layers caches keys and values; "
            "use a model with attention layers."
        )
    for layer, cached in enumerate(DynamicCache(config=model.config).layers):
        window = int(getattr(cached, "sliding_window", 0) or 0)
        if window and layer in reaches and not reaches[layer].size:
            raise UnsupportedModelError(
                f"{type(model).__name__} cannot be served: its cache forgets what lies more than "
                f"{window} tokens back while its attention mask shows it, so that a text depends "
                "on how its prompt was computed; use another architecture."
            )


def check_served(model: PreTrainedModel) -> None:
    """Refuse what is known not to work: encoders, state-space and chunked layers."""
    config = model.config.get_text_config()
    name = type(model).__name__
    if getattr(model.config, "is_encoder_decoder", False):
        raise UnsupportedModelError(
            f"{name} cannot be served: it is an encoder-decoder, draftrec needs a decoder-only LM."
        )
    if getattr(config, "alibi", False):
        raise UnsupportedModelError(
            f"{name} cannot be served: its ALiBi biases follow columns, not positions, so a tree "
            "of drafts cannot be placed; use a model with rotary or learned positions."
        )
    odd = set(getattr(config, "layer_types", None) or ()) - _SERVED_LAYERS
    if odd:
        raise UnsupportedModelError(
            f"{name} cannot be served: it has {', '.join(sorted(odd))} layers, whose state cannot "
            "be rolled back to an accepted path; use a model with attention layers only."
        )
    if not model.can_generate():
        raise UnsupportedModelError(f"{name} cannot be served: it has no language-model head.")
