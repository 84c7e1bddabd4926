"""Files that are joined by ids: whether they speak of the same entities, said before the work."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from typing import Protocol

from draftrec.core import BoolArray
from draftrec.errors import DraftrecError

_LOG = logging.getLogger(__name__)
_AS_FLOAT = re.compile(r"[+-]?\d+\.0+")


class KnownIds(Protocol):
    """Ids that a file has: `name` of the file, one of them as an `example`."""

    @property
    def name(self) -> str: ...
    @property
    def example(self) -> str: ...
    def knows(self, ids: list[str]) -> BoolArray:
        """Which of `ids` it has."""
        ...


@dataclass(slots=True)
class Join:
    """Counts which `things` (plural, as in "entities") of the file `left` are in the file `right`,
    where an id looks like `example`."""

    things: str
    left: str
    right: str
    example: str = ""
    total: int = 0
    found: int = 0
    missing: str = ""

    def saw(self, entity_id: str, *, known: bool) -> None:
        """One more id of the left file."""
        self.total += 1
        self.found += known
        if not known and not self.missing:
            self.missing = entity_id

    def saw_all(self, ids: list[str], known: BoolArray) -> None:
        """As `saw`, for many."""
        self.total += len(ids)
        self.found += int(known.sum())
        if not self.missing and not known.all():
            self.missing = ids[int(known.argmin())]

    def check(self, *, refuse: bool = True) -> None:
        """Warn, with counts, where most ids are not in the other file.

        Raises DraftrecError where none is; without `refuse` that is a warning too.
        """
        if 2 * self.found >= self.total:
            return
        if not self.found and refuse:
            raise DraftrecError(
                f"none of the {self.total:,} {self.things} of {self.left} is in {self.right}; "
                f"{self._compared()}"
            )
        _LOG.warning(
            "%s of the %s %s of %s are not in %s; %s",
            f"{self.total - self.found:,}", f"{self.total:,}", self.things, self.left, self.right,
            self._compared(),
        )  # fmt: skip

    def _compared(self) -> str:
        """What to look at: an id of either side, and how they seem to differ."""
        words = f"ids are compared as texts, such as {self.missing!r} of {self.left}"
        if self.example:
            words += f" and {self.example!r} of {self.right}"
        sides = (self.missing, self.example)
        if len({_AS_FLOAT.fullmatch(side) is None for side in sides if side}) == 2:
            return words + " (whole numbers written with .0); write both as whole numbers"
        if len({side.isascii() and side.isdecimal() for side in sides if side}) == 2:
            return words + "; write them alike"
        return words
