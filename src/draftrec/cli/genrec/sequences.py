"""`draftrec sequences`: users' histories to train on, to validate on and to test on."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from draftrec.cli.command import command, print_json, told_rejects
from draftrec.cli.messages import say
from draftrec.cli.options.knobs import REQUIRED, option, option_of, settings_of
from draftrec.cli.options.places import WRITTEN
from draftrec.cli.options.shared import (
    EventColumnOptions,
    Interactions,
    JsonOptions,
    ReplaceOutput,
    SettingsFile,
)
from draftrec.data.files.places import Place
from draftrec.data.settings import Repeats, SplitSettings, Way
from draftrec.errors import DraftrecError

Split = partial(option_of, SplitSettings)


@dataclass(frozen=True, slots=True, kw_only=True)
class SequencesOptions(JsonOptions, EventColumnOptions):
    """The command line of `draftrec sequences`."""

    interactions: str = Interactions()
    output: Place = option(
        "Sequences to write: .parquet, .jsonl or .csv.",
        metavar="FILE",
        default=REQUIRED,
        place=WRITTEN,
    )
    split: Way = Split("way")
    valid_from: str | None = Split("valid_from", kind=str, metavar="TIME")
    test_from: str | None = Split("test_from", kind=str, metavar="TIME")
    valid_share: float = Split("valid_share")
    test_share: float = Split("test_share")
    min_interactions: int | None = Split("min_interactions")
    min_item_interactions: int = Split("min_item_interactions")
    min_rating: float | None = Split("min_rating")
    repeats: Repeats = Split("repeats")
    overwrite: bool = ReplaceOutput()
    config: Place | None = SettingsFile()


@command(SequencesOptions, writes=["output"])
def sequences(options: SequencesOptions) -> int:
    """Make sequences of INTERACTIONS: what `genrec` trains on, recommends from and is tested on.

    A user's items are in the order of time; equal times, and files without times, stay in file
    order.
    """
    from draftrec.data.events import read_events
    from draftrec.data.files.writers import check_new_table, write_tables
    from draftrec.data.records import Rejects
    from draftrec.data.splits import split_events

    check_new_table(options.output, overwrite=options.overwrite)
    settings = settings_of(
        SplitSettings,
        options,
        valid_from=moment("--valid-from", options.valid_from),
        test_from=moment("--test-from", options.test_from),
    )
    _check_unused(options)
    columns = options.columns()
    rejects = Rejects(columns.user)
    events = read_events(options.interactions, columns, rejects)
    found = split_events(events, settings)
    write_tables(options.output, found.table.schema, [found.table])
    summary = {**found.figures, "rejected": len(rejects), "output": str(options.output)}
    if events.time is None:
        say("the interactions have no times: a user's items are in file order")
    _report(summary, settings.fewest)
    code = told_rejects(rejects, options.output)
    if options.json:
        print_json(summary)
    return code


def moment(option: str, text: str | None) -> float | None:
    """A number, or a date as seconds since 1970."""
    from draftrec.data.events import seconds_of

    if text is None:
        return None
    try:
        return seconds_of(text)
    except ValueError:
        raise DraftrecError(
            f"{option} must be a number as in the file, or a date such as 2024-05-31, not {text!r}"
        ) from None


def _check_unused(options: SequencesOptions) -> None:
    given = {"--valid-from": options.valid_from, "--test-from": options.test_from}
    for name, value in given.items():
        if value is not None and options.split != "time":
            raise DraftrecError(f"{name} belongs to --split time; add that, or leave it out")


def _report(summary: dict[str, Any], fewest: int) -> None:
    if summary["users_left_out"] or summary["items_left_out"]:
        say(
            f"{summary['users_left_out']:,} users (with fewer than {fewest} interactions) and "
            f"{summary['items_left_out']:,} items are left out"
        )
    if summary["test_users_without_history"]:
        say(
            f"{summary['test_users_without_history']:,} users have nothing before the test part: "
            "popular items answer for them"
        )
    parts = ", ".join(f"{summary[part]['items']:,} {part}" for part in ("train", "valid", "test"))
    say(
        f"{summary['interactions']:,} interactions of {summary['users']:,} users with "
        f"{summary['items']:,} items ({parts}) are in {summary['output']}"
    )
