"""`draftrec ctr`: what knowledge vectors are worth to click models."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from draftrec.cli.command import DONE, SOME_REJECTED, command, print_json, told_rejects
from draftrec.cli.knobs import (
    HISTORIES_PANEL,
    OUTPUT_PANEL,
    READ,
    SAMPLES_PANEL,
    TRAINING_PANEL,
    WRITTEN,
    argument,
    option,
    option_of,
    settings_of,
)
from draftrec.cli.messages import StopSignal, bars, beginning, say, warn
from draftrec.cli.options import EventColumnOptions, Idle, SettingsFile, TrackOptions
from draftrec.config import Auto
from draftrec.ctr.settings import FitSettings, StudyRun
from draftrec.data.files.places import Place
from draftrec.data.settings import CutSettings, Split
from draftrec.errors import DraftrecError

if TYPE_CHECKING:
    from draftrec.ctr.study import StudyJob

Study = partial(option_of, StudyRun)
Samples = partial(option_of, CutSettings, panel=SAMPLES_PANEL)
Training = partial(option_of, FitSettings, panel=TRAINING_PANEL)
File = partial(option, metavar="FILE", place=READ)
Histories = partial(option, panel=HISTORIES_PANEL)


@dataclass(frozen=True, slots=True, kw_only=True)
class CtrOptions(TrackOptions, EventColumnOptions):
    """The command line of `draftrec ctr`."""

    interactions: str = argument(
        "INTERACTIONS", "Parquet, JSONL or CSV: a row per rating, view or click.", READ
    )
    items: str | None = File(
        "A row per item; columns of few values are features, the summary says which."
    )
    users: str | None = File("A row per user, as --items for items.")
    user_vectors: str | None = File("Vectors of users, as `draftrec encode` writes.")
    item_vectors: str | None = File("Vectors of items, as `draftrec encode` writes.")
    model: list[str] | None = Study("models", default=None)
    adaptor: list[str] | None = Study("adaptors", default=None)
    seeds: int = Study("seeds")
    output: Path | None = option("Folder of the results.", metavar="DIR")
    save_histories: Place | None = Histories(
        "Write what lies before the cut, as `generate --template kar --side user` reads it, and "
        "stop.",
        metavar="FILE.jsonl",
        place=WRITTEN,
    )
    history: int = Samples("history")
    positive: float | None = Samples("positive")
    negatives: int = Samples("negatives")
    sequence: int = Samples("sequence")
    split: Split = Samples("split")
    fold: int = Samples("fold")
    sample_seed: int = Samples("seed")
    lr: list[float] | None = Training("learning_rates", default=None)
    batch_size: list[int] | None = Training("batch_sizes", default=None)
    embedding: int = Training("size")
    epochs: int = Training("epochs")
    patience: int = Training("patience")
    weight_decay: float = Training("weight_decay")
    contrast: float = Training("contrast")
    dropout: float = Training("dropout")
    workers: int | Auto = Study("workers", panel=TRAINING_PANEL)
    item_columns: str | None = option(
        "Features of --items, instead of what fits.", metavar="A,B", panel=SAMPLES_PANEL
    )
    user_columns: str | None = option(
        "Features of --users, instead of what fits.", metavar="A,B", panel=SAMPLES_PANEL
    )
    title_column: str | None = Histories(
        "Titles of --items, for --save-histories [default: title].", default=None
    )
    category_column: str | None = Histories(
        "Categories of --items, for --save-histories, which leaves them out unless they are named."
    )
    overwrite: bool = option("Begin anew in --output.", default=False, panel=OUTPUT_PANEL)
    config: Place | None = SettingsFile()


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
        lambda o: not _adaptors(o) - {"none"},
        "without an --adaptor, which lets vectors in",
    ),
    Idle(
        "contrast",
        lambda o: "contrastive" not in _adaptors(o),
        "without --adaptor contrastive",
    ),
    Idle("fold", lambda o: o.split == "time", "with --split time"),
    Idle("sample_seed", lambda o: not o.negatives, "without --negatives, as nothing is drawn"),
)


def _adaptors(options: CtrOptions) -> set[str]:
    return set(options.adaptor or ())


@command(CtrOptions, idle=_IDLE, writes=["save_histories"], fills=["output"], resumes=True)
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

    from draftrec.cli.tracking import of_state, tracked
    from draftrec.ctr.study import REJECTED, run_study

    job = _job(options, options.output)
    if options.workers != "auto" and options.workers < 1:
        raise DraftrecError("--workers must be auto or at least 1")
    workers = None if options.workers == "auto" else options.workers
    # Never armed: SIGTERM interrupts as Ctrl-C does, so that no worker is left behind.
    with tracked(options.track, options.output, options) as tracker, StopSignal(), bars() as watch:
        told = of_state(tracker, beginning(partial(watch, "trials")), "trials")
        summary = run_study(job, workers, told)
        tracker.end({f"{r['model']}/{r['adaptor']}": r for r in summary["results"]})
    _show(summary, Console(stderr=options.json))
    say(f"trials and summary are in {options.output}")
    if summary["rejected"]:
        say(f"{summary['rejected']:,} rows were rejected, see {options.output / REJECTED}")
    if options.json:
        print_json(summary)
    return SOME_REJECTED if summary["rejected"] else DONE


def _job(options: CtrOptions, output: Path) -> StudyJob:
    from draftrec.ctr.features import FeatureSources
    from draftrec.ctr.study import StudyJob

    return StudyJob(
        interactions=options.interactions,
        output=output,
        models=cast(Any, tuple(map(str, options.model or StudyRun.models))),
        adaptors=cast(Any, tuple(map(str, options.adaptor or StudyRun.adaptors))),
        seeds=options.seeds,
        columns=options.columns(),
        sources=FeatureSources(
            options.items, _names(options.item_columns), options.users,
            _names(options.user_columns), options.user_vectors, options.item_vectors,
        ),
        cut=settings_of(CutSettings, options),
        fit=settings_of(FitSettings, options),
        overwrite=options.overwrite,
    )  # fmt: skip


def _names(columns: str | None) -> tuple[str, ...] | None:
    """`a,b` as two names; an empty text is none at all."""
    if columns is None:
        return None
    return tuple(name.strip() for name in columns.split(",") if name.strip())


def _save_histories(options: CtrOptions, path: Place) -> int:
    from draftrec.ctr.features import save_histories
    from draftrec.data.clock import say_untimed
    from draftrec.data.events import read_events
    from draftrec.data.profiles import ItemColumns, read_items
    from draftrec.data.records import Rejects

    rejects = Rejects(options.user_column)
    events = read_events(options.interactions, options.columns(), rejects)
    items = None
    if options.items is not None:
        items = read_items(
            options.items,
            ItemColumns(None, options.title_column, options.category_column, options.item_column),
            rejects,
        )
    cut, categories = settings_of(CutSettings, options), options.category_column is not None
    counts = save_histories(path, events, cut, items, categories=categories)
    say(f"histories of {counts['users']:,} users are in {path}")
    say_untimed(events, options.interactions)
    if items is None:
        warn("without --items, histories name items by their ids, which say little to a model")
    if counts["untitled"]:
        say(
            f"{counts['untitled']:,} interactions with items that have no title in "
            f"{options.items} are left out"
        )
    code = told_rejects(rejects, path)
    if options.json:
        print_json({**counts, "rejected": len(rejects), "output": str(path)})
    return code


def _show(summary: dict[str, Any], console: Any) -> None:
    from rich import box
    from rich.table import Table

    seeds = summary["results"][0]["seeds"]
    parts = ", ".join(f"{part['samples']:,} {name}" for name, part in summary["samples"].items())
    table = Table(
        box=box.SIMPLE_HEAD, title=f"samples: {parts}", title_justify="left",
        caption=(
            f"mean and 95 % interval over {seeds} seeds on one split, not over users; over none: "
            "AUC gained, seed by seed"
        ),
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
