"""A pool: texts written before, indexed per group and all together, in memory and on disk.

On disk a pool is a folder: the texts (`tokens.npy`, `offsets.npy`, `groups.npy`), what they were
worth (`usage.npy`), one index file per level, and `manifest.json` with format version, tokenizer,
counts and checksums. Index files are mapped, not read: opening takes milliseconds, and processes
that open the same pool share its memory.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from collections.abc import Sequence as Seq
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from draftrec.core import IntArray, Turn
from draftrec.data.files.places import here
from draftrec.errors import PoolMismatchError
from draftrec.pool import files
from draftrec.pool.index import NgramIndex
from draftrec.pool.suffixes import ClosedIndex
from draftrec.pool.usage import ROW, Rows, Usage, fresh_rows

# Fresh texts join the closed part when they are more than one in so many of its tokens: every token
# is then sorted some five times over a pool's life, and a lookup seldom asks two indexes.
_SHARE = 4


class Level:
    """Fresh texts are counted at once in the open index; when there are enough of them, all texts
    of the level are sorted anew into the closed one. When that happens depends on the texts and the
    calls of `add` alone, so that a job which is resumed drafts as an uninterrupted one does.
    """

    def __init__(self) -> None:
        self.closed: ClosedIndex | None = None
        self._open = NgramIndex()
        self._fresh: list[IntArray] = []
        self._fresh_tokens = 0

    @property
    def texts(self) -> int:
        return (self.closed.texts if self.closed else 0) + len(self._fresh)

    @property
    def tokens(self) -> int:
        return self._settled_tokens + self._fresh_tokens

    @property
    def nbytes(self) -> int:
        return (self.closed.nbytes if self.closed else 0) + (
            self._open.nbytes if self._fresh else 0
        )

    @property
    def indexes(self) -> list[ClosedIndex | NgramIndex]:
        """The parts that hold something. Raises PoolOverwrittenError."""
        if self.closed and self.closed.watch:
            self.closed.watch.check()
        found: list[ClosedIndex | NgramIndex] = [self.closed] if self.closed else []
        return [*found, self._open] if self._fresh else found

    def add(self, texts: Seq[IntArray]) -> None:
        """Add non-empty int32 texts."""
        new = sum(len(t) for t in texts)
        if new == 0:
            return
        self._fresh += texts
        self._fresh_tokens += new
        if _SHARE * self._fresh_tokens > self._settled_tokens:
            self.settle()
            return
        for text in texts:
            self._open.add_text(text)

    def settle(self) -> None:
        """Sort all texts into the closed index."""
        if self._fresh:
            self.closed = ClosedIndex.build([*self._settled(), *self._fresh])
            self._open, self._fresh, self._fresh_tokens = NgramIndex(), [], 0

    @property
    def _settled_tokens(self) -> int:
        return len(self.closed.tokens) - self.closed.texts if self.closed else 0

    def _settled(self) -> Iterator[IntArray]:
        return self.closed.texts_in_order() if self.closed else iter(())


#: A level of a pool; texts without a group are in "all" only.
LevelName = Literal["group", "all"]
LEVELS: tuple[LevelName, ...] = get_args(LevelName)
# Bytes per token of a closed index, about; those of fresh texts take more, but they are few.
_INDEX_BYTES = 21
_NO_LIMIT = 1 << 62
# Accepted tokens per token that a text may be expected to bring before it was ever used.
_UNUSED = 0.1
_ARRAYS = ("tokens", "offsets", "groups", "usage")

PoolText = tuple[IntArray, str | None]


class Pool:
    """Texts under one index for all of them and one for each group's, or only one of the two kinds.

    `levels`: which indexes are kept. `max_bytes` bounds texts and indexes, about: texts that would
    pass it are left out, so that memory does not follow the number of records of a job; `prune`
    makes room. `full`: one was left out. `rows` is what is known of each text, `usage` what the
    pool was worth as a whole. `added`: a fingerprint of what `pool add` added last, empty for
    nothing.
    """

    def __init__(
        self,
        tokenizer_fingerprint: str,
        *,
        max_bytes: int = 2 << 30,
        levels: Seq[LevelName] = LEVELS,
    ) -> None:
        self.tokenizer_fingerprint = tokenizer_fingerprint
        self.max_bytes = max_bytes
        self.levels: tuple[LevelName, ...] = tuple(n for n in LEVELS if n in levels)
        self.all = Level()
        self.groups: dict[str, Level] = {}
        self.created = time.time()
        self._rows = fresh_rows(0, 0.0)
        self.usage = Usage()
        self.added = ""
        self.full = False
        self._texts: list[IntArray] = []
        self._names: list[str | None] = []
        self._members: dict[str, list[int]] = {}
        self._tokens = self._held = 0
        self._watch: files.Watch | None = None
        #: Of whoever changes the texts or their indexes, and of whoever has borrowed those.
        self.turn = Turn()

    def __len__(self) -> int:
        return len(self._texts)

    def __iter__(self) -> Iterator[PoolText]:
        """(token_ids int32, group) of every text, oldest first. Raises PoolOverwrittenError."""
        if self._watch:
            self._watch.check()
        return zip(self._texts, self._names, strict=True)

    @property
    def tokens(self) -> int:
        return self._tokens

    @property
    def rows(self) -> Rows:
        """What is known of each text, a view `[len(self)]`."""
        return self._rows[: len(self._texts)]

    @property
    def nbytes(self) -> int:
        """Bytes of the indexes."""
        return self.all.nbytes + sum(level.nbytes for level in self.groups.values())

    @property
    def held_bytes(self) -> int:
        """Bytes of files, about, as `max_bytes` and `prune` count them."""
        return self._held

    def add(self, texts: Iterable[PoolText], rows: Rows | None = None) -> int:
        """Add (token_ids, group) pairs while there is room; returns how many were added.

        EOS belongs to a text, so that it is drafted as well; empty texts are left out. `rows` [as
        many]: what is known of them already.
        """
        room = self.max_bytes - self._held
        taken: list[PoolText] = []
        kept: list[int] = []
        for i, (token_ids, group) in enumerate(texts):
            ids = np.ascontiguousarray(token_ids, np.int32)
            room -= len(ids) * self._cost(group)
            if room < 0:
                self.full = True
                break
            if len(ids):
                taken.append((ids, group))
                kept.append(i)
        with self.turn:
            self._append(taken, fresh_rows(len(taken), time.time()) if rows is None else rows[kept])
            if "all" in self.levels:
                self.all.add([ids for ids, _ in taken])
            if "group" in self.levels:
                for group, own in _by_group(taken).items():
                    self.groups.setdefault(group, Level()).add(own)
        return len(taken)

    def sources(self, group: str | None) -> list[tuple[LevelName, Any]]:
        """The indexes that a sequence of `group` drafts from, with their level. A group's own level
        says nothing new where all texts are of one group."""
        found: list[tuple[LevelName, Any]] = []
        own = self.groups.get(group) if group is not None else None
        if own is not None and (len(self.groups) > 1 or "all" not in self.levels):
            found.extend(("group", index) for index in own.indexes)
        found.extend(("all", index) for index in self.all.indexes)
        return found

    def credit(
        self, group: str | None, text: IntArray, drafts: int, hits: Seq[tuple[int, int]]
    ) -> None:
        """Count what the pool was worth to one finished text, int32 token ids.

        `drafts`: trees with nodes from the pool. `hits`: for every one of which something was
        accepted, how many tokens, and the position in `text` after them. The credit goes to the
        text of the pool that agrees longest with what was accepted and with what stood before it;
        fresh texts get none yet.
        """
        level = self.all if "all" in self.levels else self.groups.get(group or "")
        closed = level.closed if level else None
        if closed is None or not hits or not closed.texts or closed.overwritten:
            self.usage.count(group, drafts, [])
            return
        accepted, ends = np.array(hits, np.int64).T
        places, lengths = closed.locate(text, ends)
        found = lengths > accepted  # known with what stood before, so it may have been drafted
        accepted = accepted[found]
        self.usage.count(group, drafts, accepted.tolist())
        np.add.at(self.usage.by_length, lengths[found] - accepted, accepted)
        owners = closed.owners(places[found])
        if level is not self.all:
            owners = np.array(self._members[group or ""], np.int64)[owners]
        np.add.at(self.rows["accepted"], owners, accepted)
        self.rows["used"][owners] = time.time()

    def prune(self, max_bytes: int, now: float | None = None) -> Pool:
        """A pool of the texts worth most per token, as many as `max_bytes` of files have room for.

        A text is worth the more the more of its tokens were accepted, and the less the longer ago
        that was (or, for one never used, the longer ago it was added); of equals the later one.
        """
        lengths = np.array([len(ids) for ids in self._texts], np.int64)
        last = np.maximum(self.rows["added"], self.rows["used"])
        days = np.maximum((time.time() if now is None else now) - last, 0.0) / 86_400
        worth = (self.rows["accepted"] / np.maximum(lengths, 1) + _UNUSED) / (1.0 + days)
        best = np.argsort(worth, kind="stable")[::-1]
        costs = lengths * np.array([self._cost(name) for name in self._names], np.int64)
        kept = np.sort(best[np.cumsum(costs[best]) <= max_bytes])
        texts, other = list(self), self._like()
        other.add((texts[i] for i in kept.tolist()), self.rows[kept])
        return other

    def check_vocabulary(self, size: int) -> None:
        """Raise PoolMismatchError for texts with tokens that a model of so many does not have."""
        for level in (self.all, *self.groups.values()):
            known = level.closed.vocabulary[-1:].tolist() if level.closed else []
            if known and known[0] >= size:
                raise PoolMismatchError(
                    f"The pool holds token {known[0]}, and the model has {size} tokens; use the "
                    "model that wrote it, or build a pool for this one."
                )

    def forget_files(self) -> None:
        """Draft from what is in files no longer, as they were overwritten."""
        with self.turn:
            for level in (self.all, *self.groups.values()):
                if level.closed and level.closed.watch:
                    level.closed = None

    def merge(self, other: Pool) -> Pool:
        """A pool of both pools' texts, each once, with room for as much as both have.

        Raises PoolMismatchError if they were made with different tokenizers.
        """
        if other.tokenizer_fingerprint != self.tokenizer_fingerprint:
            raise PoolMismatchError(
                "The pools were made with different tokenizers; token ids of one mean nothing in "
                "the other."
            )
        both, known = self._like(), dict[tuple[bytes, str | None], int]()
        texts: list[PoolText] = []
        rows: list[Any] = []
        for pool in (self, other):
            for (ids, group), row in zip(pool, pool.rows, strict=True):
                at = known.setdefault((ids.tobytes(), group), len(texts))
                if at == len(texts):
                    texts.append((ids, group))
                    rows.append(row.copy())
                else:
                    rows[at]["accepted"] += row["accepted"]
                    rows[at]["used"] = max(rows[at]["used"], row["used"])
                    rows[at]["added"] = min(rows[at]["added"], row["added"])
        both.max_bytes = _NO_LIMIT
        both.add(texts, np.array(rows, ROW))
        both.max_bytes = self.max_bytes + other.max_bytes
        both.usage = self.usage.merged(other.usage)
        both.created = min(self.created, other.created)
        return both

    def save(self, folder: Path) -> None:
        """Write the pool to `folder`, replacing a pool that is there.

        Raises DraftrecError if `folder` exists and holds something else.
        """
        with files.replacing(here(folder, "a pool")) as new, self.turn:
            names = sorted(self._members)
            place = {name: i for i, name in enumerate(names)}
            arrays = {
                "tokens": np.concatenate([np.empty(0, np.int32), *(ids for ids, _ in self)]),
                "offsets": np.cumsum([0, *map(len, self._texts)]).astype(np.int64),
                "groups": np.array([-1 if n is None else place[n] for n in self._names], np.int32),
                "usage": self.rows,
            }
            for name, array in arrays.items():
                np.save(new / f"{name}.npy", array, allow_pickle=False)
            for name, level in self._named_levels(names):
                level.settle()
                if level.closed is not None:
                    level.closed.save(new / name)
            files.write_manifest(
                new,
                {
                    "created": self.created,
                    "tokenizer": self.tokenizer_fingerprint,
                    "texts": len(self),
                    "tokens": self._tokens,
                    "groups": names,
                    "levels": list(self.levels),
                    "usage": self.usage.to_json(),
                    "added": self.added,
                },
            )

    @classmethod
    def load(
        cls, folder: Path, tokenizer_fingerprint: str | None = None, *, verify: bool = True
    ) -> Pool:
        """Open a pool. `tokenizer_fingerprint` None skips the check of the tokenizer; `verify`
        False skips the checksums, which take about a second per gigabyte, and whether the indexes
        are those of the texts; that they point to nowhere else is checked when each is first used.
        A file that is overwritten while it is open here, which `save` never does, is noticed by its
        length and time (PoolOverwrittenError), unless it happens in the very moment of a look-up:
        that may end the process, as files are mapped.

        Raises DraftrecError for a missing or damaged pool, PoolMismatchError for one that was made
        with another tokenizer or format.
        """
        folder = files.existing(here(folder, "a pool"))
        manifest = files.read_manifest(folder, tokenizer_fingerprint)
        if verify:
            files.verify(folder, manifest)
        pool = cls(manifest["tokenizer"], levels=manifest["levels"])
        pool.created = manifest["created"]
        pool.added = manifest.get("added", "")
        pool.max_bytes = max(
            pool.max_bytes, 2 * sum(f["bytes"] for f in manifest["files"].values())
        )
        try:
            pool._watch = files.Watch(folder / "tokens.npy")
            tokens, offsets, groups, rows = _arrays(folder)
            names: list[str | None] = [*manifest["groups"], None]
            spans = zip(offsets[:-1].tolist(), offsets[1:].tolist(), groups.tolist(), strict=True)
            pool._append([(tokens[a:b], names[g]) for a, b, g in spans], rows)
            pool.usage = Usage.from_json(manifest["usage"])
        except (
            OSError,
            ValueError,
            TypeError,
            KeyError,
            IndexError,
            OverflowError,
            EOFError,
            MemoryError,
        ) as error:
            raise files.damaged(folder, error) from error
        pool._open_levels(folder, manifest["groups"])
        if verify:
            pool._check_levels(folder, manifest["groups"])
        return pool

    def _open_levels(self, folder: Path, names: Seq[str]) -> None:
        if "group" in self.levels:
            self.groups = {name: Level() for name in names}
        for file, level in self._named_levels(names):
            if (folder / file).exists():
                level.closed = ClosedIndex.open(folder / file)

    def _check_levels(self, folder: Path, names: Seq[str]) -> None:
        """Raise DraftrecError for an index that belongs to other texts, whose places would be read
        outside of these."""
        for file, level in self._named_levels(names):
            members = range(len(self))
            if level is not self.all:
                members = next(self._members.get(n, []) for n in names if self.groups[n] is level)
            wanted = [t for i in members if len(t := self._texts[i])]
            try:
                if level.closed is not None:
                    level.closed.check(wanted)
                elif wanted and (level is not self.all or "all" in self.levels):
                    raise ValueError(f"it holds 0 texts instead of {len(wanted)}")
            except (ValueError, IndexError) as error:
                raise files.damaged(folder / file, error) from error

    def _named_levels(self, names: Seq[str]) -> list[tuple[str, Level]]:
        """Levels with the names of their files."""
        found = [("all.safetensors", self.all)]
        for i, name in enumerate(names):
            if name in self.groups:
                found.append((f"group-{i:05d}.safetensors", self.groups[name]))
        return found

    def _append(self, texts: Seq[PoolText], rows: Rows) -> None:
        before, after = len(self._texts), len(self._texts) + len(texts)
        if after > len(self._rows):  # some more than asked for: texts come one by one
            more = fresh_rows(max(after, before * 3 // 2) - before, 0.0)
            self._rows = np.concatenate((self.rows, more))
        self._rows[before:after] = rows
        for ids, group in texts:
            if group is not None:
                self._members.setdefault(group, []).append(len(self._texts))
            self._texts.append(ids)
            self._names.append(group)
            self._tokens += len(ids)
            self._held += len(ids) * self._cost(group)

    def _cost(self, group: str | None) -> int:
        """Bytes of files per token of a text, about; of a group, it is in two indexes."""
        own = "group" in self.levels and group is not None
        return 4 + _INDEX_BYTES * (("all" in self.levels) + own)

    def _like(self) -> Pool:
        return Pool(self.tokenizer_fingerprint, max_bytes=self.max_bytes, levels=self.levels)


def _arrays(folder: Path) -> tuple[Any, Any, Any, Rows]:
    """What is known of the texts, their tokens mapped. Raises ValueError for arrays that do not fit
    each other."""
    tokens, offsets, groups, rows = (
        np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in _ARRAYS
    )
    kinds = [(a.dtype, a.ndim) for a in (tokens, offsets, groups, rows)]
    if kinds != [(np.dtype(t), 1) for t in (np.int32, np.int64, np.int32, ROW)]:
        raise ValueError("an array has the wrong type")
    offsets, groups, rows = np.array(offsets), np.array(groups), np.array(rows)
    if not len(offsets) or offsets[0] != 0 or offsets[-1] != len(tokens):
        raise ValueError("the texts do not end where their tokens do")
    if len(groups) + 1 != len(offsets) or len(rows) != len(groups) or (np.diff(offsets) < 0).any():
        raise ValueError("the texts have no order")
    if len(groups) and groups.min() < -1:
        raise ValueError("a text has a group that there is not")
    return np.asarray(tokens), offsets, groups, rows


def _by_group(texts: Seq[PoolText]) -> dict[str, list[IntArray]]:
    found: dict[str, list[IntArray]] = {}
    for ids, group in texts:
        if group is not None:
            found.setdefault(group, []).append(ids)
    return found
