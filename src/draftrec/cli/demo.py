"""`draftrec demo`: both jobs, offline, in under two minutes; and `draftrec genrec demo`:
recommendation by drafted beams at length.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from draftrec.cli.command import DONE, command, print_json
from draftrec.cli.knobs import option
from draftrec.cli.messages import bars
from draftrec.cli.options import JsonOptions, ReportFolder

if TYPE_CHECKING:
    from draftrec.report.blocks import Report


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoOptions(JsonOptions):
    """The command line of `draftrec demo`."""

    output: Path = ReportFolder(default=Path("draftrec-demo"))
    seed: int = option("Seed of the choice of invented readers.", default=0)


@command(DemoOptions)
def demo(options: DemoOptions) -> int:
    """Write texts about invented readers three ways, recommend them books six ways, and compare.

    Needs no network, no GPU and no data. Leaves a report, a summary, the prompts and the pool, and
    the shop's sequences and semantic ids. `draftrec genrec demo` shows the second job at length.
    """
    from draftrec.data.files.locks import sole_writer
    from draftrec.demo import items, output, texts

    output.prepare(options.output)
    with sole_writer(options.output, inside=True):
        with bars() as watch:
            written = texts.tell(texts.Size(seed=options.seed), watch)
            found = items.tell(items.SHORT, watch)
        report, summary = output.write(options.output, written, found)
    return finish(options.output, report, summary, as_json=options.json)


@dataclass(frozen=True, slots=True, kw_only=True)
class GenrecDemoOptions(JsonOptions):
    """The command line of `draftrec genrec demo`."""

    output: Path = ReportFolder(default=Path("draftrec-genrec-demo"))
    users: int = option("Readers to recommend for.", min=8, max=12000, default=200)


@command(GenrecDemoOptions)
def genrec_demo(options: GenrecDemoOptions) -> int:
    """Recommend books to invented readers in six ways and compare: plain, strict, sampled, relaxed.

    Needs no network, no GPU and no data. Leaves a report, a summary, and the shop's sequences and
    semantic ids.
    """
    from draftrec.data.files.locks import sole_writer
    from draftrec.demo import items, output

    output.prepare(options.output)
    with sole_writer(options.output, inside=True):
        with bars() as watch:
            found = items.tell(items.Size(users=options.users), watch)
        report, summary = output.write(options.output, found=found)
    return finish(options.output, report, summary, as_json=options.json)


def finish(folder: Path, report: Report, summary: dict[str, Any], *, as_json: bool) -> int:
    """Show a demo's report, say where its page is, and print its summary if that is asked for."""
    from rich.console import Console

    from draftrec.report.show import show

    console = Console(stderr=as_json)
    show(report, console)
    console.print()
    place = f"Report with plots: {folder / 'report.html'}"
    console.print(place, style="bold", highlight=False, soft_wrap=True, markup=False)
    if as_json:
        print_json(summary)
    return DONE
