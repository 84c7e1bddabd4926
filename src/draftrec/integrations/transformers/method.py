"""The decoding method that transformers' `generate` calls, with the caller's model: lent for one
call and given back as it was.

Its acceptance rule ends texts where the caller's criteria hold, and streams tokens as they are
accepted.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from collections.abc import Sequence as Seq
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import numpy as np
import torch
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel
from transformers import StoppingCriteriaList as CriteriaList
from transformers.generation.streamers import BaseStreamer
from transformers.generation.utils import GenerateDecoderOnlyOutput

from draftrec.config import AcceptConfig, Auto
from draftrec.core import Counts, DraftTree, Generation, IntArray, Request, Verdict
from draftrec.data.files.places import place
from draftrec.engine.costs import LearningCurve
from draftrec.engine.rotary import context_length
from draftrec.engine.sampling import Warping
from draftrec.engine.selfcheck import checked_target
from draftrec.engine.target import Target
from draftrec.engine.text import loop
from draftrec.engine.text.accept import AcceptanceRule, make_rule
from draftrec.engine.text.batch import RunningSequence
from draftrec.engine.text.budget import AutoBudget, Budget, Calibration, FixedBudget
from draftrec.engine.text.loop import NoDrafter
from draftrec.errors import PoolMismatchError, UnsupportedModelError
from draftrec.integrations.transformers.call import Call, Handed, Settings, read_call, read_settings
from draftrec.integrations.transformers.controls import controls_of, rules_of, warping_of
from draftrec.models.drafters import (
    INFO_FILE,
    HeadDrafting,
    LearnedDrafter,
    drafting_with,
    load_drafter,
)
from draftrec.models.loading import model_fingerprint
from draftrec.pool.costs import measure_cost
from draftrec.pool.drafter import PoolDrafter
from draftrec.pool.index import warm_up
from draftrec.pool.store import Pool


@dataclass(slots=True)
class ModelState:
    """What is known of a model between calls. It must not hold the model, which could then never
    be freed; a `Target` does, so it is made anew, at the price of a pass over one token."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    checked: bool = False
    plain: bool = False  # runs as it is, and not by a pass written for its architecture
    costs: dict[tuple[str, str, int], LearningCurve] = field(default_factory=dict)
    calibrations: dict[bool, Calibration] = field(default_factory=dict)  # strict: sampled or not
    pools: WeakSet[Pool] = field(default_factory=WeakSet)
    learned: tuple[tuple[object, ...], LearnedDrafter] | None = None

    def check_pool(self, pool: Pool, vocabulary: int) -> None:
        """Raises PoolMismatchError if the pool, seen for the first time, has foreign tokens."""
        if pool in self.pools:
            return
        with pool.turn:
            foreign = any(int(ids.max()) >= vocabulary for ids, _ in pool)
        if foreign:
            raise PoolMismatchError(
                f"The pool has tokens beyond the model's vocabulary of {vocabulary}; open it with "
                "draftrec.integrations.transformers.open_pool and the model's tokenizer."
            )
        self.pools.add(pool)

    def learned_drafter(self, folder: str | Path, model: PreTrainedModel) -> LearnedDrafter:
        """The drafter of a folder, read again when it or the model has changed.

        Raises DraftrecError for a folder of anything else, and for another model's.
        """
        info, known = place(folder) / INFO_FILE, model_fingerprint(model)
        said = info.read_bytes() if info.is_file() else None
        key = info, said, known, model.dtype, model.device
        if self.learned is None or self.learned[0] != key:
            self.learned = key, load_drafter(folder, model, {"model": known})
        return self.learned[1]


_STATES: WeakKeyDictionary[PreTrainedModel, ModelState] = WeakKeyDictionary()
_FIRST_USE = threading.Lock()


@contextmanager
def adapted(model: PreTrainedModel) -> Iterator[tuple[Target, ModelState]]:
    """The model behind a `Target`, compared with itself at the first call. Afterwards its attention
    and training modes are what they were, and no memory is held.

    Raises UnsupportedModelError for a model that cannot be served.
    """
    if len(set((getattr(model, "hf_device_map", None) or {}).values())) > 1:
        raise UnsupportedModelError(
            f"{type(model).__name__} is spread over several devices and draftrec serves a model on "
            "one; load it without device_map."
        )
    with _FIRST_USE:
        state = _STATES.setdefault(model, ModelState())
    with state.lock, _uncompiled(), _restored(model):
        model.eval()  # a text must not depend on dropout
        way = "auto" if model.device.type == "cpu" and not state.plain else "eager"
        target = Target(model, way=way) if state.checked else checked_target(model, way=way)
        state.checked, state.plain = True, not target.by_hand
        yield target, state


def _uncompiled() -> AbstractContextManager[object]:
    """A forward pass that its owner has compiled runs as it was written: it would be compiled anew
    for many kinds of pass. Free where nothing was compiled."""
    known = "torch._dynamo" in sys.modules
    return torch.compiler.set_stance("force_eager") if known else nullcontext()


@contextmanager
def _restored(model: PreTrainedModel) -> Iterator[None]:
    config = model.config
    attention = {"": config._attn_implementation}
    for name in config.sub_configs:
        if (part := getattr(config, name, None)) is not None:
            attention[name] = part._attn_implementation
    training = [module for module in model.modules() if module.training]
    try:
        yield
    finally:
        model.set_attn_implementation(attention)
        for module in training:
            module.training = True


def costs_of(
    target: Target, state: ModelState, settings: Settings, longest: int, new_tokens: int
) -> LearningCurve | None:
    """What passes cost, measured where that is not known yet, for a small part of the time that so
    many new tokens take; None where it is no matter.

    `longest`: tokens of the longest prompt. Batches are measured at powers of two, so that those of
    many sizes do not all wait for it.
    """
    if settings.drafting.draft == "none" or settings.drafting.budget != "auto":
        return None
    slots = 1 << (settings.slots - 1).bit_length()
    key = (str(target.device), str(target.dtype), slots)
    if key not in state.costs:
        most = context_length(target.model)
        context = max(1, min(longest + min(new_tokens, 256) // 2, most - 66))
        nodes = max(0, min(64, most - context - 1))
        first = measure_cost(target, slots, context, nodes=nodes, passes=new_tokens // 2)
        state.costs[key] = LearningCurve(first)
    return state.costs[key]


def make_budget(
    settings: Settings, costs: LearningCurve | None, calibration: Calibration
) -> Budget:
    """How many nodes a pass may carry. Strict calls go by what earlier ones have learned of drafts,
    their `calibration`; where drafts change texts, each begins anew."""
    if costs is not None:
        return AutoBudget(costs, calibration=calibration if settings.strict else None)
    wanted = settings.drafting.budget
    return FixedBudget(0 if settings.drafting.draft == "none" or wanted == "auto" else wanted)


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
        call.processors, call.input_ids, call.prompts, call.eos_ids,
        warp=settings.strict and call.do_sample,
    )  # fmt: skip
    costs = costs_of(target, state, settings, longest, call.max_new_tokens)
    known = state.calibrations.setdefault(call.do_sample, Calibration())
    budget, drafter = make_budget(settings, costs, known), NoDrafter()
    if settings.drafting.draft != "none":
        warm_up()
        drafter = PoolDrafter(pool if settings.drafting.draft == "pool" else None)
    if learned:
        weighs = budget if isinstance(budget, AutoBudget) else None
        rules = rules_of(call.processors, sampled=call.do_sample)
        drafter = learned.drafter(drafter, weighs, rules)
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
