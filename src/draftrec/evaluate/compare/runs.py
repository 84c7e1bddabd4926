"""Runs read back for comparison, reduced to the entities that all of them wrote a text for."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from draftrec.config import ControlsConfig, StructureConfig
from draftrec.core import BoolArray, IntArray, LongArray
from draftrec.data.files.places import Place, arrow_path, natural, place
from draftrec.data.records import SEVERAL_TEXTS
from draftrec.data.tables.readers import open_records
from draftrec.errors import DraftrecError
from draftrec.jobs.knowledge.manifest import Manifest, read_manifest, recorded_settings

_COLUMNS = ("entity_id", "text", "token_ids", "finish_reason")
#: Settings that decide what a greedy strict text is.
_DECISIVE = (
    *ControlsConfig.model_fields,
    *StructureConfig.model_fields,
    "max_new_tokens",
    "kv_dtype",
)


@dataclass(frozen=True, eq=False, slots=True)
class RunTexts:
    """The texts of one run, `n` entities in one order.

    `token_ids`: int32 arrays, EOS included where it was emitted; `ended` bool `[n]`: whether it
    or a stop string was; `relaxed_tokens`, `prompt_hashes` int64 `[n]`, None where the run kept no
    statistics; `stopped` bool `[n]`: whether it was a stop string, whose tokens are the text's own.
    """

    name: str
    entity_ids: tuple[str, ...]
    texts: tuple[str, ...]
    token_ids: tuple[IntArray, ...]
    ended: BoolArray
    relaxed_tokens: LongArray | None = None
    prompt_hashes: LongArray | None = None
    manifest: Manifest | None = None
    stopped: BoolArray | None = None

    def __len__(self) -> int:
        return len(self.entity_ids)

    @property
    def lengths(self) -> LongArray:
        """New tokens of each text, EOS included, int64 `[n]`."""
        return np.array([len(ids) for ids in self.token_ids], np.int64)

    @property
    def bodies(self) -> list[IntArray]:
        """The tokens without the EOS."""
        closed = self.ended if self.stopped is None else self.ended & ~self.stopped
        pairs = zip(self.token_ids, closed, strict=True)
        return [ids[:-1] if eos and len(ids) else ids for ids, eos in pairs]

    def take(self, rows: Seq[int]) -> RunTexts:
        """The same run with the entities at `rows`, in that order."""
        picked = np.asarray(rows, np.int64)
        return RunTexts(
            self.name,
            tuple(self.entity_ids[i] for i in rows),
            tuple(self.texts[i] for i in rows),
            tuple(self.token_ids[i] for i in rows),
            self.ended[picked],
            None if self.relaxed_tokens is None else self.relaxed_tokens[picked],
            None if self.prompt_hashes is None else self.prompt_hashes[picked],
            self.manifest,
            None if self.stopped is None else self.stopped[picked],
        )


@dataclass(frozen=True, eq=False, slots=True)
class PairedRuns:
    """A baseline and its runs over the same entities in the same order.

    `missing[name]`: entities that the baseline has and the run lacks; `total`: the baseline's.
    """

    baseline: RunTexts
    runs: tuple[RunTexts, ...]
    missing: dict[str, int]
    total: int


def read_run(name: str, folder: str | Place) -> RunTexts:
    """Read a folder that `draftrec generate` wrote.

    Raises DraftrecError for anything else, and for an entity that has two texts.
    """
    folder = place(folder)
    if not folder.is_dir():
        raise DraftrecError(f"{folder} is not a folder; give one that `draftrec generate` wrote")
    source = open_records(folder)
    source.require(_COLUMNS, "give a folder that `draftrec generate` wrote")
    if source.kind != "parquet":
        raise DraftrecError(f"{folder} holds no Parquet parts; compare runs of `draftrec generate`")
    table = _read(source.files, _COLUMNS)
    ids = [str(i) for i in table["entity_id"].to_pylist()]
    if len(set(ids)) < len(ids):
        twice = next(i for i in ids if ids.count(i) > 1)
        mend = f"{SEVERAL_TEXTS}, in a folder" if source.has("sample") else "keep one"
        raise DraftrecError(f"{folder} has two texts of {twice!r}; {mend}")
    token_ids = tuple(np.array(x or [], np.int32) for x in table["token_ids"].to_pylist())
    ended, stopped = endings(table["finish_reason"].to_pylist())
    texts = tuple("" if t is None else str(t) for t in table["text"].to_pylist())
    relaxed, hashes = _read_stats(folder, ids)
    manifest = read_manifest(folder / "manifest.json")
    return RunTexts(name, tuple(ids), texts, token_ids, ended, relaxed, hashes, manifest, stopped)


def endings(reasons: Seq[str | None]) -> tuple[BoolArray, BoolArray]:
    """`ended` and `stopped` of texts that ended for these reasons, bool `[n]` both."""
    stopped = np.array([reason == "stop" for reason in reasons], np.bool_)
    return np.array([reason == "eos" for reason in reasons], np.bool_) | stopped, stopped


def pair(baseline: RunTexts, runs: Seq[RunTexts]) -> PairedRuns:
    """Keep the entities of all runs, in the baseline's order.

    Raises DraftrecError when there are none, and when tokens of two runs mean different things.
    """
    for run in runs:
        _check_tokenizers(baseline, run)
    places = [{e: i for i, e in enumerate(run.entity_ids)} for run in runs]
    shared = [e for e in baseline.entity_ids if all(e in p for p in places)]
    if not shared:
        names = ", ".join(r.name for r in (baseline, *runs))
        raise DraftrecError(f"{names} share no entity; compare runs over the same records")
    own = {e: i for i, e in enumerate(baseline.entity_ids)}
    missing = {run.name: sum(e not in p for e in own) for run, p in zip(runs, places, strict=True)}
    taken = [run.take([p[e] for e in shared]) for run, p in zip(runs, places, strict=True)]
    return PairedRuns(baseline.take([own[e] for e in shared]), tuple(taken), missing, len(own))


def must_be_equal(baseline: RunTexts, run: RunTexts) -> bool:
    """Whether the manifests promise equal tokens: one model, greedy and strict, equal prompts and
    settings that decide texts; and the same dtype and device, as another one rounds elsewhere."""
    pair = _one_model(baseline, run)
    return pair is not None and len({(m.dtype, m.device) for m in pair}) == 1


def rounding(baseline: RunTexts, run: RunTexts) -> str | None:
    """Why greedy strict texts of one model may differ by rounding alone; None where they may not,
    or are no such texts."""
    pair = _one_model(baseline, run)
    if pair is None:
        return None
    a, b = pair
    if a.dtype != b.dtype:
        return f"{baseline.name} is in {a.dtype}, {run.name} in {b.dtype}"
    if a.device != b.device:
        return f"{baseline.name} ran on {a.device}, {run.name} on {b.device}"
    loose = [t.name for t, m in ((baseline, a), (run, b)) if not m.exact]
    if not loose:
        return None
    rare = ", where near-ties are rare" if a.dtype in ("float32", "float64") else ""
    return (
        f"{' and '.join(loose)}, in {a.dtype}{rare}, {'is' if len(loose) == 1 else 'are'} not bit "
        f"for bit, so that drafts and batches may decide near-ties between tokens; write both with "
        f"--exact to rule that out"
    )


def _one_model(baseline: RunTexts, run: RunTexts) -> tuple[Manifest, Manifest] | None:
    """The manifests, where both are of greedy strict texts of one model, under equal settings that
    decide them, for equal prompts."""
    a, b = baseline.manifest, run.manifest
    if a is None or b is None or not (_greedy(a) and _greedy(b)):
        return None
    same_model = all(
        a.fingerprints.get(name) == b.fingerprints.get(name) is not None
        for name in ("model", "tokenizer")
    )
    own, theirs = ((m.fingerprints.get("generation_config") or None) for m in (a, b))
    before, after = recorded_settings(a), recorded_settings(b)
    same_settings = own == theirs and all(before.get(n) == after.get(n) for n in _DECISIVE)
    equal = same_model and same_settings and not other_prompts(baseline, run).any()
    return (a, b) if equal else None


def other_prompts(baseline: RunTexts, run: RunTexts) -> BoolArray:
    """Which texts answer another prompt than the baseline's, bool `[n]`; where either run kept no
    hash of its prompts they count as equal."""
    if baseline.prompt_hashes is None or run.prompt_hashes is None:
        return np.zeros(len(run), np.bool_)
    return baseline.prompt_hashes != run.prompt_hashes


def _greedy(manifest: Manifest) -> bool:
    settings = manifest.settings
    strict = settings.get("accept") == "strict" or settings.get("draft") == "none"
    return strict and settings.get("temperature") == 0


def _check_tokenizers(baseline: RunTexts, run: RunTexts) -> None:
    prints = [
        m.fingerprints.get("tokenizer") for m in (baseline.manifest, run.manifest) if m is not None
    ]
    if len(prints) == 2 and None not in prints and prints[0] != prints[1]:
        raise DraftrecError(
            f"{run.name} was written with another tokenizer than {baseline.name}, so that their "
            "tokens cannot be compared; compare runs of one model"
        )


def _read_stats(folder: Place, ids: list[str]) -> tuple[LongArray | None, LongArray | None]:
    """Relaxed tokens and prompt hashes in the order of `ids`; None where files or columns lack."""
    files = tuple(sorted(folder.glob("stats-*.parquet"), key=natural))
    if not files:
        return None, None
    names = ("entity_id", "relaxed_tokens", "prompt_hash")
    table = _read(files, names)
    if table["entity_id"].to_pylist() != ids:
        raise DraftrecError(
            f"the stats-*.parquet of {folder} do not fit its part-*.parquet; let "
            "`draftrec generate` finish the run"
        )
    return _whole(table, names[1]), _whole(table, names[2])


def _read(files: Seq[Place], columns: Seq[str]) -> pa.Table:
    tables: list[pa.Table] = []
    for path in files:
        try:
            file = arrow_path(path)
            held = set(pq.read_schema(file).names)
            tables.append(pq.read_table(file, columns=[c for c in columns if c in held]))
        except (pa.ArrowException, OSError) as error:
            reason = " ".join(str(error).split())
            raise DraftrecError(f"{path} cannot be read ({reason}); write the run again") from error
    return pa.concat_tables(tables, promote_options="default")


def _whole(table: Any, name: str) -> LongArray | None:
    if name not in table.column_names or table[name].null_count:
        return None
    return np.asarray(table[name].to_numpy(), np.int64)
