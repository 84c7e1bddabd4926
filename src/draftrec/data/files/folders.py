"""Which files of a folder are its data: its parts, or those of the folders in it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from urllib.parse import unquote

from draftrec.data.files.places import Place
from draftrec.errors import DraftrecError

#: How deep parts may lie; a link to a folder above would be followed for ever.
_DEEPEST = 8
#: How Hive names the partition of rows whose value is missing.
_NULL = "__HIVE_DEFAULT_PARTITION__"
#: Folders in which a table keeps its history: not every Parquet file beside them is a part of it.
_TABLES = {"_delta_log": "Delta Lake", ".hoodie": "Hudi"}
_NAMED = 3

KindOf = Callable[[Place], str | None]


def parts_of(folder: Place, kind_of: KindOf, readable: str) -> list[Place]:
    """The readable files of a folder, in order: `part-*` alone where there are any, as job outputs
    name them; of the folders in it where it has none itself, or where they are partitions
    (`group=g1`). Names that begin with a dot or an underscore are nobody's data.

    Raises DraftrecError where there are none, saying what there is instead, and for a folder that
    holds more than one version of its rows.
    """
    found = _walk(folder, kind_of, _DEEPEST)
    if found:
        return found
    raise DraftrecError(
        f"folder {folder} holds no readable part, {_held(folder)}; put files in it that end in "
        f"{readable}"
    )


def natural(path: Place) -> list[str | int]:
    """Sort key under which part-100000 follows part-99999."""
    return [int(bit) if bit.isdigit() else bit for bit in re.split(r"(\d+)", str(path))]


def partitions_of(path: Place, root: str) -> dict[str, str | None]:
    """The columns that the folders between `root` and a file spell out: `group=g1`."""
    if not root or not str(path).startswith(root):
        return {}
    folders = str(path)[len(root) :].split("/")[:-1]
    pairs = (name.partition("=") for name in folders if "=" in name.strip("="))
    return {unquote(key): None if value == _NULL else unquote(value) for key, _, value in pairs}


def _walk(folder: Place, kind_of: KindOf, depth: int) -> list[Place]:
    entries = sorted(folder.iterdir(), key=natural)
    _refuse_versions(folder, entries)
    visible = [p for p in entries if p.name[0] not in "._"]
    kinds = {p: kind_of(p) for p in visible if p.is_file()}
    files = [p for p, kind in kinds.items() if kind]
    # Settings and summaries are JSON too: they are data only where there is nothing else.
    data = [p for p in files if kinds[p] != "json"]
    files = data or (files if depth == _DEEPEST else [])
    files = [p for p in files if p.name.startswith("part-")] or files
    inner = [p for p in visible if p not in kinds and p.is_dir()]
    partitions = [p for p in inner if "=" in p.name]
    if data and partitions:
        raise DraftrecError(
            f"folder {folder} holds both {data[0].name} and partitions such as "
            f"{partitions[0].name}; move one of them elsewhere, or name what is meant with a glob"
        )
    if (files and not partitions) or not depth:
        return files
    return [p for sub in partitions or inner for p in _walk(sub, kind_of, depth - 1)]


def _refuse_versions(folder: Place, entries: Iterable[Place]) -> None:
    names = {p.name for p in entries}
    kind = next((table for mark, table in _TABLES.items() if mark in names), None)
    if kind is None and {"metadata", "data"} <= names:
        hints = (folder / "metadata").glob("*.metadata.json")
        kind = "Iceberg" if any(True for _ in hints) else None
    if kind:
        raise DraftrecError(
            f"folder {folder} is a {kind} table, whose files hold rows of older versions too; "
            "export the version that is meant as Parquet"
        )


def _held(folder: Place) -> str:
    """What there is, in a few words."""
    names = [p.name + "/" * p.is_dir() for p in sorted(folder.iterdir(), key=natural)]
    if not names:
        return "it is empty"
    more = f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
    return f"only {', '.join(names[:_NAMED])}{more}"
