"""Every knob, with its one default. Unknown keys are refused."""

from __future__ import annotations

import json
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

Auto = Literal["auto"]

# Records of a shard whose size is automatic: of the first one where the pool grows by shards, so
# that texts are drafted after a few batches, and of the largest.
_FIRST_RECORDS, MOST_RECORDS = 32, 1024


def not_allowed(error: ValidationError) -> str:
    """What is wrong with the first value that a model refused, for users of Python."""
    first = error.errors()[0]
    message = first["msg"].removeprefix("Value error, ")
    if not first["loc"]:
        return message
    return f"{first['loc'][0]}={first['input']!r} is not allowed: {message[0].lower()}{message[1:]}"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelConfig(_Frozen):
    """How the target model is loaded."""

    model: str
    device: str = Field(default="auto", description="auto, cpu, cuda or cuda:<i>")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    compile: bool = Field(
        default=False, description="torch.compile the model's feed-forward blocks"
    )
    trust_remote_code: bool = Field(
        default=False, description="run Python code that comes with the model"
    )
    threads: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="of the processor's for PyTorch; None: as PyTorch decides"
    )


class AcceptConfig(_Frozen):
    """Which draft tokens are kept, and how the target's own token is chosen."""

    accept: Literal["strict", "relaxed", "typical", "entropy"] = "strict"
    top_k: Annotated[int, Field(ge=1)] = Field(default=2, description="relaxed")
    min_prob: Annotated[float, Field(ge=0.0, le=1.0)] = Field(default=0.1, description="relaxed")
    epsilon: Annotated[float, Field(ge=0.0, le=1.0)] = Field(
        default=0.09, description="typical: a token more probable than this passes anywhere"
    )
    delta: Annotated[float, Field(ge=0.0)] = Field(
        default=0.3, description="typical: or more probable than delta times exp(-entropy)"
    )
    entropy_gate: Annotated[float, Field(ge=0.0, le=1.0)] = Field(
        default=0.3, description="entropy: least share of the highest entropy, log V"
    )
    window: Annotated[int, Field(ge=0)] = Field(
        default=6, description="entropy: own choices that must follow a deviation in the draft"
    )
    temperature: Annotated[float, Field(ge=0.0)] = 0.0
    sample_top_k: Annotated[int, Field(ge=0)] | None = Field(
        default=None, description="0 = off; this and the next: None = the model's own"
    )
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    min_p: Annotated[float, Field(ge=0.0, le=1.0)] | None = None
    typical_p: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    seed: int = 0
    n: Annotated[int, Field(ge=1)] = Field(
        default=1, description="texts per record; several need a temperature above 0"
    )
    eos_guard: bool = Field(
        default=True, description="all but strict: never pass an EOS that is the argmax"
    )
    tie_break: Literal["probable", "first"] = Field(
        default="probable",
        description="all but strict: which of two equally long paths wins; first = the paper's",
    )
    max_deviations: Annotated[int, Field(ge=0)] | None = Field(
        default=None, description="all but strict: most non-argmax tokens per text"
    )
    max_loss: Annotated[float, Field(ge=0.0)] | None = Field(
        default=None, description="all but strict: most nats of log-probability given up per text"
    )

    @model_validator(mode="after")
    def _several_texts_are_drawn(self) -> AcceptConfig:
        if self.n > 1 and self.temperature == 0:
            raise ValueError(
                f"the {self.n} texts of a record (n) would all be the same with temperature 0; set "
                f"a temperature above 0, such as 0.8, or leave n at 1"
            )
        return self


class ControlsConfig(_Frozen):
    """What changes the target's scores before a token is chosen, and what ends texts early.

    None: as the model's own generation_config says, so that every value given here overrides it. A
    token is its id, as digits, or its text: one entry of the vocabulary.
    """

    generation_config: Literal["model", "none"] = Field(
        default="model", description="none: of the model's own settings only the end of text"
    )
    repetition_penalty: Annotated[float, Field(gt=0.0)] | None = Field(
        default=None, description="for every token of prompt and text; 1 = off"
    )
    presence_penalty: float = Field(default=0.0, description="for every token of the text, once")
    frequency_penalty: float = Field(
        default=0.0, description="for every token of the text, as often as it is there"
    )
    no_repeat_ngram_size: Annotated[int, Field(ge=0)] | None = None
    min_new_tokens: Annotated[int, Field(ge=0)] | None = None
    bad_words: tuple[str, ...] | None = Field(default=None, description="texts; () = none")
    logit_bias: tuple[str, ...] | None = Field(default=None, description="TOKEN=BIAS each")
    suppress_tokens: tuple[str, ...] | None = None
    begin_suppress_tokens: tuple[str, ...] | None = Field(
        default=None, description="as the first token of a text"
    )
    forced_bos_token: str | None = Field(
        default=None, description="first token after a prompt of one token"
    )
    forced_eos_token: str | None = Field(
        default=None, description="last token of a text that reaches max_new_tokens"
    )
    stop: tuple[str, ...] | None = Field(
        default=None, description="texts that end a text, and are cut off it"
    )

    @field_validator(
        "bad_words", "logit_bias", "suppress_tokens", "begin_suppress_tokens", "stop", mode="before"
    )
    @classmethod
    def _one_is_one(cls, value: Any) -> Any:
        """A text alone, as OpenAI's API takes it, is one of its kind and no list of letters."""
        return (value,) if isinstance(value, str) else value

    @field_validator("stop")
    @classmethod
    def _not_empty(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if value and "" in value:
            raise ValueError("needs texts of at least one character")
        return value


class DraftConfig(_Frozen):
    """What is drafted and how much of it is verified per forward pass."""

    draft: Literal["pool", "prompt", "none"] = "pool"
    budget: Annotated[int, Field(ge=0, le=4096)] | Auto = Field(
        default="auto",
        description="draft nodes per sequence and forward pass; auto = while they pay",
    )
    depth: Annotated[int, Field(ge=1, le=256)] = Field(
        default=24, description="longest drafted path"
    )


class BatchConfig(_Frozen):
    """How many sequences run together."""

    batch_size: Annotated[int, Field(ge=1)] | Auto = "auto"
    max_new_tokens: Annotated[int, Field(ge=1)] = 512
    prefill_chunk: Annotated[int, Field(ge=1)] = Field(
        default=512, description="most prompt tokens of one sequence computed in one forward pass"
    )


class StructureConfig(_Frozen):
    """The form that every text has, if any, as text: at most one of the three."""

    json_schema: str | None = Field(default=None, description="a JSON schema; a dict is taken too")
    regex: str | None = Field(default=None, description="an expression that whole texts match")
    grammar: str | None = Field(default=None, description="a grammar in Lark's or llama.cpp's form")

    @field_validator("json_schema", mode="before")
    @classmethod
    def _as_text(cls, value: Any) -> Any:
        """One line of JSON, so that blanks are no difference; what is not JSON, as it is."""
        if isinstance(value, str):
            try:
                value = json.loads(value)
            except (ValueError, RecursionError):
                return value
        return json.dumps(value, ensure_ascii=False) if value is not None else None

    @model_validator(mode="after")
    def _one_form(self) -> StructureConfig:
        named = [name for name, text in self if text is not None]
        if len(named) > 1:
            raise ValueError(f"{' and '.join(named)} are two forms; a text has one")
        return self


class GenerateConfig(_Frozen):
    """Everything `Generator` needs to know."""

    target: ModelConfig
    accept: AcceptConfig = AcceptConfig()
    controls: ControlsConfig = ControlsConfig()
    draft: DraftConfig = DraftConfig()
    batch: BatchConfig = BatchConfig()
    structure: StructureConfig = StructureConfig()


class RecordsConfig(_Frozen):
    """Which records are read, and how they become prompts."""

    template: str | None = Field(default=None, description="a framework's name or a Jinja2 file")
    side: Literal["user", "item"] = "user"
    chat: bool | None = Field(
        default=None, description="None: where the tokenizer has a chat template"
    )
    system: str | None = Field(default=None, description="what chats begin with")
    chat_template_kwargs: dict[str, Any] = Field(
        default={}, description="values that the chat template reads, by name"
    )
    chat_date: date | None = Field(
        default=None, description="what the chat template takes for today; None: the job's start"
    )
    special_tokens: Literal["split", "obey"] = Field(
        default="split", description="what their texts in a record are: text, or those tokens"
    )
    id_column: str = "entity_id"
    prompt_column: str = "prompt"
    group_column: str = "group"
    limit: Annotated[int, Field(ge=1)] | None = None
    keep_prompts: bool = Field(default=False, description="write prompts beside the texts")


class JobConfig(_Frozen):
    """Everything that decides what a knowledge-generation job writes, input files apart."""

    generate: GenerateConfig
    records: RecordsConfig = RecordsConfig()
    shard_size: Annotated[int, Field(ge=1)] | Auto = Field(
        default="auto",
        description="records whose texts are written together; auto = 1024, or, where texts join "
        "the pool with their shard, 32 at first, doubling up to that",
    )
    pool_lag: Annotated[int, Field(ge=0)] | Auto = Field(
        default=0,
        description="shards right before a shard whose texts it does not draft from; auto = those "
        "that are not finished when it begins",
    )

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


class RecommendConfig(_Frozen):
    """Everything that decides what is recommended, models and files apart."""

    k: Annotated[int, Field(ge=1)] = Field(default=20, description="items, and beams kept")
    draft_beams: Annotated[int, Field(ge=1)] = Field(default=40, description="N, drafted per level")
    draft_steps: Annotated[int, Field(ge=0)] | Auto = Field(
        default="auto", description="levels drafted per verification; auto = what pays"
    )
    draft_items: Annotated[int, Field(ge=0)] = Field(
        default=16, description="proposed items' rows per level, beside those of a draft model"
    )
    verify: Literal["strict", "relaxed", "sample"] = Field(
        default="strict",
        description="strict: the target's best; sample: an exact sample; relaxed: as published",
    )
    constraint: Literal["trie", "none"] = "trie"
    renormalise: bool = Field(
        default=False, description="log-probabilities of legal tokens only, not the model's own"
    )
    temperature: Annotated[float, Field(gt=0.0)] = 1.0
    seed: int = 0
    batch_size: Annotated[int, Field(ge=1)] = Field(default=32, description="users at once")
    exclude_seen: bool = False


class EncoderConfig(_Frozen):
    """How texts become vectors."""

    device: str = Field(default="auto", description="auto, cpu, cuda or cuda:<i>")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    pooling: Literal["auto", "mean", "last", "cls"] = Field(
        default="auto", description="auto: the encoder's own; last token for decoder-only models"
    )
    normalise: bool | None = Field(
        default=None, description="to length 1; None: as the encoder was published"
    )
    max_tokens: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="tokens per pass, special ones included; None: the model's limit"
    )
    on_overflow: Literal["window", "truncate", "refuse"] = Field(
        default="window", description="what becomes of a text with more tokens than that"
    )
    batch_size: Annotated[int, Field(ge=1)] = 32
    prompt_name: str | None = Field(
        default=None, description="of the encoder's own prompts, the one for such texts"
    )
    prompt: str | None = Field(default=None, description="words that go before every text")
    trust_remote_code: bool = Field(
        default=False, description="run Python code that comes with the encoder"
    )


class EncodeConfig(_Frozen):
    """Everything that decides what an encoding job writes, input files apart."""

    encoder: str
    settings: EncoderConfig = EncoderConfig()
    id_column: str = "entity_id"
    text_column: str = "text"
    history_column: str = "prompt"
    shard_size: Annotated[int, Field(ge=1)] = Field(
        default=4096, description="texts that are written, and resumed from, together"
    )

    @property
    def is_fitted(self) -> bool:
        """Whether the encoder is made from texts, and not loaded."""
        return self.encoder.partition(":")[0] == "hashed"
