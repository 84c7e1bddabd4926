"""`Generator`: a model, its drafter, its rule and its budget, ready to write texts."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from collections.abc import Sequence as Seq
from pathlib import Path
from typing import Any, Literal, overload

import torch
from transformers import PreTrainedModel

from draftrec.config import BatchConfig, GenerateConfig, ModelConfig, make_config, with_values
from draftrec.core import Drafter, Generation, IntArray, Request
from draftrec.engine.costs import LearningCurve
from draftrec.engine.passes.prepacked import prepack
from draftrec.engine.rotary import context_length
from draftrec.engine.sampling import Warping
from draftrec.engine.selfcheck import checked_target
from draftrec.engine.target import Target
from draftrec.engine.text import loop
from draftrec.engine.text.accept import make_rule
from draftrec.engine.text.budget import AutoBudget, Budget, Calibration, FixedBudget
from draftrec.engine.text.controls import Control
from draftrec.engine.text.grammar import GrammarControl, GrammarDrafter, GrammarStates
from draftrec.engine.text.grammar_text import check_structure, compile_grammar
from draftrec.engine.text.penalties import LogitsProcessor, OwnProcessors, check_processors
from draftrec.engine.text.settings import GenerationSettings, make_controls, resolve
from draftrec.engine.text.stats import StepStats, Timing
from draftrec.engine.text.stop_strings import stop_strings_of
from draftrec.errors import DraftrecError, PoolMismatchError
from draftrec.jobs.knowledge import writing
from draftrec.jobs.knowledge.account import exactness
from draftrec.jobs.knowledge.manifest import Facts
from draftrec.jobs.knowledge.prompts import unknown_token
from draftrec.jobs.knowledge.writing import Text, Texts
from draftrec.models import loading
from draftrec.models.drafters import HeadDrafting, drafting_with, load_drafter, read_drafter_info
from draftrec.models.prompting import (
    THINK,
    Prompt,
    PromptEncoder,
    PromptForm,
    chat_template,
    has_chat_template,
    thought_hint,
)
from draftrec.pool.costs import Passes
from draftrec.pool.drafter import PoolDrafter
from draftrec.pool.index import warm_up
from draftrec.pool.store import Pool

_LOG = logging.getLogger(__name__)

_THOUGHT = (
    "texts begin with what the model thinks before it answers, which joins profiles, vectors and "
    "pools made of them; %s"
)
#: What follows from what strict means.
_HINTS = {
    "bit for bit": "",
    "token for token": "",
    "up to rounding": ": near-ties may fall otherwise (--exact rules that out)",
}


class Generator:
    """Writes texts with a target model, drafting from pools and verifying in one pass.

    ```python
    generator = Generator.from_pretrained("path/or/hub-id", accept="strict")
    print(generator.generate("Describe the film ..."))
    texts = generator.generate(frame, template="kar", side="item", max_new_tokens=200)
    ```
    """

    def __init__(  # noqa: PLR0913
        self,
        target: Target,
        tokenizer: Any,
        config: GenerateConfig,
        *,
        pool: Pool | None = None,
        cost_state: dict[str, Any] | None = None,
        fingerprint: dict[str, str] | None = None,
        learned: HeadDrafting | None = None,
    ) -> None:
        self.target, self.tokenizer, self.config = target, tokenizer, config
        self.learned = learned
        #: Logits processors of the caller's own.
        self.processors: Seq[LogitsProcessor] = ()
        self.resolved = resolve(config.controls, config.accept, target.model, tokenizer)
        self.fingerprint = fingerprint or fingerprint_of(target.model, tokenizer)
        self.fingerprint = self.fingerprint | {
            "generation_config": self.resolved.fingerprint,
            "drafter": learned.learned.fingerprint if learned else "",
        }
        self.context_length = context_length(target.model)
        self.vocabulary = loading.vocabulary(target.model)
        self.eos_ids = loading.eos_token_ids(target.model, tokenizer)
        self.stops = stop_strings_of(self.resolved.settings.stop_strings, tokenizer)
        rows = target.model.config.get_text_config().vocab_size
        self.grammar = compile_grammar(config.structure, tokenizer, rows, self.eos_ids)
        self.pool = pool
        if config.draft.draft == "pool" and pool is None:
            self.pool = Pool(self.fingerprint["tokenizer"])
        elif pool is not None and pool.tokenizer_fingerprint != self.fingerprint["tokenizer"]:
            raise PoolMismatchError(
                "The pool was made with another tokenizer than the model's; use the model that "
                "wrote it, or build a pool for this one."
            )
        if pool is not None:
            pool.check_vocabulary(self.vocabulary)
        if config.draft.draft != "none":
            _LOG.info("preparing the index of texts (compiled at its first use)")
            warm_up()
        self._said: set[str] = set()
        self.costs: dict[BatchConfig, dict[str, Any]] = {}
        self.timing = Timing()
        self._passes = Passes(target, config, self.context_length, cost_state)
        self._calibration = Calibration()  # goes on from shard to shard and call to call

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path | None = None,
        *,
        config: GenerateConfig | None = None,
        pool: Pool | str | Path | None = None,
        cost_state: dict[str, Any] | None = None,
        processors: Seq[LogitsProcessor] = (),
        **settings: Any,
    ) -> Generator:
        """Load a model folder or Hub id, and the pool to draft from, if one is given.

        `processors`: logits processors of your own, called for every draft node as for a text of
        its own, after the settings' controls and before sampling.

        `settings` are the fields of the configuration groups by name (`accept="relaxed"`,
        `budget=16`, `dtype="float32"`, `max_new_tokens=256` ...). Raises DraftrecError for unknown
        settings, a model that cannot be loaded or served, or a pool of another tokenizer.
        """
        if config is None and model is None:
            raise DraftrecError("from_pretrained needs a model: a folder or a Hub id")
        if config is not None and (model is not None or settings):
            raise DraftrecError("from_pretrained takes a config, or a model and settings, not both")
        if not isinstance(pool, Pool | str | Path | None):
            raise DraftrecError(f"pool={pool!r} is neither a pool nor the name of its folder")
        check_processors(processors)
        config = config or make_config(str(model), **settings)
        drafter = config.target.drafter
        check_structure(config.structure)  # before the model, which may take minutes
        if drafter:
            read_drafter_info(drafter)
        _LOG.info("loading the model %s", config.target.model)
        tokenizer = loading.load_tokenizer_of(config.target)
        if isinstance(pool, str | Path):
            pool = Pool.load(Path(pool), loading.tokenizer_fingerprint(tokenizer))
        way = config.target.pass_
        packs = way != "frozen"  # the compiler cannot look into packed weights
        loaded = loading.load_model(config.target, packs=packs)
        fingerprint = fingerprint_of(loaded, tokenizer)
        learned = load_drafter(drafter, loaded, fingerprint) if drafter else None
        if packs:
            prepack(loaded)
        _LOG.info("checking that the model is run as it runs by itself")
        narrow = config.target.kv_dtype == "model"
        target = checked_target(loaded, exact=config.target.exact, narrow_kv=narrow, way=way)
        if config.accept.accept == "strict" and config.draft.draft != "none":
            meaning = exactness("strict", str(target.dtype), exact=target.exact)
            _LOG.info("strict texts are those of plain decoding, %s%s", meaning, _HINTS[meaning])
        made = cls(
            target, tokenizer, config, pool=pool, cost_state=cost_state, fingerprint=fingerprint,
            learned=drafting_with(learned, target) if learned else None,
        )  # fmt: skip
        made.processors = processors
        if taken := made.resolved.sentence():
            _LOG.info(taken)
        return made

    def with_config(self, config: GenerateConfig, *, pool: Pool | None = None) -> Generator:
        """The same weights under other settings. Measured costs are kept."""
        same_batch = config.batch == self.config.batch
        state = self.cost_state if same_batch else None
        made = Generator(
            self.target, self.tokenizer, config,
            pool=pool, cost_state=state, fingerprint=self.fingerprint, learned=self.learned,
        )  # fmt: skip
        made.processors, made._said = self.processors, self._said
        return made

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
    def exact(self) -> bool:
        """Are strict texts plain decoding's bit for bit, by the check at load?"""
        return self.target.exact

    @property
    def cost_state(self) -> dict[str, Any] | None:
        """What is known of its passes, for a later run to begin with."""
        return self._passes.state

    def slots(self, longest: int) -> int:
        """As `Passes.slots`."""
        return self._passes.slots(longest)

    def cost_curve(self, longest: int, texts: int | None = None) -> LearningCurve | None:
        """As `Passes.curve`; None where nothing is drafted."""
        drafts = self.config.draft.draft != "none"
        return self._passes.curve(longest, texts) if drafts else None

    @property
    def facts(self) -> Facts:
        """What a job records of it, and decides by."""
        return Facts(
            self.fingerprint,
            self.device,
            self.dtype,
            self.has_chat_template,
            chat_template(self.tokenizer),
            self.cost_state,
            torch.get_num_threads(),
            self.exact,
        )

    def text_rules(self, settings: Mapping[str, Any]) -> loop.TextRules | None:
        """How single texts of an engine are written otherwise than its others: settings of
        acceptance, controls and structure by name. None where that is no difference.

        Raises DraftrecError for one that is unknown, not allowed, or cannot be kept.
        """
        config = with_values(self.config, settings)
        if config == self.config:
            return None
        model, tokenizer = self.target.model, self.tokenizer
        found = resolve(config.controls, config.accept, model, tokenizer).settings
        grammar = self.grammar
        if config.structure != self.config.structure:
            rows = model.config.get_text_config().vocab_size
            grammar = compile_grammar(config.structure, tokenizer, rows, self.eos_ids)
        states = GrammarStates(grammar) if grammar else None
        warmth = config.accept.temperature
        warping = found.warping(warmth) if warmth > 0 else None
        return loop.TextRules(
            config.accept,
            make_rule(config.accept, self.eos_ids, warping),
            [*self._controls(found), *([GrammarControl(states)] if states is not None else [])],
            stop_strings_of(found.stop_strings, tokenizer),
            states,
        )

    def render(self, prompts: Seq[str], form: PromptForm) -> list[str]:
        """The prompts as the model is sent them, without what the tokenizer adds by itself."""
        return PromptEncoder(self.tokenizer, form).render(prompts)

    def encode(
        self, prompts: Seq[Prompt], *, chat: bool = False, form: PromptForm | None = None
    ) -> list[IntArray]:
        """int32 token ids per prompt, special tokens as the model expects them; in the chat
        template or not, or in any other form."""
        encoder = PromptEncoder(self.tokenizer, form or PromptForm(chat))
        encoded = encoder.encode(prompts)
        if encoder.found:
            self._say_once(
                "records hold texts of the model's special tokens (%s), which are sent as text "
                "like any other; where they are meant to act, use --special-tokens obey",
                ", ".join(sorted(encoder.found)[:3]),
            )
        if encoder.opens_thought:
            self._say_once(_THOUGHT, thought_hint(self.tokenizer))
        return encoded

    def _say_once(self, message: str, *values: str) -> None:
        """A warning, if this model's generators have not given it yet."""
        if message not in self._said:
            self._said.add(message)
            _LOG.warning(message, *values)

    def decode(self, token_ids: IntArray, rules: loop.TextRules | None = None) -> str:
        """The text without special tokens, up to the first stop string; of `rules`, if there are
        any."""
        text = self.tokenizer.decode(token_ids.tolist(), skip_special_tokens=True)
        if text.lstrip().startswith(THINK[0]):
            self._say_once(_THOUGHT, thought_hint(self.tokenizer))
        stops = rules.stops if rules else self.stops
        return text[: stops.first(text)] if stops else text

    @overload
    def generate(  # pyright: ignore[reportOverlappingOverload]
        self, records: Any, *, full: Literal[True], as_frame: bool = ..., **settings: Any
    ) -> Texts: ...
    @overload
    def generate(self, records: Any, *, as_frame: Literal[True], **settings: Any) -> Any: ...
    @overload
    def generate(self, records: Any, *, n: int, **settings: Any) -> Any: ...
    @overload
    def generate(self, records: str | Mapping[str, Any], **settings: Any) -> str: ...
    @overload
    def generate(self, records: Any, **settings: Any) -> list[str]: ...
    def generate(
        self, records: Any, *, full: bool = False, as_frame: bool = False, **settings: Any
    ) -> Any:
        """The text of one prompt or record, or the list of the texts of several.

        `records`: a prompt, or a record of fields (a mapping with `prompt`, or what `template`
        names; optional `entity_id`, `group`); a list or any other iterable of these; a data frame
        of pandas or polars, an Arrow table, a data set of Hugging Face's datasets.

        `full` gives a `Texts` instead: texts with token ids and counts, and a summary. `as_frame`
        gives the frame that came in with columns for the text, why it ended, and its tokens.

        `n` above 1 draws as many texts of each prompt or record, and a list of them takes the place
        of the text: in what is given back as in a frame's columns. `full` has a row per text, those
        of a record one after another, numbered by `sample`. Text number i is the same for every n.

        `settings`: options of `draftrec generate` by name, for this call alone: how records are
        read (`template`, `side`, `chat`, `system`, `chat_template_kwargs`, `special_tokens`,
        `id_column` ...) and how texts are written (`max_new_tokens`, `temperature`, `seed`,
        `accept`, `draft` ...). `chat` None applies the tokenizer's chat template where it has one.
        Special tokens act in prompts given as texts and are text in records, unless
        `special_tokens` says otherwise. A sampled text depends on the seed and on its entity's id,
        or on its place where it has none.

        Finished texts join the pool. Raises DraftrecError for whatever cannot be served.
        """
        return writing.write(self, records, settings, full=full, as_frame=as_frame)

    def stream(self, records: Any, **settings: Any) -> Iterator[Text]:
        """Texts of records that are read as they are needed, in order, as `generate` writes them:
        for more records than memory holds. Raises as `generate` does, when it gets there."""
        return writing.stream(self, records, settings)

    def with_settings(self, **settings: Any) -> Generator:
        """The same weights and pool with other settings by name; what is measured is shared.
        `processors` takes the place of the logits processors given at loading.

        Raises DraftrecError for one that is unknown, not allowed, or decided at loading.
        """
        fixed = sorted(set(settings) & {*ModelConfig.model_fields, "pass", "compile"})
        if fixed:
            raise DraftrecError(
                f"{fixed[0]!r} is decided when the model is loaded; give it to from_pretrained"
            )
        processors = settings.pop("processors", self.processors)
        check_processors(processors)
        config = with_values(self.config, settings)
        drafts = config.draft.draft == "pool"
        made = self.with_config(config, pool=self.pool if drafts else None)
        made.timing, made.costs, made.processors = self.timing, self.costs, processors
        if known := self.costs.get(config.batch):
            made._passes.state = known
        return made

    def run(
        self,
        requests: Seq[Request],
        *,
        on_step: Callable[[StepStats], None] | None = None,
        should_stop: Callable[[], bool] | None = None,
        on_text: Callable[[Request, Generation], None] | None = None,
    ) -> list[Generation]:
        """One text per request, in order; the pool is read and not grown. `on_text` is told of each
        when it is finished; if it commits the text, running ones draft from it in the next step.

        Calls of several threads wait for each other. Raises DraftrecError for a prompt without
        room, `Interrupted` when asked to stop.
        """
        for request in requests:
            if not 0 < len(request.prompt_ids) < self.context_length:
                raise DraftrecError(
                    f"The prompt of {request.entity_id!r} has {len(request.prompt_ids)} tokens, "
                    f"the model's context {self.context_length}; shorten it or use a model with "
                    "a longer context."
                )
            if reason := unknown_token(request.prompt_ids, self.vocabulary):
                raise DraftrecError(
                    f"The prompt of {request.entity_id!r} cannot be read: {reason}; leave the "
                    "token out, or resize the model's embedding."
                )
        if not requests:
            return []
        longest = max(len(r.prompt_ids) for r in requests)
        with self.target.turn:  # calls of other threads wait
            engine = self.engine(longest, len(requests))
            engine.on_text = on_text
            try:
                return loop.generate(engine, requests, on_step, should_stop)
            finally:
                self._passes.keep()

    def commit(self, texts: Iterable[tuple[IntArray, str | None]]) -> None:
        """Draft from these (token_ids, group) texts as well from now on."""
        if self.pool is not None:
            with self.timing.drafting():
                self.pool.add(texts)

    def engine(self, longest: int, texts: int | None = None) -> loop.Engine:
        """A new engine for prompts of at most `longest` tokens, and so many `texts`. Measures what
        passes cost where something is drafted and that is not known yet."""
        config = self.config
        slots, costs = self.slots(longest), self.cost_curve(longest, texts)
        budget, certain = self._budget(costs), None
        drafter, controls = self._drafter(budget), self._controls(self.resolved.settings)
        if self.grammar:
            states = GrammarStates(self.grammar)
            controls.append(GrammarControl(states))
            if config.draft.draft != "none":
                drafter = GrammarDrafter(drafter, states)
                certain = drafter.certain
        return loop.Engine(
            target=self.target,
            drafter=drafter,
            rule=make_rule(config.accept, self.eos_ids, self._warping()),
            budget=budget,
            accept=config.accept,
            eos_ids=self.eos_ids,
            slots=slots,
            max_new_tokens=config.batch.max_new_tokens,
            context_length=self.context_length,
            depth=config.draft.depth,
            prefill_chunk=config.batch.prefill_chunk,
            controls=controls,
            certain=certain,
            stops=self.stops,
            costs=costs,
            timing=self.timing,
        )

    def _controls(self, settings: GenerationSettings) -> list[Control]:
        """What changes the target's scores before tokens are chosen, in order."""
        controls = make_controls(settings, self.eos_ids)
        return [*controls, OwnProcessors(self.processors)] if self.processors else controls

    def _warping(self) -> Warping | None:
        """How tokens are drawn; None where they are not."""
        warmth = self.config.accept.temperature
        return self.resolved.settings.warping(warmth) if warmth > 0 else None

    def _drafter(self, budget: Budget) -> Drafter:
        if self.config.draft.draft == "none":
            return loop.NoDrafter()
        found = PoolDrafter(self.pool if self.config.draft.draft == "pool" else None)
        if self.learned is None:
            return found
        # How long the head took decides what it drafts, which must not change texts.
        strict = self.config.accept.accept == "strict"
        weighs = budget if strict and isinstance(budget, AutoBudget) else None
        rules = self.resolved.settings.score_rules(self.config.accept.temperature)
        return self.learned.drafter(found, weighs, rules)

    def _budget(self, costs: LearningCurve | None) -> Budget:
        wanted = self.config.draft.budget
        if costs is None:
            return FixedBudget(0)
        if wanted != "auto":
            return FixedBudget(wanted)
        # A resumed job has the costs of its manifest and the drafts of the shards before, and no
        # more. Where drafts change texts, what this run learns is for the next to go by.
        if self.config.accept.accept != "strict":
            return AutoBudget(costs.curve)
        return AutoBudget(costs, calibration=self._calibration)


def fingerprint_of(model: PreTrainedModel, tokenizer: Any) -> dict[str, str]:
    """What a run depends on: the model's weights and the tokenizer's vocabulary.

    Ask before the weights are packed, which hides their values.
    """
    return {
        "model": loading.model_fingerprint(model),
        "tokenizer": loading.tokenizer_fingerprint(tokenizer),
    }
