"""Writing files so that a crash leaves the old one or the new one, never half of one."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from draftrec.data.places import Place, RemotePath

#: Ends the name of a file that is being written.
TEMPORARY = ".tmp"


def replace_file(path: Place, content: bytes | pa.Buffer) -> None:
    """Write to a temporary name, force it to disk, rename it into place; or upload it whole."""
    with replacing(path) as file:
        file.write(content)


@contextmanager
def replacing(path: Place) -> Iterator[BinaryIO]:
    """A file to write to that takes the place of `path` when all went well, and not before."""
    if isinstance(path, RemotePath):
        with _uploading(path) as file:
            yield file
        return
    temporary = path.with_name(path.name + TEMPORARY)
    try:
        with naming(path), temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        temporary.unlink(missing_ok=True)  # on a full disk, what it holds is needed
        raise
    temporary.replace(path)
    sync_folder(path.parent)


@contextmanager
def _uploading(path: RemotePath) -> Iterator[BinaryIO]:
    """A file of this machine whose content appears at an address once it is complete."""
    with tempfile.NamedTemporaryFile(prefix="draftrec-") as file:
        yield file  # type: ignore[misc] - a wrapper of one
        file.flush()
        path.upload(Path(file.name))


def append_file(path: Path, content: bytes) -> int:
    """Add to the end of a file and force it to disk; the file's new size."""
    with naming(path), path.open("ab") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
        return file.tell()


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Have errors of writing say where; a full disk does not by itself."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def sync_folder(folder: Path) -> None:
    """Force renames in a folder to disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_parquet(path: Place, table: pa.Table) -> int:
    """Write a table as zstd Parquet through memory; the file's size.

    Equal tables give equal bytes: the writer stores no times, and no library may add metadata.
    Plain file writes also keep the operating system's own words for a full disk.
    """
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    content = sink.getvalue()
    replace_file(path, content)
    return content.size


def stream_parquet(path: Place, schema: pa.Schema, tables: Iterable[pa.Table]) -> int:
    """Write tables one after another as zstd Parquet, one in memory at a time; the file's size."""
    with replacing(path) as file:
        with pq.ParquetWriter(file, schema, compression="zstd") as writer:
            for table in tables:
                writer.write_table(table)
        return file.tell()
