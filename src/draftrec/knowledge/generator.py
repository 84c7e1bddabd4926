"""`Generator`: a model, its drafter, its rule and its budget, ready to write texts."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Seq
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from draftrec.config import AcceptConfig, BatchConfig, DraftConfig, GenerateConfig, ModelConfig
from draftrec.core import Drafter, Generation, IntArray, Request
from draftrec.decoding import generate as loop
from draftrec.decoding.acceptance import make_rule
from draftrec.decoding.budget import AutoBudget, Budget, FixedBudget
from draftrec.decoding.controls import Control
from draftrec.decoding.costs import measure_cost
from draftrec.decoding.drafters import NoDrafter, PoolDrafter
from draftrec.decoding.stats import StepStats, Timing
from draftrec.errors import DraftrecError, PoolMismatchError
from draftrec.models import loading
from draftrec.models.costs import CostCurve
from draftrec.models.prepacked import prepack
from draftrec.models.prompting import (
    ChatTemplate,
    PromptEncoder,
    PromptForm,
    chat_template,
    has_chat_template,
)
from draftrec.models.selfcheck import checked_target
from draftrec.models.target import Target
from draftrec.pool.index import warm_up
from draftrec.pool.store import Pool

_LOG = logging.getLogger(__name__)
_MOST_SLOTS = {"cpu": 16, "cuda": 128}


class Generator:
    """Writes texts with a target model, drafting from pools and verifying in one pass.

    ```python
    generator = Generator.from_pretrained("path/or/hub-id", accept="strict")
    for text in generator.generate(["Describe the film ..."]):
        print(text)
    ```
    """

    def __init__(
        self,
        target: Target,
        tokenizer: Any,
        config: GenerateConfig,
        *,
        pool: Pool | None = None,
        cost_state: dict[str, Any] | None = None,
        fingerprint: dict[str, str] | None = None,
    ) -> None:
        self.target, self.tokenizer, self.config = target, tokenizer, config
        self.fingerprint = fingerprint or fingerprint_of(target.model, tokenizer)
        self.context_length = loading.context_length(target.model)
        self.eos_ids = loading.eos_token_ids(target.model, tokenizer)
        self.pool = pool
        if config.draft.draft == "pool" and pool is None:
            self.pool = Pool(self.fingerprint["tokenizer"])
        elif pool is not None and pool.tokenizer_fingerprint != self.fingerprint["tokenizer"]:
            raise PoolMismatchError(
                "The pool was made with another tokenizer than the model's; use the model that "
                "wrote it, or build a pool for this one."
            )
        if config.draft.draft != "none":
            warm_up()
        self._said_special = False
        self.timing = Timing()
        self.cost_state = cost_state

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path | None = None,
        *,
        config: GenerateConfig | None = None,
        pool: Pool | None = None,
        cost_state: dict[str, Any] | None = None,
        **settings: Any,
    ) -> Generator:
        """Load a model folder or Hub id.

        `settings` are the fields of the configuration groups by name (`accept="relaxed"`,
        `budget=16`, `dtype="float32"`, `max_new_tokens=256` ...). Raises DraftrecError for unknown
        settings, a model that cannot be loaded or served, or a pool of another tokenizer.
        """
        config = config or make_config(str(model), **settings)
        tokenizer = loading.load_tokenizer(config.target.model)
        loaded = loading.load_model(config.target)
        fingerprint = fingerprint_of(loaded, tokenizer)
        if not config.target.compile:  # the compiler cannot look into packed weights
            prepack(loaded)
        target = checked_target(loaded)
        if config.target.compile:
            target.compile()
        return cls(
            target, tokenizer, config, pool=pool, cost_state=cost_state, fingerprint=fingerprint
        )

    def with_config(self, config: GenerateConfig, *, pool: Pool | None = None) -> Generator:
        """The same weights under other settings. Measured costs are kept."""
        same_batch = config.batch == self.config.batch
        state = self.cost_state if same_batch else None
        return Generator(
            self.target, self.tokenizer, config,
            pool=pool, cost_state=state, fingerprint=self.fingerprint,
        )  # fmt: skip

    @property
    def device(self) -> str:
        return str(self.target.device)

    @property
    def dtype(self) -> str:
        return str(self.target.dtype).removeprefix("torch.")

    @property
    def has_chat_template(self) -> bool:
        return has_chat_template(self.tokenizer)

    @property
    def chat_template(self) -> ChatTemplate | None:
        """What a job records of the tokenizer's chat template."""
        return chat_template(self.tokenizer)

    def encode(
        self, prompts: Seq[str], *, chat: bool = False, form: PromptForm | None = None
    ) -> list[IntArray]:
        """int32 token ids per prompt, special tokens as the model expects them; in the chat
        template or not, or in any other form."""
        encoder = PromptEncoder(self.tokenizer, form or PromptForm(chat))
        encoded = encoder.encode(prompts)
        if encoder.found and not self._said_special:
            self._said_special = True
            _LOG.warning(
                "records hold texts of the model's special tokens (%s), which are sent as text "
                "like any other; where they are meant to act, use --special-tokens obey",
                ", ".join(sorted(encoder.found)[:3]),
            )
        return encoded

    def decode(self, token_ids: IntArray) -> str:
        """The text without special tokens."""
        return self.tokenizer.decode(token_ids.tolist(), skip_special_tokens=True)

    def generate(self, records: Iterable[Any], *, chat: bool | None = None) -> list[str]:
        """Texts for prompts (strings) or records with a `prompt` and optional `entity_id`, `group`.

        `chat` None applies the tokenizer's chat template where it has one. Finished texts join the
        pool. Raises DraftrecError for a prompt that leaves no room in the context.
        """
        rows = [{"prompt": r} if isinstance(r, str) else dict(r) for r in records]
        use_chat = self.has_chat_template if chat is None else chat
        prompts = self.encode([str(r["prompt"]) for r in rows], chat=use_chat)
        requests = [
            Request(str(r.get("entity_id", i)), ids, r.get("group"), key=i)
            for i, (r, ids) in enumerate(zip(rows, prompts, strict=True))
        ]
        done = self.run(requests)
        self.commit([(g.token_ids, r.group) for g, r in zip(done, requests, strict=True)])
        return [self.decode(g.token_ids) for g in done]

    def run(
        self,
        requests: Seq[Request],
        *,
        on_step: Callable[[StepStats], None] | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> list[Generation]:
        """One text per request, in order; the pool is read and not grown.

        Raises DraftrecError for a prompt without room, `Interrupted` when asked to stop.
        """
        for request in requests:
            if not 0 < len(request.prompt_ids) < self.context_length:
                raise DraftrecError(
                    f"The prompt of {request.entity_id!r} has {len(request.prompt_ids)} tokens, "
                    f"the model's context {self.context_length}; shorten it or use a model with "
                    "a longer context."
                )
        if not requests:
            return []
        longest = max(len(r.prompt_ids) for r in requests)
        return loop.generate(self.engine(longest), requests, on_step, should_stop)

    def commit(self, texts: Iterable[tuple[IntArray, str | None]]) -> None:
        """Let later runs draft from these (token_ids, group) texts."""
        if self.pool is not None:
            self.pool.add(texts)

    def engine(self, longest: int) -> loop.Engine:
        """A new engine for prompts of at most `longest` tokens. Measures what passes cost where the
        budget is auto and that is not known yet."""
        config = self.config
        slots = self._slots(longest)
        return loop.Engine(
            target=self.target,
            drafter=self._drafter(),
            rule=make_rule(config.accept, self.eos_ids),
            budget=self._budget(slots, longest),
            accept=config.accept,
            eos_ids=self.eos_ids,
            slots=slots,
            max_new_tokens=config.batch.max_new_tokens,
            context_length=self.context_length,
            depth=config.draft.depth,
            prefill_chunk=config.batch.prefill_chunk,
            controls=self._controls(),
            timing=self.timing,
        )

    def _controls(self) -> list[Control]:
        """What changes the target's scores before tokens are chosen, in order."""
        return []

    def _drafter(self) -> Drafter:
        if self.config.draft.draft == "none":
            return NoDrafter()
        return PoolDrafter(self.pool if self.config.draft.draft == "pool" else None)

    def _budget(self, slots: int, longest: int) -> Budget:
        wanted = self.config.draft.budget
        if self.config.draft.draft == "none":
            return FixedBudget(0)
        if wanted != "auto":
            return FixedBudget(wanted)
        # Learning starts anew with every run, so that a resumed job decides as an uninterrupted
        # one does: its costs come from the manifest, its drafts from the shards before.
        return AutoBudget(self._cost_curve(slots, longest))

    def _cost_curve(self, slots: int, longest: int) -> CostCurve:
        if self.cost_state is None or self.cost_state["slots"] != slots:
            self.cost_state = {"slots": slots}
        if "rows" not in self.cost_state:
            context = longest + min(self.config.batch.max_new_tokens, 256) // 2
            context = max(1, min(context, self.context_length - 66))
            nodes = max(0, min(64, self.context_length - context - 1))
            curve = measure_cost(self.target, slots, context, nodes=nodes)
            self.cost_state |= curve.to_json()
        return CostCurve.from_json(self.cost_state)

    def _slots(self, longest: int) -> int:
        """Sequences that run together: as asked, or as many as a share of free memory holds."""
        wanted = self.config.batch.batch_size
        if wanted != "auto":
            return wanted
        if self.cost_state is not None:
            return self.cost_state["slots"]
        room = min(longest + self.config.batch.max_new_tokens + 65, self.context_length + 65)
        fit = int(_free_memory(self.target.device) * 0.5) // (self.target.bytes_per_token * room)
        slots = max(1, min(_MOST_SLOTS[self.target.device.type], fit))
        self.cost_state = {"slots": slots}
        return slots


def fingerprint_of(model: PreTrainedModel, tokenizer: Any) -> dict[str, str]:
    """What a run depends on: the model's weights and the tokenizer's vocabulary.

    Ask before the weights are packed, which hides their values.
    """
    return {
        "model": loading.model_fingerprint(model),
        "tokenizer": loading.tokenizer_fingerprint(tokenizer),
    }


def make_config(model: str, **settings: Any) -> GenerateConfig:
    """A configuration from flat settings. Raises DraftrecError naming an unknown one."""
    groups: dict[str, Any] = {
        "target": ModelConfig, "accept": AcceptConfig, "draft": DraftConfig, "batch": BatchConfig
    }  # fmt: skip
    values: dict[str, dict[str, Any]] = {name: {} for name in groups}
    values["target"]["model"] = model
    for key, value in settings.items():
        home = next((n for n, g in groups.items() if key in g.model_fields), None)
        if home is None:
            known = sorted(k for g in groups.values() for k in g.model_fields)
            raise DraftrecError(f"Unknown setting {key!r}; known are {', '.join(known)}.")
        values[home][key] = value
    return GenerateConfig(**{n: g(**values[n]) for n, g in groups.items()})


def _free_memory(device: torch.device) -> int:
    """Bytes free on the device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return 4 << 30
