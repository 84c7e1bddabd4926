"""Run folders at addresses: the same bytes as here, whatever fails on the way."""

from __future__ import annotations

import threading
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from draftrec.data.files import locks as remote_lock
from draftrec.data.files import remote
from draftrec.data.files.locks import check_still_held, sole_remote_writer
from draftrec.data.files.remote import RemotePath
from draftrec.errors import DraftrecError, Interrupted
from draftrec.evaluate.compare.runs import read_run
from draftrec.jobs.knowledge.job import JobSpec
from draftrec.jobs.knowledge.shards import RunFolder
from tests.fakes import FakeGenerator, Killed
from tests.jobs.knowledge.test_job import DATA, data_of, do, make_spec, write_rows


class Failing(MemoryFileSystem):
    """A store that dies at its `fatal`th change, as if the process had been killed there: nothing
    works afterwards. A file that is being put is seen half written before it dies."""

    protocol = "failing"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    changes = 0
    fatal: int | None = None
    error: type[BaseException] = Killed

    @classmethod
    def restart(cls, fatal: int | None = None, error: type[BaseException] = Killed) -> None:
        cls.changes, cls.fatal, cls.error = 0, fatal, error

    @classmethod
    def _change(cls) -> None:
        cls.changes += 1
        cls._alive()

    @classmethod
    def _alive(cls) -> None:
        if cls.fatal is not None and cls.changes >= cls.fatal:
            raise cls.error("the network is gone")

    def put_file(self, lpath: str, rpath: str, *rest: Any, **more: Any) -> None:
        content = Path(lpath).read_bytes()
        if "failing" not in remote._WHOLE:
            self._alive()
            super().pipe_file(rpath, content[: len(content) // 2])
        self._change()
        super().pipe_file(rpath, content)

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **more: Any) -> None:
        self._change()
        super().pipe_file(path, value, mode=mode)

    def rm_file(self, path: str) -> None:
        self._change()
        super().rm_file(path)

    def mv(self, path1: str, path2: str, **more: Any) -> None:
        self._change()
        self.store[self._strip_protocol(path2)] = self.store.pop(self._strip_protocol(path1))

    def info(self, path: str, **more: Any) -> Any:
        self._alive()
        return super().info(path, **more)

    def ls(self, path: str, detail: bool = True, **more: Any) -> Any:  # noqa: FBT001
        self._alive()
        return super().ls(path, detail=detail, **more)

    def cat_file(self, path: str, *rest: Any, **more: Any) -> Any:
        self._alive()
        return super().cat_file(path, *rest, **more)


fsspec.register_implementation("failing", Failing, clobber=True)


@pytest.fixture
def there() -> RemotePath:
    return RemotePath(f"memory://{uuid.uuid4().hex}")


@pytest.fixture
def dead(monkeypatch: pytest.MonkeyPatch) -> None:
    """Locks that are found belong to processes that have ended."""
    monkeypatch.setattr(remote_lock, "_has_ended", lambda other: True)


def elsewhere(spec: JobSpec, folder: RemotePath) -> JobSpec:
    return replace(spec, output=folder)


def remote_data(folder: RemotePath) -> dict[str, bytes]:
    """The run's data files, byte for byte."""
    return {p.name: p.read_bytes() for pattern in DATA for p in sorted(folder.glob(pattern))}


def names_of(folder: RemotePath) -> set[str]:
    return {p.name for p in folder.iterdir()}


def test_a_run_elsewhere_holds_the_files_of_one_here(tmp_path: Path, there: RemotePath) -> None:
    write_rows(tmp_path / "in.jsonl")
    spec = make_spec(tmp_path)
    summary = do(spec).summary
    assert do(elsewhere(spec, there)).summary["new_tokens"] == summary["new_tokens"]
    assert remote_data(there) == data_of(tmp_path / "run")
    own = {p.name for p in (tmp_path / "run").iterdir()} - {".lock"}
    assert names_of(there) == own
    for name in ("metrics.jsonl", "summary.json", "manifest.json"):
        lines = (there / name).read_text().splitlines()
        assert len(lines) == len((tmp_path / "run" / name).read_text().splitlines())
    assert read_run("a", str(there)).texts == read_run("b", tmp_path / "run").texts


@pytest.mark.slow
@pytest.mark.parametrize("accept", ["strict", "relaxed"])
def test_an_interrupted_run_goes_on_from_another_machine(
    tmp_path: Path, there: RemotePath, accept: str
) -> None:
    write_rows(tmp_path / "in.jsonl")
    spec = make_spec(tmp_path, accept=accept)
    do(spec)
    relaxed = accept == "relaxed"
    steps = iter(range(1000))
    with pytest.raises(Interrupted):
        do(
            elsewhere(spec, there),
            FakeGenerator(relaxed=relaxed),
            should_stop=lambda: next(steps) > 12,
        )
    assert 0 < len(remote_data(there)) < len(data_of(tmp_path / "run"))
    assert ".lock" not in names_of(there)
    writer = FakeGenerator(relaxed=relaxed)
    do(elsewhere(spec, there), writer)
    assert 0 < writer.decoded < 18
    assert remote_data(there) == data_of(tmp_path / "run")
    assert not do(elsewhere(spec, there)).fresh


@pytest.mark.slow
@pytest.mark.parametrize(
    ("error", "whole"),
    [(Killed, True), (ConnectionError, True), (Killed, False)],
    ids=["killed", "offline", "killed where files move into place"],
)
@pytest.mark.usefixtures("dead")
def test_whatever_change_fails_the_next_run_ends_with_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException], *, whole: bool
) -> None:
    if whole:
        monkeypatch.setattr(remote, "_WHOLE", remote._WHOLE | {"failing"})
    write_rows(tmp_path / "in.jsonl", 12)
    spec = make_spec(tmp_path)
    do(spec)
    wanted = data_of(tmp_path / "run")
    Failing.restart()
    do(elsewhere(spec, RemotePath(f"failing://{uuid.uuid4().hex}")))
    changes = Failing.changes
    assert changes > 10
    for fatal in range(1, changes):
        folder = RemotePath(f"failing://{uuid.uuid4().hex}")
        Failing.restart(fatal, error)
        with pytest.raises((Killed, OSError)):
            do(elsewhere(spec, folder))
        Failing.restart()
        do(elsewhere(spec, folder))
        assert remote_data(folder) == wanted, fatal
        assert (folder / "summary.json").is_file()
        assert not [name for name in names_of(folder) if name.startswith(".")], fatal


def test_another_process_is_refused_until_it_is_not_heard_of(
    there: RemotePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = there / ".lock"
    with sole_remote_writer(lock, there):
        with (
            pytest.raises(DraftrecError, match=r"is writing to memory://.* seconds ago"),
            sole_remote_writer(lock, there),
        ):
            pass
        monkeypatch.setattr(remote_lock, "_STALE_SECONDS", 0.0)
        first = remote_lock._held[there]
        with sole_remote_writer(lock, there):
            with pytest.raises(DraftrecError, match=r"took .* over"):
                first()
            check_still_held(there)
        remote_lock._held[there] = first  # the test's two processes are one
    assert not lock.exists()


def test_a_lock_is_renewed(there: RemotePath, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_lock, "_RENEWED_SECONDS", 0.01)
    renewed = threading.Event()
    lock = there / ".lock"
    with sole_remote_writer(lock, there):
        first = b""
        while not first:  # this store shows files empty while they are written
            first = lock.read_bytes()
        while lock.read_bytes() in (first, b""):
            renewed.wait(0.01)
    assert not lock.exists()


def test_a_run_that_was_taken_over_writes_no_manifest_more(
    tmp_path: Path, there: RemotePath
) -> None:
    write_rows(tmp_path / "in.jsonl")

    def steal(decoded: int) -> None:
        if decoded == 8:
            (there / ".lock").unlink()

    spec = elsewhere(make_spec(tmp_path), there)
    with pytest.raises(DraftrecError, match=r"took .* over"):
        do(spec, FakeGenerator(on_request=steal))
    manifest = RunFolder(there).manifest()
    assert manifest is not None
    assert len(manifest.shards) == 1


def test_an_earlier_run_elsewhere_is_refreshed(tmp_path: Path, there: RemotePath) -> None:
    write_rows(tmp_path / "in.jsonl")
    spec = make_spec(tmp_path)
    do(elsewhere(spec, there / "old"))
    refreshed = replace(elsewhere(spec, there / "new"), previous=there / "old")
    assert do(refreshed).summary["kept"] == 18
    assert remote_data(there / "new").keys() == remote_data(there / "old").keys()
    with pytest.raises(DraftrecError, match="one folder"):
        do(replace(refreshed, previous=there / "new"))


def test_overwriting_leaves_nothing_of_the_old_run(tmp_path: Path, there: RemotePath) -> None:
    write_rows(tmp_path / "in.jsonl")
    do(elsewhere(make_spec(tmp_path), there))
    with pytest.raises(DraftrecError, match="begun otherwise"):
        do(elsewhere(make_spec(tmp_path, shard_size=20), there))
    do(elsewhere(make_spec(tmp_path, shard_size=20, overwrite=True), there))
    assert sum(name.startswith("part-") for name in names_of(there)) == 2


def test_parts_that_were_changed_elsewhere_are_noticed(tmp_path: Path, there: RemotePath) -> None:
    write_rows(tmp_path / "in.jsonl")
    spec = elsewhere(make_spec(tmp_path), there)
    do(spec)
    (there / "part-00001.parquet").unlink()
    with pytest.raises(DraftrecError, match=r"memory://.*part-00001.parquet is missing"):
        do(spec)
