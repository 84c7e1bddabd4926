"""Vectors in Parquet: a column of ids and one of equally long lists of numbers."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from draftrec.core import FloatArray
from draftrec.data.files.places import Place, arrow_path
from draftrec.data.tables.columns import ENTITY, ITEM, VECTOR, column_ids, need_columns
from draftrec.data.tables.readers import RecordSource, open_records
from draftrec.data.tables.values import python_rows
from draftrec.errors import DraftrecError
from draftrec.items.ids import Ids, as_text, as_whole, is_text, joined_ids
from draftrec.items.side_by_side import Kind

_BATCH_ROWS = 65_536


@dataclass(frozen=True, eq=False, slots=True)
class ItemVectors:
    """`items` `[n]`, int64 or texts (see `items.ids`), distinct, in file order; `vectors`
    float32 `[n, d]`, all finite. `spelt`: the items are numbers that came as texts."""

    items: Ids
    vectors: FloatArray
    spelt: bool = False


@dataclass(frozen=True, eq=False, slots=True)
class EntityVectors:
    """`ids`, distinct, in file order; `vectors` float32 `[n, d]`, all finite."""

    ids: list[str]
    vectors: FloatArray


def vectors_schema(dim: int) -> pa.Schema:
    """Columns of a vectors file: `entity_id`, and `vector` of `dim` float32."""
    return pa.schema(
        [
            pa.field("entity_id", pa.string(), nullable=False),
            pa.field("vector", pa.list_(pa.float32(), dim), nullable=False),
        ]
    )


def vector_column(vectors: FloatArray) -> pa.FixedSizeListArray:
    """float32 `[n, d]` as an Arrow column."""
    flat = pa.array(np.ascontiguousarray(vectors, np.float32).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])


def unit(vectors: Any) -> Any:
    """Vectors `[n, d]` of length one, in their dtype; those of zeros stay."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, 1.0)


def item_vectors_table(items: Ids, vectors: FloatArray) -> pa.Table:
    """`items` `[n]` and their `vectors` float32 `[n, d]` as a vectors file has them."""
    ids = pa.array([str(item) for item in items.tolist()], pa.string())
    columns = [ids, vector_column(vectors)]
    return pa.Table.from_arrays(columns, schema=vectors_schema(vectors.shape[1]))


def read_vectors(location: str | Place) -> EntityVectors:
    """Read what `draftrec encode` wrote, or any Parquet with such columns; ids become texts.

    Raises DraftrecError as `read_item_vectors` does, but ids need not be numbers.
    """
    ids: list[str] = []
    blocks: list[FloatArray] = []
    source = _parquet(location)
    entity, vector = "entity_id", "vector"
    source.require([entity, vector], "a vectors file has the columns entity_id and vector")
    for path, batch in _batches(source, entity, vector):
        block = _entity_ids(batch, path, entity)
        width = blocks[0].shape[1] if blocks else None
        blocks.append(_vectors(batch.column(vector), block, width, path, "entity"))
        ids += block
    if len(set(ids)) < len(ids):
        seen: set[str] = set()
        twice = next(i for i in ids if i in seen or seen.add(i))
        raise DraftrecError(f"{location}: {twice!r} is listed twice; keep one row each")
    return EntityVectors(ids, np.concatenate(blocks))


def read_item_vectors(
    location: str | Place, item: str | None = None, vector: str | None = None
) -> ItemVectors:
    """Read the columns `item` (whole numbers or texts) and `vector`, None for the usual ones. Texts
    that all spell whole numbers become these, since `draftrec encode` writes ids as texts.

    Raises DraftrecError for files that are not Parquet, missing columns, other types, nulls,
    vectors of different lengths, numbers that are not finite, and repeated items.
    """
    items: list[Ids] = []
    vectors: list[FloatArray] = []
    source = _parquet(location)
    names = [(ENTITY.called("item", ITEM.option), item), (VECTOR, vector)]
    item, vector = need_columns(source, names, "item vectors have the columns item and vector")
    for path, batch in _batches(source, item, vector):
        items.append(_items(batch.column(item), path, item))
        width = vectors[0].shape[1] if vectors else None
        vectors.append(_vectors(batch.column(vector), items[-1], width, path, "item"))
    ids = joined_ids(items)
    numbers = as_whole(ids)
    spelt = numbers is not None and is_text(ids)
    found = ItemVectors(ids if numbers is None else numbers, np.concatenate(vectors), spelt)
    ordered = np.sort(found.items)
    repeated = ordered[1:][ordered[1:] == ordered[:-1]]
    if len(repeated):
        raise DraftrecError(f"{location}: item {repeated[0]} is listed twice; keep one row each")
    return found


def read_kinds(
    locations: Seq[str], weights: Seq[float], item: str | None = None, vector: str | None = None
) -> list[Kind]:
    """Item vectors of one kind from each file, as `read_item_vectors` reads it. Where the items of
    one are texts, those of others that came as texts are, too.

    Raises DraftrecError as that does, and where one file has numbers and another has texts.
    """
    read = [read_item_vectors(location, item, vector) for location in locations]
    texts = [i for i, found in enumerate(read) if is_text(found.items)]
    numbers = [i for i, found in enumerate(read) if not (is_text(found.items) or found.spelt)]
    if texts and numbers:
        raise DraftrecError(
            f"items are numbers in {locations[numbers[0]]} and texts, such as "
            f"{read[texts[0]].items[0]!r}, in {locations[texts[0]]}; name them alike in all files"
        )
    return [
        Kind(location, as_text(found.items) if texts else found.items, found.vectors, weight)
        for location, found, weight in zip(locations, read, weights, strict=True)
    ]


def _parquet(location: str | Place) -> RecordSource:
    source = open_records(location)
    if source.kind != "parquet":
        raise DraftrecError(f"{location} is not Parquet; vectors are read from Parquet only")
    return source


def _batches(source: RecordSource, key: str, vector: str) -> Iterator[tuple[Place, pa.RecordBatch]]:
    for path in source.files:
        with pq.ParquetFile(arrow_path(path)) as file:
            for batch in file.iter_batches(_BATCH_ROWS, columns=[key, vector]):
                yield path, batch


def _entity_ids(batch: pa.RecordBatch, path: Place, name: str) -> list[str]:
    ids = [row[name] for row in python_rows(batch.select([name]))]
    if None in ids:
        raise DraftrecError(f"{path}: {name} is null in a row; remove the row")
    if not all(isinstance(value, str | int) and not isinstance(value, bool) for value in ids):
        kind = batch.schema.field(name).type
        raise DraftrecError(f"{path}: {name} must hold texts or whole numbers, not {kind}")
    return [str(value) for value in ids]


def _items(column: Any, path: Place, name: str) -> Ids:
    if column.null_count:
        raise DraftrecError(f"{path}: {name} is null in a row; remove the row")
    found = column_ids(column)
    if found is None:
        raise DraftrecError(
            f"{path}: {name} must hold whole numbers (it is {column.type}) of 64 bits, or texts "
            "none of which is empty; convert it first"
        )
    return found


def _vectors(
    column: Any, ids: Seq[Any] | Ids, width: int | None, path: Place, noun: str
) -> FloatArray:
    """float32 `[rows, d]` of one batch; `width` is that of the batches before."""
    kind = column.type
    lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    number = any(test(kind) for test in lists) and (
        pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type)
    )
    if not number:
        raise DraftrecError(f"{path}: vectors must be lists of numbers, not {kind}; convert them")
    lengths = column.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    wanted = int(lengths[0]) if width is None else width
    wrong = np.flatnonzero((lengths != wanted) | (lengths == 0))
    if len(wrong):
        raise DraftrecError(
            f"{path}: the vector of {noun} {ids[wrong[0]]} has {lengths[wrong[0]]} numbers where "
            f"the first has {wanted}; all must have equally many, at least one"
        )
    # Not safe: whole numbers of which float32 has no exact one are rounded, as fractions are.
    flat = column.flatten().cast(pa.float32(), safe=False).to_numpy(zero_copy_only=False)
    found = np.asarray(flat, np.float32).reshape(len(ids), wanted)
    bad = np.flatnonzero(~np.isfinite(found).all(axis=1))
    if len(bad):
        raise DraftrecError(
            f"{path}: the vector of {noun} {ids[bad[0]]} holds a number that is missing or not "
            "finite; mend or remove the row"
        )
    return found
