"""Run folders as `draftrec generate` writes them, with texts that a test chooses."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Seq
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from draftrec.jobs.knowledge.manifest import InputEntry, Manifest

EOS = 0
_SETTINGS = {
    "accept": "strict", "draft": "pool", "temperature": 0.0, "max_new_tokens": 100, "side": "user",
    "model": "toy",
}  # fmt: skip


def tokens_of(text: str) -> list[int]:
    """A number per word, the same in every run, and EOS behind them."""
    return [*(1 + sum(ord(c) * 7**i for i, c in enumerate(w)) % 30_011 for w in text.split()), EOS]


def write_run(
    folder: Path,
    texts: Mapping[str, str],
    *,
    tokens: Mapping[str, Seq[int]] | None = None,
    cut: Seq[str] = (),
    relaxed: int = 0,
    template: str | None = None,
    dtype: str = "float32",
    exact: bool = False,
    **settings: Any,
) -> Path:
    """Write `texts` by entity. `cut`: entities whose text did not end by itself; `relaxed`: such
    tokens in every text; `settings` go into the manifest."""
    folder.mkdir(parents=True)
    ids = [list((tokens or {}).get(e, tokens_of(t))) for e, t in texts.items()]
    ids = [x[:-1] if e in cut and x[-1:] == [EOS] else x for e, x in zip(texts, ids, strict=True)]
    part = {
        "entity_id": list(texts),
        "group": pa.nulls(len(texts), pa.string()),
        "text": list(texts.values()),
        "token_ids": pa.array(ids, pa.list_(pa.int32())),
        "finish_reason": ["length" if e in cut else "eos" for e in texts],
        "prompt_tokens": pa.array([3] * len(texts), pa.int32()),
        "new_tokens": pa.array([len(x) for x in ids], pa.int32()),
    }
    pq.write_table(pa.table(part), folder / "part-00000.parquet")
    stats = {
        "entity_id": list(texts),
        "relaxed_tokens": pa.array([relaxed] * len(texts), pa.int32()),
        "prompt_hash": pa.array([len(e) for e in texts], pa.int64()),
    }
    pq.write_table(pa.table(stats), folder / "stats-00000.parquet")
    manifest = Manifest(
        settings={**_SETTINGS, **settings},
        fingerprints={"model": "m", "tokenizer": "t"},
        paths={"template": template},
        versions={},
        input=InputEntry(sha256="", files=1, records=len(texts)),
        device="cpu",
        dtype=dtype,
        exact=exact,
    )
    (folder / "manifest.json").write_text(manifest.model_dump_json())
    return folder


def varied_texts(n: int, seed: int = 0, words: int = 30) -> dict[str, str]:
    """Texts of `n` entities over common words and a few of their own, as profiles are."""
    rng = np.random.default_rng(seed)
    common = [f"word{i}" for i in range(60)]
    found: dict[str, str] = {}
    for e in range(n):
        own = [f"own{e}x{i}" for i in range(6)]
        found[f"u{e}"] = " ".join(rng.choice([*common, *own * 3], words))
    return found


def changed(texts: Mapping[str, str], share: float, seed: int = 1) -> dict[str, str]:
    """`texts` in which about `share` of the words are drawn anew from all of them."""
    rng = np.random.default_rng(seed)
    everything = " ".join(texts.values()).split()
    found: dict[str, str] = {}
    for entity, text in texts.items():
        words = text.split()
        new = rng.choice(everything, len(words))
        swap = rng.random(len(words)) < share
        found[entity] = " ".join(n if s else w for w, n, s in zip(words, new, swap, strict=True))
    return found
