"""What a client is told instead of an answer: `{"error": {"code", "message"}}`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

_CODES = {400: "bad_request", 404: "not_found", 405: "method_not_allowed"}


class ApiError(Exception):
    """Ends a request with `status` and one sentence. `code` is a word for programs."""

    def __init__(
        self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message
        self.headers = dict(headers or {})

    def body(self) -> bytes:
        """The answer's body. ASCII only, so that nothing of a strange request can break it."""
        return json.dumps({"error": {"code": self.code, "message": self.message}}).encode()


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
    place = ".".join(str(part) for part in first["loc"][1:])
    if first["type"] == "extra_forbidden":
        message = f"unknown field {place}; leave it out, or correct its spelling"
    else:
        message = f"{place or 'body'}: {first['msg'].removeprefix('Value error, ')}"
    return ApiError(422, "invalid_request", message)


def retry(seconds: int) -> dict[str, str]:
    """The header that says when to come back."""
    return {"retry-after": str(seconds)}
