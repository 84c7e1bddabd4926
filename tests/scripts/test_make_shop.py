"""What the package ships of the bookshop is what the generator makes, and small."""

from __future__ import annotations

import json
import shutil
from itertools import islice
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from bookshop.series import make_shop, stream_readings
from bookshop.world import is_held_out, stream_records
from make_shop import SHIPPED, differing

from draftrec.demo import shop
from draftrec.errors import DraftrecError

PACKAGE = Path(shop.__file__).parents[1]


@pytest.mark.slow
def test_shipped_files_are_what_the_generator_makes(tmp_path: Path) -> None:
    assert differing(SHIPPED) == []
    shutil.copytree(SHIPPED, tmp_path / "shop")
    path = tmp_path / "shop" / "books.parquet"
    pq.write_table(pq.read_table(path).slice(1), path)
    (tmp_path / "shop" / "readings.parquet").unlink()
    assert differing(tmp_path / "shop") == ["books", "readings"]


def test_readers_are_the_generator_s_records_byte_by_byte() -> None:
    made = [json.dumps(record) for record in islice(stream_records("user"), 400)]
    assert [json.dumps(record) for record in shop.readers()[:400]] == made


@pytest.mark.slow
def test_readers_are_held_out_by_their_ids() -> None:
    warm, held_out = shop.split_readers(0)
    assert {len(warm) + len(held_out)} == {len(shop.readers())} == {2000}
    assert [r["entity_id"] for r in held_out] == sorted(r["entity_id"] for r in held_out)
    assert all(is_held_out(r["entity_id"]) for r in held_out)
    assert not any(is_held_out(r["entity_id"]) for r in warm)
    assert shop.split_readers(1)[1] != held_out
    assert shop.split_readers(1) == shop.split_readers(1)


@pytest.mark.slow
def test_readings_are_the_generator_s() -> None:
    made = make_shop(0, 600)
    assert shop.titles() == [book.title for book in made.books]
    read = [tuple(books.tolist()) for books in shop.readings(50)]
    assert read == [reading.books for reading in islice(stream_readings(made), 50)]
    assert len(shop.readings()) == shop.READERS


def test_missing_files_are_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(shop, "_PACKAGE", tmp_path)
    with pytest.raises(DraftrecError, match="install draftrec again"):
        shop.readers()


def test_the_package_stays_small() -> None:
    """Models, data and pages that are shipped beside the code."""
    files = [p for p in PACKAGE.rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    assert sum(p.stat().st_size for p in files if p.suffix != ".py") <= 6_000_000
