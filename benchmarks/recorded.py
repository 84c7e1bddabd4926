"""Recorded texts, split by entity: some to replay, the others to draft from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from shop import knowledge_text, stream_records
from stand_in import train_tokenizer

from draftrec.core import IntArray, Request
from draftrec.data.templates import load_template
from draftrec.demo.shop import demo_model_path
from draftrec.models.loading import load_tokenizer
from draftrec.pool.store import Pool

SOURCES = (
    "chatqa_ml1m_user",
    "agent4rec_ml1m_persona_like",
    "gear_ml1m_user",
    "gear_ml1m_item",
)
_LONGEST_PROMPT = 384

Row = dict[str, Any]


@dataclass(frozen=True)
class Trace:
    """`requests` whose texts are replayed, `texts` by entity (EOS last), `pool` of the others."""

    name: str
    requests: list[Request]
    texts: Mapping[str, IntArray]
    pool: Pool


def read_rows(folder: Path | None, count: int, seed: int) -> dict[str, list[Row]]:
    """Rows (`entity_id`, `group`, `prompt`, `text`) of each source, shuffled, at most `count`.

    Without a folder of recordings, or with an empty one: the fictional bookshop's texts.
    """
    files = [f for name in SOURCES if folder and (f := folder / f"{name}.parquet").is_file()]
    if not files:
        return {"fictional_kar_user": _fictional(count, seed)}
    sources: dict[str, list[Row]] = {}
    for path in files:
        rows = pq.read_table(path).to_pylist()
        order = np.random.default_rng(seed).permutation(len(rows))[:count]
        sources[path.stem] = [_row(rows[i]) for i in order]
    return sources


def pick_tokenizer(folder: Path | None, sources: Mapping[str, list[Row]], vocabulary: int) -> Any:
    """The one in `folder`; else one trained on the pools' texts; in the fiction, the embedded."""
    if folder:
        return load_tokenizer(folder)
    if "fictional_kar_user" in sources and (demo_model_path() / "tokenizer.json").is_file():
        return load_tokenizer(demo_model_path())
    # Not on the first rows, which are replayed: a tokenizer fitted to them would flatter.
    texts = [row["text"] for rows in sources.values() for row in rows[len(rows) // 4 :]]
    return train_tokenizer(texts, vocabulary)


def make_trace(name: str, rows: list[Row], tokenizer: Any, tests: int) -> Trace:
    """The first `tests` rows to replay, the pool from the rest; rows are entities, so no leak."""
    assert len({row["entity_id"] for row in rows}) == len(rows)
    tests = min(tests, len(rows) // 2)
    requests = [
        Request(row["entity_id"], _ids(tokenizer, row["prompt"])[:_LONGEST_PROMPT], row["group"])
        for row in rows[:tests]
    ]
    texts = {row["entity_id"]: encode_text(tokenizer, row["text"]) for row in rows[:tests]}
    pool = Pool("replay")
    pool.add((encode_text(tokenizer, row["text"]), row["group"]) for row in rows[tests:])
    return Trace(name, requests, texts, pool)


def encode_text(tokenizer: Any, text: str) -> IntArray:
    """int32 ids as a model would emit them: no BOS, EOS last."""
    ids = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
    return np.array([*ids, tokenizer.eos_token_id], np.int32)


def _ids(tokenizer: Any, text: str) -> IntArray:
    return np.array(tokenizer(text, verbose=False).input_ids, np.int32)


def _row(row: Row) -> Row:
    """Where the prompt was not recorded, what is known of the entity stands in for it."""
    known = [row.get("title"), row.get("group"), row.get("history")]
    prompt = row.get("prompt") or " ".join(str(k) for k in known if k) or row["entity_id"]
    return {
        "entity_id": row["entity_id"],
        "group": row.get("group"),
        "prompt": f"{prompt}\n",
        "text": row["text"],
    }


def _fictional(count: int, seed: int) -> list[Row]:
    template = load_template("kar", "user")
    return [
        {
            "entity_id": record["entity_id"],
            "group": record["group"],
            "prompt": template.render(record),
            "text": knowledge_text(record, seed=seed),
        }
        for record in islice(stream_records("user", seed=seed), count)
    ]
