"""Pools of any content: refused with a sentence, or of no harm. All of it in processes of their
own, which a wrong read would end by a signal."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from draftrec.errors import DraftrecError, PoolOverwrittenError
from draftrec.pool import files
from draftrec.pool.index import TreeBuilder, tail_of_text
from draftrec.pool.ngrams import START
from draftrec.pool.store import Pool

WORDS, OTHER_WORDS = 40, 300
INDEXES = ("all.safetensors", "group-00001.safetensors")
Damage = Callable[[Any, Any, Any], Any]


def made(folder: Path, seed: int, words: int, texts: int) -> Path:
    """A pool of texts that repeat themselves, so that there are states."""
    rng = np.random.default_rng(seed)
    phrases = [rng.integers(5, 5 + words, rng.integers(2, 30)).astype(np.int32) for _ in range(12)]
    pool = Pool("tokenizer")
    pool.add(
        (np.concatenate([phrases[i] for i in rng.integers(0, 12, 8)]), f"g{t % 2}")
        for t in range(texts)
    )
    pool.save(folder)
    return folder


def rows(change: Damage) -> Damage:
    """Of a copy."""
    return lambda a, other, rng: change(a.copy(), other, rng)


def some(a: Any, value: Any, rng: Any) -> Any:
    a.reshape(-1)[rng.integers(0, a.size, 5)] = value
    return a


def within(a: Any, rng: Any) -> Any:
    """Numbers that could stand there, each column's own."""
    low, high = a.min(axis=0), a.max(axis=0)
    return rng.integers(low, high, a.shape, endpoint=True).astype(a.dtype)


ARRAYS: dict[str, Damage] = {
    "noise": lambda a, other, rng: np.frombuffer(rng.bytes(a.nbytes), a.dtype).reshape(a.shape),
    "a little noise": rows(lambda a, other, rng: some(a, rng.integers(0, 255, 5), rng)),
    "large": rows(lambda a, other, rng: some(a, np.iinfo(a.dtype).max, rng)),
    "one off": rows(lambda a, other, rng: some(a, a.max() + (a.max() < 250), rng)),
    "negative": rows(lambda a, other, rng: some(a, np.iinfo(a.dtype).min, rng)),
    "zeros": lambda a, other, rng: np.zeros_like(a),
    "shuffled": lambda a, other, rng: rng.permutation(a),
    "shuffled numbers": lambda a, other, rng: rng.permutation(a.reshape(-1)).reshape(a.shape),
    "likely": lambda a, other, rng: within(a, rng),
    "likely ones": lambda a, other, rng: np.where(rng.random(a.shape) < 0.02, within(a, rng), a),
    "shorter": lambda a, other, rng: a[:-1],
    "longer": lambda a, other, rng: np.concatenate((a, a[-1:])),
    "none": lambda a, other, rng: a[:0],
    "another pool's": lambda a, other, rng: other,
    "flat": lambda a, other, rng: a.reshape(-1),
}  # fmt: skip
FILES: dict[str, Callable[[bytes, bytes, Any], bytes]] = {
    "cut": lambda content, other, rng: content[: rng.integers(0, len(content))],
    "cut by a byte": lambda content, other, rng: content[:-1],
    "nothing": lambda content, other, rng: b"",
    "noise": lambda content, other, rng: rng.bytes(len(content)),
    "another pool's": lambda content, other, rng: other,
    "noise in front": lambda content, other, rng: rng.bytes(64) + content[64:],
    "some of the header": lambda content, other, rng: spoilt(content, rng),
}


def spoilt(content: bytes, rng: Any) -> bytes:
    found = bytearray(content)
    for _ in range(3):
        found[rng.integers(0, min(len(found), 500))] = rng.integers(32, 127)
    return bytes(found)


def agree(folder: Path) -> None:
    """Let the manifest say what is there."""
    path = folder / files.MANIFEST
    manifest = json.loads(path.read_text())
    for name in manifest["files"]:
        known = {"bytes": (folder / name).stat().st_size, "sha256": files.checksum(folder / name)}
        manifest["files"][name] = known
    path.write_text(json.dumps(manifest))


def damages(good: Path, other: Path, rng: Any) -> Iterator[tuple[str, Callable[[Path], None]]]:
    """Everything that is done to a copy of a pool."""
    for name in INDEXES:
        arrays, others = load_file(good / name), load_file(other / name)
        for array in arrays:
            for kind, change in ARRAYS.items():
                changed = arrays | {array: change(arrays[array], others[array], rng)}
                changed = {n: np.ascontiguousarray(a) for n, a in changed.items()}
                yield f"{name} {array} {kind}", lambda f, n=name, c=changed: save_file(c, f / n)
    for path in sorted(good.iterdir()):
        if path.name == files.MANIFEST:
            continue
        for kind, edit in FILES.items():
            content = edit(path.read_bytes(), (other / path.name).read_bytes(), rng)
            yield f"{path.name} {kind}", lambda f, n=path.name, c=content: put(f / n, c)
    for name in ("tokens", "offsets", "groups"):
        array = np.load(good / f"{name}.npy")
        for kind, change in ARRAYS.items():
            found = change(array, np.load(other / f"{name}.npy"), rng)
            yield f"{name} {kind}", lambda f, n=name, a=found: np.save(f / f"{n}.npy", a)


def put(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def use(pool: Pool, rng: Any) -> None:
    """Whatever reads a pool."""
    builder = TreeBuilder()
    for group in (None, "g0", "g1"):
        sources = pool.sources(group)
        texts = [rng.integers(0, 60, rng.integers(0, 30)).astype(np.int32) for _ in range(12)]
        texts += [ids[: rng.integers(1, len(ids) + 1)] for ids, _ in list(pool)[:12] if len(ids)]
        texts.append(np.array([START], np.int32))
        tails = [tail_of_text(text) for text in texts]
        batch = [[(i, tail, 1.0, 3) for _, i in sources] for tail in tails]
        for tree in builder.build_many(batch, 40, 30):
            assert len(tree) <= 40
        for text in texts:
            pool.credit(group, text, 3, [(1, len(text)), (2, max(2, len(text) - 1))])
    pool.add([(np.arange(5, 9, dtype=np.int32), "g0")])
    pool.prune(1000)


def fuzz() -> dict[str, int]:
    rng = np.random.default_rng(3)
    counts = Counter[str]()
    with tempfile.TemporaryDirectory() as folder:
        good = made(Path(folder) / "good", 0, WORDS, 60)
        other = made(Path(folder) / "other", 1, OTHER_WORDS, 90)
        for what, damage in damages(good, other, rng):
            copy = Path(folder) / "copy"
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(good, copy)
            damage(copy)
            agree(copy)
            for verify in (True, False):
                sys.stderr.write(f"{what} {verify}\n")
                try:
                    use(Pool.load(copy, verify=verify), rng)
                except DraftrecError:
                    counts["refused"] += 1
                else:
                    counts["used"] += 1
    return counts


def overwrite() -> dict[str, int]:
    """A file that is written to while it is mapped."""
    rng = np.random.default_rng(3)
    counts = Counter[str]()
    with tempfile.TemporaryDirectory() as folder:
        for how in ("cut", "noise", "longer", "replaced", "removed"):
            path = made(Path(folder) / how, 0, WORDS, 60) / INDEXES[0]
            pool = Pool.load(path.parent)
            use(pool, rng)
            time.sleep(0.01)
            content = path.read_bytes()
            if how in ("replaced", "removed"):
                path.unlink()
            if how == "replaced":
                path.write_bytes(b"")
            if how in ("cut", "noise", "longer"):
                new = {"cut": b"", "noise": rng.bytes(len(content)), "longer": content * 2}[how]
                path.write_bytes(new)
            time.sleep(0.01)
            try:
                use(pool, rng)
                counts[how] += 1
            except PoolOverwrittenError as error:
                message = str(error)
                pool.credit(None, np.arange(9, dtype=np.int32), 3, [(1, 4)])
                pool.forget_files()
                use(pool, rng)
                counts[f"{how}, named"] += str(path.resolve()) in message
    return counts


def ended(what: str) -> dict[str, int]:
    """What a process of its own came to."""
    done = subprocess.run(
        [sys.executable, __file__, what], capture_output=True, text=True, check=False, timeout=1500
    )
    assert done.returncode == 0, (done.returncode, done.stderr[-3000:])
    return json.loads(done.stdout)


@pytest.mark.slow
def test_no_content_of_a_pool_ends_the_process() -> None:
    found = ended("fuzz")
    assert found["refused"] > 300
    assert found["used"] > 20, "some of it looks like another index of the same texts"


def test_a_file_that_is_overwritten_is_noticed_and_one_that_is_replaced_goes_on() -> None:
    noticed = {f"{how}, named": 1 for how in ("cut", "noise", "longer")}
    assert ended("overwrite") == noticed | {"replaced": 1, "removed": 1}


if __name__ == "__main__":
    sys.stdout.write(json.dumps({"fuzz": fuzz, "overwrite": overwrite}[sys.argv[1]]()))
