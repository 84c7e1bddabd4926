"""Every command that the page "Your data" has for a public data set, on an imitation of its files:
the histories are those that are known to be in them."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from draftrec.cli.main import run
from tests.cli import public_datasets as public

PAGE = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
SECTION = PAGE[PAGE.index("## Public data sets") : PAGE.index("## Files elsewhere")]
ROWS = {
    name.strip(): re.findall(r"`((?:draftrec|awk) [^`]+)`", commands)
    for name, commands in re.findall(r"^\| (.+?) \| (.+) \|$", SECTION, re.MULTILINE)
}
PYTHON = "".join(re.findall(r"^```python\n(.*?)^```", SECTION, re.MULTILINE | re.DOTALL))


def _named(mark: str) -> Callable[[int], Any]:
    return lambda number: f"{mark}{number}"


def _number(number: int) -> Any:
    return number


A = _named("A")
#: What writes the files of each, and what users and items are called there.
KNOWN: dict[str, tuple[Callable[[], None], Callable[[int], Any], Callable[[int], Any]]] = {
    "MovieLens 20M, 25M, 32M, latest": (public.movielens, _number, _number),
    "MovieLens 1M, 10M": (public.movielens_1m, _number, _number),
    "MovieLens 100K": (public.movielens_100k, _number, _number),
    "RecBole's atomic files": (public.recbole, _number, _number),
    "Amazon 2014": (public.amazon_2014, A, public.asin),
    "Amazon 2014, ratings only": (public.amazon_ratings, A, public.asin),
    "Amazon 2018": (public.amazon_2018, A, public.asin),
    "Amazon 2023": (public.amazon_2023, A, public.asin),
    "Yelp": (public.yelp, A, public.asin),
    "Goodreads": (public.goodreads, A, str),
    "Book-Crossing": (public.book_crossing, _number, public.asin),
    "Steam": (public.steam, A, str),
    "H&M": (public.hm, A, lambda item: f"0{item}00001"),
    "Netflix prize": (public.netflix, _number, _number),
    "Taobao's UserBehavior": (public.taobao, _number, _number),
    "KuaiRec": (public.kuairec, _number, _number),
    "KuaiRand": (public.kuairand, _number, _number),
    "Tenrec": (public.tenrec, _number, _number),
    "Last.fm 1K": (public.lastfm, A, _named("t")),
    "Foursquare": (public.foursquare, _number, _named("v")),
    "MIND": (public.mind, A, _named("N")),
    "Parquet of Spark, partitioned or not": (public.spark, A, _number),
    "a data set of Hugging Face's `save_to_disk`": (public.hugging_face, _number, _number),
    "JSON that BigQuery exported": (public.bigquery, str, str),
}
#: Of these nobody knows how much a user liked something.
UNRATED = ("Steam", "H&M", "MIND")
#: What a row of the data set's items says of their kinds, where it is not all of them.
FIRST_KIND, NO_KINDS = ("H&M", "MIND"), ("MovieLens 100K", "Goodreads", "Book-Crossing")


def test_the_page_and_the_imitations_are_of_the_same_data_sets() -> None:
    assert [name for name, commands in ROWS.items() if commands] == [*KNOWN]


def typed(commands: list[str]) -> None:
    for command in commands:
        words = shlex.split(command)
        if words[0] == "draftrec":
            assert run(words[1:]) == 0, command
        else:
            subprocess.run(["bash", "-ec", command], check=True)


@pytest.mark.parametrize("name", KNOWN)
def test_the_commands_of_the_page_find_what_is_there(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write, user, item = KNOWN[name]
    write()
    if name == "MIND":
        pytest.importorskip("pandas")
        exec(compile(PYTHON, "docs/data.md", "exec"), {})
    typed(ROWS[name])
    wanted: dict[Any, list[tuple[int, int]]] = {}
    for who, what, rating, _ in public.TOOK:
        wanted.setdefault(user(who), []).append((what, rating))
    if Path("users.parquet").exists():
        rows = pq.read_table("users.parquet").to_pylist()
        assert {r["entity_id"]: r["history"] for r in rows} == {
            who: [_entry(name, what, rating) for what, rating in took]
            for who, took in wanted.items()
        }
        return
    found: dict[Any, dict[str, list[Any]]] = {}
    for row in pq.read_table("sequences.parquet").to_pylist():
        found.setdefault(row["user"], {})[row["part"]] = row["items"]
    lists = {who: [item(what) for what, _ in took] for who, took in wanted.items()}
    assert found == {
        who: {"train": took[:-2], "valid": took[-2:-1], "test": took[-1:]}
        for who, took in lists.items() if len(took) > 2
    }  # fmt: skip


def _entry(name: str, item: int, rating: int) -> dict[str, Any]:
    entry: dict[str, Any] = {"title": public.title(item)}
    if name not in NO_KINDS:
        kinds = public.kinds(item)[: 1 if name in FIRST_KIND else None]
        entry["category"] = ", ".join(["Beauty", *kinds] if name == "Amazon 2014" else kinds)
    years = {"Goodreads": "2005", "Book-Crossing": "1999", "RecBole's atomic files": "1995"}
    if name in years:
        entry["year"] = years[name]
    if name == "MIND":
        entry["rating"] = 1.0
    elif name not in UNRATED:
        entry["rating"] = float(rating)
    return entry
