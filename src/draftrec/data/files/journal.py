"""What of a shard is finished while the shard is not: a line each, written when it ends.

Whoever does the shard next, after Ctrl-C, a crash or the loss of a worker, takes it over instead of
doing it again.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Generic, Self, TypeVar

from draftrec.data.files.places import Place
from draftrec.data.files.writers import naming, replace_file

T = TypeVar("T")

# Lines reach the operating system at once, which survives a kill; the disk, which survives a
# crash of the machine, at least this often.
_SYNC_SECONDS = 30.0


class LineJournal(Generic[T]):
    """The journal of one shard, open for more. What a crash has torn is cut off on opening.

    `parse` makes an entry of a whole line; it raises ValueError, KeyError or TypeError for another
    one, and what lies from there on is gone. At an address, where nothing can be appended, it is
    written anew whenever it is forced to disk elsewhere.
    """

    def __init__(self, path: Place, parse: Callable[[bytes], T]) -> None:
        self.path = path
        self.entries, size = whole_entries(path, parse)
        self._content = bytearray()
        self._file = None
        if isinstance(path, Path):
            with naming(path):
                # Unbuffered: a line is with the operating system, or it is not.
                self._file = path.open("ab", buffering=0)
                self._file.truncate(size)
        elif size:
            self._content += path.read_bytes()[:size]
        self._synced, self._dirty = time.monotonic(), False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Force all to disk; nothing to do where the process is killed."""
        try:
            self._sync()
        finally:
            if self._file:
                self._file.close()

    def write(self, line: bytes) -> None:
        """Keep one more entry, a line with its end."""
        rest = memoryview(line)
        if self._file is None:
            self._content += rest
        elif isinstance(self.path, Path):
            with naming(self.path):
                while rest:  # a disk that is nearly full takes a part, then refuses
                    rest = rest[self._file.write(rest) :]
        self._dirty = True

    def tick(self) -> None:
        """Force to disk what has waited long enough."""
        if self._dirty and time.monotonic() - self._synced >= _SYNC_SECONDS:
            self._sync()

    def _sync(self) -> None:
        if self._dirty and self._file is None:
            replace_file(self.path, bytes(self._content))
        elif self._dirty and self._file and isinstance(self.path, Path):
            with naming(self.path):
                os.fsync(self._file.fileno())
        self._synced, self._dirty = time.monotonic(), False


def whole_entries(path: Place, parse: Callable[[bytes], T]) -> tuple[list[T], int]:
    """The entries of a journal up to the first place that was torn, and how many bytes they take;
    none where there is no file."""
    entries: list[T] = []
    size = 0
    for line in _lines(path):
        try:
            if not line.endswith(b"\n"):
                break
            entries.append(parse(line))
        except (ValueError, KeyError, TypeError):
            break
        size += len(line)
    return entries, size


def _lines(path: Place) -> Iterator[bytes]:
    if path.is_file():
        with path.open("rb") as file:
            yield from file
