"""One writer at a time, by whatever name it knows the output, and on whatever file system."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

import pytest

from draftrec.data.files.locks import sole_writer
from draftrec.errors import DraftrecError
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


def test_other_errors_of_locks_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(OSError, match="Input/output"), sole_writer(tmp_path / "x"):
        pass
