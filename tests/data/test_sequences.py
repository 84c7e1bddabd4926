"""Sequences and semantic ids from files: parts, limits, formats, what is refused."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from draftrec.data import sequences
from draftrec.data.sequences import (
    History,
    SequenceColumns,
    read_histories,
    read_known,
    read_semantic_ids,
    read_sequences,
    write_semantic_ids,
)
from draftrec.errors import DraftrecError
from draftrec.items.ids import Id
from draftrec.items.semantic_ids import SemanticIds

ROWS = [
    {"user": 4, "items": [1, 2, 3, 4], "part": "train"},
    {"user": 1, "items": [9], "part": "train"},
    {"user": 4, "items": [5], "part": "valid"},
    {"user": 2, "items": [], "part": "train"},
    {"user": 2, "items": [8, 7], "part": "test"},
    {"user": 4, "items": [6, 1], "part": "test"},
    {"user": 1, "items": [], "part": "test"},
]


def lines(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(params=["parquet", "dictionary", "jsonl", "csv"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The same rows in every format."""
    if request.param == "jsonl":
        return lines(tmp_path / "s.jsonl", ROWS)
    if request.param == "csv":
        head = "user,items,part\n"
        rows = [f'{r["user"]},"{r["items"]}",{r["part"]}\n' for r in ROWS]
        (tmp_path / "s.csv").write_text(head + "".join(rows))
        return tmp_path / "s.csv"
    table = pa.Table.from_pylist(ROWS)
    if request.param == "dictionary":
        kinds = {"user": pa.int32(), "items": pa.list_(pa.int32())}
        schema = pa.schema([*kinds.items(), ("part", pa.dictionary(pa.int32(), pa.string()))])
        table = table.cast(schema)
    pq.write_table(table, tmp_path / "s.parquet")
    return tmp_path / "s.parquet"


def told(histories: list[History]) -> list[tuple[int, list[int], list[int]]]:
    for history in histories:
        assert history.items.dtype == history.targets.dtype == np.int64
    return [(h.user, h.items.tolist(), h.targets.tolist()) for h in histories]


def test_sequences_come_in_file_order(location: Path) -> None:
    found = list(read_sequences(location, None, None))
    assert [{"user": s.user, "items": s.items.tolist(), "part": s.part} for s in found] == ROWS
    assert all(s.items.dtype == np.int64 for s in found)
    assert [s.user for s in read_sequences(location, "test", None)] == [2, 4, 1]
    assert [s.user for s in read_sequences(location, "test", 2)] == [2, 4]
    assert not list(read_sequences(location, None, 0))


def test_histories_of_each_part_are_what_came_before(location: Path) -> None:
    assert told(read_histories(location, "test", None)) == [
        (4, [1, 2, 3, 4, 5], [6, 1]),
        (2, [], [8, 7]),
    ]
    assert told(read_histories(location, "valid", None)) == [(4, [1, 2, 3, 4], [5])]
    assert told(read_histories(location, "train", None)) == [(4, [1, 2, 3], [4]), (1, [], [9])]


def test_all_that_is_known_before_a_part_is_every_users(location: Path) -> None:
    found = {
        part: [items.tolist() for items in read_known(location, part)]
        for part in ("train", "valid", "test", "all")
    }
    assert found == {
        "train": [[1, 2, 3], [], []],
        "valid": [[1, 2, 3, 4], [9], []],
        "test": [[1, 2, 3, 4, 5], [9], []],
        "all": [[1, 2, 3, 4, 5, 6, 1], [9], [8, 7]],
    }


def test_nothing_is_known_of_a_user_with_two_rows_of_a_part(tmp_path: Path) -> None:
    twice = lines(tmp_path / "s.jsonl", [*ROWS, {"user": 4, "items": [9], "part": "train"}])
    for part in ("test", "all"):
        with pytest.raises(DraftrecError, match="4"):
            read_known(twice, part)


def test_histories_keep_the_most_recent_items(location: Path) -> None:
    assert told(read_histories(location, "test", 2)) == [(4, [4, 5], [6, 1]), (2, [], [8, 7])]
    assert told(read_histories(location, "train", 1)) == [(4, [3], [4]), (1, [], [9])]
    assert told(read_histories(location, "test", 0))[0] == (4, [], [6, 1])


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"user": 1, "items": [1.5], "part": "train"}, "line 8: items is no list of whole"),
        ({"user": 1, "items": [1, None], "part": "train"}, "items is no list"),
        ({"user": 1, "items": [True], "part": "train"}, "items is no list"),
        ({"user": 1, "items": [[1], [2]], "part": "train"}, "items is no list"),
        ({"user": 1, "items": [[1], [2, 3]], "part": "train"}, "items is no list"),
        ({"user": 1, "items": [2**70], "part": "train"}, "items is no list"),
        ({"user": 1, "items": ["a", ""], "part": "train"}, "items is no list"),
        ({"user": 1, "items": None, "part": "train"}, "items is no list"),
        ({"user": 1, "items": {"a": 1}, "part": "train"}, "items is no list"),
        ({"user": None, "items": [1], "part": "train"}, "user is None, not a whole number"),
        ({"user": True, "items": [1], "part": "train"}, "user is True"),
        ({"user": 1.0, "items": [1], "part": "train"}, "user is 1.0, .*use Int64"),
        ({"user": 1, "items": [1], "part": "dev"}, "part is 'dev', not one of train"),
        ({"user": 4, "items": [1], "part": "test"}, "user 4 has two rows of part 'test'"),
    ],
)
def test_unusable_rows_are_refused(tmp_path: Path, row: dict[str, Any], words: str) -> None:
    with pytest.raises(DraftrecError, match=words):
        read_histories(lines(tmp_path / "s.jsonl", [*ROWS, row]), "test", None)


def test_unusable_files_and_parts_are_refused(tmp_path: Path) -> None:
    path = lines(tmp_path / "s.jsonl", [{"user": 1, "items": [1]}])
    with pytest.raises(DraftrecError, match="no column 'part'"):
        read_histories(path, "test", None)
    path = lines(tmp_path / "s.jsonl", ROWS[:1])
    with pytest.raises(DraftrecError, match="no items of part 'test'"):
        read_histories(path, "test", None)
    with pytest.raises(DraftrecError, match="no part 'dev'"):
        list(read_sequences(path, "dev", None))


SIDS = SemanticIds.of([3, -1], [["<a_1>", "Grüße"], ["<a_1>", "<b_0>"]])


@pytest.mark.parametrize("ending", ["parquet", "jsonl"])
def test_semantic_ids_survive_a_file(tmp_path: Path, ending: str) -> None:
    path = tmp_path / "deep" / f"sids.{ending}"
    write_semantic_ids(path, SIDS)
    assert read_semantic_ids(path).fingerprint() == SIDS.fingerprint()
    first = path.read_bytes()
    write_semantic_ids(path, SIDS)
    assert path.read_bytes() == first
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_parquet_is_read_by_column_and_row_by_row_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    random = np.random.default_rng(0)
    items = random.permutation(500)
    wanted = SemanticIds.of(items, [[f"<{c}_{random.integers(9)}>" for c in "abc"] for _ in items])
    turned = wanted.items[::-1]
    for part in range(2):
        half = turned[part::2]
        table = pa.table({"item": half, "sid": wanted.sids_of(half)})
        pq.write_table(table, tmp_path / f"part-{part}.parquet")
    monkeypatch.setattr(sequences, "_BATCH_ROWS", 64)
    assert read_semantic_ids(tmp_path).fingerprint() == wanted.fingerprint()
    monkeypatch.setattr(sequences, "_by_column", lambda *names: None)
    assert read_semantic_ids(tmp_path).fingerprint() == wanted.fingerprint()


def test_semantic_ids_come_from_csv_and_folders_too(tmp_path: Path) -> None:
    (tmp_path / "part-0.csv").write_text("item,sid\n3,<a_1> Grüße\n")
    (tmp_path / "part-1.csv").write_text("item,sid\n-1,<a_1> <b_0>\n")
    assert read_semantic_ids(tmp_path).fingerprint() == SIDS.fingerprint()


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"item": 1}], "no column 'sid'"),
        ([{"item": "", "sid": ["a"]}], "item is ''"),
        ([{"item": 1.5, "sid": ["a"]}], "item is 1.5"),
        ([{"item": 1, "sid": []}], "sid is no list of tokens"),
        ([{"item": 1, "sid": None}], "sid is no list of tokens"),
        ([{"item": 1, "sid": ["a", None]}], "sid is no list of tokens"),
        ([{"item": 1, "sid": ["a", ""]}], "no list of tokens|empty token"),
        ([{"item": 1, "sid": [-3]}], "sid is no list of tokens"),
        ([{"item": 1, "sid": [0.5]}], "sid is no list of tokens"),
        ([{"item": 1, "sid": ["a"]}, {"item": 2, "sid": ["a", "b"]}], "line 2: .* has 2 tokens"),
        ([{"item": 1, "sid": ["a"]}, {"item": 1, "sid": ["b"]}], "item 1 has more than one"),
    ],
)
def test_unusable_semantic_ids_are_refused(
    tmp_path: Path, rows: list[dict[str, Any]], words: str, ending: str
) -> None:
    path = tmp_path / f"sids.{ending}"
    if ending == "jsonl":
        lines(path, rows)
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    with pytest.raises(DraftrecError, match=words):
        read_semantic_ids(path)


def test_semantic_ids_are_written_as_parquet_or_json_lines_only(tmp_path: Path) -> None:
    with pytest.raises(DraftrecError, match="must end in"):
        write_semantic_ids(tmp_path / "sids.csv", SIDS)


TEXTS = [
    {"user": "u-1", "items": ["B00A", "012", "7"], "part": "train"},
    {"user": "u-1", "items": ["B00B"], "part": "test"},
    {"user": "9", "items": ["7"], "part": "train"},
    {"user": "9", "items": ["012", "B00A"], "part": "test"},
]


@pytest.mark.parametrize("ending", ["parquet", "jsonl", "csv", "pandas.csv"])
def test_text_ids_are_kept_as_they_are(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"s.{ending}"
    if ending == "parquet":
        pq.write_table(pa.Table.from_pylist(TEXTS), path)
    elif ending == "jsonl":
        lines(path, TEXTS)
    else:
        spelt = str if ending == "pandas.csv" else " ".join
        rows = [f'{r["user"]},"{spelt(r["items"])}",{r["part"]}\n' for r in TEXTS]
        path.write_text("user,items,part\n" + "".join(rows))
    read = read_histories(path, "test", None)
    found = [(h.user, h.items.tolist(), h.targets.tolist()) for h in read]
    assert found == [("u-1", ["B00A", "012", "7"], ["B00B"]), ("9", ["7"], ["012", "B00A"])]


_LISTS: list[list[Id]] = [["a b", "c,d", "e'f", "012"], ["x"], ["u-1", "u-2"], [12, 7, 100]]


@pytest.mark.parametrize("items", _LISTS)
def test_lists_are_read_as_numpy_python_and_pandas_print_them(
    tmp_path: Path, items: list[Id]
) -> None:
    array = np.array(items, np.int64 if isinstance(items[0], int) else object)
    numpy_texts = [np.str_(item) if isinstance(item, str) else np.int64(item) for item in items]
    printed = [
        str(array), str(array.astype(str)) if array.dtype == object else str(array), str(items),
        str(tuple(items)), repr(numpy_texts), repr(items).replace("'", "u'", 1), json.dumps(items),
    ]  # fmt: skip
    for text in printed if "e'f" not in items else printed[:-2]:
        row = {"user": "u", "items": text, "part": "test"}
        (found,) = read_histories(lines(tmp_path / "s.jsonl", [row]), "test", None)
        assert found.targets.tolist() == items, text


@pytest.mark.parametrize(
    "text", ["[0 1 2 ... 2998 2999]", "['a' 'b' ... 'y' 'z']", "{'a', 'b'}", "{3,1,2}", "[1, nan]"]
)
def test_lists_that_are_not_whole_are_refused(tmp_path: Path, text: str) -> None:
    path = lines(tmp_path / "s.jsonl", [{"user": "u", "items": text, "part": "test"}])
    with pytest.raises(DraftrecError, match="items is no list"):
        read_histories(path, "test", None)
    path = lines(tmp_path / "sids.jsonl", [{"item": "u", "sid": text}])
    with pytest.raises(DraftrecError, match="sid is no list"):
        read_semantic_ids(path)


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("['<a_1>' '<b_7>']", ["<a_1>", "<b_7>"]),
        ("[<a_1> <b_7>]", ["<a_1>", "<b_7>"]),
        ("('<a_1>', '<b_7>')", ["<a_1>", "<b_7>"]),
        ("[ 1  7]", ["<a_1>", "<b_7>"]),
        ("(1, 7)", ["<a_1>", "<b_7>"]),
        ("[np.int64(1), np.int64(7)]", ["<a_1>", "<b_7>"]),
        ("['1', '7']", ["1", "7"]),
        ("<a,1> <b,7>", ["<a,1>", "<b,7>"]),
    ],
)
def test_semantic_ids_are_read_as_numpy_python_and_pandas_print_them(
    tmp_path: Path, text: str, tokens: list[str]
) -> None:
    sids = read_semantic_ids(lines(tmp_path / "sids.jsonl", [{"item": 3, "sid": text}]))
    assert sids.sids_of([3]) == [tokens]


def test_numbers_and_the_texts_that_spell_them_are_one_user(tmp_path: Path) -> None:
    rows = [
        {"user": 4, "items": [1, 2], "part": "train"},
        {"user": "4", "items": ["3"], "part": "test"},
    ]
    (found,) = read_histories(lines(tmp_path / "s.jsonl", rows), "test", None)
    assert (found.user, found.items.tolist(), found.targets.tolist()) == ("4", ["1", "2"], ["3"])


@pytest.mark.parametrize("ending", ["parquet", "jsonl"])
@pytest.mark.parametrize("items", [["B2", "A1", "012"], ["10", "9", "-3"]])
def test_text_ids_of_a_catalogue_survive_a_file(
    tmp_path: Path, items: list[str], ending: str
) -> None:
    sids = SemanticIds.of(items, [["<a_0>"], ["<a_1>"], ["<a_2>"]])
    path = tmp_path / f"sids.{ending}"
    write_semantic_ids(path, sids)
    again = read_semantic_ids(path)
    assert again.fingerprint() == sids.fingerprint()
    assert sorted(again.given.tolist()) == sorted(items)
    assert again.sids_of(items) == [["<a_0>"], ["<a_1>"], ["<a_2>"]]
    assert again.find(["absent", items[1]])[0] == -1


def test_integer_codes_and_index_files_are_read(tmp_path: Path) -> None:
    wanted = SemanticIds.of([3, -1], [["<a_1>", "<b_7>"], ["<a_1>", "<b_0>"]]).fingerprint()
    rows = [{"asin": 3, "codes": [1, 7]}, {"asin": -1, "codes": [1, 0]}]
    assert read_semantic_ids(lines(tmp_path / "s.jsonl", rows)).fingerprint() == wanted
    (tmp_path / "s.csv").write_text('item,sid\n3,"[1, 7]"\n-1,"[1, 0]"\n')
    assert read_semantic_ids(tmp_path / "s.csv").fingerprint() == wanted
    index = {"3": ["<a_1>", "<b_7>"], "-1": ["<a_1>", "<b_0>"]}
    (tmp_path / "games.index.json").write_text(json.dumps(index))
    assert read_semantic_ids(tmp_path / "games.index.json").fingerprint() == wanted
    (folder := tmp_path / "games").mkdir()
    (folder / "games.index.json.gz").write_bytes(gzip.compress(json.dumps(index).encode()))
    for path in (folder, folder / "games.index.json.gz"):
        assert read_semantic_ids(path).fingerprint() == wanted


@pytest.mark.parametrize(
    "sid", ["<a_1><b_{}>", " <a_1> <b_{}>", "1-{}", "1_{}", "1 {}", "1,{}", "(1, {})"]
)
def test_semantic_ids_are_read_from_texts(tmp_path: Path, sid: str) -> None:
    wanted = SemanticIds.of([3, 4], [["<a_1>", "<b_7>"], ["<a_1>", "<b_0>"]]).fingerprint()
    rows = {3: sid.format(7), 4: sid.format(0)}
    path = lines(tmp_path / "s.jsonl", [{"item": i, "sid": s} for i, s in rows.items()])
    assert read_semantic_ids(path).fingerprint() == wanted
    (tmp_path / "s.csv").write_text("item,sid\n" + "".join(f'{i},"{s}"\n' for i, s in rows.items()))
    assert read_semantic_ids(tmp_path / "s.csv").fingerprint() == wanted
    if "><" in sid:
        (tmp_path / "index.json").write_text(json.dumps({str(i): s for i, s in rows.items()}))
        assert read_semantic_ids(tmp_path / "index.json").fingerprint() == wanted


def test_columns_go_by_other_names(tmp_path: Path) -> None:
    rows = [{"User_ID": r["user"], "item_ids": r["items"], "split": r["part"]} for r in ROWS]
    named = [{"who": r["user"], "what": r["items"], "when": r["part"]} for r in ROWS]
    usual = told(read_histories(lines(tmp_path / "s.jsonl", ROWS), "test", None))
    assert told(read_histories(lines(tmp_path / "r.jsonl", rows), "test", None)) == usual
    columns = SequenceColumns("who", "what", "when")
    path = lines(tmp_path / "n.jsonl", named)
    assert told(read_histories(path, "test", None, columns)) == usual
    with pytest.raises(DraftrecError, match="no columns 'user' and 'items' and 'part', it has who"):
        read_histories(path, "test", None)
    more = [{**row, "asin": 1, "sku": 2} for row in ROWS]
    assert told(read_histories(lines(tmp_path / "m.jsonl", more), "test", None)) == usual
    path = lines(tmp_path / "i.jsonl", [{"user_id": 1, "item_id": 3, "timestamp": 5}])
    with pytest.raises(DraftrecError, match="draftrec sequences"):
        read_histories(path, "test", None)


@pytest.mark.parametrize("between", [" ", ",", ", "])
def test_codes_of_csv_are_codes(tmp_path: Path, between: str) -> None:
    """They were read as tokens that no tokenizer knows."""
    path = tmp_path / "sids.csv"
    path.write_text(f'item,sid\n3,"{between.join(("0", "12"))}"\n4,"{between.join(("1", "0"))}"\n')
    assert read_semantic_ids(path).sids_of([3, 4]) == [["<a_0>", "<b_12>"], ["<a_1>", "<b_0>"]]
    path.write_text('item,sid\n3,"<a_0> 12"\n4,"[""0"", ""1""]"\n')
    assert read_semantic_ids(path).sids_of([3, 4]) == [["<a_0>", "12"], ["0", "1"]]
