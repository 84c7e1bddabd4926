"""The logits processors of a `generate` call as controls, which judge every draft node.

Those that look back at the text have a control of ours, which keeps what it knows between passes;
those that look at one row of scores are applied to all rows at once; any other is shown every
node's prefix. Rows are padded on the left as `generate` has them, so that lengths are its lengths.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Seq
from math import prod
from typing import Any

import numpy as np
import torch
import transformers as tf

from draftrec.core import DraftTree, IntArray
from draftrec.engine.learned.rules import ScoreRules
from draftrec.engine.sampling import Warping
from draftrec.engine.text import penalties
from draftrec.engine.text.batch import RunningSequence
from draftrec.engine.text.controls import Control, Processors, RowControl
from draftrec.engine.text.penalties import (
    Before,
    NoRepeatedNGrams,
    OwnProcessors,
    PhraseBias,
    Scope,
)
from draftrec.errors import DraftrecError

_WARPERS: dict[type, Callable[[Any], dict[str, Any]]] = {
    tf.TemperatureLogitsWarper: lambda p: {"temperature": float(p.temperature)},
    tf.TopHLogitsWarper: lambda p: {"top_h": p.top_h},
    tf.TopKLogitsWarper: lambda p: {"top_k": p.top_k},
    tf.TopPLogitsWarper: lambda p: {"top_p": p.top_p},
    tf.MinPLogitsWarper: lambda p: {"min_p": p.min_p},
    tf.TypicalLogitsWarper: lambda p: {"typical_p": p.mass},
    tf.EpsilonLogitsWarper: lambda p: {"epsilon_cutoff": p.epsilon},
    tf.EtaLogitsWarper: lambda p: {"eta_cutoff": float(p.epsilon)},
}
# These change a row of scores by that row alone.
_BY_ROW = {
    *_WARPERS, tf.SuppressTokensLogitsProcessor, tf.InfNanRemoveLogitsProcessor,
    tf.LogitNormalization,
}  # fmt: skip
# These ask the model, keep a state of one text, or number a batch's rows.
_REFUSED = {
    "UnbatchedClassifierFreeGuidanceLogitsProcessor": "pass guidance_scale=None",
    "ClassifierFreeGuidanceLogitsProcessor": "leave it out",
    "SynthIDTextWatermarkLogitsProcessor": "leave the watermark out",
}


def controls_of(
    processors: Seq[Any],
    input_ids: torch.Tensor,
    prompts: Seq[IntArray],
    ends: frozenset[int],
    *,
    warp: bool,
) -> list[Control]:
    """A control for each of `processors`, in order; those that only sampling uses if `warp`.

    `input_ids` int64 `[batch, length]` as `generate` has them, `prompts` without their padding;
    `ends`: tokens that end a text. Raises DraftrecError for one that cannot be served.
    """
    table = _Table(input_ids, prompts)
    found: list[Control] = []
    for process in processors:
        kind = type(process)
        if how := _REFUSED.get(kind.__name__):
            raise DraftrecError(
                f"draftrec cannot serve the logits processor {kind.__name__}; {how}."
            )
        if kind in _WARPERS and not warp:
            continue
        if kind in _BY_ROW:
            found.append(_ByRow(process))
        elif kind is tf.PrefixConstrainedLogitsProcessor:
            found.append(_Allowed(process._prefix_allowed_tokens_fn, table.before, ends))
        elif kind in _MADE:
            found.append(Processors([_MADE[kind](process, table)]))
        else:
            found.append(OwnProcessors([process], table.before))
    return found


def warping_of(processors: Seq[Any]) -> Warping:
    """What a call's processors do to a draw, for rules that sample by themselves."""
    settings: dict[str, Any] = {}
    for process in processors:
        settings |= _WARPERS.get(type(process), lambda _: {})(process)
    return Warping(**settings)


def rules_of(processors: Seq[Any], *, sampled: bool) -> ScoreRules:
    """What a call's processors do to scores of which a draft head should know."""
    repeated = [p.penalty for p in processors if type(p) is tf.RepetitionPenaltyLogitsProcessor]
    warmth = warping_of(processors).temperature if sampled else 1.0
    return ScoreRules(repetition=prod(repeated), temperature=warmth)


class _Table:
    """The rows of a call: what stands before each prompt, and which tokens count."""

    def __init__(self, input_ids: torch.Tensor, prompts: Seq[IntArray]) -> None:
        self.width = input_ids.shape[1]
        rows = input_ids.cpu().numpy().astype(np.int32)
        self.padding = [row[: self.width - len(p)] for row, p in zip(rows, prompts, strict=True)]

    def before(self, sequence: RunningSequence) -> IntArray:
        return self.padding[sequence.order]

    def without(self, ignored: Any) -> Scope:
        """All tokens but the first `ignored`, padding counted: one number, one per row, or None."""

        def scope(sequence: RunningSequence) -> tuple[IntArray, int]:
            padding = self.padding[sequence.order]
            first = ignored[sequence.order] if isinstance(ignored, torch.Tensor) else ignored
            first = int(first or 0)
            return padding[first:], max(0, first - len(padding))

        return scope

    def prompt(self, sequence: RunningSequence) -> tuple[IntArray, int]:
        """The padded prompt alone."""
        ids, end = penalties.prompt_alone(sequence)
        return np.concatenate([self.padding[sequence.order], ids]), end


def _ids(tokens: Any) -> list[int]:
    return torch.as_tensor(tokens).reshape(-1).tolist()


#: Controls of ours by the kind of processor.
_MADE: dict[type, Callable[[Any, _Table], RowControl]] = {
    tf.SequenceBiasLogitsProcessor: lambda p, t: PhraseBias(p.sequence_bias, t.before),
    tf.NoBadWordsLogitsProcessor: lambda p, t: PhraseBias(p.sequence_bias, t.before),
    tf.EncoderRepetitionPenaltyLogitsProcessor: lambda p, t: penalties.SeenTokens(
        penalties.Repetition(p.penalty), t.prompt
    ),
    tf.RepetitionPenaltyLogitsProcessor: lambda p, t: penalties.SeenTokens(
        penalties.Repetition(p.penalty), t.without(p.prompt_ignore_length)
    ),
    tf.NoRepeatNGramLogitsProcessor: lambda p, t: NoRepeatedNGrams(p.ngram_size, t.before),
    tf.EncoderNoRepeatNGramLogitsProcessor: lambda p, t: NoRepeatedNGrams(
        p.ngram_size, t.before, of_prompt=True
    ),
    tf.MinLengthLogitsProcessor: lambda p, t: penalties.Suppressed(
        _ids(p.eos_token_id), penalties.shorter(p.min_length, t.before)
    ),
    tf.MinNewTokensLengthLogitsProcessor: lambda p, t: penalties.Suppressed(
        _ids(p.eos_token_id),
        penalties.shorter(p.prompt_length_to_skip + p.min_new_tokens, t.before),
    ),
    tf.ForcedBOSTokenLogitsProcessor: lambda p, t: penalties.Forced(
        [p.bos_token_id], penalties.exactly(1, t.before)
    ),
    tf.ForcedEOSTokenLogitsProcessor: lambda p, t: penalties.Forced(
        _ids(p.eos_token_id), penalties.exactly(p.max_length - 1, t.before)
    ),
    tf.ExponentialDecayLengthPenalty: lambda p, t: penalties.GrowingEnd(
        p.regulation_start - t.width, p.regulation_factor, _ids(p.eos_token_id)
    ),
    tf.SuppressTokensAtBeginLogitsProcessor: lambda p, t: penalties.Suppressed(
        _ids(p.begin_suppress_tokens), penalties.exactly(p.begin_index, t.before)
    ),
}


class _ByRow:
    """A processor that looks at scores alone, applied to all rows at once."""

    def __init__(self, process: Any) -> None:
        self.process = process

    def apply(
        self, batch: Seq[RunningSequence], trees: Seq[DraftTree], logits: torch.Tensor
    ) -> torch.Tensor:
        return self.process(None, logits)


class _Allowed:
    """`prefix_allowed_tokens_fn`, asked about every row that a text may get to: its text's place in
    the batch, its ids. It need know nothing of others, about which plain decoding never asks.
    `ends`: tokens that end a text."""

    def __init__(
        self,
        allowed: Callable[[int, torch.Tensor], list[int]],
        before: Before,
        ends: frozenset[int],
    ) -> None:
        self.allowed, self.before, self.ends = allowed, before, ends

    def apply(
        self, batch: Seq[RunningSequence], trees: Seq[DraftTree], logits: torch.Tensor
    ) -> torch.Tensor:
        mask = torch.full_like(logits, -torch.inf)
        first = 0
        for sequence, tree in zip(batch, trees, strict=True):
            self._allow(sequence, tree, mask[first : first + 1 + len(tree)])
            first += 1 + len(tree)
        return logits + mask

    def _allow(self, sequence: RunningSequence, tree: DraftTree, mask: torch.Tensor) -> None:
        """Open the `mask` `[1 + nodes, V]` of one text."""
        text = np.concatenate([self.before(sequence), sequence.context])
        self._ask(sequence, text, mask[0])
        paths: list[IntArray | None] = [text]  # None: no text gets there
        for parent, token in zip(tree.parents.tolist(), tree.token_ids.tolist(), strict=True):
            above, row = paths[parent + 1], mask[len(paths)]
            if above is None or token in self.ends or mask[parent + 1, token] != 0:
                paths.append(None)
                row.zero_()
                continue
            path = np.append(above, np.int32(token))
            paths.append(path)
            self._ask(sequence, path, row)

    def _ask(self, sequence: RunningSequence, path: IntArray, row: torch.Tensor) -> None:
        ids = torch.as_tensor(path.astype(np.int64), device=row.device)
        tokens = self.allowed(sequence.order, ids)
        if not len(tokens):
            raise DraftrecError(
                "prefix_allowed_tokens_fn allows no token after a prefix that a text may get to; "
                "let it return at least one, the end of text where nothing else may follow."
            )
        row[tokens] = 0
