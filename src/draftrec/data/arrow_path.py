"""Places for Arrow, which would take a relative path with a colon (`run-12:30`) for an address."""

from __future__ import annotations

from typing import Any

from draftrec.data.places import Place, RemotePath


def arrow_path(path: Place) -> Any:
    """The same file under a name that can be nothing but a file's, or opened if it is elsewhere."""
    return path.open_seekable() if isinstance(path, RemotePath) else path.absolute()
