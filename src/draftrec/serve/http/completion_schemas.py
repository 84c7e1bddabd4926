"""What is asked and answered on OpenAI's routes: their fields, and ours under `draftrec`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from draftrec.knobs import whole_characters
from draftrec.serve.http.schemas import DeadlineMs, Name

_INT64 = 2**63
#: Fields that change no text: of whoever is billed, and where answers are kept.
_HARMLESS = {
    "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key",
    "prompt_cache_retention", "parallel_tool_calls",
}  # fmt: skip
#: Fields of things that there are not here, and the values that ask for nothing.
_ABSENT: dict[str, tuple[Any, ...]] = {
    "echo": (False,),
    "suffix": ("",),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "web_search_options": (),
    "reasoning_effort": (),
    "verbosity": (),
}
#: The same of a turn: what OpenAI's client writes beside an answer that is sent back.
_ABSENT_OF_TURNS: dict[str, tuple[Any, ...]] = {
    "annotations": ([],),
    "audio": (),
    "function_call": (),
    "tool_calls": ([],),
}

Penalty = Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)]
Share = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
Whole = Annotated[str, AfterValidator(whole_characters)]
Text = Annotated[str, Field(min_length=1)]
TokenIds = Annotated[
    list[Annotated[int, Field(ge=0, lt=2**31)]], Field(min_length=1, title="token ids")
]
Texts = Annotated[list[Text], Field(min_length=1)]


class StreamOptions(BaseModel):
    """`include_usage`: a last event says how many tokens there were."""

    model_config = ConfigDict(extra="ignore", strict=True)

    include_usage: bool = False


class NamedSchema(BaseModel):
    """A JSON schema; every text keeps to it, whatever `strict` says."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: str = ""
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(BaseModel):
    """The form of the texts: any, a JSON object, or JSON that keeps to a schema."""

    model_config = ConfigDict(extra="forbid", strict=True)

    type: Literal["text", "json_object", "json_schema"]
    json_schema: NamedSchema | None = None

    @model_validator(mode="after")
    def _a_schema_where_one_is_named(self) -> ResponseFormat:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("type json_schema comes with json_schema, and nothing else does")
        return self

    def settings(self) -> dict[str, Any]:
        """As settings of a text's structure."""
        if self.type == "text":
            return {}
        schema = {"type": "object"} if self.json_schema is None else self.json_schema.schema_
        return {"json_schema": json.dumps(schema), "regex": None, "grammar": None}


class Extensions(BaseModel):
    """What OpenAI's API has no words for. `draft`: whether to draft at all; `acceptance` None: as
    the service is set."""

    model_config = ConfigDict(extra="forbid", strict=True)

    entity_id: Name | None = Field(
        default=None, description="whose text it is; with the seed it decides what is drawn"
    )
    group: Name | None = Field(default=None, description="whose pool is drafted from as well")
    acceptance: Literal["strict", "relaxed", "typical", "entropy"] | None = None
    draft: bool = True
    deadline_ms: DeadlineMs | None = Field(
        default=None, description="answer by then with the text so far"
    )


class Sampled(BaseModel):
    """What both kinds of request have."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str | None = Field(default=None, description="one that /v1/models names")
    n: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="texts of each prompt; several need a temperature above 0"
    )
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = Field(
        default=None, description="0 is greedy; as the service is set if not said"
    )
    top_p: Share | None = None
    top_k: Annotated[int, Field(ge=1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=10, allow_inf_nan=False)] | None = None
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)]] | None = (
        Field(default=None, max_length=1024, description="added to scores, by token id")
    )
    stop: Text | Annotated[list[Text], Field(max_length=4)] | None = None
    seed: Annotated[int, Field(ge=-_INT64, lt=_INT64)] | None = Field(
        default=None, description="equal seeds give equal texts; a new one if not said"
    )
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    draftrec: Extensions = Extensions()

    @model_validator(mode="before")
    @classmethod
    def _what_is_not_here(cls, values: Any) -> Any:
        """Leave out what changes nothing, and say what there is not."""
        known = _without(values, _ABSENT)
        if not isinstance(known, dict):
            return known
        return {k: v for k, v in known.items() if k not in _HARMLESS}

    @model_validator(mode="after")
    def _streamed(self) -> Sampled:
        if self.stream_options and not self.stream:
            raise ValueError("stream_options: only with stream")
        return self

    @property
    def given_tokens(self) -> tuple[str, int] | None:
        """The field that bounds new tokens, and the bound, if one was given."""
        return None if self.max_tokens is None else ("max_tokens", self.max_tokens)

    @property
    def most_tokens(self) -> int | None:
        """Most new tokens of each text; None: as many as the service writes."""
        return self.given_tokens[1] if self.given_tokens else None

    @property
    def likeliest(self) -> int | None:
        """Of how many likely tokens log-probabilities are wanted; None: of no token at all."""
        raise NotImplementedError

    def settings(self, temperature: float) -> dict[str, Any]:
        """As settings of generation by name; `temperature`: the service's own."""
        found: dict[str, Any] = {}
        warmth = temperature if self.temperature is None else self.temperature
        named: dict[str, Any] = {
            "temperature": self.temperature,
            "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty,
            "repetition_penalty": self.repetition_penalty,
            "accept": self.draftrec.acceptance,
        }
        if warmth > 0:
            named |= {"top_p": self.top_p, "sample_top_k": self.top_k, "min_p": self.min_p}
        found |= {name: value for name, value in named.items() if value is not None}
        if self.stop is not None:
            found["stop"] = [self.stop] if isinstance(self.stop, str) else self.stop
        if self.logit_bias:
            found["logit_bias"] = [f"{token}={bias}" for token, bias in self.logit_bias.items()]
        return found | (self.response_format.settings() if self.response_format else {})


def _without(values: Any, absent: Mapping[str, tuple[Any, ...]]) -> Any:
    """An object without fields that ask for nothing. Raises ValueError where one asks for what
    there is not."""
    if not isinstance(values, dict):
        return values
    for name, nothing in absent.items():
        if values.get(name) is not None and values[name] not in nothing:
            raise ValueError(f"{name}: there is no such thing here; leave it out")
    return {k: v for k, v in values.items() if k not in absent}


def _asked(example: dict[str, Any]) -> dict[str, Any]:
    return {"json_schema_extra": {"examples": [example]}}


class CompletionRequest(Sampled):
    """Texts that go on from prompts, which are sent as they are; special tokens in them act."""

    model_config = ConfigDict(
        **Sampled.model_config, **_asked({"prompt": "A reader enjoyed", "max_tokens": 16})
    )  # type: ignore[typeddict-item]

    prompt: Text | TokenIds | Texts | Annotated[list[TokenIds], Field(min_length=1)]
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = Field(
        default=None, description="log-probabilities of the tokens, and of so many likely ones"
    )
    best_of: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="as n, or not at all"
    )

    @model_validator(mode="after")
    def _all_are_given(self) -> CompletionRequest:
        if self.best_of not in (None, self.n or 1):
            raise ValueError("best_of: all texts that are written are given; ask for n instead")
        return self

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        """One or several, as they came."""
        alone = isinstance(self.prompt, str) or isinstance(self.prompt[0], int)
        return [self.prompt] if alone else self.prompt  # type: ignore[return-value, list-item]

    @property
    def most_tokens(self) -> int | None:
        return self.max_tokens or 16  # OpenAI's own

    @property
    def likeliest(self) -> int | None:
        return self.logprobs


class Part(BaseModel):
    """Of a message: text alone."""

    model_config = ConfigDict(extra="forbid", strict=True)

    type: Literal["text"]
    text: Whole


class Message(BaseModel):
    """One turn; texts of special tokens in it are text."""

    model_config = ConfigDict(extra="forbid", strict=True)

    role: Literal["system", "developer", "user", "assistant"]
    content: Whole | list[Part]
    name: str | None = None
    refusal: None = None

    @model_validator(mode="before")
    @classmethod
    def _what_is_not_here(cls, values: Any) -> Any:
        return _without(values, _ABSENT_OF_TURNS)

    def turn(self) -> dict[str, str]:
        """As chat templates read it."""
        content = self.content
        text = content if isinstance(content, str) else "".join(part.text for part in content)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class ChatRequest(Sampled):
    """What comes next in a conversation."""

    model_config = ConfigDict(
        **Sampled.model_config,
        **_asked({"messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 16}),
    )  # type: ignore[typeddict-item]

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    chat_template_kwargs: Annotated[dict[str, Any], AfterValidator(whole_characters)] = Field(
        default={}, description="values that the chat template reads"
    )

    @model_validator(mode="after")
    def _likeliest_of_some(self) -> ChatRequest:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs: only with logprobs")
        return self

    @property
    def given_tokens(self) -> tuple[str, int] | None:
        newer = self.max_completion_tokens
        return super().given_tokens if newer is None else ("max_completion_tokens", newer)

    @property
    def likeliest(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None


class ModelCard(BaseModel):
    """What `model` may name. `max_model_len`: tokens of prompt and text together."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "draftrec"
    max_model_len: int


class ModelList(BaseModel):
    """All that write texts here."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class Usage(BaseModel):
    """Tokens of all prompts and all texts, ends included."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class TextFacts(BaseModel):
    """What one text cost. `finish_reason`: ours, which tells an end of text from a stop string."""

    index: int
    finish_reason: Literal["eos", "length", "stop", "deadline"]
    target_calls: int
    drafted_tokens: int
    accepted_tokens: int
    relaxed_tokens: int


class Facts(BaseModel):
    """What OpenAI's answers have no place for. `seed`: with it the same request gives the same
    texts."""

    seed: int
    texts: list[TextFacts]


class _Choice(BaseModel):
    index: int
    logprobs: dict[str, Any] | None = None
    finish_reason: Literal["stop", "length"]


class _Answer(BaseModel):
    id: str
    created: int
    model: str
    usage: Usage
    draftrec: Facts


class CompletionChoice(_Choice):
    """One text."""

    text: str


class CompletionAnswer(_Answer):
    """n texts of each prompt, prompt by prompt."""

    object: Literal["text_completion"] = "text_completion"
    choices: list[CompletionChoice]


class Said(BaseModel):
    """The model's turn."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class ChatChoice(_Choice):
    """One way in which it goes on."""

    message: Said


class ChatAnswer(_Answer):
    """n of them."""

    object: Literal["chat.completion"] = "chat.completion"
    choices: list[ChatChoice]
