"""Sequences as places in the catalogue: what is learnt from, and what is validated on."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from draftrec.core import LongArray
from draftrec.data.sequences import USUAL, SequenceColumns, read_sequences
from draftrec.errors import DraftrecError
from draftrec.items.ids import Id, Ids, plain
from draftrec.items.semantic_ids import SemanticIds


@dataclass(frozen=True, eq=False, slots=True)
class TrainingData:
    """`train`: a user's items each, int64 `[h]` places. `valid_histories` and `valid_targets`: what
    was known of a user, and what came next; both empty without a part valid."""

    train: list[LongArray]
    valid_histories: list[LongArray]
    valid_targets: list[LongArray]

    def fingerprint(self) -> str:
        """sha256 over everything, in order."""
        digest = hashlib.sha256()
        for part in (self.train, self.valid_histories, self.valid_targets):
            for places in part:
                digest.update(np.int64(len(places)).tobytes() + places.astype("<i8").tobytes())
            digest.update(b"|")
        return digest.hexdigest()


def read_training_data(
    location: str,
    sids: SemanticIds,
    limit: int | None,
    *,
    with_valid: bool,
    columns: SequenceColumns = USUAL,
) -> TrainingData:
    """The parts train and valid of a file, of the first `limit` users with train items.

    With `with_valid`, valid items are learnt from and nothing is validated on. Raises DraftrecError
    for an item without a semantic id, naming the user, and for no part train.
    """
    train: dict[Id, LongArray] = {}
    valid: dict[Id, LongArray] = {}
    for row in read_sequences(location, None, None, columns):
        part = {"train": train, "valid": valid}.get(row.part)
        if part is not None and len(row.items):
            part[plain(row.user)] = _places(row.user, row.items, sids)
    if not train:
        raise DraftrecError(
            f"{location} holds no items of part 'train', so there is nothing to train on; give "
            "sequences whose part is train"
        )
    users = list(train)[:limit]
    known = {user: valid[user] for user in users if user in valid}
    if not limit:
        known = valid
    empty = np.empty(0, np.int64)
    if with_valid:
        everyone = list(dict.fromkeys([*users, *known]))
        whole = [np.concatenate([train.get(u, empty), known.get(u, empty)]) for u in everyone]
        return TrainingData(whole, [], [])
    return TrainingData(
        [train[user] for user in users],
        [train.get(user, empty) for user in known],
        list(known.values()),
    )


def _places(user: Id, items: Ids, sids: SemanticIds) -> LongArray:
    places = sids.find(items)
    unknown = np.flatnonzero(places < 0)
    if len(unknown):
        raise DraftrecError(
            f"item {items[unknown[0]]} of user {user} has no semantic id; add it to the semantic "
            "ids, or leave it out of the sequences"
        )
    return places
