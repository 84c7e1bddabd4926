"""Ids that are numbers or texts: what they spell, where they lie, how they join."""

from __future__ import annotations

import numpy as np
import pytest

from draftrec.items.ids import as_whole, find_ids, ids_array, is_text, joined_ids, number_of, plain


@pytest.mark.parametrize("text", ["012", "+1", "-0", "", " 1", "1.0", "1e3", "B00", "٣", "9" * 19])
def test_other_texts_than_numbers_stay_texts(text: str) -> None:
    assert plain(text) == text


def test_texts_that_spell_numbers_are_numbers() -> None:
    assert [plain(t) for t in ("12", "-7", "0", str(2**63 - 1))] == [12, -7, 0, 2**63 - 1]


@pytest.mark.parametrize("known", [["10", "9", "x", "ü"], [10, 9, 4, -1]])
def test_looking_up_is_what_a_dictionary_says(known: list[int | str]) -> None:
    ids = np.sort(ids_array(known))
    table = {str(value): place for place, value in enumerate(ids.tolist())}
    for wanted in ([9, 10, 3], ["9", "10", "010", "x", "", "zz"], []):
        found = find_ids(ids, ids_array(wanted))
        assert found.dtype == np.int64
        assert found.tolist() == [table.get(str(w), -1) for w in wanted]


@pytest.mark.parametrize("length", [8, 15, 16, 40, 300])
def test_long_texts_are_looked_up_where_they_lie(length: int) -> None:
    # NumPy keeps texts of up to 15 bytes within an array, longer ones beside it.
    known = [f"{number:03d}".ljust(length, "x") for number in range(120)]
    wanted = [*reversed(known), *(text + "a" for text in known), "", "z" * length]
    found = find_ids(ids_array(known), ids_array(wanted))
    assert found.tolist() == [*range(119, -1, -1), *[-1] * 122]


def test_arrays_join_as_texts_where_one_is() -> None:
    numbers, texts = ids_array([1, 2]), ids_array(["a", 3])
    assert texts.tolist() == ["a", "3"]
    assert joined_ids([numbers, numbers]).dtype == np.int64
    assert joined_ids([]).dtype == np.int64
    assert joined_ids([numbers, texts]).tolist() == ["1", "2", "a", "3"]
    assert is_text(joined_ids([numbers, texts]))
    assert as_whole(texts) is None
    whole = as_whole(ids_array(["5", "-6"]))
    assert whole is not None
    assert (whole.dtype, whole.tolist()) == (np.int64, [5, -6])


def test_every_id_has_a_number_for_seeds() -> None:
    assert [number_of(7), number_of("7"), number_of(-1)] == [7, 7, -1]
    assert number_of("u-1") == number_of("u-1") != number_of("u-2")
    assert 0 <= number_of("u-1") < 2**63
