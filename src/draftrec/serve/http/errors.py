"""What a client is told instead of an answer: `{"error": {"code", "message"}}`, and on OpenAI's
routes `{"error": {"message", "type", "param", "code"}}`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from draftrec.serve.http.schemas import FORMS

_CODES = {400: "bad_request", 404: "not_found", 405: "method_not_allowed"}
#: Routes that answer as OpenAI's do.
OPENAI_ROUTES = ("/v1/models", "/v1/completions", "/v1/chat/completions")
#: What checks say of a body that is another JSON value, or was not read as JSON.
_NO_OBJECT = {"model_attributes_type", "model_type", "dict_type"}
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
    first = errors[0]
    if first["type"] == "json_invalid":
        reason = str(first.get("ctx", {}).get("error", "it cannot be parsed"))
        return ApiError(400, "invalid_json", f"the body is not JSON: {reason}")
    extra = first["type"] == "extra_forbidden"
    parts = [str(part) for part in first["loc"][1:]]
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


def rate_limited(seconds: int) -> ApiError:
    """The caller asks faster than it may."""
    message = f"too many requests; try again in {seconds} s"
    return ApiError(429, "rate_limited", message, retry(seconds))


def retry(seconds: int) -> dict[str, str]:
    """The header that says when to come back."""
    return {"retry-after": str(seconds)}
