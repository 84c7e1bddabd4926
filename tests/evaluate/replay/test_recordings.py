"""Recorded texts become token ids as a model would have emitted them."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from draftrec.data.records import GroupTable
from draftrec.errors import DraftrecError
from draftrec.evaluate.replay.recordings import (
    Recording,
    TextFiles,
    in_order,
    link_steps,
    opening,
    read_recordings,
)

EOS, BOS = 1, 2


class Letters:
    """A tokenizer of letters, a = 97; prompts begin with BOS unless it has none."""

    def __init__(self, bos: int | None = BOS, eos: int | None = EOS) -> None:
        self.bos_token_id, self.eos_token_id = bos, eos

    def __len__(self) -> int:
        return 128

    def __call__(self, texts: list[str], *, add_special_tokens: bool = True, **_: Any) -> Any:
        first = [self.bos_token_id] if add_special_tokens and self.bos_token_id else []
        return SimpleNamespace(input_ids=[[*first, *map(ord, text)] for text in texts])


def lines(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "texts.jsonl"


def test_text_is_tokenised_and_ends_in_eos(file: Path) -> None:
    lines(
        file,
        {"entity_id": 7, "text": "ab", "prompt": "p", "group": 3},
        {"entity_id": "b", "text": ""},
    )
    first, second = read_recordings(file, Letters())
    assert (first.entity_id, first.group) == ("7", "3")
    assert first.token_ids.tolist() == [97, 98, EOS]
    assert first.prompt_ids.tolist() == [BOS, 112]
    assert (second.token_ids.tolist(), second.group) == ([EOS], None)
    assert second.prompt_ids.tolist() == [BOS]
    assert {str(r.token_ids.dtype) for r in (first, second)} == {"int32"}


def test_columns_go_by_other_names(file: Path) -> None:
    lines(file, {"asin": "x", "output": "ab", "said": "cd"})
    (found,) = read_recordings(file, Letters())
    assert (found.entity_id, found.token_ids.tolist()) == ("x", [97, 98, EOS])
    (found,) = read_recordings(TextFiles(str(file), "output", "said"), Letters())
    assert (found.entity_id, found.token_ids.tolist()) == ("ab", [99, 100, EOS])
    with pytest.raises(DraftrecError, match=r"no column 'what', it has asin.*--text-column"):
        read_recordings(TextFiles(str(file), None, "what"), Letters())


def test_a_tokenizer_without_special_tokens(file: Path) -> None:
    lines(file, {"entity_id": "a", "text": "ab"})
    (only,) = read_recordings(file, Letters(None, None))
    assert only.token_ids.tolist() == [97, 98]
    assert only.prompt_ids.tolist() == [0]
    assert opening(Letters(None)).tolist() == [EOS]


def test_a_run_folder_s_token_ids_are_taken_as_they_are(tmp_path: Path) -> None:
    for i in range(2):
        rows = [{"entity_id": str(i), "group": None, "text": "zz", "token_ids": [97, i]}]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"part-0000{i}.parquet")
    (tmp_path / "stats-00000.parquet").write_bytes(b"")
    assert [r.token_ids.tolist() for r in read_recordings(tmp_path, Letters())] == [
        [97, 0],
        [97, 1],
    ]


def test_only_the_first_few(file: Path) -> None:
    lines(file, *({"entity_id": i, "text": "a"} for i in range(700)))
    assert [r.entity_id for r in read_recordings(file, Letters(), limit=3)] == ["0", "1", "2"]
    assert len(read_recordings(file, Letters())) == 700


def test_a_groups_file_takes_the_place_of_the_column(file: Path, tmp_path: Path) -> None:
    lines(
        file,
        {"entity_id": "a", "text": "x", "group": "g"},
        {"entity_id": "b", "text": "x", "group": "g"},
    )
    lines(tmp_path / "g.jsonl", {"entity_id": "a", "group": "h"})
    groups = GroupTable.load(tmp_path / "g.jsonl")
    assert [r.group for r in read_recordings(file, Letters(), groups)] == ["h", None]


def recording(entity: str, step: int | None, text: int = 0) -> Recording:
    ids = opening(Letters()) + text
    return Recording(entity, ids, opening(Letters()), step=step)


class TestOrder:
    def test_is_by_timestamp_then_file(self, file: Path) -> None:
        rows = [("a", 30), ("b", 10.5), ("c", 30), ("d", 20)]
        lines(file, *({"entity_id": e, "text": "", "timestamp": t, "step": 1} for e, t in rows))
        ordered = in_order(read_recordings(file, Letters()))
        assert [r.entity_id for r in ordered] == ["b", "d", "a", "c"]

    def test_is_by_step_where_there_is_no_time(self, file: Path) -> None:
        rows = [("a", 1), ("a", 2), ("b", 1)]
        lines(file, *({"entity_id": e, "text": "", "step": s} for e, s in rows))
        ordered = in_order(read_recordings(file, Letters()))
        assert [(r.entity_id, r.step) for r in ordered] == [("a", 1), ("b", 1), ("a", 2)]


class TestChains:
    def test_each_text_is_linked_to_the_step_before(self) -> None:
        texts = [
            recording("a", 3, 3),
            recording("a", 1, 1),
            recording("b", 1, 9),
            recording("a", 2, 2),
        ]
        linked = link_steps(texts, "x")
        known = [None if r.previous_ids is None else r.previous_ids.tolist() for r in linked]
        assert known == [[BOS + 2], None, None, [BOS + 1]]
        assert [r.token_ids.tolist() for r in linked] == [r.token_ids.tolist() for r in texts]

    def test_a_missing_step_is_bridged(self) -> None:
        linked = link_steps([recording("a", 1, 1), recording("a", 4, 4)], "x")
        assert linked[1].previous_ids is not None
        assert linked[1].previous_ids.tolist() == [BOS + 1]

    @pytest.mark.parametrize(
        ("texts", "words"),
        [
            ([("a", None)], "has no step"),
            ([("a", 1), ("a", 1)], "two texts of 'a' with step 1"),
            ([("a", 1), ("b", 2)], "no entity in x has texts of two steps"),
        ],
    )
    def test_what_is_no_chain_is_refused(
        self, texts: list[tuple[str, int | None]], words: str
    ) -> None:
        with pytest.raises(DraftrecError, match=words):
            link_steps([recording(*t) for t in texts], "x")


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"text": "a"}, "no column 'entity_id'"),
        ({"entity_id": "a", "body": "a"}, "no column 'text'"),
        ({"entity_id": "a", "text": None}, "text is null, not text"),
        ({"entity_id": "a", "text": 5}, "line 1: text is int, not text"),
        ({"entity_id": None, "text": "a"}, "entity_id is null"),
        ({"entity_id": 1.5, "text": "a"}, "entity_id is float"),
        ({"entity_id": "a", "text": "\ud800"}, "not valid Unicode"),
        ({"entity_id": "a", "text": "a", "group": [1]}, "group is list"),
        ({"entity_id": "a", "text": "a", "prompt": 1}, "prompt is int"),
        ({"entity_id": "a", "text": "a", "step": "x"}, "step is 'x', not a number"),
        ({"entity_id": "a", "text": "a", "step": 1.5}, "not a whole number"),
        ({"entity_id": "a", "text": "a", "timestamp": float("inf")}, "timestamp is inf"),
        ({"entity_id": "a", "token_ids": [1, 128]}, "outside the tokenizer's 128 tokens"),
        ({"entity_id": "a", "token_ids": [-1]}, "outside"),
        ({"entity_id": "a", "token_ids": [True]}, "not a list of whole numbers"),
        ({"entity_id": "a", "token_ids": "ab"}, "not a list of whole numbers"),
        ({"entity_id": "a", "token_ids": None}, "not a list of whole numbers"),
    ],
)
def test_unusable_rows_are_named(file: Path, row: dict[str, Any], words: str) -> None:
    lines(file, row)
    with pytest.raises(DraftrecError, match=words):
        read_recordings(file, Letters())
