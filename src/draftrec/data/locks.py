"""One writer at a time: a second process that would write to the same place is refused."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from draftrec.data.places import Place
from draftrec.data.remote import RemotePath
from draftrec.data.remote_lock import sole_remote_writer
from draftrec.errors import DraftrecError


@contextmanager
def sole_writer(output: Place) -> Iterator[None]:
    """Hold a file or folder, which need not exist, against other processes.

    The lock is a file beside it, `.NAME.lock`, and ends with the process, however that ends. Makes
    the folder it lies in. Raises DraftrecError if somebody else holds it. Systems without flock go
    without; elsewhere than on this machine, see `draftrec.data.remote_lock`.
    """
    if isinstance(output, RemotePath):
        with sole_remote_writer(output.with_name(f".{output.name}.lock"), output):
            yield
        return
    try:
        import fcntl
    except ImportError:
        yield
        return
    whole = output.absolute()
    whole = whole if whole.name not in ("", "..") else whole.resolve()
    path = whole.with_name(f".{whole.name}.lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise DraftrecError(
                    f"another process is writing to {output}; wait for it, or choose another output"
                ) from None
            if not _still_there(path, descriptor):
                continue  # its holder removed it between our opening and locking it
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return
        finally:
            os.close(descriptor)


def refuse_second_writer(output: Place) -> None:
    """Raise DraftrecError if another process writes to `output` now, before work that would be in
    vain."""
    if isinstance(output, RemotePath) or output.parent.is_dir():
        with sole_writer(output):
            pass


def _still_there(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
