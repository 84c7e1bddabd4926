"""Folders of pools: written aside, then renamed, so that a crash leaves the old one or the new."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from safetensors import SafetensorError

from draftrec.data.files.locks import sole_writer
from draftrec.data.files.writers import (
    behind_link,
    share,
    sync_files,
    sync_folder,
    system_error,
)
from draftrec.errors import DraftrecError, PoolMismatchError, PoolOverwrittenError

FORMAT_VERSION = 2
MANIFEST = "manifest.json"
_LOOK_SECONDS = 0.001
_SET_ASIDE = ".*.old"


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """An empty folder beside `folder` that takes its place if the block succeeds. A link stays one.

    Raises DraftrecError if `folder` exists and is not a pool, if another process writes there, and
    if there is no room.
    """
    folder = behind_link(folder)
    with sole_writer(folder), _aside(folder) as new:
        yield new


@contextmanager
def _aside(folder: Path) -> Iterator[Path]:
    if folder.exists() and not (folder / MANIFEST).exists():
        raise DraftrecError(f"{folder} exists and is not a pool; name a new folder.")
    leftovers = _beside(folder, "." + "[0-9a-f]" * 8)  # of one that was killed
    if folder.exists():  # in whose place nothing that was set aside is needed
        leftovers += _beside(folder, _SET_ASIDE)
    for leftover in leftovers:
        shutil.rmtree(leftover, ignore_errors=True)
    new = folder.with_name(f".{folder.name}.{uuid4().hex[:8]}")
    new.mkdir()
    try:
        yield new
        share(new)
        sync_files(new)
        _swap(folder, new)
    except (OSError, SafetensorError) as error:  # such as a full disk
        number = system_error(error)
        known = os.strerror(number) if number else getattr(error, "strerror", None)
        reason = (known or str(error)).lower()
        raise DraftrecError(
            f"the pool {folder} cannot be written ({reason}); make room or choose another folder; "
            "what was there before is unchanged"
        ) from error
    finally:
        shutil.rmtree(new, ignore_errors=True)


def write_manifest(folder: Path, facts: dict[str, Any]) -> None:
    """Write the manifest: `facts`, format version, and size and checksum of every file there."""
    files = {
        path.name: {"bytes": path.stat().st_size, "sha256": checksum(path)}
        for path in sorted(folder.iterdir())
    }
    manifest = {"format_version": FORMAT_VERSION, **facts, "files": files}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")


def read_manifest(folder: Path, tokenizer_fingerprint: str | None = None) -> dict[str, Any]:
    """The manifest of a pool whose files are all there, in full length.

    Raises DraftrecError for a missing or damaged pool, PoolMismatchError for one that was made with
    another tokenizer or format; `tokenizer_fingerprint` None skips that check.
    """
    manifest = _parsed(folder)
    if manifest["format_version"] != FORMAT_VERSION:
        raise PoolMismatchError(
            f"The pool {folder} has format version {manifest['format_version']}, this draftrec "
            f"reads {FORMAT_VERSION}; build it again."
        )
    if tokenizer_fingerprint not in (None, manifest["tokenizer"]):
        raise PoolMismatchError(
            f"The pool {folder} was made with another tokenizer (fingerprint "
            f"{manifest['tokenizer'][:12]}, the model's is {str(tokenizer_fingerprint)[:12]}); "
            "use the model that wrote it, or build a pool for this one."
        )
    for name, known in manifest["files"].items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != known["bytes"]:
            raise damaged(path, "it is missing or has another length")
    return manifest


class Watch:
    """A file that is mapped, which another process may write to. One that is replaced by another
    file, or removed, stays what it was for whoever has mapped it.

    Raises OSError for a file that is not there.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(os.path.realpath(path))
        self._was, self._looked, self._written = self._look(), time.monotonic(), False

    @property
    def written(self) -> bool:
        """Was it written to since, as far as its length and time tell? Looks once a millisecond at
        most, which is less often than passes come."""
        if not self._written and (now := time.monotonic()) - self._looked > _LOOK_SECONDS:
            self._looked = now
            try:
                found = self._look()
            except OSError:  # gone, or out of sight
                return False
            self._written = found[:2] == self._was[:2] and found != self._was
        return self._written

    def check(self) -> None:
        """Raise PoolOverwrittenError if it was written to."""
        if self.written:
            raise PoolOverwrittenError(
                f"The pool file {self.path} was overwritten while it was in use; build the pool "
                "again, put its folder in the place of the old one, and start again."
            )

    def _look(self) -> tuple[int, int, int, int]:
        found = self.path.stat()
        return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def verify(folder: Path, manifest: dict[str, Any]) -> None:
    """Raises DraftrecError for the first file whose content does not match the manifest."""
    for name, known in manifest["files"].items():
        if checksum(folder / name) != known["sha256"]:
            raise damaged(folder / name, "its checksum does not match the manifest")


def existing(folder: Path) -> Path:
    """`folder`, or what a kill between two renames left of it."""
    return (
        folder if folder.exists() else next(iter(_beside(behind_link(folder), _SET_ASIDE)), folder)
    )


def fingerprint(folder: Path) -> str:
    """Of the pool's manifest, which holds the checksums of its files. Raises OSError where there is
    none."""
    return checksum(existing(folder) / MANIFEST)


def damaged(path: Path, why: object) -> DraftrecError:
    """The error for a file of a pool that cannot be used."""
    return DraftrecError(f"The pool file {path} is damaged ({why}); build the pool again.")


def checksum(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _swap(folder: Path, new: Path) -> None:
    """Rename `new` to `folder`; what was there goes away only then, or comes back."""
    old = new.with_name(f"{new.name}.old")
    try:
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
    except BaseException:
        if old.exists() and not folder.exists():  # an interruption may come when all is done
            old.rename(folder)
        raise
    sync_folder(folder.parent)
    for leftover in _beside(folder, _SET_ASIDE):
        shutil.rmtree(leftover, ignore_errors=True)


def _beside(folder: Path, ending: str) -> list[Path]:
    return list(folder.parent.glob(f".{glob.escape(folder.name)}{ending}"))


def _parsed(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text())
        _ = manifest["format_version"], manifest["tokenizer"]
        if manifest["format_version"] == FORMAT_VERSION:
            _ = [(f["bytes"] + 0, f["sha256"]) for f in manifest["files"].values()]
            _ = manifest["created"] + 0, [n + "" for n in manifest["groups"]], *manifest["levels"]
    except FileNotFoundError:
        raise DraftrecError(
            f"{folder} is not a pool: it has no {MANIFEST}; "
            "name a folder that --save-pool or `draftrec pool build` wrote."
        ) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DraftrecError(
            f"The pool manifest {path} cannot be read ({error}); build the pool again."
        ) from error
    return manifest
