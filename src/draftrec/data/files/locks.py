"""One writer at a time: a second process that would write to the same place is refused.

A path is locked by the operating system, until its process ends. Stores have no such lock. A file
that is created only where there is none comes near it: its owner renews it every minute, and who
finds it older than five takes it over. The process that it was taken from, or whose output was
removed with the lock in it, notices before it makes anything count.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from draftrec.data.files.places import Place
from draftrec.data.files.remote import RemotePath
from draftrec.data.files.writers import behind_link
from draftrec.errors import DraftrecError

_RENEWED_SECONDS = 60.0
_STALE_SECONDS = 300.0
_NAME = ".lock"
#: What file systems say that have no flock: Lustre as it is mounted by default, some NFS and FUSE.
_NO_FLOCK = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)
_held: dict[Place, Callable[[], None]] = {}  # what raises where somebody else has it now
_entered: set[tuple[int, str]] = set()  # by which thread of this process


@contextmanager
def sole_remote_writer(lock: RemotePath, output: RemotePath) -> Iterator[None]:
    """Hold `output` by the file `lock` against other processes, on whatever machine.

    Raises DraftrecError if another process holds it and was heard of in the last five minutes.
    """
    held = _Lock(lock, output)
    held.take()
    _held[output] = held.check
    try:
        yield
    finally:
        del _held[output]
        held.release()


def check_still_held(output: Place) -> None:
    """Raise DraftrecError if somebody took over what this process holds, say because it slept, or
    may have, because it was removed."""
    if (check := _held.get(output)) is not None:
        check()


class _Lock:
    def __init__(self, path: RemotePath, output: RemotePath) -> None:
        self._path, self._output = path, output
        self._me = {"owner": uuid.uuid4().hex, "process": os.getpid(), **_machine()}
        self._ended = threading.Event()
        # On some stores a file that is replaced is away for a moment.
        self._turn = threading.Lock()
        self._thread = threading.Thread(target=self._renew, name="draftrec-lock", daemon=True)

    def take(self) -> None:
        try:
            self._write(new=True)
        except FileExistsError:
            self._take_over()
        self.check()
        self._thread.start()

    def check(self) -> None:
        """Raise DraftrecError if the file is another's."""
        with self._turn:
            owner = self._owner().get("owner")
        if owner != self._me["owner"]:
            raise DraftrecError(
                f"another process took {self._output} over, as this one was not heard of for "
                f"{_STALE_SECONDS / 60:.0f} minutes; let that one finish"
            )

    def release(self) -> None:
        self._ended.set()
        if self._thread.ident is not None:
            self._thread.join()
        if self._owner().get("owner") == self._me["owner"]:
            self._path.unlink(missing_ok=True)

    def _take_over(self) -> None:
        other = self._owner()
        age = time.time() - float(other.get("at", 0.0))
        if not _has_ended(other) and age < _STALE_SECONDS:
            raise DraftrecError(
                f"process {other.get('process')} on {other.get('host')} is writing to "
                f"{self._output} and was heard of {max(0.0, age):.0f} seconds ago; wait for it, "
                f"choose another output, or remove {self._path} if you know that it has ended"
            )
        self._path.unlink(missing_ok=True)
        try:
            self._write(new=True)
        except FileExistsError:
            raise DraftrecError(
                f"another process began to write to {self._output} at the same time; wait for it, "
                f"or choose another output"
            ) from None

    def _owner(self) -> dict[str, Any]:
        try:
            found = json.loads(self._path.read_bytes())
        except (FileNotFoundError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def _write(self, *, new: bool) -> None:
        content = json.dumps({**self._me, "at": time.time()})
        with tempfile.NamedTemporaryFile("w", prefix="draftrec-") as file:
            file.write(content)
            file.flush()
            self._path.upload(Path(file.name), new=new)

    def _renew(self) -> None:
        while not self._ended.wait(_RENEWED_SECONDS):
            try:
                with self._turn:
                    if self._owner().get("owner") != self._me["owner"]:
                        return  # `check` says so before anything is written
                    self._write(new=False)
            except OSError:
                continue  # the network; another minute, and another process may take over


def _machine() -> dict[str, str]:
    """The machine, and what tells its processes from those of others of the same name."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        marks = f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        marks = ""
    return {"host": socket.gethostname(), "boot": marks}


def _has_ended(other: dict[str, Any]) -> bool:
    """Whether the owner was a process of this machine that is no more."""
    machine = _machine()
    if not machine["boot"] or any(other.get(name) != machine[name] for name in machine):
        return False
    try:
        os.kill(int(other["process"]), 0)
    except ProcessLookupError:
        return True
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return False


@contextmanager
def sole_writer(output: Place, *, inside: bool = False) -> Iterator[None]:
    """Hold a file or folder, which need not exist, against other processes.

    The lock is a file beside it, `.NAME.lock`, or `.lock` `inside` a folder, whose own folder need
    not be writable then. It ends with the process, however that ends. A thread that holds it may
    enter again. Makes the folder that the lock lies in; one that stays empty goes again. A link is
    what it leads to. Systems and file systems without flock go without. Raises DraftrecError if
    somebody else holds it.
    """
    if isinstance(output, RemotePath):
        if inside:
            output.mkdir(parents=True, exist_ok=True)
        path = output / _NAME if inside else output.with_name(f".{output.name}{_NAME}")
        key, hold = path.url, sole_remote_writer(path, output)
    else:
        whole = behind_link(output.absolute())
        whole = whole if whole.name not in ("", "..") else whole.resolve()
        local = whole / _NAME if inside else whole.with_name(f".{whole.name}{_NAME}")
        key, hold = str(local), _local(local, output)
    mine = (threading.get_ident(), key)
    if mine in _entered:
        yield
        return
    with hold:
        _entered.add(mine)
        try:
            yield
        finally:
            _entered.discard(mine)


@contextmanager
def _local(path: Path, output: Path) -> Iterator[None]:
    made = [folder for folder in path.parents if not folder.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        import fcntl
    except ImportError:
        yield
        return
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)  # who held the lock may have made it
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise DraftrecError(
                    f"another process is writing to {output}; wait for it, or choose another output"
                ) from None
            except OSError as error:
                if error.errno not in _NO_FLOCK:
                    raise
            if not _still_there(path, descriptor):
                continue  # its holder removed it between our opening and locking it
            _held[output] = partial(_check_here, path, descriptor, output)
            try:
                yield
            finally:
                _held.pop(output, None)  # one inside a folder and one beside it have one name
                if _still_there(path, descriptor):
                    path.unlink()
                with suppress(OSError):  # one that is not empty, perhaps since this moment
                    for folder in made:
                        folder.rmdir()
            return
        finally:
            os.close(descriptor)


def _check_here(path: Path, descriptor: int, output: Path) -> None:
    if not _still_there(path, descriptor):
        raise DraftrecError(
            f"{output} was removed, or its lock {path}, while this process wrote to it, so that "
            "another one may write there now; let that one finish, or run the same command again"
        )


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
