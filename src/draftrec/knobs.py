"""Knobs: what a setting is annotated with, and how others read it off its class.

Every knob has its default, bounds, choices and what it does said once, in `config` and in the
settings of single packages. The command line is made of them; dataclasses are checked by them.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable
from collections.abc import Sequence as Seq
from dataclasses import MISSING, dataclass, fields
from difflib import get_close_matches
from functools import cache
from typing import Any, Literal, cast, get_args, get_origin, get_type_hints

from pydantic import BaseModel, Field, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from draftrec.errors import DraftrecError


def knob(does: str, *, unset: str | None = None, **bounds: float) -> Any:
    """What a setting's type is annotated with: what it `does`, what None stands for (`unset`), and
    its bounds: ge, gt, le, lt."""
    more = {"unset": unset} if unset else None
    return Field(description=does, json_schema_extra=more, **bounds)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Knob:
    """A field of a settings class. `default`: dataclasses.MISSING where a value has to be given.
    `bounds`: whichever of ge, gt, le and lt it has."""

    kind: Any
    default: Any
    does: str
    unset: str | None
    bounds: dict[str, float]

    @property
    def choices(self) -> tuple[str, ...]:
        """What it may be, where that is one of some texts."""
        return get_args(self.kind) if get_origin(self.kind) is Literal else ()


@cache
def knobs(settings: type[Any]) -> dict[str, Knob]:
    """The fields of a settings class by name, be it a pydantic model or a dataclass."""
    if issubclass(settings, BaseModel):
        return {name: _knob(info, info.default) for name, info in settings.model_fields.items()}
    hints = get_type_hints(settings, include_extras=True)
    return {
        it.name: _knob(FieldInfo.from_annotation(hints[it.name]), it.default)
        for it in fields(settings)
    }


def _knob(info: FieldInfo, default: Any) -> Knob:
    parts: tuple[Any, ...] = get_args(info.annotation)
    # Of a number that may also be "auto", bounds are part of the type.
    inner = [note for part in parts for note in getattr(part, "__metadata__", ())]
    inner = [it for note in inner if isinstance(note, FieldInfo) for it in note.metadata]
    bounds: dict[str, float] = {}
    for limit in [*info.metadata, *inner]:
        bounds |= {name: getattr(limit, name) for name in _BOUNDS if hasattr(limit, name)}
    extra: Any = info.json_schema_extra or {}
    needed = default is PydanticUndefined
    does = info.description or ""
    return Knob(info.annotation, MISSING if needed else default, does, extra.get("unset"), bounds)


_BOUNDS = {
    "ge": ("at least", operator.ge),
    "gt": ("above", operator.gt),
    "le": ("at most", operator.le),
    "lt": ("below", operator.lt),
}


def check_knobs(settings: Any) -> None:
    """Raise DraftrecError for the first field of a dataclass whose value its knob does not allow;
    pydantic does so by itself."""
    for name, known in knobs(settings.__class__).items():
        value, option = getattr(settings, name), f"--{name.replace('_', '-')}"
        if known.choices and value not in known.choices:
            choices = ", ".join(known.choices)
            raise DraftrecError(f"{option} must be one of {choices}, not {value!r}")
        check_finite(option, value)
        if value is None or all(_BOUNDS[it][1](value, known.bounds[it]) for it in known.bounds):
            continue
        words = " and ".join(f"{_BOUNDS[it][0]} {at:g}" for it, at in known.bounds.items())
        raise DraftrecError(f"{option} must be {words}, not {value}")


def check_finite(option: str, value: Any) -> None:
    """Raise DraftrecError for infinities and what is no number, alone or among others: without
    bounds nothing else refuses them, and they spoil whatever is computed of them."""
    numbers = cast("Seq[Any]", value if isinstance(value, list | tuple) else [value])
    for number in numbers:
        if isinstance(number, float) and not math.isfinite(number):
            raise DraftrecError(f"{option} must be a finite number, not {number}")


def encodable(value: Any) -> bool:
    """Whether no text in a value, however deep it lies, holds half of a surrogate pair, which JSON
    and shells let through, no file can hold and no tokenizer reads."""
    left = [value]
    while left:
        part = left.pop()
        if isinstance(part, str) and not part.isascii():
            try:
                part.encode()
            except UnicodeEncodeError:
                return False
        elif isinstance(part, dict):
            left += [*part, *part.values()]  # type: ignore[reportUnknownArgumentType]
        elif isinstance(part, list | tuple):
            left += part
    return True


def whole_characters(value: Any) -> Any:
    """The value, if it is `encodable`. Raises ValueError otherwise."""
    if not encodable(value):
        raise ValueError("holds half of a surrogate pair, which is not valid Unicode")
    return value


def unknown_setting(name: str, known: Iterable[str]) -> str:
    """That there is no setting of this name, for users of Python, and what there is."""
    names = sorted(known)
    near = get_close_matches(name, names, n=1)
    meant = f"is {near[0]!r} meant? " if near else ""
    return f"Unknown setting {name!r}; {meant}known are {', '.join(names)}."


def not_allowed(error: ValidationError) -> str:
    """What is wrong with the first value that a model refused, for users of Python."""
    first = error.errors()[0]
    message = first["msg"].removeprefix("Value error, ")
    if not first["loc"]:
        return message
    try:
        given = f"={first['input']!r}"
    except RecursionError:
        given = ""  # lists in lists without end
    return f"{first['loc'][0]}{given} is not allowed: {message[0].lower()}{message[1:]}"
