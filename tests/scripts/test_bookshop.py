"""The fictional world: the same for the same seed, varied, and true to what prompts show."""

from __future__ import annotations

import json
from collections import Counter
from itertools import islice

import pytest
from bookshop.lexicon import CATEGORIES, THEMES, TITLE_WORDS, TONES
from bookshop.world import (
    World,
    is_held_out,
    knowledge_text,
    make_world,
    split_warm,
    stream_records,
)

from draftrec.data.templates import FRAMEWORKS, load_template


@pytest.fixture(scope="module")
def world() -> World:
    return make_world(seed=0, users=300, items=300)


@pytest.mark.slow
def test_same_seed_same_world(world: World) -> None:
    assert make_world(seed=0, users=300, items=300) == world
    assert make_world(seed=1, users=300, items=300) != world


def test_interactions_are_ratings_in_time_order(world: World) -> None:
    items = {item.item_id for item in world.items}
    assert {one.item_id for one in world.interactions} <= items
    assert {one.rating for one in world.interactions} <= {1, 2, 3, 4, 5}
    for user in world.users:
        moments = [one.timestamp for one in user.history]
        assert moments == sorted(moments)
        assert len({one.item_id for one in user.history}) == len(moments) >= 2


def test_groups_read_differently(world: World) -> None:
    category = {item.item_id: item.category for item in world.items}
    favourites = {}
    for group in {user.group for user in world.users}:
        read = Counter(
            category[one.item_id] for u in world.users if u.group == group for one in u.history
        )
        favourites[group] = {name for name, _ in read.most_common(2)}
    assert len(favourites) == 6
    assert len({frozenset(two) for two in favourites.values()}) >= 5


@pytest.mark.parametrize("side", ["user", "item"])
def test_records_stream_lazily_and_match_the_world(world: World, side: str) -> None:
    records = list(world.records(side))
    assert list(stream_records(side, 300, items=300)) == records
    assert list(stream_records(side, 10, start=20, items=300)) == records[20:30]
    assert next(islice(stream_records(side), 5, None))["entity_id"] == f"{side}-000005"


@pytest.mark.slow
@pytest.mark.parametrize("side", ["user", "item"])
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_texts_are_many(world: World, side: str, framework: str) -> None:
    texts = [row["text"] for row in world.texts(side, framework)]
    assert list(world.texts(side, framework))[7]["text"] == texts[7]
    assert len(set(texts)) >= (0.8 if framework == "once" else 0.95) * len(texts)
    openings = {" ".join(text.split()[:6]) for text in texts}
    assert framework != "kar" or len(openings) >= 50
    assert not any("{" in text for text in texts) or framework == "rlmrec"
    if framework == "rlmrec":
        assert all(set(json.loads(text)) == {"summarization", "reasoning"} for text in texts)


def facet_words(text: str) -> set[str]:
    text = text.lower()
    return {
        key
        for table in (THEMES, TONES)
        for key, (_, ways) in table.items()
        if any(way in text for way in ways)
    }


def test_texts_speak_of_what_the_prompt_shows(world: World) -> None:
    template = load_template("kar", "user")
    for record, row in zip(world.records("user"), world.texts("user"), strict=True):
        prompt = template.render(record)
        shown = {
            TITLE_WORDS[word][1] for word in prompt.replace("(", " ").split() if word in TITLE_WORDS
        }
        assert facet_words(row["text"]) <= shown
        assert any(name in row["text"].lower() for name in CATEGORIES if name in prompt) or any(
            alias in row["text"].lower()
            for name, entry in CATEGORIES.items()
            if name in prompt
            for alias in entry[2]
        )


def test_text_depends_on_the_record_and_the_seed(world: World) -> None:
    record = next(world.records("item"))
    other = {**record, "title": "The Gentle Waltz", "description": record["description"]}
    assert knowledge_text(record) == knowledge_text(dict(record))
    assert knowledge_text(record) != knowledge_text(other)
    assert len({knowledge_text(record, seed=seed) for seed in range(8)}) > 3


def test_title_words_name_one_facet_each() -> None:
    words = [
        w for table in (CATEGORIES, THEMES, TONES) for entry in table.values() for w in entry[0]
    ]
    assert len(words) == len(set(words)) == len(TITLE_WORDS)


def test_split_keeps_entities_apart(world: World) -> None:
    warm, held_out = split_warm(world.records("item"))
    assert len(warm) + len(held_out) == 300
    assert 30 <= len(held_out) <= 90
    assert all(is_held_out(record["entity_id"]) for record in held_out)
    assert not any(is_held_out(record["entity_id"]) for record in warm)
