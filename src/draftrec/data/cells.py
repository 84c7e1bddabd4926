"""Lists that a table without lists wrote as text: `["a", "b"]`, `['a', 'b']`, `['a' 'b']`."""

from __future__ import annotations

import ast
import json
import re
from typing import Any

#: An element as JSON, Python or NumPy prints it, and the comma behind it, which NumPy leaves out.
_ELEMENT = re.compile(
    r"""\s*(?:('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")|([^\s,'"\[\]]+))\s*(,?)\s*""", re.DOTALL
)
_WORDS = {"None": None, "null": None, "nan": None, "NaN": None, "<NA>": None}
_BOOLEANS = {"True": True, "False": False, "true": True, "false": False}


def as_list(value: Any) -> list[Any] | None:
    """The list that a cell is or was written from; None for any other value, texts in brackets
    (`[REC]`) among them. What NumPy shortened with `...` is none either."""
    if isinstance(value, list):
        return value
    text = value.strip() if isinstance(value, str) else ""
    if not (text.startswith("[") and text.endswith("]")):
        return None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = _nested(text) if re.search(r"[{(\[]", text[1:]) else None
        # A flat list is not left to Python, which would join NumPy's 'a' 'b' to 'ab'.
        return found if found is not None else _flat(text[1:-1])
    return found if isinstance(found, list) else None


def _nested(text: str) -> list[Any] | None:
    try:
        found = ast.literal_eval(re.sub(r"\bnan\b", "None", text))
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    ordered = isinstance(found, list) and all(isinstance(e, dict | list | tuple) for e in found)
    return found if ordered else None


def _flat(inner: str) -> list[Any] | None:
    found: list[Any] = []
    place = 0
    while place < len(inner):
        element = _ELEMENT.match(inner, place)
        if element is None:
            return None
        quoted, bare, _ = element.groups()
        try:
            found.append(ast.literal_eval(quoted) if quoted else _bare(bare))
        except (ValueError, SyntaxError):
            return None
        place = element.end()
    return found


def _bare(word: str) -> Any:
    if word in _WORDS:
        return _WORDS[word]
    if word in _BOOLEANS:
        return _BOOLEANS[word]
    try:
        return int(word)
    except ValueError:
        return float(word)
