"""What the command line tells people, on standard error, and what they tell it by a signal.

Messages are the log of the package named `draftrec`.
The library logs and configures nothing, as a library should; here the log gets its handler, for as
long as a command runs.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any, ParamSpec

from draftrec.errors import DraftrecError

if TYPE_CHECKING:
    from rich.console import Console

_LOG = logging.getLogger("draftrec")
_Asked = ParamSpec("_Asked")
# Signals that have interrupted the command.
_INTERRUPTS: list[int] = []
# Lines, and how loud they are, that wait for the work to begin.
_HELD: list[tuple[int, str]] = []
# Whether the command is to begin anew what it could go on with, and whether it has.
_ANEW = {"asked": False, "begun": False}
_STYLES = {logging.DEBUG: "dim", logging.WARNING: "yellow", logging.ERROR: "red"}


def say(message: str) -> None:
    """A line for people; --quiet leaves it out."""
    _LOG.info("%s", message)


def warn(message: str) -> None:
    """A line that --quiet shows too: the outcome is not what one would expect."""
    _LOG.warning("%s", message)


def fail(message: str) -> None:
    """The sentence that a command ends with when it cannot do what was asked."""
    _LOG.error("%s", message)


def hold(lines: list[str], level: int = logging.WARNING) -> None:
    """Let lines wait until the work begins, since a refusal is one sentence alone. What an earlier
    command left is forgotten with `drop_held`."""
    _HELD.extend((level, line) for line in lines)


def say_held() -> None:
    """The work begins, nothing is refused any more: say what waited, once."""
    _ANEW["begun"] = _ANEW["asked"]
    while _HELD:
        level, line = _HELD.pop(0)
        _LOG.log(level, "%s", line)


def drop_held() -> None:
    """Forget what waited."""
    _HELD.clear()


def begin_anew(*, anew: bool) -> None:
    """Let `again` know of a command that may have `--overwrite`, and goes on without it."""
    _ANEW.update(asked=anew, begun=False)


def again() -> str:
    """How work goes on that has ended early. The same command would give up what is finished where
    it has `--overwrite`, once that has been heeded."""
    without = ", without --overwrite," if _ANEW["begun"] else ""
    return f"run the same command again{without} to continue"


def beginning(watch: Callable[_Asked, None]) -> Callable[_Asked, None]:
    """`watch`, who is told how far the work is: it has begun when there is something to tell."""

    def told(*args: _Asked.args, **more: _Asked.kwargs) -> None:
        say_held()
        watch(*args, **more)

    return told


def set_loudness(*, quiet: bool, verbose: bool) -> None:
    """Warnings and errors only; or what the library does in detail as well.

    Raises DraftrecError for both.
    """
    if quiet and verbose:
        raise DraftrecError("--quiet and --verbose contradict each other; give one of them")
    _LOG.setLevel(logging.WARNING if quiet else logging.DEBUG if verbose else logging.INFO)


def no_bar(console: Console) -> bool:
    """Whether a bar would show nothing on this console, or is not wanted."""
    return not console.is_terminal or not _LOG.isEnabledFor(logging.INFO)


@contextmanager
def messages() -> Iterator[None]:
    """Show the log on standard error; leave it afterwards as it was found."""
    before = _LOG.level, _LOG.propagate
    handler = _StandardError()
    _LOG.addHandler(handler)
    _LOG.setLevel(logging.INFO)
    _LOG.propagate = False  # a library that sets up the root logger would say everything twice
    try:
        yield
    finally:
        _LOG.removeHandler(handler)
        _LOG.setLevel(before[0])
        _LOG.propagate = before[1]


class _StandardError(logging.Handler):
    """A line per message; coloured by its weight on a terminal, where bars keep below it."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = f"{_origin(record)}: {self.format(record)}"
            if sys.stderr.isatty():
                _coloured(line, _STYLES.get(record.levelno, ""))
            else:
                print(line, file=sys.stderr, flush=True)  # noqa: T201
        except Exception:  # noqa: BLE001 - the protocol of logging: no message may end a job
            self.handleError(record)


def _origin(record: logging.LogRecord) -> str:
    """`draftrec`; of details, the part of it that tells them."""
    return record.name if record.levelno < logging.INFO else "draftrec"


def _coloured(line: str, style: str) -> None:
    from rich.console import Console
    from rich.text import Text

    Console(stderr=True).print(Text(line, style=style), soft_wrap=True)


@contextmanager
def bars() -> Iterator[Callable[[str, int, int], None]]:
    """A bar, on a terminal, for everything that is told of: its name, how much is done, of how
    much."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

    errors = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=errors, transient=True, disable=no_bar(errors)) as progress:
        tasks: dict[str, TaskID] = {}

        def watch(name: str, done: int, total: int) -> None:
            if name not in tasks:
                tasks[name] = progress.add_task(name, total=total)
            progress.update(tasks[name], completed=done, total=total)

        yield watch


def _ending() -> list[int]:
    """Signals that ask a command to end: Ctrl-C, SIGTERM, and SIGHUP, by which a terminal that
    closes ends what was started in it, unless that was told not to hear it (nohup)."""
    found: list[int] = [signal.SIGINT, signal.SIGTERM]
    hangup = getattr(signal, "SIGHUP", None)  # not on Windows
    if hangup is not None and signal.getsignal(hangup) != signal.SIG_IGN:
        found.append(hangup)
    return found


@contextmanager
def interruptible() -> Iterator[None]:
    """SIGTERM and SIGHUP, which would end the process where it stands, interrupt the command as
    Ctrl-C does: what is half written goes, and locks. A handler that somebody has set stays."""
    _INTERRUPTS.clear()
    begin_anew(anew=False)
    usual: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        found = {number: signal.getsignal(number) for number in _ending()}
        usual = {n: it for n, it in found.items() if it in _USUAL}
    for number in usual:
        signal.signal(number, _interrupt)
    try:
        yield
    finally:
        for number, handler in usual.items():
            signal.signal(number, handler)


_USUAL = (signal.SIG_DFL, signal.default_int_handler)


def _interrupt(number: int, frame: FrameType | None = None) -> None:
    _INTERRUPTS.append(number)
    raise KeyboardInterrupt


def was_interrupted() -> bool:
    """Has a signal interrupted the command? Libraries that it meets while they are loaded make
    errors of their own of it."""
    return bool(_INTERRUPTS)


def leave_at_once(code: int) -> None:
    """The work is over, and all is said: a signal that comes while Python takes everything down
    ends the process with `code`, where it would end with a traceback."""

    def leave(number: int, frame: FrameType | None) -> None:
        os._exit(code)

    if threading.current_thread() is threading.main_thread():
        for number in _ending():
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, leave)


class StopSignal(AbstractContextManager["StopSignal"]):
    """Ctrl-C, SIGTERM and SIGHUP as a question that the job asks between steps.

    Until it is armed, and the second time, the signal interrupts at once.
    """

    def __init__(self) -> None:
        self.armed = False
        self.requested = False
        self._before: dict[int, Any] = {}

    def arm(self) -> None:
        """The work begins: from now on a signal is a question."""
        self.armed = True
        say_held()

    def __call__(self) -> bool:
        return self.requested

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():
            for number in _ending():
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self.armed or self.requested:
            _interrupt(number)
        self.requested = True
        say("stopping after this step; once more stops at once")
