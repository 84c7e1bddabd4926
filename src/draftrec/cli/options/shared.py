"""Options that several commands have: messages, settings files, inputs, columns."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import typer

from draftrec.cli.options.knobs import (
    COLUMNS_PANEL,
    MESSAGES_PANEL,
    REQUIRED,
    argument,
    option,
)
from draftrec.cli.options.places import HERE, READ, WRITTEN
from draftrec.data.files.places import Place
from draftrec.errors import DraftrecError

if TYPE_CHECKING:
    from draftrec.data.events import EventColumns
    from draftrec.data.sequences import SequenceColumns
    from draftrec.evaluate.replay.recordings import TextFiles

Message = partial(option, panel=MESSAGES_PANEL, default=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What every command has."""

    debug: bool = Message("Show tracebacks of errors.")
    quiet: bool = Message("Say warnings and errors only.", "--quiet", "-q")
    verbose: bool = Message("Also say details of the work.", "--verbose", "-v")


@dataclass(frozen=True, slots=True, kw_only=True)
class JsonOptions(Options):
    """What every command has that ends with a summary."""

    json: bool = Message("Print the summary as JSON, last line of standard output.")


def _read_settings(context: typer.Context, path: Place | None) -> Place | None:
    """Let a YAML file set the defaults of all options of the command that is being parsed."""
    if path is None:
        return None
    from draftrec.data.files.yaml_file import read_yaml

    values = read_yaml(path, "settings file") or {}
    if not isinstance(values, dict):
        raise DraftrecError(f"settings file {path} must hold `option: value` lines")
    fields = {str(p.name).rstrip("_"): str(p.name) for p in context.command.params}
    known = fields.keys() - {"input", "config", "help"}
    settings = {str(key).replace("-", "_"): value for key, value in values.items()}
    if unknown := sorted(settings.keys() - known):
        raise DraftrecError(
            f"settings file {path} has the unknown key {unknown[0]!r}; known are "
            f"{', '.join(sorted(known))}"
        )
    settings = {fields[name]: value for name, value in settings.items()}
    repeated = {p.name for p in context.command.params if getattr(p, "multiple", False)}
    for name in settings.keys() & repeated:  # one value needs no list around it
        if isinstance(settings[name], str):
            settings[name] = [settings[name]]
    context.default_map = {**(context.default_map or {}), **settings}
    return path


#: Of the demos.
ReportFolder = partial(option, "Folder for report.html and summary.json; made if missing.")
#: A settings file; its values go before the defaults and behind the command line.
SettingsFile = partial(
    option,
    "YAML file of `option: value` lines; the command line goes before it.",
    callback=_read_settings,
    is_eager=True,
    place=READ,
)
Interactions = partial(
    argument,
    "INTERACTIONS",
    "A row per interaction: user_id, item_id, and rating and timestamp if known.",
    READ,
)
Sequences = partial(argument, "SEQUENCES", "Parquet, JSONL or CSV with user, items and part.", READ)
Sids = partial(option, "Semantic ids: item, sid.", metavar="FILE", default=REQUIRED, place=READ)
SidsToWrite = partial(
    option, "Semantic ids to write: .parquet or .jsonl.", metavar="FILE", default=REQUIRED,
    place=WRITTEN,
)  # fmt: skip
_TARGET = "Folder of the target model."
Target = partial(option, _TARGET, metavar="DIR", default=REQUIRED)
TargetArgument = partial(argument, "TARGET", _TARGET, HERE)
Tokenizer = partial(
    option, "Folder or Hub id of the model whose tokenizer counts.", metavar="PATH", place=HERE
)
Groups = partial(
    option,
    "Groups file (entity_id, group); takes the place of the group column.",
    place=READ,
)
ReplaceOutput = partial(option, "Replace --output.", default=False)


def column(holds: str, usual: str) -> Any:
    """An option that names a column. None: the usual name, or a synonym."""
    return option(
        holds, metavar="NAME", show_default=f"{usual}, or a common synonym", panel=COLUMNS_PANEL
    )


Items = partial(column, "Column of the items.")


@dataclass(frozen=True, kw_only=True)
class UserItemColumnOptions:
    """Columns of INTERACTIONS that name who and what."""

    user_column: str | None = column("Column of the users.", "user_id")
    item_column: str | None = Items("item_id")


@dataclass(frozen=True, kw_only=True)
class EventColumnOptions(UserItemColumnOptions):
    """The same with ratings and times."""

    rating_column: str | None = column("Column of the ratings.", "rating, if there is one")
    time_column: str | None = column("Column of the times.", "timestamp, if there is one")

    def columns(self) -> EventColumns:
        """What was named."""
        from draftrec.data.events import EventColumns

        return EventColumns.named(
            self.user_column, self.item_column, self.rating_column, self.time_column
        )


@dataclass(frozen=True, kw_only=True)
class VectorColumnOptions:
    """Columns of ITEM_VECTORS."""

    item_column: str | None = Items("item")
    vector_column: str | None = column("Column of the vectors.", "vector")


@dataclass(frozen=True, kw_only=True)
class TextColumnOptions:
    """Columns of texts."""

    id_column: str | None = column("TEXTS: the entities.", "entity_id")
    text_column: str | None = column("TEXTS: the texts.", "text")

    def files(self, location: str) -> TextFiles:
        """Texts with the columns that were named."""
        from draftrec.evaluate.replay.recordings import TextFiles

        return TextFiles(location, self.id_column, self.text_column)


@dataclass(frozen=True, kw_only=True)
class SequenceColumnOptions:
    """Columns of SEQUENCES and of --sids."""

    user_column: str | None = column("SEQUENCES: the users.", "user")
    items_column: str | None = column("SEQUENCES: lists of items.", "items")
    part_column: str | None = column("SEQUENCES: train, valid or test.", "part")

    def columns(self) -> SequenceColumns:
        """What was named."""
        from draftrec.data.sequences import SequenceColumns

        return SequenceColumns(self.user_column, self.items_column, self.part_column)


@dataclass(frozen=True, kw_only=True)
class GenrecColumnOptions(SequenceColumnOptions):
    """The same with those of semantic ids."""

    item_column: str | None = column("--sids: the items.", "item")
    sid_column: str | None = column("--sids: lists of tokens.", "sid")

    def columns(self) -> SequenceColumns:
        """What was named."""
        from draftrec.data.sequences import SequenceColumns

        return SequenceColumns(
            self.user_column, self.items_column, self.part_column, self.item_column, self.sid_column
        )
