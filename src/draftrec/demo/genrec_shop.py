"""The embedded shop: its books, its readers' histories, and the models that ship with draftrec."""

from __future__ import annotations

import json
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from importlib import resources
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from draftrec.data.sequences import PARTS, History, read_semantic_ids
from draftrec.data.world_series import Reading, Shop, make_shop, stream_readings
from draftrec.errors import DraftrecError

if TYPE_CHECKING:
    from draftrec.items.retriever import ItemRetriever
    from draftrec.jobs.recommend.catalogue import Catalogue
    from draftrec.jobs.recommend.engines import Parts

#: What the shipped models were trained on; other values would name books that they do not know.
SEED, BOOKS, READERS = 0, 600, 12000


def shipped_path() -> Path:
    """The folder of semantic ids, target, draft and the record of their training."""
    return Path(str(resources.files("draftrec") / "demo" / "genrec_data"))


def make_readings(readers: int = READERS) -> tuple[Shop, list[Reading]]:
    """The shop and its first readers: the same for everyone, in a second or two."""
    shop = make_shop(SEED, BOOKS)
    return shop, list(islice(stream_readings(shop), readers))


def histories(readings: Seq[Reading], part: str) -> list[History]:
    """What is to be predicted: `test` is every reader's last book, `valid` the one before it."""
    left = {"test": 1, "valid": 2}[part]
    found: list[History] = []
    for one in readings:
        books = np.array(one.books, np.int64)
        cut = len(books) - left
        found.append(History(one.user, books[:cut], books[cut : cut + 1]))
    return found


def train_places(readings: Seq[Reading]) -> list[np.ndarray]:
    """What is learnt from: every reader's books but the last two, int64 `[h]` each."""
    return [np.array(one.books[:-2], np.int64) for one in readings]


def sequences(readings: Seq[Reading], wanted: Seq[str] = PARTS) -> str:
    """The same as JSONL rows of `user`, `items` and `part`, as `draftrec genrec` reads them."""
    lines: list[str] = []
    for one in readings:
        books = list(one.books)
        parts = {"train": books[:-2], "valid": books[-2:-1], "test": books[-1:]}
        for part in wanted:
            row = {"user": one.user, "items": parts[part], "part": part}
            lines.append(json.dumps(row) + "\n")
    return "".join(lines)


@dataclass(frozen=True, eq=False)
class Shipped:
    """The shop with what recommends its books. `parts` holds target, draft and `items`, tuned
    item-item co-occurrence, which proposes items and is a baseline; `card` records the training."""

    shop: Shop
    readings: list[Reading]
    catalogue: Catalogue
    parts: Parts
    items: ItemRetriever
    card: dict[str, Any]

    def parameters(self, name: str) -> int:
        """Weights of `target` or `draft`."""
        return int(self.card[name]["parameters"])


def load_shipped(folder: Path, readers: int = READERS) -> Shipped:
    """Everything of the embedded shop, models in float32 on the CPU.

    Raises DraftrecError for a folder that is not complete.
    """
    from draftrec.items.retriever import ItemRetriever, RetrieverSettings
    from draftrec.jobs.recommend.catalogue import Catalogue
    from draftrec.jobs.recommend.recommender import parts_of
    from draftrec.models.recommender import load_recommender

    if not (folder / "card.json").is_file():
        raise DraftrecError(f"The demo's models are missing from {folder}; install draftrec again.")
    card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    sids = read_semantic_ids(folder / "sids.parquet")
    shop, readings = make_readings(readers)
    if len(sids) != len(shop.books):
        raise DraftrecError(
            f"{folder} has semantic ids of {len(sids)} books where the shop has "
            f"{len(shop.books)}; install draftrec again."
        )
    target, draft = (load_recommender(folder / name, "cpu", "float32") for name in _MODELS)
    settings = RetrieverSettings(**card["retriever"])
    items = ItemRetriever.fit(train_places(readings), len(sids), settings)
    catalogue = Catalogue.of(sids, target)
    return Shipped(
        shop, readings, catalogue, parts_of(target, catalogue, draft, items), items, card
    )


_MODELS = ("target", "draft")
