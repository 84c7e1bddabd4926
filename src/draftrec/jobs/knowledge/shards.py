"""The files of a run folder. A shard is finished when the manifest says so, never before.

Of a shard that is not, a journal keeps the finished texts, a line of JSON each, written when the
text ends. Whoever does the shard next, after Ctrl-C, a crash or the loss of a worker, takes them
over instead of writing them again; the part then has the same bytes, and the journal goes.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Seq
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from draftrec.core import COUNTED, OWN, SOURCES, Counts, Generation, IntArray, Request
from draftrec.data.files.locks import check_still_held
from draftrec.data.files.places import Place, arrow_path
from draftrec.data.files.remote import RemotePath
from draftrec.data.files.writers import (
    GatheredLines,
    LineJournal,
    append_file,
    cut_file,
    cut_torn_line,
    naming,
    replace_file,
    replace_parquet,
    whole_entries,
)
from draftrec.data.records import Rejected, rejected_lines
from draftrec.engine.text.stats import Spent
from draftrec.errors import DraftrecError
from draftrec.jobs.knowledge.manifest import Manifest, ShardEntry, read_manifest
from draftrec.jobs.ledger import Ledger


@dataclass(frozen=True, slots=True)
class Clock:
    """What a shard has taken up to some text, in all its lives: `wall` seconds, and what of them
    the parts of a pass took."""

    wall: float = 0.0
    spent: Spent = field(default_factory=Spent)


@dataclass(frozen=True, slots=True)
class Entry:
    """A finished text: the request's `key` and `prompt_hash`, the text, and the clock by then."""

    key: int
    prompt_hash: int
    generation: Generation
    clock: Clock

    def line(self) -> bytes:
        """As the journal has it."""
        it, clock = self.generation, self.clock
        values = {
            "entity_id": it.entity_id,
            "key": self.key,
            "prompt_hash": self.prompt_hash,
            "token_ids": it.token_ids.tolist(),
            "finish_reason": it.finish_reason,
            "prompt_tokens": it.prompt_tokens,
            "loss": it.loss,
            "sources": None if it.sources is None else it.sources.tolist(),
            "counts": asdict(it.counts),
            "wall": clock.wall,
            "spent": asdict(clock.spent),
        }
        return (json.dumps(values) + "\n").encode()

    @classmethod
    def of(cls, line: bytes) -> Entry:
        """Raises ValueError, KeyError or TypeError for anything but a line of a journal."""
        values: dict[str, Any] = json.loads(line)
        generation = Generation(
            values["entity_id"],
            np.array(values["token_ids"], np.int32),
            values["finish_reason"],
            values["prompt_tokens"],
            Counts(**values["counts"]),
            values["loss"],
            # Older journals have none.
            None if (found := values.get("sources")) is None else np.array(found, np.uint8),
        )
        clock = Clock(values["wall"], Spent(**values["spent"]))
        return cls(values["key"], values["prompt_hash"], generation, clock)


class Journal(LineJournal[Entry]):
    """The finished texts of one shard, open for more."""

    def __init__(self, path: Place) -> None:
        super().__init__(path, Entry.of)

    @property
    def clock(self) -> Clock:
        """What earlier lives of the shard took."""
        return self.entries[-1].clock if self.entries else Clock()

    def found(self, requests: Seq[Request], hashes: Seq[int]) -> dict[int, Generation]:
        """Texts of those requests that are there, by position; `hashes`: of their prompts."""
        known = {(e.generation.entity_id, e.key, e.prompt_hash): e for e in self.entries}
        wanted = [(r.entity_id, r.key, h) for r, h in zip(requests, hashes, strict=True)]
        return {i: known[w].generation for i, w in enumerate(wanted) if w in known}

    def add(self, entry: Entry) -> None:
        """Keep one more text."""
        self.write(entry.line())


def texts_in(path: Place) -> int:
    """How many whole texts a journal keeps; 0 where there is none."""
    return len(whole_entries(path, Entry.of)[0])


PART_SCHEMA = pa.schema(
    [
        pa.field("entity_id", pa.string(), nullable=False),
        pa.field("group", pa.string()),
        pa.field("text", pa.string(), nullable=False),
        pa.field("token_ids", pa.list_(pa.int32()), nullable=False),
        pa.field("finish_reason", pa.string(), nullable=False),
        pa.field("prompt_tokens", pa.int32(), nullable=False),
        pa.field("new_tokens", pa.int32(), nullable=False),
    ]
)
_COUNTS = (*COUNTED, *(f"accepted_{source}" for source in SOURCES))
STATS_SCHEMA = pa.schema(
    [
        pa.field("entity_id", pa.string(), nullable=False),
        *(pa.field(name, pa.int32(), nullable=False) for name in _COUNTS),
        pa.field("prompt_hash", pa.int64(), nullable=False),
        pa.field("pieces", pa.list_(pa.struct([("source", pa.string()), ("chars", pa.int32())]))),
    ]
)
_SAMPLE = pa.field("sample", pa.int32(), nullable=False)
_PROMPT = pa.field("prompt", pa.string(), nullable=False)
_SHARD_FILE = re.compile(r"(?:part|stats)-(\d{5,})\.parquet")
_JOURNAL = re.compile(r"\.journal-(\d{5,})\.jsonl")
_OTHER_FILES = ("metrics.jsonl", "rejected.jsonl", "summary.json")
_OWNED = re.compile(
    "|".join([_SHARD_FILE.pattern, _JOURNAL.pattern, *(re.escape(n) for n in _OTHER_FILES)])
)


@dataclass(frozen=True, slots=True)
class Written:
    """One text, ready to be stored, and the hash of the prompt that it answers; the prompt itself,
    as the model was sent it, where prompts are kept. `sample`: which of its record's texts it is,
    counted from 0. `pieces`: of a few texts, how many characters came from where, in order, the
    source being one of `SOURCES` or "model"."""

    generation: Generation
    group: str | None
    text: str
    prompt_hash: int
    prompt: str | None = None
    sample: int = 0
    pieces: tuple[tuple[str, int], ...] | None = None


@dataclass(frozen=True)
class RunFolder:
    """Reads and writes the files of one run. `keep_prompts`: parts have a column for them.
    `samples`: rows of each record, which are numbered in a column where there are several."""

    path: Place
    keep_prompts: bool = False
    samples: int = 1
    _gathered: GatheredLines = field(default_factory=GatheredLines, compare=False, repr=False)

    @property
    def ledger(self) -> Ledger:
        return Ledger(self.path, self.path, "a run", "manifest.json", _OWNED, inside=True)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Create the folder and keep other processes from writing to it."""
        with self.ledger.held():
            yield
            if isinstance(self.path, RemotePath):
                self._gathered.write(self.path / "metrics.jsonl")

    def to_read(self) -> Manifest | None:
        """The manifest of a run that is read and not gone on with, None for any other folder.

        Raises DraftrecError where its files are not as the run left them.
        """
        if not self.path.is_dir():
            return None
        mend = "give another run, or write this one again with `draftrec generate`"
        if (found := self.manifest(mend)) is not None:
            self.check_parts(found, mend)
        return found

    def manifest(self, mend: str = "choose another --output") -> Manifest | None:
        """The run's manifest, None for a new folder; refuses data files of unknown origin."""
        path = self.ledger.path
        manifest = read_manifest(path.latest() if isinstance(path, RemotePath) else path, mend)
        if manifest is None and any(_SHARD_FILE.fullmatch(p.name) for p in self._files()):
            raise DraftrecError(
                f"{self.path} holds Parquet parts but no manifest.json, so they are not a run's; "
                f"{mend}"
            )
        return manifest

    def check_parts(self, manifest: Manifest, mend: str = "start again with --overwrite") -> None:
        """Raise when a finished shard's files are not as the run left them."""
        shards = list(enumerate(manifest.shards))
        parts = {self.part(i): shard.part_size for i, shard in shards}
        stats = {self.stats(i): shard.stats_size for i, shard in shards}
        self.ledger.check(parts | stats, mend)

    def write_manifest(self, manifest: Manifest) -> None:
        """Replace the manifest. This is the moment at which a shard counts as finished."""
        self.ledger.write(manifest.model_dump_json(indent=1) + "\n")

    def clear(self) -> None:
        """Remove everything that a run wrote here, the manifest last, and nothing else."""
        self.ledger.clear(record_last=True)

    def drop_unfinished(self, manifest: Manifest) -> None:
        """Remove what a crash left behind of a shard that was not finished, but its journal; and
        those of finished ones."""
        done = len(manifest.shards)

        def unfinished(name: str) -> bool:
            match, journal = _SHARD_FILE.fullmatch(name), _JOURNAL.fullmatch(name)
            return bool((match and int(match[1]) >= done) or (journal and int(journal[1]) < done))

        self.ledger.drop(unfinished)
        cut_file(self.path / "rejected.jsonl", manifest.rejected_size)
        metrics = self.path / "metrics.jsonl"
        if isinstance(metrics, Path):  # elsewhere it is written whole
            cut_torn_line(metrics)

    def write_shard(
        self, index: int, texts: Seq[Written], rejected: Seq[Rejected], rejected_size: int
    ) -> tuple[ShardEntry, int]:
        """Write data, statistics and rejected records; the entry and the new rejected size."""
        check_still_held(self.path)
        part = _part_table(texts, keep_prompts=self.keep_prompts)
        part_size = replace_parquet(self.part(index), self._numbered(part, texts))
        stats = self._numbered(_stats_table(texts), texts)
        stats_size = replace_parquet(self.stats(index), stats)
        # Cut first: an attempt that failed halfway may have left lines behind.
        path = self.path / "rejected.jsonl"
        cut_file(path, rejected_size)
        rejected_size = append_file(path, rejected_lines(rejected))
        records = len(texts) // self.samples + len(rejected)
        entry = ShardEntry(
            records=records,
            rows=len(texts),
            rejected=len(rejected),
            part_size=part_size,
            stats_size=stats_size,
        )
        return entry, rejected_size

    def texts(self, index: int) -> list[tuple[IntArray, str | None]]:
        """Token ids and group of a finished shard's texts, in order."""
        table = pq.read_table(arrow_path(self.part(index)), columns=["token_ids", "group"])
        ids = table["token_ids"].combine_chunks()
        flat = np.asarray(ids.flatten(), np.int32)
        lengths = np.asarray(ids.value_lengths(), np.int64)
        ends = np.cumsum(lengths)
        parts = [flat[end - n : end] for end, n in zip(ends, lengths, strict=True)]
        return list(zip(parts, table["group"].to_pylist(), strict=True))

    def append_metrics(self, values: dict[str, Any]) -> None:
        """Add one object to `metrics.jsonl`."""
        path = self.path / "metrics.jsonl"
        if isinstance(path, RemotePath):
            self._gathered.add(path, _json_line(values))
            return
        with naming(path), path.open("ab") as file:
            file.write(_json_line(values))

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Replace `summary.json`."""
        replace_file(self.path / "summary.json", (json.dumps(summary, indent=1) + "\n").encode())

    def holds(self, file: Place) -> bool:
        """Whether a file lies in this folder."""
        if isinstance(file, RemotePath) != isinstance(self.path, RemotePath):
            return False
        return file.resolve().is_relative_to(self.path.resolve())

    def part(self, index: int) -> Place:
        return self.path / f"part-{index:05d}.parquet"

    def stats(self, index: int) -> Place:
        return self.path / f"stats-{index:05d}.parquet"

    def journal(self, index: int) -> Place:
        """Finished texts of a shard that is not; see `Journal`. Hidden, as it is no table."""
        return self.path / f".journal-{index:05d}.jsonl"

    def journaled(self, done: int) -> int:
        """How many texts are kept of shards that are not finished, `done` being those that are."""
        found = [(int(m[1]), p) for p in self._files() if (m := _JOURNAL.fullmatch(p.name))]
        return sum(texts_in(path) for index, path in found if index >= done)

    def _numbered(self, table: pa.Table, texts: Seq[Written]) -> pa.Table:
        if self.samples == 1:
            return table
        numbers = pa.array([t.sample for t in texts], pa.int32())
        return table.add_column(1, _SAMPLE, numbers)

    def _files(self) -> list[Place]:
        return [p for p in self.path.iterdir() if p.is_file()] if self.path.is_dir() else []


def _part_table(texts: Seq[Written], *, keep_prompts: bool) -> pa.Table:
    generations = [t.generation for t in texts]
    lengths = [len(g.token_ids) for g in generations]
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    flat = np.concatenate([np.empty(0, np.int32), *(g.token_ids for g in generations)])
    columns = {
        "entity_id": [g.entity_id for g in generations],
        "group": [t.group for t in texts],
        "text": [t.text for t in texts],
        "token_ids": pa.ListArray.from_arrays(offsets, flat.astype(np.int32)),
        "finish_reason": [g.finish_reason for g in generations],
        "prompt_tokens": [g.prompt_tokens for g in generations],
        "new_tokens": lengths,
    }
    table = pa.table(columns, schema=PART_SCHEMA)
    if keep_prompts:
        prompts = pa.array([t.prompt for t in texts], pa.string())
        table = table.append_column(_PROMPT, prompts)
    return table


def _stats_table(texts: Seq[Written]) -> pa.Table:
    rows: list[dict[str, Any]] = []
    for text in texts:
        counts = text.generation.counts
        row: dict[str, Any] = {name: getattr(counts, name) for name in COUNTED}
        for source, accepted in zip(SOURCES, counts.accepted_by_source, strict=True):
            row[f"accepted_{source}"] = accepted
        row["prompt_hash"] = text.prompt_hash
        row["pieces"] = text.pieces and [{"source": s, "chars": n} for s, n in text.pieces]
        rows.append({"entity_id": text.generation.entity_id, **row})
    return pa.Table.from_pylist(rows, schema=STATS_SCHEMA)


def pieces_of(
    generation: Generation, text: str, decode: Callable[[IntArray], str]
) -> tuple[tuple[str, int], ...] | None:
    """How many characters of a text came from where; None where nobody noted it. A character that
    two sources share the bytes of is the later one's."""
    sources = generation.sources
    if sources is None or not len(sources):
        return None
    ends = [*(np.flatnonzero(np.diff(sources)) + 1).tolist(), len(sources)]
    found: list[tuple[str, int]] = []
    done = 0
    for end in ends:
        source = int(sources[end - 1])
        last = end == len(sources)
        until = len(text) if last else _shared(decode(generation.token_ids[:end]), text)
        if until > done:
            found.append(("model" if source == OWN else SOURCES[source], until - done))
            done = until
    return tuple(found)


def _shared(beginning: str, text: str) -> int:
    """How many characters of a text its decoded beginning has; the last may be half of one."""
    if text.startswith(beginning):
        return len(beginning)
    return next(
        (i for i, (a, b) in enumerate(zip(beginning, text, strict=False)) if a != b), len(text)
    )


def prompt_hash(prompt_ids: IntArray) -> int:
    """A 64-bit hash of a prompt's token ids, signed as Parquet's int64 is."""
    content = np.ascontiguousarray(prompt_ids, "<i4").tobytes()
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little", signed=True)


def _json_line(values: dict[str, Any]) -> bytes:
    return (json.dumps(values, ensure_ascii=False) + "\n").encode(errors="backslashreplace")
