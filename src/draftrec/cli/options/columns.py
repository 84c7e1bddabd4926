"""Options that name columns, the same in every command. None: the usual name, or a synonym."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from draftrec.cli.common import COLUMNS_PANEL

if TYPE_CHECKING:
    from draftrec.data.sequences import SequenceColumns
    from draftrec.evaluate.replay.recordings import TextFiles


def _named(holds: str, usual: str) -> typer.models.OptionInfo:
    return typer.Option(
        help=holds, metavar="NAME", show_default=f"{usual}, or a common synonym",
        rich_help_panel=COLUMNS_PANEL,
    )  # fmt: skip


UserColumn = Annotated[str | None, _named("Column of the users.", "user_id")]
ItemColumn = Annotated[str | None, _named("Column of the items.", "item_id")]
RatingColumn = Annotated[str | None, _named("Column of the ratings.", "rating, if there is one")]
TimeColumn = Annotated[str | None, _named("Column of the times.", "timestamp, if there is one")]
ItemVectorColumn = Annotated[str | None, _named("Column of the items.", "item")]
VectorColumn = Annotated[str | None, _named("Column of the vectors.", "vector")]
IdColumn = Annotated[str | None, _named("ITEMS: the items.", "item_id or entity_id")]
TitleColumn = Annotated[str | None, _named("ITEMS: the titles.", "title")]
CategoryColumn = Annotated[
    str | None, _named("ITEMS: the categories.", "category or genres, if there is one")
]


@dataclass(frozen=True, kw_only=True)
class TextColumnOptions:
    """Columns of texts."""

    id_column: Annotated[str | None, _named("TEXTS: the entities.", "entity_id")] = None
    text_column: Annotated[str | None, _named("TEXTS: the texts.", "text")] = None

    def files(self, location: str) -> TextFiles:
        """Texts with the columns that were named."""
        from draftrec.evaluate.replay.recordings import TextFiles

        return TextFiles(location, self.id_column, self.text_column)


@dataclass(frozen=True, kw_only=True)
class SequenceColumnOptions:
    """Columns of SEQUENCES and of --sids."""

    user_column: Annotated[str | None, _named("SEQUENCES: the users.", "user")] = None
    items_column: Annotated[str | None, _named("SEQUENCES: lists of items.", "items")] = None
    part_column: Annotated[str | None, _named("SEQUENCES: train, valid or test.", "part")] = None

    def columns(self) -> SequenceColumns:
        """What was named."""
        from draftrec.data.sequences import SequenceColumns

        return SequenceColumns(self.user_column, self.items_column, self.part_column)


@dataclass(frozen=True, kw_only=True)
class GenrecColumnOptions(SequenceColumnOptions):
    """The same with those of semantic ids."""

    item_column: Annotated[str | None, _named("--sids: the items.", "item")] = None
    sid_column: Annotated[str | None, _named("--sids: lists of tokens.", "sid")] = None

    def columns(self) -> SequenceColumns:
        """What was named."""
        from draftrec.data.sequences import SequenceColumns

        return SequenceColumns(
            self.user_column, self.items_column, self.part_column, self.item_column, self.sid_column
        )
