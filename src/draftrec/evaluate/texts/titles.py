"""Finding the titles of a catalogue in texts: whole words, capitals ignored, longest first."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass

from draftrec.data.words import is_eastern, normal, units

_YEAR = re.compile(r"\s*\(\d{4}\)\s*$")
_ALIAS = re.compile(r"\s*\(([^()]*)\)")
_TURNED = re.compile(r"^(.*), (The|A|An|Le|La|Les|L'|Der|Die|Das|Il|El|Los)$")
#: A title with fewer letters and digits than this is met by chance too often to mean anything.
MIN_LETTERS = 4
#: What a character of Han or kana counts for: three of them are a title.
_PER_CHARACTER = 1.5

Words = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Mention:
    """A title found in a text: the title's number, and whether it is written like a name, that is,
    does not begin with a small letter."""

    title: int
    as_name: bool


class TitleMatcher:
    """Finds any of many titles in a text in one walk over its words.

    Titles that differ in capitals and punctuation only are one title. A year at the end
    ("Heat (1995)") is dropped, "Matrix, The" is read as "The Matrix", and further names in brackets
    ("Seven (Se7en)") count as the same title. `too_short` counts titles that are not looked for.
    In scripts without spaces between words a title is found wherever its characters stand
    together, as part of a longer word too.
    """

    def __init__(self, titles: Iterable[str]) -> None:
        self._numbers: dict[Words, int] = {}
        self._lengths: dict[str, list[int]] = {}
        self.names: list[str] = []
        self.too_short = 0
        for title in titles:
            self._add(title)
        for lengths in self._lengths.values():
            lengths.sort(reverse=True)

    def __len__(self) -> int:
        return len(self.names)

    def find(self, text: str) -> list[Mention]:
        """Every mention, in order; where titles overlap the first counts, and the longest there."""
        written = units(text, joined=True)
        words = [_folded(w) for w in written]
        found: list[Mention] = []
        place = 0
        while place < len(words):
            for length in self._lengths.get(words[place], ()):
                number = self._numbers.get(tuple(words[place : place + length]))
                if number is not None:
                    found.append(Mention(number, not written[place][0].islower()))
                    place += length
                    break
            else:
                place += 1
        return found

    def _add(self, title: str) -> None:
        forms = [f for f in map(_words, _forms(title)) if _weight(f) >= MIN_LETTERS]
        if not forms:
            self.too_short += 1
            return
        number = next((self._numbers[f] for f in forms if f in self._numbers), len(self.names))
        if number == len(self.names):
            self.names.append(title)
        for form in forms:
            if form not in self._numbers:
                self._numbers[form] = number
                lengths = self._lengths.setdefault(form[0], [])
                if len(form) not in lengths:
                    lengths.append(len(form))


def common_titles(matcher: TitleMatcher, texts: Iterable[str]) -> frozenset[int]:
    """Titles that some text also writes with a small first letter: they are phrases of the
    language ("speed", "the game"), so that meeting them proves nothing."""
    return frozenset(m.title for text in texts for m in matcher.find(text) if not m.as_name)


def named_titles(matcher: TitleMatcher, text: str, common: frozenset[int]) -> frozenset[int]:
    """Titles that the text names, common phrases left out."""
    return frozenset(m.title for m in matcher.find(text) if m.as_name and m.title not in common)


def history_text(history: object, titles: Mapping[str, str]) -> str:
    """The titles of a history, one a line: a text, or a list of titles, of objects with a `title`,
    or of item ids that `titles` names."""
    if isinstance(history, str):
        return history
    lines: list[str] = []
    for entry in history if isinstance(history, Seq) else ():
        value = entry.get("title") if isinstance(entry, Mapping) else entry
        if value is not None:
            lines.append(titles.get(str(value), str(value)))
    return "\n".join(lines)


def _forms(title: str) -> list[str]:
    plain = _YEAR.sub("", normal(title))
    forms = [_ALIAS.sub("", plain), *_ALIAS.findall(plain)]
    forms = [f.strip().removeprefix("a.k.a. ") for f in forms]
    return [f"{m[2]} {m[1]}" if (m := _TURNED.match(f)) else f for f in forms]


def _words(title: str) -> Words:
    return tuple(_folded(w) for w in units(title, joined=True))


def _weight(words: Words) -> float:
    return sum(_PER_CHARACTER if is_eastern(word) else len(word) for word in words)


def _folded(word: str) -> str:
    """Without capitals and possessive: "Heat's" speaks of "Heat"."""
    return word.casefold().replace("\u2019", "'").removesuffix("'s")
