"""Finished texts of shards that are not finished: what an interruption leaves to go on with.

A line of JSON per text, written when the text ends. Whoever does the shard next, after Ctrl-C, a
crash or the loss of a worker, takes the texts over instead of writing them again; the shard's part
then has the same bytes. The journal goes when the part is there.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from collections.abc import Sequence as Seq
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from draftrec.core import Counts, Generation, Request
from draftrec.data.files.places import Place
from draftrec.data.files.writers import naming, replace_file
from draftrec.engine.text.stats import Spent

# Lines reach the operating system at once, which survives a kill; the disk, which survives a
# crash of the machine, at least this often.
_SYNC_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Clock:
    """What a shard has taken up to some text, in all its lives: `wall` seconds, and what of them
    the parts of a pass took."""

    wall: float = 0.0
    spent: Spent = field(default_factory=Spent)


@dataclass(frozen=True, slots=True)
class Entry:
    """A finished text: the request's `key` and `prompt_hash`, the text, and the clock by then."""

    key: int
    prompt_hash: int
    generation: Generation
    clock: Clock

    def line(self) -> bytes:
        """As the journal has it."""
        it, clock = self.generation, self.clock
        values = {
            "entity_id": it.entity_id,
            "key": self.key,
            "prompt_hash": self.prompt_hash,
            "token_ids": it.token_ids.tolist(),
            "finish_reason": it.finish_reason,
            "prompt_tokens": it.prompt_tokens,
            "loss": it.loss,
            "counts": asdict(it.counts),
            "wall": clock.wall,
            "spent": asdict(clock.spent),
        }
        return (json.dumps(values) + "\n").encode()

    @classmethod
    def of(cls, line: bytes) -> Entry:
        """Raises ValueError, KeyError or TypeError for anything but a whole line of a journal."""
        if not line.endswith(b"\n"):
            raise ValueError("the line is torn")
        values: dict[str, Any] = json.loads(line)
        generation = Generation(
            values["entity_id"],
            np.array(values["token_ids"], np.int32),
            values["finish_reason"],
            values["prompt_tokens"],
            Counts(**values["counts"]),
            values["loss"],
        )
        clock = Clock(values["wall"], Spent(**values["spent"]))
        return cls(values["key"], values["prompt_hash"], generation, clock)


class Journal:
    """The journal of one shard, open for more. What a crash has torn is cut off on opening.

    At an address, where nothing can be appended, it is written anew whenever it is forced to disk
    elsewhere.
    """

    def __init__(self, path: Place) -> None:
        self.path = path
        self.entries, size = _read(path)
        self._content = bytearray()
        self._file = None
        if isinstance(path, Path):
            with naming(path):
                # Unbuffered: a line is with the operating system, or it is not.
                self._file = path.open("ab", buffering=0)
                self._file.truncate(size)
        else:
            self._content += b"".join(entry.line() for entry in self.entries)
        self._synced, self._dirty = time.monotonic(), False

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        """Force all to disk; nothing to do where the process is killed."""
        try:
            self._sync()
        finally:
            if self._file:
                self._file.close()

    @property
    def clock(self) -> Clock:
        """What earlier lives of the shard took."""
        return self.entries[-1].clock if self.entries else Clock()

    def found(self, requests: Seq[Request], hashes: Seq[int]) -> dict[int, Generation]:
        """Texts of those requests that are there, by position; `hashes`: of their prompts."""
        known = {(e.generation.entity_id, e.key, e.prompt_hash): e for e in self.entries}
        wanted = [(r.entity_id, r.key, h) for r, h in zip(requests, hashes, strict=True)]
        return {i: known[w].generation for i, w in enumerate(wanted) if w in known}

    def add(self, entry: Entry) -> None:
        """Keep one more text."""
        line = memoryview(entry.line())
        if self._file is None:
            self._content += line
        elif isinstance(self.path, Path):
            with naming(self.path):
                while line:  # a disk that is nearly full takes a part, then refuses
                    line = line[self._file.write(line) :]
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


def texts_in(path: Place) -> int:
    """How many whole texts a journal keeps; 0 where there is none."""
    return len(_read(path)[0])


def _read(path: Place) -> tuple[list[Entry], int]:
    """The texts up to the first place that was torn, and how many bytes they take."""
    entries: list[Entry] = []
    size = 0
    for line in _lines(path):
        try:
            entries.append(Entry.of(line))
        except (ValueError, KeyError, TypeError):
            break
        size += len(line)
    return entries, size


def _lines(path: Place) -> Iterator[bytes]:
    if path.is_file():
        with path.open("rb") as file:
            yield from file
