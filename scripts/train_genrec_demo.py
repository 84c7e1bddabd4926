"""Make all that `draftrec genrec demo` ships, from nothing but the fictional bookshop.

    python scripts/train_genrec_demo.py --output src/draftrec/demo/genrec_data

Semantic ids, a target that writes them, and a draft aligned with it by AtSpeed-S; about an hour on
one CPU thread. `--work DIR` keeps what is trained so far, and the same command goes on from there.
"""

from __future__ import annotations

import argparse
import json
import shutil
from itertools import islice, product
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from bookshop.series import Shop, make_shop, stream_readings
from make_shop import BOOKS, READERS, SEED
from transformers import LlamaConfig

from draftrec.config import RecommendConfig
from draftrec.data.sequences import write_semantic_ids
from draftrec.demo.shop import (
    histories,
    sequences,
    train_places,
)
from draftrec.evaluate.ranking import multi_target
from draftrec.items.quantise import residual_kmeans, semantic_ids
from draftrec.items.retriever import ItemRetriever, RetrieverSettings
from draftrec.items.semantic_ids import SemanticIds
from draftrec.items.settings import PromptFormat, QuantiseSettings
from draftrec.jobs.recommend.catalogue import Catalogue, Query
from draftrec.jobs.recommend.recommender import ItemRecommender, parts_of
from draftrec.models.recommender import load_recommender, save_recommender
from draftrec.train.align import AlignSpec, align
from draftrec.train.fit import FitSpec, fit
from draftrec.train.loop import Progress, TrainWatcher
from draftrec.train.presets import ModelSource
from draftrec.train.settings import ObjectiveSettings, TeachSettings, TrainSettings
from draftrec.train.teacher import TeachSpec, teach

LEVELS, CODES, FACTORS = 4, 32, 32
BEAMS = 10
PROMPT = PromptFormat(max_items=10)
FIT = TrainSettings(
    epochs=4, batch_tokens=1536, lr=3e-3, dropout=0.0, drop_items=0.0, device="cpu",
)  # fmt: skip
ALIGN = TrainSettings(
    epochs=12, batch_tokens=4096, lr=4e-3, weight_decay=0.01, dropout=0.0, patience=6, device="cpu",
)  # fmt: skip
OBJECTIVE = ObjectiveSettings("atspeed-s", top_k=BEAMS)
TEACH = TeachSettings(beams=BEAMS, per_user=1, ends=True)
#: Readers who validate and tune, who teach the draft, and whose last books are tested on.
VALID, TAUGHT, TESTED = 1000, 3000, 2000
#: Layers, width, heads and inner width of target and draft.
TARGET, DRAFT = (6, 96, 4, 256), (1, 64, 4, 128)


class Log(TrainWatcher):
    """A line per epoch."""

    def note(self, text: str) -> None:
        print(text, flush=True)

    def epoch(self, record: dict[str, float]) -> None:
        print({name: round(value, 4) for name, value in record.items()}, flush=True)

    def begin(self, progress: Progress, steps: int) -> None:
        print(f"{steps} steps, at epoch {progress.epoch}", flush=True)


def item_vectors(shop: Shop, train: list[np.ndarray]) -> np.ndarray:
    """float32 `[books, d]`: which books are read near which (singular vectors of their positive
    pointwise mutual information), and what a book is: category, theme, tone, pace, imprint."""
    near = np.zeros((len(shop.books), len(shop.books)))
    for places in train:
        for distance in (1, 2, 3):
            np.add.at(near, (places[:-distance], places[distance:]), 1.0 / distance)
    near += near.T
    margin = near.sum(axis=1) + 1.0
    with np.errstate(divide="ignore"):
        information = np.log(near * near.sum() / np.outer(margin, margin))
    left, values, _ = np.linalg.svd(np.maximum(information, 0.0), full_matrices=False)
    read = left[:, :FACTORS] * np.sqrt(values[:FACTORS])
    read /= np.linalg.norm(read, axis=1, keepdims=True) + 1e-9
    facets = [
        [book.item.category, book.item.theme, book.item.tone, book.item.pace, book.item.brand]
        for book in shop.books
    ]
    weights = (0.5, 0.35, 0.35, 0.2, 0.2)
    columns = []
    for weight, values_of in zip(weights, zip(*facets, strict=True), strict=True):
        kinds = {kind: i for i, kind in enumerate(sorted(set(values_of)))}
        columns.append(weight * np.eye(len(kinds))[[kinds[kind] for kind in values_of]])
    return np.concatenate([read, *columns], axis=1).astype(np.float32)


def tune(sids: SemanticIds, readings: list[Any]) -> tuple[RetrieverSettings, float]:
    """The settings of item-item co-occurrence with the best Recall@10 on the valid part."""
    asked = histories(readings[:VALID], "valid")
    train = train_places(readings)
    targets = [h.targets for h in asked]
    best = (-1.0, RetrieverSettings())
    grid = product((0.0, 0.1), (0.3, 0.5), (0.3, 0.5), (0.0, 0.25))
    for backward, decay, recency, power in grid:
        settings = RetrieverSettings(
            backward=backward, decay=decay, recency=recency, from_power=1 - power, to_power=power
        )
        items = ItemRetriever.fit(train, len(sids), settings)
        lists, _ = items.propose_many([h.items for h in asked], 10, exclude_seen=True)
        recall = multi_target(list(lists), targets, [10]).recall[10]
        best = max(best, (recall, settings), key=lambda one: one[0])
    return best[1], best[0]


def quality(folder: Path, sids: SemanticIds, readings: list[Any], items: ItemRetriever) -> Any:
    """Recall and NDCG at 10 of readers' last books: the target's best, and item-item's."""
    target = load_recommender(folder, "cpu", "float32")
    catalogue = Catalogue.of(sids, target)
    config = RecommendConfig(k=10, exclude_seen=True)
    recommender = ItemRecommender(parts_of(target, catalogue), catalogue, config)
    asked = histories(readings[:TESTED], "test")
    answers = recommender.recommend([Query(h.user, h.items) for h in asked])
    lists, _ = items.propose_many([h.items for h in asked], 10, exclude_seen=True)
    found = {"target": [a.items for a in answers], "item-item": list(lists)}
    scores = {n: multi_target(one, [h.targets for h in asked], [10]) for n, one in found.items()}
    return {
        name: {"recall@10": round(one.recall[10], 4), "ndcg@10": round(one.ndcg[10], 4)}
        for name, one in scores.items()
    }


def config_file(folder: Path, shape: tuple[int, int, int, int]) -> ModelSource:
    """A Llama's configuration, where `fit` and `align` find it."""
    layers, width, heads, inner = shape
    config = LlamaConfig(
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=64,
        tie_word_embeddings=True,
    )
    config.save_pretrained(folder)
    return ModelSource("config", str(folder / "config.json"))


def ship(source: Path, folder: Path) -> dict[str, Any]:
    """Write a trained model in bfloat16, without its training's files; its record."""
    found = load_recommender(source, "cpu", "float32")
    record = dict(found.info.training)
    kept = ("weights", "best_epoch", "lr", "batch_tokens", "dropout", "drop_items", "seed")
    info = found.info.model_copy(update={"training": {name: record[name] for name in kept}})
    if folder.exists():
        shutil.rmtree(folder)
    save_recommender(folder, found.model.to(torch.bfloat16), found.tokenizer, info)
    (folder / "model.safetensors").chmod(0o644)
    rows = [
        {k: round(v, 4) for k, v in epoch.items() if k != "seconds"} for epoch in record["epochs"]
    ]
    return {"parameters": record["weights"], "best_epoch": record["best_epoch"], "epochs": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("genrec-demo-work"))
    parser.add_argument("--readers", type=int, default=READERS, help="fewer for a trial run")
    parser.add_argument("--epochs", type=int, help="at most so many, for a trial run")
    options = parser.parse_args()
    torch.set_num_threads(1)
    work, output = options.work, options.output
    work.mkdir(parents=True, exist_ok=True)
    output.mkdir(parents=True, exist_ok=True)
    capped = {"epochs": options.epochs} if options.epochs else {}

    shop = make_shop(SEED, BOOKS)
    readings = [np.array(r.books) for r in islice(stream_readings(shop), options.readers)]
    rows = sequences(readings[:VALID]) + sequences(readings[VALID:], ("train",), VALID)
    (work / "sequences.jsonl").write_text(rows, encoding="utf-8")
    vectors = item_vectors(shop, train_places(readings))
    quantised = residual_kmeans(vectors, QuantiseSettings(LEVELS, CODES))
    sids = semantic_ids(np.arange(len(shop.books)), quantised.codes)
    write_semantic_ids(output / "sids.parquet", sids)
    retriever, item_recall = tune(sids, readings)
    items = ItemRetriever.fit(train_places(readings), len(sids), retriever)
    print(f"item-item, valid part: Recall@10 {item_recall:.4f} with {retriever}", flush=True)

    common = {"sequences": str(work / "sequences.jsonl"), "sids": str(output / "sids.parquet")}
    fit(
        FitSpec(
            **common,
            output=work / "target",
            source=config_file(work / "target-config", TARGET),
            settings=TrainSettings(**{**_fields(FIT), **capped}),
            form=PROMPT,
            recall_users=300,
        ),
        Log(),
    )
    # What is recorded and aligned with is the target that ships, rounding included.
    target = ship(work / "target", output / "target")
    taught = teach(
        TeachSpec(
            str(output / "target"), **common, output=work / "teacher", settings=TEACH, limit=TAUGHT
        )
    )
    print(taught, flush=True)
    align(
        AlignSpec(
            teacher=work / "teacher",
            target=str(output / "target"),
            output=work / "draft",
            source=config_file(work / "draft-config", DRAFT),
            objective=OBJECTIVE,
            settings=TrainSettings(**{**_fields(ALIGN), **capped}),
        ),
        Log(),
    )
    draft = ship(work / "draft", output / "draft")
    card = {
        "seed": SEED,
        "books": BOOKS,
        "readers": options.readers,
        "levels": LEVELS,
        "codes": CODES,
        "semantic_ids": sids.fingerprint(),
        "retriever": {
            name: getattr(retriever, name)
            for name in ("backward", "decay", "recency", "from_power", "to_power")
        },
        "retriever_valid_recall@10": round(item_recall, 4),
        "tested_readers": TESTED,
        "test": quality(output / "target", sids, readings, items),
        "target": target,
        "teacher_contexts": taught["contexts"],
        "objective": OBJECTIVE.objective,
        "draft": draft,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    (output / "card.json").write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")


def _fields(settings: TrainSettings) -> dict[str, Any]:
    return {name: getattr(settings, name) for name in TrainSettings.__dataclass_fields__}


if __name__ == "__main__":
    main()
