"""Pools on disk: they come back as they were, or say what is wrong."""

from __future__ import annotations

import copy
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import SafetensorError

from draftrec.core import IntArray
from draftrec.errors import DraftrecError, PoolMismatchError
from draftrec.evaluate.replay.job import check_pool
from draftrec.pool import files
from draftrec.pool.index import TreeBuilder, tail_of_text
from draftrec.pool.store import LevelName, Pool

TEXTS = [([5, 6, 7, 0], "books"), ([5, 6, 8, 0], "films"), ([9, 0], None), ([], "books")]


def make_pool(fingerprint: str = "tokenizer-a") -> Pool:
    pool = Pool(fingerprint)
    pool.add((np.array(ids, np.int64), group) for ids, group in TEXTS)
    return pool


def drafts(pool: Pool, context: list[int]) -> list[list[float]]:
    tail = tail_of_text(np.array(context, np.int32))
    levels = [pool.all, *(pool.groups[name] for name in sorted(pool.groups))]
    trees = [
        TreeBuilder().build([(index, tail, 1.0, 3) for index in level.indexes], 16, 8)
        for level in levels
    ]
    return [[*t.token_ids.tolist(), *t.probs.tolist()] for t in trees]


def files_of(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_texts_are_indexed_together_and_by_group() -> None:
    pool = make_pool()
    assert len(pool) == 3  # there is nothing to draft from an empty text
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
    make_pool().save(tmp_path / "a")
    Pool.load(tmp_path / "a").save(tmp_path / "b")
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")


def test_an_empty_pool_can_be_saved(tmp_path: Path) -> None:
    Pool("t").save(tmp_path / "pool")
    found = Pool.load(tmp_path / "pool", "t")
    assert len(found) == found.tokens == 0


def test_what_is_loaded_may_grow(tmp_path: Path) -> None:
    pool = make_pool()
    pool.save(tmp_path / "pool")
    found = Pool.load(tmp_path / "pool")
    found.add([(np.array([5, 1, 1], np.int32), "books"), (np.array([5, 2], np.int32), "new")])
    assert (len(found), len(pool)) == (5, 3)
    assert found.tokens == 15
    assert drafts(found, [5])[0] != drafts(pool, [5])[0]
    assert sorted(found.groups) == ["books", "films", "new"]
    texts = [(ids.tolist(), group) for ids, group in found]
    found.save(tmp_path / "pool")
    again = Pool.load(tmp_path / "pool")
    assert [(ids.tolist(), group) for ids, group in again] == texts


def pickled(pool: Pool) -> Pool:
    return pickle.loads(pickle.dumps(pool))


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled])
def test_copies_read_their_own_memory(tmp_path: Path, copied: Callable[[Pool], Pool]) -> None:
    """Kernels know indexes by their addresses."""
    make_pool().save(tmp_path / "pool")
    pool = Pool.load(tmp_path / "pool")
    pool.add([(np.array([5, 9], np.int32), "books")])  # so few that it is not sorted in
    other = copied(pool)
    assert len(pool.all.indexes) == 2
    for mine, theirs in zip(pool.all.indexes, other.all.indexes, strict=True):
        assert mine.handle[1] != theirs.handle[1]
    known = drafts(pool, [5])
    assert drafts(other, [5]) == known
    other.add([(np.array([5, 3, 3], np.int32), None)] * 9)
    assert drafts(pool, [5]) == known != drafts(other, [5])


@pytest.mark.parametrize("levels", [("all",), ("group",), ("group", "all")])
def test_only_the_levels_asked_for_are_kept(tmp_path: Path, levels: tuple[LevelName, ...]) -> None:
    pool = Pool("t", levels=levels)
    pool.add((np.array(ids, np.int32), group) for ids, group in TEXTS)
    pool.save(tmp_path / "pool")
    for one in (pool, Pool.load(tmp_path / "pool")):
        assert one.levels == tuple(sorted(levels, reverse=True))
        assert (one.all.texts, len(one.groups)) == (
            3 if "all" in levels else 0,
            2 if "group" in levels else 0,
        )
        assert [name for name, _ in one.sources("books")] == sorted(levels, reverse=True)
        assert [name for name, _ in one.sources(None)] == (["all"] if "all" in levels else [])


def test_when_texts_are_settled_does_not_show_in_the_drafts() -> None:
    """One by one, the last texts wait in the open index; at once, all are in the closed one."""
    random = np.random.default_rng(0)
    texts = [(random.integers(0, 4, 40).astype(np.int32), "g") for _ in range(40)]
    slow, fast = Pool("t"), Pool("t")
    for text in texts:
        slow.add([text])
    fast.add(texts)
    assert len(slow.all.indexes) == 2
    assert len(fast.all.indexes) == 1
    assert slow.all.tokens == fast.all.tokens == 1600
    slow.all.settle()
    assert drafts(slow, [1, 2, 3])[0] == drafts(fast, [1, 2, 3])[0]


def test_credit_goes_to_the_text_that_was_followed(tmp_path: Path) -> None:
    pool = Pool("t")
    texts = [[1, 2, 3, 4, 5], [9, 2, 3, 7, 7], [6, 6, 6, 6]]
    pool.add((np.array(t, np.int32), "g") for t in texts)
    # After 9 2 the draft 3 7 was accepted, after the beginning 6 6, and once what no text holds.
    pool.credit("g", np.array([9, 2, 3, 7, 1, 8], np.int32), 5, [(2, 4), (1, 6)])
    pool.credit("g", np.array([6, 6, 0], np.int32), 1, [(2, 2)])
    assert pool.rows["accepted"].tolist() == [0, 2, 2]
    assert (pool.rows["used"] > 0).tolist() == [False, True, True]
    assert (pool.usage.drafts, pool.usage.hits, pool.usage.accepted) == (6, 2, 4)
    assert pool.usage.by_group == {"g": [6, 2, 4]}
    assert pool.usage.by_length[:5].tolist() == [0, 2, 0, 2, 0]
    pool.save(tmp_path / "pool")
    found = Pool.load(tmp_path / "pool")
    assert found.rows.tolist() == pool.rows.tolist()
    assert found.usage.to_json() == pool.usage.to_json()


def test_what_was_accepted_least_and_longest_ago_goes_first() -> None:
    pool = Pool("t", levels=("all",))
    pool.add((np.full(100, i, np.int32), None) for i in range(5))
    pool.rows["accepted"] = [50, 0, 50, 5, 0]
    day = 86_400.0
    pool.rows["added"] = [0, 99 * day, 0, 0, 0]
    pool.rows["used"] = [0, 0, 99 * day, 99 * day, 0]
    kept = [int(ids[0]) for ids, _ in pool.prune(3 * 100 * 25, now=100 * day)]
    assert kept == [1, 2, 3]
    assert [int(ids[0]) for ids, _ in pool.prune(2 * 100 * 25, now=100 * day)] == [2, 3]
    assert len(pool.prune(10**9)) == 5
    assert len(pool.prune(0)) == 0
    assert pool.prune(2 * 100 * 25, now=100 * day).rows["accepted"].tolist() == [50, 5]


def test_pruning_to_the_size_of_the_files_keeps_all(tmp_path: Path) -> None:
    """Texts without a group are in one index, and take half of what they would take in two."""
    random = np.random.default_rng(0)
    pool = Pool("t")
    pool.add((random.integers(0, 1000, 500).astype(np.int32), None) for _ in range(60))
    pool.save(tmp_path / "pool")
    size = sum(path.stat().st_size for path in (tmp_path / "pool").iterdir())
    assert len(pool.prune(size)) >= 57
    half = pool.prune(size // 2)
    half.save(tmp_path / "half")
    left = sum(path.stat().st_size for path in (tmp_path / "half").iterdir())
    assert 0.4 * size < left <= 0.6 * size


def test_merging_keeps_every_text_once() -> None:
    a, b = make_pool(), make_pool()
    b.add([(np.array([4, 4], np.int32), "books"), (np.array([9, 0], np.int32), "films")])
    a.rows["accepted"], b.rows["accepted"] = [1, 2, 3], [10, 0, 0, 7, 0]
    a.usage.count("books", 4, [1, 2])
    both = a.merge(b)
    assert [(ids.tolist(), group) for ids, group in both] == [
        *[(ids, group) for ids, group in TEXTS if ids],
        ([4, 4], "books"),
        ([9, 0], "films"),
    ]
    assert both.rows["accepted"].tolist() == [11, 2, 3, 7, 0]
    assert (both.usage.drafts, both.usage.accepted) == (4, 3)
    assert (len(a), len(b)) == (3, 5)
    with pytest.raises(PoolMismatchError):
        a.merge(Pool("tokenizer-b"))


def test_merging_has_room_for_both() -> None:
    random = np.random.default_rng(0)
    pools = [Pool("t", max_bytes=100_000) for _ in range(2)]
    for pool in pools:
        pool.add((random.integers(0, 1000, 50).astype(np.int32), "g") for _ in range(60))
        assert pool.full
    both = pools[0].merge(pools[1])
    assert len(both) == len(pools[0]) + len(pools[1])
    assert not both.full


def test_pools_of_other_tokenizers_are_refused(tmp_path: Path) -> None:
    make_pool().save(tmp_path / "pool")
    with pytest.raises(PoolMismatchError, match="another tokenizer") as error:
        Pool.load(tmp_path / "pool", "tokenizer-b")
    assert "tokenizer-b" in str(error.value)
    assert len(Pool.load(tmp_path / "pool")) == 3


def test_pools_of_other_versions_are_refused(tmp_path: Path) -> None:
    make_pool().save(tmp_path / "pool")
    path = tmp_path / "pool" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format_version": 99}))
    with pytest.raises(PoolMismatchError, match="format version 99"):
        Pool.load(tmp_path / "pool")


@pytest.mark.parametrize(
    "name", ["tokens.npy", "offsets.npy", "groups.npy", "usage.npy", "all.safetensors"]
)
@pytest.mark.parametrize("damage", ["cut", "flipped", "gone"])
def test_damaged_files_are_named(tmp_path: Path, name: str, damage: str) -> None:
    make_pool().save(tmp_path / "pool")
    path = tmp_path / "pool" / name
    content = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(
            content[:-3] if damage == "cut" else content[:-1] + bytes([content[-1] ^ 1])
        )
    with pytest.raises(DraftrecError, match="damaged") as error:
        Pool.load(tmp_path / "pool")
    assert path.name in str(error.value)


@pytest.mark.parametrize("content", ["", "{", "[1]", "{}", '{"format_version": 2}', "\x00"])
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
    data["files"]["groups.npy"] = {"bytes": path.stat().st_size, "sha256": files.checksum(path)}
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
    assert len(Pool.load(tmp_path / "pool")) == 4
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
    with pytest.raises(DraftrecError, match=r"no space left on device.*unchanged"):
        make_pool("other").save(tmp_path / "pool")
    assert files_of(tmp_path / "pool") == before
    assert [p.name for p in tmp_path.iterdir()] == ["pool"]


def test_a_full_disk_while_an_index_is_written_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(*_: object) -> None:
        raise SafetensorError("Error while serializing: No space left on device (os error 28)")

    monkeypatch.setattr("draftrec.pool.suffixes.save_file", full_disk)
    with pytest.raises(
        DraftrecError, match=r"cannot be written \(no space left on device\)"
    ) as error:
        make_pool().save(tmp_path / "pool")
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["all", "group-00000"])
@pytest.mark.parametrize("texts", [[[5, 6, 9, 0]], [[5, 6]], [[5, 6, 7, 0], [9]]])
def test_an_index_of_other_texts_is_refused(
    tmp_path: Path, name: str, texts: list[list[int]]
) -> None:
    """Their checksums agree, so that nothing but a look at them tells."""
    pool, other = Pool("a"), Pool("a")
    pool.add([(np.array([5, 6, 7, 0], np.int32), "x")])
    other.add([(np.array(t, np.int32), "x") for t in texts])
    pool.save(tmp_path / "pool")
    other.save(tmp_path / "other")
    file = tmp_path / "pool" / f"{name}.safetensors"
    file.write_bytes((tmp_path / "other" / file.name).read_bytes())
    path = tmp_path / "pool" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["files"][file.name] = {"bytes": file.stat().st_size, "sha256": files.checksum(file)}
    path.write_text(json.dumps(manifest))
    with pytest.raises(DraftrecError, match=f"{name}.*(other texts|texts instead)"):
        Pool.load(tmp_path / "pool")


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
    with pytest.raises(DraftrecError, match="input/output"):
        make_pool("other").save(tmp_path / "pool")
    assert len(Pool.load(tmp_path / "pool", "tokenizer-a")) == 3


@pytest.mark.parametrize("before", ["nothing", "half of an older one"])
def test_a_kill_between_the_renames_leaves_a_pool(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: str
) -> None:
    """Nothing gets to clean up, and still a pool can be opened and saved again."""
    make_pool().save(tmp_path / "pool")
    if before != "nothing":  # what a kill leaves that comes while the old pool is removed
        shutil.copytree(tmp_path / "pool", tmp_path / ".pool.00000000.old")
        (tmp_path / ".pool.00000000.old" / "tokens.npy").unlink()
    known = files.fingerprint(tmp_path / "pool")
    rename, remove, dying = Path.rename, shutil.rmtree, list[bool]()

    def dead() -> None:
        dying.append(True)
        raise KeyboardInterrupt

    def kept(folder: Path, **more: Any) -> None:
        if not dying:
            remove(folder, **more)

    def killed(self: Path, target: Path) -> Path:
        if target == tmp_path / "pool":
            dead()
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed)
        patch.setattr(files.shutil, "rmtree", kept)
        with pytest.raises(KeyboardInterrupt):
            make_pool("other").save(tmp_path / "pool")
    assert not (tmp_path / "pool").exists()
    assert len(list(tmp_path.glob(".pool.*.old"))) == 1
    pool = Pool.load(tmp_path / "pool", "tokenizer-a")
    assert len(pool) == 3
    assert files.fingerprint(tmp_path / "pool") == known  # by which jobs know it
    assert check_pool(tmp_path / "pool")["texts"] == 3
    pool.save(tmp_path / "pool")
    assert len(Pool.load(tmp_path / "pool", "tokenizer-a")) == 3
    assert not list(tmp_path.glob("*.old"))


@pytest.mark.parametrize("renames", [1, 2])
def test_an_interruption_right_after_a_rename_leaves_a_pool_in_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, renames: int
) -> None:
    """After the first, there was none; after the second, the pool was said not to be written."""
    make_pool().save(tmp_path / "pool")
    before = files.fingerprint(tmp_path / "pool")
    rename, done = Path.rename, list[Path]()

    def interrupted(self: Path, target: Path) -> Path:
        found = rename(self, target)
        done.append(found)
        if len(done) == renames:
            raise KeyboardInterrupt
        return found

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", interrupted)
        with pytest.raises(KeyboardInterrupt):
            make_pool("other").save(tmp_path / "pool")
    assert (tmp_path / "pool").is_dir()
    assert (files.fingerprint(tmp_path / "pool") == before) == (renames == 1)
    make_pool("other").save(tmp_path / "pool")
    assert [path.name for path in tmp_path.iterdir()] == ["pool"]


def test_what_a_killed_save_had_written_goes_with_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(_: object) -> None:
        raise KeyboardInterrupt

    (tmp_path / ".pool.notes").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(files, "sync_files", killed)
        patch.setattr(files.shutil, "rmtree", lambda *_, **__: None)
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                make_pool().save(tmp_path / "pool")
    make_pool().save(tmp_path / "pool")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".pool.notes", "pool"]


def test_pools_are_readable_like_any_other_file(tmp_path: Path) -> None:
    """Others on the machine may share a pool, as far as the umask allows."""
    make_pool().save(tmp_path / "pool")
    (tmp_path / "plain").mkdir()
    assert (tmp_path / "pool").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_memory_is_bounded(tmp_path: Path) -> None:
    pool = Pool("t", max_bytes=100_000)
    random = np.random.default_rng(0)
    texts = [(random.integers(0, 1000, 50).astype(np.int32), "g") for _ in range(60)]
    pool.add(texts)
    assert 0 < len(pool) == pool.all.texts < 60
    largest = pool.nbytes, len(pool)
    pool.add(texts)
    assert (pool.nbytes, len(pool)) == largest
    pool.save(tmp_path / "pool")
    assert len(Pool.load(tmp_path / "pool")) == len(pool)


def test_files_are_readable_as_the_umask_says(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        pool = Pool("t")
        pool.add([(np.arange(30, dtype=np.int32), "g"), (np.arange(9, dtype=np.int32), None)])
        pool.save(tmp_path / "pool")
    finally:
        os.umask(before)
    files = list((tmp_path / "pool").iterdir())
    assert any(path.suffix == ".safetensors" for path in files)
    assert {path.stat().st_mode & 0o777 for path in files} == {0o640}
    assert (tmp_path / "pool").stat().st_mode & 0o777 == 0o750


def test_a_link_to_a_pool_stays_one(tmp_path: Path) -> None:
    """It may lead to another disk, which has the room."""
    real, link = tmp_path / "disk" / "real", tmp_path / "here" / "link"
    for path in (real, link):
        path.parent.mkdir()
    link.symlink_to(real)
    make_pool().save(link)
    pool = Pool.load(link)
    pool.add([(np.array([1, 2], np.int32), None)])
    pool.save(link)
    assert link.is_symlink()
    assert len(Pool.load(link)) == len(Pool.load(real)) == 4
    assert [p.name for p in link.parent.iterdir()] == ["link"]
    assert [p.name for p in real.parent.iterdir()] == ["real"]
    real.rename(real.with_name(".real.12345678.old"))  # what a kill between two renames leaves
    assert len(Pool.load(link)) == 4


def test_a_pool_is_on_the_disk_before_the_old_one_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: set[str] = set()
    fsync, rename = os.fsync, Path.rename

    def noted(descriptor: int) -> None:
        known = os.fstat(descriptor)
        synced.update(
            str(p) for p in (tmp_path, *tmp_path.rglob("*")) if os.path.samestat(p.stat(), known)
        )
        fsync(descriptor)

    def checked(path: Path, target: Path) -> Path:
        if target.name == "pool":
            assert synced == {str(path), *(str(p) for p in path.iterdir())}
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", noted)
    monkeypatch.setattr(Path, "rename", checked)
    make_pool().save(tmp_path / "pool")
    assert str(tmp_path) in synced
