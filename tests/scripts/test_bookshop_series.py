"""The shop with series: the same for everyone, in order, and with something to learn in it."""

from __future__ import annotations

from itertools import islice

import pytest
from bookshop.series import Reading, Shop, make_shop, stream_readings


@pytest.fixture(scope="module")
def shop() -> Shop:
    return make_shop(books=300)


@pytest.fixture(scope="module")
def readings(shop: Shop) -> list[Reading]:
    return list(islice(stream_readings(shop), 200))


def test_same_seed_same_shop_and_readers(shop: Shop, readings: list[Reading]) -> None:
    assert make_shop(books=300) == shop
    assert list(islice(stream_readings(make_shop(books=300)), 200)) == readings
    assert make_shop(seed=1, books=300) != shop


def test_books_are_numbered_and_their_titles_differ(shop: Shop) -> None:
    assert [book.number for book in shop.books] == list(range(300))
    assert len({book.title for book in shop.books}) == 300
    assert not [b.title for b in shop.books if b.title.startswith(("A A", "A E", "A I", "A O"))]


def test_sequels_lead_through_a_series(shop: Shop) -> None:
    for book in shop.books:
        following = shop.sequels[book.number]
        if following >= 0:
            other = shop.books[following]
            assert (other.series, other.volume) == (book.series, book.volume + 1)
            assert other.item.category == book.item.category
    assert {number for leads in shop.leads.values() for number in leads} <= set(shop.fame)
    assert all(number not in leads for number, leads in shop.leads.items())


def test_readers_take_books_once_and_series_in_order(shop: Shop, readings: list[Reading]) -> None:
    for reading in readings:
        assert 8 <= len(reading.books) <= 20
        assert len(set(reading.books)) == len(reading.books)
        for place, number in enumerate(reading.books):
            if shop.books[number].volume > 1:
                assert number - 1 in reading.books[:place]


def test_what_comes_next_can_be_guessed_but_not_known(shop: Shop, readings: list[Reading]) -> None:
    steps = [pair for r in readings for pair in zip(r.books, r.books[1:], strict=False)]
    sequels = sum(shop.sequels[before] == after for before, after in steps) / len(steps)
    led = sum(after in shop.leads[shop.books[before].series] for before, after in steps)
    assert 0.15 < sequels < 0.6
    assert 0.1 < led / len(steps) < 0.6


def test_groups_read_differently(shop: Shop, readings: list[Reading]) -> None:
    read: dict[str, set[str]] = {}
    for reading in readings:
        kinds = [shop.books[number].item.category for number in reading.books]
        read.setdefault(reading.group, set()).add(max(set(kinds), key=kinds.count))
    assert len(read) == 6
    assert len({frozenset(kinds) for kinds in read.values()}) >= 5
