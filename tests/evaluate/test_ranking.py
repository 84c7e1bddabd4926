"""Recall and NDCG: hand-computed values, a slow reference, and files of recommendations."""

from __future__ import annotations

import json
from math import log2
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from draftrec.errors import DraftrecError
from draftrec.evaluate.ranking import (
    evaluate_recommendations,
    multi_target,
    single_target,
)


def arrays(*lists: list[int]) -> list[np.ndarray]:
    return [np.array(items, np.int64) for items in lists]


def slow_scores(
    recommended: list[list[int]], targets: list[list[int]], k: int
) -> tuple[float, float]:
    """Recall@k and NDCG@k as the papers word them, one user at a time."""
    recalls, ndcgs = [], []
    for items, wanted in zip(recommended, targets, strict=True):
        true = set(wanted)
        gains = [
            1 / log2(place + 2)
            for place, item in enumerate(items[:k])
            if item in true and item not in items[:place]
        ]
        ideal = sum(1 / log2(place + 2) for place in range(min(len(true), k)))
        recalls.append(len(gains) / len(true))
        ndcgs.append(sum(gains) / ideal)
    return sum(recalls) / len(recalls), sum(ndcgs) / len(ndcgs)


def test_several_targets_by_hand() -> None:
    # Places 1 and 3 of the first user are among three targets; the second user has no hit.
    scores = multi_target(arrays([7, 1, 9, 2], [5, 6, 7, 8]), arrays([9, 7, 4], [1]), [1, 2, 3, 4])
    assert scores.recall == pytest.approx({1: 1 / 6, 2: 1 / 6, 3: 1 / 3, 4: 1 / 3})
    first = 1.0
    third = 1 / log2(4)
    ideal = {1: 1.0, 2: 1 + 1 / log2(3), 3: 1 + 1 / log2(3) + 1 / 2, 4: 1 + 1 / log2(3) + 1 / 2}
    gained = {1: first, 2: first, 3: first + third, 4: first + third}
    assert scores.ndcg == pytest.approx({k: gained[k] / ideal[k] / 2 for k in ideal})
    assert (scores.definition, scores.users, scores.short_lists) == ("multi", 2, 0)


def test_one_target_by_hand() -> None:
    # The first target is 9, on place 3; that 7 was taken later does not count.
    scores = single_target(arrays([7, 1, 9, 2]), arrays([9, 7]), [1, 3, 5])
    assert scores.recall == {1: 0.0, 3: 1.0, 5: 1.0}
    assert scores.ndcg == pytest.approx({1: 0.0, 3: 1 / log2(4), 5: 1 / log2(4)})
    assert (scores.definition, scores.short_lists) == ("single", 1)


def test_a_perfect_list_scores_one() -> None:
    scores = multi_target(arrays([3, 1, 2], [4, 5, 6]), arrays([1, 2, 3], [4]), [1, 3])
    assert scores.ndcg == {1: 1.0, 3: 1.0}
    assert scores.recall == {1: pytest.approx((1 / 3 + 1) / 2), 3: 1.0}


ITEMS = st.lists(st.integers(-3, 12), max_size=9)
TARGETS = st.lists(st.integers(-3, 12), min_size=1, max_size=6)


@pytest.mark.slow
@given(st.lists(st.tuples(ITEMS, TARGETS), min_size=1, max_size=8), st.integers(1, 12))
def test_scores_equal_a_slow_reference(users: list[tuple[list[int], list[int]]], k: int) -> None:
    recommended, targets = [list(side) for side in zip(*users, strict=True)]
    got = multi_target(arrays(*recommended), arrays(*targets), [k])
    assert (got.recall[k], got.ndcg[k]) == pytest.approx(slow_scores(recommended, targets, k))
    got = single_target(arrays(*recommended), arrays(*targets), [k])
    firsts = [wanted[:1] for wanted in targets]
    assert (got.recall[k], got.ndcg[k]) == pytest.approx(slow_scores(recommended, firsts, k))


def test_unusable_arguments_are_refused() -> None:
    with pytest.raises(DraftrecError, match="without targets"):
        multi_target(arrays([1], [2]), arrays([1], []))
    with pytest.raises(DraftrecError, match="without targets"):
        multi_target([], [])
    with pytest.raises(ValueError, match="positive"):
        multi_target(arrays([1]), arrays([1]), [0, 1])
    with pytest.raises(ValueError, match="do not fit"):
        multi_target(arrays([1]), arrays([1], [2]))


class Files:
    """Recommendations and sequences in a folder."""

    def __init__(self, folder: Path) -> None:
        self.lists, self.sequences = folder / "lists.jsonl", folder / "sequences.jsonl"
        self.write(self.lists, {"user": 1, "items": [5, 3, 9]}, {"user": 2, "items": [4, None, 7]})
        self.write(
            self.sequences,
            {"user": 1, "items": [1, 2], "part": "train"},
            {"user": 1, "items": [3, 8], "part": "test"},
            {"user": 2, "items": [7], "part": "test"},
            {"user": 2, "items": [9], "part": "valid"},
        )

    @staticmethod
    def write(path: Path, *rows: dict[str, Any]) -> None:
        path.write_text("\n".join(map(json.dumps, rows)))

    def refuse(self, words: str, **more: Any) -> None:
        with pytest.raises(DraftrecError, match=words):
            evaluate_recommendations(self.lists, self.sequences, **{"ks": [1, 3], **more})


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def test_a_file_of_recommendations_is_scored(files: Files) -> None:
    found = evaluate_recommendations(files.lists, files.sequences, ks=[3, 1]).summary()
    assert found["recall@3"] == (1 / 2 + 1) / 2
    assert found["ndcg@3"] == pytest.approx((1 / log2(3) / (1 + 1 / log2(3)) + 1 / log2(4)) / 2)
    assert found["recall@1"] == 0
    assert (found["users"], found["part"], found["definition"]) == (2, "test", "multi")
    found = evaluate_recommendations(
        files.lists, files.sequences, ks=[3], definition="single"
    ).summary()
    assert found["recall@3"] == 1.0
    assert list(found)[:4] == ["part", "definition", "users", "short_lists"]


def test_users_without_a_counterpart_are_counted_apart(files: Files) -> None:
    files.write(files.lists, {"user": 2, "items": [7, 1]}, {"user": 3, "items": [1, 2, 3]})
    found = evaluate_recommendations(files.lists, files.sequences, ks=[2])
    assert (found.scores.users, found.without_targets, found.without_list) == (1, 1, 1)
    assert found.scores.recall == {2: 1.0}


def test_another_part_has_other_targets(files: Files) -> None:
    found = evaluate_recommendations(files.lists, files.sequences, ks=[1], part="valid")
    assert (found.scores.users, found.without_targets) == (1, 1)


def test_bad_files_are_refused_in_a_sentence(files: Files) -> None:
    files.refuse("at most 3 items .* k = 4", ks=[1, 4])
    files.refuse("no part 'dev'", part="dev")
    files.write(files.lists, {"user": 1, "ids": [5]})
    files.refuse("no column 'items'")
    files.write(files.lists, {"user": 9, "items": [5]})
    files.refuse("no user of .*lists.jsonl has items of part 'test'")
    files.write(files.lists, *[{"user": 1, "items": [5]}] * 2)
    files.refuse("line 2: user 1 has a list before")
    for row, words in (
        ({"user": None, "items": [5]}, "line 1: user is None, not a whole number or a text"),
        ({"user": 1, "items": [1.5]}, "line 1: items is no list of whole numbers or texts"),
        ({"user": 1, "items": 5}, "line 1: items is no list of whole numbers or texts"),
    ):
        files.write(files.lists, row)
        files.refuse(words)
    files.write(files.lists, {"user": 1, "item": 5, "score": 0.1})
    files.refuse("no column 'items'.*gather the rows of a user")


@pytest.mark.parametrize("ending", ["jsonl", "csv", "pandas.csv"])
def test_text_ids_and_csv_are_scored_alike(files: Files, tmp_path: Path, ending: str) -> None:
    wanted = evaluate_recommendations(files.lists, files.sequences, ks=[3, 1]).summary()
    spelt = {"user": "1", "items": ["5", "3", "9"]}, {"user": "2", "items": ["4", None, "7"]}
    path = tmp_path / f"other.{ending}"
    if ending == "jsonl":
        files.write(path, *spelt)
    else:
        lists = ["[5, 3, 9]", "[4, None, 7]" if "pandas" in ending else "[4, null, 7]"]
        path.write_text(f'user,items\n1,"{lists[0]}"\n2,"{lists[1]}"\n')
    assert evaluate_recommendations(path, files.sequences, ks=[3, 1]).summary() == wanted
    named = {"user_id": "1", "item_ids": ["5", "3", "9"]}
    files.write(path := tmp_path / "named.jsonl", named)
    assert evaluate_recommendations(path, files.sequences, ks=[3]).summary()["recall@3"] == 1 / 2


def test_ids_that_are_no_numbers_are_scored(files: Files) -> None:
    wanted = evaluate_recommendations(files.lists, files.sequences, ks=[3, 1]).summary()
    for path in (files.lists, files.sequences):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        for row in rows:
            row["user"] = f"u{row['user']}"
            row["items"] = [None if i is None else f"B0{i}" for i in row["items"]]
        files.write(path, *rows)
    assert evaluate_recommendations(files.lists, files.sequences, ks=[3, 1]).summary() == wanted
