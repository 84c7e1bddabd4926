"""The embedded bookshop: its readers' records, its books, and the models that ship with draftrec.

Everything in it is invented. `scripts/make_shop.py` writes `assets/bookshop`; `train_demo_model.py`
and `train_genrec_demo.py` beside it train the models.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq

from draftrec.core import LongArray
from draftrec.data.sequences import PARTS, History, read_semantic_ids
from draftrec.errors import DraftrecError

if TYPE_CHECKING:
    from draftrec.items.retriever import ItemRetriever
    from draftrec.jobs.recommend.catalogue import Catalogue
    from draftrec.jobs.recommend.engines import Parts

Records = list[dict[str, Any]]

#: How many readers have read in order, as `readings` tells.
READERS = 12_000
_PACKAGE = Path(str(resources.files("draftrec")))


def demo_model_path() -> Path:
    """The folder of the small language model that writes about readers."""
    return _PACKAGE / "assets" / "demo-lm"


def shipped_path() -> Path:
    """The folder of semantic ids, target, draft and the record of their training."""
    return _PACKAGE / "demo" / "genrec_data"


def readers() -> Records:
    """2,000 readers of the shop, as `draftrec generate` reads them with one of its templates."""
    return [{k: v for k, v in row.items() if k != "held_out"} for row in _rows("readers")]


def split_readers(seed: int) -> tuple[Records, Records]:
    """The same, those that texts may be written of beforehand and those held out, in an order that
    `seed` draws; 0 leaves them in theirs."""
    rows = _rows("readers")
    if seed:
        random.Random(seed).shuffle(rows)
    parts: tuple[Records, Records] = ([], [])
    for row in rows:
        parts[row.pop("held_out")].append(row)
    return parts


def titles() -> list[str]:
    """The books of the shop with series, by the numbers that `readings` and semantic ids use."""
    return [row["title"] for row in _rows("books")]


def readings(count: int = READERS) -> list[LongArray]:
    """Numbers of the books that each of the first `count` readers read, in order, int64 `[h]`."""
    books = _table("readings")["books"].combine_chunks()[:count]
    flat = books.flatten().to_numpy().astype(np.int64)
    return np.split(flat, np.cumsum(books.value_lengths().to_numpy())[:-1])


def _rows(name: str) -> Records:
    return _table(name).to_pylist()


def _table(name: str) -> Any:
    path = _PACKAGE / "assets" / "bookshop" / f"{name}.parquet"
    if not path.is_file():
        raise DraftrecError(f"The demo's data are missing from {path}; install draftrec again.")
    return pq.read_table(path)


def histories(readings: Seq[LongArray], part: str) -> list[History]:
    """What is to be predicted: `test` is every reader's last book, `valid` the one before it."""
    left = {"test": 1, "valid": 2}[part]
    cuts = (len(books) - left for books in readings)
    return [
        History(user, books[:cut], books[cut : cut + 1])
        for user, (books, cut) in enumerate(zip(readings, cuts, strict=True))
    ]


def train_places(readings: Seq[LongArray]) -> list[LongArray]:
    """What is learnt from: every reader's books but the last two, int64 `[h]` each."""
    return [books[:-2] for books in readings]


def sequences(readings: Seq[LongArray], wanted: Seq[str] = PARTS, first: int = 0) -> str:
    """The same as JSONL rows of `user`, `items` and `part`, as `draftrec genrec` reads them; users
    are numbered from `first` on."""
    lines: list[str] = []
    for user, one in enumerate(readings, first):
        books = one.tolist()
        parts = {"train": books[:-2], "valid": books[-2:-1], "test": books[-1:]}
        for part in wanted:
            lines.append(json.dumps({"user": user, "items": parts[part], "part": part}) + "\n")
    return "".join(lines)


@dataclass(frozen=True, eq=False)
class Shipped:
    """The shop with what recommends its books. `titles` by book, `readings` int64 `[h]` by reader.
    `parts` holds target, draft and `items`, tuned item-item co-occurrence, which proposes items and
    is a baseline; `card` records the training."""

    titles: list[str]
    readings: list[LongArray]
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
    from draftrec.jobs.recommend.loading import parts_of
    from draftrec.models.recommender import load_recommender

    if not (folder / "card.json").is_file():
        raise DraftrecError(f"The demo's models are missing from {folder}; install draftrec again.")
    card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    sids, books, read = read_semantic_ids(folder / "sids.parquet"), titles(), readings(readers)
    if len(sids) != len(books):
        raise DraftrecError(
            f"{folder} has semantic ids of {len(sids)} books where the shop has "
            f"{len(books)}; install draftrec again."
        )
    target, draft = (load_recommender(folder / name, "cpu", "float32") for name in _MODELS)
    settings = RetrieverSettings(**card["retriever"])
    items = ItemRetriever.fit(train_places(read), len(sids), settings)
    catalogue = Catalogue.of(sids, target)
    # Whatever the machine: a near-tie must not show as a list that drafts have changed.
    parts = parts_of(target, catalogue, draft, items, exact=True)
    return Shipped(books, read, catalogue, parts, items, card)


_MODELS = ("target", "draft")
