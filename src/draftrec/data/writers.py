"""Writing files so that a crash leaves the old one or the new one, never half of one."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

#: Ends the name of a file that is being written.
TEMPORARY = ".tmp"


def replace_file(path: Path, content: bytes | pa.Buffer) -> None:
    """Write to a temporary name, force it to disk, rename it into place."""
    temporary = path.with_name(path.name + TEMPORARY)
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Force renames in a folder to disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_parquet(path: Path, table: pa.Table) -> int:
    """Write a table as zstd Parquet through memory; the file's size.

    Equal tables give equal bytes: the writer stores no times, and no library may add metadata.
    Plain file writes also keep the operating system's own words for a full disk.
    """
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    content = sink.getvalue()
    replace_file(path, content)
    return content.size
