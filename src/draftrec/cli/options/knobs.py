"""Options as fields of a command's dataclass: made of a setting, which has type, default, bounds
and help (`option_of`), or of their own (`option`, `argument`); and settings made of them again."""

from __future__ import annotations

import copy
import dataclasses
import types
from collections.abc import Callable
from datetime import date
from enum import StrEnum
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import typer
from pydantic import ValidationError

from draftrec.cli.options.places import Where
from draftrec.errors import DraftrecError
from draftrec.knobs import knobs

#: Headings of `--help`, in the order in which commands show them; options without one come first.
PANELS = (
    COLUMNS_PANEL,
    PROMPTS_PANEL,
    SAMPLES_PANEL,
    HISTORIES_PANEL,
    TRIALS_PANEL,
    LIMITS_PANEL,
    DRAFTING_PANEL,
    SEARCH_PANEL,
    ACCEPTANCE_PANEL,
    SAMPLING_PANEL,
    CONTROLS_PANEL,
    OBJECTIVE_PANEL,
    TRAINING_PANEL,
    MODEL_PANEL,
    OUTPUT_PANEL,
    CLUSTER_PANEL,
    MESSAGES_PANEL,
) = (
    "Columns",
    "Records and prompts",
    "Samples and features",
    "Histories for prompts",
    "What is tried, with --model",
    "What texts may lose, with --model",
    "Drafting",
    "Search and verification",
    "Acceptance, other than strict",
    "Sampling",
    "What may be written",
    "Objective",
    "Training",
    "Model and machine",
    "Output",
    "Cluster",
    "Messages",
)
#: The default of options that have to be given.
REQUIRED: Any = dataclasses.MISSING
_AS_SET: Any = object()
Made = TypeVar("Made")


def option_of(
    settings: type[Any],
    name: str,
    *names: str,
    default: Any = _AS_SET,
    note: str | None = None,
    **more: Any,
) -> Any:
    """An option that sets the field `name` of a settings class, as in
    `depth: int = option_of(DraftConfig, "depth")`.

    `names`: how it is typed, where that is not its own field's name. `default`: where the command
    has another. `note` goes before its help. `more`: as `option` takes it, and `kind`, the type,
    where a command line takes another than Python.
    """
    known = knobs(settings)[name]
    kind = more.pop("kind", None) or _kind(known.kind)
    if _is_auto(known.kind):
        more = {"metavar": "auto|N", "parser": _auto_or_number(name)} | more
    elif _is_number(kind):
        limits = {"min": known.bounds.get("ge"), "max": known.bounds.get("le")}
        more = {at: limit for at, limit in limits.items() if limit is not None} | more
    if known.unset is not None:
        more = {"show_default": known.unset} | more
    does = f"{note}: {known.does[0].lower()}{known.does[1:]}" if note else known.does
    default = known.default if default is _AS_SET else default
    return option(does, *names, default=default, kind=kind, made_of=(settings, name), **more)


def option(
    does: str,
    *names: str,
    default: Any = None,
    place: Where | None = None,
    panel: str | None = None,
    **more: Any,
) -> Any:
    """An option whose help says what it `does`; a field that is False by default is a switch.
    `place`: where the file may be that it names. `more`: as Typer takes it."""
    known = {name: more.pop(name, None) for name in ("kind", "made_of")}
    info = typer.Option(*names, help=does, rich_help_panel=panel, **more)
    return _field(info, default, place=place, **known)


def argument(metavar: str, does: str, place: Where | None = None) -> Any:
    """An argument, which has to be given."""
    return _field(typer.Argument(metavar=metavar, help=does), REQUIRED, place=place)


def _field(info: Any, default: Any, **known: Any) -> Any:
    return dataclasses.field(default=default, metadata={"info": info, **known})


def settings_of(kind: type[Made], options: Any, **known: Any) -> Made:
    """Settings of a kind, as the options say that are made of its fields (`option_of`); what is
    `known` by name goes before them, and None leaves the default.

    Raises DraftrecError for values that cannot work.
    """
    values: dict[str, Any] = {}
    for it in dataclasses.fields(options):
        owner, name = it.metadata.get("made_of") or (None, "")
        value = getattr(options, it.name)
        if owner is kind and value is not None:
            # A model makes its tuples itself, and names what was given where it refuses it.
            is_list = isinstance(value, list) and dataclasses.is_dataclass(kind)
            values[name] = tuple(value) if is_list else value
    try:
        return kind(**values | known)
    except ValidationError as error:
        raise _refused(error) from error


def hints_of(options: type[Any]) -> dict[str, Any]:
    """The types of a command's options as Typer wants them: `Annotated`, with option and place."""
    hints = get_type_hints(options, include_extras=True)
    for it in dataclasses.fields(options):
        if "info" not in it.metadata:
            continue  # no option
        kind = it.metadata.get("kind") or hints[it.name]
        info, place = copy.copy(it.metadata["info"]), it.metadata["place"]
        if kind is bool and it.default is False and info.default is ...:
            info.default = f"--{it.name.replace('_', '-')}"  # and no --no-...
        hints[it.name] = Annotated[(kind, info) if place is None else (kind, place, info)]  # type: ignore[misc]
    return hints


def _kind(kind: Any) -> Any:
    """A setting's type as Typer reads it."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _kind(inner[0])
    if _is_auto(kind) or kind is date:
        return str
    if origin is tuple:
        return list[_choices(_kind(inner[0]))]
    if origin in (Union, types.UnionType):
        return Union[tuple(_kind(part) for part in inner)]  # noqa: UP007 - made of parts
    return kind


def _choices(kind: Any) -> Any:
    """Typer takes no list of a Literal, but one of an enumeration of the same texts."""
    if get_origin(kind) is not Literal:
        return kind
    return StrEnum("Choice", {choice.upper(): choice for choice in get_args(kind)})


def _is_auto(kind: Any) -> bool:
    return Literal["auto"] in get_args(kind)


def _is_number(kind: Any) -> bool:
    return bool({int, float} & {kind, *get_args(kind)})


def _auto_or_number(name: str) -> Callable[[Any], Any]:
    option = f"--{name.replace('_', '-')}"

    def auto_or_number(value: Any) -> Any:
        """`auto`, or a whole number."""
        if value == "auto":
            return value
        try:
            return int(str(value))
        except ValueError:
            raise DraftrecError(
                f"{option} must be auto or a whole number, not {str(value)!r}"
            ) from None

    return auto_or_number


def _refused(error: ValidationError) -> DraftrecError:
    """What is wrong with the first option that settings refused."""
    first = error.errors()[0]
    if not first["loc"]:  # of several options together
        return DraftrecError(first["msg"].removeprefix("Value error, "))
    option = str(first["loc"][0]).rstrip("_").replace("_", "-")
    reason = first["msg"].removeprefix("Input ").removeprefix("Value error, ")
    return DraftrecError(f"--{option} {reason}, not {first['input']!r}")
