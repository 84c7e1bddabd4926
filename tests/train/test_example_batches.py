"""Training sequences: every item is taught, every epoch is cut anew, padding teaches nothing."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from draftrec.errors import DraftrecError
from draftrec.items.prompts import HistoryEncoder
from draftrec.items.settings import PromptFormat
from draftrec.models.recommender import new_tokenizer
from draftrec.train.examples import IGNORED, Examples, padded
from tests.train.small import ITEMS, catalogue


def encoder(form: PromptFormat) -> HistoryEncoder:
    tokenizer = new_tokenizer(catalogue().tokens)
    return HistoryEncoder(form, tokenizer, catalogue().token_ids(tokenizer.get_vocab()))


def examples(form: PromptFormat, users: list[np.ndarray], **changes: float) -> Examples:
    values = {"batch_tokens": 120, "drop_items": 0.0, "jitter": 0.0, "seed": 3} | changes
    return Examples(encoder(form), users, **values)  # type: ignore[arg-type]


def drawn(count: int = 30, longest: int = 25) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    return [rng.integers(0, ITEMS, rng.integers(1, longest)) for _ in range(count)]


def test_every_item_of_short_histories_is_an_answer_once():
    users = drawn(longest=7)
    taught = examples(PromptFormat(max_items=6), users)
    for epoch in range(2):
        answers = Counter()
        for batch in taught.batches(epoch):
            assert batch["input_ids"].numel() <= 120
            labels = batch["labels"]
            assert (labels == batch["input_ids"])[labels != IGNORED].all()
            answers.update(labels[labels != IGNORED].tolist())
        tokens = encoder(PromptFormat()).item_tokens
        assert answers == Counter(np.concatenate([tokens[u] for u in users]).ravel().tolist())


def test_long_histories_are_cut_elsewhere_in_every_epoch():
    taught = examples(PromptFormat(max_items=4), [np.arange(ITEMS - 1)])
    tokens = encoder(PromptFormat()).item_tokens

    def firsts(epoch: int) -> list[int]:
        rows = [row for batch in taught.batches(epoch) for row in batch["input_ids"].numpy()]
        assert all(len(row) == 1 + 5 * 3 for row in rows)
        return sorted(int(np.flatnonzero((tokens == row[1:4]).all(axis=1))[0]) for row in rows)

    starts = [firsts(epoch) for epoch in range(20)]
    assert {len(s) for s in starts} == {5}
    assert len({tuple(s) for s in starts}) > 10
    covered = {first + i for s in starts for first in s for i in range(5)}
    assert covered == set(range(ITEMS - 1))


def test_an_epoch_is_the_same_every_time_and_has_as_many_steps_as_promised():
    taught = examples(PromptFormat(max_items=8), drawn(), drop_items=0.3)

    def seen(epoch: int) -> list[list[int]]:
        return [batch["input_ids"].flatten().tolist() for batch in taught.batches(epoch)]

    assert seen(4) == seen(4)
    assert seen(4) != seen(5)
    assert {len(seen(epoch)) for epoch in range(5)} == {taught.steps()}


def test_dropped_items_shorten_sequences_but_never_to_nothing():
    users = [np.arange(6)] * 40

    def answers(share: float) -> list[int]:
        batches = examples(PromptFormat(), users, drop_items=share).batches(0)
        return [int((r != IGNORED).sum()) // 3 for batch in batches for r in batch["labels"]]

    assert set(answers(0.0)) == {6}
    assert 2.5 < np.mean(answers(0.5)) < 4.0
    assert min(answers(0.9)) >= 2


def test_jitter_moves_items_about_so_far():
    users = [np.arange(12)] * 50

    def distances(jitter: float) -> np.ndarray:
        tokens = encoder(PromptFormat()).item_tokens
        found = []
        for batch in examples(PromptFormat(), users, jitter=jitter).batches(0):
            for row in batch["input_ids"].numpy():
                items = [
                    int(np.flatnonzero((tokens == t).all(1))[0]) for t in row[1:].reshape(-1, 3)
                ]
                assert sorted(items) == list(range(12))
                found.append(np.abs(np.array(items) - np.arange(12)))
        return np.concatenate(found)

    assert not distances(0.0).any()
    assert 0.4 < distances(1.0).mean() < 1.0
    assert 1.5 < distances(3.0).mean() < 3.0


def test_histories_without_an_answer_are_left_out():
    form = PromptFormat("<a_0>", "<b_0>", "<b_0>")
    taught = examples(form, [np.array([1]), np.array([], np.int64), np.array([1, 2, 3])])
    (batch,) = taught.batches(0)
    assert int((batch["labels"] != IGNORED).sum()) == 2 * 3
    with pytest.raises(DraftrecError, match="long enough to learn from"):
        examples(form, [np.array([1])])


def test_padding_is_no_label():
    ids = np.array([1, 5, 6], np.int32)
    batch = padded([(ids, np.array([False, True, True])), (ids[:2], np.array([False, True]))])
    assert batch["labels"].tolist() == [[IGNORED, 5, 6], [IGNORED, 5, IGNORED]]
    assert batch["input_ids"].tolist() == [[1, 5, 6], [1, 5, 0]]
