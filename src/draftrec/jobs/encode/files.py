"""The files of an encoding job: parts while it runs, one Parquet file and a manifest at its end."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, Field

from draftrec.data.files.places import Place, arrow_path
from draftrec.data.files.writers import replace_file, replace_parquet, stream_parquet
from draftrec.data.records import Rejected, rejected_lines
from draftrec.data.vectors import vector_column, vectors_schema
from draftrec.errors import DraftrecError
from draftrec.jobs.ledger import Ledger, changes, input_changes, read_state
from draftrec.models.encoders import Encoded

_COUNTS = ("tokens", "knowledge_lost", "history_lost", "windows")
_PART_FILE = re.compile(r"part-(\d{5,})\.(?:parquet|jsonl)")


class EncodedShard(BaseModel):
    """A finished shard: `records` = `rows` written + those rejected. `size` is in bytes."""

    records: int
    rows: int
    size: int


@dataclass(frozen=True, eq=False, slots=True)
class ShardRows:
    """What one shard came to: a row for each of `entities`, the hash of its text in `digests`."""

    entities: list[str]
    digests: list[bytes]
    rows: Encoded
    rejected: list[Rejected]


class EncodeTotals(BaseModel):
    """Sums over all finished shards. `encoded` texts were different from all before them; `tokens`
    were read, `tokens_lost` were not; `windowed` texts are means of several windows."""

    texts: int = 0
    rejected: int = 0
    encoded: int = 0
    tokens: int = 0
    windowed: int = 0
    knowledge_truncated: int = 0
    history_truncated: int = 0
    tokens_lost: int = 0
    without_history: int = 0
    seconds: float = 0.0

    def add(self, rows: Encoded) -> None:
        """Count the rows that one shard wrote."""
        self.texts += len(rows.tokens)
        self.tokens += int(rows.tokens.sum())
        self.windowed += int((rows.windows > 1).sum())
        self.knowledge_truncated += int((rows.knowledge_lost > 0).sum())
        self.history_truncated += int((rows.history_lost > 0).sum())
        self.tokens_lost += int(rows.knowledge_lost.sum() + rows.history_lost.sum())


class EncodeManifest(BaseModel):
    """How far a job is, and what its vectors are made of.

    `settings` and `fingerprints` must be equal for it to be continued; `paths` and `versions` only
    inform. `size` is that of the finished file, in bytes.
    """

    format: Literal["draftrec-encode"] = "draftrec-encode"
    format_version: Literal[1] = 1
    settings: dict[str, Any]
    fingerprints: dict[str, str | None]
    paths: dict[str, Any]
    versions: dict[str, str]
    dim: int
    pooling: str
    shards: list[EncodedShard] = Field(default_factory=list)
    totals: EncodeTotals = Field(default_factory=EncodeTotals)
    size: int | None = None

    @property
    def records_done(self) -> int:
        """Records of the input that finished shards cover."""
        return sum(shard.records for shard in self.shards)

    def differences(
        self, settings: Mapping[str, Any], fingerprints: Mapping[str, str | None]
    ) -> list[str]:
        """What is otherwise now, one phrase each."""
        asked = {name: self.settings.get(name) for name in settings}
        return changes(asked, settings) + input_changes(self.fingerprints, fingerprints)

    def summary(self) -> dict[str, Any]:
        """What the command prints."""
        totals = self.totals.model_dump()
        seconds = totals.pop("seconds")
        return {
            **totals,
            "dim": self.dim,
            "encoder": self.settings["encoder"],
            "pooling": self.pooling,
            "seconds": round(seconds, 3),
            "texts_per_second": round(totals["texts"] / seconds, 3) if seconds else 0.0,
        }


class EncodeFiles:
    """Everything beside one output: `<output>.parts/` while the job runs, `<output>.manifest.json`
    and, if records were rejected, `<output>.rejected.jsonl` afterwards."""

    def __init__(self, output: Place) -> None:
        self.output = output
        self.parts = output.with_name(f"{output.name}.parts")
        self.ledger = Ledger(output, self.parts, "vectors", "manifest.json", _PART_FILE)
        self._done = output.with_name(f"{output.name}.manifest.json")
        self._rejected = output.with_name(f"{output.name}.rejected.jsonl")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from writing to the output; there is a folder of parts meanwhile."""
        with self.ledger.held():
            self.parts.mkdir(parents=True, exist_ok=True)
            try:
                yield
            finally:
                self._tidy()

    def manifest(self) -> EncodeManifest | None:
        """Of the job under way, else of the finished one; None if there is neither."""
        under_way = _read(self.ledger.path)
        return under_way or (_read(self._done) if self.output.exists() else None)

    def write_manifest(self, manifest: EncodeManifest) -> None:
        """Replace the manifest of the job under way: the moment at which a shard is finished."""
        self.ledger.write(_json(manifest))

    def write_shard(self, index: int, shard: ShardRows) -> EncodedShard:
        """Keep what one shard came to."""
        columns = {
            "entity_id": pa.array(shard.entities, pa.string()),
            "vector": vector_column(shard.rows.vectors),
            "digest": pa.array(shard.digests, pa.binary(16)),
            **{name: pa.array(getattr(shard.rows, name)) for name in _COUNTS},
        }
        if shard.rejected:
            path = self._part(index).with_suffix(".jsonl")
            replace_file(path, rejected_lines(shard.rejected))
        size = replace_parquet(self._part(index), pa.table(columns))
        rows = len(shard.entities)
        return EncodedShard(records=rows + len(shard.rejected), rows=rows, size=size)

    def digests(self, index: int) -> list[bytes]:
        """Of a shard's texts, row by row."""
        table = pq.read_table(arrow_path(self._part(index)), columns=["digest"])
        return table["digest"].to_pylist()

    def rows(self, index: int) -> Encoded:
        """A shard's rows, as they were encoded."""
        file = arrow_path(self._part(index))
        table = pq.read_table(file, columns=["vector", *_COUNTS]).combine_chunks()
        vectors = table["vector"].combine_chunks()
        flat = np.asarray(vectors.flatten(), np.float32).reshape(table.num_rows, -1)
        return Encoded(flat, *(np.asarray(table[name], np.int64) for name in _COUNTS))

    def check(self, manifest: EncodeManifest) -> None:
        """Raise when a finished shard, or the finished file, is not as the job left it."""
        sizes = {self._part(i): shard.size for i, shard in enumerate(manifest.shards)}
        if manifest.size is not None:
            sizes = {self.output: manifest.size}
        self.ledger.check(sizes)

    def finish(self, manifest: EncodeManifest) -> None:
        """Join the parts into the output, then remove them."""
        indices = range(len(manifest.shards))
        schema = vectors_schema(manifest.dim)
        tables = (pq.read_table(arrow_path(self._part(i)), columns=schema.names) for i in indices)
        # The parts do not say that no value is missing.
        manifest.size = stream_parquet(self.output, schema, (t.cast(schema) for t in tables))
        rejected = [self._part(i).with_suffix(".jsonl") for i in indices]
        if lines := b"".join(path.read_bytes() for path in rejected if path.exists()):
            replace_file(self._rejected, lines)
        else:
            self._rejected.unlink(missing_ok=True)
        replace_file(self._done, _json(manifest).encode())
        self.ledger.clear()

    def drop_unfinished(self, manifest: EncodeManifest) -> None:
        """Remove what a crash left behind of a shard that was not finished."""
        done = len(manifest.shards)
        self.ledger.drop(lambda n: bool((m := _PART_FILE.fullmatch(n)) and int(m[1]) >= done))

    def drop_leavings(self) -> None:
        """Remove the parts of a finished job that was killed while it removed them."""
        if self.parts.is_dir():
            with suppress(DraftrecError), self.locked():  # who holds it sees to it
                if not self.ledger.path.is_file():
                    self.ledger.clear()

    def _tidy(self) -> None:
        """Remove the folder of parts if nothing is kept in it."""
        (self.parts / ".lock").unlink(missing_ok=True)  # of an earlier version
        if self.parts.is_dir() and not any(True for _ in self.parts.iterdir()):
            self.parts.rmdir()

    def _part(self, index: int) -> Place:
        return self.parts / f"part-{index:05d}.parquet"


def _read(path: Place) -> EncodeManifest | None:
    mend = "encode; choose another --output, or start again with --overwrite"
    return read_state(path, EncodeManifest, mend)


def _json(manifest: EncodeManifest) -> str:
    return manifest.model_dump_json(indent=1) + "\n"
