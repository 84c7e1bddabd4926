"""Entity grounding: do the titles that a text names come from its own entity's prompt? And has a
text the form that its framework's prompt asks for?

Titles of a catalogue are found in texts as whole words, capitals ignored, longest first. A pool
drafts what was written of others. Under relaxed verification a title of another entity's history
may so slip into a text ("leakage through the pool"). What a text names is

*grounded* in the entity's own prompt; *leaked* where no own prompt but another entity's prompt of
the run holds it; *foreign* where no prompt holds it: the model may know the title by itself or
invent it, which cannot be told apart.

A model alone also names famous titles that happen to stand in other prompts. So leaked titles mean
nothing by themselves; what counts against a run is their excess over the baseline's.

The prompts whose forms are checked are those of `data/prompts`; the limits are the frameworks' own
(RLMRec, arXiv 2310.15950; ONCE, 2305.06566; KAR, 2306.10933; TRAWL, 2403.06642).
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from draftrec.data.tables.readers import Row, open_records
from draftrec.data.templates import Side
from draftrec.data.words import count_words, is_eastern, normal, units, unspaced
from draftrec.errors import DraftrecError
from draftrec.evaluate.compare.quality import Ratio, mean_of
from draftrec.evaluate.settings import Framework

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


_MEND = "name them item_id and title"


@dataclass(frozen=True, slots=True)
class Catalogue:
    """Titles to look for. `by_item`: item id -> title, for histories that list ids."""

    matcher: TitleMatcher
    by_item: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Grounding:
    """Which titles may be named in whose text.

    `own[i]`: titles in the prompt of entity i; `prompts_with[t]`: how many prompts hold title t;
    `common`: titles left out as phrases of the language.
    """

    matcher: TitleMatcher
    own: tuple[frozenset[int], ...]
    prompts_with: Mapping[int, int]
    common: frozenset[int]

    def measures(self, texts: Seq[str]) -> dict[str, Ratio]:
        """Of `texts`, in the order of the entities: titles named, and the shares of them that are
        grounded, leaked and foreign."""
        named = [named_titles(self.matcher, text, self.common) for text in texts]
        grounded = [len(n & own) for n, own in zip(named, self.own, strict=True)]
        leaked = [
            sum(t not in own and t in self.prompts_with for t in n)
            for n, own in zip(named, self.own, strict=True)
        ]
        all_ = np.array([len(n) for n in named], np.float64)
        kept, lost = np.array(grounded, np.float64), np.array(leaked, np.float64)
        return {
            "titles_named": mean_of(all_),
            "titles_grounded": Ratio(kept, all_),
            "titles_leaked": mean_of(lost),
            "titles_foreign": mean_of(all_ - kept - lost),
        }

    def facts(self) -> dict[str, int]:
        """How many titles are looked for, and how many not and why."""
        return {
            "titles": len(self.matcher) - len(self.common),
            "titles_too_short": self.matcher.too_short,
            "titles_common": len(self.common),
        }


def ground(catalogue: Catalogue, prompts: Seq[str], baseline_texts: Seq[str]) -> Grounding:
    """Prepare for entities with these `prompts`. The baseline's texts and the prompts decide which
    titles are phrases of the language, the same for every run."""
    matcher = catalogue.matcher
    common = common_titles(matcher, [*prompts, *baseline_texts])
    own = tuple(named_titles(matcher, prompt, common) for prompt in prompts)
    return Grounding(matcher, own, Counter(t for titles in own for t in titles), common)


def read_catalogue(location: str | Path) -> Catalogue:
    """Titles from a file with `title` and, where histories list ids, `item_id` (or `movie_id`).

    Raises DraftrecError for a file without titles.
    """
    source = open_records(location)
    source.require(["title"], _MEND)
    by_item: dict[str, str] = {}
    titles: list[str] = []
    for row in source.rows():
        title = row.values.get("title")
        if not isinstance(title, str):
            continue
        titles.append(title)
        item = next((row.values[k] for k in ("item_id", "movie_id") if k in row.values), None)
        if item is not None:
            by_item[str(item)] = title
    matcher = TitleMatcher(titles)
    if not len(matcher):
        raise DraftrecError(f"{location} holds no title that can be looked for; check the column")
    return Catalogue(matcher, by_item)


def read_prompts(
    location: str | Path, entity_ids: Seq[str], by_item: Mapping[str, str]
) -> list[str]:
    """What the model was told of each entity, in the order of `entity_ids`: the columns `prompt`,
    else `history`, and `title` (of items). Raises DraftrecError for an entity without a record."""
    source = open_records(location)
    source.require(["entity_id"], "give the records that the runs were made of")
    wanted = set(entity_ids)
    found: dict[str, str] = {}
    for row in source.rows(["entity_id", "prompt", "history", "title"]):
        entity = str(row.values.get("entity_id"))
        if entity in wanted:
            found[entity] = _told(row, by_item)
    absent = [e for e in entity_ids if e not in found]
    if absent:
        raise DraftrecError(
            f"{location} has no record of {len(absent)} compared entities (the first is "
            f"{absent[0]!r}); give the records that the runs were made of"
        )
    return [found[e] for e in entity_ids]


def _told(row: Row, by_item: Mapping[str, str]) -> str:
    values = row.values
    told = values.get("prompt")
    if told is None:
        told = history_text(values.get("history"), by_item)
    parts = [part for part in (told, values.get("title")) if isinstance(part, str) and part]
    if not parts:
        raise DraftrecError(
            f"{row.file} line {row.line}: neither prompt nor history nor title says what the model "
            "was told; mend the row"
        )
    return "\n".join(parts)


#: What the built-in prompts ask about; own lists of factors go into `TextForm`.
_FACTORS: Mapping[tuple[Framework, Side], tuple[str, ...]] = {
    ("kar", "user"): ("genre", "creator", "style", "theme", "tone", "pace"),
    ("kar", "item"): ("genre", "creator", "style", "theme", "tone", "pace", "audience"),
    ("trawl", "user"): ("genre", "theme", "tone"),
    ("trawl", "item"): (),
}
_SUMMARY_WORDS: Mapping[Side, int] = {"user": 100, "item": 200}
_REASONING_WORDS: Mapping[Side, int | None] = {"user": None, "item": 200}
_PHRASES, _PHRASE_WORDS = 5, 5
#: Commas, semicolons and ends of lines, those of other scripts among them.
_PARTED = re.compile(r"[,;\n\uff0c\u3001\uff1b\u060c\u061b]")
_FENCE = re.compile(r"^```(?:json)?\s*\n(.*?)\n?```$", re.DOTALL)


@dataclass(frozen=True, slots=True)
class TextForm:
    """What is asked of every text. `factors` of KAR and TRAWL: None = the built-in prompt's; as
    many as `min_factors` must be named, by a word or its beginning. Free prose speaks of most
    factors without their names; ask for more than one where the prompt wants headings."""

    framework: Framework
    side: Side = "user"
    factors: tuple[str, ...] | None = None
    min_factors: int = 1

    def faults(self, text: str) -> list[str]:
        """What is wrong with a text, a few fixed words each; empty for a valid text."""
        if not text.strip():
            return ["empty"]
        if self.framework == "rlmrec":
            return _json_faults(text, self.side)
        if self.framework == "once":
            return _phrase_faults(text) if self.side == "user" else _tag_faults(text)
        return self._factor_faults(text)

    def _factor_faults(self, text: str) -> list[str]:
        factors = self.factors
        if factors is None:
            factors = _FACTORS[(self.framework, self.side)]
        folded = text.casefold()
        named = sum(bool(re.search(_beginning(f.casefold()), folded)) for f in factors)
        return [] if named >= min(self.min_factors, len(factors)) else ["too few factors named"]


def _beginning(factor: str) -> str:
    """A pattern for a word that begins so; scripts without spaces have no words to begin."""
    return re.escape(factor) if unspaced(factor[:1]) else rf"\b{re.escape(factor)}"


def _json_faults(text: str, side: Side) -> list[str]:
    """RLMRec: a JSON object, alone or in a Markdown fence."""
    fenced = _FENCE.match(text.strip())
    try:
        value = json.loads(fenced[1] if fenced else text)
    except (ValueError, RecursionError):
        return ["not JSON"]
    if not isinstance(value, dict):
        return ["not a JSON object"]
    limits = {"summarization": _SUMMARY_WORDS[side], "reasoning": _REASONING_WORDS[side]}
    found: list[str] = []
    for key, most in limits.items():
        entry = value.get(key)
        if not isinstance(entry, str) or not entry.strip():
            found.append(f"no {key}")
        elif most is not None and count_words(entry) > most:
            found.append(f"{key} too long")
    return found


def _phrase_faults(text: str) -> list[str]:
    """ONCE, users: at most five words or short phrases, parted by commas or lines."""
    phrases = [p for p in _PARTED.split(text) if p.strip()]
    found: list[str] = []
    if not phrases:
        found.append("empty")
    if len(phrases) > _PHRASES:
        found.append("too many phrases")
    if any(count_words(p) > _PHRASE_WORDS for p in phrases):
        found.append("phrase too long")
    return found


def _tag_faults(text: str) -> list[str]:
    """ONCE, items: a description behind its tag."""
    before, tag, after = text.partition("[description]")
    if not tag or before.strip():
        return ["no [description] tag in front"]
    return [] if after.strip() else ["empty"]
