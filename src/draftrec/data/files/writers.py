"""Writing files so that a crash leaves the old one or the new one, never half of one; and tables as
files that people have programs for: Parquet, JSON lines or CSV, by the ending; and the journal of a
shard under way.
"""

from __future__ import annotations

import csv
import errno
import io
import json
import math
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import date
from datetime import time as clock
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Generic, Self, TypeVar

from draftrec.data.files.places import Place, RemotePath
from draftrec.errors import DraftrecError

if TYPE_CHECKING:
    import pyarrow as pa  # not loaded with the pools, which need none of it

    Write = Callable[[Place, pa.Schema, Iterable[pa.Table]], object]

#: Ends the name of a file that is being written.
TEMPORARY = ".tmp"
_GATHERED_SECONDS = 60.0
#: What file systems say that force no folder to disk: shares of Windows, some that programs serve.
_NO_FOLDER_SYNC = (errno.EBADF, errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)


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
    with renaming(path) as temporary, temporary.open("wb") as file:
        yield file


@contextmanager
def renaming(path: Path) -> Iterator[Path]:
    """The same for libraries that open files themselves: the name that they are to write to. A
    link stays one, and what it leads to is replaced."""
    path = behind_link(path)
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    temporary = path.with_name(path.name + TEMPORARY)
    try:
        with naming(path):
            yield temporary
            _sync_file(temporary)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)  # nobody's; and on a full disk, what it holds is needed
        raise
    sync_folder(path.parent)


def behind_link(path: Path) -> Path:
    """What a link leads to, perhaps on another disk; any other path as it is."""
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def share(folder: Path) -> None:
    """Give the folder's files the rights of new files, which is what the umask says: safetensors
    keeps others from reading what it writes."""
    probe = folder / f".rights{TEMPORARY}"
    probe.touch()
    rights = stat.S_IMODE(probe.stat().st_mode)
    probe.unlink()
    for path in folder.iterdir():
        if path.is_file():
            path.chmod(rights)


@contextmanager
def _uploading(path: RemotePath) -> Iterator[BinaryIO]:
    """A file of this machine whose content appears at an address once it is complete."""
    with tempfile.NamedTemporaryFile(prefix="draftrec-") as file:
        yield file  # type: ignore[misc] - a wrapper of one
        file.flush()
        path.upload(Path(file.name))


def append_file(path: Place, content: bytes) -> int:
    """Add to the end of a file and force it to disk; the file's new size. A file elsewhere, where
    nothing can be added to one, is written anew."""
    if isinstance(path, RemotePath):
        whole = (path.read_bytes() if path.exists() else b"") + content
        if content:
            replace_file(path, whole)
        return len(whole)
    with naming(path), path.open("ab") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
        return file.tell()


class GatheredLines:
    """Lines for a file elsewhere, which is written anew at most every minute."""

    def __init__(self) -> None:
        self._lines: list[bytes] = []
        self._written = time.monotonic()

    def add(self, path: Place, line: bytes) -> None:
        """Keep a line; write what has gathered if it is time."""
        self._lines.append(line)
        if time.monotonic() - self._written >= _GATHERED_SECONDS:
            self.write(path)

    def write(self, path: Place) -> None:
        """Add what has gathered to the file."""
        append_file(path, b"".join(self._lines))
        self._lines, self._written = [], time.monotonic()


def cut_file(path: Place, size: int) -> None:
    """Let a file, if there is one, be no longer than `size` bytes."""
    if not path.exists() or path.stat().st_size <= size:
        return
    if isinstance(path, RemotePath):
        replace_file(path, path.read_bytes()[:size])
    else:
        os.truncate(path, size)


def cut_torn_line(path: Path) -> None:
    """Drop a last line that a crash left without its end, so that a file stays lines."""
    if not path.exists():
        return
    with path.open("rb") as file:
        start = max(0, path.stat().st_size - (1 << 16))
        file.seek(start)
        tail = file.read()
    cut_file(path, start + tail.rfind(b"\n") + 1)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Have errors of writing say where: a full disk does not by itself, and libraries in Rust
    (safetensors, tokenizers) have errors of their own for it."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise
    except Exception as error:
        if (number := system_error(error)) is None:
            raise
        raise OSError(number, os.strerror(number), str(path)) from error


#: How libraries in Rust, whose errors are no OSErrors, say what the system told them.
_OF_RUST = re.compile(r"(?:\bos error |\bOs \{ code: )(\d+)")


def system_error(error: Exception) -> int | None:
    """The number of what the system told a library in Rust; None for any other error."""
    found = _OF_RUST.search(str(error))
    return int(found[1]) if found else None


def remove_folder(folder: Place) -> None:
    """Remove a folder of files with all that is in it."""
    if not isinstance(folder, RemotePath):
        shutil.rmtree(folder)
        return
    for path in folder.iterdir():
        path.unlink(missing_ok=True)
    folder.rmdir()


def sync_folder(folder: Place) -> None:
    """Force renames in a folder to disk, where its file system can."""
    if isinstance(folder, RemotePath):
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise
    finally:
        os.close(descriptor)


def sync_files(folder: Path) -> None:
    """Force all files of a folder to disk, and their names; not those of folders in it."""
    for path in folder.iterdir():
        if path.is_file():
            _sync_file(path)
    sync_folder(folder)


def _sync_file(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def replace_parquet(path: Place, table: pa.Table) -> int:
    """Write a table as zstd Parquet through memory; the file's size.

    Equal tables give equal bytes: the writer stores no times, and no library may add metadata.
    Plain file writes also keep the operating system's own words for a full disk.
    """
    import pyarrow as pa  # not loaded with the pools, which need none of it
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    content = sink.getvalue()
    replace_file(path, content)
    return content.size


def stream_parquet(path: Place, schema: pa.Schema, tables: Iterable[pa.Table]) -> int:
    """Write tables one after another as zstd Parquet, one in memory at a time; the file's size."""
    import pyarrow.parquet as pq

    with replacing(path) as file:
        with pq.ParquetWriter(file, schema, compression="zstd") as writer:
            for table in tables:
                writer.write_table(table)
        return file.tell()


def check_table_name(path: Place) -> None:
    """Raise DraftrecError for a name that `write_tables` would refuse."""
    if path.suffix not in _WRITERS:
        raise DraftrecError(
            f"--output {path} must be a file whose name ends in {', '.join(_WRITERS)}; that is "
            "the kind of file it becomes"
        )


def check_new_table(path: Place, *, overwrite: bool) -> None:
    """The same, and for a file that exists, unless it may be replaced."""
    check_table_name(path)
    if path.exists() and not overwrite:
        raise DraftrecError(f"{path} exists; name another output, or replace it with --overwrite")


def write_tables(path: Place, schema: pa.Schema, tables: Iterable[pa.Table]) -> None:
    """Write tables one after another; the file appears when it is complete. Cells of CSV hold lists
    as JSON. Raises DraftrecError for another ending than those of `check_table_name`."""
    check_table_name(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _WRITERS[path.suffix](path, schema, tables)


def _text(begin: Callable[[list[str]], str], line: Callable[[dict[str, Any]], str]) -> Write:
    def write(path: Place, schema: pa.Schema, tables: Iterable[pa.Table]) -> None:
        file: BinaryIO
        with replacing(path) as file:
            file.write(begin(schema.names).encode())
            for table in tables:
                for row in table.to_pylist():
                    file.write(line(row).encode())

    return write


def _json_line(row: dict[str, Any]) -> str:
    try:
        line = json.dumps(row, ensure_ascii=False, allow_nan=False, default=spelt)
    except ValueError:
        line = json.dumps(_finite(row), ensure_ascii=False, default=spelt)
    return line + "\n"


def _finite(value: Any) -> Any:
    """Null in place of numbers that JSON has not: NaN and the infinite ones."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def spelt(value: Any) -> Any:
    """What JSON has no type for, as it is written there: dates and times in ISO form, a decimal as
    a number, bytes as a text, anything else as Python shows it."""
    if isinstance(value, date | clock):
        return value.isoformat()
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    return value.decode(errors="backslashreplace") if isinstance(value, bytes) else str(value)


def _csv_line(cells: Iterable[Any]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerow(
        [json.dumps(c, ensure_ascii=False) if isinstance(c, list) else c for c in cells]
    )
    return out.getvalue()


_WRITERS: dict[str, Write] = {
    ".parquet": stream_parquet,
    ".jsonl": _text(lambda names: "", _json_line),
    ".csv": _text(_csv_line, lambda row: _csv_line(row.values())),
}


T = TypeVar("T")

# Lines reach the operating system at once, which survives a kill; the disk, which survives a
# crash of the machine, at least this often.
_SYNC_SECONDS = 30.0


class LineJournal(Generic[T]):
    """What of a shard is finished while the shard is not, a line each, open for more: whoever does
    the shard next, after Ctrl-C, a crash or the loss of a worker, takes it over. What a crash has
    torn is cut off on opening.

    `parse` makes an entry of a whole line; it raises ValueError, KeyError or TypeError for another
    one, and what lies from there on is gone. At an address, where nothing can be appended, it is
    written anew whenever it is forced to disk elsewhere.
    """

    def __init__(self, path: Place, parse: Callable[[bytes], T]) -> None:
        self.path = path
        self.entries, size = whole_entries(path, parse)
        self._content = bytearray()
        self._file = None
        if isinstance(path, Path):
            with naming(path):
                # Unbuffered: a line is with the operating system, or it is not.
                self._file = path.open("ab", buffering=0)
                self._file.truncate(size)
        elif size:
            self._content += path.read_bytes()[:size]
        self._synced, self._dirty = time.monotonic(), False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Force all to disk; nothing to do where the process is killed."""
        try:
            self._sync()
        finally:
            if self._file:
                self._file.close()

    def write(self, line: bytes) -> None:
        """Keep one more entry, a line with its end."""
        rest = memoryview(line)
        if self._file is None:
            self._content += rest
        elif isinstance(self.path, Path):
            with naming(self.path):
                while rest:  # a disk that is nearly full takes a part, then refuses
                    rest = rest[self._file.write(rest) :]
        self._dirty = True

    def tick(self) -> None:
        """Force to disk what has waited long enough."""
        if self._dirty and time.monotonic() - self._synced >= _SYNC_SECONDS:
            self._sync()

    def _sync(self) -> None:
        if self._dirty and self._file is None:
            replace_file(self.path, bytes(self._content))
        elif self._dirty and self._file and isinstance(self.path, Path):
            with naming(self.path):
                os.fsync(self._file.fileno())
        self._synced, self._dirty = time.monotonic(), False


def whole_entries(path: Place, parse: Callable[[bytes], T]) -> tuple[list[T], int]:
    """The entries of a journal up to the first place that was torn, and how many bytes they take;
    none where there is no file."""
    entries: list[T] = []
    size = 0
    for line in _lines(path):
        try:
            if not line.endswith(b"\n"):
                break
            entries.append(parse(line))
        except (ValueError, KeyError, TypeError):
            break
        size += len(line)
    return entries, size


def _lines(path: Place) -> Iterator[bytes]:
    if path.is_file():
        with path.open("rb") as file:
            yield from file
