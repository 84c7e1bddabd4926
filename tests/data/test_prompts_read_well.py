"""Every built-in template with full, sparse and odd records: the whole prompt, word for word."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from draftrec.data.phrasing import listed, plural, singular, titled
from draftrec.data.templates import FRAMEWORKS, Side, load_template
from draftrec.errors import DraftrecError

#: With everything that a template knows; without all that it can do without; and as files have it:
#: nulls, NaN, numbers as floats or text, lists and MovieLens's bars, line breaks, blanks.
USERS: dict[str, dict[str, Any]] = {
    "full": {
        "domain": "movies",
        "profile": "a student, 22",
        "factors": ["plot", "mood"],
        "rating_scale": 5,
        "history": [
            {"title": "Heat", "year": 1995, "category": "crime", "rating": 4, "review": "Tense."},
            {"title": "Up", "year": 2009, "category": "family", "rating": 3.5},
        ],
    },
    "sparse": {"history": ["Heat (1995)", "Up"]},
    "odd": {
        "domain": "movie",
        "profile": None,
        "history": [
            {"title": " Heat\n(1995) ", "year": 1995.0, "genres": "Action|Crime", "rating": "8"},
            {"title": "Up", "year": float("nan"), "genres": ["Family", " "], "rating": None},
            {"title": "Ran", "category": "", "genre": "war", "rating": 6.0},
        ],
    },
}
ITEMS: dict[str, dict[str, Any]] = {
    "full": {
        "domain": "movies",
        "title": "Heat",
        "year": 1995,
        "category": "crime",
        "brand": "Warner",
        "description": "Two men, one city.",
        "factors": "plot and mood",
    },
    "sparse": {"title": "Heat"},
    "odd": {
        "domain": "movie",
        "title": "Heat (1995)",
        "year": 1995.0,
        "genres": "Action|Crime",
        "brand": " ",
        "description": ["Two men,\n one city.", "A duel."],
        "category": None,
    },
}
USER_PROMPTS = {
    ("kar", "full"): """\
A user's rated movies, oldest first:
- Heat (1995) - crime: 4 of 5
- Up (2009) - family: 3.5 of 5
About the user: a student, 22
Analyse what this user prefers in plot, mood, and explain each preference from the list.""",
    ("kar", "sparse"): """\
A user's items, oldest first:
- Heat (1995)
- Up
Analyse what this user prefers in genre, creator, style, theme, tone and pace, and explain each \
preference from the list.""",
    ("kar", "odd"): """\
A user's rated movies, oldest first:
- Heat (1995) - Action, Crime: 8 of 10
- Up (Family)
- Ran (war): 6 of 10
Analyse what this user prefers in genre, creator, style, theme, tone and pace, and explain each \
preference from the list.""",
    ("trawl", "full"): """\
This user's movies, with category and rating:
- Heat (1995) | crime | 4 of 5
- Up (2009) | family | 3.5 of 5
Summarise the user's taste in plot, mood, one line each with the reason.""",
    ("trawl", "sparse"): """\
This user's items:
- Heat (1995)
- Up
Summarise the user's taste in genre, theme and tone, one line each with the reason.""",
    ("trawl", "odd"): """\
This user's movies, with category and rating:
- Heat (1995) | Action, Crime | 8 of 10
- Up | Family
- Ran | war | 6 of 10
Summarise the user's taste in genre, theme and tone, one line each with the reason.""",
    ("once", "full"): """\
Movies a user chose:
- Heat (1995) - crime
- Up (2009) - family
Name the user's interests in at most five words or short phrases, separated by commas. Write \
nothing else.""",
    ("once", "sparse"): """\
Items a user chose:
- Heat (1995)
- Up
Name the user's interests in at most five words or short phrases, separated by commas. Write \
nothing else.""",
    ("once", "odd"): """\
Movies a user chose:
- Heat (1995) - Action, Crime
- Up (Family)
- Ran (war)
Name the user's interests in at most five words or short phrases, separated by commas. Write \
nothing else.""",
    ("rlmrec", "full"): """\
Movies this user interacted with:
{"title": "Heat (1995)", "category": "crime", "rating": "4 of 5", "review": "Tense."}
{"title": "Up (2009)", "category": "family", "rating": "3.5 of 5"}
Answer in JSON: "summarization", at most 100 words on what the user is likely to enjoy, and \
"reasoning", why.""",
    ("rlmrec", "sparse"): """\
Items this user interacted with:
{"title": "Heat (1995)"}
{"title": "Up"}
Answer in JSON: "summarization", at most 100 words on what the user is likely to enjoy, and \
"reasoning", why.""",
    ("rlmrec", "odd"): """\
Movies this user interacted with:
{"title": "Heat (1995)", "category": "Action, Crime", "rating": "8 of 10"}
{"title": "Up", "category": "Family"}
{"title": "Ran", "category": "war", "rating": "6 of 10"}
Answer in JSON: "summarization", at most 100 words on what the user is likely to enjoy, and \
"reasoning", why.""",
}
ITEM_PROMPTS = {
    ("kar", "full"): """\
Movie: Heat (1995)
Category: crime
Brand: Warner
About: Two men, one city.
Introduce it and describe its plot and mood.""",
    ("kar", "sparse"): """\
Item: Heat
Introduce it and describe its genre, creator, style, theme, tone, pace and audience.""",
    ("kar", "odd"): """\
Movie: Heat (1995)
Category: Action, Crime
About: Two men, one city. A duel.
Introduce it and describe its genre, creator, style, theme, tone, pace and audience.""",
    ("trawl", "full"): """\
Known: Two men, one city.
Write a description of the movie "Heat (1995)", category crime, brand Warner.""",
    ("trawl", "sparse"): 'Write a description of the item "Heat".',
    ("trawl", "odd"): """\
Known: Two men, one city. A duel.
Write a description of the movie "Heat (1995)", category Action, Crime.""",
    ("once", "full"): """\
Title: Heat (1995)
Category: crime
Brand: Warner
Notes: Two men, one city.
Describe this entry of a catalogue of movies neutrally and briefly. Begin the answer with \
[description].""",
    ("once", "sparse"): """\
Title: Heat
Describe this entry of a catalogue of items neutrally and briefly. Begin the answer with \
[description].""",
    ("once", "odd"): """\
Title: Heat (1995)
Category: Action, Crime
Notes: Two men, one city. A duel.
Describe this entry of a catalogue of movies neutrally and briefly. Begin the answer with \
[description].""",
    ("rlmrec", "full"): """\
Movie: {"title": "Heat (1995)", "category": "crime", "brand": "Warner", \
"description": "Two men, one city."}
Answer in JSON: "summarization", at most 200 words on which users would enjoy it, and \
"reasoning", at most 200 words on why.""",
    ("rlmrec", "sparse"): """\
Item: {"title": "Heat"}
Answer in JSON: "summarization", at most 200 words on which users would enjoy it, and \
"reasoning", at most 200 words on why.""",
    ("rlmrec", "odd"): """\
Movie: {"title": "Heat (1995)", "category": "Action, Crime", \
"description": "Two men, one city. A duel."}
Answer in JSON: "summarization", at most 200 words on which users would enjoy it, and \
"reasoning", at most 200 words on why.""",
}


@pytest.mark.parametrize("kind", ["full", "sparse", "odd"])
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_users(framework: str, kind: str) -> None:
    prompt = load_template(framework, "user").render(USERS[kind])
    assert prompt == USER_PROMPTS[framework, kind]


@pytest.mark.parametrize("kind", ["full", "sparse", "odd"])
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_items(framework: str, kind: str) -> None:
    prompt = load_template(framework, "item").render(ITEMS[kind])
    assert prompt == ITEM_PROMPTS[framework, kind]


@pytest.mark.parametrize("blank", ["", " \n", [], [None, ""]])
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_blank_fields_are_missing_ones(framework: str, blank: Any) -> None:
    blanks = dict.fromkeys(("domain", "profile", "factors", "rating_scale", "brand"), blank)
    user, item = (load_template(framework, side) for side in ("user", "item"))
    assert user.render(USERS["sparse"] | blanks) == USER_PROMPTS[framework, "sparse"]
    assert item.render(ITEMS["sparse"] | blanks) == ITEM_PROMPTS[framework, "sparse"]


@pytest.mark.parametrize(
    ("ratings", "scale", "said"),
    [
        ([4, 5], None, ["4 of 5", "5 of 5"]),
        ([4, 9], None, ["4 of 10", "9 of 10"]),
        ([4, 85.5], None, ["4 of 100", "85.5 of 100"]),
        ([4, 5], 10, ["4 of 10", "5 of 10"]),
        ([4], "7", ["4 of 7"]),
        ([1, 0], None, ["1", "0"]),  # thumbs or clicks, on no scale that is known
        ([1, -1], None, ["1", "-1"]),
        ([4, -4.5], None, ["4", "-4.5"]),
        ([True, False], None, ["liked", "disliked"]),
        (["good", 3], None, ["good", "3 of 5"]),
        ([500], None, ["500"]),
        ([np.float32(2.5)], None, ["2.5 of 5"]),
    ],
)
def test_ratings_say_their_scale(ratings: list[Any], scale: Any, said: list[str]) -> None:
    history = [{"title": "T", "rating": rating} for rating in ratings]
    prompt = load_template("kar", "user").render({"history": history, "rating_scale": scale})
    assert prompt.splitlines()[1:-1] == [f"- T: {words}" for words in said]


def test_what_pandas_holds_reads_like_lists() -> None:
    rows = [{"title": "Heat", "rating": np.int64(4)}, {"title": "Up", "rating": np.float64("nan")}]
    record = {"history": np.array(rows, object)}
    prompt = load_template("trawl", "user").render(record)
    assert prompt.splitlines()[1:-1] == ["- Heat | 4 of 5", "- Up"]


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize(
    ("history", "reason"),
    [
        ([], "the history is empty"),
        ([50, 172], "entry 1 of the history is 50, not a title"),
        (["Heat", None], "entry 2 of the history is None, not a title"),
        (["Heat", " "], "entry 2 of the history has no title"),
        ([{"item_id": 3}], "entry 1 of the history has no title"),
    ],
)
def test_a_history_that_says_nothing_is_refused(
    framework: str, history: list[Any], reason: str
) -> None:
    with pytest.raises(DraftrecError, match=reason):
        load_template(framework, "user").render({"history": history})


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_an_item_without_a_title_is_refused(framework: str) -> None:
    with pytest.raises(DraftrecError, match="the title is empty"):
        load_template(framework, "item").render({"title": "  "})


def test_a_rating_above_the_scale_is_refused() -> None:
    template = load_template("kar", "user")
    history = [{"title": "Heat", "rating": 8}]
    with pytest.raises(DraftrecError, match="rated 8, above the rating_scale 5"):
        template.render({"history": history, "rating_scale": 5})
    with pytest.raises(DraftrecError, match="rating_scale is 'stars'"):
        template.render({"history": history, "rating_scale": "stars"})


@pytest.mark.parametrize(
    ("many", "one"),
    [
        ("movies", "movie"), ("books", "book"), ("stories", "story"), ("dresses", "dress"),
        ("dishes", "dish"), ("boxes", "box"), ("news", "news"), ("series", "series"),
        ("video games", "video game"), ("Video Games", "Video Game"),
        ("shoes", "shoe"), ("houses", "house"), ("people", "person"), ("anime", "anime"),
    ],
)  # fmt: skip
def test_nouns_in_one_and_many(many: str, one: str) -> None:
    assert (singular(many), singular(one)) == (one, one)
    assert (plural(many), plural(one)) == (many, many)


@pytest.mark.parametrize("noun", ["Movies & TV", "CDs and vinyl", "TV"])
def test_nouns_that_are_left_alone(noun: str) -> None:
    assert singular(noun) == plural(noun) == noun


def test_small_words() -> None:
    assert singular("CDs") == "CD"
    assert (singular(["movies"]), plural("movie|book")) == ("movie", "movie, book")
    assert listed([["Books", "Fiction"], "Crime|War"]) == "Books, Fiction, Crime, War"
    assert listed([["Books", "Fiction"], ["Books", "War"]]) == "Books, Fiction, War"
    assert titled("Blade Runner 2049", 2017) == "Blade Runner 2049 (2017)"
    assert titled("1984 (1984)", "1984") == "1984 (1984)"


@pytest.mark.parametrize("side", ["user", "item"])
def test_rlmrec_alone_comes_with_a_schema(side: Side) -> None:
    schema = json.loads(load_template("rlmrec", side).schema or "")
    assert schema["required"] == ["summarization", "reasoning"]
    assert [load_template(name, side).schema for name in ("kar", "trawl", "once")] == [None] * 3
