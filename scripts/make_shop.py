"""Write what the package ships of the fictional bookshop, or check that it is what is made here.

    python scripts/make_shop.py [--output src/draftrec/assets/bookshop] [--check]

`readers.parquet`: the first readers as records for `draftrec generate`, and whether each is held
out. `books.parquet` and `readings.parquet`: the shop with series that `train_genrec_demo.py` trains
on, its titles by number, and the numbers that each reader read. All of one seed, in seconds.
"""

from __future__ import annotations

import argparse
import sys
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from bookshop.series import make_shop, stream_readings
from bookshop.world import is_held_out, stream_records

SEED, RECORDS, BOOKS, READERS = 0, 2000, 600, 12_000
SHIPPED = Path(__file__).resolve().parents[1] / "src" / "draftrec" / "assets" / "bookshop"


def tables() -> dict[str, pa.Table]:
    """Every file's content, by its name."""
    rows = list(stream_records("user", RECORDS, seed=SEED))
    held_out = pa.array([is_held_out(row["entity_id"]) for row in rows])
    shop = make_shop(SEED, BOOKS)
    read = [list(one.books) for one in islice(stream_readings(shop), READERS)]
    return {
        "readers": pa.Table.from_pylist(rows).append_column("held_out", held_out),
        "books": pa.table({"title": [book.title for book in shop.books]}),
        "readings": pa.table({"books": pa.array(read, pa.list_(pa.int16()))}),
    }


def differing(folder: Path) -> list[str]:
    """Names of the files in `folder` that are not what is made here; bytes are up to the writer."""
    found = {path.stem: pq.read_table(path) for path in folder.glob("*.parquet")}
    made = tables()
    return [
        name for name in sorted(found.keys() | made.keys()) if found.get(name) != made.get(name)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=SHIPPED)
    parser.add_argument("--check", action="store_true", help="write nothing, exit 1 if they differ")
    options = parser.parse_args()
    if options.check:
        wrong = differing(options.output)
        print(f"not what the generator makes: {', '.join(wrong)}" if wrong else "as generated")
        sys.exit(bool(wrong))
    options.output.mkdir(parents=True, exist_ok=True)
    for name, table in tables().items():
        path = options.output / f"{name}.parquet"
        pq.write_table(table, path, compression="zstd", compression_level=19)
        print(f"{path}: {table.num_rows} rows, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
