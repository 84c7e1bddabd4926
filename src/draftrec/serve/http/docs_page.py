"""`GET /docs`: the OpenAPI document as a page that needs no script and no network."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

_METHODS = ("get", "post", "put", "patch", "delete")


@dataclass(frozen=True, slots=True)
class Operation:
    """One route. `fields`: name, kind, meaning and whether it must be given, of the body."""

    method: str
    path: str
    summary: str
    fields: tuple[tuple[str, str, str, bool], ...]
    example: str | None
    curl: str
    answer: str | None
    statuses: tuple[tuple[str, str], ...]


def render_docs(document: dict[str, Any]) -> str:
    """The page of an OpenAPI 3 document."""
    environment = Environment(
        loader=PackageLoader("draftrec.serve.http", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("docs.html.j2").render(
        info=document["info"], operations=operations(document)
    )


def operations(document: dict[str, Any]) -> list[Operation]:
    """All routes of the document, in its order."""
    return [
        _operation(document, method, path, found)
        for path, methods in document["paths"].items()
        for method, found in methods.items()
        if method in _METHODS
    ]


def _operation(
    document: dict[str, Any], method: str, path: str, found: dict[str, Any]
) -> Operation:
    asked = _schema(document, found.get("requestBody", {}))
    answered = _schema(document, found["responses"].get("200", {}))
    example = _example(asked)
    return Operation(
        method.upper(),
        path,
        found.get("description", found.get("summary", "")),
        tuple(_fields(asked)),
        None if example is None else json.dumps(example, indent=2),
        _curl(method, path, example),
        None if (told := _example(answered)) is None else json.dumps(told, indent=2),
        tuple((status, r["description"]) for status, r in found["responses"].items()),
    )


def _schema(document: dict[str, Any], holder: dict[str, Any]) -> dict[str, Any]:
    """The JSON schema of a body, references resolved."""
    schema = holder.get("content", {}).get("application/json", {}).get("schema", {})
    name = schema.get("$ref", "").rpartition("/")[2]
    return document["components"]["schemas"][name] if name else schema


def _example(schema: dict[str, Any]) -> Any:
    return next(iter(schema.get("examples", ())), None)


def _fields(schema: dict[str, Any]) -> list[tuple[str, str, str, bool]]:
    required = schema.get("required", ())
    return [
        (name, _kind(field), field.get("description", ""), name in required)
        for name, field in schema.get("properties", {}).items()
    ]


def _kind(field: dict[str, Any]) -> str:
    """`list of integer`, `KnowledgeRecord`: a word or two for a schema."""
    options = [f for f in field.get("anyOf", (field,)) if f.get("type") != "null"]
    first = options[0]
    if "$ref" in first:
        return first["$ref"].rpartition("/")[2]
    if first.get("type") == "array":
        return f"list of {_kind(first['items'])}"
    return str(first.get("type", "any"))


def _curl(method: str, path: str, example: Any) -> str:
    words = ["curl"]
    if method != "get":
        words.append(f"-X {method.upper()}")
    words.append(f"http://127.0.0.1:8080{path}")
    if example is not None:
        words.append(f"-H 'content-type: application/json' -d '{json.dumps(example)}'")
    return " ".join(words)
