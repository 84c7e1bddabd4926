"""Options as fields of a command's dataclass: made of a setting, which has type, default, bounds
and help (`option_of`), or of their own (`option`, `argument`); and settings made of them again.

An option whose type is `Path` names something on this machine, and an address given to it is
refused in one sentence before any work begins. A mark says otherwise: `READ` and `WRITTEN` options
may be addresses, an option of text marked `HERE` names something on this machine (or, a model, on
the Hub).
"""

from __future__ import annotations

import copy
import dataclasses
import re
import types
from collections.abc import Callable
from datetime import date
from enum import Enum, StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import typer
from pydantic import ValidationError
from typer.models import ArgumentInfo

from draftrec.data.files.places import RemotePath, here, place, writable
from draftrec.errors import DraftrecError
from draftrec.knobs import knobs


class Where(Enum):
    """Where the thing that an option names may be."""

    HERE = "on this machine"
    READ = "anywhere"
    WRITTEN = "anywhere that can be written to"


HERE, READ, WRITTEN = Where
_HUB = re.compile(r"https?://(?:www\.)?(?:huggingface\.co|hf\.co)/([^/?#]+/[^/?#]+)")
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
    ITEM_ITEM_PANEL,
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
    "Item-item co-occurrence",
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


def marked(hint: Any) -> Where | None:
    """Where the thing that an option names may be; None if it names no file."""
    kind, *notes = get_args(hint) if get_origin(hint) is Annotated else [hint]
    mark = next((note for note in notes if isinstance(note, Where)), None)
    return HERE if mark is None and Path in _leaves(kind) else mark


def presented(name: str, hint: Any) -> Any:
    """The option's type for Typer: text where it names a file, read by `converted`."""
    mark = marked(hint)
    if mark is None:
        return hint
    kind, *notes = get_args(hint) if get_origin(hint) is Annotated else [hint]
    infos = [copy.copy(note) for note in notes if not isinstance(note, Where)]
    for info in infos:
        if hasattr(info, "parser"):
            as_text = Path not in _leaves(kind)
            info.metavar = info.metavar or ("TEXT" if as_text else "PATH")
            a_file = mark is WRITTEN and info.metavar.startswith("FILE")
            info.parser = _parser(_called(name, info), mark, as_text=as_text, a_file=a_file)
    return Annotated[(_as_text(kind), *infos)]  # type: ignore[return-value]


def _called(name: str, info: Any) -> str:
    """The option as it is typed, or what stands for the argument in the help."""
    if isinstance(info, ArgumentInfo):
        return info.metavar or name.upper()
    given = (info.default, *(info.param_decls or ()))  # Typer takes the first for the default
    words = [word for word in given if isinstance(word, str) and word.startswith("-")]
    return next(iter(words), f"--{name.replace('_', '-')}")


def _parser(option: str, mark: Where, *, as_text: bool, a_file: bool) -> Callable[[Any], Any]:
    def parse(value: Any) -> Any:
        found = _found(option, mark, value)
        if a_file and isinstance(found, Path) and found.is_dir():
            raise DraftrecError(f"{option} {found} is a folder; name a file in it")
        if not as_text:
            return found
        return str(found if str(value).startswith("~") else value)

    return parse


def _found(option: str, mark: Where, value: Any) -> Any:
    """The place that an option's value names. Raises DraftrecError where it may not be there."""
    if mark is READ:
        return place(value)
    if mark is WRITTEN:
        return writable(value, option)
    if on_hub := _HUB.match(str(value)):
        raise DraftrecError(f"{option} takes the Hub's id and not its page; give {on_hub[1]}")
    return here(value, option)


def _leaves(kind: Any) -> tuple[Any, ...]:
    inner = get_args(kind)
    return tuple(leaf for part in inner for leaf in _leaves(part)) if inner else (kind,)


def _as_text(kind: Any) -> Any:
    """The same type with text in place of paths."""
    if get_origin(kind) in (Union, types.UnionType):
        parts = dict.fromkeys(_as_text(part) for part in get_args(kind))
        return Union[tuple(parts)]  # noqa: UP007 - made of parts
    if get_origin(kind) is list:
        return list[_as_text(get_args(kind)[0])]
    return str if kind in (Path, RemotePath) else kind
