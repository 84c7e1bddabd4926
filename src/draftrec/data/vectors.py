"""Item vectors from Parquet: a column of item ids and one of equally long lists of numbers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from draftrec.core import FloatArray
from draftrec.data.readers import open_records
from draftrec.errors import DraftrecError

Int64Array = npt.NDArray[np.int64]
_BATCH_ROWS = 65_536


@dataclass(frozen=True, eq=False, slots=True)
class ItemVectors:
    """`items` int64 `[n]`, distinct, in file order; `vectors` float32 `[n, d]`, all finite."""

    items: Int64Array
    vectors: FloatArray


def read_item_vectors(location: str | Path, item: str, vector: str) -> ItemVectors:
    """Read the columns `item` (whole numbers, or texts of them) and `vector`.

    Raises DraftrecError for files that are not Parquet, missing columns, other types, nulls,
    vectors of different lengths, numbers that are not finite, and repeated items.
    """
    source = open_records(location)
    if source.kind != "parquet":
        raise DraftrecError(f"{location} is not Parquet; item vectors are read from Parquet only")
    source.require([item, vector], "name the columns with --item-column and --vector-column")
    items: list[Int64Array] = []
    vectors: list[FloatArray] = []
    for path in source.files:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(_BATCH_ROWS, columns=[item, vector]):
                items.append(_items(batch.column(item), path, item))
                width = vectors[0].shape[1] if vectors else None
                vectors.append(_vectors(batch.column(vector), items[-1], width, path))
    found = ItemVectors(np.concatenate(items), np.concatenate(vectors))
    ordered = np.sort(found.items)
    repeated = ordered[1:][ordered[1:] == ordered[:-1]]
    if len(repeated):
        raise DraftrecError(f"{location}: item {repeated[0]} is listed twice; keep one row each")
    return found


def _items(column: Any, path: Path, name: str) -> Int64Array:
    if column.null_count:
        raise DraftrecError(f"{path}: {name} is null in a row; remove the row")
    try:
        if not pa.types.is_floating(column.type):
            return column.cast(pa.int64()).to_numpy(zero_copy_only=False)
        reason = f"it is {column.type}"
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        reason = " ".join(str(error).split())
    raise DraftrecError(f"{path}: {name} must hold whole numbers ({reason}); convert it first")


def _vectors(column: Any, items: Int64Array, width: int | None, path: Path) -> FloatArray:
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
            f"{path}: the vector of item {items[wrong[0]]} has {lengths[wrong[0]]} numbers where "
            f"the first has {wanted}; all must have equally many, at least one"
        )
    flat = column.flatten().cast(pa.float32()).to_numpy(zero_copy_only=False)
    found = np.asarray(flat, np.float32).reshape(len(items), wanted)
    bad = np.flatnonzero(~np.isfinite(found).all(axis=1))
    if len(bad):
        raise DraftrecError(
            f"{path}: the vector of item {items[bad[0]]} holds a number that is missing or not "
            "finite; mend or remove the row"
        )
    return found
