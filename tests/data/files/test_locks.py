"""One writer at a time, by whatever name it knows the output, and on whatever file system."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from draftrec.data.files import locks
from draftrec.data.files.locks import sole_writer
from draftrec.data.files.remote import RemotePath
from draftrec.errors import DraftrecError
from draftrec.jobs.trials import TrialStore
from tests.locks import held_elsewhere


@pytest.mark.parametrize("inside", [False, True])
def test_a_link_is_locked_as_what_it_leads_to(tmp_path: Path, *, inside: bool) -> None:
    link, real = tmp_path / "link", tmp_path / "real"
    link.symlink_to(real)
    for one, other in ((link, real), (real, link)):
        with (
            held_elsewhere(one, inside=inside),
            pytest.raises(DraftrecError, match="another process is writing"),
            sole_writer(other, inside=inside),
        ):
            pass
    assert [p.name for p in tmp_path.iterdir()] == ["link"]


def test_who_writes_to_what_was_removed_notices(tmp_path: Path) -> None:
    """The next process may have begun anew there, with a lock of its own."""
    output, figures = tmp_path / "study", {"auc": 0.5}
    store = TrialStore(output, {"data": "a"})
    with store.opened():
        store.append({"seed": 0}, figures, 1.0)
        shutil.rmtree(output)
        output.mkdir()
        (output / ".lock").touch()
        with pytest.raises(DraftrecError, match="was removed"):
            store.append({"seed": 1}, figures, 1.0)
        with pytest.raises(DraftrecError, match="was removed"):
            store.ledger.write("{}")
    assert [p.name for p in output.iterdir()] == [".lock"]


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK])
def test_file_systems_without_locks_are_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def flock(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", flock)
    with sole_writer(tmp_path / "x"):
        (tmp_path / "x").write_bytes(b"new")
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_who_renews_a_lock_elsewhere_is_not_taken_for_robbed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On some stores a file is removed before another takes its place."""
    output = RemotePath("memory://renewed/run")
    away, back, write = threading.Event(), threading.Event(), locks._Lock._write

    def slowly(self: Any, *, new: bool) -> None:
        if not new:
            self._path.unlink()
            away.set()
            assert back.wait(10)
        write(self, new=new)

    monkeypatch.setattr(locks, "_RENEWED_SECONDS", 0.01)
    monkeypatch.setattr(locks._Lock, "_write", slowly)
    with locks.sole_remote_writer(output / ".lock", output):
        assert away.wait(10)
        threading.Timer(0.05, back.set).start()
        locks.check_still_held(output)


def test_other_errors_of_locks_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(OSError, match="Input/output"), sole_writer(tmp_path / "x"):
        pass
