"""How records are put into words: nouns in one and many, titles with years, ratings with scales.

The templates of `data/prompts` use these as filters, and a template of the user's own may.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import jinja2

from draftrec.errors import DraftrecError

_ONE = {
    "movies": "movie", "cookies": "cookie", "hoodies": "hoodie", "selfies": "selfie",
    "smoothies": "smoothie", "brownies": "brownie", "ties": "tie", "pies": "pie",
    "people": "person", "children": "child", "women": "woman", "men": "man",
    "knives": "knife", "shelves": "shelf", "lives": "life",
}  # fmt: skip
_MANY = {one: many for many, one in _ONE.items()}
_UNCOUNTED = frozenset(
    (
        "anime", "beauty", "clothes", "clothing", "content", "cosmetics", "electronics",
        "equipment", "fashion", "food", "furniture", "hardware", "jewellery", "jewelry",
        "literature", "manga", "media", "merchandise", "music", "news", "poetry", "series",
        "software", "species", "stationery",
    )
)  # fmt: skip
_SAME_IN_ONE = ("ss", "us", "is")
_ES = ("s", "x", "z", "ch", "sh")
_MORE_THAN_ONE_KIND = re.compile(r"&|/|,|\band\b")
#: Where a record says what kind of thing an item is, the first that is there.
CATEGORIES = ("category", "categories", "genre", "genres")
#: What an object that is a value calls its name.
_NAMES = ("name", "title")
_WHOLE_AS_FLOAT = re.compile(r"^(\d+)\.0+$")
#: Usual scales; a record that does not name its own has the first that holds its ratings.
_SCALES = (5, 10, 100)


def singular(noun: Any) -> str:
    """`movies` as `movie`; what is one already, or cannot be counted, as it is. Lists as `listed`
    has them."""
    return _with_last_word(listed(noun), _one)


def plural(noun: Any) -> str:
    """`movie` as `movies`; what is many already, or cannot be counted, as it is. Lists as `listed`
    has them."""
    return _with_last_word(listed(noun), _many)


def heading(text: Any) -> str:
    """With a capital first letter; `capitalize` would make small letters of all others."""
    words = str(text)
    return words[:1].upper() + words[1:]


def flat(value: Any) -> str:
    """One line: lists joined by spaces, line breaks and runs of blanks as one blank; of what is
    null nothing."""
    return " ".join(_words(value).split())


def listed(value: Any) -> str:
    """A list, or MovieLens's `Action|Crime`, with commas; a list of lists as one, each member once
    (paths through a tree of categories share their beginnings), without nulls."""
    if isinstance(value, list):
        inner = (m for v in value for m in (v if isinstance(v, list) else (v,)))
        return ", ".join(filter(None, dict.fromkeys(map(listed, inner))))
    pieces = [value] if isinstance(value, Mapping) else _words(value).split("|")
    return ", ".join(filter(None, map(flat, pieces)))


def _words(value: Any) -> str:
    """A value as text, empty for null and NaN. Of objects what names them, as TMDB has genres
    (`{"id": 28, "name": "Action"}`), else each field: `Colour: red, Size: 3`."""
    if value is None or value != value:
        return ""
    if isinstance(value, list):
        return " ".join(filter(None, map(_words, value)))
    if not isinstance(value, Mapping):
        return str(value)
    if named := next(filter(None, (flat(value.get(name)) for name in _NAMES)), ""):
        return named
    fields = ((flat(name), listed(inner)) for name, inner in value.items())
    return ", ".join(f"{name}: {words}" for name, words in fields if words)


def known(values: list[Any]) -> Any:
    """The first value that is there and not blank, else an empty text."""
    there = (v for v in values if v is not None and not isinstance(v, jinja2.Undefined))
    return next(filter(flat, there), "")


def category_of(row: Mapping[str, Any]) -> str:
    """What kind of thing a record says that its item is; empty where it does not."""
    return listed(known([row.get(name) for name in CATEGORIES]))


def titled(title: Any, year: Any = None) -> str:
    """`Heat (1995)`; the title alone if it names the year already, or none is known."""
    name = flat(title)
    if not name:
        raise DraftrecError("the title is empty; add it, or leave the record out")
    when = "" if year is None or isinstance(year, jinja2.Undefined) else year_in_words(year)
    return f"{name} ({when})" if when and when not in name else name


def year_in_words(year: Any) -> str:
    """`1995`, of 1995.0 as well: pandas makes floats of whole numbers when one is missing."""
    return _WHOLE_AS_FLOAT.sub(r"\1", flat(year))


def entries(history: Any, scale: Any = None) -> list[dict[str, str]]:
    """A history as `title`, `category`, `rating` ("4 of 5"), `review`, the first always there.

    `scale`: the highest rating possible. Where it is not given it is the least of 5, 10 and 100
    that holds all of the history's ratings; ratings that are all 0 or 1, or partly negative, stand
    alone. Raises DraftrecError for an empty history, an entry without a title, and a rating above
    the scale.
    """
    if not isinstance(history, list) or not history:
        raise DraftrecError("the history is empty; leave out records that have none")
    rows = [_entry(entry, place) for place, entry in enumerate(history, 1)]
    ratings = [number for row in rows if (number := _number(row.get("rating"))) is not None]
    highest = _scale(scale, ratings)
    return [_worded(row, highest, place) for place, row in enumerate(rows, 1)]


def labelled(row: Mapping[str, str]) -> str:
    """An entry's title with its category behind it, if it has one."""
    category = row.get("category")
    if not category:
        return row["title"]
    return (
        f"{row['title']} - {category}"
        if row["title"].endswith(")")
        else (f"{row['title']} ({category})")
    )


def _entry(entry: Any, place: int) -> dict[str, Any]:
    if isinstance(entry, str):
        entry = {"title": entry}
    if not isinstance(entry, Mapping):
        raise DraftrecError(
            f"entry {place} of the history is {entry!r}, not a title; give titles, or objects with "
            f"a title"
        )
    if not str(entry.get("title", "")).strip():
        raise DraftrecError(f"entry {place} of the history has no title; add it, or drop the entry")
    return dict(entry)


def _worded(row: Mapping[str, Any], highest: float | None, place: int) -> dict[str, str]:
    words = {"title": titled(row["title"], row.get("year"))}
    if category := category_of(row):
        words["category"] = category
    if "rating" in row and (rating := _rating(row["rating"], highest, place)):
        words["rating"] = rating
    if "review" in row and (review := flat(row["review"])):
        words["review"] = review
    return words


def _rating(value: Any, highest: float | None, place: int) -> str:
    if isinstance(value, bool):
        return "liked" if value else "disliked"
    number = _number(value)
    if number is None:
        return flat(value)
    if highest is None:
        return _figure(number)
    if number > highest:
        raise DraftrecError(
            f"entry {place} of the history is rated {_figure(number)}, above the rating_scale "
            f"{_figure(highest)}; mend one of the two"
        )
    return f"{_figure(number)} of {_figure(highest)}"


def _scale(scale: Any, ratings: list[float]) -> float | None:
    """The highest rating possible, None where it cannot be known."""
    if scale is not None and not isinstance(scale, jinja2.Undefined):
        highest = _number(scale)
        if highest is None or highest <= 0:
            raise DraftrecError(f"rating_scale is {scale!r}; give the highest rating, such as 5")
        return highest
    return usual_scale(min(ratings), max(ratings)) if ratings else None


def usual_scale(low: float, high: float) -> int | None:
    """The highest rating possible where ratings go from `low` to `high`; None for labels, and where
    it cannot be known."""
    if low < 0 or high <= 1:
        return None
    return next((scale for scale in _SCALES if high <= scale), None)


def _number(value: Any) -> float | None:
    """A finite number, also one written in a string."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _figure(number: float) -> str:
    return f"{number:.10g}"


def _with_last_word(noun: str, change: Any) -> str:
    words = noun.strip()
    if _MORE_THAN_ONE_KIND.search(words):
        return words
    first, blank, last = words.rpartition(" ")
    small = last.lower()
    if not last or small in _UNCOUNTED or (last.isupper() and len(last) > 1):
        return words
    changed = change(small)
    # Letters that both forms share stay as they were written.
    shared = next((i for i, (a, b) in enumerate(zip(small, changed, strict=False)) if a != b), None)
    kept = min(len(small), len(changed)) if shared is None else shared
    return f"{first}{blank}{last[:kept]}{changed[kept:]}"


def _one(word: str) -> str:
    if word in _ONE:
        return _ONE[word]
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    if word.endswith(tuple(f"{end}es" for end in ("ss", "x", "ch", "sh"))):
        return word[:-2]
    return word[:-1] if word.endswith("s") and not word.endswith(_SAME_IN_ONE) else word


def _many(word: str) -> str:
    if word in _MANY or word in _ONE:
        return _MANY.get(word, word)
    if word.endswith("s") and not word.endswith(_SAME_IN_ONE):
        return word
    if word.endswith("y") and word[-2:-1] not in tuple("aeiou"):
        return word[:-1] + "ies"
    return word + ("es" if word.endswith(_ES) else "s")


#: Under their names in templates.
FILTERS = {
    "entries": entries,
    "flat": flat,
    "heading": heading,
    "known": known,
    "labelled": labelled,
    "listed": listed,
    "plural": plural,
    "singular": singular,
    "titled": titled,
}
