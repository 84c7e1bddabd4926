"""Records of items are told from records of users, and ids are found under other names."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any, Literal

import pytest

from draftrec.config import RecordsConfig
from draftrec.data.tables.readers import RecordSource, open_records
from draftrec.data.templates import fitted_to
from draftrec.errors import DraftrecError

USER = {"entity_id": 1, "history": ["Heat"]}
ITEM = {"entity_id": 1, "title": "Heat"}


def source(folder: Path, row: dict[str, Any]) -> RecordSource:
    path = folder / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n")
    return open_records(path)


@pytest.mark.parametrize("framework", ["kar", "trawl", "once", "rlmrec"])
@pytest.mark.parametrize(
    ("row", "asked", "taken"),
    [
        (USER, "user", "user"),
        (ITEM, "item", "item"),
        (ITEM, "user", "item"),
        ({**USER, **ITEM}, "user", "user"),
        ({**USER, **ITEM}, "item", "item"),
        ({"entity_id": 1, "prompt": "p"}, "user", "user"),
    ],
)
def test_the_side_follows_from_the_columns(
    tmp_path: Path,
    framework: str,
    row: dict[str, Any],
    asked: Literal["user", "item"],
    taken: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO, "draftrec"):
        records = RecordsConfig(template=framework, side=asked)
        found = fitted_to(source(tmp_path, row), records)
    assert found.side == taken
    assert ("its records are of items" in caplog.text) == (asked != taken)


def test_users_are_not_taken_for_items(tmp_path: Path) -> None:
    with pytest.raises(DraftrecError, match="its records are of users; leave --side item out"):
        fitted_to(source(tmp_path, USER), RecordsConfig(template="kar", side="item"))


def test_templates_of_ones_own_have_no_side(tmp_path: Path) -> None:
    own = RecordsConfig(template=str(tmp_path / "own.j2"))
    assert fitted_to(source(tmp_path, ITEM), own) == own
    assert fitted_to(source(tmp_path, ITEM), RecordsConfig()) == RecordsConfig()


def test_ids_are_found_under_other_names(tmp_path: Path) -> None:
    for name in ("id", "user_id", "asin", "movieId"):
        found = fitted_to(source(tmp_path, {name: 1, "prompt": "p"}), RecordsConfig())
        assert found.id_column == name
    named = RecordsConfig(id_column="who")
    assert fitted_to(source(tmp_path, {"id": 1, "who": 2}), named).id_column == "who"
    with pytest.raises(DraftrecError, match=r"'id' and 'asin' could both be meant; .*--id-column"):
        fitted_to(source(tmp_path, {"id": 1, "asin": 2}), RecordsConfig())
