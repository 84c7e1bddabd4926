"""The `draftrec` command: finds the command, runs it, turns what goes wrong into one sentence."""

from __future__ import annotations

import errno
import inspect
import os
import sys
import traceback
from collections.abc import Callable
from collections.abc import Sequence as Seq
from functools import wraps
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Annotated, Any

import typer
from rich.markup import escape

from draftrec import __version__
from draftrec.cli.command import BAD_INPUT, INTERRUPTED
from draftrec.cli.messages import (
    again,
    fail,
    interruptible,
    leave_at_once,
    messages,
    say,
    was_interrupted,
)
from draftrec.data.files.writers import system_error
from draftrec.errors import DraftrecError

#: Command -> module that defines a function of that name, or a table SUBCOMMANDS.
_COMMANDS = {
    "compare": "draftrec.cli.knowledge.compare",
    "ctr": "draftrec.cli.knowledge.ctr",
    "dashboard": "draftrec.cli.serve",
    "demo": "draftrec.cli.demo",
    "drafter": "draftrec.cli.drafter",
    "encode": "draftrec.cli.knowledge.encode",
    "generate": "draftrec.cli.knowledge.generate",
    "genrec": "draftrec.cli.genrec",
    "group": "draftrec.cli.knowledge.group",
    "pool": "draftrec.cli.knowledge.pool",
    "records": "draftrec.cli.interactions",
    "prompts": "draftrec.cli.knowledge.prompts",
    "replay": "draftrec.cli.knowledge.replay",
    "sequences": "draftrec.cli.interactions",
    "serve": "draftrec.cli.serve",
    "sid": "draftrec.cli.genrec.sid",
    "table": "draftrec.cli.table",
    "tune": "draftrec.cli.knowledge.tune",
}
_CONTEXT = {"help_option_names": ["-h", "--help"]}
#: Whatever the parser refuses. Typer exports the class's child only.
_ClickError = typer.BadParameter.__mro__[2]
_UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


def main(argv: Seq[str] | None = None) -> None:
    """Entry point; leaves with the contract's exit codes."""
    code = run(list(sys.argv[1:] if argv is None else argv))
    try:
        sys.stdout.flush()
    except OSError:  # said already; Python would say it once more, with a code of its own
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    leave_at_once(code)
    sys.exit(code)


def run(argv: list[str]) -> int:
    """Run one command line; its exit code."""
    with messages(), interruptible():
        return _run(argv or ["--help"])


def _run(argv: list[str]) -> int:
    debug = "--debug" in argv
    try:
        code = _app(argv)(_or_help(argv), prog_name="draftrec", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except (KeyboardInterrupt, typer.Abort):
        return _interrupted()
    except BrokenPipeError:
        return _unread()
    except SystemExit as end:
        if isinstance(end.__context__, BrokenPipeError):  # what Typer and Rich make of one
            return _unread()
        raise
    except Exception as error:  # noqa: BLE001 - the last resort, so that nobody meets a traceback
        if debug:
            traceback.print_exc()
        if was_interrupted():
            return _interrupted()
        message, code = _explain(error)
        fail(" ".join(message.split()))
        return code


def _app(argv: list[str]) -> typer.Typer:
    """All commands that are installed, or the one that is called: the rest need not load."""
    app = typer.Typer(pretty_exceptions_enable=False, context_settings=_CONTEXT)
    app.callback()(_root)
    called = _called(argv)
    for name, module in _COMMANDS.items():
        if called == name or (called not in _COMMANDS and find_spec(module)):
            _register(app, name, import_module(module))
    return app


def _called(argv: list[str]) -> str | None:
    """The first word after `draftrec`, also of a line that a shell asks to be completed."""
    if "_DRAFTREC_COMPLETE" in os.environ:
        argv = os.environ.get("COMP_WORDS", os.environ.get("_TYPER_COMPLETE_ARGS", "")).split()[1:]
        argv = argv if len(argv) > 1 else []  # a single word is still being written
    return argv[0] if argv else None


def _or_help(argv: list[str]) -> list[str]:
    """A group of commands that is named alone lists them, as `draftrec` alone does."""
    named = _COMMANDS.get(argv[0]) if len(argv) == 1 else None
    return [*argv, "--help"] if named and hasattr(import_module(named), "SUBCOMMANDS") else argv


def _register(app: typer.Typer, name: str, module: ModuleType) -> None:
    if not hasattr(module, "SUBCOMMANDS"):
        _add(app, name, getattr(module, name))
        return
    about = escape((module.__doc__ or "").partition(": ")[2].capitalize())
    group = typer.Typer(help=about, context_settings=_CONTEXT)
    for word, function in module.SUBCOMMANDS.items():
        _add(group, word, function)
    app.add_typer(group, name=name)


def _add(app: typer.Typer, name: str, function: Callable[..., int]) -> None:
    app.command(
        name,
        cls=getattr(function, "command_class", None),
        help=escape(inspect.getdoc(function) or ""),
        context_settings=_CONTEXT,
    )(_stoppable(function))


def _stoppable(function: Callable[..., int]) -> Callable[..., int]:
    """Typer would end an interrupted command without a word."""

    @wraps(function)
    def run(**values: Any) -> int:
        try:
            return function(**values)
        except KeyboardInterrupt:
            raise typer.Exit(_interrupted()) from None

    return run


def _interrupted() -> int:
    say(f"interrupted; {again()}")
    return INTERRUPTED


def _unread() -> int:
    """Whoever read standard output has gone, as `head` does."""
    say("nobody reads standard output any more, so this ended there")
    return INTERRUPTED


def _show_version(wanted: bool) -> None:  # noqa: FBT001 - Typer's callback signature
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Version.")
    ] = False,
) -> None:
    """Fast LLM-based recommenders: draft cheaply, verify in one forward pass.

    New here? `draftrec demo` shows it offline.
    Texts about your users and items: records, prompts, generate, encode, ctr.
    Recommendations: sequences, sid, genrec. Each command has --help.
    """


def _explain(error: Exception) -> tuple[str, int]:
    if isinstance(error, DraftrecError):
        return str(error), BAD_INPUT
    if isinstance(error, _ClickError):
        return error.format_message(), error.exit_code  # type: ignore[attr-defined]
    if isinstance(error, OSError):
        return _mended(error.strerror or str(error), error.filename)
    number = system_error(error)
    if number is not None and number in _UNWRITABLE:  # as safetensors and tokenizers say it
        return _mended(os.strerror(number), None)
    kind = type(error).__name__
    first_line = next(iter(str(error).splitlines()), "")
    return f"unexpected {kind}: {first_line}; run again with --debug for the traceback", 1


def _mended(reason: str, file: object) -> tuple[str, int]:
    what = f"{reason.lower()} ({file})" if file else reason.lower()
    return f"{what}; mend that and {again()}", BAD_INPUT
