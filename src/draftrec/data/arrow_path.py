"""Paths for Arrow, which would take a relative one with a colon (`run-12:30`) for an address."""

from __future__ import annotations

from pathlib import Path


def arrow_path(path: Path) -> Path:
    """The same file under a name that can be nothing but a file's."""
    return path.absolute()
