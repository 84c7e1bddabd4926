"""Drafts are the same whatever becomes faster: trees of random pools, against a file of them.

`python -m tests.pool.test_drafts` writes the file anew: only when drafts are meant to change.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from draftrec.core import IntArray
from draftrec.pool.index import NgramIndex, TreeBuilder, tail_of_text
from draftrec.pool.ngrams import ORDER
from draftrec.pool.suffixes import ClosedIndex

_FILE = Path(__file__).with_name("drafts.json")
_CASES = range(24)
# Sources of a tree: own text, group, all, fresh texts.
_MIXES = {"merged": (0, 1, 2, 3), "group": (1,), "fresh": (3,), "own and all": (0, 2)}


def texts_of(random: np.random.Generator, words: int, count: int, length: int) -> list[IntArray]:
    """Texts of pieces of a few phrases, with a free word here and there."""
    phrases = [random.integers(0, words, random.integers(3, 30)) for _ in range(12)]
    texts: list[IntArray] = []
    for _ in range(count):
        parts: list[Any] = []
        while sum(map(len, parts)) < length:
            phrase = phrases[random.integers(len(phrases))]
            start = random.integers(len(phrase))
            parts += [phrase[start : start + random.integers(1, 14)], random.integers(0, words, 1)]
        texts.append(np.concatenate(parts)[:length].astype(np.int32))
    return texts


def trees_of(case: int) -> dict[str, list[list[float]]]:
    """Trees of one random pool, by name: tokens, parents, sources, probabilities."""
    random = np.random.default_rng(case)
    made = texts_of(random, [3, 12, 60, 900][case % 4], 60, int(random.integers(20, 110)))
    fresh, own = NgramIndex(), NgramIndex()
    for text in made[40:55]:
        fresh.add_text(text)
    group, everything = ClosedIndex.build(made[:12]), ClosedIndex.build(made[:40])
    written = made[58][: int(random.integers(0, 20))]
    own.extend(np.concatenate((made[57], written)))
    sources: list[Any] = [
        (own, np.concatenate((made[57], written))[-ORDER:], 24.0, 0),
        (group, tail_of_text(written), 1.0, 2),
        (everything, tail_of_text(written), 1.0, 3),
        (fresh, tail_of_text(written), 1.0, 3),
    ]
    found: dict[str, list[list[float]]] = {}
    for name, mix in _MIXES.items():
        for limit, depth in ((24, 16), (7, 4)):
            tree = TreeBuilder().build([sources[i] for i in mix], limit, depth)
            probs = [float(f"{p:.5g}") for p in tree.probs.tolist()]
            lists = tree.token_ids.tolist(), tree.parents.tolist(), tree.sources.tolist(), probs
            found[f"{name} {limit}"] = list(lists)
    return found


@pytest.mark.parametrize("case", _CASES)
def test_drafts_stay_what_they_were(case: int) -> None:
    expected = json.loads(_FILE.read_text())[str(case)]
    found = trees_of(case)
    assert set(found) == set(expected)
    for name, (*lists, probs) in expected.items():
        assert found[name][:3] == lists, name
        assert found[name][3] == pytest.approx(probs, rel=1e-4)


if __name__ == "__main__":
    rows = (f'"{case}": {json.dumps(trees_of(case))}' for case in _CASES)
    _FILE.write_text("{\n" + ",\n".join(rows) + "\n}\n")
