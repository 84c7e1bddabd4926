"""A command made of a dataclass of options and a function; exit codes, summaries, refusals."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import json
from collections.abc import Callable
from collections.abc import Sequence as Seq
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_args

import typer
from typer.core import TyperCommand

from draftrec.cli.knobs import PANELS, WRITTEN, hints_of, marked, presented
from draftrec.cli.messages import begin_anew, drop_held, hold, say, say_held, set_loudness
from draftrec.cli.options import Idle, Options, idle_lines
from draftrec.data.files.locks import sole_writer
from draftrec.errors import DraftrecError
from draftrec.knobs import check_finite

if TYPE_CHECKING:
    from draftrec.data.files.places import Place
    from draftrec.data.records import Rejects

DONE, BAD_INPUT, SOME_REJECTED, INTERRUPTED = 0, 2, 3, 130

Given = TypeVar("Given", bound=Options)


def print_json(values: dict[str, Any]) -> None:
    """The summary for programs: one object on the last line of standard output."""
    print(json.dumps(values), flush=True)  # noqa: T201


def told_rejects(rejects: Rejects, output: Place) -> int:
    """List the rows that could not be used beside the output; the exit code."""
    path = output.with_name(f"{output.name}.rejected.jsonl")
    rejects.write(path)
    if rejects:
        say(rejects.words(path))
    return SOME_REJECTED if rejects else DONE


class ManyNumbers(TyperCommand):
    """A command that reads `-k 1 3 5` as `-k 1 -k 3 -k 5`, for every option that may be repeated;
    Typer's own options take a fixed number of values."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Give each number its option's name, then parse as usual."""
        names = {n for p in self.params if getattr(p, "multiple", False) for n in p.opts}
        return super().parse_args(ctx, _repeated(args, names))


def _repeated(args: list[str], names: set[str]) -> list[str]:
    """`args` in which whole numbers after a named option's value are preceded by its name too."""
    words: list[str] = []
    option = None
    rest = iter(args)
    for word in rest:
        if word == "--":
            return [*words, word, *rest]
        if word in names:
            option = word
            words += [word, *islice(rest, 1)]
        elif option and word.isdigit():
            words += [option, word]
        else:
            option = None
            words.append(word)
    return words


def command(  # noqa: PLR0913
    options: type[Given],
    cls: type[TyperCommand] | None = None,
    idle: Seq[Idle] = (),
    writes: Seq[str] = (),
    fills: Seq[str] = (),
    *,
    resumes: bool = False,
    contains: Seq[str] = (),
) -> Callable[[Callable[[Given], int]], Callable[..., int]]:
    """Make a command of a function whose options are the fields of a dataclass.

    Typer reads a signature, and one with thirty parameters helps nobody; so the fields (see
    `knobs`) are presented to it as one. `cls` parses the command line in another way than
    Typer's. `idle`: which options do nothing beside which others; it is said when the work begins
    (`say_held`), at the latest when it is done. `writes`: options that name what the command writes
    as a whole, `fills`: folders that it writes files into; while it runs, another process that
    would write there is refused. Jobs that resume see to it alone. `resumes`: it goes on where it
    was interrupted, but begins anew with `--overwrite`. A file that is read may be written only if
    its option is among those whose content the new one `contains`.
    """
    marks = {name: marked(hint) for name, hint in hints_of(options).items()}
    written = [n for n, mark in marks.items() if mark is WRITTEN or n in writes]
    read = [n for n, mark in marks.items() if mark and n not in (*written, *contains)]
    hints = {name: presented(name, hint) for name, hint in hints_of(options).items()}
    defaults = {f.name: _default(f) for f in dataclasses.fields(options)}  # type: ignore[arg-type]

    def place(name: str) -> tuple[int, bool]:
        """Where help shows it: by panel, and what is required before the rest."""
        panels = (getattr(it, "rich_help_panel", None) for it in get_args(hints[name]))
        panel = next((it for it in panels if isinstance(it, str)), None)
        at = PANELS.index(panel) + 1 if panel else 0
        return at, defaults[name] is not inspect.Parameter.empty

    parameters = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=defaults[name],
            annotation=readable(hints[name]),
        )
        for name in sorted(defaults, key=place)
    ]

    def wrap(function: Callable[[Given], int]) -> Callable[..., int]:
        def run(**values: Any) -> int:
            given = options(**values)
            _check_finite(given)
            set_loudness(quiet=given.quiet, verbose=given.verbose)
            begin_anew(anew=resumes and getattr(given, "overwrite", False))
            drop_held()
            hold(idle_lines(given, idle))
            _check_apart(given, written, read)
            with ExitStack() as held:
                for name in (*writes, *fills):
                    if (output := getattr(given, name)) is not None:
                        held.enter_context(sole_writer(output, inside=name in fills))
                code = function(given)  # what it refuses it says in one sentence, alone
            say_held()
            raise typer.Exit(code)

        run.__doc__ = function.__doc__
        run.__annotations__ = {**{p.name: p.annotation for p in parameters}, "return": int}
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.command_class = cls  # type: ignore[attr-defined]
        run.outputs = (*writes, *fills)  # type: ignore[attr-defined]
        return run

    return wrap


def _check_finite(options: Options) -> None:
    for it in dataclasses.fields(options):
        check_finite(f"--{it.name.replace('_', '-')}", getattr(options, it.name))


def _check_apart(options: Options, written: Seq[str], read: Seq[str]) -> None:
    """Raise DraftrecError where a file that is written is one that is read: it would be lost."""
    values = [getattr(options, name) for name in read]
    given = [it for v in values for it in (v if isinstance(v, list) else [v]) if it is not None]
    for name in written:
        output = getattr(options, name)
        if isinstance(output, Path) and any(_same_file(output, it) for it in given):
            raise DraftrecError(
                f"--{name.replace('_', '-')} {output} is a file that is read, and would be lost; "
                "name another"
            )


def _same_file(output: Path, given: object) -> bool:
    try:
        return output.is_file() and output.samefile(str(given))
    except OSError:  # no file: a name on the Hub, an address, a glob
        return False


def readable(hint: Any) -> Any:
    """An option's type whose help is printed as it is written: `[sid]` is no style of Rich's."""
    from rich.markup import escape

    kind, *extras = get_args(hint)
    shown = []
    for extra in extras:
        it = copy.copy(extra)
        if isinstance(getattr(it, "help", None), str):
            it.help = escape(it.help)
        shown.append(it)
    return Annotated[kind, *shown]


def _default(field: dataclasses.Field[Any]) -> Any:
    missing = field.default is dataclasses.MISSING
    return inspect.Parameter.empty if missing else field.default
