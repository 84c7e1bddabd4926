"""Columns whose Arrow type is not the one that pandas writes: the same ids all the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from draftrec.data.events import EventColumns, read_events
from draftrec.data.sequences import read_histories, read_semantic_ids
from draftrec.data.tables.readers import open_records
from draftrec.data.vectors import read_item_vectors

_UUIDS = [UUID(int=n) for n in (7, 1, 2**127)]


def _uuids() -> pa.Array:
    storage = pa.array([value.bytes for value in _UUIDS], pa.binary(16))
    return pa.ExtensionArray.from_storage(pa.uuid(), storage)


_COLUMNS: dict[str, tuple[pa.Array, list[Any]]] = {
    "decimal": (pa.array([7, 1, 2**62], pa.decimal128(38, 0)), [7, 1, 2**62]),
    "decimals in a dictionary": (
        pa.array([7, 1, 7], pa.decimal128(20, 0)).dictionary_encode(),
        [7, 1, 7],
    ),
    "uuid": (_uuids(), [str(value) for value in _UUIDS]),
    "bytes": (pa.array([b"a", b"b", b"a"]), ["a", "b", "a"]),
    "bytes in a dictionary": (pa.array([b"a", b"b", b"a"]).dictionary_encode(), ["a", "b", "a"]),
}
_DISTINCT = ["decimal", "uuid"]


@pytest.mark.parametrize("kind", _COLUMNS)
def test_ids_of_interactions_and_sequences(tmp_path: Path, kind: str) -> None:
    column, ids = _COLUMNS[kind]
    path = tmp_path / "e.parquet"
    pq.write_table(pa.table({"user_id": column, "item_id": column}), path)
    events = read_events(str(path), EventColumns())
    assert [events.items[i] for i in events.item] == sorted(map(str, ids), key=events.items.index)
    lists = pa.ListArray.from_arrays([0, 2, 3], column)
    users = column.take(pa.array([0, 0]))
    pq.write_table(pa.table({"user": users, "items": lists, "part": ["train", "test"]}), path)
    (found,) = read_histories(path, "test", None)
    assert (found.user, found.items.tolist(), found.targets.tolist()) == (ids[0], ids[:2], ids[2:])


@pytest.mark.parametrize("kind", _DISTINCT)
def test_ids_of_catalogues_vectors_and_records(tmp_path: Path, kind: str) -> None:
    column, ids = _COLUMNS[kind]
    path = tmp_path / "s.parquet"
    codes = pa.array([[1], [2], [3]], pa.list_(pa.decimal128(38, 0)))
    for sid in (codes, pa.array([[b"<a_1>"], [b"<a_2>"], [b"<a_3>"]])):
        pq.write_table(pa.table({"item": column, "sid": sid}), path)
        assert read_semantic_ids(path).sids_of(ids) == [["<a_1>"], ["<a_2>"], ["<a_3>"]]
    vectors = np.eye(3, dtype=np.float32)
    pq.write_table(pa.table({"item": column, "vector": list(vectors)}), path)
    assert read_item_vectors(path).items.tolist() == ids
    open_records(path).refuse_type("item", "a string or an integer")


def test_moments_in_a_dictionary_keep_their_nanoseconds(tmp_path: Path) -> None:
    times = pa.array([1_700_000_000_000_000_002, 1_700_000_000_000_000_001], pa.timestamp("ns"))
    columns = {"user_id": [1, 1], "item_id": [0, 1], "timestamp": times.dictionary_encode()}
    pq.write_table(pa.table(columns), tmp_path / "e.parquet")
    events = read_events(str(tmp_path / "e.parquet"), EventColumns())
    assert [events.items[i] for i in events.item] == ["1", "0"]


def test_decimals_with_a_fraction_stay_no_ids(tmp_path: Path) -> None:
    prices = pa.array([1, 2]).cast(pa.decimal128(22, 2))
    pq.write_table(pa.table({"price": prices}), tmp_path / "e.parquet")
    (first, _) = open_records(tmp_path / "e.parquet").rows()
    assert str(first.values["price"]) == "1.00"
