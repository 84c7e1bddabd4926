"""What `generate` hands to a decoding method, and the settings that draftrec adds to it: read and,
where it cannot be served, refused.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
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

from draftrec.config import AcceptConfig, Auto, BatchConfig, DraftConfig
from draftrec.core import IntArray
from draftrec.engine.rotary import context_length
from draftrec.engine.target import check_served
from draftrec.errors import DraftrecError
from draftrec.knobs import not_allowed
from draftrec.pool.store import Pool


@dataclass(frozen=True, slots=True)
class Settings:
    """How texts are drafted and accepted, `slots` of them at once."""

    accept: AcceptConfig
    drafting: DraftConfig
    slots: int

    @property
    def strict(self) -> bool:
        return self.accept.accept == "strict"

    def check(
        self,
        pool: Pool | None,
        groups: Seq[str | None] | None,
        rows: int,
        *,
        grow_pool: bool,
    ) -> None:
        """Raises DraftrecError for settings that do not go together."""
        if pool is not None and not isinstance(pool, Pool):
            raise DraftrecError(
                f"pool is a {type(pool).__name__} and must be a Pool; open a folder with "
                "draftrec.integrations.transformers.open_pool(folder, tokenizer)."
            )
        if grow_pool and pool is None:
            raise DraftrecError(
                "grow_pool needs a pool that texts can join; pass "
                "pool=draftrec.integrations.transformers.new_pool(tokenizer)."
            )
        if groups is not None and len(groups) != rows:
            raise DraftrecError(
                f"groups has {len(groups)} entries and the batch {rows} rows; pass one per row."
            )

    def sampled(self) -> AcceptConfig:
        """The acceptance rule's settings for one sampled call, seeded by torch's own generator."""
        return self.accept.model_copy(
            update={"temperature": 1.0, "seed": int(torch.randint(2**62, ()))}
        )


def read_settings(
    accept: str | AcceptConfig, drafting: dict[str, Any], batch_size: int | Auto, rows: int
) -> Settings:
    """Raises DraftrecError, in one sentence, for values that are not allowed."""
    try:
        rule = accept if isinstance(accept, AcceptConfig) else AcceptConfig(accept=accept)  # type: ignore[arg-type]
        draft = DraftConfig(**drafting)
        size = BatchConfig(batch_size=batch_size).batch_size
    except ValidationError as error:
        raise DraftrecError(f"{not_allowed(error)}.") from error
    if rule.temperature > 0 or rule.top_p is not None or rule.seed:
        raise DraftrecError(
            "Sampling is generate's business: pass do_sample, temperature and top_p to it, seed it "
            "with torch.manual_seed, and leave all of that out of AcceptConfig."
        )
    return Settings(rule, draft, rows if size == "auto" else min(size, rows))


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
    given = {name: value for name, value in model_kwargs.items() if not _says_nothing(name, value)}
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


def _says_nothing(name: str, value: Any) -> bool:
    """What models that also look at images are given where there is none: nothing encoded, and
    every token of the kind that text is."""
    if name.endswith("token_type_ids") and isinstance(value, torch.Tensor):
        return not bool(value.any())
    return value is None or (isinstance(value, dict) and not value)


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
    # `[B, S]`, or one such plane for each way that Qwen's models count places in an image.
    positions = model_kwargs.get("position_ids")
    expected = (mask.cumsum(1) - 1) * mask
    if positions is not None and (
        positions.dim() not in (2, 3) or not bool((positions * mask == expected).all())
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
