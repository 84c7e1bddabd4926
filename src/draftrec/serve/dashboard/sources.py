"""Folders that the dashboard watches, what is in them now, and their texts, a page at a time."""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import threading
import time
from collections import deque
from collections.abc import Iterable
from collections.abc import Sequence as Seq
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from draftrec.data.files.places import arrow_path
from draftrec.errors import DraftrecError
from draftrec.jobs.knowledge.manifest import read_manifest
from draftrec.serve.dashboard.advice import Advice, advise
from draftrec.serve.dashboard.quality import Evaluation, read_evaluations
from draftrec.serve.dashboard.run_data import (
    FileState,
    RunData,
    RunReader,
    file_state,
    with_baselines,
)

#: Folders are looked at once in this many seconds, however many pages are open.
FRESH_SECONDS = 1.0
#: For groups of shards that were not read before; the others wait for the next look. A service has
#: other work to do.
LOOK_SECONDS, BUSY_LOOK_SECONDS = 1.0, 0.2
#: Versions of the data that are remembered, for pages that have one of them.
_RECENT = 8
_NEVER = object()
Kind = Literal["run", "damaged", "other"]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The page's data, and the same as JSON text. `version` is equal for equal data; how long a run
    has been quiet does not count."""

    version: str
    json: str
    values: dict[str, Any]


@dataclass(frozen=True, slots=True)
class News:
    """What a page is told to have `version`. `event`: "data", all of it; "changes" to what it has;
    "" where there is nothing to tell. `json`: the event's data."""

    version: str
    event: Literal["data", "changes", ""]
    json: str


def changes(before: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """What differs: whole values by name, but of `runs` those fields that do, by the run's path,
    and `order`, the paths of all runs. A run that was only quiet for longer has no fields."""
    known = {run["path"]: run for run in before["runs"]}
    runs: dict[str, dict[str, Any]] = {}
    for run in now["runs"]:
        old = known.get(run["path"], {})
        fields = {name: value for name, value in run.items() if old.get(name, _NEVER) != value}
        if fields.keys() - {"quiet_seconds"}:
            runs[run["path"]] = fields
    rest = {name: value for name, value in now.items() if before.get(name, _NEVER) != value}
    return {**rest, "runs": runs, "order": [run["path"] for run in now["runs"]]}


@dataclass(frozen=True, slots=True)
class Found:
    """All that the folders hold. `notes`: files that could not be read, in a sentence each."""

    runs: list[RunData] = field(default_factory=list[RunData])
    evaluations: list[Evaluation] = field(default_factory=list[Evaluation])
    notes: list[str] = field(default_factory=list[str])
    advice: list[Advice] = field(default_factory=list[Advice])


class RunSources:
    """Reads run folders and evaluations; safe to ask from several threads.

    A folder is a run or an evaluation, or it holds some: then all that it holds, and will hold, are
    shown. `price_per_hour`: what an hour of the machine costs, as the page proposes it. `paths`:
    whether a page may know where runs and pools lie; names stand in their place otherwise.
    `seconds`: how long a look may take to read groups, of which the rest is left to the next one.
    Raises DraftrecError for a folder that does not exist.
    """

    def __init__(
        self,
        folders: Seq[Path],
        price_per_hour: float | None = None,
        *,
        paths: bool = True,
        seconds: float = math.inf,
    ) -> None:
        for folder in folders:
            if not folder.is_dir():
                raise DraftrecError(
                    f"{folder} is no folder; name the --output of a job, or a folder of such"
                )
        self.folders = list(dict.fromkeys(f.absolute() for f in folders))
        self.price_per_hour = price_per_hour
        self._paths, self._seconds = paths, seconds
        self._kinds: dict[Path, tuple[FileState | None, Kind]] = {}
        self._readers: dict[Path, RunReader] = {}
        # One thread for all pages: a run that takes long to read must not take those of others.
        self.looking = ThreadPoolExecutor(1, "run-folders")
        self._reading = ThreadPoolExecutor(1, "run-texts")
        self._lock = threading.Lock()
        self._recent: deque[Snapshot] = deque(maxlen=_RECENT)
        self._changes: tuple[tuple[str, str], str] = ("", ""), ""
        self._looked = 0.0

    def snapshot(self) -> Snapshot:
        """The data as of now, or of at most a second ago."""
        with self._lock:
            now = time.monotonic()
            if not self._recent or now - self._looked >= FRESH_SECONDS:
                self._keep(self._take())
                self._looked = now
            return self._recent[-1]

    async def latest(self) -> Snapshot:
        """The same, for an event loop: read in the one thread of these folders."""
        return await asyncio.get_running_loop().run_in_executor(self.looking, self.snapshot)

    async def news(self, since: str) -> News:
        """What a page that has the version `since` does not know yet."""
        return await asyncio.get_running_loop().run_in_executor(self.looking, self._news, since)

    async def texts(
        self, run: str, start: int, count: int, *, entity: str = "", other: str = ""
    ) -> Page:
        """Texts of a run that was shown, named by its path, beside those of another.

        Raises KeyError for a folder that is no such run, and DraftrecError for damaged files.
        """
        known = {self._id(reader): folder for folder, reader in list(self._readers.items())}
        beside = known[other] if other else None
        page = partial(read_page, known[run], start, count, entity=entity, other=beside)
        try:
            return await asyncio.get_running_loop().run_in_executor(self._reading, page)
        except (OSError, ValueError, LookupError, TypeError) as error:  # Arrow's are ValueErrors
            reason = self._told(_odd(error), known[run], run)
            raise DraftrecError(f"the texts cannot be read: {reason}") from error

    def read(self) -> Found:
        """All runs and evaluations, and advice on them."""
        found = Found()
        places = list(self._places())
        names = _names(places)
        there = set(places)
        self._readers = {f: r for f, r in self._readers.items() if f in there}
        self._kinds = {f: k for f, k in self._kinds.items() if f in there}
        until = time.monotonic() + self._seconds
        for folder, name in zip(places, names, strict=True):
            try:
                self._read(folder, name, found, until)
            except Exception as error:  # noqa: BLE001 - one odd file must not hide the others
                reason = f"{error}" if isinstance(error, DraftrecError) else _odd(error)
                reason = self._told(reason, folder, name)
                found.notes.append(f"{name} cannot be shown: {reason}")
        found.runs[:] = with_baselines(found.runs)
        found.advice.extend(advise(found.runs, found.evaluations))
        return found

    def _read(self, folder: Path, name: str, found: Found, until: float) -> None:
        evaluations = read_evaluations(folder, name)
        _check(Found(evaluations=evaluations))
        found.evaluations.extend(evaluations)
        kind = self._kind(folder)
        if kind == "damaged":
            raise DraftrecError("its manifest.json is cut off or damaged")
        if kind != "run":
            return
        reader = self._readers.setdefault(folder, RunReader(folder, name))
        reader.name = name
        run = reader.read(until)
        if run is None:
            return
        if not self._paths:
            run = replace(
                run, path=name, pool=run.pool and replace(run.pool, path=Path(run.pool.path).name)
            )
        _check(Found(runs=[run]))
        found.runs.append(run)
        if reader.left:
            found.notes.append(
                f"{name}: its groups do not count {reader.left:,} of its shards yet, which are "
                "being read"
            )
        if run.odd_lines:
            lines = "line" if run.odd_lines == 1 else "lines"
            found.notes.append(
                f"{name}: {run.odd_lines} {lines} of its metrics.jsonl are no records and were "
                "left out"
            )

    def _take(self) -> Snapshot:
        values: dict[str, Any] = {**asdict(self.read()), "price_per_hour": self.price_per_hour}
        lasting = [{**run, "quiet_seconds": 0} for run in values["runs"]]
        version = hashlib.sha256(json.dumps({**values, "runs": lasting}).encode()).hexdigest()
        values["version"] = version[:16]
        return Snapshot(version[:16], json.dumps(values), values)

    def _keep(self, snapshot: Snapshot) -> None:
        if self._recent and self._recent[-1].version == snapshot.version:
            self._recent.pop()
        self._recent.append(snapshot)

    def _news(self, since: str) -> News:
        now = self.snapshot()
        before = next((s for s in self._recent if s.version == since), None)
        if since == now.version:
            return News(now.version, "", "")
        if before is None:
            return News(now.version, "data", now.json)
        between = before.version, now.version
        if self._changes[0] != between:  # most pages know the same, so it is made once
            self._changes = between, json.dumps(changes(before.values, now.values))
        return News(now.version, "changes", self._changes[1])

    def _kind(self, folder: Path) -> Kind:
        """As `_kind`, looked at again only where the manifest has changed."""
        state = file_state(folder / "manifest.json")
        if folder not in self._kinds or self._kinds[folder][0] != state:
            self._kinds[folder] = state, _kind(folder)
        return self._kinds[folder][1]

    def _id(self, reader: RunReader) -> str:
        """What a page calls a run."""
        return str(reader.folder) if self._paths else reader.name

    def _told(self, words: str, folder: Path, name: str) -> str:
        """What went wrong, without where."""
        return words if self._paths else words.replace(str(folder), name)

    def _places(self) -> Iterable[Path]:
        """The given folders that hold something, and folders directly within the others."""
        seen: set[Path] = set()
        for folder in self.folders:
            inside = [folder]
            if self._kind(folder) != "run":
                inside += sorted(p for p in _children(folder) if not p.name.startswith("."))
            for place in inside:
                if place not in seen:
                    seen.add(place)
                    yield place


def _children(folder: Path) -> list[Path]:
    try:
        return [p for p in folder.iterdir() if p.is_dir()]
    except OSError:
        return []


def _kind(folder: Path) -> Kind:
    """What a folder's manifest is that of; pools have one too."""
    try:
        content = json.loads((folder / "manifest.json").read_bytes())
    except OSError:
        return "other"
    except (ValueError, RecursionError):
        return "damaged"
    is_run = isinstance(content, dict) and content.get("format") == "draftrec-run"
    return "run" if is_run else "other"


def _check(found: Found) -> None:
    """Raise whatever the page's data or the advice would over this alone; numbers that are none,
    or infinite, are no JSON to a browser."""
    json.dumps(asdict(found), allow_nan=False)
    advise(with_baselines(found.runs), found.evaluations)


def _odd(error: Exception) -> str:
    return f"a file in it holds something unexpected ({type(error).__name__}: {error})"[:300]


def _names(folders: Seq[Path]) -> list[str]:
    """Short names that differ: the folder's own, with its parent's where two are alike, and
    numbered where that is not enough."""
    own = [f.name or str(f) for f in folders]
    names = [
        name if own.count(name) == 1 else f"{folder.parent.name}/{name}"
        for folder, name in zip(folders, own, strict=True)
    ]
    before = [names[:place].count(name) for place, name in enumerate(names)]
    return [f"{name} ({n + 1})" if n else name for name, n in zip(names, before, strict=True)]


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
