"""Interactions in, groups out: the files around grouping."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.csv as pa_csv

from draftrec.data.places import Place
from draftrec.data.readers import Row, open_records
from draftrec.data.writers import replace_file, replace_parquet, replacing
from draftrec.data.yaml_file import read_yaml
from draftrec.errors import DraftrecError

_KINDS = (".parquet", ".csv", ".jsonl")


def read_histories(location: str, user: str, item: str) -> dict[str, list[str]]:
    """User -> items, both as text, in file order. Raises DraftrecError for unusable rows."""
    source = open_records(location)
    source.require([user, item], "name the columns with --user-column and --item-column")
    found: dict[str, list[str]] = {}
    for row in source.rows([user, item]):
        found.setdefault(label(row, user), []).append(label(row, item))
    return found


def turned(histories: Mapping[str, list[str]]) -> dict[str, list[str]]:
    """Item -> users, from user -> items."""
    found: dict[str, list[str]] = {}
    for user, items in histories.items():
        for item in items:
            found.setdefault(item, []).append(user)
    return found


def read_attribute(location: str, id_column: str, column: str | None) -> dict[str, Any]:
    """Entity -> value of a column, None where it is null or no column is asked for.

    Raises DraftrecError for a missing column, a null id and an entity listed twice.
    """
    source = open_records(location)
    columns = [id_column] if column is None else [id_column, column]
    source.require(columns, "name the columns with --id-column and --column")
    found: dict[str, Any] = {}
    for row in source.rows(columns):
        entity_id = label(row, id_column)
        if entity_id in found:
            raise DraftrecError(
                f"{row.file} line {row.line}: {entity_id!r} is listed before; keep one row for each"
            )
        found[entity_id] = None if column is None else row.values.get(column)
    return found


def read_group_map(path: Place) -> dict[str, str]:
    """Value -> group from YAML: `value: group` lines, or `group: [values]` lists; "*" is the rest.

    Raises DraftrecError for anything else, and for a value in two groups.
    """
    content = read_yaml(path, "the map")
    if not isinstance(content, dict) or not content:
        raise DraftrecError(f"the map {path} must hold `value: group` or `group: [values]` lines")
    found: dict[str, str] = {}
    for key, entry in content.items():
        pairs = [(v, key) for v in entry] if isinstance(entry, list) else [(key, entry)]
        for value, group in pairs:
            if found.setdefault(str(value), str(group)) != str(group):
                raise DraftrecError(
                    f"the map {path} puts {value!r} into {found[str(value)]!r} and into "
                    f"{str(group)!r}; choose one"
                )
    return found


def check_groups_file(path: Place) -> None:
    """Raise DraftrecError for a name that `write_groups` would refuse."""
    if path.suffix not in _KINDS:
        raise DraftrecError(f"the groups file {path} must end in {', '.join(_KINDS)}")


def write_groups(path: Place, groups: Mapping[str, str | None]) -> None:
    """Write `entity_id, group` as Parquet, CSV or JSONL, by the file's ending; entities without a
    group are left out. The file appears when it is complete. Raises DraftrecError for another
    ending.
    """
    check_groups_file(path)
    pairs = [(entity, group) for entity, group in groups.items() if group is not None]
    table = pa.table(
        {
            "entity_id": pa.array([e for e, _ in pairs], pa.string()),
            "group": pa.array([g for _, g in pairs], pa.string()),
        }
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        replace_parquet(path, table)
    elif path.suffix == ".csv":
        with replacing(path) as file:
            pa_csv.write_csv(table, file)
    else:
        lines = "".join(json.dumps(row) + "\n" for row in table.to_pylist())
        replace_file(path, lines.encode())


def label(row: Row, column: str) -> str:
    """An id as text. Raises DraftrecError for anything but a string or a whole number."""
    value = row.values.get(column)
    if isinstance(value, bool) or not isinstance(value, str | int):
        kind = "null" if value is None else type(value).__name__
        raise DraftrecError(
            f"{row.file} line {row.line}: {column} is {kind}, not a string or an integer; mend or "
            "remove the row"
        )
    return str(value)
