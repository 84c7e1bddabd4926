"""A catalogue of 24 items whose users walk through it in a circle: learnt in seconds."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from draftrec.data.sequences import write_semantic_ids
from draftrec.items.semantic_ids import SemanticIds
from draftrec.train.fit import FitSpec
from draftrec.train.settings import TrainSettings

ITEMS = 24
SETTINGS = TrainSettings(
    epochs=3, batch_tokens=200, lr=3e-3, dropout=0.1, drop_items=0.05, device="cpu", save_steps=4
)


def catalogue() -> SemanticIds:
    """Items 100 to 123 with three tokens each; the last two share theirs."""
    sids = [[f"<a_{i // 8}>", f"<b_{i // 2 % 4}>", f"<c_{i % 2}>"] for i in range(ITEMS - 1)]
    return SemanticIds.of(range(100, 100 + ITEMS), [*sids, sids[-1]])


def write_sequences(path: Path, users: int = 40, seed: int = 0) -> Path:
    """Rows of all three parts; steps of 1, rarely 2."""
    rng = np.random.default_rng(seed)
    lines = []
    for user in range(users):
        walk = rng.integers(ITEMS) + np.cumsum(1 + (rng.random(14) < 0.1))
        items = (100 + walk % ITEMS).tolist()
        known = int(rng.integers(1, 10))
        parts = {"train": items[:known], "valid": items[known : known + 2], "test": items[-1:]}
        lines += [json.dumps({"user": user, "items": parts[name], "part": name}) for name in parts]
    path.write_text("\n".join(lines))
    return path


def write_all(folder: Path, users: int = 40) -> tuple[str, str]:
    """Sequences and semantic ids, as their paths."""
    sids = folder / "sids.jsonl"
    write_semantic_ids(sids, catalogue())
    return str(write_sequences(folder / "sequences.jsonl", users)), str(sids)


def fit_spec(folder: Path, output: str = "target", **changes: object) -> FitSpec:
    """A training of the smallest preset."""
    from dataclasses import replace

    from draftrec.train.presets import ModelSource

    sequences, sids = write_all(folder)
    spec = FitSpec(
        sequences, sids, folder / output, ModelSource("preset", "tiny"), SETTINGS, recall_users=8
    )
    return replace(spec, **changes)
