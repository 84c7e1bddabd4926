"""Pools on disk: they come back as they were, or say what is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from draftrec.core import IntArray
from draftrec.errors import DraftrecError, PoolMismatchError
from draftrec.pool import store
from draftrec.pool.index import TreeBuilder, tail_of_text
from draftrec.pool.store import Pool

TEXTS = [([5, 6, 7, 0], "books"), ([5, 6, 8, 0], "films"), ([9, 0], None), ([], "books")]


def make_pool(fingerprint: str = "tokenizer-a") -> Pool:
    pool = Pool(fingerprint)
    pool.add((np.array(ids, np.int64), group) for ids, group in TEXTS)
    return pool


def drafts(pool: Pool, context: list[int]) -> list[list[float]]:
    tail = tail_of_text(np.array(context, np.int32))
    sources = [pool.all, *(pool.groups[name] for name in sorted(pool.groups))]
    trees = [TreeBuilder().build([(index, tail, 1.0, 3)], 16, 8) for index in sources]
    return [[*t.token_ids.tolist(), *t.probs.tolist()] for t in trees]


def files_of(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_texts_are_indexed_together_and_by_group() -> None:
    pool = make_pool()
    assert len(pool) == 4
    assert pool.tokens == 10
    assert sorted(pool.groups) == ["books", "films"]
    assert (pool.all.texts, pool.groups["books"].texts, pool.groups["films"].texts) == (3, 1, 1)
    assert pool.nbytes == pool.all.nbytes + sum(g.nbytes for g in pool.groups.values())


def test_a_pool_comes_back_as_it_was(tmp_path: Path) -> None:
    pool = make_pool()
    pool.save(tmp_path / "deep" / "pool")
    found = Pool.load(tmp_path / "deep" / "pool", "tokenizer-a")
    assert len(found) == len(pool)
    assert found.tokens == pool.tokens
    assert found.tokenizer_fingerprint == "tokenizer-a"
    for context in ([], [5], [5, 6]):
        assert drafts(found, context) == drafts(pool, context)
    assert drafts(found, [5, 6])[0]


def test_saving_what_was_loaded_changes_no_byte(tmp_path: Path) -> None:
    """Resumed jobs compare pools; the files hold no times either."""
    make_pool().save(tmp_path / "a")
    Pool.load(tmp_path / "a").save(tmp_path / "b")
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")
    make_pool().copy().save(tmp_path / "b")
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")


def test_an_empty_pool_can_be_saved(tmp_path: Path) -> None:
    Pool("t").save(tmp_path / "pool")
    found = Pool.load(tmp_path / "pool", "t")
    assert len(found) == found.tokens == 0


def test_a_copy_grows_on_its_own() -> None:
    pool = make_pool()
    before = drafts(pool, [5])
    other = pool.copy()
    other.add([(np.array([5, 1, 1], np.int32), "books")])
    assert (len(other), len(pool)) == (5, 4)
    assert drafts(pool, [5]) == before != drafts(other, [5])


def test_pools_of_other_tokenizers_are_refused(tmp_path: Path) -> None:
    make_pool().save(tmp_path / "pool")
    with pytest.raises(PoolMismatchError, match="another tokenizer") as error:
        Pool.load(tmp_path / "pool", "tokenizer-b")
    assert "tokenizer-b" in str(error.value)
    assert len(Pool.load(tmp_path / "pool")) == 4


def test_pools_of_other_versions_are_refused(tmp_path: Path) -> None:
    make_pool().save(tmp_path / "pool")
    path = tmp_path / "pool" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format_version": 99}))
    with pytest.raises(PoolMismatchError, match="format version 99"):
        Pool.load(tmp_path / "pool")


@pytest.mark.parametrize("name", ["tokens", "offsets", "groups"])
@pytest.mark.parametrize("damage", ["cut", "flipped", "gone"])
def test_damaged_files_are_named(tmp_path: Path, name: str, damage: str) -> None:
    make_pool().save(tmp_path / "pool")
    path = tmp_path / "pool" / f"{name}.npy"
    content = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(content[:-3] if damage == "cut" else content[:-1] + b"\xff")
    with pytest.raises(DraftrecError, match="damaged") as error:
        Pool.load(tmp_path / "pool")
    assert path.name in str(error.value)


@pytest.mark.parametrize("content", ["", "{", "[1]", "{}", '{"format_version": 1}', "\x00"])
def test_a_damaged_manifest_is_refused(tmp_path: Path, content: str) -> None:
    make_pool().save(tmp_path / "pool")
    (tmp_path / "pool" / "manifest.json").write_text(content)
    with pytest.raises(DraftrecError, match="cannot be read"):
        Pool.load(tmp_path / "pool")


def test_pickles_are_never_opened(tmp_path: Path) -> None:
    make_pool().save(tmp_path / "pool")
    path = tmp_path / "pool" / "groups.npy"
    np.save(path, np.array([{}], object), allow_pickle=True)
    manifest = tmp_path / "pool" / "manifest.json"
    data = json.loads(manifest.read_text())
    data["checksums"]["groups"] = store._checksum(path)
    manifest.write_text(json.dumps(data))
    with pytest.raises(DraftrecError, match="damaged"):
        Pool.load(tmp_path / "pool")


@pytest.mark.parametrize("folder", ["missing", "empty", "a file"])
def test_what_is_no_pool_is_refused(tmp_path: Path, folder: str) -> None:
    path = tmp_path / "pool"
    if folder == "empty":
        path.mkdir()
    elif folder == "a file":
        path.write_text("no pool")
    with pytest.raises(DraftrecError):
        Pool.load(path)


def test_other_peoples_folders_are_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.txt").write_text("precious")
    with pytest.raises(DraftrecError, match="is not a pool"):
        make_pool().save(tmp_path / "thesis")
    assert (tmp_path / "thesis" / "chapter1.txt").read_text() == "precious"


def test_a_newer_pool_replaces_the_old_one_and_leaves_nothing_behind(tmp_path: Path) -> None:
    make_pool().save(tmp_path / "pool")
    pool = make_pool()
    pool.add([(np.array([1, 2], np.int32), None)])
    pool.save(tmp_path / "pool")
    assert len(Pool.load(tmp_path / "pool")) == 5
    assert [p.name for p in tmp_path.iterdir()] == ["pool"]


@pytest.mark.parametrize("name", ["tokens", "offsets", "groups"])
def test_a_crash_while_saving_leaves_the_old_pool(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    make_pool().save(tmp_path / "pool")
    before = files_of(tmp_path / "pool")
    save = np.save

    def full_disk(path: Path, array: IntArray, **options: bool) -> None:
        if path.name == f"{name}.npy":
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")
        save(path, array, **options)

    monkeypatch.setattr(np, "save", full_disk)
    with pytest.raises(OSError, match="No space"):
        make_pool("other").save(tmp_path / "pool")
    assert files_of(tmp_path / "pool") == before
    assert [p.name for p in tmp_path.iterdir()] == ["pool"]


def test_a_crash_between_the_renames_leaves_a_pool(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old pool has been moved away, the new one is not there yet."""
    make_pool().save(tmp_path / "pool")
    rename = Path.rename

    def crash(self: Path, target: Path) -> Path:
        if target == tmp_path / "pool":
            monkeypatch.undo()  # only once: what puts the old pool back may rename as well
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", crash)
    with pytest.raises(OSError, match="Input/output"):
        make_pool("other").save(tmp_path / "pool")
    assert len(Pool.load(tmp_path / "pool", "tokenizer-a")) == 4


def test_a_kill_between_the_renames_leaves_a_pool(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing gets to clean up, and still a pool can be opened and saved again."""
    make_pool().save(tmp_path / "pool")
    rename = Path.rename

    def dead(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    def killed(self: Path, target: Path) -> Path:
        if target == tmp_path / "pool":
            dead()
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed)
        patch.setattr(store.shutil, "rmtree", lambda *_, **__: None)
        with pytest.raises(KeyboardInterrupt):
            make_pool("other").save(tmp_path / "pool")
    assert not (tmp_path / "pool").exists()
    pool = Pool.load(tmp_path / "pool", "tokenizer-a")
    assert len(pool) == 4
    pool.save(tmp_path / "pool")
    assert len(Pool.load(tmp_path / "pool", "tokenizer-a")) == 4
    assert not list(tmp_path.glob("*.old"))


def test_pools_are_readable_like_any_other_file(tmp_path: Path) -> None:
    """Others on the machine may share a pool, as far as the umask allows."""
    make_pool().save(tmp_path / "pool")
    (tmp_path / "plain").mkdir()
    assert (tmp_path / "pool").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_memory_is_bounded(tmp_path: Path) -> None:
    pool = Pool("t", max_bytes=200_000)
    random = np.random.default_rng(0)
    texts = [(random.integers(0, 1000, 50).astype(np.int32), "g") for _ in range(60)]
    pool.add(texts)
    assert 0 < len(pool) == pool.all.texts < 60
    largest = pool.nbytes, len(pool)
    pool.add(texts)
    assert (pool.nbytes, len(pool)) == largest
    pool.save(tmp_path / "pool")
    assert len(Pool.load(tmp_path / "pool")) == len(pool)
