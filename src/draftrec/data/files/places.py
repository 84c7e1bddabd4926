"""Where files are: paths of this machine, and addresses such as `s3://bucket/run`.

Whatever names a file comes through here. A path stays a `Path`; an address becomes a `RemotePath`,
which fsspec serves and which refuses in one sentence to be taken for a path of this machine.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

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
