"""The one exception users meet: a sentence that says what is wrong, where, and how to mend it."""

from __future__ import annotations


class DraftrecError(Exception):
    """Bad usage or bad input. The command line prints the message and exits with code 2."""


class UnsupportedModelError(DraftrecError):
    """The model's architecture cannot be served exactly; the message says why."""


class PoolMismatchError(DraftrecError):
    """A pool was made with another tokenizer or format than the one in use."""
