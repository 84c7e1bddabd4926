"""The clock of a file of events: its times beside those of options, and beside today."""

from __future__ import annotations

import logging
import time
from datetime import UTC, datetime
from fractions import Fraction

from draftrec.data.events import Events
from draftrec.data.tables.times import Time
from draftrec.errors import DraftrecError

_LOG = logging.getLogger(__name__)

#: How many of a file's numbers a second may have, and between which seconds its latest moment then
#: lies: from 1990 to 2100. 20240531 is none of these.
_PER_SECOND, _SECONDS = (1, 10**3, 10**6, 10**9), (6.3e8, 4.2e9)
#: Seconds that clocks, and times that were written without their zone, may be ahead.
_TOLERATED = 86_400


def on_clock(events: Events, when: Time, option: str) -> float:
    """A time that an `option` gives, as `events.time` has it: a number as it is, a date in seconds
    since 1970, or in the thousandths, millionths ... that the file counts.

    Raises DraftrecError for a date where the file's numbers can be none of these.
    """
    value, dated = when
    if not dated:
        return float(value)
    seconds = Fraction(value) / 10**9
    if events.dated or events.ranked or events.time is None:
        return float(seconds)
    if unit := _unit_of(events):
        return float(seconds * unit)
    raise DraftrecError(
        f"{option} is a date, and the times of the interactions are numbers up to "
        f"{events.time.max():.15g}, which count no seconds since 1970; give {option} as such a "
        "number, or write dates"
    )


def _unit_of(events: Events) -> int:
    """How many of the file's numbers a second has, 0 where they count no seconds since 1970."""
    latest = 0.0 if events.time is None else float(events.time.max())
    fits = (u for u in _PER_SECOND if _SECONDS[0] <= latest / u <= _SECONDS[1])
    return next(fits, 0)


def say_future(events: Events, location: str) -> None:
    """Warn of events that have not happened yet: as a user's latest they would be what is to be
    predicted, and all that a short history tells."""
    if events.time is None or events.ranked or not len(events.time):
        return
    unit = 1 if events.dated else _unit_of(events)
    later = events.time > (time.time() + _TOLERATED) * max(unit, 1)
    if unit and later.any():
        latest = datetime.fromtimestamp(float(events.time.max()) / unit, UTC)
        _LOG.warning(
            "%s: %s interactions lie in the future, up to %s, and count as their users' latest; "
            "where that is wrong, leave them out with --until",
            location, f"{int(later.sum()):,}", latest.date(),
        )  # fmt: skip


def say_untimed(events: Events, location: str) -> None:
    """Warn where histories follow the file because nothing says when events were."""
    if events.time is None:
        _LOG.warning(
            "%s has no column of times, so that events count as in the order of the file; where it "
            "is another one, name the column of times",
            location,
        )
