"""AtSpeed's Amazon Beauty in figures, computed with draftrec's own readers and item trie.

Whoever compares recommenders on "Beauty" should know that it is the same Beauty: every figure is
set beside the one that the files of AtSpeed's public repository give. The last line is the result.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from collections.abc import Sequence as Seq
from pathlib import Path
from typing import Any

import numpy as np
from common import SHARED, note, write_result

from draftrec.data.sequences import PARTS, read_histories, read_semantic_ids, read_sequences
from draftrec.items.semantic_ids import SemanticIds
from draftrec.items.trie import ItemTrie

SEQUENCES = SHARED / "data" / "interactions" / "atspeed_beauty_sequences.parquet"
SIDS = SHARED / "data" / "items" / "atspeed_beauty_semantic_ids.parquet"
#: Most recent items that a prompt holds.
MAX_ITEMS = 20

#: Figure -> its value in the repository's data, and the digits after the point it is known to.
REFERENCE: dict[str, tuple[float, int]] = {
    "users": (19_383, 0),
    "items": (12_035, 0),
    "interactions": (138_870, 0),
    "density": (5.95e-4, 6),
    "train interactions": (122_241, 0),
    "valid interactions": (9_316, 0),
    "test interactions": (7_313, 0),
    "train share, %": (88.0, 1),
    "valid share, %": (6.7, 1),
    "test share, %": (5.3, 1),
    "users with valid items": (4_295, 0),
    "users with test items": (3_553, 0),
    "train examples": (19_383, 0),
    "train examples with sub-sequences": (102_858, 0),
    "test targets per user": (2.06, 2),
    "mean history": (7.3, 1),
    "items absent from train": (318, 0),
    "distinct codes, level 1": (91, 0),
    "distinct codes, level 2": (256, 0),
    "distinct codes, level 3": (256, 0),
    "distinct codes, level 4": (256, 0),
    "new tokens": (859, 0),
    "unique tuples": (12_023, 0),
    "colliding items": (21, 0),
    "most items of one tuple": (4, 0),
    "trie edges": (29_825, 0),
    "mean branching, level 1": (91, 0),
    "mean branching, level 2": (71.9, 1),
    "mean branching, level 3": (1.71, 2),
    "mean branching, level 4": (1.08, 2),
    "items whose last token is forced, %": (87.7, 1),
}


def figures(sequences: Path, sids: Path) -> dict[str, float]:
    """Every figure of the table, unrounded."""
    catalogue = read_semantic_ids(sids)
    return {**_interactions(sequences, catalogue), **_ids(catalogue)}


def compare(ours: Mapping[str, float]) -> dict[str, Any]:
    """Both values of every figure, and whether ours rounds to the reference."""
    table = {
        name: {
            "reference": value,
            "ours": ours[name],
            "agrees": bool(np.isclose(round(ours[name], digits), value, rtol=1e-9)),
        }
        for name, (value, digits) in REFERENCE.items()
    }
    agree = sum(row["agrees"] for row in table.values())
    return {"compared": len(table), "agree": agree, "figures": table}


def _interactions(sequences: Path, catalogue: SemanticIds) -> dict[str, float]:
    parts: dict[str, list[np.ndarray]] = {part: [] for part in PARTS}
    users: set[int] = set()
    for sequence in read_sequences(sequences, None, None):
        users.add(sequence.user)
        if len(sequence.items):
            parts[sequence.part].append(sequence.items)
    taken = {part: sum(map(len, rows)) for part, rows in parts.items()}
    total, items = sum(taken.values()), len(catalogue)
    catalogue.places(np.concatenate([row for rows in parts.values() for row in rows]))
    histories = read_histories(sequences, "test", MAX_ITEMS)
    # An example predicts an item from those before it: the last one, or with sub-sequences each.
    examples = [len(row) - 1 for row in parts["train"] if len(row) > 1]
    return {
        "users": len(users),
        "items": items,
        "interactions": total,
        "density": total / (len(users) * items),
        **{f"{part} interactions": count for part, count in taken.items()},
        **{f"{part} share, %": 100 * count / total for part, count in taken.items()},
        "users with valid items": len(parts["valid"]),
        "users with test items": len(parts["test"]),
        "train examples": len(examples),
        "train examples with sub-sequences": sum(examples),
        "test targets per user": taken["test"] / len(parts["test"]),
        "mean history": float(np.mean([len(history.items) for history in histories])),
        "items absent from train": items - len(np.unique(np.concatenate(parts["train"]))),
    }


def _ids(catalogue: SemanticIds) -> dict[str, float]:
    # The positions of the tokens stand for a model's token ids; the tree is the same.
    trie = ItemTrie.build(catalogue.items, catalogue.codes)
    starts = trie.level_start
    nodes = np.diff(starts)
    sharing = np.diff(trie.item_start)
    last = np.arange(starts[-3], starts[-2])  # the nodes before the last token
    forced = np.diff(trie.first)[last] == 1
    items_below = np.diff(trie.item_start[trie.first[starts[-3] : starts[-2] + 1] - starts[-2]])
    levels = range(1, trie.levels + 1)
    return {
        **{f"distinct codes, level {n}": len(np.unique(catalogue.codes[:, n - 1])) for n in levels},
        "new tokens": len(catalogue.tokens),
        "unique tuples": trie.leaves,
        "colliding items": int(sharing[sharing > 1].sum()),
        "most items of one tuple": int(sharing.max()),
        "trie edges": trie.nodes - 1,
        **{f"mean branching, level {n}": float(nodes[n] / nodes[n - 1]) for n in levels},
        "items whose last token is forced, %": float(
            100 * items_below[forced].sum() / len(catalogue)
        ),
    }


def main(argv: Seq[str] | None = None) -> None:
    """Compute, compare, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sequences", type=Path, default=SEQUENCES)
    parser.add_argument("--sids", type=Path, default=SIDS)
    parser.add_argument("--results", type=Path, default=None, help="folder of the result")
    args = parser.parse_args(argv)
    found = compare(figures(args.sequences, args.sids))
    for name, row in found["figures"].items():
        mark = "" if row["agrees"] else "  DIFFERS"
        note(f"{name:>38}  {row['reference']:>12,}  {row['ours']:>14,.6g}{mark}")
    settings = {"max_items": MAX_ITEMS, "sequences": args.sequences.name, "sids": args.sids.name}
    write_result("beauty-table", {"settings": settings, **found}, folder=args.results)


if __name__ == "__main__":
    main()
