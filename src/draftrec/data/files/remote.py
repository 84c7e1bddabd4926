"""Files elsewhere: what can be said of one behind an address such as `s3://bucket/run`.

fsspec serves the stores; packages of the user's own serve its kinds (`s3fs`, `gcsfs` ...).
"""

from __future__ import annotations

import errno
import io
import posixpath
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, BinaryIO

from draftrec.errors import DraftrecError

#: An address begins so.
ADDRESS = re.compile(r"([a-z][a-z0-9+.-]+)(?:://|::.*://)", re.IGNORECASE | re.DOTALL)
#: Kinds of address that are only read from, file by file.
WEB = ("http", "https")
#: Stores in which an object appears whole or not at all, in place of what had its name.
_WHOLE = frozenset(
    "s3 s3a gs gcs abfs abfss az adl oss oci hf tos memory".split()  # noqa: SIM905 - a short list
)
_COPY = {
    "s3": "aws s3 cp --recursive", "gs": "gcloud storage cp -r", "gcs": "gcloud storage cp -r",
    "abfs": "azcopy copy --recursive", "az": "azcopy copy --recursive", "hdfs": "hdfs dfs -get",
    "hf": "hf download", "http": "curl -LO", "https": "curl -LO",
}  # fmt: skip
#: Names of files that a crash left before they were moved into place.
UNMOVED = re.compile(r"\..+\.new(?:\.part)?")
_BUFFER_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Size:
    """What `stat` says of a file elsewhere: its size in bytes, -1 where nobody knows it."""

    st_size: int


@dataclass(frozen=True, slots=True)
class Listed:
    """What a listing says: `file` or `directory`, and bytes."""

    kind: str
    size: int


class RemotePath:
    """A file or folder behind an address. Has of `pathlib.Path` what reading needs, and raises
    OSError as a path does; writing whole files is `draftrec.data.files.writers`' business.

    It holds the address alone, so that workers can be sent a copy. Where a path of this machine is
    asked for (`open`, `numpy.load`, memory mapping ...), it raises DraftrecError.
    """

    __slots__ = ("_listed", "url")

    def __init__(self, url: str, listed: Listed | None = None) -> None:
        """`listed`: what a listing of the folder has said, which saves asking again."""
        self.url, self._listed = url, listed

    def __str__(self) -> str:
        """The address without what may be secret in it: passwords, a signed query."""
        shown = re.sub(r"(://[^/@:]*):[^/@]*@", r"\1:***@", self.url)
        return shown.partition("?")[0] if self.scheme in WEB else shown

    def __repr__(self) -> str:
        return f"RemotePath({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RemotePath) and self.url == other.url

    def __lt__(self, other: RemotePath) -> bool:
        return self.url < other.url

    def __hash__(self) -> int:
        return hash(self.url)

    def __fspath__(self) -> str:
        raise DraftrecError(
            f"{self} is not on this machine, as it has to be here; {self.way_round}"
        )

    @property
    def scheme(self) -> str:
        """`s3` of `s3://bucket/run`, in lower case."""
        found = ADDRESS.match(self.url)
        return found[1].lower() if found else ""

    @property
    def way_round(self) -> str:
        """What to do where an address cannot be served."""
        how = _COPY.get(self.scheme)
        example = f", for example with `{how}`" if how else ""
        return f"use a path here and copy between the two{example}"

    @property
    def name(self) -> str:
        return posixpath.basename(self._split()[0].rstrip("/"))

    @property
    def suffix(self) -> str:
        return Path(self.name).suffix

    @property
    def stem(self) -> str:
        return Path(self.name).stem

    @property
    def parent(self) -> RemotePath:
        head, rest = self._split()
        before = posixpath.dirname(head.rstrip("/"))
        # The root of a store is its own parent, as the root of a disk is.
        return self if before.endswith((":", ":/")) else RemotePath(before + rest)

    @property
    def appears_whole(self) -> bool:
        """Whether the store itself never shows half of a file that is being written."""
        return self.scheme in _WHOLE

    @property
    def has_folders(self) -> bool:
        """Whether its store can list what there is. The web cannot."""
        return self.scheme not in WEB

    def __truediv__(self, name: str) -> RemotePath:
        head, rest = self._split()
        return RemotePath(f"{head.rstrip('/')}/{name}{rest}")

    def with_name(self, name: str) -> RemotePath:
        """The same place with another last part."""
        return self.parent / name

    def with_suffix(self, suffix: str) -> RemotePath:
        """The same place with another ending."""
        return self.with_name(self.stem + suffix)

    def resolve(self) -> RemotePath:
        return self

    absolute = resolve

    def is_relative_to(self, other: Any) -> bool:
        """Whether it lies in `other`."""
        return isinstance(other, RemotePath) and f"{self.url}/".startswith(
            other.url.rstrip("/") + "/"
        )

    # --- what asks the store -------------------------------------------------------------------

    def open(self, mode: str = "rb", encoding: str | None = None) -> Any:
        """A stream of bytes (`rb`) or of text (`r`). It can be sought in wherever the store allows
        it, and else once it is read into memory."""
        if mode not in ("r", "rb"):
            raise DraftrecError(f"{self} cannot be written to piece by piece; {self.way_round}")
        with self._asking() as (store, path):
            raw = store.open(path, "rb")
        if isinstance(raw, io.BytesIO):  # in memory, all who open a file share one position
            raw = io.BytesIO(raw.getvalue())
        stream = io.BufferedReader(_Explained(raw, self, store), _BUFFER_BYTES)
        return stream if mode == "rb" else io.TextIOWrapper(stream, encoding=encoding)

    def open_seekable(self) -> BinaryIO:
        """As `open`, for readers that jump about in a file."""
        stream = self.open()
        if stream.seekable():
            return stream
        with stream:
            return io.BytesIO(stream.read())

    def read_bytes(self) -> bytes:
        with self._asking() as (store, path):
            return store.cat_file(path)

    def read_text(self, encoding: str = "utf-8") -> str:
        return self.read_bytes().decode(encoding)

    def exists(self) -> bool:
        return self._info() is not None

    def is_file(self) -> bool:
        return self._is("file")

    def is_dir(self) -> bool:
        """Whether it is a folder, or stands before the names of objects. The web has no folders."""
        return self.has_folders and self._is("directory")

    def stat(self) -> Size:
        if self._listed:
            return Size(self._listed.size)
        with self._asking() as (store, path):
            return Size(_listed(store.info(path)).size)

    def iterdir(self) -> Iterator[RemotePath]:
        """What lies directly in the folder."""
        with self._asking() as (store, path):
            store.invalidate_cache(path)
            found = store.ls(path, detail=True)
        # Some stores list a folder, or the mark that stands for it, in itself.
        inner = [info for info in found if info["name"].strip("/") != path.strip("/")]
        names = [posixpath.basename(info["name"].rstrip("/")) for info in inner]
        urls = [(self / name).url for name in names]
        return iter([RemotePath(u, _listed(info)) for u, info in zip(urls, inner, strict=True)])

    def glob(self, pattern: str = "") -> list[RemotePath]:
        """What in the folder has a name that the pattern matches; without one, the files that the
        address itself, being a pattern, matches: there `**` goes into folders."""
        if pattern:  # only the pattern may hold signs that match, not the folder's name
            return [p for p in self.iterdir() if fnmatchcase(p.name, pattern)]
        with self._asking() as (store, path):
            store.invalidate_cache()
            found = store.glob(path, detail=True)
            names = [name for name, info in found.items() if info["type"] == "file"]
            rest = self._split()[1]
            return [RemotePath(store.unstrip_protocol(name) + rest) for name in names]

    def unlink(self, missing_ok: bool = False) -> None:  # noqa: FBT001 - as pathlib has it
        with self._asking() as (store, path):
            try:
                store.rm_file(path)
            except FileNotFoundError:
                if not missing_ok:
                    raise
            if not self.appears_whole and store.exists(_before_move(path)):
                store.rm_file(_before_move(path))

    def mkdir(self, parents: bool = False, exist_ok: bool = False) -> None:  # noqa: FBT001 - as pathlib has it
        """Make the folder where the store has any."""
        if not self.appears_whole:
            with self._asking() as (store, path):
                store.makedirs(path, exist_ok=True)

    def rmdir(self) -> None:
        """Remove the folder, which is empty, where the store has any."""
        if self.is_dir():
            with self._asking() as (store, path):
                store.rmdir(path)

    def latest(self) -> RemotePath:
        """Where the content is. A store that moves files into place may have been left, by a crash,
        with the old one removed and the new one, which is whole by then, not yet moved."""
        waiting = RemotePath(_before_move(self.url))
        return self if self.appears_whole or self.exists() or not waiting.exists() else waiting

    def finish_move(self) -> None:
        """Do what a crash left undone."""
        waiting = self.latest()
        if waiting != self:
            with self._asking() as (store, path):
                store.mv(_before_move(path), path)

    def upload(self, file: Path, *, new: bool = False) -> None:
        """Copy a file of this machine here: whole, or nothing is seen of it.

        `new`: only where there is none; raises FileExistsError.
        """
        with self._asking() as (store, path):
            if new:
                _create(store, path, file.read_bytes())
            elif self.appears_whole:
                store.put_file(str(file), path)
            else:
                _put_and_move(store, file, path)
            store.invalidate_cache(posixpath.dirname(path))

    # -------------------------------------------------------------------------------------------

    def _split(self) -> tuple[str, str]:
        """The part that has the name, and what comes behind it: a query, or a chained address."""
        if self.scheme in WEB:
            head, mark, rest = self.url.partition("?")
        else:
            head, mark, rest = self.url.partition("::")
            if mark and "://" not in head:  # simplecache::s3://bucket/file
                return self.url, ""
        return head, mark + rest

    def _is(self, kind: str) -> bool:
        if self._listed:
            return self._listed.kind == kind
        info = self._info()
        return info is not None and info["type"] == kind

    def _info(self) -> dict[str, Any] | None:
        with self._asking() as (store, path):
            store.invalidate_cache(posixpath.dirname(path))
            try:
                return store.info(path)
            except FileNotFoundError as error:
                if _out_of_reach(error):
                    raise
                return None

    @contextmanager
    def _asking(self) -> Iterator[tuple[Any, str]]:
        """The store and the path in it; what goes wrong is an OSError that names the address."""
        with _explained(self):
            yield _store(self.url)


def _store(url: str) -> tuple[Any, str]:
    """fsspec's file system for an address, and the path in it."""
    from fsspec.core import url_to_fs

    return url_to_fs(url)


def _listed(info: dict[str, Any]) -> Listed:
    size = info.get("size")
    return Listed(info["type"], -1 if size is None else int(size))


def _create(store: Any, path: str, content: bytes) -> None:
    """Write a new file. Raises FileExistsError where there is one."""
    try:
        store.pipe_file(path, content, mode="create")
    except (NotImplementedError, TypeError, ValueError):
        # No store of this kind can be asked that; the moment between the two steps stays open.
        if store.exists(path):
            raise FileExistsError(path) from None
        store.pipe_file(path, content)


def _before_move(path: str) -> str:
    return posixpath.join(posixpath.dirname(path), f".{posixpath.basename(path)}.new")


def _put_and_move(store: Any, file: Path, path: str) -> None:
    """Few of these stores can move a file over another: the old one is removed first, when the new
    one is whole."""
    temporary = _before_move(path)
    store.makedirs(posixpath.dirname(path), exist_ok=True)
    old = store.exists(path)
    try:
        # Without an old file, one that is left here counts as whole.
        store.put_file(str(file), temporary if old else f"{temporary}.part")
        if not old:
            store.mv(f"{temporary}.part", path)
            return
    except BaseException:
        for left in (temporary, f"{temporary}.part"):
            if store.exists(left):
                store.rm_file(left)
        raise
    store.rm_file(path)
    store.mv(temporary, path)


@contextmanager
def _explained(place: RemotePath) -> Iterator[None]:
    """Turn whatever a store raises into an OSError that says where."""
    try:
        yield
    except DraftrecError:
        raise
    except FileNotFoundError as error:
        if cause := _out_of_reach(error):
            raise OSError(errno.EIO, reason_of(cause), str(place)) from error
        raise FileNotFoundError(errno.ENOENT, "no such file", str(place)) from error
    except FileExistsError as error:
        raise FileExistsError(errno.EEXIST, "there is one already", str(place)) from error
    except PermissionError as error:
        reason = f"access denied ({reason_of(error)}); check the credentials"
        raise PermissionError(errno.EACCES, reason, str(place)) from error
    except ImportError as error:
        raise DraftrecError(f"{place} cannot be reached: {reason_of(error)}") from error
    except Exception as error:
        raise OSError(errno.EIO, reason_of(error), str(place)) from error


def _out_of_reach(error: FileNotFoundError) -> BaseException | None:
    """Why nobody knows whether there is such a file: fsspec says of a server that does not answer
    that it does not have it."""
    cause = error.__cause__
    unanswered = isinstance(cause, OSError) and not isinstance(cause, FileNotFoundError)
    refused = getattr(cause, "status", None) not in (None, 404, 410)
    return cause if unanswered or refused else None


def reason_of(error: BaseException) -> str:
    words = " ".join(str(error).split()).rstrip(".")
    words = re.sub(r"\?[^\s'\"]+", "", words)  # signatures stand in queries
    return words or type(error).__name__


class _Explained(io.RawIOBase):
    """A stream of a store whose errors name the address."""

    def __init__(self, stream: Any, place: RemotePath, store: Any) -> None:
        # An archive closes with its store, which therefore has to stay.
        self._stream, self._place, self._store = stream, place, store

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return bool(self._stream.seekable())

    def seek(self, offset: int, whence: int = 0) -> int:
        with _explained(self._place):
            return self._stream.seek(offset, whence)

    def tell(self) -> int:
        return self._stream.tell()

    def readinto(self, buffer: Any) -> int:
        with _explained(self._place):
            content = self._stream.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)

    def close(self) -> None:
        if not self.closed:
            self._stream.close()
        super().close()
