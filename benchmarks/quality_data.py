"""What the quality study tells its models: MovieLens-100K in the words of the small model's own
prompts, and as records for a built-in template.

What the model may be told of a user lies in front of the cut (`draftrec.data.events`), so that no
click sample is foretold by its own event.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from common import SHARED

from draftrec.data.events import CutSettings, EventColumns, histories, read_events

RATINGS = SHARED / "data/interactions/ml100k_ratings.parquet"
MOVIES = SHARED / "data/items/ml100k_movies.parquet"
#: Directors and casts, by title; and prompts as the small model was trained on them.
FACTS = SHARED / "data/items/ml1m_movies.parquet"
OTHER_USERS = SHARED / "data/texts/gear_ml1m_user.parquet"
PROFILES = SHARED / "data/profiles.parquet"
#: The column names of the ratings.
COLUMNS = ("--user-column", "user", "--item-column", "movie", "--time-column", "ts")
#: Rated 4 or better, the last of the history: as many as the model's prompts list.
_LIKED, _MOST = 4, 12
#: Of a user's history, in records.
_LONGEST = 15
_GENRES = {"Children": "Children's"}
_ARTICLE = re.compile(r"^(.*), (The|A|An)( \(\d{4}\))$")


@dataclass(frozen=True, slots=True)
class Files:
    """Where the study's inputs are written: prompts per side, the movies' genres and titles."""

    users: Path
    movies: Path
    items: Path
    titles: Path

    @classmethod
    def in_folder(cls, folder: Path) -> Files:
        """The names in a folder."""
        return cls(*(folder / f"{field.name}.jsonl" for field in fields(cls)))


def write_inputs(folder: Path) -> Files:
    """Prompts of all users and movies; the movies as `draftrec ctr` and `compare` read them."""
    files, movies = Files.in_folder(folder), _known_movies()
    _write(files.users, _users(movies))
    _write(files.movies, _movies(movies))
    _write_items(files, movies)
    return files


def write_records(folder: Path, others: int, seed: int) -> Files:
    """Records of all users and of the movies that facts are known of; and of as many `others`:
    users of MovieLens-1M, and movies that MovieLens-100K does not have."""
    files, movies, facts = Files.in_folder(folder), _known_movies(), _facts()
    _write_items(files, movies)
    users = (
        _user(r["entity_id"], [_entry(h) for h in r["history"] if "genres" in h])
        for r in _histories(movies)
    )
    _write(files.users, users)
    known = {number: m for number, m in movies.items() if m["title"] in facts}
    _write(files.movies, (_movie(n, m, facts[m["title"]]) for n, m in known.items()))
    titles = {m["title"] for m in movies.values()}
    unseen = [m for title, m in facts.items() if title not in titles]
    random.Random(seed).shuffle(unseen)
    split = ({**m, "genres": m["genres"].split("|")} for m in unseen[:others])
    _write(folder / "other-movies.jsonl", (_movie(f"1m-{m['movie_id']}", m, m) for m in split))
    _write(folder / "other-users.jsonl", _other_users(others, seed))
    return files


def _write_items(files: Files, movies: dict[str, dict[str, Any]]) -> None:
    """What click models and comparisons know of all movies."""
    _write(files.items, ({"movie": i, "genres": m["genres"]} for i, m in movies.items()))
    _write(files.titles, ({"item_id": i, "title": m["title"]} for i, m in movies.items()))


def _histories(movies: dict[str, dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """What lies in front of the cut, as `draftrec ctr --save-histories` has it."""
    events = read_events(str(RATINGS), EventColumns("user", "movie", "rating", "ts"))
    return histories(events, CutSettings(), movies)


def _other_users(count: int, seed: int) -> Iterator[dict[str, Any]]:
    by_number = {m["movie_id"]: m for m in _facts().values()}
    rows = pq.read_table(OTHER_USERS, columns=["entity_id", "history"]).to_pylist()
    random.Random(seed).shuffle(rows)
    for row in rows[:count]:
        found = [by_number[n] for n in row["history"] if n in by_number]
        history = [{"title": m["title"], "genres": m["genres"].split("|")} for m in found]
        yield _user(f"1m-{row['entity_id']}", history)


def _user(entity_id: str, history: list[dict[str, Any]]) -> dict[str, Any]:
    shown = history[-_LONGEST:]
    return {"entity_id": entity_id, "domain": "movies", "rating_scale": 5, "history": shown}


def _entry(event: dict[str, Any]) -> dict[str, Any]:
    return {name: event[name] for name in ("title", "genres", "rating")}


def _movie(entity_id: str, movie: dict[str, Any], facts: dict[str, Any]) -> dict[str, Any]:
    told = [
        f"{words} {facts[field].replace('|', ', ')}."
        for words, field in (("Directed by", "director"), ("With", "actors"))
        if facts.get(field)
    ]
    told += [facts["overview"]] if facts.get("overview") else []
    named = {"title": movie["title"], "genres": movie["genres"], "description": " ".join(told)}
    return {"entity_id": entity_id, "domain": "movies", **named}


def part_users(users: Path, run: Path, records: Path, others: Path, most: int = 200) -> None:
    """The first users' prompts, and the texts that the run wrote for all others."""
    rows = users.read_text().splitlines(keepends=True)
    records.write_text("".join(rows[:most]))
    here = {json.loads(row)["entity_id"] for row in rows[:most]}
    texts = pq.read_table(sorted(run.glob("part-*.parquet")), columns=["entity_id", "text"])
    _write(others, (row for row in texts.to_pylist() if row["entity_id"] not in here))


def _known_movies() -> dict[str, dict[str, Any]]:
    """MovieLens-100K's, with their articles in front and their genres in a list."""
    movies = {str(m["movie"]): m for m in pq.read_table(MOVIES).to_pylist()}
    for movie in movies.values():
        movie["title"] = _ARTICLE.sub(r"\2 \1\3", movie["title"])
        movie["genres"] = [_GENRES.get(g, g) for g in movie["genres"].split("|")]
    return movies


def _facts() -> dict[str, dict[str, Any]]:
    return {m["title"]: m for m in pq.read_table(FACTS).to_pylist()}


def _users(movies: dict[str, dict[str, Any]]) -> Iterator[dict[str, Any]]:
    head, tail = _user_prompt()
    for record in _histories(movies):
        liked = [h for h in record["history"] if h["rating"] >= _LIKED] or record["history"]
        named = [f"{h['title']} ({'|'.join(h.get('genres', []))})" for h in liked[-_MOST:]]
        yield {"entity_id": record["entity_id"], "prompt": head + "; ".join(named) + tail}


def _movies(movies: dict[str, dict[str, Any]]) -> Iterator[dict[str, Any]]:
    facts = _facts()
    head, tail = _movie_prompt(facts)
    for number, movie in movies.items():
        known = facts.get(movie["title"], {})
        parts = [f"Genres: {'|'.join(movie['genres'])}."]
        if known.get("director"):
            parts.append(f"Director: {known['director']}.")
        if known.get("actors"):
            parts.append(f"Cast: {known['actors'].replace('|', ', ')}.")
        yield {"entity_id": number, "prompt": f"{head}{movie['title']}. {' '.join(parts)}{tail}"}


def _user_prompt() -> tuple[str, str]:
    """What stands in front of the history, and behind it."""
    prompt = _sample("gear_user")
    head = prompt[: prompt.index(": ") + 2]
    return head, prompt[prompt.index("\n") :]


def _movie_prompt(facts: dict[str, Any]) -> tuple[str, str]:
    """What stands in front of the title, and behind the last full stop."""
    prompt = _sample("gear_item")
    title = max((t for t in facts if t in prompt), key=len)
    found = re.search(r"\.(\s*)$", prompt)
    return prompt[: prompt.index(title)], found.group(1) if found else ""


def _sample(task: str) -> str:
    rows = pq.read_table(PROFILES, columns=["task", "prompt"], filters=[("task", "=", task)])
    return rows["prompt"][0].as_py()


def _write(path: Path, rows: Iterator[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
