"""A small world whose clicks follow from what users and items are like."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from draftrec.data.vectors import vector_column, vectors_schema

USERS, ITEMS, TASTES = 150, 60, 4


class World:
    """Users like items of their own taste. The taste is in the vectors, and nowhere else."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        random = np.random.default_rng(0)
        self.user_taste = random.integers(0, TASTES, USERS)
        self.item_taste = random.integers(0, TASTES, ITEMS)
        rows: list[dict[str, Any]] = []
        for user in range(USERS):
            for time, item in enumerate(random.permutation(ITEMS)[:24].tolist()):
                liked = self.user_taste[user] == self.item_taste[item]
                rating = int(random.integers(4, 6) if liked else random.integers(1, 4))
                rows.append(
                    {"user_id": f"u{user}", "item_id": f"i{item}", "rating": rating,
                     "timestamp": time * 1000 + user}
                )  # fmt: skip
        self.interactions = self.write("interactions.jsonl", rows)
        self.items = self.write(
            "items.jsonl",
            [
                {"item_id": f"i{i}", "title": f"Title {i}", "genres": f"g{i % 3}|g{i % 5}"}
                for i in range(ITEMS)
            ],
        )
        self.user_vectors = self.vectors("u", self.user_taste, range(USERS))
        self.item_vectors = self.vectors("i", self.item_taste, range(ITEMS))

    def write(self, name: str, rows: list[dict[str, Any]]) -> Path:
        path = self.folder / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    def vectors(self, side: str, tastes: Any, entities: Any, width: int = 8) -> Path:
        """One-hot tastes with noise, scaled and moved."""
        noise = np.random.default_rng(1).normal(0, 0.1, (len(tastes), width))
        values = (7 * (np.eye(width)[tastes] + noise) + 3).astype(np.float32)[list(entities)]
        path = self.folder / f"{side}-{len(values)}-{width}.parquet"
        ids = pa.array([f"{side}{e}" for e in entities], pa.string())
        schema = vectors_schema(width)
        pq.write_table(pa.table([ids, vector_column(values)], schema=schema), path)
        return path
