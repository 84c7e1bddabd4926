"""Where numba keeps compiled kernels when it could keep them nowhere, and would refuse to compile.

It writes beside the package, or into the user's cache folder. A read-only container without a home
has neither, so a folder of the user's own among temporary files takes their place, beginning with
the kernels of `NUMBA_CACHE_DIR` where that was filled before and can only be read.
"""

from __future__ import annotations

import os
import stat
import sys
import tempfile
from pathlib import Path


def find_place(package: Path) -> Path | None:
    """Set `NUMBA_CACHE_DIR` where nothing else can be written to; what it was set to, else None.

    To be called before numba is imported; where it was already, its setting is changed as well.
    """
    given = os.environ.get("NUMBA_CACHE_DIR")
    usual = [Path(given)] if given else [package / "__pycache__", _user_cache()]
    if any(_writable(folder) for folder in usual):
        return None
    place = _own_folder()
    if given and Path(given).is_dir():
        import shutil

        shutil.copytree(given, place, dirs_exist_ok=True)
    os.environ["NUMBA_CACHE_DIR"] = str(place)
    if "numba" in sys.modules:
        sys.modules["numba"].config.CACHE_DIR = str(place)
    return place


def _user_cache() -> Path:
    """numba's own, of the user."""
    if sys.platform == "linux":
        return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "numba"  # noqa: PTH111 - as numba does it, for homes that do not exist
    return Path(os.path.expanduser("~"))  # noqa: PTH111 - close enough to know


def _writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError:
        return False
    return True


def _own_folder() -> Path:
    """The same at every start, if nobody else can have put something there: kernels are code."""
    user = os.getuid() if hasattr(os, "getuid") else 0
    folder = Path(tempfile.gettempdir()) / f"draftrec-kernels-{user}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
    except OSError:
        return Path(tempfile.mkdtemp(prefix="draftrec-kernels-"))
    ours = stat.S_ISDIR(status.st_mode) and not status.st_mode & 0o077
    if ours and (not hasattr(os, "getuid") or status.st_uid == user):
        return folder
    return Path(tempfile.mkdtemp(prefix="draftrec-kernels-"))
