"""`draftrec genrec demo`: recommendation by drafted beams, offline, in under two minutes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from draftrec.cli.common import DebugOption, JsonOption, command


@dataclass(frozen=True, slots=True, kw_only=True)
class GenrecDemoOptions:
    """The command line of `draftrec genrec demo`."""

    output: Annotated[
        Path, typer.Option(help="Folder for report.html and summary.json; made if missing.")
    ] = Path("draftrec-genrec-demo")
    users: Annotated[int, typer.Option(min=8, max=12000, help="Readers to recommend for.")] = 200
    json: JsonOption = False
    debug: DebugOption = False


@command(GenrecDemoOptions)
def demo(options: GenrecDemoOptions) -> int:
    """Recommend books to invented readers in six ways and compare: plain, strict, sampled, relaxed.

    Needs no network, no GPU and no data. Leaves a report, a summary, and the shop's sequences and
    semantic ids.
    """
    from draftrec.cli.demo import finish, stage_bar
    from draftrec.data.files.locks import sole_writer
    from draftrec.demo import items, output

    output.prepare(options.output)
    with sole_writer(options.output, inside=True):
        with stage_bar() as watch:
            found = items.tell(items.Plan(users=options.users), watch)
        report, summary = output.write(options.output, found=found)
    return finish(options.output, report, summary, as_json=options.json)
