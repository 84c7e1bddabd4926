"""Files as other programs write them: each gives the rows that were meant."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
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
        "\n".join(f"{{u'id': u{r['id']!r}, u'title': u{r['title']!r}}}" for r in ROWS),
        json.dumps({n: {str(i): r[n] for i, r in enumerate(ROWS)} for n in ROWS[0]}),
        json.dumps({"columns": [*ROWS[0]], "index": [0, 1], "data": [[*r.values()] for r in ROWS]}),
        json.dumps({"schema": {"fields": []}, "data": ROWS}),
        json.dumps({"items": ROWS}),
        json.dumps({n: [r[n] for r in ROWS] for n in ROWS[0]}),
    ],
    ids=[f"form-{i}" for i in range(11)],
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


def test_arrow_files_and_streams_are_read(tmp_path: Path) -> None:
    """pandas and Polars write files, Hugging Face's datasets streams."""
    table = pa.table({"entity_id": [f"u{i}" for i in range(700)], "n": range(700)})
    with pa.ipc.new_file(tmp_path / "x.feather", table.schema) as file:
        file.write_table(table)
    with pa.ipc.new_stream(tmp_path / "x.arrow", table.schema) as stream:
        stream.write_table(table, max_chunksize=300)
    for name in ("x.feather", "x.arrow"):
        source = open_records(tmp_path / name)
        assert source.columns() == ("entity_id", "n")
        assert [row.values for row in source.rows()] == table.to_pylist()
        assert [[*row.values] for row in source.rows(["n"])] == [["n"]] * 700
        assert [row.line for row in source.rows()] == list(range(1, 701))
        source.refuse_type("n", "a text")
    floats = pa.table({"n": [1.5]})
    with pa.ipc.new_file(tmp_path / "y.arrow", floats.schema) as file:
        file.write_table(floats)
    with pytest.raises(DraftrecError, match="column 'n' is double"):
        open_records(tmp_path / "y.arrow").refuse_type("n", "a text")
    whole = (tmp_path / "x.arrow").read_bytes()
    (tmp_path / "x.arrow").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DraftrecError, match=r"x\.arrow cannot be read, it may be truncated"):
        rows(tmp_path / "x.arrow")


def test_a_folder_of_data_sets_is_read_one_at_a_time(tmp_path: Path) -> None:
    """As save_to_disk of Hugging Face's datasets lays it out."""
    table = pa.table({"entity_id": ["a", "b"]})
    for part in ("train", "test"):
        (tmp_path / part).mkdir()
        with pa.ipc.new_stream(tmp_path / part / "data-00000-of-00001.arrow", table.schema) as to:
            to.write_table(table)
        for name in ("dataset_info.json", "state.json"):
            (tmp_path / part / name).write_text('{"features": {}}')
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    assert rows(tmp_path / "train") == table.to_pylist()
    with pytest.raises(DraftrecError, match=r"several data sets \(test, train\).*as in .*/test$"):
        open_records(tmp_path)


@pytest.mark.parametrize(("kind", "text"), [("csv", "id,n\n1,2\n"), ("json", '{"id": 1, "n": 2}')])
@pytest.mark.parametrize("inner", ["", "day=1/"])
def test_parts_without_rows_hide_no_column(
    tmp_path: Path, kind: str, text: str, inner: str
) -> None:
    """Spark writes files of no bytes."""
    (tmp_path / inner).mkdir(exist_ok=True)
    written(tmp_path / f"{inner}part-00000.{kind}", "")
    written(tmp_path / f"{inner}part-00001.{kind}", text)
    source = open_records(tmp_path)
    assert source.columns()[:2] == ("id", "n")
    assert source.has("n")
    source.require(["id", "n"], "")
    assert len(list(source.rows())) == 1


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("u.user", "1|24|M|technician|85711\n2|53|F|other|94043\n"),
        ("taobao.csv", "1,2268318,2520377,pv,1511544070\n1,2333346,2520771,pv,1511561733\n"),
        ("beauty.csv", "A39HTAT,0205616461,5.0,1369699200\nA3JM6GV,0558925278,3.0,1355443200\n"),
        ("plays.tsv", "user_01\t2009-05-04T23:08:57Z\tf1b1\tDeep Dish\nuser_01\t2009\ta\tb\n"),
        ("news.tsv", "N1\tnews\tTitle\thttps://example.org/1\t[]\nN2\tnews\tx\ty\t[]\n"),
        ("ratings.csv", "1::1193::5::978300760\n1::661::3::978302109\n"),
    ],
)
def test_rows_in_place_of_a_header_are_noticed(tmp_path: Path, name: str, text: str) -> None:
    source = open_records(written(tmp_path / name, text))
    with pytest.raises(DraftrecError) as caught:
        source.require(["user_id"], "name it otherwise")
    assert "seems to have no header, its first line is a row (" in str(caught.value)
    assert f"draftrec table {tmp_path / name} --columns user_id,item_id,..." in str(caught.value)


def test_other_encodings_and_endings_say_what_makes_a_table(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    for content in ("id,title\n1,Caf\u00e9\n".encode("latin-1"), "id,t\n1,2\n".encode("utf-16")):
        path.write_bytes(content)
        with pytest.raises(
            DraftrecError, match=r"not UTF-8 .*draftrec table .* --encoding latin-1"
        ):
            open_records(path)
    with pytest.raises(DraftrecError, match=r"kind; .*draftrec table \S+u\.data --columns user_id"):
        open_records(written(tmp_path / "u.data", "1\t2\t3\t4\n"))


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
        ('id|"No" t\n1|x\n', {"id": "1", '"No" t': "x"}),
        ("id::title\n1::Heat, 2\n", {"id": "1", "title": "Heat, 2"}),
        ('id::title\n1::"No" (1999)\n', {"id": "1", "title": '"No" (1999)'}),
        ('id|title\n1|"No" (1999)\n', {"id": "1", "title": '"No" (1999)'}),
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


@pytest.mark.parametrize("name", ["x.csv", "x.jsonl"])
def test_a_file_that_is_cut_off_while_it_is_read_is_refused(tmp_path: Path, name: str) -> None:
    """Its end was lost without a word; one that is replaced by another file is read to its end."""
    path, other = tmp_path / name, tmp_path / "other"
    line = "u,i\n" if name == "x.csv" else '{"u": 1}\n'
    path.write_text(line * 40_000)
    rows = open_records(path).rows()
    next(rows)
    other.write_text(line)
    other.replace(path)
    assert sum(1 for _ in rows) >= 39_998
    path.write_text(line * 40_000)
    rows = open_records(path).rows()
    next(rows)
    os.truncate(path, len(line))
    with pytest.raises(DraftrecError, match="became shorter while it was read"):
        list(rows)


def test_a_run_that_lost_a_part_is_no_smaller_run(tmp_path: Path) -> None:
    """A copy that was cut off was taken for fewer texts; parts of a run under way are its own."""
    parts(tmp_path, "part-00000.parquet", "part-00002.parquet", "part-00003.parquet")
    manifest = {"format": "draftrec-run", "shards": [{}, {}, {}]}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DraftrecError, match=r"run of 3 parts, of which 1 .* part-00001\.parquet"):
        open_records(tmp_path)
    assert len(rows(tmp_path / "part-*.parquet")) == 3
    parts(tmp_path, "part-00001.parquet")
    assert len(rows(tmp_path)) == 4


@pytest.mark.parametrize(
    "content", ["", "[]", '{"shards": null}', '{"shards": 3}', '{"shards": [0, 1, 2]}', "{}"]
)
def test_other_manifests_say_nothing_of_parts(tmp_path: Path, content: str) -> None:
    parts(tmp_path, "part-00001.parquet")
    (tmp_path / "manifest.json").write_text(content)
    assert len(rows(tmp_path)) == 1
