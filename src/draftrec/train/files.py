"""The files of a training: `training/` inside the model folder that it will fill."""

from __future__ import annotations

import json
import logging
import os
import pickle
import re
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError

from draftrec.data.files.writers import renaming, replace_file
from draftrec.errors import DraftrecError
from draftrec.jobs.ledger import Ledger, changes

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

_LOG = logging.getLogger(__name__)
_OWNED = re.compile(r"state\.pt|best\.safetensors|metrics\.jsonl")
#: In the settings: a fingerprint of the files that the model came from.
SOURCE_FILES = "source_files"
#: What libraries raise over a file that is damaged, or was written by other versions of them.
_UNUSABLE = (
    AttributeError,
    EOFError,
    FileNotFoundError,
    LookupError,
    RuntimeError,
    SafetensorError,
    TypeError,
    ValueError,
    pickle.UnpicklingError,
)
Board = Callable[[int, dict[str, float]], None]


@dataclass(frozen=True)
class TrainingFolder:
    """`state.pt` to go on from, `best.safetensors`, `metrics.jsonl` (a line per epoch),
    `settings.json`, and TensorBoard's `logs`. `sign`: the file beside the folder that says that its
    model is whole."""

    path: Path
    sign: str

    @property
    def ledger(self) -> Ledger:
        return Ledger(self.path.parent, self.path, "a training", "settings.json", _OWNED)

    @property
    def checkpoint(self) -> Path:
        """What the training goes on from."""
        return self.path / "state.pt"

    @property
    def best(self) -> Path:
        """The weights with the best validation so far."""
        return self.path / "best.safetensors"

    def check(self, settings: dict[str, Any]) -> None:
        """Raise DraftrecError where a training with other settings or inputs has begun."""
        if (before := self.ledger.begun()) is not None:
            now = _plain(settings)
            if not (SOURCE_FILES in before and SOURCE_FILES in now):
                # Begun by an earlier version, or the files have gone since.
                before.pop(SOURCE_FILES, None)
                now.pop(SOURCE_FILES, None)
            self.ledger.refuse(changes(before, now))

    def claim(self, settings: dict[str, Any], *, overwrite: bool) -> None:
        """Make the folder, or go on in it; with `overwrite` what it and its model were goes."""
        if overwrite:
            (self.path.parent / self.sign).unlink(missing_ok=True)
            self.ledger.clear(record_last=True)
            shutil.rmtree(self.path / "logs", ignore_errors=True)
        self.path.mkdir(parents=True, exist_ok=True)
        self.ledger.write(json.dumps(_plain(settings), indent=1) + "\n")

    def save(self, state: dict[str, Any], epochs: list[dict[str, float]]) -> None:
        """Replace the checkpoint. Raises OSError where it cannot be written, by its name."""
        # Before the checkpoint: behind the last one, nothing would write what a kill has torn.
        lines = "".join(json.dumps(record) + "\n" for record in epochs)
        replace_file(self.path / "metrics.jsonl", lines.encode())
        with renaming(self.checkpoint) as temporary, temporary.open("wb") as file:
            try:
                torch.save(state, file)
            except RuntimeError as error:
                # PyTorch says `unexpected pos` of a full disk, and hides what the system said.
                if isinstance(told := error.__context__, OSError) and told.errno:
                    raise OSError(told.errno, os.strerror(told.errno)) from error
                raise

    def load(self) -> dict[str, Any] | None:
        """The checkpoint, None if there is none yet. Raises DraftrecError for a damaged one."""
        if not self.checkpoint.is_file():
            return None
        with sound(self.checkpoint):
            return torch.load(self.checkpoint, map_location="cpu", weights_only=True)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Around all that is written: raise DraftrecError where the folder was removed meanwhile,
        also if nothing noticed it. The sign goes then: what it stands for may have lost a part."""
        try:
            yield
        except (FileNotFoundError, DraftrecError) as error:
            if self.ledger.path.is_file():
                raise
            raise self._removed() from error
        if not self.ledger.path.is_file():
            raise self._removed()

    def _removed(self) -> DraftrecError:
        (self.path.parent / self.sign).unlink(missing_ok=True)
        return DraftrecError(
            f"{self.path.parent}, or the folder {self.path.name} in it, was removed while this "
            "process trained there; run the same command again to train anew"
        )

    @contextmanager
    def board(self) -> Iterator[Board]:
        """Writes numbers for TensorBoard if it is installed, otherwise does nothing. Files that
        take no more of them, as on a full disk, are left alone from then on, which is said once."""
        logs, writer, ended = self.path / "logs", None, False

        def write(step: int, record: dict[str, float]) -> None:
            nonlocal writer, ended
            if ended:
                return
            try:
                writer = writer or event_writer(logs)
                for name, value in record.items():
                    if name not in ("epoch", "steps"):
                        writer.add_scalar(name, value, step)
                writer.flush()
            except ImportError:
                ended = True
            except Exception as error:  # noqa: BLE001 - theirs are many, and the training goes on
                ended = True
                text = "TensorBoard's files in %s end here, the training goes on: %s: %s"
                _LOG.warning(text, logs, type(error).__name__, error)

        try:
            yield write
        finally:
            if writer is not None:
                with suppress(Exception):  # said where it was written
                    writer.close()


@contextmanager
def sound(path: Path) -> Iterator[None]:
    """Raise DraftrecError where a file of a training is not one that it can go on from."""
    try:
        yield
    except _UNUSABLE as error:
        reason = str(error).partition("\n")[0].partition(". ")[0] or type(error).__name__
        raise DraftrecError(
            f"{path} is damaged, or another version of draftrec or of its libraries wrote it "
            f"({reason}); start again with --overwrite"
        ) from error


def event_writer(folder: Path) -> SummaryWriter:
    """What writes TensorBoard's files into a folder. Raises ImportError where TensorBoard is
    missing.

    What ends the thread that writes is told to whoever writes next; it ends without a traceback of
    its own, also if it outlives the writer.
    """
    from torch.utils.tensorboard import SummaryWriter

    if threading.excepthook is not _hushed:
        _usual.append(threading.excepthook)
        threading.excepthook = _hushed
    return SummaryWriter(str(folder))


_usual: list[Callable[[Any], object]] = []


def _hushed(ended: Any) -> None:
    if not type(ended.thread).__module__.startswith("tensorboard."):
        _usual[-1](ended)


def check_apart(output: Path, inputs: Mapping[str, Path | str | None]) -> None:
    """Raise DraftrecError where the output is one of the folders that are read, by option: what
    they hold would be written over, or taken for something else."""
    for option, folder in inputs.items():
        if folder is not None and Path(folder).resolve() == output.resolve():
            raise DraftrecError(
                f"--output {output} is the folder of {option}, which is only read; name another "
                "folder"
            )


def _plain(settings: dict[str, Any]) -> dict[str, Any]:
    """As JSON gives them back."""
    return json.loads(json.dumps(settings))
