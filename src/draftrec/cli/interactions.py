"""`draftrec records`, records to write texts about, from interactions and items; and `draftrec
sequences`: users' histories to train on, to validate on and to test on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from draftrec.cli.command import command, print_json, told_rejects
from draftrec.cli.knobs import (
    READ,
    REQUIRED,
    WRITTEN,
    argument,
    option,
    option_of,
    settings_of,
)
from draftrec.cli.messages import say
from draftrec.cli.options import (
    EventColumnOptions,
    Interactions,
    JsonOptions,
    ReplaceOutput,
    SettingsFile,
    column,
)
from draftrec.data.files.places import Place
from draftrec.data.settings import ProfileSettings, Repeats, SplitSettings, Ties, Way
from draftrec.errors import DraftrecError

if TYPE_CHECKING:
    import numpy as np

    from draftrec.data.events import Events


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
    until: str | None = Split("until", kind=str, metavar="TIME")
    repeats: Repeats = Split("repeats")
    ties: Ties = Split("ties")
    seed: int = Split("seed")
    overwrite: bool = ReplaceOutput()
    config: Place | None = SettingsFile()


@command(SequencesOptions, writes=["output"])
def sequences(options: SequencesOptions) -> int:
    """Make sequences of INTERACTIONS: what `genrec` trains on, recommends from and is tested on.

    A user's items are in the order of time; files without times, and equal times unless --ties
    random draws their order, stay in file order.
    """
    from draftrec.data.clock import say_future
    from draftrec.data.events import read_events
    from draftrec.data.files.writers import check_new_table, write_tables
    from draftrec.data.records import Rejects
    from draftrec.data.splits import split_events

    check_new_table(options.output, overwrite=options.overwrite)
    times = {name: getattr(options, name) for name in ("valid_from", "test_from", "until")}
    moments = {name: moment(name, text) for name, text in times.items()}
    settings_of(SplitSettings, options, **dict.fromkeys(times))  # refused before the work
    _check_unused(options)
    columns = options.columns()
    rejects = Rejects(columns.user)
    events = read_events(options.interactions, columns, rejects, unrated=True)
    if options.until is None:
        say_future(events, options.interactions)
    known = {name: when and when(events) for name, when in moments.items()}
    settings = settings_of(SplitSettings, options, **known)
    found = split_events(events, settings)
    # Before the table: a kill between the two would cost the list, as a table that is there stays.
    code = told_rejects(rejects, options.output)
    write_tables(options.output, found.table.schema, [found.table])
    summary = {**found.figures, "rejected": len(rejects), "output": str(options.output)}
    if events.time is None:
        say("the interactions have no times: a user's items are in file order")
    _tell_parts(summary, settings)
    if options.json:
        print_json(summary)
    return code


def moment(name: str, text: str | None) -> Callable[[Events], float] | None:
    """The number or the date that an option asks for, for the clock of a file."""
    from draftrec.data.clock import on_clock
    from draftrec.data.tables.times import read_time

    if text is None:
        return None
    option = f"--{name.replace('_', '-')}"
    try:
        when = read_time(text)
    except ValueError:
        raise DraftrecError(
            f"{option} must be a number as in the file, or a date such as 2024-05-31, not {text!r}"
        ) from None
    return partial(on_clock, when=when, option=option)


def _check_unused(options: SequencesOptions) -> None:
    given = {"--valid-from": options.valid_from, "--test-from": options.test_from}
    for name, value in given.items():
        if value is not None and options.split != "time":
            raise DraftrecError(f"{name} belongs to --split time; add that, or leave it out")


def _tell_parts(summary: dict[str, Any], settings: SplitSettings) -> None:
    fewest = settings.fewest
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
    notes = {
        "low_ratings": f"rated below {settings.min_rating}, or not at all, are left out",
        "late": "from --until on are left out",
        "repeats_left_out": f"that repeat another are left out (--repeats {settings.repeats})",
        "repeats_of_a_moment": "are of the same user, item and moment as another one, as logs that "
        "were written twice have them; --repeats moment keeps one of each",
    }
    for key, text in notes.items():
        if summary[key]:
            say(f"{summary[key]:,} interactions {text}")
    if summary["targets_tied"] and settings.ties == "file":
        targets = summary["valid"]["items"] + summary["test"]["items"]
        say(
            f"{summary['targets_tied']:,} of {targets:,} valid and test items have the time of the "
            "item before them: the file's order decides, and if it is sorted by item or rating it "
            "gives the answer away; --ties random draws the order"
        )
    parts = ", ".join(f"{summary[part]['items']:,} {part}" for part in ("train", "valid", "test"))
    say(
        f"{summary['interactions']:,} interactions of {summary['users']:,} users with "
        f"{summary['items']:,} items ({parts}) are in {summary['output']}"
    )


Profile = partial(option_of, ProfileSettings)


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordsOptions(JsonOptions, EventColumnOptions):
    """The command line of `draftrec records`."""

    interactions: str = Interactions()
    items: str = argument("ITEMS", "A row per item: item_id, title and what else.", READ)
    output: Place = option(
        "Records to write: .parquet or .jsonl.", metavar="FILE", default=REQUIRED, place=WRITTEN
    )
    side: str = Profile("side")
    history: int = Profile("history", metavar="N")
    until: str | None = Split("until", kind=str, metavar="TIME")
    min_rating: float | None = Split("min_rating")
    id_column: str | None = column("ITEMS: the items.", "item_id or entity_id")
    title_column: str | None = column("ITEMS: the titles.", "title")
    category_column: str | None = column(
        "ITEMS: the categories.", "category or genres, if there is one"
    )
    overwrite: bool = ReplaceOutput()
    config: Place | None = SettingsFile()


@command(RecordsOptions, writes=["output"])
def records(options: RecordsOptions) -> int:
    """Make records of users, or of items, for `draftrec generate --template ...`.

    A user's history holds titles with ratings, oldest first; equal times, and files without times,
    stay in file order.
    """
    from draftrec.data.clock import say_future
    from draftrec.data.events import read_events
    from draftrec.data.files.writers import check_new_table, write_tables
    from draftrec.data.profiles import ItemColumns, item_records, read_items, user_records
    from draftrec.data.profiles import record_table as table_of
    from draftrec.data.records import Rejects

    check_new_table(options.output, overwrite=options.overwrite)
    if options.output.suffix == ".csv":
        raise DraftrecError(
            f"--output {options.output} cannot be CSV, whose cells hold no lists; write .parquet "
            "or .jsonl"
        )
    until = moment("until", options.until)
    columns = options.columns()
    rejects = Rejects(columns.user)
    events = read_events(options.interactions, columns, rejects, unrated=True)
    if until is None:
        say_future(events, options.interactions)
    names = ItemColumns(
        options.id_column, options.title_column, options.category_column, options.item_column
    )
    items = read_items(options.items, names, rejects)
    kept = _kept(events, options.min_rating, until and until(events))
    left_out: dict[str, Any] = {"items_without_title": items.untitled}
    if options.side == "user":
        found, more = user_records(events, items, options.history, kept)
        left_out |= more
    else:
        _check_join(options, events.items, items.rows)
        found = item_records(events, items, kept)
    if not found:
        raise DraftrecError(
            f"no user has an item of {options.items}: the ids of the two files do not meet; check "
            "them, or name the columns with --item-column and --id-column"
        )
    table = table_of(found)
    code = told_rejects(rejects, options.output)  # before the table, as `sequences` does
    write_tables(options.output, table.schema, [table])
    summary = {"records": len(found), "side": options.side, **left_out}
    summary |= {"rejected": len(rejects), "output": str(options.output)}
    _report(summary)
    if options.json:
        print_json(summary)
    return code


def _check_join(options: RecordsOptions, taken: Iterable[str], known: Mapping[str, object]) -> None:
    """Items that nobody took would have no popularity, and nobody would say why."""
    from draftrec.data.tables.columns import Join

    join = Join("items", options.interactions, options.items, next(iter(known), ""))
    for name in taken:
        join.saw(name, known=name in known)
    join.check()


def _kept(events: Events, min_rating: float | None, until: float | None) -> np.ndarray:
    """Which events count, bool `[n]`."""
    import numpy as np

    kept = np.ones(len(events.user), np.bool_)
    if min_rating is not None:
        if events.rating is None:
            raise DraftrecError(
                "the interactions have no ratings; name their column with --rating-column, or "
                "leave --min-rating out"
            )
        kept &= events.rating >= min_rating
    if until is not None:
        if events.time is None:
            raise DraftrecError(
                "the interactions have no times; name their column with --time-column, or leave "
                "--until out"
            )
        if events.ranked:
            raise DraftrecError(
                "the times are so fine that only their order is known; leave --until out, or round "
                "them"
            )
        kept &= events.time < until
    if not kept.any():
        asked = {"--min-rating": min_rating, "--until": until}
        given = " and ".join(f"{n} {v:.15g}" for n, v in asked.items() if v is not None)
        raise DraftrecError(f"no interaction is left with {given}; {_spans(events)}")
    if events.time is None:
        say("the interactions have no times: a user's items are in file order")
    return kept


def _spans(events: Events) -> str:
    """From where to where ratings and times go."""
    import numpy as np

    spans = {"ratings": events.rating, "times": events.time}
    return ", ".join(
        f"{name} go from {np.nanmin(found):.15g} to {np.nanmax(found):.15g}"
        for name, found in spans.items() if found is not None and not np.isnan(found).all()
    )  # fmt: skip


def _report(summary: dict[str, Any]) -> None:
    notes = {
        "items_without_title": "items without an id or a title are left out",
        "interactions_without_title": "interactions with items that have no title are left out",
        "users_without_history": "users have no item with a title and get no record",
    }
    for key, text in notes.items():
        if summary.get(key):
            say(f"{summary[key]:,} {text}")
    say(
        f"{summary['records']:,} records of {summary['side']}s are in {summary['output']}; write "
        f"texts with: draftrec generate {summary['output']} --template kar --side "
        f"{summary['side']} --model ... --output ..."
    )
