"""Files that do not speak of the same entities say so, with counts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from draftrec.data.records import EntityReader, GroupTable
from draftrec.data.tables.columns import Join
from draftrec.data.tables.readers import open_records
from draftrec.errors import DraftrecError


def lines(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def reader(tmp_path: Path, groups: list[str], **options: Any) -> EntityReader:
    """Ten records, 0 to 9, with a groups file that lists `groups`."""
    entities = [{"entity_id": i, "prompt": "p"} for i in range(10)]
    source = open_records(lines(tmp_path / "x.jsonl", *entities))
    listed = ({"entity_id": name, "group": "g"} for name in groups)
    table = GroupTable.load(lines(tmp_path / "g.jsonl", *listed))
    return EntityReader(source, groups=table, **options)


def test_groups_of_nobody_are_refused_and_the_difference_is_named(tmp_path: Path) -> None:
    with pytest.raises(DraftrecError) as caught:
        reader(tmp_path, [f"{i}.0" for i in range(10)]).check_ids()
    message = str(caught.value)
    assert "none of the 10 records of" in message
    files = (tmp_path / "x.jsonl", tmp_path / "g.jsonl")
    assert "'0' of {} and '0.0' of {} (whole numbers written with .0)".format(*files) in message
    assert "\n" not in message


def test_groups_of_few_are_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    reader(tmp_path, ["1", "2", "3", "4"]).check_ids()
    assert "6 of the 10 records of" in caplog.text
    caplog.clear()
    reader(tmp_path, ["1", "2", "3", "4", "5"]).check_ids()
    assert not caplog.text


def test_a_few_records_may_have_no_group(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    reader(tmp_path, ["7", "8", "9"], limit=2).check_ids()
    assert "2 of the 2 records" in caplog.text


def test_an_entity_listed_without_a_group_is_known(tmp_path: Path) -> None:
    rows = [{"entity_id": i, "group": None} for i in range(10)]
    table = GroupTable.load(lines(tmp_path / "g.jsonl", *rows))
    assert table.get("3") is None
    assert table.knows(["3", "10", "\ud800"]).tolist() == [True, False, False]


def test_known_ids_are_found_in_bulk(tmp_path: Path) -> None:
    rows = [{"entity_id": f"u{i}", "group": f"g{i % 3}"} for i in range(500)]
    table = GroupTable.load(lines(tmp_path / "g.jsonl", *rows))
    ids = [f"u{i}" for i in range(0, 1000, 7)]
    assert table.knows(ids).tolist() == [int(i[1:]) < 500 for i in ids]


def test_a_join_counts_either_way(caplog: pytest.LogCaptureFixture) -> None:
    join = Join("items", "a.csv", "b.csv", "B001")
    join.saw("1", known=False)
    join.saw_all(["2", "B001"], np.array([False, True]))
    join.check()
    assert "2 of the 3 items of a.csv are not in b.csv" in caplog.text
    assert "'1' of a.csv and 'B001' of b.csv; write them alike" in caplog.text
    Join("items", "a", "b").check()
