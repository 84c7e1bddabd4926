"""Readers, per-record rejection and whole-input refusal."""

from __future__ import annotations

import csv
import gzip
import json
import tracemalloc
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from draftrec.config import RecordsConfig
from draftrec.data import records
from draftrec.data.files.writers import replace_parquet
from draftrec.data.records import Entity, EntityReader, GroupTable, Layout, Rejected
from draftrec.data.tables import text
from draftrec.data.tables.readers import RecordSource, open_records
from draftrec.data.templates import load_template
from draftrec.errors import DraftrecError
from draftrec.jobs.knowledge.plan import read_records

ROWS = [
    {"entity_id": "u1", "prompt": 'She said "no",\nthen left.', "group": "a"},
    {"entity_id": "007", "prompt": "Grüße, 世界 \u2028 end", "group": None},
    {"entity_id": "u3", "prompt": "plain", "group": "b"},
]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write rows in the format that the name asks for."""
    name = path.name.removesuffix(".gz").removesuffix(".zst")
    if name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(rows), path)
        return path
    if name.endswith(".csv"):
        head = path.with_name("plain.tmp")
        with head.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, rows[0].keys())
            writer.writeheader()
            writer.writerows(rows)
        content = head.read_bytes()
        head.unlink()
    else:
        content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    if path.suffix == ".gz":
        content = gzip.compress(content)
    if path.suffix == ".zst":
        content = pa.compress(content, codec="zstd", asbytes=True)
    path.write_bytes(content)
    return path


def entities(path: Path, **options: Any) -> list[Entity | Rejected]:
    reader = EntityReader(open_records(path), **options)
    reader.check_columns()
    return list(reader)


NAMES = ["x.parquet", "x.jsonl", "x.ndjson", "x.csv", "x.jsonl.gz", "x.csv.gz", "x.jsonl.zst"]


@pytest.mark.parametrize("name", [*NAMES, "x.csv.zst", "x.pq.parquet"])
def test_every_format_gives_the_same_entities(tmp_path: Path, name: str) -> None:
    found = entities(write(tmp_path / name, ROWS))
    assert [
        {"entity_id": e.entity_id, "prompt": e.prompt, "group": e.group}
        for e in found
        if isinstance(e, Entity)
    ] == ROWS


_CELL = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\r\0"), min_size=1)


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(prompts=st.lists(_CELL, min_size=1, max_size=6), name=st.sampled_from(NAMES))
def test_any_text_survives_the_round_trip(tmp_path: Path, prompts: list[str], name: str) -> None:
    rows = [{"entity_id": str(i), "prompt": p} for i, p in enumerate(prompts)]
    found = entities(write(tmp_path / name, rows))
    assert [e.prompt for e in found if isinstance(e, Entity)] == prompts


def test_integer_ids_become_text_and_csv_ids_stay_as_written(tmp_path: Path) -> None:
    rows = [{"entity_id": 2**53 + 1, "prompt": "p"}]
    for name in ("x.parquet", "x.jsonl"):
        assert entities(write(tmp_path / name, rows))[0].entity_id == "9007199254740993"
    rows = [{"entity_id": "007", "prompt": "p"}]
    assert entities(write(tmp_path / "x.csv", rows))[0].entity_id == "007"


def test_folders_take_parts_in_numeric_order_and_ignore_the_rest(tmp_path: Path) -> None:
    for i in (100000, 99999, 7):
        write(tmp_path / f"part-{i:05d}.parquet", [{"entity_id": i, "prompt": "p"}])
    write(tmp_path / "stats-00000.parquet", [{"other": 1}])
    (tmp_path / "_SUCCESS").touch()
    (tmp_path / ".part-1.parquet.crc").write_text("x")
    assert [e.entity_id for e in entities(tmp_path)] == ["7", "99999", "100000"]


def test_globs_select_and_empty_parts_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "a0.jsonl").touch()
    write(tmp_path / "a1.jsonl", [{"entity_id": 1, "prompt": "p"}])
    write(tmp_path / "b1.jsonl", [{"entity_id": 2, "prompt": "p"}])
    assert [e.entity_id for e in entities(tmp_path / "a*.jsonl")] == ["1"]
    with pytest.raises(DraftrecError, match="no file matches"):
        open_records(tmp_path / "c*.jsonl")


@pytest.mark.parametrize("empty", ["part-0.jsonl", "part-9.jsonl", "group=a/part-0.jsonl"])
def test_parts_without_rows_say_nothing_of_columns(tmp_path: Path, empty: str) -> None:
    (tmp_path / empty).parent.mkdir(exist_ok=True)
    (tmp_path / empty).touch()
    full = tmp_path / ("group=b" if "=" in empty else "") / "part-1.jsonl"
    full.parent.mkdir(exist_ok=True)
    write(full, [{"item_id": 1, "title": "T"}])
    reader, settings = read_records(str(tmp_path), RecordsConfig(template="kar"))
    assert (settings.id_column, settings.side) == ("item_id", "item")
    assert [e.entity_id for e in reader] == ["1"]
    assert reader.source.has("title")


def test_columns_of_a_part_are_looked_for_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(3):
        write(tmp_path / f"part-{i}.jsonl", [{"item_id": i, "title": "T"}])
    looked: list[Path] = []
    columns_in = RecordSource._columns_in
    monkeypatch.setattr(
        RecordSource, "_columns_in", lambda self, at: (looked.append(at), columns_in(self, at))[1]
    )
    read_records(str(tmp_path), RecordsConfig(template="kar"))
    assert len(looked) == 3


def test_rows_are_read_only_when_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "x.jsonl", [{"entity_id": i, "prompt": "p"} for i in range(5000)])
    parsed = 0
    loads = json.loads

    def counting(text: str) -> Any:
        nonlocal parsed
        parsed += 1
        return loads(text)

    monkeypatch.setattr(text.json, "loads", counting)
    rows = iter(EntityReader(open_records(path)))
    parsed = 0
    assert len(list(islice(rows, 3))) == 3
    assert parsed <= 4


@pytest.mark.slow
@pytest.mark.parametrize("name", ["x.parquet", "x.jsonl", "x.csv"])
def test_memory_does_not_grow_with_the_number_of_rows(tmp_path: Path, name: str) -> None:
    def peak(count: int) -> int:
        rows = ({"entity_id": f"u{i}", "prompt": "word " * 40 + str(i)} for i in range(count))
        path = write(tmp_path / name, list(rows))
        tracemalloc.start()
        try:
            reader = EntityReader(open_records(path))
            assert sum(1 for _ in reader) == count
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(100)
    assert peak(20_000) < peak(1_000) + 500_000


def test_bad_records_are_rejected_with_their_place_and_reason(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"entity_id": "a", "prompt": None},
        {"entity_id": None, "prompt": "p"},
        {"entity_id": "b", "prompt": ""},
        {"entity_id": 1.5, "prompt": "p"},
        {"entity_id": True, "prompt": "p"},
        {"entity_id": "c", "prompt": ["p"]},
        {"entity_id": "d", "prompt": "\ud800"},
        {"entity_id": "\ud800", "prompt": "p"},
        {"entity_id": "e"},
        {"entity_id": "f", "prompt": "p", "group": 2.5},
        {"entity_id": "ok", "prompt": "p", "group": 3},
    ]
    found = entities(write(tmp_path / "x.jsonl", rows))
    assert [r.line for r in found] == list(range(1, 12))
    assert [isinstance(r, Rejected) for r in found] == [True] * 10 + [False]
    reasons = [r.reason for r in found if isinstance(r, Rejected)]
    assert reasons[0] == "prompt is null"
    assert reasons[1] == "entity_id is null"
    assert reasons[3] == "entity_id is float, not a string or an integer"
    assert all(reasons)
    assert isinstance(found[-1], Entity)
    assert found[-1].group == "3"


def test_templates_reject_records_with_null_fields(tmp_path: Path) -> None:
    template = tmp_path / "t.j2"
    template.write_text("Describe {{ title }} {% if year is defined %}({{ year }}){% endif %}")
    rows = [
        {"entity_id": "a", "title": "Heat", "year": 1995},
        {"entity_id": "b", "title": None, "year": 1995},
        {"entity_id": "c", "title": "Ran", "year": None},
    ]
    layout = Layout(load_template(str(template), "item"))
    found = entities(write(tmp_path / "x.parquet", rows), layout=layout)
    assert [e.prompt for e in found if isinstance(e, Entity)] == [
        "Describe Heat (1995)",
        "Describe Ran ",
    ]
    assert [(e.entity_id, e.reason) for e in found if isinstance(e, Rejected)] == [
        ("b", "title is null")
    ]


def test_limit_and_skip_count_records(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", [{"entity_id": i, "prompt": "p"} for i in range(10)])
    assert [e.entity_id for e in entities(path, limit=4, skip=2)] == ["2", "3"]


def refusal(path: Path, **options: Any) -> str:
    def read() -> None:
        reader = EntityReader(open_records(path), **options)
        reader.check_columns()
        reader.check_ids()
        list(reader)

    with pytest.raises(DraftrecError) as caught:
        read()
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_inputs_that_are_no_records_are_refused(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "nope.parquet")
    for name in ("x.parquet", "x.jsonl", "x.csv"):
        (tmp_path / name).touch()
        assert f"{name} is empty" in refusal(tmp_path / name)
    (tmp_path / "head.csv").write_text("entity_id,prompt\n")
    assert "head.csv is empty" in refusal(tmp_path / "head.csv")
    pq.write_table(pa.table({"entity_id": pa.array([], pa.string())}), tmp_path / "none.parquet")
    assert "none.parquet is empty" in refusal(tmp_path / "none.parquet")
    (tmp_path / "x.xlsx").write_text("x")
    assert "no readable kind" in refusal(tmp_path / "x.xlsx")
    (tmp_path / "v.npy").write_bytes(b"\x93NUMPY")
    assert "an array without ids; write Parquet of both" in refusal(tmp_path / "v.npy")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "notes.txt").write_text("x")
    assert "no readable part" in refusal(tmp_path / "folder")
    assert "mixes" in refusal(tmp_path / "x.*[lv]")


def test_missing_columns_are_named_with_what_is_there(tmp_path: Path) -> None:
    for name in ("x.parquet", "x.jsonl", "x.csv"):
        path = write(tmp_path / name, [{"id": "a", "prompt": "p", "title": "t"}])
        message = refusal(path)
        assert "no column 'entity_id', it has id, prompt, title" in message
        assert "--id-column" in message
        assert "no column 'text'" in refusal(path, layout=Layout(entity_id="id", prompt="text"))
    template = load_template("kar", "user")
    path = write(tmp_path / "y.jsonl", [{"entity_id": "a"}])
    assert f"no column {template.required_fields[0]!r}" in refusal(path, layout=Layout(template))


def test_ids_of_a_wrong_parquet_type_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "x.parquet", [{"entity_id": 1.0, "prompt": "p"}])
    assert "column 'entity_id' is double" in refusal(path)


def test_truncated_files_are_refused(tmp_path: Path) -> None:
    rows = [{"entity_id": i, "prompt": f"{i * 7919 % 10007} " * 20} for i in range(3000)]
    for name in ("x.parquet", "x.jsonl", "x.jsonl.gz", "x.csv.zst"):
        path = write(tmp_path / name, rows)
        content = path.read_bytes()
        for size in (len(content) // 2 + 9, len(content) - 3):
            path.write_bytes(content[:size])
            assert name in refusal(path)


def test_a_truncated_part_shows_before_the_first_record_is_read(tmp_path: Path) -> None:
    for i in range(3):
        write(tmp_path / f"part-{i}.parquet", [{"entity_id": i, "prompt": "p"}])
    last = tmp_path / "part-2.parquet"
    last.write_bytes(last.read_bytes()[:-9])
    with pytest.raises(DraftrecError, match=r"part-2\.parquet cannot be read"):
        open_records(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("x.jsonl", b'{"entity_id": 1, "prompt": "p"}\n{"entity', "line 2 is not JSON"),
        ("x.jsonl", b'{"entity_id": 1, "prompt": "p"}\n[1]\n', "line 2 is not a JSON object"),
        ("x.csv", b"entity_id,prompt\n1,p\n2,p,q\n", "line 3 has 3 cells"),
        ("x.csv", b'entity_id,prompt\n1,"p\n', "unexpected end of data"),
        ("x.csv", b"entity_id,entity_id,prompt\n1,2,p\n", "twice in its header"),
        ("x.jsonl", b'{"entity_id": 1, "prompt": "\xff"}\n', "not UTF-8"),
        ("x.csv", b"entity_id,prompt\n1,\xff\n", "not UTF-8"),
    ],
)
def test_malformed_text_is_refused(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    assert words in refusal(path)


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_bytes("\ufeffentity_id,prompt\r\n1,p\r\n".encode())
    assert entities(path)[0].entity_id == "1"


def test_repeated_ids_are_refused_with_both_places(tmp_path: Path) -> None:
    write(tmp_path / "part-0.jsonl", [{"entity_id": 5, "prompt": "p"}, {"prompt": "p"}])
    write(tmp_path / "part-1.jsonl", [{"prompt": "p"}, {"entity_id": "5", "prompt": "q"}])
    message = refusal(tmp_path)
    assert "entity_id '5' is repeated in part-0.jsonl line 1 and part-1.jsonl line 2" in message


def test_equal_hashes_of_different_ids_are_no_repetition(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "x.jsonl", [{"entity_id": i, "prompt": "p"} for i in range(9)])
    monkeypatch.setattr(records, "_short_hash", lambda value: 1 + value % 3)
    assert EntityReader(open_records(path)).check_ids() == 9


def test_fingerprints_follow_content_and_order(tmp_path: Path) -> None:
    one = write(tmp_path / "one.jsonl", ROWS)
    two = write(tmp_path / "two.jsonl", ROWS)
    assert open_records(one).fingerprint() == open_records(two).fingerprint()
    write(two, ROWS[:2])
    assert open_records(one).fingerprint() != open_records(two).fingerprint()


def test_group_tables_find_every_group(tmp_path: Path) -> None:
    rows = [{"entity_id": f"u{i}", "group": f"g{i % 7}", "method": "given"} for i in range(500)]
    rows.append({"entity_id": "lonely", "group": None, "method": "given"})
    table = GroupTable.load(write(tmp_path / "g.parquet", rows))
    assert [table.get(row["entity_id"]) for row in rows] == [row["group"] for row in rows]
    assert table.get("stranger") is None
    prompts = write(tmp_path / "x.jsonl", [{"entity_id": "u8", "prompt": "p", "group": "own"}])
    assert entities(prompts, groups=table)[0].group == "g1"


def test_group_tables_tell_colliding_halves_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"entity_id": str(i), "group": f"g{i}"} for i in range(20)]

    def half(entity_id: str) -> tuple[int, int]:
        return int(entity_id) % 2, int(entity_id)

    monkeypatch.setattr(records, "_long_hash", half)
    table = GroupTable.load(write(tmp_path / "g.jsonl", rows))
    assert [table.get(str(i)) for i in range(20)] == [f"g{i}" for i in range(20)]


def test_group_files_must_be_unambiguous(tmp_path: Path) -> None:
    rows = [{"entity_id": "a", "group": "x"}, {"entity_id": "a", "group": "y"}]
    with pytest.raises(DraftrecError, match="more than once"):
        GroupTable.load(write(tmp_path / "g.csv", rows))
    with pytest.raises(DraftrecError, match="no column 'group'"):
        GroupTable.load(write(tmp_path / "h.csv", [{"entity_id": "a"}]))


def test_equal_tables_give_equal_bytes(tmp_path: Path) -> None:
    def tables() -> Iterator[pa.Table]:
        for _ in range(2):
            yield pa.Table.from_pylist(ROWS * 100)

    for i, table in enumerate(tables()):
        replace_parquet(tmp_path / f"{i}.parquet", table)
    assert (tmp_path / "0.parquet").read_bytes() == (tmp_path / "1.parquet").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["0.parquet", "1.parquet"]
