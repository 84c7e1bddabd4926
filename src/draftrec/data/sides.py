"""Records say by their columns whom they are about, and where their ids are."""

from __future__ import annotations

import logging

from draftrec.config import RecordsConfig
from draftrec.data.tables.columns import ENTITY, find_column
from draftrec.data.tables.readers import RecordSource
from draftrec.data.templates import FRAMEWORKS, load_template
from draftrec.errors import DraftrecError

_LOG = logging.getLogger("draftrec")


def fitted_to(source: RecordSource, records: RecordsConfig) -> RecordsConfig:
    """The same with the side and the id column that the records have, as far as these were left to
    what is usual and only one can be meant; what is taken is said in the log.

    Raises DraftrecError for several columns that could hold ids, and for records of users where
    items were asked for.
    """
    changes: dict[str, str] = {}
    if records.id_column == ENTITY.usual:
        name = find_column(source, ENTITY)
        changes["id_column"] = name or records.id_column
    if records.template in FRAMEWORKS:
        changes["side"] = _side(source, records)
    return records.model_copy(update=changes)


def _side(source: RecordSource, records: RecordsConfig) -> str:
    """The side whose template the records can fill in, the one asked for if they can."""
    assert records.template is not None
    names = set(source.columns())
    fits = {
        side: names.issuperset(load_template(records.template, side).required_fields)
        for side in ("user", "item")
    }
    if fits[records.side] or not any(fits.values()):
        return records.side
    if records.side == "item":
        raise DraftrecError(
            f"{source.files[0]} has a history and no title, so its records are of users; leave "
            "--side item out"
        )
    _LOG.info(
        "%s has a title and no history: its records are of items, as with --side item",
        source.files[0],
    )
    return "item"
