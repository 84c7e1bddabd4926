"""Knowledge texts of the fictional bookshop, written from what a prompt shows and nothing else.

Which pattern says a thing depends mostly on a facet of the record and partly on chance: a model
that learns these texts writes differently about different entities even when it decodes greedily.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from zlib import crc32

from bookshop import phrases
from bookshop.lexicon import CATEGORIES, IMPRINTS, PACES, THEMES, TITLE_WORDS, TONES

#: How often the facet, rather than chance, chooses the pattern.
_HABIT = 0.8


def write_text(record: Mapping[str, Any], framework: str, rng: random.Random) -> str:
    """Answer a framework's prompt about a user's (`history`) or an item's record."""
    if "history" in record:
        history = record["history"]
        if framework == "once":  # its prompt shows no ratings
            history = [{**entry, "rating": 3} for entry in history]
        return _USER_WRITERS[framework](_read_history(history), _Pen(rng))
    return _ITEM_WRITERS[framework](_read_item(record), _Pen(rng))


def facts(record: Mapping[str, Any]) -> dict[str, str]:
    """What a careful reader finds in a record: the facts that its texts are built on."""
    if "history" in record:
        reader = _read_history(record["history"])
        names = ("title", "theme", "tone", "category", "first", "least")
        return {name: str(getattr(reader, name)) for name in names}
    book = _read_item(record)
    return {name: getattr(book, name) for name in ("title", "theme", "tone", "setting", "pace")}


class _Pen:
    """Chooses phrases: by habit from a facet's value, otherwise by chance."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self._said: set[str] = set()

    def word(self, options: Sequence[str], slot: str, facet: str) -> str:
        """A wording for a facet, another one at each mention while there are any."""
        chosen = self.pick(options, slot, facet)
        if chosen in self._said:
            chosen = next((option for option in options if option not in self._said), chosen)
        self._said.add(chosen)
        return chosen

    def pick(self, options: Sequence[Any], slot: str, facet: str) -> Any:
        if self.rng.random() < _HABIT:
            return options[crc32(f"{slot}/{facet}".encode()) % len(options)]
        return self.rng.choice(options)

    def sentence(self, options: Sequence[str], slot: str, facet: str, fields: _Fields) -> str:
        text = self.pick(options, slot, facet).format_map(fields)
        return text[0].upper() + text[1:]


class _Fields(dict[str, str]):
    """Fields of a pattern; a facet's wording is chosen anew each time it is mentioned."""

    def __init__(self, pen: _Pen, fixed: Mapping[str, str], facets: Mapping[str, Any]) -> None:
        super().__init__(fixed)
        self._pen = pen
        self._facets = facets

    def __missing__(self, name: str) -> str:
        options, facet = self._facets[name]
        return self._pen.word(options, name, facet)


@dataclass(frozen=True, slots=True)
class _Reader:
    """What a history shows.

    `title` is the latest well-rated book, which sets theme and tone; `shelves` are the categories
    it starts and ends with; `least` is None where nothing was rated 2 or lower.
    """

    category: str
    second: str
    theme: str
    tone: str
    title: str
    rating: int
    first: str
    shelves: str
    count: int
    least: str | None
    low: int
    far: str

    def fields(self, pen: _Pen) -> _Fields:
        fixed = {
            "category": self.category,
            "second": self.second,
            "title": self.title,
            "rating": str(self.rating),
            "first": self.first,
            "count": str(self.count),
            "least": self.least or "",
            "low": str(self.low),
            "far": self.far,
        }
        facets = {
            "alias": (CATEGORIES[self.category][2], self.tone),
            "theme": (THEMES[self.theme][1], self.category),
            "tone": (TONES[self.tone][1], self.theme),
        }
        return _Fields(pen, fixed, facets)


@dataclass(frozen=True, slots=True)
class _Book:
    """What an item's fields show."""

    title: str
    category: str
    brand: str
    theme: str
    tone: str
    pace: str
    setting: str

    def fields(self, pen: _Pen) -> _Fields:
        fixed = {
            "title": self.title,
            "category": self.category,
            "brand": self.brand,
            "setting": self.setting,
        }
        facets = {
            "alias": (CATEGORIES[self.category][2], self.tone),
            "theme": (THEMES[self.theme][1], self.category),
            "tone": (TONES[self.tone][1], self.theme),
            "pace": (PACES[self.pace], self.tone),
            "form": (IMPRINTS[self.brand][1], self.pace),
        }
        return _Fields(pen, fixed, facets)


def _read_history(history: Sequence[Mapping[str, Any]]) -> _Reader:
    votes: Counter[str] = Counter()
    for entry in history:
        votes[entry["category"]] += entry["rating"]
    ranked = [name for name, _ in votes.most_common()]
    # Tastes change: the latest book that was liked says more than an older one.
    liked = [entry for entry in history if entry["rating"] >= 4] or [history[-1]]
    worst = min(history, key=lambda entry: entry["rating"])
    facets = _read_title(liked[-1]["title"])
    return _Reader(
        category=ranked[0],
        second=ranked[1] if len(ranked) > 1 else "anything well told",
        theme=facets["theme"],
        tone=facets["tone"],
        title=liked[-1]["title"],
        rating=liked[-1]["rating"],
        first=history[0]["title"],
        shelves=f"{history[0]['category']}/{history[-1]['category']}",
        count=len(history),
        least=worst["title"] if worst["rating"] <= 2 else None,
        low=worst["rating"],
        far=worst["category"],
    )


def _read_title(title: str) -> dict[str, str]:
    return dict(TITLE_WORDS[word] for word in title.split() if word in TITLE_WORDS)


def _read_item(record: Mapping[str, Any]) -> _Book:
    facets = _read_title(record["title"])
    about = record["description"]
    category = record["category"]
    return _Book(
        title=record["title"],
        category=category,
        brand=record["brand"],
        theme=facets["theme"],
        tone=facets["tone"],
        pace=next(pace for pace, ways in PACES.items() if any(way in about for way in ways)),
        setting=next(place for place in CATEGORIES[category][1] if place in about),
    )


def _user_sentence(kind: str, reader: _Reader, pen: _Pen) -> str:
    if kind == "contrast":
        kind = "dislike" if reader.least else "breadth"
    facet = {"genre": reader.theme, "theme": reader.tone, "tone": reader.category}
    options = phrases.USER_SENTENCES[kind]
    return pen.sentence(options, kind, facet.get(kind, reader.category), reader.fields(pen))


def _item_sentence(kind: str, book: _Book, pen: _Pen) -> str:
    facet = {"setting": book.theme, "theme": book.tone, "tone": book.brand, "style": book.category}
    options = phrases.ITEM_SENTENCES[kind]
    return pen.sentence(options, kind, facet.get(kind, book.pace), book.fields(pen))


def _kar_user(reader: _Reader, pen: _Pen) -> str:
    fields = reader.fields(pen)
    plan = pen.pick(phrases.USER_PLANS, "plan", reader.tone)
    return " ".join(
        [
            pen.sentence(phrases.USER_OPENINGS, "opening", reader.shelves, fields),
            *(_user_sentence(kind, reader, pen) for kind in plan),
            pen.sentence(phrases.USER_CLOSINGS, "closing", reader.tone, fields),
        ]
    )


def _kar_item(book: _Book, pen: _Pen) -> str:
    fields = book.fields(pen)
    plan = pen.pick(phrases.ITEM_PLANS, "plan", book.tone)
    opening = pen.sentence(phrases.ITEM_OPENINGS, "opening", book.brand, fields)
    if book.setting.lower() in opening.lower():
        plan = [kind for kind in plan if kind != "setting"]
    return " ".join(
        [
            opening,
            *(_item_sentence(kind, book, pen) for kind in plan),
            pen.sentence(phrases.ITEM_CLOSINGS, "closing", book.theme, fields),
        ]
    )


def _trawl_user(reader: _Reader, pen: _Pen) -> str:
    lines = [
        f"{kind.capitalize()}: {_user_sentence(kind, reader, pen)}"
        for kind in ("genre", "theme", "tone")
    ]
    return "\n".join(lines)


def _trawl_item(book: _Book, pen: _Pen) -> str:
    plan = pen.pick(phrases.ITEM_PLANS, "description", book.theme)
    opening = pen.sentence(phrases.ITEM_OPENINGS, "opening", book.tone, book.fields(pen))
    return " ".join([opening, *(_item_sentence(kind, book, pen) for kind in plan)])


def _once_user(reader: _Reader, pen: _Pen) -> str:
    fields = reader.fields(pen)
    interests = [reader.category, fields["theme"], fields["tone"]]
    if reader.second in CATEGORIES:
        interests.append(reader.second)
    return ", ".join(interests)


def _once_item(book: _Book, pen: _Pen) -> str:
    kinds = pen.pick(phrases.ITEM_PLANS, "brief", book.category)[:3]
    opening = pen.sentence(phrases.ITEM_OPENINGS[:3], "opening", book.pace, book.fields(pen))
    body = " ".join(_item_sentence(kind, book, pen) for kind in kinds)
    return f"[description] {opening} {body}"


def _rlmrec_user(reader: _Reader, pen: _Pen) -> str:
    opening = pen.sentence(phrases.USER_OPENINGS, "opening", reader.category, reader.fields(pen))
    closing = pen.sentence(phrases.USER_CLOSINGS, "closing", reader.tone, reader.fields(pen))
    reasons = [_user_sentence(kind, reader, pen) for kind in ("genre", "theme", "contrast")]
    return _as_json(f"{opening} {closing}", " ".join(reasons))


def _rlmrec_item(book: _Book, pen: _Pen) -> str:
    closing = pen.sentence(phrases.ITEM_CLOSINGS, "closing", book.theme, book.fields(pen))
    second = _item_sentence("theme", book, pen)
    reasons = [_item_sentence(kind, book, pen) for kind in ("setting", "tone", "style")]
    return _as_json(f"{second} {closing}", " ".join(reasons))


def _as_json(summary: str, reasoning: str) -> str:
    return json.dumps({"summarization": summary, "reasoning": reasoning}, ensure_ascii=False)


_USER_WRITERS: dict[str, Callable[[_Reader, _Pen], str]] = {
    "kar": _kar_user,
    "trawl": _trawl_user,
    "once": _once_user,
    "rlmrec": _rlmrec_user,
}
_ITEM_WRITERS: dict[str, Callable[[_Book, _Pen], str]] = {
    "kar": _kar_item,
    "trawl": _trawl_item,
    "once": _once_item,
    "rlmrec": _rlmrec_item,
}
