"""`draftrec tune`: choose pool size, depth and budget from recorded texts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from draftrec.cli.common import DONE, DebugOption, JsonOption, command, print_json, say
from draftrec.errors import DraftrecError

Option = typer.Option


@dataclass(frozen=True, slots=True, kw_only=True)
class TuneOptions:
    """The command line of `draftrec tune`."""

    texts: Annotated[
        str,
        typer.Argument(
            metavar="TEXTS|RUN",
            help="A run's folder (its measured costs are used), or texts: Parquet, JSONL or CSV "
            "with entity_id and text.",
        ),
    ]
    tokenizer: Annotated[
        str, Option(metavar="PATH", help="Folder or Hub id of the model whose tokenizer counts.")
    ]
    pool: Annotated[
        Path | None,
        Option(help="Pool to tune; without one, part of the texts is the pool for the others."),
    ] = None
    groups: Annotated[
        Path | None,
        Option(help="Groups file (entity_id, group); takes the place of the group column."),
    ] = None
    output: Annotated[
        Path | None, Option(metavar="FILE.yaml", help="Settings for `generate --config`.")
    ] = None
    limit: Annotated[int, Option(min=1, help="Most texts that are replayed.")] = 60
    seed: Annotated[int, Option(help="Seed of the choice of texts.")] = 0
    json: JsonOption = False
    debug: DebugOption = False


@command(TuneOptions)
def tune(options: TuneOptions) -> int:
    """Try budgets, depths and pool sizes on recorded texts, and keep the cheapest good ones.

    No model is loaded: acceptance is strict. What a run measured of its passes says what drafts
    cost; without a run, settings are compared by tokens per step only.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    from draftrec.evaluate.tune import TuneJob, run_tune, settings_yaml

    output = options.output
    if output is not None and not output.parent.is_dir():
        raise DraftrecError(f"the folder of {output} does not exist; make it first")
    job = TuneJob(
        options.texts, options.tokenizer, options.pool, options.groups,
        limit=options.limit, seed=options.seed,
    )  # fmt: skip
    errors = Console(stderr=True)
    columns = (TextColumn("settings"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as bar:
        task = bar.add_task("settings", total=None)
        summary = run_tune(job, lambda done, all_: bar.update(task, completed=done, total=all_))
    _show(summary, Console(stderr=options.json))
    if output is not None:
        output.write_text(settings_yaml(summary["chosen"], options.pool))
        say(f"settings written to {output}; use them with generate --config {output}")
    if options.json:
        print_json(summary)
    return DONE


_COLUMNS = {
    "pool_tokens": "{:,}",
    "pool_bytes": "{:,}",
    "depth": "{}",
    "budget": "{}",
    "tokens_per_step": "{:.2f}",
    "lookup_us_p50": "{:.0f}",
    "speedup": "{:.2f}",
}


def _show(summary: dict[str, Any], console: Any) -> None:
    from rich import box
    from rich.table import Table

    title = f"{summary['texts']:,} texts, compared by {summary['compared_by'].replace('_', ' ')}"
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left")
    for name in _COLUMNS:
        table.add_column(name.replace("_", " "), justify="right")
    for trial in summary["trials"]:
        cells = [
            "-" if trial[name] is None else form.format(trial[name])
            for name, form in _COLUMNS.items()
        ]
        table.add_row(*cells, style="bold green" if trial == summary["chosen"] else None)
    console.print(table)
    chosen = summary["chosen"]
    console.print(
        f"chosen: pool of {chosen['pool_bytes']:,} bytes, depth {chosen['depth']}, "
        f"budget {chosen['budget']}"
    )
