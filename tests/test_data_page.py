"""The page "Your data": its files and commands, from the first to the last, as they stand there."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from draftrec.data.sequences import read_histories
from tests.test_shell_blocks import type_blocks

pytestmark = pytest.mark.slow

PAGE = (Path(__file__).parents[1] / "docs" / "data.md").read_text(encoding="utf-8")
STORY = PAGE[PAGE.index("## From interactions") : PAGE.index("## Files")]


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", STORY, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the page's files lie, once its commands have run."""
    folder = tmp_path_factory.mktemp("page")
    type_blocks("docs/data.md", folder)
    return folder


def test_the_rows_shown_are_those_that_are_written(folder: Path) -> None:
    users, films, sequences = ([json.loads(row) for row in b.splitlines()] for b in blocks("json"))
    for name, shown in (("users", users), ("films", films), ("sequences", sequences)):
        rows: list[dict[str, Any]] = pq.read_table(folder / f"{name}.parquet").to_pylist()
        assert rows[: len(shown)] == shown


def test_every_user_and_film_has_a_text_and_recommendations(folder: Path) -> None:
    for name, count in (("about-users", 4), ("about-films", 6)):
        texts = pq.read_table(sorted((folder / name).glob("part-*.parquet")))["text"].to_pylist()
        assert len(texts) == count
        assert all(texts)
    lists = (folder / "top3.csv").read_text().splitlines()
    assert lists[0].startswith("user,items,scores,sids")
    assert [line.split(",")[0] for line in lists[1:]] == ["ada", "ben", "cleo", "dan"]
    assert {h.user for h in read_histories(folder / "sequences.parquet", "test", None)} == {
        "ada", "ben", "cleo", "dan",
    }  # fmt: skip


def test_named_options_and_synonyms_are_known() -> None:
    from draftrec.data import profiles
    from draftrec.data.tables import columns

    kinds = [k for m in (columns, profiles) for k in vars(m).values()
             if isinstance(k, columns.ColumnKind)]  # fmt: skip
    table = PAGE[PAGE.index("## Names of columns") : PAGE.index("A name of the last column")]
    for row in table.splitlines()[4:]:
        cells = [re.findall(r"`([^`]+)`", cell) for cell in row.split("|")[1:-1]]
        if len(cells) != 4 or not cells[3]:
            continue
        fitting = [k for k in kinds if k.option == cells[2][0]]
        known = {name for k in fitting for name in k.synonyms}
        for name in cells[3]:
            assert re.sub(r"[\W_]+", "", name.lower()) in known, name
