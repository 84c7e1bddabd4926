"""A seeded, fictional bookshop: items, readers, ratings and the knowledge texts about them.

Everything here is invented. Readers belong to groups with latent tastes; the tastes decide what
they read and how they rate it, and the knowledge texts speak only of what the prompt shows.
Entity number i is the same whatever the number of entities, so records can be streamed.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import count as numbers
from itertools import islice
from typing import Any, Literal

from bookshop import lexicon
from bookshop.texts import write_text

Side = Literal["user", "item"]

DOMAIN = "books"
_FIRST_DAY = 1_700_000_000
_DAY = 86_400


@dataclass(frozen=True, slots=True)
class Item:
    """A book. `brand` is its imprint; `description` is one line that names some of its facets."""

    item_id: str
    title: str
    category: str
    brand: str
    theme: str
    tone: str
    pace: str
    description: str

    def record(self) -> dict[str, Any]:
        """The fields a template sees, in the form `draftrec generate` reads."""
        return {
            "entity_id": self.item_id,
            "title": self.title,
            "category": self.category,
            "brand": self.brand,
            "description": self.description,
            "domain": DOMAIN,
            "group": self.category,
        }


@dataclass(frozen=True, slots=True)
class Interaction:
    """One rating, 1 to 5. `timestamp` is in seconds."""

    user_id: str
    item_id: str
    rating: int
    timestamp: int


@dataclass(frozen=True, slots=True)
class User:
    """A reader. `group` names the latent taste; `likes` the own leaning within it."""

    user_id: str
    group: str
    likes: tuple[str, ...]
    history: tuple[Interaction, ...]


@dataclass(frozen=True, slots=True)
class World:
    """Items, users and what is known of them."""

    seed: int
    items: tuple[Item, ...]
    users: tuple[User, ...]

    @property
    def interactions(self) -> tuple[Interaction, ...]:
        return tuple(one for user in self.users for one in user.history)

    def records(self, side: Side) -> Iterator[dict[str, Any]]:
        """Input of `draftrec generate`, one record per entity."""
        if side == "item":
            yield from (item.record() for item in self.items)
            return
        shelf = {item.item_id: item for item in self.items}
        for user in self.users:
            yield _user_record(user, shelf)

    def texts(self, side: Side, framework: str = "kar") -> Iterator[dict[str, str]]:
        """The knowledge texts: `entity_id`, `text`, `group`."""
        for record in self.records(side):
            text = knowledge_text(record, framework, self.seed)
            yield {"entity_id": record["entity_id"], "text": text, "group": record["group"]}


def make_world(seed: int = 0, users: int = 1000, items: int = 1000) -> World:
    """Build a world of the given size."""
    catalogue = _catalogue(seed, items)
    readers = tuple(_make_user(seed, number, catalogue) for number in range(users))
    return World(seed, catalogue.items, readers)


def stream_records(
    side: Side, count: int | None = None, *, seed: int = 0, start: int = 0, items: int = 1000
) -> Iterator[dict[str, Any]]:
    """Records for `draftrec generate`, made one at a time; without `count` they never end.

    Readers choose from the first `items` books, so equal arguments give the users of `make_world`.
    """
    if side == "item":
        return (_make_item(seed, n).record() for n in islice(numbers(start), count))
    catalogue = _catalogue(seed, items)
    shelf = {item.item_id: item for item in catalogue.items}
    return (
        _user_record(_make_user(seed, n, catalogue), shelf) for n in islice(numbers(start), count)
    )


def stream_items(seed: int = 0) -> Iterator[Item]:
    """The books of the world with this seed, one after another, without end."""
    return (_make_item(seed, number) for number in numbers())


def knowledge_text(record: Mapping[str, Any], framework: str = "kar", seed: int = 0) -> str:
    """What a large model would answer about this record under a framework's prompt."""
    return write_text(record, framework, random.Random(f"{seed}:{framework}:{record['entity_id']}"))


def is_held_out(entity_id: str, share: float = 0.2) -> bool:
    """Whether an entity is kept from training and warm pools; depends on its id alone."""
    return random.Random(f"held-out:{entity_id}").random() < share


def split_warm(
    records: Iterable[dict[str, Any]], share: float = 0.2
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Split records into warm and held-out ones."""
    warm: list[dict[str, Any]] = []
    held_out: list[dict[str, Any]] = []
    for record in records:
        (held_out if is_held_out(record["entity_id"], share) else warm).append(record)
    return warm, held_out


@dataclass(frozen=True, slots=True)
class _Catalogue:
    """Items and the shelves readers browse."""

    items: tuple[Item, ...]
    by_category: Mapping[str, tuple[Item, ...]]


@lru_cache(maxsize=4)
def _catalogue(seed: int, items: int) -> _Catalogue:
    made = tuple(_make_item(seed, number) for number in range(items))
    by_category = {
        category: tuple(item for item in made if item.category == category)
        for category in lexicon.CATEGORIES
    }
    return _Catalogue(made, by_category)


def _make_item(seed: int, number: int) -> Item:
    rng = random.Random(f"{seed}:item:{number}")
    category = rng.choice(tuple(lexicon.CATEGORIES))
    theme = rng.choice(tuple(lexicon.THEMES))
    tone = rng.choice(tuple(lexicon.TONES))
    pace = rng.choice(tuple(lexicon.PACES))
    return Item(
        item_id=f"item-{number:06d}",
        title=_title(rng, category, theme, tone),
        category=category,
        brand=rng.choice(tuple(lexicon.IMPRINTS)),
        theme=theme,
        tone=tone,
        pace=pace,
        description=_description(rng, category, theme, pace),
    )


def _title(rng: random.Random, category: str, theme: str, tone: str) -> str:
    place = rng.choice(lexicon.CATEGORIES[category][0])
    noun = rng.choice(lexicon.THEMES[theme][0])
    adjective = rng.choice(lexicon.TONES[tone][0])
    patterns = (
        f"The {adjective} {noun}",
        f"The {adjective} {noun}",
        f"{adjective} {noun}",
        f"The {noun} of the {adjective} {place}",
        f"The {adjective} {noun} and the {place}",
        f"A {noun} for the {adjective} {place}",
        f"{place} of the {adjective} {noun}",
    )
    return rng.choice(patterns)


def _description(rng: random.Random, category: str, theme: str, pace: str) -> str:
    setting = rng.choice(lexicon.CATEGORIES[category][1])
    idea = rng.choice(lexicon.THEMES[theme][1])
    rhythm = rng.choice(lexicon.PACES[pace])
    patterns = (
        f"{idea} in {setting}, with {rhythm}",
        f"{setting}; {idea}; {rhythm}",
        f"set in {setting}, about {idea}, at {rhythm}",
        f"{rhythm}, {setting}, {idea}",
    )
    return rng.choice(patterns[:2] + patterns[3:] if "pace" not in rhythm else patterns)


def _make_user(seed: int, number: int, catalogue: _Catalogue) -> User:
    rng = random.Random(f"{seed}:user:{number}")
    user_id = f"user-{number:06d}"
    group = rng.choice(tuple(lexicon.TASTES))
    categories, themes, tones, pace = lexicon.TASTES[group]
    # Readers of one group differ: each leans to one of its categories, themes and tones.
    likes = (rng.choice(categories), rng.choice(themes), rng.choice(tones), pace)
    moment = _FIRST_DAY + rng.randrange(200 * _DAY)
    seen: dict[str, Interaction] = {}
    wanted = rng.randint(4, 8)
    for _ in range(wanted * 4):
        if len(seen) == wanted:
            break
        item = _browse(rng, catalogue, likes, categories)
        moment += rng.randrange(_DAY // 2, 9 * _DAY)
        if item is not None and item.item_id not in seen:
            rating = _rate(rng, item, likes)
            seen[item.item_id] = Interaction(user_id, item.item_id, rating, moment)
    return User(user_id, group, likes, tuple(seen.values()))


def _browse(
    rng: random.Random,
    catalogue: _Catalogue,
    likes: tuple[str, ...],
    categories: tuple[str, ...],
) -> Item | None:
    """Look at a few books of a shelf and take the one closest to one's taste."""
    draw = rng.random()
    if draw < 0.55:
        category = likes[0]
    elif draw < 0.85:
        category = rng.choice(categories)
    else:
        category = rng.choice(tuple(lexicon.CATEGORIES))
    shelf = catalogue.by_category[category]
    if not shelf:
        return None
    looked_at = [rng.choice(shelf) for _ in range(rng.choice((1, 8, 20)))]
    return max(looked_at, key=lambda item: _affinity(item, likes))


def _affinity(item: Item, likes: tuple[str, ...]) -> int:
    facets = (item.category, item.theme, item.tone, item.pace)
    return sum(mine == its for mine, its in zip(likes, facets, strict=True))


def _rate(rng: random.Random, item: Item, likes: tuple[str, ...]) -> int:
    return max(1, min(5, 2 + _affinity(item, likes) + rng.choice((-1, 0, 0, 1))))


def _user_record(user: User, shelf: Mapping[str, Item]) -> dict[str, Any]:
    history = [
        {
            "title": shelf[one.item_id].title,
            "rating": one.rating,
            "category": shelf[one.item_id].category,
        }
        for one in user.history
    ]
    return {
        "entity_id": user.user_id,
        "history": history,
        "domain": DOMAIN,
        "group": user.group,
    }
