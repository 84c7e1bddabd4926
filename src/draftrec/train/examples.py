"""Sequences as places in the catalogue, and what is learnt from them: windows of users' histories,
cut and thinned anew in every epoch.

Everything about an epoch follows from the seed and its number, so a training that was interrupted
goes on with the batches that it would have seen.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from draftrec.core import BoolArray, IntArray, LongArray
from draftrec.data.sequences import USUAL, LeftOut, SequenceColumns, read_sequences, two_rows
from draftrec.errors import DraftrecError
from draftrec.items.ids import Id, plain
from draftrec.items.prompts import HistoryEncoder
from draftrec.items.semantic_ids import SemanticIds


@dataclass(frozen=True, eq=False, slots=True)
class TrainingData:
    """`train`: a user's items each, int64 `[h]` places. `valid_histories` and `valid_targets`: what
    was known of a user, and what came next; both empty without a part valid. `unknown`: items left
    out, since they have no semantic id."""

    train: list[LongArray]
    valid_histories: list[LongArray]
    valid_targets: list[LongArray]
    unknown: int = 0

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

    With `with_valid`, valid items are learnt from and nothing is validated on. Items without a
    semantic id are left out and warned of. Raises DraftrecError where none has one, for two rows of
    one part, naming the user, and for no part train.
    """
    train: dict[Id, LongArray] = {}
    valid: dict[Id, LongArray] = {}
    left_out = LeftOut()
    for row in read_sequences(location, None, None, columns):
        part = {"train": train, "valid": valid}.get(row.part)
        if part is not None and len(row.items):
            user = plain(row.user)
            if user in part:
                raise two_rows(location, row)
            places = sids.find(row.items)
            part[user] = places[left_out.known(user, row.items, places)]
    left_out.tell()
    train, valid = ({u: p for u, p in part.items() if len(p)} for part in (train, valid))
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
        return TrainingData(whole, [], [], left_out.items)
    return TrainingData(
        [train[user] for user in users],
        [train.get(user, empty) for user in known],
        list(known.values()),
        left_out.items,
    )


Batch = dict[str, torch.Tensor]
#: The label of tokens that are no answers.
IGNORED = -100


@dataclass(frozen=True, eq=False)
class Examples:
    """`users` are histories as places, int64 `[h]` each. A history longer than a prompt and its
    answer is cut into overlapping windows that lie elsewhere in every epoch.

    Raises DraftrecError if there is nothing to learn from.
    """

    encoder: HistoryEncoder
    users: Seq[LongArray]
    batch_tokens: int
    drop_items: float
    jitter: float
    seed: int

    def __post_init__(self) -> None:
        if not self.taught:
            raise DraftrecError(
                "the part train holds no history that is long enough to learn from; give sequences "
                "whose part is train"
            )

    @property
    def window(self) -> int:
        """Most items of one sequence: those of a prompt and the answer."""
        return self.encoder.form.max_items + 1

    @cached_property
    def taught(self) -> list[LongArray]:
        """The histories with at least one answer in them."""
        least = 1 if self.encoder.example(np.zeros(1, np.int64))[1].any() else 2
        return [user for user in self.users if len(user) >= least]

    def steps(self) -> int:
        """Batches of an epoch, the same for all epochs."""
        return len(cuts(self._tokens(np.sort(self._lengths())), self.batch_tokens))

    def batches(self, epoch: int) -> Iterator[Batch]:
        """`input_ids` and `labels`, int64 `[B, T]` each, padded on the right, where a causal model
        does not see it."""
        rng = np.random.default_rng([self.seed, epoch])
        windows = self._windows(rng)
        lengths = self._lengths()
        # Equal lengths together, in random order: little padding, and the same cuts every time.
        order = np.lexsort((rng.random(len(lengths)), lengths))
        found = cuts(self._tokens(lengths[order]), self.batch_tokens)
        for batch in rng.permutation(len(found)).tolist():
            first, last = found[batch]
            chosen = [self._varied(windows[i], rng) for i in order[first:last].tolist()]
            yield padded([self.encoder.example(places) for places in chosen])

    def _windows(self, rng: np.random.Generator) -> list[tuple[int, int, int]]:
        """(user, first, last) of every window."""
        size = self.window
        found: list[tuple[int, int, int]] = []
        for user, items in enumerate(self.taught):
            spare = len(items) - size
            if spare <= 0:
                found.append((user, 0, len(items)))
                continue
            count = -(-len(items) // size)
            even = np.linspace(0, spare, count)
            shift = rng.uniform(-0.5, 0.5, count) * spare / (count - 1)
            for first in np.clip(np.rint(even + shift), 0, spare).astype(int).tolist():
                found.append((user, first, first + size))
        return found

    def _lengths(self) -> LongArray:
        """Items of every window, in the order of `_windows`."""
        size = self.window
        whole = np.array([len(user) for user in self.taught])
        return np.repeat(np.minimum(whole, size), -(-whole // size))

    def _tokens(self, lengths: LongArray) -> LongArray:
        """int64: tokens of sequences of so many items."""
        one, two = (len(self.encoder.example(np.zeros(n, np.int64))[0]) for n in (1, 2))
        return 2 * one - two + lengths * (two - one)

    def _varied(self, window: tuple[int, int, int], rng: np.random.Generator) -> LongArray:
        user, first, last = window
        places = self.taught[user][first:last]
        if self.jitter:
            moved = np.arange(len(places)) + rng.normal(0, self.jitter, len(places))
            places = places[np.argsort(moved)]
        if self.drop_items and len(places) > 2:
            kept = places[rng.random(len(places)) >= self.drop_items]
            places = kept if len(kept) > 1 else places
        return places


def cuts(rows: IntArray | LongArray, most: int) -> list[tuple[int, int]]:
    """Ranges of examples that make a batch each, of at most `most` rows, padding included, or of a
    single one. `rows`: those of each example, ascending."""
    found: list[tuple[int, int]] = []
    first = 0
    for i, here in enumerate(rows.tolist()):
        if i > first and (i + 1 - first) * here > most:
            found.append((first, i))
            first = i
    return [*found, (first, len(rows))] if len(rows) else []


def padded(examples: Seq[tuple[IntArray, BoolArray]]) -> Batch:
    """One batch of (token ids, which are answers)."""
    longest = max(len(ids) for ids, _ in examples)
    input_ids = np.zeros((len(examples), longest), np.int64)
    labels = np.full((len(examples), longest), IGNORED, np.int64)
    for row, (ids, answers) in enumerate(examples):
        input_ids[row, : len(ids)] = ids
        labels[row, : len(ids)][answers] = ids[answers]
    return {"input_ids": torch.from_numpy(input_ids), "labels": torch.from_numpy(labels)}
