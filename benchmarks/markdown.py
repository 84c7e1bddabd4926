"""Pieces of Markdown tables."""

from __future__ import annotations

from typing import Any


def row(*cells: Any) -> str:
    """A line of a table."""
    return "| " + " | ".join(str(c) for c in cells) + " |\n"


def header(*cells: str) -> str:
    """The first lines of a table."""
    return "\n" + row(*cells) + row(*["---"] * len(cells))


def spread(value: dict[str, Any] | None) -> str:
    """Median and extremes of what was measured several times."""
    if not value or value["median"] is None:
        return "-"
    return f"{value['median']:.2f} ({value['low']:.2f} - {value['high']:.2f})"
