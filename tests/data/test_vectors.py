"""Vectors from Parquet: which types are read, what is refused and in which words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from draftrec.data import vectors as module
from draftrec.data.vectors import read_item_vectors, read_vectors, vector_column, vectors_schema
from draftrec.errors import DraftrecError

VECTORS = [[1.0, 2.0], [3.0, 4.5], [-1.0, 0.0]]


def write(path: Path, items: Any, vectors: Any) -> Path:
    pq.write_table(pa.table({"item": items, "vector": vectors}), path)
    return path


@pytest.mark.parametrize(
    "kind",
    [
        pa.list_(pa.float32()),
        pa.list_(pa.float64()),
        pa.large_list(pa.float16()),
        pa.list_(pa.float32(), 2),
    ],
    ids=str,
)
@pytest.mark.parametrize("items", [pa.array([7, 3, 9], pa.int16()), pa.array(["7", "3", "9"])])
def test_lists_of_numbers_are_read(tmp_path: Path, items: pa.Array, kind: pa.DataType) -> None:
    path = write(tmp_path / "v.parquet", items, pa.array(VECTORS, kind))
    found = read_item_vectors(path, "item", "vector")
    assert found.items.tolist() == [7, 3, 9]
    assert found.vectors.tolist() == VECTORS
    assert (found.items.dtype, found.vectors.dtype) == (np.int64, np.float32)


def test_folders_are_read_batch_by_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BATCH_ROWS", 2)
    for part in range(2):
        items = [part * 3 + i for i in range(3)]
        write(tmp_path / f"part-{part}.parquet", items, pa.array(VECTORS))
    found = read_item_vectors(tmp_path, "item", "vector")
    assert found.items.tolist() == list(range(6))
    assert found.vectors.tolist() == VECTORS * 2


@pytest.mark.parametrize(
    ("items", "vectors", "words"),
    [
        ([1, 2], [[1.0, 2.0], [1.0]], "item 2 has 1 numbers where the first has 2"),
        ([1, 2], [[1.0], None], "item 2 has 0 numbers"),
        ([1, 2], pa.array([[], []], pa.list_(pa.float32())), "item 1 has 0 numbers"),
        ([1, 2], [[1.0], [float("nan")]], "item 2 holds a number that is missing or not finite"),
        ([1, 2], [[1.0], [float("inf")]], "item 2 holds"),
        ([1, 2], [[None], [1.0]], "item 1 holds"),
        ([1, 2], [["x"], ["y"]], "lists of numbers, not list<"),
        ([1, 2], [1.0, 2.0], "lists of numbers, not double"),
        ([1, None], [[1.0], [2.0]], "item is null"),
        ([1.0, 2.0], [[1.0], [2.0]], "item must hold whole numbers .it is double"),
        (["a", ""], [[1.0], [2.0]], "item must hold whole numbers .* none of which is empty"),
        (["a", "a"], [[1.0], [2.0]], "item a is listed twice"),
        ([5, 5], [[1.0], [2.0]], "item 5 is listed twice"),
    ],
)
def test_unusable_rows_are_refused(tmp_path: Path, items: Any, vectors: Any, words: str) -> None:
    path = write(tmp_path / "v.parquet", items, vectors)
    with pytest.raises(DraftrecError, match=words):
        read_item_vectors(path, "item", "vector")


def test_missing_columns_and_other_kinds_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "v.parquet", [1], [[1.0]])
    with pytest.raises(DraftrecError, match=r"no column 'entity_id'.*--item-column"):
        read_item_vectors(path, "entity_id", "vector")
    (tmp_path / "v.jsonl").write_text('{"item": 1, "vector": [1]}\n')
    with pytest.raises(DraftrecError, match="not Parquet"):
        read_item_vectors(tmp_path / "v.jsonl", "item", "vector")


class TestEntities:
    @pytest.mark.parametrize(
        "ids",
        [
            pa.array(["b", "a", "7"]),
            pa.array([3, 1, 2**64 - 1], pa.uint64()),
            pa.array(["b", "a", "7"]).dictionary_encode(),
        ],
    )
    def test_ids_are_texts_in_file_order(self, tmp_path: Path, ids: pa.Array) -> None:
        path = tmp_path / "v.parquet"
        pq.write_table(pa.table({"entity_id": ids, "vector": pa.array(VECTORS)}), path)
        found = read_vectors(path)
        assert found.ids == [str(i) for i in ids.to_pylist()]
        assert found.vectors.tolist() == VECTORS
        assert found.vectors.dtype == np.float32

    def test_what_is_written_is_read(self, tmp_path: Path) -> None:
        vectors = np.array(VECTORS, np.float32)
        columns = {"entity_id": ["5", "6", "7"], "vector": vector_column(vectors)}
        table = pa.table(columns, schema=vectors_schema(2))
        pq.write_table(table, tmp_path / "v.parquet")
        assert read_vectors(tmp_path / "v.parquet").vectors.tolist() == VECTORS
        items = read_item_vectors(tmp_path / "v.parquet", "entity_id", "vector")
        assert items.items.tolist() == [5, 6, 7]

    @pytest.mark.parametrize(
        ("ids", "vectors", "words"),
        [
            (["a", "a"], [[1.0], [2.0]], "'a' is listed twice"),
            (["a", None], [[1.0], [2.0]], "entity_id is null"),
            ([1.5, 2.5], [[1.0], [2.0]], "texts or whole numbers, not double"),
            (["a", "b"], [[1.0], [1.0, 2.0]], "entity b has 2 numbers where the first has 1"),
        ],
    )
    def test_unusable_rows_are_refused(
        self, tmp_path: Path, ids: Any, vectors: Any, words: str
    ) -> None:
        pq.write_table(pa.table({"entity_id": ids, "vector": vectors}), tmp_path / "v.parquet")
        with pytest.raises(DraftrecError, match=words):
            read_vectors(tmp_path / "v.parquet")


def test_whole_numbers_are_rounded_as_fractions_are(tmp_path: Path) -> None:
    """float32 has no 2**24 + 1, which Arrow would rather refuse."""
    numbers = [[2**24 + 1, -(2**40) - 1], [0, 3]]
    path = write(tmp_path / "v.parquet", pa.array([1, 2]), pa.array(numbers))
    found = read_item_vectors(path, "item", "vector")
    assert found.vectors.tolist() == np.array(numbers, np.float32).tolist()
