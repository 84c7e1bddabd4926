"""What every job that can be resumed keeps: the record of what it was begun as, its shards or its
checkpoint, and the lock. A job only says how one shard is done.

The record holds settings and fingerprints of inputs. An output that was begun with others is
refused, and the refusal names the difference. Finished is what the record, or a shard's own mark,
says is finished.
"""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Sequence as Seq
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from draftrec.data.files.locks import check_still_held, sole_writer
from draftrec.data.files.places import Place
from draftrec.data.files.remote import UNMOVED, RemotePath
from draftrec.data.files.writers import TEMPORARY, replace_file, sync_folder
from draftrec.errors import DraftrecError

State = TypeVar("State", bound=BaseModel)

_LONGEST = 80
#: As settings hold them, the whole of one or its beginning.
_FINGERPRINT = re.compile(r"[0-9a-f]{16}(?:[0-9a-f]{48})?")
_PACKAGES = ("draftrec", "torch", "transformers", "tokenizers", "numpy", "pyarrow", "numba")


@dataclass(frozen=True, slots=True)
class Ledger:
    """The files of one job. `output`: what the user named; `folder`: where the files lie, that
    folder itself, one in it, or one beside it; `what`: what a refusal calls the job, as in `a run`.

    `record`: the file that says what the job is. `owned`: names of all other files that the job
    writes in the folder; it touches no others. `inside`: the lock lies in the output.
    """

    output: Place
    folder: Place
    what: str
    record: str
    owned: re.Pattern[str]
    inside: bool = False

    @property
    def path(self) -> Place:
        """The record."""
        return self.folder / self.record

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other processes from writing to the output, as `sole_writer` does. Elsewhere, finish
        what a crash left between the two steps of a move, and remove what it left half copied."""
        with sole_writer(self.output, inside=self.inside):
            if isinstance(self.folder, RemotePath) and self.folder.is_dir():
                waiting = [p for p in self.folder.iterdir() if UNMOVED.fullmatch(p.name)]
                for path in waiting:
                    (self.folder / path.name.removeprefix(".").partition(".new")[0]).finish_move()
                    path.unlink(missing_ok=True)
            yield

    def begun(self) -> dict[str, Any] | None:
        """The settings that a record of JSON holds; None where nothing has begun. Raises
        DraftrecError for a record that is damaged."""
        if not self.path.is_file():
            return None
        try:
            found = json.loads(self.path.read_bytes())
        except ValueError:  # no JSON, or no text
            found = None
        if not isinstance(found, dict):
            raise DraftrecError(
                f"{self.path}, the record of {self.what} that was begun, is damaged; choose "
                "another --output, or start again with --overwrite"
            )
        return found

    def refuse(self, found: Seq[str]) -> None:
        """Raise DraftrecError if anything is otherwise than when the job was begun."""
        if found:
            raise DraftrecError(
                f"{self.output} holds {self.what} that was begun otherwise ({'; '.join(found)}); "
                f"choose another --output, or start again with --overwrite"
            )

    def write(self, record: str) -> None:
        """Replace the record: the moment from which on what it says is finished is."""
        check_still_held(self.output)
        replace_file(self.path, record.encode())

    def check(self, sizes: Mapping[Place, int], mend: str = "start again with --overwrite") -> None:
        """Raise DraftrecError when a finished file is not of the size, in bytes, that it had.
        `mend`: what helps where nobody can put it back."""
        held = {path: path.stat().st_size for path in self._files()}  # elsewhere, one question
        for path, size in sizes.items():
            if path not in held and path.is_file():
                held[path] = path.stat().st_size
            if held.get(path) != size:
                raise DraftrecError(
                    f"{path} is missing or was changed since it was written; put it back, or {mend}"
                )

    def drop(self, unfinished: Callable[[str], bool]) -> None:
        """Remove what a crash left: files half written, and those with `unfinished` names."""
        for path in self._files():
            if path.name.endswith(TEMPORARY) or unfinished(path.name):
                path.unlink()

    def clear(self, *, record_last: bool = False) -> None:
        """Remove all that the job wrote, the record before what it speaks of, or after it: then a
        crash leaves nothing that is nobody's."""
        if not record_last:
            self.path.unlink(missing_ok=True)
        for path in self._files():
            if path.name != self.record:
                path.unlink()
        self.path.unlink(missing_ok=True)
        if self.folder.is_dir():
            sync_folder(self.folder)

    def _files(self) -> list[Place]:
        """Those of the job that are there, the record and files half written among them."""
        if not self.folder.is_dir():
            return []
        names = ((path, path.name.removesuffix(TEMPORARY)) for path in self.folder.iterdir())
        return [p for p, name in names if name == self.record or self.owned.fullmatch(name)]


@dataclass(frozen=True, slots=True)
class JobResult:
    """The summary of a finished job. `fresh` is false if there was nothing left to do."""

    summary: dict[str, Any]
    fresh: bool


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What is otherwise now, a phrase each, as in `k was 20, now 10`."""
    found: list[str] = []
    for name in sorted({*before, *now}):
        old, new = before.get(name), now.get(name)
        if any(isinstance(it, str) and _FINGERPRINT.fullmatch(it) for it in (old, new)):
            found += input_changes({name: old}, {name: new})
        elif old != new:
            found.append(f"{name} was {_shown(old)}, now {_shown(new)}")
    return found


def input_changes(before: Mapping[str, str | None], now: Mapping[str, str | None]) -> list[str]:
    """The same of fingerprints, which say nothing to people, as in `template added`; of those that
    are known now."""
    found: list[str] = []
    for name, new in now.items():
        old = before.get(name)
        if (old or None) != (new or None):
            change = "added" if not old else "left out" if not new else "changed"
            found.append(f"{name} {change}")
    return found


def read_state(path: Place, kind: type[State], rest: str) -> State | None:
    """What a command wrote of its job at `path`, or None where there is nothing.

    Raises DraftrecError for anything else; `rest`: the command, and how to mend it.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    try:
        return kind.model_validate_json(text)
    except (ValidationError, UnicodeDecodeError) as error:
        raise DraftrecError(f"{path} was not written by this version of draftrec {rest}") from error


def package_versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide the output."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _shown(value: Any) -> str:
    text = "unset" if value is None else str(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."
