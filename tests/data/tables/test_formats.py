"""Files as other programs write them: each gives the rows that were meant."""

from __future__ import annotations

import csv
import gzip
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from draftrec.data.tables.readers import open_records
from draftrec.errors import DraftrecError

ROWS = [{"id": "1", "title": "Heat, the film"}, {"id": "2", "title": 'Ran "uncut"'}]
#: MovieLens as RecBole lays it out.
INTER = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n196\t242\t3\t881250949\n"
ITEM = (
    "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\temb:float_seq\n"
    '242\t"Ran" the film\t1985\tDrama War\t0.5 -1\n1\t\t\t\t\n'
)


def rows(path: Path) -> list[dict[str, Any]]:
    return [row.values for row in open_records(path).rows()]


def written(path: Path, text: str) -> Path:
    content = text.encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(ROWS),
        json.dumps(ROWS, indent=2),
        "\n".join(map(json.dumps, ROWS)),
        "\n\n".join(json.dumps(row, indent=1) for row in ROWS) + "\n",
        "\n".join(map(repr, ROWS)),
        json.dumps({n: {str(i): r[n] for i, r in enumerate(ROWS)} for n in ROWS[0]}),
        json.dumps({"columns": [*ROWS[0]], "index": [0, 1], "data": [[*r.values()] for r in ROWS]}),
        json.dumps({"schema": {"fields": []}, "data": ROWS}),
        json.dumps({"items": ROWS}),
        json.dumps({n: [r[n] for r in ROWS] for n in ROWS[0]}),
    ],
    ids=[f"form-{i}" for i in range(10)],
)  # fmt: skip
@pytest.mark.parametrize("name", ["x.json", "x.json.gz"])
def test_json_in_every_form_gives_the_same_rows(tmp_path: Path, name: str, text: str) -> None:
    assert rows(written(tmp_path / name, text)) == ROWS


def test_a_long_json_file_is_read_record_by_record(tmp_path: Path) -> None:
    many = [{"entity_id": i, "prompt": f"{i} " * (i % 50)} for i in range(5000)]
    path = written(tmp_path / "x.json", json.dumps(many, indent=1))
    found = list(open_records(path).rows())
    assert [row.values for row in found] == many
    assert [row.line for row in found[:3]] == [2, 6, 10]
    assert next(open_records(path).rows(), None) is not None


def test_a_single_record_may_hold_lists(tmp_path: Path) -> None:
    record = {"entity_id": "u1", "history": [{"title": "Heat"}]}
    assert rows(written(tmp_path / "x.json", json.dumps(record))) == [record]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[{"a": 1},\n {"a": 2', "line 2 is not JSON"),
        ('[{"a": 1}\n {"a": 2}]', "line 2 is not JSON .*']' is missing"),
        ('[{"a": 1}, 7]', "line 1 is not a JSON object"),
        ('{"a": 1}\n[1]', "line 2 is not a JSON object"),
        ('{"u1": {"prompt": "p"}, "u2": {"prompt": "q"}}', "object of objects.*orient='records'"),
        ("hello", "line 1 is not JSON"),
        ("  \n", "is empty"),
        ("[]", "is empty"),
    ],
)
def test_json_that_holds_no_records_is_refused(tmp_path: Path, text: str, words: str) -> None:
    path = written(tmp_path / "x.json", text)
    with pytest.raises(DraftrecError, match=words):
        rows(path)


@pytest.mark.parametrize("name", ["x.json", "x.jsonl"])
def test_nan_is_null_wherever_it_stands(tmp_path: Path, name: str) -> None:
    path = written(tmp_path / name, '{"a": NaN, "b": [NaN, 1], "c": "NaN"}\n')
    assert rows(path) == [{"a": None, "b": [None, 1], "c": "NaN"}]


def test_parquet_values_are_plain(tmp_path: Path) -> None:
    table = pa.table(
        {
            "n": pa.array([1.5, float("nan"), None]),
            "t": pa.array([b"a", "\u00e9".encode(), None], pa.binary()),
            "raw": pa.array([b"\xff", None, b"a"], pa.binary()),
            "fine": pa.array([1_000_000_001, 2, None], pa.timestamp("ns")),
            "coarse": pa.array([1_000_000_000, 2_000, None], pa.timestamp("ns")),
        }
    )
    pq.write_table(table, tmp_path / "x.parquet")
    found = rows(tmp_path / "x.parquet")
    assert [row["n"] for row in found] == [1.5, None, None]
    assert [row["t"] for row in found] == ["a", "\u00e9", None]
    assert [row["raw"] for row in found] == [b"\xff", None, b"a"]
    assert found[0]["fine"] == "1970-01-01 00:00:01.000000001"
    assert found[1]["coarse"].microsecond == 2


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_the_delimiter_is_found(tmp_path: Path, delimiter: str) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, ["id", "title"], delimiter=delimiter)
    writer.writeheader()
    writer.writerows(ROWS)
    assert rows(written(tmp_path / "x.csv", text.getvalue())) == ROWS
    if delimiter == "\t":
        assert rows(written(tmp_path / "x.tsv.gz", text.getvalue())) == ROWS


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("id;title\n1;4,5\n", {"id": "1", "title": "4,5"}),
        ('id,"a;b;c"\n1,x;y\n', {"id": "1", "a;b;c": "x;y"}),
        ("id,a|b|c\n1,x\n", {"id": "1", "a|b|c": "x"}),
        ("id, title\n1, Heat\n", {"id": "1", "title": "Heat"}),
        ('id, title\n1, "Heat, 2"\n', {"id": "1", "title": "Heat, 2"}),
        ("id,title\n1, Heat\n", {"id": "1", "title": " Heat"}),
        ("sep=;\r\nid;title\r\n1;Heat\r\n", {"id": "1", "title": "Heat"}),
        ("id,title\n1,\\N\n", {"id": "1", "title": None}),
        ("title\nHeat\n", {"title": "Heat"}),
    ],
)
def test_headers_say_how_cells_are_parted(
    tmp_path: Path, text: str, found: dict[str, str | None]
) -> None:
    assert rows(written(tmp_path / "x.csv", text)) == [found]


@pytest.mark.parametrize(
    ("text", "title"),
    [
        ('id,title\n1,"She said \\"no\\", then left"\n', 'She said "no", then left'),
        ('id,title\n1,"C:\\new \\"x\\" \\\\ end\\\\"\n', 'C:\\new "x" \\ end\\'),
        ("id,title\n1,a\\, b\n", "a, b"),
        ('id,title\n1,"C:\\dir\\"\n', "C:\\dir\\"),
        ('id,title\n1,"a ""b\\"""\n', 'a "b\\"'),
        ("id,title\n1,C:\\new\n", "C:\\new"),
    ],
)
def test_backslashes_escape_where_the_file_fits_so_alone(
    tmp_path: Path, text: str, title: str
) -> None:
    assert rows(written(tmp_path / "x.csv", text)) == [{"id": "1", "title": title}]


def test_quotes_of_tab_files_may_mean_nothing(tmp_path: Path) -> None:
    raw = 'id\ttitle\n1\t"Weird Al" live\n2\t"Heat\n'
    assert [r["title"] for r in rows(written(tmp_path / "x.tsv", raw))] == [
        '"Weird Al" live',
        '"Heat',
    ]
    quoted = 'id\ttitle\n1\t"a\tb"\n'
    assert rows(written(tmp_path / "x.tsv", quoted)) == [{"id": "1", "title": "a\tb"}]


_CELL = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\r\0"), min_size=1)


@pytest.mark.slow
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    cells=st.lists(_CELL.filter(lambda c: c != "\\N"), min_size=1, max_size=5),
    delimiter=st.sampled_from(",;\t|"),
)
def test_any_cell_survives_any_delimiter(tmp_path: Path, cells: list[str], delimiter: str) -> None:
    text = io.StringIO()
    writer = csv.writer(text, delimiter=delimiter, lineterminator="\n")
    writer.writerows([["id", "title"], *([str(i), cell] for i, cell in enumerate(cells))])
    assert [r["title"] for r in rows(written(tmp_path / "x.csv", text.getvalue()))] == cells


def test_recbole_files_are_read_by_their_types(tmp_path: Path) -> None:
    assert rows(written(tmp_path / "x.inter", INTER)) == [
        {"user_id": "196", "item_id": "242", "rating": 3.0, "timestamp": 881250949.0}
    ]
    source = open_records(written(tmp_path / "x.item", ITEM))
    source.require(["item_id", "movie_title"], "")
    found = [row.values for row in source.rows()]
    assert found[0] == {
        "item_id": "242", "movie_title": '"Ran" the film', "release_year": "1985",
        "class": ["Drama", "War"], "emb": [0.5, -1.0],
    }  # fmt: skip
    assert set(list(found[1].values())[1:]) == {None}


def test_a_recbole_folder_is_three_tables(tmp_path: Path) -> None:
    written(tmp_path / "x.inter", INTER)
    written(tmp_path / "x.item", ITEM)
    with pytest.raises(DraftrecError, match="mixes inter and item files"):
        open_records(tmp_path)


def parts(folder: Path, *names: str) -> None:
    for i, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"entity_id": [f"u{i}"], "prompt": ["p"]}), path)


def test_partitions_are_columns(tmp_path: Path) -> None:
    null = "__HIVE_DEFAULT_PARTITION__"
    parts(tmp_path, "group=g1/day=1/a.parquet", "group=g 2/day=1/a.parquet".replace(" ", "%20"))
    parts(tmp_path / f"group={null}" / "day=2", "a.parquet")
    (tmp_path / "_SUCCESS").touch()
    (tmp_path / "summary.json").write_text("{}")
    for location in (tmp_path, tmp_path / "group=*" / "*" / "*.parquet", tmp_path / "**/*.parquet"):
        source = open_records(location)
        source.require(["entity_id", "group", "day"], "")
        found = {row.values["group"]: row for row in source.rows(["entity_id", "group"])}
        assert set(found) == {"g1", "g 2", None}
        assert found["g1"].file == "group=g1/day=1/a.parquet"
    one = open_records(tmp_path).fingerprint()
    (tmp_path / "group=g1").rename(tmp_path / "group=g9")
    assert open_records(tmp_path).fingerprint() != one


def test_a_column_of_the_file_goes_before_its_partition(tmp_path: Path) -> None:
    parts(tmp_path, "entity_id=z/a.parquet")
    assert rows(tmp_path)[0]["entity_id"] == "u0"


def test_parts_may_lie_in_folders(tmp_path: Path) -> None:
    parts(tmp_path, "10/part-0.parquet", "9/part-0.parquet", "9/stats-0.parquet", "_old/x.parquet")
    assert [row.file for row in open_records(tmp_path).rows()] == [
        "9/part-0.parquet", "10/part-0.parquet"
    ]  # fmt: skip


def test_files_of_a_folder_go_before_the_folders_in_it(tmp_path: Path) -> None:
    parts(tmp_path, "part-0.parquet", "pool/x.parquet")
    assert len(rows(tmp_path)) == 1
    parts(tmp_path, "group=g/x.parquet")
    with pytest.raises(DraftrecError, match=r"both part-0\.parquet and partitions such as group=g"):
        open_records(tmp_path)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ((), "it is empty"),
        (("a.xlsx", "b.txt"), "only a.xlsx, b.txt;"),
        (("a/x.txt", "b1.txt", "b2.txt", "b3.txt"), "only a/, b1.txt, b2.txt and 1 more"),
        (("_delta_log/0.json", "a.parquet"), "a Delta Lake table.*older versions"),
        (("metadata/1.metadata.json", "data/a.parquet"), "an? Iceberg table"),
    ],
)
def test_a_folder_without_parts_says_what_it_holds(
    tmp_path: Path, names: tuple[str, ...], words: str
) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(DraftrecError, match=words):
        open_records(tmp_path)
