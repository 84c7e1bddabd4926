"""Generated texts of runs, a page at a time, and the same entities' texts of another run."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from draftrec.data.files.places import arrow_path
from draftrec.jobs.knowledge.manifest import read_manifest

#: Texts of a page, at most; longer texts are cut off, as a page is to be read.
MOST_TEXTS = 20
MOST_CHARS = 20_000
#: Shards that are searched for an entity; a page must not read a terabyte.
_MOST_SHARDS = 256
_PART = ("entity_id", "group", "text", "finish_reason", "new_tokens")
_STATS = ("target_calls", "drafted_tokens", "accepted_tokens", "relaxed_tokens")


@dataclass(frozen=True, slots=True)
class Text:
    """One text. `pieces`: (source, words) in order, the source being one of `core.SOURCES` or
    "model"; one piece of the source "" where nobody noted it. `prompt`: where the run kept it."""

    entity_id: str
    group: str | None
    finish_reason: str
    new_tokens: int
    target_calls: int
    drafted_tokens: int
    accepted_tokens: int
    relaxed_tokens: int
    pieces: list[tuple[str, str]]
    cut: bool
    prompt: str | None


@dataclass(frozen=True, slots=True)
class Page:
    """Texts from `start` on of the `total` in finished shards. `others[i]`: the text of the same
    entity in the other run, None where it has none (yet)."""

    start: int
    total: int
    texts: list[Text]
    others: list[Text | None]


def read_page(
    run: Path, start: int, count: int, *, entity: str = "", other: Path | None = None
) -> Page:
    """Texts of a run's finished shards, or those of one entity; and what `other` has of them.

    Raises DraftrecError for a manifest that cannot be read, OSError and ArrowException for files
    that are gone or damaged.
    """
    rows = _rows(run)
    total = sum(rows)
    count = max(0, min(count, MOST_TEXTS))
    start = max(0, min(start, max(total - 1, 0)))
    if entity:
        texts = _search(run, rows, [entity])[:MOST_TEXTS]
        start, total = 0, len(texts)
    else:
        texts = _slice(run, rows, start, count)
    found: dict[str, Text] = {}
    if other is not None and texts:
        names = list(dict.fromkeys(t.entity_id for t in texts))
        for text in _search(other, _rows(other), names):
            found.setdefault(text.entity_id, text)
    return Page(start, total, texts, [found.get(t.entity_id) for t in texts])


def _rows(run: Path) -> list[int]:
    """How many texts each finished shard has."""
    manifest = read_manifest(run / "manifest.json")
    return [shard.rows for shard in manifest.shards] if manifest else []


def _slice(run: Path, rows: Seq[int], start: int, count: int) -> list[Text]:
    texts: list[Text] = []
    for number, size in enumerate(rows):
        if start < size and count > len(texts):
            table = _shard(run, number).slice(start, count - len(texts))
            texts += _texts(table)
        start = max(0, start - size)
    return texts


def _search(run: Path, rows: Seq[int], entities: Seq[str]) -> list[Text]:
    """Texts of these entities, until all have one."""
    wanted = set(entities)
    texts: list[Text] = []
    for number in range(min(len(rows), _MOST_SHARDS)):
        path = arrow_path(run / f"part-{number:05d}.parquet")
        names = pq.read_table(path, columns=["entity_id"])["entity_id"]
        places = [i for i, name in enumerate(names.to_pylist()) if name in wanted]
        if not places:
            continue
        found = _texts(_shard(run, number).take(places))
        texts += found
        wanted -= {text.entity_id for text in found}
        if not wanted:
            break
    return texts


def _shard(run: Path, number: int) -> pa.Table:
    """Parts and statistics of a shard, side by side, with all the columns that it has."""
    part = _columns(run / f"part-{number:05d}.parquet", (*_PART, "prompt"))
    stats = _columns(run / f"stats-{number:05d}.parquet", (*_STATS, "pieces"))
    for name in stats.column_names:
        part = part.append_column(name, stats[name])
    return part


def _columns(path: Path, wanted: Seq[str]) -> pa.Table:
    file = pq.ParquetFile(arrow_path(path))
    return file.read(columns=[name for name in wanted if name in file.schema_arrow.names])


def _texts(table: pa.Table) -> list[Text]:
    return [_text(row) for row in table.to_pylist()]


def _text(row: dict[str, Any]) -> Text:
    whole = str(row["text"])
    text, prompt = whole[:MOST_CHARS], row.get("prompt")
    return Text(
        entity_id=str(row["entity_id"]),
        group=row["group"],
        finish_reason=str(row["finish_reason"]),
        new_tokens=row["new_tokens"],
        **{name: row[name] for name in _STATS},
        pieces=_pieces(text, row.get("pieces")),
        cut=len(whole) > MOST_CHARS,
        prompt=None if prompt is None else str(prompt)[:MOST_CHARS],
    )


def _pieces(text: str, noted: list[dict[str, Any]] | None) -> list[tuple[str, str]]:
    if noted is None:
        return [("", text)] if text else []
    found: list[tuple[str, str]] = []
    place = 0
    for piece in noted:
        end = place + int(piece["chars"])
        if place < len(text):
            found.append((str(piece["source"]), text[place:end]))
        place = end
    if place < len(text):
        found.append(("", text[place:]))
    return found
