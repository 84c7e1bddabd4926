"""The values that everything else exchanges."""

from __future__ import annotations

from draftrec.core import SOURCES, Counts


def test_counts_add_up_field_by_field_and_leave_the_parts_alone() -> None:
    one, two = Counts(1, 2, 3, 4, 5, [*range(6)]), Counts(10, 20, 30, 40, 50, [1] * 6)
    assert one + two == Counts(11, 22, 33, 44, 55, [1, 2, 3, 4, 5, 6])
    assert sum([one, two], Counts()) == one + two
    assert one.accepted_by_source == [*range(6)]


def test_counts_of_before_a_source_existed_have_none_of_it() -> None:
    old = Counts(accepted_by_source=[1, 2])
    assert old.accepted_by_source == [1, 2, *[0] * (len(SOURCES) - 2)]
    assert (old + Counts()).accepted_by_source == old.accepted_by_source


def test_rates_are_nought_where_nothing_was_counted() -> None:
    assert set(Counts().rates(0).values()) == {0.0}
    assert Counts(4, 2, 8, 6, 1).rates(10) == {
        "tokens_per_call": 2.5, "mean_accepted_tokens": 3.0, "acceptance_rate": 0.75,
        "relaxed_share": 0.1,
    }  # fmt: skip
