"""Options that several commands have: messages, settings files, inputs, columns, where a job runs;
and options that have no effect beside the others given.

Those are said, each once, by one table per command, when the work begins. An option at its default
is not complained about. What is refused instead, where it is noticed, is an option whose file would
not be there afterwards, or one that contradicts another.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, fields
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import typer

from draftrec.cli.knobs import (
    CLUSTER_PANEL,
    COLUMNS_PANEL,
    HERE,
    MESSAGES_PANEL,
    OUTPUT_PANEL,
    READ,
    REQUIRED,
    WRITTEN,
    argument,
    option,
)
from draftrec.data.files.places import Place
from draftrec.errors import DraftrecError

if TYPE_CHECKING:
    from draftrec.data.events import EventColumns
    from draftrec.data.sequences import SequenceColumns
    from draftrec.evaluate.replay.recordings import TextFiles


@dataclass(frozen=True, slots=True)
class Idle:
    """`options` (fields of the command's, separated by spaces) do nothing `when` this holds; `why`
    ends the sentence "--option has no effect ..."."""

    options: str
    when: Callable[[Any], bool]
    why: str


def idle_lines(options: Any, table: Seq[Idle]) -> list[str]:
    """A line for each option that was given and does nothing; the first rule that holds is told."""
    defaults = {it.name: it.default for it in fields(options)}
    found: dict[str, str] = {}
    for rule in table:
        given = [n for n in rule.options.split() if getattr(options, n) != defaults[n]]
        for name in given:
            if name not in found and rule.when(options):
                found[name] = f"--{name.replace('_', '-')} has no effect {rule.why}"
    return list(found.values())


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


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackOptions(JsonOptions):
    """What every job and training has that can be followed elsewhere."""

    track: Literal["mlflow", "wandb", "tensorboard"] | None = option(
        "Also tell settings, numbers over time and the summary to this library.",
        panel=OUTPUT_PANEL,
    )


def _read_settings(context: typer.Context, path: Place | None) -> Place | None:
    """Let a YAML file set the defaults of all options of the command that is being parsed."""
    if path is None:
        return None
    from draftrec.data.files.texts import read_yaml

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
ItemModel = partial(
    option, "An item model to blend in, of genrec fit --whole-items.", metavar="DIR", place=HERE
)
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


Cluster = partial(option, panel=CLUSTER_PANEL)


@dataclass(frozen=True, kw_only=True)
class ClusterOptions:
    """Who does the shards of a job."""

    engine: Literal["local", "ray"] = Cluster(
        "Run in this process, or by workers on a Ray cluster.", default="local"
    )
    workers: int = Cluster("Ray: workers, each with a model of its own.", default=1, min=1)
    gpus_per_worker: float | None = Cluster(
        "Ray: GPUs of each worker, or a share of one.", min=0.0, show_default="1, if any"
    )
    cpus_per_worker: float | None = Cluster(
        "Ray: processor cores of each worker.",
        min=0.0,
        show_default="its share of this machine, 1 on a cluster",
    )
    address: str | None = Cluster(
        "Ray: a running cluster (auto, HOST:PORT or ray://HOST:PORT).",
        show_default="RAY_ADDRESS, or a cluster on this machine for this job",
    )


_RAY_ONLY = ("workers", "gpus_per_worker", "cpus_per_worker", "address")


def cluster_of(options: Any) -> Any:
    """The `ClusterSpec` that a command's options ask for; None for the local engine.

    Raises DraftrecError where options of the Ray engine are given without it.
    """
    values = {name: getattr(options, name) for name in _RAY_ONLY}
    if options.engine == "local":
        given = [n for n, value in values.items() if value not in (None, 1)]
        if given:
            raise DraftrecError(f"--{given[0].replace('_', '-')} needs --engine ray")
        return None
    from draftrec.jobs.ray import ClusterSpec

    if options.device == "cpu" and options.gpus_per_worker is None:
        values["gpus_per_worker"] = 0.0
    return ClusterSpec(**values)


def executor_of(cluster: Any, note: Callable[[str], None]) -> Any:
    """Starts who does the shards of a job: workers of a cluster, of which `note` is told what a
    user should know, or this process."""
    if cluster is not None:
        from draftrec.jobs.ray import on_ray

        return on_ray(cluster, note)
    from draftrec.jobs.executor import LocalExecutor

    return LocalExecutor
