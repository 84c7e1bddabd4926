"""Settings of writing texts, and what settings are made of."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import date
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from draftrec.errors import DraftrecError
from draftrec.knobs import knob, not_allowed, unknown_setting, whole_characters

Auto = Literal["auto"]

# Records of a shard whose size is automatic: of the first one where the pool grows by shards, so
# that texts are drafted after a few batches, and of the largest.
_FIRST_RECORDS, MOST_RECORDS = 32, 1024

Device = Annotated[str, knob("auto, cpu, cuda or cuda:N.")]
Dtype = Annotated[
    Literal["auto", "float32", "bfloat16", "float16"],
    knob(
        "Precision of the weights; auto: as stored; on CPU float32, but for bfloat16 weights of a "
        "generating model where the processor multiplies them natively."
    ),
]
Depth = Annotated[int, knob("Longest drafted continuation.", ge=1, le=256)]
IdColumn = Annotated[str, knob("Column of the entity ids.")]
Size = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Side = Literal["user", "item"]


class Frozen(BaseModel):
    """Settings: nothing is changed, nothing unknown is taken, and numbers are finite ones."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def _under_new_names(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by the names that fields have: `pass` is a word of Python's, and `compile` is what
    frozen passes were called before."""
    found = {("pass_" if name == "pass" else name): value for name, value in settings.items()}
    if found.pop("compile", False):
        found.setdefault("pass_", "frozen")
    return found


class ModelConfig(Frozen):
    """How the target model is loaded."""

    model: Annotated[
        str, knob("Target model: a folder, a .gguf file or a Hugging Face Hub id. Required.")
    ]
    device: Device = "auto"
    dtype: Dtype = "auto"
    kv_dtype: Annotated[
        Literal["auto", "model"],
        knob(
            "Precision of cached keys and values; auto: as the weights where that loses nothing "
            "and on GPUs, else float32; model: as the weights."
        ),
    ] = "auto"
    exact: Annotated[
        bool,
        knob("Let strict texts be plain decoding's bit for bit, at whatever precision."),
    ] = False
    pass_: Annotated[
        Literal["auto", "eager", "frozen"],
        knob(
            "How passes over the model run; frozen: small ones compiled whole, on GPUs replayed as "
            "graphs; auto: frozen on GPUs, on CPU by hand where the architecture has that."
        ),
    ] = "auto"
    drafter: Annotated[
        str | None,
        knob("Learned drafter to draft with as well, of `draftrec drafter fit` for this model."),
    ] = None
    trust_remote_code: Annotated[bool, knob("Run Python code that comes with the model.")] = False
    threads: Annotated[
        Size | None,
        knob(
            "Threads of the processor's for PyTorch.",
            unset="OMP_NUM_THREADS, or the cores that the process may use",
        ),
    ] = None

    @model_validator(mode="after")
    def _attention_by_row(self) -> ModelConfig:
        other = "exact" if self.exact else "pass frozen" if self.pass_ == "frozen" else None
        if other and self.kv_dtype == "model":
            raise ValueError(
                f"{other} and kv_dtype model exclude each other, since attention by rows is "
                f"float32's on CPU; leave one of them out"
            )
        return self


class AcceptConfig(Frozen):
    """Which draft tokens are kept, and how the target's own token is chosen."""

    accept: Annotated[
        Literal["strict", "relaxed", "typical", "entropy"],
        knob(
            "strict keeps the model's own text; relaxed, typical and entropy keep further drafts, "
            "each in its way (below)."
        ),
    ] = "strict"
    top_k: Annotated[
        int, knob("Relaxed: accept among the model's K most probable tokens.", ge=1)
    ] = 2
    min_prob: Annotated[float, knob("Relaxed: accept from this probability on.", ge=0, le=1)] = 0.1
    epsilon: Annotated[float, knob("Typical: accept above this probability.", ge=0, le=1)] = 0.09
    delta: Annotated[float, knob("Typical: or above DELTA times exp(-entropy).", ge=0)] = 0.3
    entropy_gate: Annotated[
        float, knob("Entropy: take drafts from this share of the highest entropy on.", ge=0, le=1)
    ] = 0.3
    window: Annotated[
        int, knob("Entropy: own tokens of the model that must follow a deviation.", ge=0)
    ] = 6
    temperature: Annotated[float, knob("0 is greedy; above it, sample.", ge=0)] = 0.0
    sample_top_k: Annotated[
        Count | None,
        knob("Sample among the K most probable tokens.", unset="the model's own"),
    ] = None
    top_p: Annotated[
        float | None,
        knob("Sample within this share of probability.", unset="the model's own", gt=0, le=1),
    ] = None
    min_p: Annotated[
        float | None,
        knob("Sample from this share of the first token's probability on.", ge=0, le=1),
    ] = None
    typical_p: Annotated[
        float | None,
        knob("Sample among the tokens nearest to the expected surprise.", gt=0, le=1),
    ] = None
    seed: Annotated[int, knob("Seed of the sampling.")] = 0
    n: Annotated[
        int, knob("Texts of each record, numbered in a column `sample` if several.", ge=1)
    ] = 1
    eos_guard: Annotated[bool, knob("Not strict: end where the model would end.")] = True
    tie_break: Annotated[  # first: as published
        Literal["probable", "first"], knob("Not strict: which of two equally long paths wins.")
    ] = "probable"
    deviate_to: Annotated[
        Literal["any", "known"],
        knob(
            "Not strict: what may stand in place of the model's first token; known: only tokens "
            "that the prompt or the text has already."
        ),
    ] = "any"
    max_deviations: Annotated[
        Count | None, knob("Not strict: most tokens per text that are not the model's first.")
    ] = None
    max_loss: Annotated[
        float | None,
        knob("Not strict: most log-probability (nats) given up per text.", ge=0),
    ] = None

    @model_validator(mode="after")
    def _several_texts_are_drawn(self) -> AcceptConfig:
        if self.n > 1 and self.temperature == 0:
            raise ValueError(
                f"the {self.n} texts of a record (n) would all be the same with temperature 0; set "
                f"a temperature above 0, such as 0.8, or leave n at 1"
            )
        return self


class ControlsConfig(Frozen):
    """What changes the target's scores before a token is chosen, and what ends texts early.

    None: as the model's own generation_config says, so that every value given here overrides it. A
    token is its id, as digits, or its text: one entry of the vocabulary.
    """

    generation_config: Annotated[  # none: of the model's own settings only the end of text
        Literal["model", "none"],
        knob("Whether the model's own generation_config.json is honoured."),
    ] = "model"
    repetition_penalty: Annotated[
        float | None, knob("Of tokens of prompt and text; 1 is off.", gt=0)
    ] = None
    presence_penalty: Annotated[float, knob("Taken off tokens that the text has.")] = 0.0
    frequency_penalty: Annotated[float, knob("The same, as often as it has them.")] = 0.0
    no_repeat_ngram_size: Annotated[
        Count | None, knob("No N tokens in a row twice in prompt and text; 0 is off.")
    ] = None
    min_new_tokens: Annotated[Count | None, knob("No end of text before.")] = None
    bad_words: Annotated[
        tuple[str, ...] | None, knob("Texts that must not be written; () is none.")
    ] = None
    logit_bias: Annotated[
        tuple[str, ...] | None, knob("Added to a token's score; repeatable, -inf forbids.")
    ] = None
    suppress_tokens: Annotated[tuple[str, ...] | None, knob("Never written; repeatable.")] = None
    begin_suppress_tokens: Annotated[
        tuple[str, ...] | None, knob("Never written first; repeatable.")
    ] = None
    forced_bos_token: Annotated[str | None, knob("First after a prompt of one token.")] = None
    forced_eos_token: Annotated[str | None, knob("Last of a text that reaches its limit.")] = None
    stop: Annotated[tuple[str, ...] | None, knob("Ends a text, and is cut off it; repeatable.")] = (
        None
    )

    @field_validator(
        "bad_words", "logit_bias", "suppress_tokens", "begin_suppress_tokens", "stop", mode="before"
    )
    @classmethod
    def _one_is_one(cls, value: Any) -> Any:
        """A text alone, as OpenAI's API takes it, is one of its kind and no list of letters."""
        return (value,) if isinstance(value, str) else value

    _whole = field_validator("*")(whole_characters)

    @field_validator("stop")
    @classmethod
    def _not_empty(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if value and "" in value:
            raise ValueError("needs texts of at least one character")
        return value


class DraftConfig(Frozen):
    """What is drafted and how much of it is verified per forward pass."""

    draft: Annotated[
        Literal["pool", "prompt", "none"],
        knob("Draft from a pool of texts, the prompt alone, or nothing (the baseline)."),
    ] = "pool"
    budget: Annotated[
        Annotated[int, Field(ge=0, le=4096)] | Auto,
        knob("Draft tokens per text and pass; auto: while they pay."),
    ] = "auto"
    depth: Depth = 24


class BatchConfig(Frozen):
    """How many sequences run together."""

    batch_size: Annotated[Size | Auto, knob("Texts written together; auto: what memory holds.")] = (
        "auto"
    )
    max_new_tokens: Annotated[int, knob("Longest text.", ge=1)] = 512
    prefill_chunk: Annotated[int, knob("Most prompt tokens computed in one pass.", ge=1)] = 512


class StructureConfig(Frozen):
    """The form that every text has, if any, as text: at most one of the three."""

    json_schema: Annotated[str | None, knob("A JSON schema; a dict is taken too.")] = None
    regex: Annotated[str | None, knob("Write texts that match this as a whole.")] = None
    grammar: Annotated[str | None, knob("A grammar in Lark's or llama.cpp's form.")] = None

    @field_validator("json_schema", mode="before")
    @classmethod
    def _as_text(cls, value: Any) -> Any:
        """One line of JSON, so that blanks are no difference; a text that is not JSON, as it is."""
        if isinstance(value, str):
            try:
                value = json.loads(value)
            except (ValueError, RecursionError):
                return value
        if value is None:
            return None
        try:
            return json.dumps(value, ensure_ascii=False, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"cannot be written as JSON: {error}") from error

    _whole = field_validator("*")(whole_characters)

    @model_validator(mode="after")
    def _one_form(self) -> StructureConfig:
        named = [name for name, text in self if text is not None]
        if len(named) > 1:
            raise ValueError(f"{' and '.join(named)} are two forms; a text has one")
        return self


class GenerateConfig(Frozen):
    """Everything `Generator` needs to know."""

    target: ModelConfig
    accept: AcceptConfig = AcceptConfig()
    controls: ControlsConfig = ControlsConfig()
    draft: DraftConfig = DraftConfig()
    batch: BatchConfig = BatchConfig()
    structure: StructureConfig = StructureConfig()


class RecordsConfig(Frozen):
    """Which records are read, and how they become prompts."""

    template: Annotated[
        str | None,
        knob("kar, trawl, once, rlmrec, or a Jinja2 file; without it a `prompt` column."),
    ] = None
    side: Annotated[Side, knob("Which side a framework's template describes.")] = "user"
    chat: Annotated[
        bool | None,
        knob("Wrap prompts in the tokenizer's chat template.", unset="where it has one"),
    ] = None
    system: Annotated[str | None, knob("What chats begin with: a system message.")] = None
    chat_template_kwargs: Annotated[
        dict[str, Any],
        knob('Values that the chat template reads: {"enable_thinking": false}.'),
    ] = {}
    chat_date: Annotated[
        date | None,
        knob(
            "The date for a chat template that writes one.", unset="the day when the run was begun"
        ),
    ] = None
    special_tokens: Annotated[
        Literal["split", "obey"],
        knob(
            "What texts of special tokens in records (<|im_end|> in a title) are: split, text like "
            "any other; obey, those tokens."
        ),
    ] = "split"
    id_column: IdColumn = "entity_id"
    prompt_column: Annotated[str, knob("Column of the prompts.")] = "prompt"
    group_column: Annotated[str, knob("Column of the groups, if there is one.")] = "group"
    limit: Annotated[Size | None, knob("Only the first N records.")] = None
    keep_prompts: Annotated[bool, knob("Write the prompts beside the texts.")] = False

    _whole = field_validator("system", "chat_template_kwargs")(whole_characters)


class JobConfig(Frozen):
    """Everything that decides what a knowledge-generation job writes, input files apart."""

    generate: GenerateConfig
    records: RecordsConfig = RecordsConfig()
    shard_size: Annotated[
        Size | Auto,
        knob(
            "Records whose texts are written together; auto: 1024, or growing up to that where "
            "texts join the pool with their shard (other than strict)."
        ),
    ] = "auto"
    pool_lag: Annotated[
        Count | Auto,
        knob(
            "Shards right before a shard whose texts it does not draft from, so that they may be "
            "under way together; auto: strict, those not finished yet; others 0, or twice the "
            "workers with Ray."
        ),
    ] = 0

    @property
    def joins_at_once(self) -> bool:
        """Whether finished texts join the pool at once: drafts do not change strict ones. Others
        join with their shard, so that what a text drafts from is known."""
        return self.generate.accept.accept == "strict"

    def records_of_shard(self, index: int) -> int:
        """How many records shard `index` takes, counted from 0: a matter of settings alone."""
        if self.shard_size != "auto":
            return self.shard_size
        if self.joins_at_once or self.generate.draft.draft != "pool":
            return MOST_RECORDS
        # As many shards as are under way together have the same size.
        lag = 0 if self.pool_lag == "auto" else self.pool_lag
        doublings = index // (1 + lag)
        return min(MOST_RECORDS, _FIRST_RECORDS << min(doublings, 16))


def make_config(model: str, **settings: Any) -> GenerateConfig:
    """A configuration from flat settings. Raises DraftrecError naming one that is unknown or not
    allowed."""
    return with_values(GenerateConfig(target=ModelConfig(model=model)), settings)


def with_values(config: GenerateConfig, settings: Mapping[str, Any]) -> GenerateConfig:
    """The configuration with other values of the named settings. Raises as `make_config`."""
    settings = _under_new_names(settings)
    groups: dict[str, BaseModel] = {n: getattr(config, n) for n in GenerateConfig.model_fields}
    changed: dict[str, dict[str, Any]] = {}
    for key, value in settings.items():
        home = next((n for n, g in groups.items() if key in type(g).model_fields), None)
        if home is None:
            known = (name for group in groups.values() for name in type(group).model_fields)
            raise DraftrecError(unknown_setting(key, known))
        changed.setdefault(home, {})[key] = value
    try:
        made = {n: type(groups[n])(**{**dict(groups[n]), **v}) for n, v in changed.items()}
    except ValidationError as error:
        raise DraftrecError(not_allowed(error)) from error
    return config.model_copy(update=made)
