"""Prompts of histories: order, cuts, texts, and which tokens of a sequence teach."""

from __future__ import annotations

import numpy as np
import pytest

from draftrec.errors import DraftrecError
from draftrec.items.prompts import HistoryEncoder, check_texts
from draftrec.items.settings import PromptFormat
from draftrec.models.recommender import new_tokenizer

ITEMS = np.array([[10, 20], [11, 21], [12, 22], [13, 20]], np.int32)


class Words:
    """One id per word, 100 upwards by length."""

    def __init__(self, bos: int | None = 1) -> None:
        self.bos_token_id = bos

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        assert not add_special_tokens
        return [100 + len(word) for word in text.split()]


def places(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def test_a_prompt_is_bos_and_the_latest_items_oldest_first():
    encoder = HistoryEncoder(PromptFormat("", "", "", 2), Words(), ITEMS)
    assert encoder.encode(places(0, 3, 1)).tolist() == [1, 13, 20, 11, 21]
    assert encoder.encode(places()).tolist() == [1]
    assert encoder.encode(places(2)).dtype == np.int32


def test_texts_stand_around_and_between_items():
    encoder = HistoryEncoder(PromptFormat("he saw", "a", "now ."), Words(None), ITEMS)
    assert encoder.encode(places(0, 1)).tolist() == [102, 103, 10, 20, 101, 11, 21, 103, 101]
    assert encoder.encode(places()).tolist() == [102, 103, 103, 101]


@pytest.mark.parametrize("separator", ["", "a", "a b"])
def test_a_prompts_length_is_known_before_it_is_made(separator: str):
    encoder = HistoryEncoder(PromptFormat("he", separator, "b", 3), Words(), ITEMS)
    for items in range(5):
        history = np.arange(items) % len(ITEMS)
        assert encoder.length(items) == len(encoder.encode(history))


def test_fit_keeps_as_many_items_as_the_context_holds():
    encoder = HistoryEncoder(PromptFormat("he", "a", "b", 9), Words(), ITEMS)
    history = places(0, 1, 2, 3)
    for context in range(7, 30):
        fitted = encoder.fit(context)
        length = len(fitted.encode(history)) + encoder.levels
        assert length <= context
        one_more = HistoryEncoder(
            PromptFormat("he", "a", "b", fitted.form.max_items + 1), Words(), ITEMS
        )
        if fitted.form.max_items < 4:
            assert len(one_more.encode(history)) + encoder.levels > context
    assert encoder.fit(10**6).form == encoder.form
    with pytest.raises(DraftrecError, match="context of 6 tokens is too short"):
        encoder.fit(6)


def test_every_place_of_an_example_that_teaches_is_the_end_of_a_prompt():
    for form in (
        PromptFormat(),
        PromptFormat("he saw", "a", "a"),
        PromptFormat("he saw", "a", "now"),
        PromptFormat("", "", "so"),
    ):
        encoder = HistoryEncoder(form, Words(), ITEMS)
        history = places(3, 0, 2, 1)
        ids, answers = encoder.example(history)
        starts = np.flatnonzero(np.diff(np.concatenate([[0], answers.astype(int)])) == 1)
        assert len(ids) == len(answers)
        taught = []
        for start in np.flatnonzero(answers)[:: encoder.levels]:
            prompt, answer = ids[:start], ids[start : start + encoder.levels]
            items = int(np.flatnonzero((answer == ITEMS).all(axis=1))[0])
            seen = len(taught) + (4 - answers.sum() // 2)
            assert np.array_equal(prompt, encoder.encode(history[:seen]))
            assert items == history[seen]
            taught.append(items)
        assert taught[-1] == 1
        assert len(taught) == {"": 4, "a": 3}.get(form.suffix, 1)
        assert len(starts)


def test_what_cannot_work_is_refused():
    with pytest.raises(DraftrecError, match="empty prompt"):
        HistoryEncoder(PromptFormat(), Words(None), ITEMS)
    with pytest.raises(DraftrecError, match="at least 1 item"):
        HistoryEncoder(PromptFormat(max_items=0), Words(), ITEMS)
    with pytest.raises(ValueError, match="without items"):
        HistoryEncoder(PromptFormat(), Words(), ITEMS).example(places())


@pytest.mark.parametrize("name", ["prefix", "separator", "suffix"])
def test_words_that_the_tokenizer_does_not_know_are_refused(name: str) -> None:
    tokenizer = new_tokenizer(["<a_0>", "<b_0>"])
    check_texts(PromptFormat(**{name: "<a_0>"}), tokenizer)
    with pytest.raises(DraftrecError, match=f"words of --{name} 'then <a_0>'"):
        check_texts(PromptFormat(**{name: "then <a_0>"}), tokenizer)
