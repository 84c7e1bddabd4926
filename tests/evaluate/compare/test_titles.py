"""Titles in texts, and whose they are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from draftrec.errors import DraftrecError
from draftrec.evaluate.compare.grounding import (
    Catalogue,
    TitleMatcher,
    common_titles,
    ground,
    history_text,
    named_titles,
    read_catalogue,
    read_prompts,
)

TITLES = [
    "Heat (1995)", "Matrix, The (1999)", "The Matrix Reloaded", "Seven (Se7en) (1995)", "Up",
    "Schindler's List (1993)", "Speed", "X-Men", "无间道（2002）", "霸王别姬 (1993)", "英雄",
    "X战警", "千と千尋の神隠し", "องค์บาก", "दंगल",
]  # fmt: skip


def names(text: str, titles: list[str] | None = None) -> list[str]:
    matcher = TitleMatcher(TITLES if titles is None else titles)
    return [matcher.names[m.title] for m in matcher.find(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("They loved THE MATRIX, and *Heat*.", ["Matrix, The (1999)", "Heat (1995)"]),
        ("Matrix alone is another word", []),
        ("The Matrix Reloaded (2003)", ["The Matrix Reloaded"]),
        ("Se7en and Seven", ["Seven (Se7en) (1995)"] * 2),
        ("Heat's pace, Schindler\u2019s List", ["Heat (1995)", "Schindler's List (1993)"]),
        ("Heating up in a wheatfield", []),
        ("X-Men", ["X-Men"]),
        ("Up", []),
        ("", []),
        ("他喜欢《无间道》和霸王别姬", ["无间道（2002）", "霸王别姬 (1993)"]),
        ("英雄很好看", []),
        ("X战警好看", ["X战警"]),
        ("『千と千尋の神隠し』が好き", ["千と千尋の神隠し"]),
        ("เขาชอบองค์บากมาก", ["องค์บาก"]),
        ("उसे दंगल पसंद है", ["दंगल"]),
    ],
)
def test_whole_titles_are_found(text: str, expected: list[str]) -> None:
    assert names(text) == expected


def test_short_titles_are_counted_and_equal_titles_are_one() -> None:
    matcher = TitleMatcher([*TITLES, "heat", "It", "M"])
    assert matcher.too_short == 4
    assert len(matcher) == 13


def test_words_of_the_language_prove_nothing() -> None:
    matcher = TitleMatcher(TITLES)
    common = common_titles(matcher, ["plots of great speed", "in the heat", "Speed"])
    assert {matcher.names[t] for t in common} == {"Speed", "Heat (1995)"}
    found = named_titles(matcher, "Speed, The Matrix and the matrix reloaded", common)
    assert {matcher.names[t] for t in found} == {"Matrix, The (1999)"}


def test_titles_are_own_anothers_or_nobodys() -> None:
    catalogue = Catalogue(TitleMatcher(TITLES), {})
    prompts = ["Heat; The Matrix", "X-Men", "nothing"]
    study = ground(catalogue, prompts, ["", "", ""])
    texts = ["Heat and X-Men and Speed", "X-Men, X-Men", "The Matrix"]
    found = study.measures(texts)
    assert found["titles_named"].numerators.tolist() == [3, 1, 1]
    assert found["titles_grounded"].value == 2 / 5
    assert found["titles_leaked"].numerators.tolist() == [1, 0, 1]
    assert found["titles_foreign"].numerators.tolist() == [1, 0, 0]


def test_histories_may_list_titles_objects_or_item_ids() -> None:
    by_item = {"7": "Heat (1995)"}
    assert history_text(["Speed", {"title": "X-Men"}, 7], by_item) == "Speed\nX-Men\nHeat (1995)"
    assert history_text("as it is", by_item) == "as it is"
    assert history_text(None, by_item) == ""


def write(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_catalogue_and_prompts_are_read_by_entity(tmp_path: Path) -> None:
    items = write(tmp_path / "i.jsonl", [{"movie_id": 7, "title": "Heat (1995)"}, {"title": None}])
    catalogue = read_catalogue(items)
    assert catalogue.by_item == {"7": "Heat (1995)"}
    rows = [
        {"entity_id": 2, "history": [7]},
        {"entity_id": "1", "prompt": "told", "title": "Speed"},
        {"entity_id": 3, "prompt": None},
    ]
    path = write(tmp_path / "p.jsonl", rows)
    assert read_prompts(path, ["1", "2"], catalogue.by_item) == ["told\nSpeed", "Heat (1995)"]
    with pytest.raises(DraftrecError, match=r"p.jsonl line 3: neither prompt nor history"):
        read_prompts(path, ["3"], {})
    with pytest.raises(DraftrecError, match="no record of 1 compared entities"):
        read_prompts(path, ["1", "9"], {})


def test_a_catalogue_of_short_titles_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DraftrecError, match="no title that can be looked for"):
        read_catalogue(write(tmp_path / "i.jsonl", [{"title": "Up"}]))
