"""The decoding method that transformers' `generate` calls.

Its acceptance rule ends texts where the caller's criteria hold, and streams tokens as they are
accepted.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel
from transformers import StoppingCriteriaList as CriteriaList
from transformers.generation.streamers import BaseStreamer
from transformers.generation.utils import GenerateDecoderOnlyOutput

from draftrec.config import AcceptConfig, Auto
from draftrec.core import Counts, DraftTree, Generation, IntArray, Request, Verdict
from draftrec.engine.target import Target
from draftrec.engine.text import loop
from draftrec.engine.text.accept import AcceptanceRule, make_rule
from draftrec.engine.text.batch import RunningSequence
from draftrec.engine.text.budget import AutoBudget
from draftrec.engine.text.drafters import NoDrafter
from draftrec.engine.warping import Warping
from draftrec.integrations.transformers.call import Call, Handed, Settings, read_call, read_settings
from draftrec.integrations.transformers.controls import controls_of, rules_of, warping_of
from draftrec.integrations.transformers.model import ModelState, adapted, costs_of, make_budget
from draftrec.models.drafters import HeadDrafting, drafting_with
from draftrec.pool.drafter import PoolDrafter
from draftrec.pool.index import warm_up
from draftrec.pool.store import Pool


class CallersRule:
    """Another rule's verdicts, as `generate` would have cut them."""

    def __init__(self, rule: AcceptanceRule, call: Call) -> None:
        self.rule, self.call = rule, call

    def accept(
        self, batch: Seq[RunningSequence], trees: Seq[DraftTree], logits: torch.Tensor
    ) -> list[Verdict]:
        """Verdicts that end where a criterion holds. Streams their tokens."""
        verdicts = self.rule.accept(batch, trees, logits)
        if self.call.criteria:
            verdicts = [self._ended(s, v) for s, v in zip(batch, verdicts, strict=True)]
        if self.call.streamer is not None:
            for token in verdicts[0].token_ids.tolist():  # one by one, as plain decoding would
                self.call.streamer.put(torch.tensor([token]))
        return verdicts

    def _ended(self, sequence: RunningSequence, verdict: Verdict) -> Verdict:
        """The verdict up to the first token after which a criterion holds; all of it if none does.

        Criteria are asked about one text at a time, its prompt's padding included, after every
        token: what they say of a text may depend on how long it is.
        """
        text = self._text(sequence, verdict.token_ids)
        first = text.shape[1] - len(verdict.token_ids) + 1
        for count, length in enumerate(range(first, text.shape[1] + 1), start=1):
            if bool(self.call.criteria(text[:, :length], None).any()):  # type: ignore[arg-type]
                sequence.finish = "eos"  # the loop retires it once these tokens are taken over
                return verdict.first(count)
        return verdict

    def _text(self, sequence: RunningSequence, more: IntArray) -> torch.Tensor:
        """int64 `[1, length]`: padded prompt, text so far and `more`, on the caller's device."""
        prompt = self.call.input_ids[sequence.order]
        written = [*sequence.context[sequence.prompt_tokens :].tolist(), *more.tolist()]
        return torch.cat([prompt, prompt.new_tensor(written)])[None]


@dataclass
class Output(GenerateDecoderOnlyOutput):
    """What `return_dict_in_generate=True` returns: `sequences`, and what each text cost."""

    counts: tuple[Counts, ...] | None = None


def generate(  # noqa: PLR0913  (transformers finds a callable's settings by their names)
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    *,
    logits_processor: LogitsProcessorList,
    stopping_criteria: CriteriaList,
    generation_config: GenerationConfig,
    streamer: BaseStreamer | None = None,
    pool: Pool | None = None,
    groups: Seq[str | None] | None = None,
    grow_pool: bool = False,
    accept: str | AcceptConfig = "strict",
    draft: str = "pool",
    budget: int | Auto = "auto",
    depth: int = 24,
    batch_size: int | Auto = "auto",
    drafter: str | Path | None = None,
    **model_kwargs: Any,
) -> torch.Tensor | Output:
    """The decoding method for `model.generate(..., custom_generate=generate)`; not called directly.

    `pool`: texts to draft from, beside each prompt and its own text; with `grow_pool` the texts
    written join it. `groups`: the group of each row, for a pool with groups. `accept`: a rule's
    name, or an `AcceptConfig` for its details. `draft`, `budget`, `depth` and `batch_size` (auto:
    all rows at once) are `GenerateConfig`'s. `drafter`: folder of a learned drafter of this model's
    (`draftrec drafter fit`) to draft with as well.

    Returns what `generate` returns: int64 `[batch, length]`, prompts included and padded on the
    right, or `Output`. Raises DraftrecError for whatever cannot be served exactly.
    """
    handed = Handed(
        logits_processor, stopping_criteria, generation_config, streamer, dict(model_kwargs)
    )
    call = read_call(model, input_ids, handed)
    rows = len(call.prompts)
    drafting = {"draft": draft, "budget": budget, "depth": depth}
    settings = read_settings(accept, drafting, batch_size, rows)
    settings.check(pool, groups, rows, grow_pool=grow_pool)
    names = groups or [None] * rows
    requests = [
        Request(str(i), ids, group, key=i)
        for i, (ids, group) in enumerate(zip(call.prompts, names, strict=True))
    ]
    with adapted(model) as (target, state):
        if pool is not None:
            state.check_pool(pool, model.config.get_text_config().vocab_size)
        learned = None
        if drafter is not None and settings.drafting.draft != "none":
            learned = drafting_with(state.learned_drafter(drafter, model), target)
        texts = loop.generate(_engine(target, state, call, settings, pool, learned), requests)
    if grow_pool and pool is not None:
        pool.add((text.token_ids, group) for text, group in zip(texts, names, strict=True))
    if call.streamer is not None:
        call.streamer.end()
    sequences = _padded(call, texts)
    if not generation_config.return_dict_in_generate:
        return sequences
    return Output(sequences=sequences, counts=tuple(text.counts for text in texts))  # type: ignore[arg-type]


def _engine(
    target: Target, state: ModelState, call: Call, settings: Settings, pool: Pool | None,
    learned: HeadDrafting | None,
) -> loop.Engine:  # fmt: skip
    longest = max(len(ids) for ids in call.prompts)
    accept, warping = settings.accept, None
    if call.do_sample:
        accept = settings.sampled()
        # Strict draws from what the processors leave; other rules judge the model's own scores.
        warping = Warping() if settings.strict else warping_of(call.processors)
    controls = controls_of(
        call.processors, call.input_ids, call.prompts, warp=settings.strict and call.do_sample
    )
    costs = costs_of(target, state, settings, longest, call.max_new_tokens)
    budget, drafter = make_budget(settings, costs), NoDrafter()
    if settings.drafting.draft != "none":
        warm_up()
        drafter = PoolDrafter(pool if settings.drafting.draft == "pool" else None)
    if learned:
        rate = budget.rate if isinstance(budget, AutoBudget) else None
        rules = rules_of(call.processors, sampled=call.do_sample)
        drafter = learned.drafter(drafter, rate, rules)
    return loop.Engine(
        target=target,
        drafter=drafter,
        rule=CallersRule(make_rule(accept, call.eos_ids, warping), call),
        budget=budget,
        costs=costs,
        accept=accept,
        eos_ids=call.eos_ids,
        slots=settings.slots,
        max_new_tokens=call.max_new_tokens,
        depth=settings.drafting.depth,
        controls=controls,
    )


def _padded(call: Call, texts: Seq[Generation]) -> torch.Tensor:
    """int64 `[batch, length]`: the prompts as they were handed over, then the texts."""
    width = max(len(text.token_ids) for text in texts)
    # Without a padding token all texts are of one length: `read_call` saw to that.
    new = np.full((len(texts), width), call.pad_id or 0, np.int64)
    for row, text in zip(new, texts, strict=True):
        row[: len(text.token_ids)] = text.token_ids
    ids = call.input_ids
    return torch.cat([ids, torch.from_numpy(new).to(device=ids.device, dtype=ids.dtype)], dim=1)
