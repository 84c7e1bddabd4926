"""Which options name files, and where those may be.

An option whose type is `Path` names something on this machine, and an address given to it is
refused in one sentence before any work begins. The marks below say otherwise, in the option's
`Annotated`: `READ` and `WRITTEN` options may be addresses, an option of text marked `HERE` names
something on this machine (or, a model, on the Hub).
"""

from __future__ import annotations

import copy
import re
import types
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin

from typer.models import ArgumentInfo

from draftrec.data.files.places import RemotePath, here, place, writable
from draftrec.errors import DraftrecError


class Where(Enum):
    """Where the thing that an option names may be."""

    HERE = "on this machine"
    READ = "anywhere"
    WRITTEN = "anywhere that can be written to"


HERE, READ, WRITTEN = Where
_HUB = re.compile(r"https?://(?:www\.)?(?:huggingface\.co|hf\.co)/([^/?#]+/[^/?#]+)")


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
            info.parser = _parser(_called(name, info), mark, as_text)
    return Annotated[(_as_text(kind), *infos)]  # type: ignore[return-value]


def _called(name: str, info: Any) -> str:
    """The option as it is typed, or what stands for the argument in the help."""
    if isinstance(info, ArgumentInfo):
        return info.metavar or name.upper()
    given = (info.default, *(info.param_decls or ()))  # Typer takes the first for the default
    words = [word for word in given if isinstance(word, str) and word.startswith("-")]
    return next(iter(words), f"--{name.replace('_', '-')}")


def _parser(option: str, mark: Where, as_text: bool) -> Callable[[Any], Any]:  # noqa: FBT001
    def parse(value: Any) -> Any:
        found = _found(option, mark, value)
        return str(value) if as_text else found

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
