"""Where files are: paths of this machine, and addresses such as `s3://bucket/run`; and which files
of a folder are its data: its parts, or those of the folders in it.

Whatever names a file comes through here. A path stays a `Path`; an address becomes a `RemotePath`,
which fsspec serves and which refuses in one sentence to be taken for a path of this machine.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from draftrec.data.files.remote import ADDRESS, WEB, RemotePath
from draftrec.errors import DraftrecError

Place = Path | RemotePath

#: What is left of an address whose slashes somebody cleaned up, as `pathlib.Path` does.
_SHORTENED = re.compile(r"([a-z][a-z0-9+.-]+):/(?!/)", re.IGNORECASE)
_HERE = ("file", "local")
_PACKAGES = {
    "s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "abfs": "adlfs", "abfss": "adlfs",
    "az": "adlfs", "adl": "adlfs", "oss": "ossfs", "oci": "ocifs", "http": "aiohttp",
    "https": "aiohttp", "sftp": "paramiko", "ssh": "paramiko", "smb": "smbprotocol",
    "hf": "huggingface_hub", "webhdfs": "requests",
}  # fmt: skip


def is_address(text: str) -> bool:
    """Whether a text is an address and not a path: `s3://bucket/run`, not `run-12:30`."""
    return ADDRESS.match(text) is not None


def place(location: str | Place) -> Place:
    """The path or the address that is meant.

    Raises DraftrecError for an address of no known kind, or one whose package is missing, and for
    what is left of an address when its slashes are shortened.
    """
    found = _named(location)
    if isinstance(found, RemotePath) and found is not location:
        _require(found)
    return found


def shown(location: str | None) -> str | None:
    """A location for people and for records: what may be secret in an address is left out."""
    return location and str(_named(location))


def here(location: str | Place, named: str = "") -> Path:
    """The path on this machine; `named` says what asks for it, as in `--pool`.

    Raises DraftrecError for an address, with the way round.
    """
    found = location if isinstance(location, Path) else _named(location)
    if isinstance(found, RemotePath):
        _require_kind(found)
        who = f"{named} needs" if named else "this needs"
        raise DraftrecError(
            f"{who} a path on this machine, which {found} is not; {found.way_round}"
        )
    return _checked(str(found))


def writable(location: str | Place, named: str = "") -> Place:
    """The place to write to. Raises DraftrecError where nothing can be written."""
    found = _named(location)
    if isinstance(found, RemotePath) and found.scheme in WEB:
        raise DraftrecError(
            f"{named or 'output'} cannot be {found}, the web can only be read from; write to a "
            f"folder or to a store such as s3:// and upload from there"
        )
    return place(location)


def _named(location: str | Place) -> Place:
    """The path or the address that is meant, whether or not it can be reached from here."""
    if isinstance(location, RemotePath):
        return location
    text = str(location)
    found = ADDRESS.match(text)
    if found is None:
        return _checked(text)
    if found[1].lower() in _HERE and "::" not in text:
        return Path(re.sub(r"^localhost(?=/)", "", text[found.end() :]))
    return RemotePath(text)


def _checked(text: str) -> Path:
    path = Path(text)
    if text.startswith("~") and not Path(path.parts[0]).exists():
        with suppress(RuntimeError):  # there is no such user
            # Of `--output=~/run` and of settings files the shell makes nothing.
            return path.expanduser()
    shortened = _SHORTENED.match(text)
    if shortened and not Path(path.parts[0]).exists():
        scheme, rest = shortened[1].lower(), text[shortened.end() :]
        if scheme in _HERE:
            return Path("/" + rest)
        if scheme in _known():
            raise DraftrecError(
                f"{text} is the address {scheme}://{rest} with a slash too few; write it in full, "
                f"in Python as a string and not as a Path"
            )
    return path


def _known() -> frozenset[str]:
    from fsspec import available_protocols

    return frozenset(available_protocols())


def _require_kind(address: RemotePath) -> ImportError | None:
    """What its kind lacks to be read here. Raises DraftrecError for an address of no known kind."""
    from fsspec import get_filesystem_class

    try:
        get_filesystem_class(address.scheme)
    except ValueError as error:
        raise DraftrecError(
            f"{address.scheme}:// is no kind of address that can be read ({address}); known are "
            f"file, s3, gs, abfs, hdfs, https and others that fsspec has"
        ) from error
    except ImportError as error:
        return error
    return None


def _require(address: RemotePath) -> None:
    """Raises DraftrecError for an address of no known kind, or one whose package is missing."""
    if (error := _require_kind(address)) is not None:
        package = _PACKAGES.get(address.scheme)
        reason = f"install it with pip install {package}" if package else str(error)
        raise DraftrecError(
            f"{address.scheme}:// addresses need {package or 'a package'}; {reason}"
        ) from error


def arrow_path(path: Place) -> Any:
    """The same file under a name that can be nothing but a file's, or opened if it is elsewhere."""
    return path.open_seekable() if isinstance(path, RemotePath) else path.absolute()


#: How deep parts may lie; a link to a folder above would be followed for ever.
_DEEPEST = 8
#: How Hive names the partition of rows whose value is missing.
_NULL = "__HIVE_DEFAULT_PARTITION__"
#: Folders in which a table keeps its history: not every Parquet file beside them is a part of it.
_TABLES = {"_delta_log": "Delta Lake", ".hoodie": "Hudi"}
#: What Hugging Face's datasets writes beside a data set's files, and above several sets.
_NOTES = ("dataset_info.json", "state.json")
_SEVERAL = "dataset_dict.json"
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
    visible = [p for p in entries if p.name[0] not in "._" and p.name not in _NOTES]
    kinds = {p: kind_of(p) for p in visible if p.is_file()}
    files = [p for p, kind in kinds.items() if kind]
    # Settings and summaries are JSON too: they are data only where there is nothing else.
    data = [p for p in files if kinds[p] != "json" or "=" in folder.name]
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
    if _SEVERAL in names:
        inner = [p.name for p in entries if p.is_dir()]
        raise DraftrecError(
            f"folder {folder} holds several data sets ({', '.join(inner)}), where one is needed; "
            f"name one, as in {folder / inner[0] if inner else folder}"
        )
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
