"""The one error users meet: a sentence that says what is wrong, where, and how to mend it. And what
ends work that was asked to stop."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any


class DraftrecError(Exception):
    """Bad usage or bad input. The command line prints the message and exits with code 2."""


class UnsupportedModelError(DraftrecError):
    """The model's architecture cannot be served exactly; the message says why."""


class PoolMismatchError(DraftrecError):
    """A pool was made with another tokenizer or format than the one in use."""


class PoolOverwrittenError(DraftrecError):
    """A file of a pool was written to while texts drafted from it."""


def not_installed(extra: str, why: str, instead: str = "") -> DraftrecError:
    """What to raise where a package is missing that an extra brings. `why`: who needs it, as in
    "self-BLEU needs sacrebleu"; `instead`: what goes without."""
    other = f", or {instead}" if instead else ""
    return DraftrecError(f'{why}; install it with pip install "draftrec[{extra}]"{other}')


@contextmanager
def needing(extra: str, why: str, instead: str = "") -> Generator[None]:
    """Around imports of what an extra brings: raises `not_installed` where it is missing."""
    try:
        yield
    except ImportError as error:
        raise not_installed(extra, why, instead) from error


class Interrupted(Exception):
    """The work stopped on request, after finishing what was under way, and can go on.

    `progress`: what a job keeps of how far it came (its manifest, a trainer's progress), None for
    work that keeps nothing. `kept`: texts kept of shards that are not finished.
    """

    def __init__(self, progress: Any = None, kept: int = 0) -> None:
        super().__init__("interrupted")
        self.progress, self.kept = progress, kept
