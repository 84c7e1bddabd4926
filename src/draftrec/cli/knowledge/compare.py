"""`draftrec compare`: texts and click models of runs beside a baseline's, with limits."""

from __future__ import annotations

import glob
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

from draftrec.cli.command import DONE, command, print_json
from draftrec.cli.knobs import READ, WRITTEN, argument, option, option_of
from draftrec.cli.messages import say, warn
from draftrec.cli.options import JsonOptions
from draftrec.config import Side
from draftrec.data.files.places import Place, place
from draftrec.errors import DraftrecError
from draftrec.evaluate.settings import CompareRun, Framework

#: Exit code when a limit is broken, or cannot be decided.
GATE_CLOSED = 1
Compare = partial(option_of, CompareRun)


@dataclass(frozen=True, slots=True, kw_only=True)
class CompareOptions(JsonOptions):
    """The command line of `draftrec compare`."""

    runs: list[str] = argument(
        "BASELINE RUN...",
        "Folders that `draftrec generate` wrote, the baseline first; NAME=DIR names one.",
    )
    ctr: list[str] | None = option(
        "Click models of a run: a folder of `draftrec ctr`, or, repeated or as a glob, one for "
        "each --fold, so that intervals speak of users too.",
        metavar="NAME=DIR",
    )
    vectors: list[str] | None = option(
        "Vectors of a run's texts, by `draftrec encode`, for similarity; else TF-IDF.",
        metavar="NAME=FILE",
    )
    titles: str | None = option(
        "Titles (title, item_id) to look for in texts and prompts.", metavar="FILE", place=READ
    )
    prompts: str | None = option(
        "What the model was told: records with entity_id and prompt, history or title.",
        metavar="FILE",
        place=READ,
    )
    template: Framework | None = Compare("framework")
    side: Side | None = Compare("side")
    limits: Place | None = option(
        "Limits, laid over the default ones.", metavar="FILE.yaml", place=READ
    )
    output: Place | None = option(
        "Folder for report.html, report.md and compare.json.", metavar="DIR", place=WRITTEN
    )
    resamples: int = Compare("resamples")
    seed: int = Compare("seed")


@command(CompareOptions, fills=["output"])
def compare(options: CompareOptions) -> int:
    """Show what acceleration did to the texts, and to the click models fed with them.

    Exit code 0 when every limit is kept, 1 when one is broken or cannot be decided.
    """
    from rich.console import Console

    from draftrec.evaluate.compare.comparison import NOT_CHECKED, CompareJob, run_compare
    from draftrec.evaluate.compare.limits import default_limits, read_limits
    from draftrec.evaluate.compare.report import report_of, to_json, write_report
    from draftrec.report.show import show

    job = CompareJob(
        runs=named_paths("BASELINE RUN...", options.runs, name_by_folder=True),
        limits=read_limits(options.limits) if options.limits else default_limits(),
        ctr=named_folders("--ctr", options.ctr or ()),
        vectors=named_paths("--vectors", options.vectors or ()),
        titles=options.titles,
        prompts=options.prompts,
        framework=options.template,
        side=options.side,
        seed=options.seed,
        resamples=options.resamples,
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


def named_folders(option: str, words: Iterable[str]) -> dict[str, list[Place]]:
    """`NAME=DIR` words, of which a name may have several, and each may be a glob. Raises
    DraftrecError for a word without a name, a folder given twice, and a glob that finds nothing."""
    found: dict[str, list[Place]] = {}
    for word in words:
        ((name, path),) = named_paths(option, [word]).items()
        folders = [path]
        if glob.has_magic(path.name):
            folders = sorted(path.parent.glob(path.name), key=str)
            if not folders:
                raise DraftrecError(f"{option} {word!r} finds no folder; look at the pattern")
        for folder in folders:
            if folder in found.setdefault(name, []):
                raise DraftrecError(f"{option} has {folder} twice for {name!r}; name it once")
            found[name].append(folder)
    return found


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
