"""Texts to replay: recordings of large models where they are at hand, and always some that the
embedded model writes on the spot, strictly and relaxed.

A replayed model "writes" a text that was written before (replay.py). What a relaxed rule does to
speed is replayed as well: the text that it let another model write holds the draft tokens that it
kept, so that the same pool drafts them again, and they are accepted as they were then.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from common import note
from recorded import make_trace, pick_tokenizer, read_rows

from draftrec.config import make_config
from draftrec.core import IntArray, Request
from draftrec.data.templates import load_template
from draftrec.demo.shop import demo_model_path, readers
from draftrec.jobs.knowledge.generator import Generator
from draftrec.pool.store import Pool

EMBEDDED = "embedded_kar_user"
#: The least tokens that any model here knows.
_VOCABULARY = 8192
# As the demo does: nodes that a relaxed text was drafted with, and the longest text.
_BUDGET, _LONGEST = 16, 192


@dataclass(frozen=True)
class Replayed:
    """`requests` and what is written for them, int32 ids by entity, EOS last: by the strict rule
    (`texts`) and, where it is known, by the relaxed one; `warm`: other texts with their groups, to
    draft from. `source` says who wrote them."""

    name: str
    source: str
    eos: int
    requests: list[Request]
    texts: Mapping[str, IntArray]
    relaxed: Mapping[str, IntArray] | None
    warm: list[tuple[IntArray, str | None]]

    def pool(self) -> Pool:
        pool = Pool("replay")
        pool.add(self.warm)
        return pool


def make_texts(folder: Path | None, device: str, warm: int, tests: int) -> list[Replayed]:
    """The embedded model's own texts, then the recordings in `folder`, if there are any."""
    found = [_embedded(device, warm, tests)]
    sources = read_rows(folder, warm + tests, seed=0)
    if any(name.startswith("fictional") for name in sources):
        note("no recordings: the embedded model's own texts alone are replayed")
        return found
    words = pick_tokenizer(None, sources, _VOCABULARY)
    eos = int(words.eos_token_id)
    for name, rows in sources.items():
        trace = make_trace(name, rows, words, tests)
        kept = list(trace.pool)
        found.append(
            Replayed(name, f"recorded in {folder}", eos, trace.requests, trace.texts, None, kept)
        )
    return found


def save(path: Path, found: list[Replayed]) -> None:
    """As JSON, for the processes that replay them."""
    rows = [
        {
            "name": r.name,
            "source": r.source,
            "eos": r.eos,
            "requests": [[q.entity_id, q.prompt_ids.tolist(), q.group] for q in r.requests],
            "texts": _lists(r.texts),
            "relaxed": None if r.relaxed is None else _lists(r.relaxed),
            "warm": [[ids.tolist(), group] for ids, group in r.warm],
        }
        for r in found
    ]
    path.write_text(json.dumps(rows))


def load(path: Path) -> list[Replayed]:
    """What `save` wrote."""
    return [
        Replayed(
            r["name"],
            r["source"],
            r["eos"],
            [Request(name, _ids(ids), group) for name, ids, group in r["requests"]],
            {name: _ids(ids) for name, ids in r["texts"].items()},
            None if r["relaxed"] is None else {n: _ids(ids) for n, ids in r["relaxed"].items()},
            [(_ids(ids), group) for ids, group in r["warm"]],
        )
        for r in json.loads(path.read_text())
    ]


def summary(found: list[Replayed]) -> dict[str, Any]:
    """What a result says of them."""
    return {
        r.name: {
            "source": r.source,
            "texts": len(r.requests),
            "tokens": sum(map(len, r.texts.values())),
            "relaxed_texts_differ": None if r.relaxed is None else _differing(r),
            "pool_texts": len(r.warm),
            "pool_tokens": sum(len(ids) for ids, _ in r.warm),
        }
        for r in found
    }


def _differing(r: Replayed) -> int:
    assert r.relaxed is not None
    return sum(not np.array_equal(r.texts[name], text) for name, text in r.relaxed.items())


def _embedded(device: str, warm: int, tests: int) -> Replayed:
    """Texts of the model that ships with draftrec, about the readers of its invented shop."""
    template, records = load_template("kar", "user"), readers()
    warm = min(warm, len(records) - tests)
    common = {"device": device, "dtype": "float32", "max_new_tokens": _LONGEST}
    batch = {"batch_size": min(128, warm) if device != "cpu" else min(16, warm)}
    model = str(demo_model_path())
    plain = Generator.from_pretrained(model, **common, **batch, draft="none")
    ids = plain.encode([template.render(r) for r in records[: tests + warm]])
    asked = [
        Request(str(r["entity_id"]), x, r["group"], key=i)
        for i, (r, x) in enumerate(zip(records, ids, strict=False))
    ]
    held, others = asked[:tests], asked[tests:]
    (eos,) = sorted(plain.eos_ids)[:1]
    kept = [
        (_ended(g.token_ids, eos), r.group) for g, r in zip(plain.run(others), others, strict=True)
    ]
    pool = Pool(plain.fingerprint["tokenizer"])
    pool.add(kept)
    loose = make_config(model, **common, **batch, draft="pool", accept="relaxed", budget=_BUDGET)
    texts = {g.entity_id: _ended(g.token_ids, eos) for g in plain.run(held)}
    done = plain.with_config(loose, pool=pool).run(held)
    relaxed = {g.entity_id: _ended(g.token_ids, eos) for g in done}
    return Replayed(EMBEDDED, "written by the embedded model", eos, held, texts, relaxed, kept)


def _ended(ids: IntArray, eos: int) -> IntArray:
    """A text that was cut ends all the same: a replay has to know where."""
    return ids if len(ids) and ids[-1] == eos else np.append(ids, np.int32(eos)).astype(np.int32)


def _ids(values: list[int]) -> IntArray:
    return np.array(values, np.int32)


def _lists(texts: Mapping[str, IntArray]) -> dict[str, list[int]]:
    return {name: ids.tolist() for name, ids in texts.items()}
