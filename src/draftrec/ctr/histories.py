"""What stands in front of the cut as records for prompts, so that prompts and samples agree."""

from __future__ import annotations

import json
from typing import Any

from draftrec.ctr.features import read_rows, values_of
from draftrec.data.events import CutSettings, Events, histories
from draftrec.data.files.places import Place
from draftrec.data.files.writers import replace_file
from draftrec.data.joins import Join
from draftrec.data.records import Rejects
from draftrec.errors import DraftrecError


def save_histories(
    path: Place,
    events: Events,
    settings: CutSettings,
    items: tuple[str, str] | None,
    shown: tuple[str, str | None],
    rejects: Rejects | None = None,
) -> int:
    """Write a JSON line per user, `entity_id` and `history`, as the user templates of
    `draftrec generate` read them; the number of users.

    `items`: the file of items and its column of ids. `shown`: its columns of titles and, if
    wanted, of categories. Raises DraftrecError for another kind of file and for missing columns.
    """
    if path.suffix != ".jsonl":
        raise DraftrecError(f"histories are JSON lines; let {path} end in .jsonl")
    found = _shown(items, shown, rejects) if items else {}
    if items:
        join = Join("items", "the interactions", f"{items[0]} with a title", next(iter(found), ""))
        for item in events.items:
            join.saw(item, known="title" in found.get(item, {}))
        join.check(refuse=False)
    lines = [
        json.dumps(record, ensure_ascii=False) + "\n"
        for record in histories(events, settings, found)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, "".join(lines).encode(errors="surrogatepass"))
    return len(lines)


def _shown(
    items: tuple[str, str], shown: tuple[str, str | None], rejects: Rejects | None
) -> dict[str, dict[str, Any]]:
    """Title and category of each item, as far as it has them."""
    location, id_column = items
    title, category = shown
    rows = read_rows(location, id_column, rejects)
    for column in filter(None, shown):
        if not any(column in row for row in rows.values()):
            raise DraftrecError(
                f"{location} has no column {column!r}; name it with --title-column and "
                "--category-column"
            )
    found: dict[str, dict[str, Any]] = {}
    for item, row in rows.items():
        entry = {"title": row[title]} if row.get(title) else {}
        if category and (values := values_of(row.get(category))):
            entry["category"] = ", ".join(values)
        found[item] = entry
    return found
