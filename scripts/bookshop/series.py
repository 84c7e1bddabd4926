"""The fictional bookshop with series, and readers whose next book can be guessed to a degree.

The histories of `world` are short and every choice in them stands alone, which is enough to write
about but not to learn an order from. Here books have sequels, series lead on to others, and readers
keep their tastes: most steps follow from the steps before, some are chance. Everything is invented.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from itertools import count as numbers

from bookshop import lexicon
from bookshop.world import Item, stream_items

#: Volumes of a series, and how common that is.
_VOLUMES = ((1, 2, 3, 4, 5), (45, 20, 17, 10, 8))
_NAMES = ("", ", Book Two", ", Book Three", ", Book Four", ", Book Five")
#: How many series one leads on to; its readers take the one that suits them best most often.
_LEADS = 8
#: A reader with several series open takes up the one put down last so often, or any of them.
_LATEST = 0.5
_ZIPF = 0.7
#: What each facet that a reader likes multiplies a book's chance by.
_TASTE = 4.0


@dataclass(frozen=True, slots=True)
class Book:
    """`number` is its place in the shop, `series` the number of the first volume, `volume` counts
    from 1."""

    number: int
    item: Item
    series: int
    volume: int

    @property
    def title(self) -> str:
        return self.item.title


@dataclass(frozen=True)
class Shop:
    """`books` in the order of their numbers. `sequels`: the next volume's number, -1 if there is
    none. `leads`: by series, those it leads on to. `fame`: by series, how often it
    is picked up by chance."""

    seed: int
    books: tuple[Book, ...]
    sequels: tuple[int, ...]
    leads: dict[int, tuple[int, ...]]
    fame: dict[int, float]

    @cached_property
    def shelves(self) -> dict[str, tuple[Book, ...]]:
        """First volumes by category."""
        firsts = [book for book in self.books if book.volume == 1]
        return {
            category: tuple(book for book in firsts if book.item.category == category)
            for category in lexicon.CATEGORIES
        }


@dataclass(frozen=True, slots=True)
class Reading:
    """What a reader read, in order: numbers of books, each once. `group` names the taste."""

    user: int
    group: str
    books: tuple[int, ...]


def make_shop(seed: int = 0, books: int = 1000) -> Shop:
    """A shop of at most `books` books whose titles all differ; the last series may be cut short."""
    made: list[Book] = []
    titles: set[str] = set()
    for item in stream_items(seed):
        if len(made) == books:
            break
        if item.title in titles:
            continue
        titles.add(item.title)
        item = replace(item, title=_well_spelt(item.title))
        made += _series(seed, len(made), item)[: books - len(made)]
    firsts = [book for book in made if book.volume == 1]
    ranks = random.Random(f"{seed}:fame").sample(range(1, len(firsts) + 1), len(firsts))
    fame = {book.number: rank**-_ZIPF for book, rank in zip(firsts, ranks, strict=True)}
    following = [b.number if b.volume > 1 else -1 for b in made[1:]]
    leads = {book.number: _leads(seed, book, firsts, fame) for book in firsts}
    return Shop(seed, tuple(made), (*following, -1), leads, fame)


def stream_readings(shop: Shop, shortest: int = 8, longest: int = 20) -> Iterator[Reading]:
    """Readers of a shop, one after another, without end; number i is the same for all calls."""
    return (_read(shop, user, shortest, longest) for user in numbers())


def _well_spelt(title: str) -> str:
    """With the right article; the patterns of `world` know only "A"."""
    vowel = title.startswith("A ") and (title[2] in "AEIOU" or title[2:].startswith("Heir"))
    return f"An {title[2:]}" if vowel else title


def _series(seed: int, first: int, item: Item) -> list[Book]:
    """All volumes of the series that begins with `item`."""
    rng = random.Random(f"{seed}:series:{item.item_id}")
    (volumes,) = rng.choices(*_VOLUMES)
    return [
        Book(first + i, replace(item, title=item.title + name), first, i + 1)
        for i, name in enumerate(_NAMES[:volumes])
    ]


def _leads(
    seed: int, book: Book, firsts: Sequence[Book], fame: dict[int, float]
) -> tuple[int, ...]:
    """Series like this one that its readers turn to."""
    rng = random.Random(f"{seed}:leads:{book.number}")
    like = [other for other in firsts if other is not book and _alike(book.item, other.item) >= 2]
    like = like if len(like) >= _LEADS else [other for other in firsts if other is not book]
    drawn = sorted(like, key=lambda other: rng.random() ** (1 / fame[other.number]), reverse=True)
    return tuple(other.number for other in drawn[:_LEADS])


def _alike(one: Item, other: Item) -> int:
    """How many of the facets that readers go by two books share."""
    pairs = zip(_facets(one), _facets(other), strict=True)
    return sum(mine == its for mine, its in pairs)


def _facets(item: Item) -> tuple[str, ...]:
    return item.category, item.theme, item.tone, item.pace


def _read(shop: Shop, user: int, shortest: int, longest: int) -> Reading:
    rng = random.Random(f"{shop.seed}:reader:{user}")
    group = rng.choice(tuple(lexicon.TASTES))
    categories, themes, tones, pace = lexicon.TASTES[group]
    likes = (rng.choice(categories), rng.choice(themes), rng.choice(tones), pace)
    reader = _Reader(shop, rng, likes, categories)
    wanted = rng.randint(shortest, longest)
    for _ in range(wanted * 4):  # chance may hit upon books that were read
        if len(reader.books) == wanted:
            break
        reader.step()
    return Reading(user, group, tuple(reader.books))


class _Reader:
    """One reader at work. `open` holds the next volumes of begun series, the latest last; `loyal`:
    how likely one of them is read on."""

    def __init__(
        self, shop: Shop, rng: random.Random, likes: tuple[str, ...], categories: tuple[str, ...]
    ) -> None:
        self.shop, self.rng, self.likes, self.categories = shop, rng, likes, categories
        self.loyal = rng.uniform(0.3, 0.9)
        self.books: list[int] = []
        self.seen: set[int] = set()
        self.open: list[int] = []
        self._chances: dict[str, list[float]] = {}

    def step(self) -> None:
        """Read one more book, or find only one that was read."""
        number = self._choose()
        if number in self.seen:
            return
        self.books.append(number)
        self.seen.add(number)
        if (following := self.shop.sequels[number]) >= 0:
            self.open.append(following)

    def _choose(self) -> int:
        rng = self.rng
        if self.open and rng.random() < self.loyal:
            latest = rng.random() < _LATEST
            return self.open.pop(-1 if latest else rng.randrange(len(self.open)))
        if self.open and rng.random() < 0.5:
            self.open.pop()  # put down for good
        if self.books and rng.random() < 0.6:
            leads = self.shop.leads[self.shop.books[self.books[-1]].series]
            return rng.choices(leads, [self._suits(self.shop.books[n]) for n in leads])[0]
        return self._browse()

    def _browse(self) -> int:
        draw = self.rng.random()
        category = self.likes[0]
        if draw >= 0.9:
            category = self.rng.choice(tuple(lexicon.CATEGORIES))
        elif draw >= 0.6:
            category = self.rng.choice(self.categories)
        shelf = self.shop.shelves[category] or self.shop.books
        if category not in self._chances:
            self._chances[category] = list(accumulate(self._weight(book) for book in shelf))
        return self.rng.choices(shelf, cum_weights=self._chances[category])[0].number

    def _weight(self, book: Book) -> float:
        return self.shop.fame[book.series] * self._suits(book)

    def _suits(self, book: Book) -> float:
        pairs = zip(self.likes, _facets(book.item), strict=True)
        return _TASTE ** sum(mine == its for mine, its in pairs)
