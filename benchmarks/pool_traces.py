"""Texts to replay and texts to draft from, split by entity: synthetic, or recorded in ../shared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from rivals.published_trie import SpecialTokens, special_tokens
from workload import Workload, make_texts, repeated_share

from draftrec.core import IntArray
from draftrec.evaluate.replay.recordings import Recording, link_steps, opening

SYNTHETIC = "synthetic"
#: Recorded trace -> the task whose prompts belong to it; None where it has its own, or none.
RECORDED = {
    "chatqa_ml1m_user": "chatqa_user",
    "gear_ml1m_user": "gear_user",
    "gear_ml1m_item": "gear_item",
    "agent4rec_ml1m_persona_like": None,
}
UPDATES = "lusifer_ml100k_user_updates"


@dataclass(frozen=True)
class Trace:
    """`texts` are replayed, `warm` are other entities' texts to draft from."""

    name: str
    texts: list[Recording]
    warm: list[Recording]
    special: SpecialTokens

    def facts(self) -> dict[str, Any]:
        """Sizes, and how much the pool's texts repeat themselves."""
        warm = [r.token_ids for r in self.warm]
        return {
            "texts": len(self.texts),
            "text_tokens": sum(len(r.token_ids) for r in self.texts),
            "prompt_tokens": sum(len(r.prompt_ids) for r in self.texts),
            "warm_texts": len(warm),
            "warm_tokens": sum(map(len, warm)),
            "groups": len({r.group for r in self.warm} - {None}),
            **{f"repeated_{n}_grams": round(repeated_share(warm, n), 4) for n in (2, 8)},
        }


@dataclass(frozen=True)
class Sizes:
    """Texts replayed, at most this many texts in the pool, and the seed of the split."""

    texts: int
    warm: int
    seed: int


def synthetic_trace(sizes: Sizes) -> Trace:
    """The generator's texts; the replayed ones are written after those in the pool."""
    workload = Workload(texts=sizes.texts + sizes.warm)
    start = np.zeros(1, np.int32)
    made = [
        Recording(str(i), ids, start, group)
        for i, (ids, group) in enumerate(make_texts(workload, sizes.seed))
    ]
    return Trace(SYNTHETIC, made[sizes.warm :], made[: sizes.warm], SpecialTokens())


def recorded_trace(data: Path, name: str, tokenizer: Any, sizes: Sizes) -> Trace:
    """Entities drawn at random to replay, the pool from the others; EOS ends every text."""
    rows = pq.read_table(data / "texts" / f"{name}.parquet").to_pylist()
    entities = np.random.default_rng(sizes.seed).permutation(sorted({r["entity_id"] for r in rows}))
    held_out = set(entities[: min(sizes.texts, len(entities) // 2)].tolist())
    place = {entity: i for i, entity in enumerate(entities.tolist())}
    rows.sort(key=lambda r: (place[r["entity_id"]], r["step"] or 0))
    prompts = _prompts(data, RECORDED.get(name))
    warm = [r for r in rows if r["entity_id"] not in held_out][-sizes.warm :]
    texts = [r for r in rows if r["entity_id"] in held_out]
    return Trace(
        name,
        [_recording(r, prompts, tokenizer) for r in texts],
        [_recording(r, {}, tokenizer) for r in warm],
        special_tokens(tokenizer),
    )


def regrouped(trace: Trace, groups: Mapping[str, str | None]) -> Trace:
    """The same texts with other groups, by entity."""

    def moved(recordings: list[Recording]) -> list[Recording]:
        return [replace(r, group=groups.get(r.entity_id)) for r in recordings]

    return replace(trace, texts=moved(trace.texts), warm=moved(trace.warm))


def shuffled_groups(trace: Trace, seed: int) -> dict[str, str | None]:
    """The trace's own groups dealt out at random: as many entities in each as before."""
    groups = {r.entity_id: r.group for r in [*trace.texts, *trace.warm]}
    order = np.random.default_rng(seed).permutation(len(groups))
    labels = list(groups.values())
    return {entity: labels[i] for entity, i in zip(groups, order.tolist(), strict=True)}


def linked(trace: Trace) -> list[Recording]:
    """The replayed texts with their entity's text of the step before, in order of steps."""
    return sorted(link_steps(trace.texts, trace.name), key=lambda r: r.when)


def _recording(row: dict[str, Any], prompts: Mapping[str, str], tokenizer: Any) -> Recording:
    prompt = row["prompt"] or prompts.get(row["entity_id"], "")
    prompt_ids = np.array(tokenizer(prompt, verbose=False).input_ids, np.int32)
    step = row["step"]
    return Recording(
        row["entity_id"],
        _ids(row["text"], tokenizer),
        prompt_ids if len(prompt_ids) else opening(tokenizer),
        row["group"],
        step,
        float(step or 0),
    )


def _ids(text: str, tokenizer: Any) -> IntArray:
    ids = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
    return np.array([*ids, tokenizer.eos_token_id], np.int32)


def _prompts(data: Path, task: str | None) -> dict[str, str]:
    if task is None:
        return {}
    rows = pq.read_table(data / "profiles.parquet", columns=["task", "entity_id", "prompt"])
    return {r["entity_id"]: r["prompt"] for r in rows.to_pylist() if r["task"] == task}
