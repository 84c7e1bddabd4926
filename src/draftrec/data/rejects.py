"""Rows that cannot be used: left out, counted and listed, so that one does not stop a job."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

from draftrec.data.places import Place
from draftrec.data.readers import Row
from draftrec.data.records import Rejected
from draftrec.data.writers import replace_file
from draftrec.errors import DraftrecError

T = TypeVar("T")


class RowError(DraftrecError):
    """A row cannot be used, for a `reason` that fits behind its place."""

    def __init__(self, row: Row, reason: str) -> None:
        super().__init__(f"{row.file} line {row.line}: {reason}; mend or remove the row")
        self.reason = reason


@dataclass(slots=True)
class Rejects:
    """The rows left out. `id_column` holds what they are listed under, where it can be read."""

    id_column: str | None = None
    rows: list[Rejected] = field(default_factory=list[Rejected])

    def __len__(self) -> int:
        return len(self.rows)

    def usable(self, rows: Iterable[Row], convert: Callable[[Row], T]) -> Iterator[T]:
        """What `convert` makes of each row, without those for which it raises RowError.

        Raises DraftrecError, with the first reason, where no row is left.
        """
        taken = 0
        for row in rows:
            try:
                found = convert(row)
            except RowError as error:
                self._add(row, error.reason)
            else:
                taken += 1
                yield found
        if self.rows and not taken:
            first = self.rows[0]
            raise DraftrecError(
                f"no row can be used; {first.file} line {first.line}: {first.reason}; mend the "
                "rows, or name other columns"
            )

    def write(self, path: Place) -> None:
        """Write the list to `path`, or remove one of an earlier run where nothing was left out."""
        if self.rows:
            replace_file(path, rejected_lines(self.rows))
        else:
            path.unlink(missing_ok=True)

    def words(self, path: Place) -> str:
        """One sentence about them."""
        return f"{len(self):,} rows were rejected, see {path}"

    def _add(self, row: Row, reason: str) -> None:
        value = row.values.get(self.id_column) if self.id_column else None
        shown = str(value) if isinstance(value, str | int) else None
        self.rows.append(Rejected(shown, row.file, row.line, reason))


def rejected_lines(rejected: Iterable[Rejected]) -> bytes:
    """The lines of a rejected.jsonl, one object per record."""
    lines = (
        {"entity_id": r.entity_id, "line": r.line, "reason": r.reason, "file": r.file}
        for r in rejected
    )
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    return text.encode(errors="backslashreplace")
