"""`draftrec sequences`: users' histories to train on, to validate on and to test on."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from draftrec.cli.common import (
    DONE,
    SOME_REJECTED,
    ConfigOption,
    DebugOption,
    JsonOption,
    command,
    print_json,
    say,
)
from draftrec.cli.options.columns import ItemColumn, RatingColumn, TimeColumn, UserColumn
from draftrec.cli.options.places import READ, WRITTEN
from draftrec.data.files.places import Place
from draftrec.errors import DraftrecError

if TYPE_CHECKING:
    from draftrec.data.records import Rejects

Argument, Option = typer.Argument, typer.Option


class Way(StrEnum):
    """How interactions are parted."""

    LEAVE_ONE_OUT = "leave-one-out"
    TIME = "time"


class Repeats(StrEnum):
    """Which of a user's interactions with one item count."""

    KEEP = "keep"
    FIRST = "first"
    LAST = "last"


@dataclass(frozen=True, slots=True, kw_only=True)
class SequencesOptions:
    """The command line of `draftrec sequences`."""

    interactions: Annotated[
        str,
        READ,
        Argument(
            metavar="INTERACTIONS",
            help="A row per interaction: user_id, item_id, and rating and timestamp if known.",
        ),
    ]
    output: Annotated[
        Place, WRITTEN, Option(metavar="FILE", help="Sequences to write: .parquet, .jsonl or .csv.")
    ]
    split: Annotated[
        Way,
        Option(
            help="leave-one-out: a user's last item tests, the one before it validates; time: what "
            "came last of all tests."
        ),
    ] = Way.LEAVE_ONE_OUT
    valid_from: Annotated[
        str | None, Option(metavar="TIME", help="time: validate from this time, or date, on.")
    ] = None
    test_from: Annotated[
        str | None, Option(metavar="TIME", help="time: test from this time, or date, on.")
    ] = None
    valid_share: Annotated[
        float, Option(min=0.0, max=1.0, help="time: share that validates, without --test-from.")
    ] = 0.1
    test_share: Annotated[
        float, Option(min=0.0, max=1.0, help="time: share that tests, without --test-from.")
    ] = 0.1
    min_interactions: Annotated[
        int | None,
        Option(
            min=1, help="Leave out users with fewer.", show_default="3 for leave-one-out, else 1"
        ),
    ] = None
    min_item_interactions: Annotated[
        int, Option(min=1, help="Leave out items with fewer; 5 and 5 make a 5-core.")
    ] = 1
    min_rating: Annotated[
        float | None, Option(help="Leave out interactions that are rated lower.")
    ] = None
    repeats: Annotated[
        Repeats, Option(help="Of a user's interactions with one item: all, the first, the last.")
    ] = Repeats.KEEP
    user_column: UserColumn = None
    item_column: ItemColumn = None
    rating_column: RatingColumn = None
    time_column: TimeColumn = None
    overwrite: Annotated[bool, Option("--overwrite", help="Replace --output.")] = False
    config: ConfigOption = None
    json: JsonOption = False
    debug: DebugOption = False


@command(SequencesOptions, writes=["output"])
def sequences(options: SequencesOptions) -> int:
    """Make sequences of INTERACTIONS: what `genrec` trains on, recommends from and is tested on.

    A user's items are in the order of time; equal times, and files without times, stay in file
    order.
    """
    from draftrec.data.events import EventColumns, read_events
    from draftrec.data.records import Rejects
    from draftrec.data.splits import SplitSettings, split_events
    from draftrec.data.tables.writing import check_new_table, write_tables

    check_new_table(options.output, overwrite=options.overwrite)
    fewest = options.min_interactions or (3 if options.split is Way.LEAVE_ONE_OUT else 1)
    settings = SplitSettings(
        options.split.value, fewest, options.min_item_interactions, options.repeats.value,
        options.min_rating, moment("--valid-from", options.valid_from),
        moment("--test-from", options.test_from), (options.valid_share, options.test_share),
    )  # fmt: skip
    _check_unused(options)
    columns = EventColumns.named(
        options.user_column, options.item_column, options.rating_column, options.time_column
    )
    rejects = Rejects(columns.user)
    events = read_events(options.interactions, columns, rejects)
    found = split_events(events, settings)
    write_tables(options.output, found.table.schema, [found.table])
    summary = {**found.figures, "rejected": len(rejects), "output": str(options.output)}
    if events.time is None:
        say("the interactions have no times: a user's items are in file order")
    _report(summary, fewest)
    code = told_rejects(rejects, options.output)
    if options.json:
        print_json(summary)
    return code


def told_rejects(rejects: Rejects, output: Place) -> int:
    """List the interactions that could not be used beside the output; the exit code."""
    path = output.with_name(f"{output.name}.rejected.jsonl")
    rejects.write(path)
    if rejects:
        say(rejects.words(path))
    return SOME_REJECTED if rejects else DONE


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
    for option, value in given.items():
        if value is not None and options.split is not Way.TIME:
            raise DraftrecError(f"{option} belongs to --split time; add that, or leave it out")


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
