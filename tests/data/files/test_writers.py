"""Files appear whole or not at all, wherever they lie, and leave nothing beside them."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from safetensors.numpy import save_file

from draftrec.data.files import writers
from draftrec.data.files.writers import renaming, replace_file, sync_folder, write_tables

SCHEMA = pa.schema([("x", pa.int64())])


@pytest.mark.parametrize("ending", ["parquet", "jsonl", "csv"])
@pytest.mark.parametrize("end", [KeyboardInterrupt, ValueError])
def test_what_ends_while_it_is_written_leaves_the_old_file_alone(
    tmp_path: Path, end: type[BaseException], ending: str
) -> None:
    def tables() -> Iterator[pa.Table]:
        yield pa.table({"x": [1]}, schema=SCHEMA)
        raise end

    path = tmp_path / f"x.{ending}"
    path.write_bytes(b"old")
    with pytest.raises(end):
        write_tables(path, SCHEMA, tables())
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {path.name: b"old"}


def test_what_ends_as_it_gets_its_name_leaves_nothing_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def end(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", end)
    with pytest.raises(KeyboardInterrupt):
        replace_file(tmp_path / "x", b"new")
    assert not list(tmp_path.iterdir())


def test_a_folder_of_that_name_is_named_and_stays(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    with pytest.raises(IsADirectoryError) as caught:
        replace_file(tmp_path / "x", b"new")
    assert caught.value.filename == str(tmp_path / "x")
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_a_link_stays_one_and_its_file_is_replaced(tmp_path: Path) -> None:
    for name in ("disk", "here"):
        (tmp_path / name).mkdir()
    link, file = tmp_path / "here" / "x", tmp_path / "disk" / "y"
    link.symlink_to(file)
    for content in (b"new", b"newer"):
        replace_file(link, content)
        assert (link.is_symlink(), file.read_bytes()) == (True, content)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["disk", "here", "x", "y"]


def test_what_a_library_writes_by_name_appears_whole(tmp_path: Path) -> None:
    path = tmp_path / "x"
    with renaming(path) as temporary:
        temporary.write_bytes(b"new")
        assert not path.exists()
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("x", b"new")]


def test_a_folder_that_cannot_be_forced_to_disk_is_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shares of Windows say that the argument is invalid; a broken disk is an error."""
    fsync, said = os.fsync, [errno.EINVAL]

    def of_files_alone(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(said[0], os.strerror(said[0]))
        fsync(descriptor)

    monkeypatch.setattr(writers.os, "fsync", of_files_alone)
    replace_file(tmp_path / "x", b"new")
    assert (tmp_path / "x").read_bytes() == b"new"
    said[0] = errno.EIO
    with pytest.raises(OSError, match="Input/output"):
        sync_folder(tmp_path)


def test_what_the_system_told_a_library_in_rust_is_told_with_the_file(tmp_path: Path) -> None:
    """Of a folder that had gone it was an unexpected SafetensorError, without a way to mend it."""
    path = tmp_path / "gone" / "best.safetensors"
    with pytest.raises(OSError, match="No such file") as told, renaming(path) as temporary:
        save_file({"a": np.zeros(3)}, temporary)
    assert (told.value.errno, told.value.filename) == (errno.ENOENT, str(path))
