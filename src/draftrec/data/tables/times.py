"""Moments as cells of tables have them: numbers of some clock, and dates in the forms that programs
write. Nothing is rounded.
"""

from __future__ import annotations

import re
from array import array
from contextlib import suppress
from datetime import UTC, date, datetime
from decimal import Decimal
from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np

from draftrec.core import DoubleArray

#: A number, or a date in nanoseconds, and whether it is a date.
Time = tuple[Any, bool]

_FRACTION = re.compile(r"(?<=\d)\.(\d+)")
_UTC = re.compile(r"(?<=\d)\s*(?:UTC|GMT)\s*$")
#: ISO's date but for its marks or its zeros: 2012/5/3. And its offset behind a space.
_ALMOST_ISO = re.compile(r"^\s*(\d{4})([-/.])(\d\d?)\2(\d\d?)(?!\d)")
_OFFSET = re.compile(r"\s+(?=[+-]\d\d:?\d\d$)")
#: Forms that can be read in one way alone: those of Goodreads, Twitter and Foursquare, of Amazon's
#: reviewTime, of MovieLens-100K's films, of Last.fm.
_FORMS = ("%a %b %d %H:%M:%S %z %Y", "%m %d, %Y", "%d-%b-%Y", "%d %b %Y, %H:%M")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def read_time(value: Any) -> Time:
    """A number as it is; a date or its ISO form as nanoseconds since 1970, UTC unless it says so.
    Nothing is rounded. Raises ValueError or TypeError for anything else."""
    if isinstance(value, str):
        try:
            return _number(Decimal(value))
        except ArithmeticError:
            return _iso(value)
    if isinstance(value, date):
        return _nanoseconds(value), True
    return _number(value)


def _number(value: Any) -> Time:
    if not np.isfinite(float(value)):
        raise ValueError
    return value, False


def _iso(text: str) -> Time:
    """Digits behind the sixth of a second are read here: Python's own dates have no room. So is UTC
    spelt out, as BigQuery does: Python knows it as Z alone."""
    text = _ALMOST_ISO.sub(lambda d: f"{d[1]}-{d[3]:0>2}-{d[4]:0>2}", text)
    text = _OFFSET.sub("", _UTC.sub("Z", text.strip()))
    found = _FRACTION.search(text)
    whole = text if found is None else text[: found.start()] + text[found.end() :]
    fraction = int(found[1][:9].ljust(9, "0")) if found else 0
    return _nanoseconds(_date(whole)) + fraction, True


def _date(text: str) -> date:
    for read in (datetime.fromisoformat, *(partial(_in_form, form) for form in _FORMS)):
        with suppress(ValueError):
            return read(text)
    raise ValueError


def _in_form(form: str, text: str) -> date:
    return datetime.strptime(text, form)


def _nanoseconds(value: date) -> int:
    if not isinstance(value, datetime):
        value = datetime(value.year, value.month, value.day)
    since = (value if value.tzinfo else value.replace(tzinfo=UTC)) - _EPOCH
    return ((since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds) * 1000


class Times:
    """The times of all events, in 8 bytes each where float64 holds them as they are.

    `numbers`: numbers as they are, dates as seconds, rounded; `odd`: which of them are really what
    else; `dates`: how many are dates.
    """

    def __init__(self) -> None:
        self.numbers = array("d")
        self.odd: dict[int, Any] = {}
        self.dates = 0

    def add(self, when: Time) -> None:
        """One more."""
        value, dated = when
        exact = Fraction(value) / 10**9 if dated else value
        number = float(exact)
        if number != exact:
            self.odd[len(self.numbers)] = exact
        self.numbers.append(number)
        self.dates += dated

    def as_numbers(self) -> tuple[DoubleArray, bool]:
        """float64 `[n]`: `numbers`; ranks where these are equal for times that are not, and whether
        that is so."""
        numbers = np.array(self.numbers, np.float64)
        if not self.odd:
            return numbers, False
        exact = [self.odd.get(i, number) for i, number in enumerate(self.numbers)]
        different = set(exact)
        if len(np.unique(numbers)) == len(different):
            return numbers, False
        ranks = {value: float(rank) for rank, value in enumerate(sorted(different))}
        return np.array([ranks[value] for value in exact], np.float64), True
