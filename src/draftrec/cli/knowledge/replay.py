"""`draftrec replay`: what drafts would have saved on recorded texts, without a model."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from draftrec.cli.command import DONE, command, print_json
from draftrec.cli.knobs import READ, REQUIRED, argument, option, option_of, settings_of
from draftrec.cli.messages import bars, beginning, say
from draftrec.cli.options import Groups, Idle, JsonOptions, TextColumnOptions, Tokenizer
from draftrec.data.files.places import Place
from draftrec.evaluate.settings import ReplaySettings

if TYPE_CHECKING:
    from draftrec.report.blocks import Table

Replay = partial(option_of, ReplaySettings)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayOptions(JsonOptions, TextColumnOptions):
    """The command line of `draftrec replay`."""

    texts: str = argument(
        "TEXTS",
        "Texts to replay: a run folder, or Parquet, JSONL or CSV with entity_id and text "
        "(optional: prompt, group, step, timestamp); a file, a folder of parts or a glob.",
        READ,
    )
    tokenizer: str = Tokenizer(default=REQUIRED)
    pool: Path | None = option("Pool to draft from.")
    warm: str | None = option("Texts to draft from instead of a pool.", metavar="TEXTS", place=READ)
    groups: Place | None = Groups()
    budget: int = Replay("budget")
    depth: int = Replay("depth")
    drafter: list[str] | None = option(
        "What drafts; repeat the option to compare: pool, all, group, prompt (our levels), "
        "module:Class (a drafter of your own), or, in a checkout, ngram, trie, trie-group (simple "
        "rivals).",
        metavar="NAME",
        show_default="pool",
    )
    engine: list[str] | None = option("The former name of --drafter.", metavar="NAME", hidden=True)
    order: bool = Replay("grow")
    refresh: bool = Replay("refresh")
    limit: int | None = option("Only the first N texts.", min=1)


_POOLLESS, _GROUPED = {"prompt"}, {"pool", "group", "trie-group"}
_IDLE = (
    Idle(
        "pool warm groups drafter depth order",
        lambda o: o.budget == 0,
        "with --budget 0, which drafts nothing",
    ),
    Idle(
        "pool warm order",
        lambda o: set(_drafters(o)) <= _POOLLESS,
        "with --drafter prompt alone, which drafts from no other text",
    ),
    Idle(
        "groups",
        lambda o: not any(d in _GROUPED or ":" in d for d in _drafters(o)),
        "without a drafter that knows groups (pool, group, trie-group)",
    ),
)


def _drafters(options: ReplayOptions) -> list[str]:
    return list(dict.fromkeys([*(options.drafter or ()), *(options.engine or ())])) or ["pool"]


@command(ReplayOptions, idle=_IDLE)
def replay(options: ReplayOptions) -> int:
    """Count the forward passes that drafts would have saved on recorded TEXTS.

    Strict acceptance, no model: sizes pools and budgets from logs. Tokens per step is not a
    speedup: what a pass over many draft tokens costs is up to model and device.
    """
    from rich.console import Console

    from draftrec.evaluate.replay.job import ReplayJob, run_replay
    from draftrec.report.show import show_block

    if options.engine:
        say("--engine is called --drafter now; it is still read")
    job = ReplayJob(
        texts=options.files(options.texts),
        tokenizer=options.tokenizer,
        drafters=tuple(_drafters(options)),
        pool=options.pool,
        warm=options.files(options.warm) if options.warm else None,
        groups=options.groups,
        settings=settings_of(ReplaySettings, options),
        limit=options.limit,
    )
    with bars() as watch:
        summary = run_replay(job, beginning(watch), say)
    show_block(_table(summary), Console(stderr=options.json))
    if options.json:
        print_json(summary)
    return DONE


_COLUMNS = {
    "steps": ("steps", "{:,.0f}"),
    "tokens_per_step": ("per step", "{:.2f}"),
    "drafted_per_step": ("drafted", "{:.1f}"),
    "lookup_us_p50": ("p50 us", "{:,.0f}"),
    "lookup_us_p99": ("p99 us", "{:,.0f}"),
    "build_us_per_token": ("build us", "{:.2f}"),
    "bytes_per_token": ("bytes", "{:,.0f}"),
}


def _table(summary: dict[str, Any]) -> Table:
    """The figures in a form that fits 80 columns, a drafter per line."""
    from draftrec.report.blocks import Table, row

    first = next(iter(summary["engines"].values()))
    return Table(
        ("drafter", *(heading for heading, _ in _COLUMNS.values())),
        tuple(
            row(name, *(_cell(figures[key], form) for key, (_, form) in _COLUMNS.items()))
            for name, figures in summary["engines"].items()
        ),
        title=f"{first['texts']:,} texts of {first['tokens']:,} tokens; budget "
        f"{summary['budget']}, depth {summary['depth']}",
        note="tokens written and drafted per step; microseconds per lookup and to take a token in; "
        "bytes per token held",
    )


def _cell(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)
