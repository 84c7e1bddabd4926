"""From a JSON schema, a regular expression or a grammar, as text, to a compiled grammar."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING, Any, cast
from weakref import WeakKeyDictionary

from draftrec.config import StructureConfig
from draftrec.errors import DraftrecError, needing

if TYPE_CHECKING:
    from draftrec.engine.text.grammar import Grammar

#: JSON as `json.dumps` writes it. Where any blanks may stand, small models go on writing blanks. A
#: schema's own "x-guidance" goes before these.
_LAYOUT: dict[str, Any] = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
}
_ONE_SCHEMA = ("additionalProperties", "items", "contains", "propertyNames", "not", "if", "then")
_NAMED_SCHEMAS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_SCHEMA_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
# Reading a vocabulary takes a second; settings for a single call come and go.
_READ: WeakKeyDictionary[Any, dict[tuple[int, frozenset[int]], Any]] = WeakKeyDictionary()
# Read as tokens by any tokenizer that is read rightly.
_PROBE = '{"a": [1, "é b"]}'


def check_structure(structure: StructureConfig, origin: str | None = None) -> str | None:
    """The grammar in llguidance's own form; None where no form is asked for. Needs no tokenizer.

    Raises DraftrecError for a schema, expression or grammar that is wrong or that llguidance does
    not support, naming the place in `origin` (a file; the setting's name where None), and for a
    missing llguidance.
    """
    if structure.json_schema is not None:
        return _checked_schema(structure.json_schema, origin or "json_schema")
    if structure.regex is None and structure.grammar is None:
        return None
    lib = _llguidance()
    if structure.regex is not None:
        made = lib.LLMatcher.grammar_from_regex(structure.regex)
        origin = origin or "regex"
    else:
        origin = origin or "grammar"
        try:
            made = lib.grammar_from("grammar", cast(str, structure.grammar))
        except ValueError as error:
            raise _wrong(origin, str(error)) from error
    if message := _fault(made, origin):
        raise _wrong(origin, message, placed=structure.regex is None)
    return made


def compile_grammar(
    structure: StructureConfig, tokenizer: Any, vocabulary: int, eos_ids: frozenset[int]
) -> Grammar | None:
    """The grammar over the tokens of a transformers tokenizer; None where no form is asked for.
    Takes a second. `vocabulary`: rows of the model's embedding.

    Raises DraftrecError as `check_structure` does, and for a tokenizer whose tokens cannot be read.
    """
    from draftrec.engine.text.grammar import Grammar

    made = check_structure(structure)
    if made is None:
        return None
    if not eos_ids:
        raise DraftrecError(
            "a text of a given form ends with an end-of-text token, and the model names none; set "
            "eos_token_id in its generation_config.json"
        )
    size = max(vocabulary, len(tokenizer))
    tokens = _tokens(tokenizer, size, eos_ids)
    start = _llguidance().LLMatcher(tokens, made, log_level=0)
    if start.is_error():
        raise _wrong(next(iter(structure.model_fields_set), "grammar"), start.get_error())
    return Grammar(start, size, eos_ids)


def _tokens(tokenizer: Any, size: int, eos_ids: frozenset[int]) -> Any:
    """llguidance's view of a tokenizer, if it has one that is right."""
    _llguidance()
    from llguidance.hf import from_tokenizer

    known = _READ.setdefault(tokenizer, {})
    if (size, eos_ids) in known:
        return known[size, eos_ids]
    kind = type(tokenizer).__name__
    try:
        tokens = from_tokenizer(tokenizer, n_vocab=size, eos_token=sorted(eos_ids))
    except (ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:160]
        raise DraftrecError(
            f"structured output is not available for the model's tokenizer ({kind}: {reason}); use "
            f"a model with a byte-level or byte-fallback BPE tokenizer, or leave the schema out"
        ) from error
    ids = tokenizer(_PROBE, add_special_tokens=False).input_ids
    if tokens.decode_bytes(ids).decode(errors="replace").lstrip() != tokenizer.decode(ids).lstrip():
        raise DraftrecError(
            f"structured output is not available for the model's tokenizer ({kind}): llguidance "
            f"reads its tokens otherwise than it does itself; leave the schema out"
        )
    known[size, eos_ids] = tokens
    return tokens


def _llguidance() -> Any:
    with needing("grammar", "structured output needs llguidance"):
        import llguidance
    return llguidance


def _checked_schema(text: str, origin: str) -> str:
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as error:
        own = "mend it there" if origin != "json_schema" else "give a dict, or a schema as text"
        raise DraftrecError(f"{origin} is not JSON: {error}; {own}") from error
    if not isinstance(schema, dict):
        raise DraftrecError(
            f"{origin} is no JSON schema, which is an object, but {_shown(schema)}; begin with "
            f'{{"type": ...}}'
        )
    try:
        made = _schema_grammar(cast("dict[str, Any]", schema))
    except (ValueError, RecursionError) as error:
        # Of depth and numbers its reader of JSON takes less than Python's; its places are those
        # of a text that users do not see.
        reason = re.sub(r" at line \d+ column \d+$", "", str(error))
        raise DraftrecError(
            f"{origin} cannot be read by llguidance: {reason}; mend it there"
        ) from error
    if message := _fault(made, origin):
        place = _place(cast("dict[str, Any]", schema), message)
        place = "x-guidance" if message.startswith("unknown field") else place
        hint = ""
        if message.startswith("Unimplemented"):
            hint = ', or say "x-guidance": {"lenient": true} in it to have such keys ignored'
        raise DraftrecError(f"{origin}, at {place}: {_reason(message)}; mend it there{hint}")
    return made


def _schema_grammar(schema: dict[str, Any]) -> str:
    matcher = _llguidance().LLMatcher
    return matcher.grammar_from_json_schema(json.dumps(schema), defaults=_LAYOUT)


def _fault(made: str, origin: str) -> str:
    """What llguidance says against a grammar, or notices only once it is asked for a first byte;
    warnings go to the log."""
    lib = _llguidance()
    wrong, messages = lib.LLMatcher.validate_grammar_with_warnings(made)
    if wrong:
        return messages[0]
    for message in messages:
        logging.getLogger("draftrec").warning("%s: %s", origin, _reason(message))
    first = lib.LLMatcher(_bytes(), made, log_level=0)
    first.compute_bitmask()
    return "no text has this form" if first.get_error().startswith("NoExtensionBias") else ""


@cache
def _bytes() -> Any:
    """A tokenizer whose tokens are bytes: for many a form it takes longer to make than the rest."""
    return _llguidance().LLTokenizer("byte")


def _place(schema: dict[str, Any], message: str) -> str:
    """JSON pointer to the smallest part of a schema that has the same fault."""
    shared = {key: schema[key] for key in ("$defs", "definitions", "x-guidance") if key in schema}
    path, smaller = "", True
    while smaller:
        smaller = False
        for pointer, part in _parts(schema):
            if _check(_schema_grammar({**shared, **part})) == message:
                path, schema, smaller = f"{path}/{pointer}", part, True
                break
    return path or "its root"


def _check(made: str) -> str:
    return _llguidance().LLMatcher.validate_grammar(made)


def _parts(schema: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The schemas right inside a schema, with their pointers."""
    found: list[tuple[str, Any]] = [(key, schema.get(key)) for key in _ONE_SCHEMA]
    for key in _NAMED_SCHEMAS:
        inner = schema.get(key)
        if isinstance(inner, dict):
            named = cast("dict[str, Any]", inner).items()
            found += [(f"{key}/{name}", part) for name, part in named]
    for key in _SCHEMA_LISTS:
        inner = schema.get(key)
        if isinstance(inner, list):
            found += [(f"{key}/{i}", part) for i, part in enumerate(cast("list[Any]", inner))]
    for pointer, part in found:
        if isinstance(part, dict):
            yield pointer, cast("dict[str, Any]", part)


def _wrong(origin: str, message: str, *, placed: bool = True) -> DraftrecError:
    """An error from llguidance's message, whose place is worth telling where the text is the
    user's own and not wrapped."""
    place = re.match(r"(?:at )?(\d+)\((\d+)\):", message)
    where = f", line {place[1]} column {place[2]}" if place and placed else ""
    return DraftrecError(f"{origin}{where}: {_reason(message)}; mend it there")


def _reason(message: str) -> str:
    """What is wrong, without drawings and places."""
    if found := re.search(r"^error: (.+)$", message, re.MULTILINE):
        return found[1].rstrip(".")
    first = re.sub(r"^(?:at )?\d+\(\d+\): ", "", message.strip()).splitlines()
    return " ".join((first or ["it is not valid"])[0].split()).rstrip(".")


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:40]}..."
