"""The catalogues that recommendations are measured on, and what is known of their users.

A catalogue is sequences and semantic ids. Amazon Beauty's lie beside the repository as they were
published. Of MovieLens-100K they are made of the ratings, by commands that `benchmarks/README.md`
has, and named by `--sequences` and `--sids`.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from beauty_table import SEQUENCES, SIDS

from draftrec.data.sequences import read_histories, read_semantic_ids, read_sequences
from draftrec.items.ids import Ids
from draftrec.items.semantic_ids import SemanticIds

Arrays = list[np.ndarray]

#: What results are called by, and what they are of.
CATALOGUES = {"beauty": "Amazon Beauty", "ml100k": "MovieLens-100K"}


@dataclass(frozen=True, eq=False)
class Task:
    """Whose next items are wanted, as places in the catalogue; -1, -2, ... are targets that have
    no semantic id, which nobody finds."""

    histories: Arrays
    targets: Arrays


@dataclass(frozen=True, eq=False)
class Known:
    """Sequences to fit to and users to recommend for."""

    items: int
    train: Arrays
    train_and_valid: Arrays
    valid: Task
    test: Task

    @classmethod
    def read(cls, sequences: Path, sids: Path) -> Known:
        """All items as places in the catalogue; of histories, those that have one."""
        catalogue = read_semantic_ids(sids)
        train, valid = (
            {s.user: _known(catalogue, s.items) for s in read_sequences(sequences, part, None)}
            for part in ("train", "valid")
        )
        tasks: list[Task] = []
        for part in ("valid", "test"):
            found = read_histories(sequences, part, None)
            histories = [_known(catalogue, history.items) for history in found]
            tasks.append(Task(histories, [_wanted(catalogue, h.targets) for h in found]))
        none = np.empty(0, np.int64)
        both = [
            np.concatenate((train.get(user, none), valid.get(user, none)))
            for user in dict.fromkeys([*train, *valid])
        ]
        return cls(len(catalogue), list(train.values()), both, *tasks)


def _known(catalogue: SemanticIds, items: Ids) -> np.ndarray:
    places = catalogue.find(items)
    return places[places >= 0]


def _wanted(catalogue: SemanticIds, items: Ids) -> np.ndarray:
    places = catalogue.find(items)
    return np.where(places >= 0, places, -1 - np.arange(len(places)))


def add_catalogue(parser: argparse.ArgumentParser) -> None:
    """Options that say what is measured on, and by what name."""
    parser.add_argument("--sequences", type=Path, default=SEQUENCES)
    parser.add_argument("--sids", type=Path, default=SIDS)
    parser.add_argument("--catalogue", choices=CATALOGUES, default="beauty", help="what they are")


def told_of(args: argparse.Namespace) -> dict[str, Any]:
    """What a result says of it."""
    return {"catalogue": CATALOGUES[args.catalogue]}
