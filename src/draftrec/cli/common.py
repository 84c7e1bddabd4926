"""What commands share: options as dataclasses, settings files, signals, messages."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import json
import signal
import threading
from collections.abc import Callable
from collections.abc import Sequence as Seq
from contextlib import AbstractContextManager, ExitStack
from itertools import islice
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_args, get_type_hints

import typer
from typer.core import TyperCommand

from draftrec.cli.messages import drop_held, hold, say, say_held, set_loudness
from draftrec.cli.options.idle import Idle, idle_lines
from draftrec.cli.options.places import READ, presented
from draftrec.data.files.locks import sole_writer
from draftrec.data.files.places import Place
from draftrec.errors import DraftrecError

if TYPE_CHECKING:
    from pydantic import ValidationError

DONE, BAD_INPUT, SOME_REJECTED, INTERRUPTED = 0, 2, 3, 130

Options = TypeVar("Options")


#: Headings of `--help`, in the order in which commands show them; options without one come first.
PANELS = (
    COLUMNS_PANEL,
    PROMPTS_PANEL,
    SAMPLES_PANEL,
    HISTORIES_PANEL,
    TRIALS_PANEL,
    LIMITS_PANEL,
    DRAFTING_PANEL,
    SEARCH_PANEL,
    ACCEPTANCE_PANEL,
    SAMPLING_PANEL,
    CONTROLS_PANEL,
    OBJECTIVE_PANEL,
    TRAINING_PANEL,
    MODEL_PANEL,
    OUTPUT_PANEL,
    CLUSTER_PANEL,
    MESSAGES_PANEL,
) = (
    "Columns",
    "Records and prompts",
    "Samples and features",
    "Histories for prompts",
    "What is tried, with --model",
    "What texts may lose, with --model",
    "Drafting",
    "Search and verification",
    "Acceptance, other than strict",
    "Sampling",
    "What may be written",
    "Objective",
    "Training",
    "Model and machine",
    "Output",
    "Cluster",
    "Messages",
)


def print_json(values: dict[str, Any]) -> None:
    """The summary for programs: one object on the last line of standard output."""
    print(json.dumps(values), flush=True)  # noqa: T201


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


def command(
    options: type[Options],
    cls: type[TyperCommand] | None = None,
    idle: Seq[Idle] = (),
    writes: Seq[str] = (),
    fills: Seq[str] = (),
) -> Callable[[Callable[[Options], int]], Callable[..., int]]:
    """Make a command of a function whose options are the fields of a dataclass.

    Typer reads a signature, and one with thirty parameters helps nobody; so the fields
    (`Annotated[type, typer.Option(...)] = default`) are presented to it as one. `cls` parses the
    command line in another way than Typer's. `idle`: which options do nothing beside which others;
    it is said when the work begins (`say_held`), at the latest when it is done. `writes`: options
    that name what the command writes as a whole, `fills`: folders that it writes files into; while
    it runs, another process that would write there is refused. Jobs that resume see to it alone.
    """
    found = get_type_hints(options, include_extras=True)
    hints = {name: presented(name, hint) for name, hint in found.items()}
    defaults = {f.name: _default(f) for f in dataclasses.fields(options)}  # type: ignore[arg-type]
    hints |= {"quiet": QuietOption, "verbose": VerboseOption}
    defaults |= {"quiet": False, "verbose": False}

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

    def wrap(function: Callable[[Options], int]) -> Callable[..., int]:
        def run(**values: Any) -> int:
            set_loudness(quiet=values.pop("quiet"), verbose=values.pop("verbose"))
            given = options(**values)
            drop_held()
            hold(idle_lines(given, idle))
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


def _read_settings(context: typer.Context, path: Place | None) -> Place | None:
    """Let a YAML file set the defaults of all options of the command that is being parsed."""
    if path is None:
        return None
    from draftrec.data.files.yaml_file import read_yaml

    values = read_yaml(path, "settings file") or {}
    if not isinstance(values, dict):
        raise DraftrecError(f"settings file {path} must hold `option: value` lines")
    settings = {str(key).replace("-", "_"): value for key, value in values.items()}
    known = {p.name for p in context.command.params} - {"input", "config", "help"}
    if unknown := sorted(settings.keys() - known):
        raise DraftrecError(
            f"settings file {path} has the unknown key {unknown[0]!r}; known are "
            f"{', '.join(sorted(str(name) for name in known))}"
        )
    repeated = {p.name for p in context.command.params if getattr(p, "multiple", False)}
    for name in settings.keys() & repeated:  # one value needs no list around it
        if isinstance(settings[name], str):
            settings[name] = [settings[name]]
    context.default_map = {**(context.default_map or {}), **settings}
    return path


ConfigOption = Annotated[
    Place | None,
    READ,
    typer.Option(
        callback=_read_settings,
        is_eager=True,
        help="YAML file of `option: value` lines; the command line goes before it.",
    ),
]
JsonOption = Annotated[
    bool,
    typer.Option(
        "--json",
        help="Print the summary as JSON, last line of standard output.",
        rich_help_panel=MESSAGES_PANEL,
    ),
]
DebugOption = Annotated[
    bool,
    typer.Option("--debug", help="Show tracebacks of errors.", rich_help_panel=MESSAGES_PANEL),
]
QuietOption = Annotated[
    bool,
    typer.Option(
        "--quiet", "-q", help="Say warnings and errors only.", rich_help_panel=MESSAGES_PANEL
    ),
]
VerboseOption = Annotated[
    bool,
    typer.Option(
        "--verbose", "-v", help="Also say details of the work.", rich_help_panel=MESSAGES_PANEL
    ),
]


def option_error(error: ValidationError) -> DraftrecError:
    """What is wrong with the first option that settings refused."""
    first = error.errors()[0]
    if not first["loc"]:  # of several options together
        return DraftrecError(first["msg"].removeprefix("Value error, "))
    option = str(first["loc"][0]).replace("_", "-")
    reason = first["msg"].removeprefix("Input ").removeprefix("Value error, ")
    return DraftrecError(f"--{option} {reason}, not {first['input']!r}")


def auto_or_number(option: str, value: str) -> Any:
    """`auto`, or a whole number."""
    if value == "auto":
        return value
    try:
        return int(value)
    except ValueError:
        raise DraftrecError(f"--{option} must be auto or a whole number, not {value!r}") from None


def json_object(value: Any) -> dict[str, Any]:
    """An option's JSON object; a settings file may hold it as it is."""
    try:
        found = json.loads(value) if isinstance(value, str) else value
    except json.JSONDecodeError:
        found = None
    if not isinstance(found, dict):
        raise typer.BadParameter(f"a JSON object is needed ('{{\"name\": true}}'), not {value!r}")
    return found


class StopSignal(AbstractContextManager["StopSignal"]):
    """Ctrl-C and SIGTERM as a question that the job asks between steps.

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
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self.armed or self.requested:
            raise KeyboardInterrupt
        self.requested = True
        say("stopping after this step; once more stops at once")
