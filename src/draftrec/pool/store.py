"""A pool: texts written before, per group, in memory and on disk.

On disk a pool is a folder: `tokens.npy`, `offsets.npy`, `groups.npy` and `manifest.json` with
format version, tokenizer fingerprint, counts and checksums. It is written under a temporary name
and renamed, so a crash leaves the old pool or the new one. Indexes are rebuilt when it is opened.
"""

from __future__ import annotations

import glob
import hashlib
import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np

from draftrec.core import IntArray
from draftrec.errors import DraftrecError, PoolMismatchError
from draftrec.pool.index import NgramIndex

FORMAT_VERSION = 1
_ARRAYS = ("tokens", "offsets", "groups")


class Pool:
    """Texts of all groups under one index, and of each group under its own.

    `max_bytes` bounds the indexes, about: once it is passed, further texts are left out, so that
    memory does not follow the number of records of a job.
    """

    def __init__(self, tokenizer_fingerprint: str, *, max_bytes: int = 2 << 30) -> None:
        self.tokenizer_fingerprint = tokenizer_fingerprint
        self.max_bytes = max_bytes
        self.all = NgramIndex()
        self.groups: dict[str, NgramIndex] = {}
        self._texts: list[IntArray] = []
        self._names: list[str | None] = []

    def __len__(self) -> int:
        return len(self._texts)

    @property
    def tokens(self) -> int:
        return sum(len(t) for t in self._texts)

    @property
    def nbytes(self) -> int:
        return self.all.nbytes + sum(g.nbytes for g in self.groups.values())

    def add(self, texts: Iterable[tuple[IntArray, str | None]]) -> None:
        """Add (token_ids, group) pairs while there is room.

        EOS belongs to a text, so that it is drafted as well.
        """
        for token_ids, group in texts:
            if self.nbytes > self.max_bytes:
                return
            ids = np.ascontiguousarray(token_ids, np.int32)
            self._texts.append(ids)
            self._names.append(group)
            if not len(ids):
                continue
            self.all.add_text(ids)
            if group is not None:
                self.groups.setdefault(group, NgramIndex()).add_text(ids)

    def copy(self) -> Pool:
        """An independent pool with the same texts."""
        other = Pool(self.tokenizer_fingerprint, max_bytes=self.max_bytes)
        other.add(zip(self._texts, self._names, strict=True))
        return other

    def save(self, folder: Path) -> None:
        """Write the pool to `folder`, replacing a pool that is there.

        Raises DraftrecError if `folder` exists and holds something else.
        """
        folder = Path(folder)
        if folder.exists() and not (folder / "manifest.json").exists():
            raise DraftrecError(
                f"{folder} exists and is not a pool; name a new folder with --save-pool."
            )
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = folder.with_name(f".{folder.name}.{uuid4().hex[:8]}")
        temporary.mkdir()
        try:
            self._write(temporary)
            _replace(folder, temporary)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def _write(self, folder: Path) -> None:
        names: list[str | None] = [None, *sorted({n for n in self._names if n is not None})]
        place = {name: i for i, name in enumerate(names)}
        lengths = np.array([len(t) for t in self._texts], np.int64)
        arrays: dict[str, Any] = {
            "tokens": np.concatenate([np.empty(0, np.int32), *self._texts]),
            "offsets": np.concatenate(([0], np.cumsum(lengths))).astype(np.int64),
            "groups": np.array([place[n] for n in self._names], np.int32),
        }
        checksums: dict[str, str] = {}
        for name, array in arrays.items():
            np.save(folder / f"{name}.npy", array, allow_pickle=False)
            checksums[name] = _checksum(folder / f"{name}.npy")
        manifest = {
            "format_version": FORMAT_VERSION,
            "tokenizer": self.tokenizer_fingerprint,
            "texts": len(self),
            "tokens": int(lengths.sum()),
            "group_names": names[1:],
            "checksums": checksums,
        }
        (folder / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path, tokenizer_fingerprint: str | None = None) -> Pool:
        """Open a pool. `tokenizer_fingerprint` None skips the check of the tokenizer.

        Raises DraftrecError for a missing or damaged pool, PoolMismatchError for one that was made
        with another tokenizer or format.
        """
        folder = Path(folder)
        if not folder.exists():
            folder = next(iter(_set_aside(folder)), folder)
        manifest = _read_manifest(folder)
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
        tokens, offsets, groups = (_read_array(folder, name, manifest) for name in _ARRAYS)
        names: list[str | None] = [None, *manifest["group_names"]]
        pool = cls(manifest["tokenizer"])
        pool.add(
            (tokens[a:b], names[g])
            for a, b, g in zip(offsets[:-1], offsets[1:], groups, strict=True)
        )
        return pool


def _replace(folder: Path, new: Path) -> None:
    """Rename `new` to `folder`; what was there goes away only then, or comes back."""
    old = new.with_name(f"{new.name}.old")
    if folder.exists():
        folder.rename(old)
    try:
        new.rename(folder)
    except BaseException:
        if old.exists():
            old.rename(folder)
        raise
    for leftover in _set_aside(folder):
        shutil.rmtree(leftover, ignore_errors=True)


def _set_aside(folder: Path) -> list[Path]:
    """Old pools that a kill between two renames left beside `folder`."""
    return list(folder.parent.glob(f".{glob.escape(folder.name)}.*.old"))


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / "manifest.json"
    try:
        manifest = json.loads(path.read_text())
        _ = manifest["format_version"], manifest["tokenizer"], manifest["checksums"]
    except FileNotFoundError:
        raise DraftrecError(
            f"{folder} is not a pool: it has no manifest.json; "
            "name a folder that --save-pool wrote."
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DraftrecError(
            f"The pool manifest {path} cannot be read ({error}); build the pool again."
        ) from error
    return manifest


def _read_array(folder: Path, name: str, manifest: dict[str, Any]) -> Any:
    path = folder / f"{name}.npy"
    try:
        if _checksum(path) != manifest["checksums"][name]:
            raise ValueError("its checksum does not match the manifest")
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, KeyError) as error:
        raise DraftrecError(
            f"The pool file {path} is damaged ({error}); build the pool again."
        ) from error


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
