"""`draftrec genrec demo`: recommendation by drafted beams, offline, in under two minutes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from draftrec.cli.command import command
from draftrec.cli.options.knobs import option
from draftrec.cli.options.shared import JsonOptions, ReportFolder


@dataclass(frozen=True, slots=True, kw_only=True)
class GenrecDemoOptions(JsonOptions):
    """The command line of `draftrec genrec demo`."""

    output: Path = ReportFolder(default=Path("draftrec-genrec-demo"))
    users: int = option("Readers to recommend for.", min=8, max=12000, default=200)


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
            found = items.tell(items.Size(users=options.users), watch)
        report, summary = output.write(options.output, found=found)
    return finish(options.output, report, summary, as_json=options.json)
