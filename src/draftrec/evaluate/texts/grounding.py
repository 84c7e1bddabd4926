"""Entity grounding: do the titles that a text names come from its own entity's prompt?

A pool drafts what was written of others. Under relaxed verification a title of another entity's
history may so slip into a text ("leakage through the pool"). What a text names is

*grounded* in the entity's own prompt; *leaked* where no own prompt but another entity's prompt of
the run holds it; *foreign* where no prompt holds it: the model may know the title by itself or
invent it, which cannot be told apart.

A model alone also names famous titles that happen to stand in other prompts. So leaked titles mean
nothing by themselves; what counts against a run is their excess over the baseline's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from draftrec.data.tables.readers import Row, open_records
from draftrec.errors import DraftrecError
from draftrec.evaluate.texts.quality import Ratio, mean_of
from draftrec.evaluate.texts.titles import TitleMatcher, common_titles, history_text, named_titles

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
