"""`draftrec compare`: texts and click models of runs beside a baseline's, with limits."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

import typer

from draftrec.cli.common import DONE, DebugOption, JsonOption, command, print_json, say
from draftrec.cli.messages import warn
from draftrec.cli.options.places import READ, WRITTEN
from draftrec.data.files.places import Place, place
from draftrec.errors import DraftrecError

Option = typer.Option
#: Exit code when a limit is broken, or cannot be decided.
GATE_CLOSED = 1


class Framework(StrEnum):
    """Whose form texts must have."""

    KAR = "kar"
    TRAWL = "trawl"
    ONCE = "once"
    RLMREC = "rlmrec"


class Side(StrEnum):
    """Whom the texts are about."""

    USER = "user"
    ITEM = "item"


@dataclass(frozen=True, slots=True, kw_only=True)
class CompareOptions:
    """The command line of `draftrec compare`."""

    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="BASELINE RUN...",
            help="Folders that `draftrec generate` wrote, the baseline first; NAME=DIR names one.",
        ),
    ]
    ctr: Annotated[
        list[str] | None,
        Option(metavar="NAME=DIR", help="Click models of a run: a folder of `draftrec ctr`."),
    ] = None
    vectors: Annotated[
        list[str] | None,
        Option(
            metavar="NAME=FILE",
            help="Vectors of a run's texts, by `draftrec encode`, for similarity; else TF-IDF.",
        ),
    ] = None
    titles: Annotated[
        str | None,
        READ,
        Option(metavar="FILE", help="Titles (title, item_id) to look for in texts and prompts."),
    ] = None
    prompts: Annotated[
        str | None,
        READ,
        Option(
            metavar="FILE",
            help="What the model was told: records with entity_id and prompt, history or title.",
        ),
    ] = None
    template: Annotated[
        Framework | None, Option(help="Form to check; by default that of the runs' template.")
    ] = None
    side: Annotated[Side | None, Option(help="Side of the form; by default the runs'.")] = None
    limits: Annotated[
        Place | None, READ, Option(metavar="FILE.yaml", help="Limits, laid over the default ones.")
    ] = None
    output: Annotated[
        Place | None,
        WRITTEN,
        Option(metavar="DIR", help="Folder for report.html, report.md and compare.json."),
    ] = None
    resamples: Annotated[int, Option(min=100, help="Bootstrap resamples of the entities.")] = 1000
    seed: Annotated[int, Option(help="Seed of resamples and samples.")] = 0
    json: JsonOption = False
    debug: DebugOption = False


@command(CompareOptions, fills=["output"])
def compare(options: CompareOptions) -> int:
    """Show what acceleration did to the texts, and to the click models fed with them.

    Exit code 0 when every limit is kept, 1 when one is broken or cannot be decided.
    """
    from rich.console import Console

    from draftrec.evaluate.compare.comparison import NOT_CHECKED, CompareJob, run_compare
    from draftrec.evaluate.compare.limits import default_limits, read_limits
    from draftrec.evaluate.compare.report import report_of, to_json, write_report
    from draftrec.report.terminal import show

    job = CompareJob(
        named_paths("BASELINE RUN...", options.runs, name_by_folder=True),
        read_limits(options.limits) if options.limits else default_limits(),
        named_paths("--ctr", options.ctr or ()),
        named_paths("--vectors", options.vectors or ()),
        options.titles,
        options.prompts,
        options.template.value if options.template else None,
        options.side.value if options.side else None,
        options.seed,
        options.resamples,
    )
    comparison = run_compare(job)
    if options.side is not None and comparison.facts["form"] == NOT_CHECKED:
        warn("--side has no effect without a form to check, which --template names")
    console = Console(stderr=options.json)
    show(report_of(comparison), console)
    console.print("gate: passed" if comparison.passed else "gate: closed")
    if options.output is not None:
        write_report(comparison, options.output)
        say(f"report written to {options.output / 'report.html'}")
    if options.json:
        print_json(to_json(comparison))
    return DONE if comparison.passed else GATE_CLOSED


def named_paths(
    option: str, words: Iterable[str], *, name_by_folder: bool = False
) -> dict[str, Place]:
    """`NAME=PATH` words as a table in their order; `name_by_folder` lets the last part of a path
    be its name. Raises DraftrecError for a word without a name, and for a name given twice."""
    found: dict[str, Place] = {}
    for word in words:
        name, equals, path = word.partition("=")
        if name_by_folder and (not equals or place(word).exists()):
            name, path = place(word).resolve().name, word
        if not name or not path:
            raise DraftrecError(f"{option} {word!r} must be NAME=PATH; put the name in front")
        if name in found:
            raise DraftrecError(
                f"{option} has two paths of the name {name!r}; tell them apart with NAME=PATH"
            )
        found[name] = place(path)
    return found
