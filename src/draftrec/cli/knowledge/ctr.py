"""`draftrec ctr`: what knowledge vectors are worth to click models."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from draftrec.cli.common import (
    DONE,
    HISTORIES_PANEL,
    OUTPUT_PANEL,
    SAMPLES_PANEL,
    SOME_REJECTED,
    TRAINING_PANEL,
    ConfigOption,
    DebugOption,
    JsonOption,
    StopSignal,
    auto_or_number,
    command,
    print_json,
    say,
)
from draftrec.cli.messages import beginning, no_bar, warn
from draftrec.cli.options.columns import ItemColumn, RatingColumn, TimeColumn, UserColumn
from draftrec.cli.options.idle import Idle
from draftrec.cli.options.places import READ, WRITTEN
from draftrec.ctr.settings import FitSettings
from draftrec.data.files.places import Place
from draftrec.errors import DraftrecError

if TYPE_CHECKING:
    from draftrec.ctr.study import StudyJob
    from draftrec.data.events import CutSettings, EventColumns

_FIT = FitSettings()

Option = typer.Option
Samples = partial(Option, rich_help_panel=SAMPLES_PANEL)
Histories = partial(Option, rich_help_panel=HISTORIES_PANEL)
Training = partial(Option, rich_help_panel=TRAINING_PANEL)


class Model(StrEnum):
    """Click models."""

    DIN = "din"
    DIEN = "dien"
    DCN = "dcn"
    DCNV2 = "dcnv2"
    DEEPFM = "deepfm"
    XDEEPFM = "xdeepfm"
    AUTOINT = "autoint"
    FIBINET = "fibinet"
    FIGNN = "fignn"


class Adaptor(StrEnum):
    """How vectors enter a click model."""

    NONE = "none"
    MOE = "moe"
    HEA = "hea"
    MLP = "mlp"
    CONTRASTIVE = "contrastive"


class SplitBy(StrEnum):
    """What the test is on."""

    USER = "user"
    TIME = "time"


@dataclass(frozen=True, slots=True, kw_only=True)
class CtrOptions:
    """The command line of `draftrec ctr`."""

    interactions: Annotated[
        str,
        READ,
        typer.Argument(
            metavar="INTERACTIONS", help="Parquet, JSONL or CSV: a row per rating, view or click."
        ),
    ]
    items: Annotated[
        str | None,
        READ,
        Option(
            metavar="FILE",
            help="A row per item; columns of few values are features, the summary says which.",
        ),
    ] = None
    users: Annotated[
        str | None, READ, Option(metavar="FILE", help="A row per user, as --items for items.")
    ] = None
    user_vectors: Annotated[
        str | None,
        READ,
        Option(metavar="FILE", help="Vectors of users, as `draftrec encode` writes."),
    ] = None
    item_vectors: Annotated[
        str | None,
        READ,
        Option(metavar="FILE", help="Vectors of items, as `draftrec encode` writes."),
    ] = None
    model: Annotated[
        list[Model] | None, Option(help="Click model; may be repeated [default: din].")
    ] = None
    adaptor: Annotated[
        list[Adaptor] | None,
        Option(
            help="How vectors enter: moe (KAR and TRAWL as in DARE), hea (KAR), mlp (ONCE), "
            "contrastive (RLMRec), none; may be repeated [default: none]."
        ),
    ] = None
    seeds: Annotated[int, Option(min=1, help="Runs of each model and adaptor.")] = 5
    output: Annotated[Path | None, Option(metavar="DIR", help="Folder of the results.")] = None
    save_histories: Annotated[
        Place | None,
        WRITTEN,
        Histories(
            metavar="FILE.jsonl",
            help="Write what lies before the cut, as `generate --template kar --side user` reads "
            "it, and stop.",
        ),
    ] = None
    history: Annotated[int, Samples(min=1, help="Most events of a user before the cut.")] = 30
    positive: Annotated[
        float | None,
        Samples(help="Ratings from here on count as clicks [default: 4; 1 for booleans and 0/1]."),
    ] = None
    negatives: Annotated[
        int, Samples(min=0, help="Items the user never took, drawn for each click.")
    ] = 0
    sequence: Annotated[int, Samples(min=1, help="Clicked items a model sees of a user.")] = 5
    split: Annotated[
        SplitBy,
        Samples(help="Validate and test on other users (8:1:1), or on the last 20 % of time."),
    ] = SplitBy.USER
    fold: Annotated[
        int, Samples(min=0, max=9, help="Split by user: which tenth of the users is tested on.")
    ] = 0
    sample_seed: Annotated[int, Samples(help="Seed of the drawn items.")] = 0
    lr: Annotated[
        list[float] | None, Training(help="Learning rate; repeat it to choose on validation.")
    ] = None
    batch_size: Annotated[
        list[int] | None, Training(min=2, help="Batch size; repeat it to choose on validation.")
    ] = None
    embedding: Annotated[int, Training(min=2, help="Numbers per embedding, even.")] = _FIT.size
    epochs: Annotated[int, Training(min=1, help="Most passes over the training samples.")] = (
        _FIT.epochs
    )
    patience: Annotated[
        int, Training(min=1, help="Epochs without a better validation AUC before the end.")
    ] = _FIT.patience
    weight_decay: Annotated[float, Training(min=0, help="Weight decay of AdamW.")] = (
        _FIT.weight_decay
    )
    contrast: Annotated[
        float, Training(min=0, help="Weight of the loss of --adaptor contrastive.")
    ] = _FIT.contrast
    dropout: Annotated[
        float, Training(min=0, max=0.95, help="Share of a vector that is zeroed in training.")
    ] = _FIT.dropout
    workers: Annotated[str, Training(help="Processes side by side; auto: one per core.")] = "auto"
    item_columns: Annotated[
        str | None, Samples(metavar="A,B", help="Features of --items, instead of what fits.")
    ] = None
    user_columns: Annotated[
        str | None, Samples(metavar="A,B", help="Features of --users, instead of what fits.")
    ] = None
    title_column: Annotated[str, Histories(help="Titles of --items, for --save-histories.")] = (
        "title"
    )
    category_column: Annotated[
        str | None, Histories(help="Categories of --items, for --save-histories.")
    ] = None
    user_column: UserColumn = None
    item_column: ItemColumn = None
    rating_column: RatingColumn = None
    time_column: TimeColumn = None
    overwrite: Annotated[
        bool, Option("--overwrite", help="Begin anew in --output.", rich_help_panel=OUTPUT_PANEL)
    ] = False
    config: ConfigOption = None
    json: JsonOption = False
    debug: DebugOption = False


_IDLE = (
    Idle(
        "output users user_vectors item_vectors model adaptor seeds negatives sequence split fold "
        "sample_seed item_columns user_columns lr batch_size embedding epochs patience "
        "weight_decay contrast dropout workers overwrite",
        lambda o: o.save_histories is not None,
        "with --save-histories, which trains nothing",
    ),
    Idle(
        "title_column category_column",
        lambda o: o.save_histories is None,
        "without --save-histories",
    ),
    Idle("title_column category_column item_columns", lambda o: o.items is None, "without --items"),
    Idle("user_columns", lambda o: o.users is None, "without --users"),
    Idle(
        "user_vectors item_vectors dropout",
        lambda o: not _adaptors(o) - {Adaptor.NONE},
        "without an --adaptor, which lets vectors in",
    ),
    Idle(
        "contrast",
        lambda o: Adaptor.CONTRASTIVE not in _adaptors(o),
        "without --adaptor contrastive",
    ),
    Idle("fold", lambda o: o.split is SplitBy.TIME, "with --split time"),
    Idle("sample_seed", lambda o: not o.negatives, "without --negatives, as nothing is drawn"),
)


def _adaptors(options: CtrOptions) -> set[Adaptor]:
    return set(options.adaptor or ())


@command(CtrOptions, idle=_IDLE, writes=["save_histories"], fills=["output"])
def ctr(options: CtrOptions) -> int:
    """Train click models on INTERACTIONS, with and without knowledge vectors, over several seeds.

    A user's first events are left to the prompt, samples come from later ones. Models are chosen
    by validation AUC; AUC and LogLoss of the test come with 95 % intervals. A second run goes on
    where the first stopped, and adds what is asked for anew.
    """
    if options.save_histories is not None:
        return _save_histories(options, options.save_histories)
    if options.output is None:
        raise DraftrecError("give --output DIR for the results")
    if options.embedding % 2:
        raise DraftrecError("--embedding must be even, as autoint and fignn part it into two heads")
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    from draftrec.ctr.study import REJECTED, run_study

    job = _job(options, options.output)
    workers = auto_or_number("workers", options.workers)
    if workers != "auto" and workers < 1:
        raise DraftrecError("--workers must be auto or at least 1")
    errors = Console(stderr=True)
    columns = (TextColumn("trials"), BarColumn(), MofNCompleteColumn())
    # Never armed: SIGTERM interrupts as Ctrl-C does, so that no worker is left behind.
    with (
        StopSignal(),
        Progress(*columns, console=errors, transient=True, disable=no_bar(errors)) as bar,
    ):
        task = bar.add_task("trials", total=None)

        def watch(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        summary = run_study(job, None if workers == "auto" else workers, beginning(watch))
    _show(summary, Console(stderr=options.json))
    say(f"trials and summary are in {options.output}")
    if summary["rejected"]:
        say(f"{summary['rejected']:,} rows were rejected, see {options.output / REJECTED}")
    if options.json:
        print_json(summary)
    return SOME_REJECTED if summary["rejected"] else DONE


def _job(options: CtrOptions, output: Path) -> StudyJob:
    from draftrec.ctr.features import Sources
    from draftrec.ctr.study import StudyJob

    return StudyJob(
        interactions=options.interactions,
        output=output,
        models=tuple(m.value for m in options.model or [Model.DIN]),
        adaptors=tuple(a.value for a in options.adaptor or [Adaptor.NONE]),
        seeds=options.seeds,
        columns=_columns(options),
        sources=Sources(
            options.items, _names(options.item_columns), options.users,
            _names(options.user_columns), options.user_vectors, options.item_vectors,
        ),
        cut=_cut(options),
        fit=FitSettings(
            tuple(options.lr or _FIT.learning_rates),
            tuple(options.batch_size or _FIT.batch_sizes),
            options.embedding, options.epochs, options.patience, options.weight_decay,
            options.contrast, options.dropout,
        ),
        overwrite=options.overwrite,
    )  # fmt: skip


def _columns(options: CtrOptions) -> EventColumns:
    from draftrec.data.events import EventColumns

    return EventColumns.named(
        options.user_column, options.item_column, options.rating_column, options.time_column
    )


def _cut(options: CtrOptions) -> CutSettings:
    from draftrec.data.events import CutSettings

    return CutSettings(
        options.history, options.positive, options.sequence, options.negatives,
        options.sample_seed, options.split.value, options.fold,
    )  # fmt: skip


def _names(columns: str | None) -> tuple[str, ...] | None:
    """`a,b` as two names; an empty text is none at all."""
    if columns is None:
        return None
    return tuple(name.strip() for name in columns.split(",") if name.strip())


def _save_histories(options: CtrOptions, path: Place) -> int:
    from draftrec.ctr.histories import save_histories
    from draftrec.data.events import read_events, say_untimed
    from draftrec.data.records import Rejects

    rejects = Rejects(options.user_column)
    events = read_events(options.interactions, _columns(options), rejects)
    items = None if options.items is None else (options.items, _columns(options).item)
    shown = (options.title_column, options.category_column)
    users = save_histories(path, events, _cut(options), items, shown, rejects)
    say(f"histories of {users:,} users are in {path}")
    say_untimed(events, options.interactions)
    if items is None:
        warn("without --items, histories name items by their ids, which say little to a model")
    rejected = path.with_name(f"{path.name}.rejected.jsonl")
    rejects.write(rejected)
    if rejects:
        say(rejects.words(rejected))
    if options.json:
        print_json({"users": users, "rejected": len(rejects), "output": str(path)})
    return SOME_REJECTED if rejects else DONE


def _show(summary: dict[str, Any], console: Any) -> None:
    from rich import box
    from rich.table import Table

    seeds = summary["results"][0]["seeds"]
    parts = ", ".join(f"{part['samples']:,} {name}" for name, part in summary["samples"].items())
    table = Table(
        box=box.SIMPLE_HEAD, title=f"samples: {parts}", title_justify="left",
        caption=f"seeds: {seeds}; mean and 95 % interval; over none: AUC gained, seed by seed",
        caption_justify="left",
    )  # fmt: skip
    for name in ("model", "adaptor"):
        table.add_column(name)
    for name in ("AUC", "LogLoss", "over none"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in summary["results"]:
        gain = _cell(row["over_none"]["auc"], "+.4f") if "over_none" in row else ""
        table.add_row(row["model"], row["adaptor"], _cell(row["auc"]), _cell(row["logloss"]), gain)
    console.print(table)
    console.print(f"clicks: {_clicks(summary)}")
    for side, use in summary["columns"].items():
        console.print(f"attributes of {side}: {_columns_used(use)}", markup=False)
    for side, missing in summary["without_vectors"].items():
        if missing:
            console.print(f"{missing:,} {side} of the samples have no vector; theirs are zeros")


def _clicks(summary: dict[str, Any]) -> str:
    clicks = ", ".join(f"{part['clicks']:,} in {name}" for name, part in summary["samples"].items())
    return f"ratings of {summary['positive']:g} or more ({clicks})"


def _columns_used(use: dict[str, dict[str, Any]]) -> str:
    """Which columns are features, with how many values, and why others are not."""
    used = ", ".join(f"{name} ({count:,} values)" for name, count in use["used"].items())
    left = "; ".join(f"{name} ({why})" for name, why in use["left_out"].items())
    return (used or "none") + (f"; left out: {left}" if left else "")


def _cell(found: dict[str, float | None], form: str = ".4f") -> str:
    """The mean, and half the width of its interval."""
    mean, high = found["mean"], found["high"]
    if mean is None or high is None:
        return f"{mean:{form}}"
    return f"{mean:{form}} ±{high - mean:.4f}"
