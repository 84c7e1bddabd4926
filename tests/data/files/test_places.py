"""Paths stay paths, addresses are served or refused, and nothing is taken for the other."""

from __future__ import annotations

import pickle
import sys
import uuid
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from draftrec.data.files.places import RemotePath, here, is_address, place, shown, writable
from draftrec.data.files.writers import replace_file, replacing
from draftrec.errors import DraftrecError


@pytest.fixture
def there() -> RemotePath:
    """A folder of its own in memory."""
    return RemotePath(f"memory://{uuid.uuid4().hex}")


@pytest.mark.parametrize(
    "name", ["run-12:30", "run-12:30/part", "hashed:64.parquet", "a::b", "s3:", "x:y/z", "kar", "."]
)
def test_a_path_with_a_colon_stays_on_this_machine(name: str) -> None:
    assert not is_address(name)
    assert place(name) == here(name) == Path(name)


def test_a_home_folder_is_meant_unless_there_is_one_of_that_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    assert place("~/run") == here("~/run") == writable("~/run") == tmp_path / "home" / "run"
    assert place("~nobody-at-all/run") == Path("~nobody-at-all/run")
    assert place("run~") == Path("run~")
    (tmp_path / "~").mkdir()
    assert place("~/run") == Path("~/run")


@pytest.mark.parametrize("url", ["file:///a/b.csv", "file://localhost/a/b.csv", "file:/a/b.csv"])
def test_a_file_address_is_a_path(url: str) -> None:
    assert place(url) == Path("/a/b.csv")


@pytest.mark.parametrize(
    ("location", "words"),
    [
        ("gs://bucket/run", "pip install gcsfs"),
        ("sftp://host/run", "pip install paramiko"),
        ("nosuch://bucket/run", "no kind of address"),
        ("s3:/bucket/run", "s3://bucket/run"),
        (Path("s3://bucket/run"), "s3://bucket/run"),
    ],
)
def test_what_cannot_be_reached_is_refused_in_a_sentence(
    location: Any, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("gcsfs", "paramiko"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(DraftrecError, match=words):
        place(location)


def test_a_shortened_address_is_a_path_where_such_a_folder_exists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("s3:").mkdir()
    assert place("s3:/bucket") == Path("s3:/bucket")


def test_an_address_is_never_taken_for_a_path(there: RemotePath) -> None:
    for use in (Path, open, lambda p: here(p, "--pool")):
        with pytest.raises(DraftrecError, match="this machine"):
            use(there)  # type: ignore[operator]


@pytest.fixture
def _bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without the packages that serve S3 and the web."""
    for package in ("s3fs", "aiohttp"):
        monkeypatch.setitem(sys.modules, package, None)


@pytest.mark.usefixtures("_bare")
def test_the_refusal_names_the_option_and_the_way_round() -> None:
    with pytest.raises(DraftrecError, match=r"--pool .*s3://b/pool.*aws s3 cp --recursive"):
        here("s3://b/pool", "--pool")


@pytest.mark.usefixtures("_bare")
def test_the_web_is_only_read_from() -> None:
    with pytest.raises(DraftrecError, match="only be read from"):
        writable("https://host/run.parquet", "--output")


def test_names_are_those_of_paths() -> None:
    folder = RemotePath("s3://bucket/run/")
    file = folder / "part-00001.parquet"
    assert str(file) == "s3://bucket/run/part-00001.parquet"
    assert (file.name, file.stem, file.suffix) == ("part-00001.parquet", "part-00001", ".parquet")
    assert file.parent == RemotePath("s3://bucket/run")
    assert file.with_name("x.csv") == RemotePath("s3://bucket/run/x.csv")
    assert RemotePath("s3://bucket").parent == RemotePath("s3://bucket")
    assert file.is_relative_to(folder)
    assert not RemotePath("s3://bucket/runner").is_relative_to(RemotePath("s3://bucket/run"))
    assert RemotePath("zip://a/b.csv::s3://x/y.zip").name == "b.csv"
    assert pickle.loads(pickle.dumps(file)) == file


@pytest.mark.usefixtures("_bare")
def test_secrets_are_not_shown() -> None:
    assert str(RemotePath("https://h/a.csv?X-Signature=s3cret")) == "https://h/a.csv"
    assert shown("https://h/a.csv?X-Signature=s3cret") == "https://h/a.csv"
    assert shown("./a?b") == "a?b"
    assert shown(None) is None
    assert "s3cret" not in str(RemotePath("sftp://me:s3cret@host/a.csv"))
    assert RemotePath("https://h/a.csv?X-Signature=a.b").suffix == ".csv"


def test_files_of_a_store_are_read_as_those_of_a_folder(there: RemotePath) -> None:
    assert not there.exists()
    for name in ("b.csv", "a.csv", "deep/c.csv"):
        replace_file(there / name, name.encode())
    assert there.is_dir()
    assert not there.is_file()
    assert (there / "a.csv").is_file()
    assert (there / "a.csv").stat().st_size == 5
    assert sorted(p.name for p in there.iterdir()) == ["a.csv", "b.csv", "deep"]
    assert [p.name for p in sorted(there.glob("*.csv"))] == ["a.csv", "b.csv"]
    assert sorted(p.name for p in (there / "**" / "*.csv").glob()) == ["a.csv", "b.csv", "c.csv"]
    with (there / "a.csv").open("r") as file:
        assert file.read() == "a.csv"
    (there / "a.csv").unlink()
    (there / "a.csv").unlink(missing_ok=True)
    with pytest.raises(FileNotFoundError) as caught:
        (there / "a.csv").read_bytes()
    assert caught.value.filename == str(there / "a.csv")
    assert caught.value.strerror


def _fail_halfway(there: RemotePath) -> None:
    with replacing(there) as file:
        file.write(b"half of the n")
        raise RuntimeError


def test_a_file_is_seen_whole_or_not_at_all(there: RemotePath) -> None:
    replace_file(there / "x", b"old")
    with pytest.raises(RuntimeError):
        _fail_halfway(there / "x")
    assert (there / "x").read_bytes() == b"old"


class Moving(MemoryFileSystem):
    """A file system whose files are seen while they are written, and whose network may fail."""

    protocol = "moving"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    fails = False

    def put_file(self, lpath: str, rpath: str, *rest: Any, **more: Any) -> None:
        self.pipe_file(rpath, Path(lpath).read_bytes()[:3])
        if self.fails:
            raise ConnectionError("reset by peer")
        super().put_file(lpath, rpath, *rest, **more)


def test_where_files_are_seen_while_they_are_written_they_move_into_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fsspec.register_implementation("moving", Moving, clobber=True)
    there = place("moving://folder/x")
    replace_file(there, b"old one")
    monkeypatch.setattr(Moving, "fails", True)
    with pytest.raises(OSError, match="reset by peer") as caught:
        replace_file(there, b"new one")
    assert caught.value.filename == "moving://folder/x"
    assert there.read_bytes() == b"old one"
    monkeypatch.setattr(Moving, "fails", False)
    replace_file(there, b"new one")
    assert there.read_bytes() == b"new one"
    assert [p.name for p in there.parent.iterdir()] == ["x"]
