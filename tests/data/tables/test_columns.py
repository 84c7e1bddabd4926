"""Which column is meant: named, usual, or a synonym; and what is said where none is."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from draftrec.data.tables.columns import ITEM, RATING, TIME, USER, find_column, need_columns
from draftrec.data.tables.readers import RecordSource, open_records
from draftrec.errors import DraftrecError


def source(folder: Path, *names: str) -> RecordSource:
    path = folder / "rows.jsonl"
    path.write_text(json.dumps(dict.fromkeys(names, 1)) + "\n")
    return open_records(path)


@pytest.mark.parametrize(
    "names",
    [
        ("user_id", "item_id", "rating", "timestamp"),
        ("userId", "movieId", "rating", "timestamp"),
        ("user", "item", "stars", "ts"),
        ("reviewerID", "asin", "overall", "unixReviewTime"),
        ("UID", "SKU", "Score", "Event Time"),
    ],
)
def test_names_that_people_use_are_known(
    tmp_path: Path, names: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    rows = source(tmp_path, *names, "more")
    with caplog.at_level(logging.INFO, "draftrec"):
        found = [find_column(rows, kind) for kind in (USER, ITEM, RATING, TIME)]
    assert found == list(names)
    for usual, name in zip(("user_id", "item_id", "rating", "timestamp"), names, strict=True):
        said = f"column {name!r} is read as {usual}" in caplog.text
        assert said == (name != usual)


def test_the_usual_name_goes_before_synonyms_and_a_named_one_before_both(tmp_path: Path) -> None:
    rows = source(tmp_path, "user_id", "user", "asin", "sku")
    assert find_column(rows, USER) == "user_id"
    assert find_column(rows, USER, "user") == "user"
    assert find_column(rows, ITEM, "sku") == "sku"
    assert find_column(rows, TIME) is None
    with pytest.raises(DraftrecError, match=r"'asin' and 'sku' could both be meant; .*--item-col"):
        find_column(rows, ITEM)
    with pytest.raises(DraftrecError, match=r"no column 'who', it has user_id.*--user-column"):
        find_column(rows, USER, "who")


def test_what_is_missing_is_said_with_what_is_there(tmp_path: Path) -> None:
    rows = source(tmp_path, "a", "item_id")
    words = r"no column 'user_id', it has a, item_id; events; name other columns with --user-column"
    with pytest.raises(DraftrecError, match=words):
        need_columns(rows, [(USER, None), (ITEM, None)], "events")
