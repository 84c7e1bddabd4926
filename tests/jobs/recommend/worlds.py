"""A small catalogue, users, and random models in folders on disk."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import transformers as tf

from draftrec.data.sequences import read_semantic_ids, write_semantic_ids
from draftrec.items.semantic_ids import SemanticIds, whole_items
from draftrec.models.recommender import RecommenderInfo, new_tokenizer, save_recommender

LEVELS = 3


@dataclass(frozen=True)
class World:
    """Where everything lies."""

    sequences: Path
    sids: Path
    target: Path
    draft: Path


def catalogue(items: int = 60, seed: int = 0) -> SemanticIds:
    """Items 10, 11, ... with random ids of three tokens; some share one."""
    random = np.random.default_rng(seed)
    codes = random.integers(0, 5, (items, LEVELS))
    names = [[f"<{'abc'[level]}_{c}>" for level, c in enumerate(row)] for row in codes.tolist()]
    return SemanticIds.of(np.arange(10, 10 + items), names)


def save_model(folder: Path, sids: SemanticIds, seed: int, layers: int, kind: str) -> None:
    """A random Llama over the catalogue's tokens."""
    tokenizer = new_tokenizer(sids.tokens)
    torch.manual_seed(seed)
    config = tf.LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=24, num_hidden_layers=layers,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=64,
        initializer_range=0.4, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    model = tf.AutoModelForCausalLM.from_config(config)
    info = RecommenderInfo.model_validate(
        {"kind": kind, "levels": sids.levels, "sids": sids.fingerprint()}
    )
    save_recommender(folder, model, tokenizer, info, sids)


def reassigned(sids: SemanticIds) -> SemanticIds:
    """The same items and tokens, the tokens of each being another item's."""
    return replace(sids, codes=np.roll(sids.codes, 1, axis=0))


def make_world(folder: Path, users: int = 12) -> World:
    """Files and folders; user 0 has no history, user 1 one longer than a prompt holds."""
    sids = catalogue()
    random = np.random.default_rng(1)
    rows = []
    for user in range(users):
        length = {0: 0, 1: 30}.get(user, int(random.integers(1, 8)))
        items = random.integers(10, 70, length + 2).tolist()
        if length:
            rows.append({"user": user, "items": items[:length], "part": "train"})
        rows.append({"user": user, "items": items[length:], "part": "test"})
    world = World(
        folder / "sequences.parquet", folder / "sids.parquet", folder / "target", folder / "draft"
    )
    pq.write_table(pa.Table.from_pylist(rows), world.sequences)
    write_semantic_ids(world.sids, sids)
    save_model(world.target, sids, 0, 2, "target")
    save_model(world.draft, sids, 3, 1, "draft")
    return world


def write_habits(world: World, users: int = 30) -> None:
    """Sequences in which everybody takes the items one after the other, from anywhere on."""
    rows = []
    for user in range(users):
        start = 10 + int(np.random.default_rng(user).integers(0, 50))
        items = {"train": range(start, start + 6), "valid": [start + 6], "test": [start + 7]}
        rows += [{"user": user, "items": list(i), "part": p} for p, i in items.items()]
    pq.write_table(pa.Table.from_pylist(rows), world.sequences)


def save_item_model(world: World, folder: Path, *, without: int = 0) -> Path:
    """A random item model of all items but the last ones."""
    sids = read_semantic_ids(world.sids)
    kept = len(sids) - without
    some = SemanticIds.from_codes(sids.items[:kept], sids.codes[:kept], sids.tokens)
    save_model(folder, whole_items(some), 5, 1, "items")
    return folder


def named(item: int) -> str:
    """An ASIN for a number; numbers of two digits and their ASINs are in one order."""
    return f"B{item:05d}"


def with_texts(world: World) -> World:
    """The same world with texts for ids, in the same folder, and the same models."""
    folder = world.sids.parent
    texts = replace(world, sequences=folder / "texts.parquet", sids=folder / "text-sids.parquet")
    rows = [
        {**row, "user": f"u-{row['user']}", "items": list(map(named, row["items"]))}
        for row in pq.read_table(world.sequences).to_pylist()
    ]
    pq.write_table(pa.Table.from_pylist(rows), texts.sequences)
    sids = read_semantic_ids(world.sids)
    names = list(map(named, sids.items.tolist()))
    write_semantic_ids(texts.sids, SemanticIds.of(names, sids.sids_of(sids.items)))
    return texts
