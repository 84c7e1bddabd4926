"""What `generate` hands to a decoding method, read and, where it cannot be served, refused."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import (
    EosTokenCriteria,
    GenerationConfig,
    GenerationMixin,
    LogitsProcessorList,
    MaxLengthCriteria,
    PreTrainedModel,
    StoppingCriteriaList,
)
from transformers.generation.configuration_utils import GenerationMode
from transformers.generation.streamers import BaseStreamer

from draftrec.core import IntArray
from draftrec.engine.rotary import context_length
from draftrec.engine.target import check_served
from draftrec.errors import DraftrecError

# Forward arguments that `generate` prepares for every model, and that the engine has no use for.
_PREPARED = {"attention_mask", "position_ids", "use_cache", "logits_to_keep", "cache_position"}
_CACHES = {"cache", "past_key_values"}
_OUTPUTS = ("output_scores", "output_logits", "output_attentions", "output_hidden_states")


@dataclass(frozen=True, slots=True)
class Handed:
    """The arguments of a decoding method, prepared by `generate`."""

    processors: LogitsProcessorList
    criteria: StoppingCriteriaList
    config: GenerationConfig
    streamer: BaseStreamer | None
    model_kwargs: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Call:
    """What is to be written. `input_ids` int64 `[batch, length]`, padded on the left; `prompts`
    without padding; `criteria`: those that the loop does not know by itself."""

    input_ids: torch.Tensor
    prompts: list[IntArray]
    max_new_tokens: int
    eos_ids: frozenset[int]
    pad_id: int | None
    do_sample: bool
    processors: LogitsProcessorList
    criteria: StoppingCriteriaList
    streamer: BaseStreamer | None


def read_call(model: PreTrainedModel, input_ids: torch.Tensor, handed: Handed) -> Call:
    """The call as the loop needs it. Raises DraftrecError for what cannot be served exactly."""
    check_served(model)
    dropped = _dropped_by_generate(model)
    _check_mode(handed.config, dropped.get("assistant_model"))
    _check_forward_arguments(handed.model_kwargs)
    prompts = _prompts(input_ids, handed.model_kwargs)
    streamer = handed.streamer or dropped.get("streamer")
    if streamer is not None and len(prompts) > 1:
        raise DraftrecError(
            f"A streamer takes one text and the batch has {len(prompts)}, which grow at different "
            "speeds; generate them one by one or without a streamer."
        )
    own = [c for c in handed.criteria if type(c) not in (EosTokenCriteria, MaxLengthCriteria)]
    pad = getattr(handed.config, "_pad_token_tensor", None)
    if own and pad is None and len(prompts) > 1:
        raise DraftrecError(
            "Stopping criteria end the texts of a batch at different lengths and there is no token "
            "to pad them with; pass pad_token_id."
        )
    return Call(
        input_ids=input_ids,
        prompts=prompts,
        max_new_tokens=_new_tokens(model, input_ids, prompts, handed.criteria),
        eos_ids=_eos_ids(handed.criteria),
        pad_id=None if pad is None else int(pad),
        do_sample=bool(handed.config.do_sample),
        processors=handed.processors,
        criteria=StoppingCriteriaList(own),
        streamer=streamer,
    )


def _dropped_by_generate(model: PreTrainedModel) -> dict[str, Any]:
    """`generate`'s own local variables.

    transformers (5.17 and 5.24 alike) puts the prompt into a streamer and then drops it, with the
    assistant model, where the decoding method is a callable: a streamer would wait for ever, and
    the assistant would be ignored silently. Both can be found in the frame that called us only.
    """
    code = inspect.unwrap(vars(GenerationMixin)["generate"]).__code__
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_code is code and frame.f_locals.get("self") is model:
            return dict(frame.f_locals)
        frame = frame.f_back
    return {}


def _check_mode(config: GenerationConfig, assistant: PreTrainedModel | None) -> None:
    mode = config.get_generation_mode(assistant)
    if mode not in (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE):
        raise DraftrecError(
            f"draftrec writes greedy or sampled texts and was asked for {mode.value}; leave out "
            "the arguments that choose it (num_beams, assistant_model, prompt_lookup_num_tokens "
            "and so on)."
        )
    if (config.num_return_sequences or 1) > 1:
        raise DraftrecError(
            "draftrec writes one text per prompt; repeat the prompt in the batch instead of asking "
            f"for num_return_sequences={config.num_return_sequences}."
        )
    asked = [name for name in _OUTPUTS if getattr(config, name, None)]
    if config.return_dict_in_generate and asked:
        raise DraftrecError(
            f"draftrec returns sequences and what they cost, not what {asked[0]} asks for; leave "
            "it out."
        )


def _check_forward_arguments(model_kwargs: dict[str, Any]) -> None:
    given = {name: value for name, value in model_kwargs.items() if value is not None}
    for name in sorted(_CACHES & given.keys()):
        cache = given[name]
        if getattr(cache, "_is_user_defined", False) or cache.get_seq_length() > 0:
            raise DraftrecError(
                f"draftrec keeps a cache of its own and cannot go on from one passed as {name}; "
                "pass the whole text as input_ids."
            )
    odd = sorted(given.keys() - _PREPARED - _CACHES)
    if odd:
        raise DraftrecError(
            f"draftrec cannot pass {', '.join(odd)} on to the model; generate from input_ids and "
            "attention_mask alone."
        )


def _prompts(input_ids: torch.Tensor, model_kwargs: dict[str, Any]) -> list[IntArray]:
    """The rows without their padding. Raises DraftrecError if that is not all on the left, or if
    positions are not counted from each row's first token."""
    mask = model_kwargs.get("attention_mask")
    mask = torch.ones_like(input_ids) if mask is None else (mask != 0).long()
    if bool((mask[:, 1:] < mask[:, :-1]).any()) or not bool(mask.any(dim=1).all()):
        raise DraftrecError(
            "The attention mask hides tokens inside or after a prompt, or a whole row; pad on the "
            "left (tokenizer.padding_side = 'left') and leave every row a token."
        )
    positions = model_kwargs.get("position_ids")
    expected = (mask.cumsum(1) - 1) * mask
    if positions is not None and (
        positions.dim() != 2 or not torch.equal(positions.expand_as(expected) * mask, expected)
    ):
        raise DraftrecError(
            "draftrec counts positions from a prompt's first token and cannot use other "
            "position_ids; leave them out."
        )
    ids, starts = input_ids.cpu().numpy(), (mask == 0).sum(1).tolist()
    return [row[start:].astype(np.int32) for row, start in zip(ids, starts, strict=True)]


def _new_tokens(
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    prompts: list[IntArray],
    criteria: StoppingCriteriaList,
) -> int:
    """Tokens that a text may have. Raises DraftrecError if they pass the model's context."""
    most = min(int(c.max_length) for c in criteria if isinstance(c, MaxLengthCriteria))
    new = max(1, most - input_ids.shape[1])
    longest, context = max(map(len, prompts)), context_length(model)
    if longest + new > context:
        raise DraftrecError(
            f"A prompt of {longest} tokens and {new} new ones pass the model's context of "
            f"{context}; ask for at most {max(0, context - longest)} with max_new_tokens."
        )
    return new


def _eos_ids(criteria: StoppingCriteriaList) -> frozenset[int]:
    found: set[int] = set()
    for criterion in criteria:
        if type(criterion) is EosTokenCriteria:
            found.update(criterion.eos_token_id.reshape(-1).tolist())
    return frozenset(found)
