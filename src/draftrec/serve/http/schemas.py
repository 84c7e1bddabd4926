"""What is asked and answered over HTTP, with examples for the OpenAPI document; and what a client
is told instead of an answer: `{"error": {"code", "message"}}`, and on OpenAI's routes `{"error":
{"message", "type", "param", "code"}}`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    PlainValidator,
    Tag,
    WithJsonSchema,
)

from draftrec.data.tables.columns import is_id
from draftrec.items.ids import is_whole

_INT64 = 2**63
_LONGEST = 512

Name = Annotated[str, Field(min_length=1, max_length=_LONGEST)]


def _id(value: Any) -> int | str:
    """An id as it is. One check for both types, so that what is wrong is said once."""
    if isinstance(value, str):
        if not 0 < len(value) <= _LONGEST or not is_id(value):
            raise ValueError(f"an id must be a text of 1 to {_LONGEST} characters")
    elif not is_whole(value):
        raise ValueError("an id must be a whole number of 64 bits or a text")
    return value


_ID_SCHEMA = {
    "anyOf": [
        {"type": "integer", "minimum": -_INT64, "maximum": _INT64 - 1},
        {"type": "string", "minLength": 1, "maxLength": _LONGEST},
    ]
}
ItemId = Annotated[int | str, PlainValidator(_id), WithJsonSchema(_ID_SCHEMA)]
DeadlineMs = Annotated[int, Field(ge=1, le=3_600_000)]


def _asked(example: dict[str, Any]) -> ConfigDict:
    return ConfigDict(extra="forbid", strict=True, json_schema_extra={"examples": [example]})


def _answered(example: dict[str, Any]) -> ConfigDict:
    return ConfigDict(json_schema_extra={"examples": [example]})


class Wanted(BaseModel):
    """What may be recommended, and how."""

    k: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="how many items; 10 if not said, or as many as there may be"
    )
    allow: list[ItemId] | None = Field(default=None, description="the only items to recommend")
    deny: list[ItemId] | None = Field(
        default=None, description="items not to recommend; unknown ones are ignored"
    )
    deadline_ms: DeadlineMs | None = Field(
        default=None,
        description="answer by then: with what usually follows the history, if the model is not "
        "done (`partial`)",
    )
    skip_unknown: bool = Field(
        default=False,
        description="leave items out of a history that the catalogue does not have, and say which "
        "(`skipped`); otherwise they are refused",
    )


class RecommendRequest(Wanted):
    """Who is recommended for, and what may be recommended."""

    model_config = _asked({"user": 7, "history": [3, 141, 59], "k": 5, "deny": [26]})

    user: ItemId = Field(default=0, description="names the user; seeds sampled answers only")
    history: list[ItemId] = Field(
        description="the user's items, oldest first; may be empty. Answers have ids of this type "
        "where they can"
    )


class RecommendUsersRequest(Wanted):
    """Several users at once. What is said beside `users` holds for those who say nothing else."""

    model_config = _asked(
        {"users": [{"user": 7, "history": [3, 141, 59]}, {"user": 8, "history": [26], "k": 3}]}
    )

    users: Annotated[list[RecommendRequest], Field(min_length=1)]

    def each(self) -> list[RecommendRequest]:
        """The request that every user could have sent alone. A field of null says nothing."""
        shared = {name: getattr(self, name) for name in self.model_fields_set - {"users"}}
        found: list[RecommendRequest] = []
        for user in self.users:
            said = {k for k in user.model_fields_set if getattr(user, k) is not None}
            found.append(user.model_copy(update={k: v for k, v in shared.items() if k not in said}))
        return found


#: What places of errors in a body of several forms begin with.
FORMS = ("(one user)", "(users)")


def _form(body: Any) -> str:
    """Which form a body has, or would have if it had any."""
    names = body if isinstance(body, dict) else getattr(body, "model_fields_set", ())
    return FORMS["users" in names]


RecommendBody = Annotated[
    Annotated[RecommendRequest, Tag(FORMS[0])] | Annotated[RecommendUsersRequest, Tag(FORMS[1])],
    Discriminator(_form),
]


class RecommendedItem(BaseModel):
    """One item. `score`: summed log-probabilities of its semantic id's tokens; in a partial answer
    and for an empty history, the log of the item's share of proposals or of popularity."""

    item: int | str
    score: float
    sid: list[str]


class RecommendAnswer(BaseModel):
    """Best first; fewer than k where fewer may be recommended."""

    model_config = _answered(
        {
            "items": [{"item": 592, "score": -1.25, "sid": ["<a_3>", "<b_9>", "<c_2>", "<d_0>"]}],
            "partial": False,
        }
    )

    items: list[RecommendedItem]
    partial: bool = Field(description="the deadline came before the model's answer")
    skipped: list[int | str] | None = Field(
        default=None, description="items of the history that were left out, with `skip_unknown`"
    )


class UserAnswer(RecommendAnswer):
    """The same of one of several users, by the name that the request has for it."""

    user: int | str | None = None


class RecommendUsersAnswer(BaseModel):
    """In the order of the request's users."""

    users: list[UserAnswer]


class KnowledgeRecord(BaseModel):
    """One prompt. `group`: whose pool is drafted from as well."""

    model_config = ConfigDict(extra="forbid", strict=True)

    entity_id: Name
    prompt: Annotated[str, Field(min_length=1)]
    group: Name | None = None


class KnowledgeRequest(BaseModel):
    """Texts to write."""

    model_config = _asked(
        {"records": [{"entity_id": "reader-7", "prompt": "A reader enjoyed these books: ..."}]}
    )

    records: Annotated[list[KnowledgeRecord], Field(min_length=1)]
    deadline_ms: DeadlineMs | None = Field(
        default=None, description="answer by then with the texts so far"
    )


class KnowledgeText(BaseModel):
    """One text. `deadline`: it is what there was by then, possibly nothing."""

    entity_id: str
    text: str
    finish_reason: Literal["eos", "length", "stop", "deadline"]


class KnowledgeAnswer(BaseModel):
    """In the order of the records."""

    model_config = _answered(
        {
            "texts": [
                {
                    "entity_id": "reader-7",
                    "text": "This reader likes long journeys.",
                    "finish_reason": "eos",
                }
            ]
        }
    )

    texts: list[KnowledgeText]


class Status(BaseModel):
    """How the service is."""

    status: str


class ReloadAnswer(BaseModel):
    """What is in use now."""

    items: int | None = Field(default=None, description="items of the catalogue")
    pool_texts: int | None = Field(default=None, description="texts of the pool")


class ErrorDetail(BaseModel):
    """`code` is a word for programs, `message` a sentence for people."""

    code: str
    message: str


class ErrorAnswer(BaseModel):
    """Every answer that is no 2xx."""

    model_config = _answered(
        {"error": {"code": "queue_full", "message": "too many requests wait; try again in 2 s"}}
    )

    error: ErrorDetail


_CODES = {400: "bad_request", 404: "not_found", 405: "method_not_allowed"}
#: Routes that answer as OpenAI's do.
OPENAI_ROUTES = ("/v1/models", "/v1/completions", "/v1/chat/completions")
#: What checks say of a body that is another JSON value, or was not read as JSON.
_NO_OBJECT = {"model_attributes_type", "model_type", "dict_type"}
_FORM = re.compile(r"constrained-\w+|(list|function-\w+)\[.*\]")
_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """Ends a request with `status` and one sentence. `code` is a word for programs; `param`: the
    field that is wrong."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        headers: Mapping[str, str] | None = None,
        param: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.param = status, code, message, param
        self.headers = dict(headers or {})

    def answer(self, route: str) -> tuple[int, bytes]:
        """Status and body as the route tells of errors. ASCII only, so that nothing of a strange
        request can break it."""
        if route not in OPENAI_ROUTES:
            told = {"code": self.code, "message": self.message}
            return self.status, json.dumps({"error": told}).encode()
        status = 400 if self.status == 422 else self.status
        usual = "server_error" if status >= 500 else "invalid_request_error"
        told = {
            "message": self.message,
            "type": _TYPES.get(status, usual),
            "param": self.param,
            "code": self.code,
        }
        return status, json.dumps({"error": told}).encode()


class ClientGoneError(Exception):
    """The client hung up; nobody is there to be answered."""


def of_status(status: int, detail: str) -> ApiError:
    """An error that the web framework found."""
    return ApiError(status, _CODES.get(status, "refused"), detail)


def of_validation(errors: Sequence[Mapping[str, Any]]) -> ApiError:
    """The first thing that is wrong with a request's body, and where it is."""
    first = _closest(errors)
    if first["type"] == "json_invalid":
        reason = str(first.get("ctx", {}).get("error", "it cannot be parsed"))
        return ApiError(400, "invalid_json", f"the body is not JSON: {reason}")
    extra = first["type"] == "extra_forbidden"
    parts = [str(part) for part in first["loc"][1:] if not _is_form(part)]
    if parts[:1] and parts[0] in FORMS and len(parts) > extra:  # a field may have any name
        del parts[0]
    place = ".".join(parts)
    if not place and first["type"] in _NO_OBJECT:
        message = "the body must be a JSON object, sent with content-type: application/json"
    elif extra:
        message = f"unknown field {place}; leave it out, or correct its spelling"
    else:
        reason = first["msg"].removeprefix("Value error, ")
        field, told, _ = reason.partition(": ")
        if told and field.isidentifier() and not place:  # what fields say of each other
            place, message = field, reason
        else:
            message = f"{place or 'body'}: {reason}"
    return ApiError(422, "invalid_request", message, param=place or None)


def _closest(errors: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The first error. Of a value that may have several forms there is one for each form: that of
    the form which it has, whose types are right the furthest into it."""
    first = errors[0]
    at = next((i for i, part in enumerate(first["loc"]) if _is_form(part)), None)
    if at is None:
        return first
    same = [e for e in errors if e["loc"][:at] == first["loc"][:at]]
    return max(same, key=lambda e: (not e["type"].endswith("_type"), len(e["loc"])))


def _is_form(part: object) -> bool:
    """Is it pydantic's name for one of the forms of a value, and no place in it?"""
    return isinstance(part, str) and _FORM.fullmatch(part) is not None


def rate_limited(seconds: int) -> ApiError:
    """The caller asks faster than it may."""
    message = f"too many requests; try again in {seconds} s"
    return ApiError(429, "rate_limited", message, retry(seconds))


def retry(seconds: int) -> dict[str, str]:
    """The header that says when to come back."""
    return {"retry-after": str(seconds)}
