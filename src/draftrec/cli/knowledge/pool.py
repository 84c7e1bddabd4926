"""`draftrec pool`: make pools of texts, look after them, see what they were worth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from draftrec.cli.common import DONE, DebugOption, JsonOption, command, print_json
from draftrec.cli.options.columns import TextColumnOptions
from draftrec.cli.options.places import HERE, READ
from draftrec.data.files.places import Place

Argument, Option = typer.Argument, typer.Option

_TEXTS_HELP = (
    "Texts: a run folder, or Parquet, JSONL or CSV with entity_id and text (optional: group); a "
    "file, a folder of parts or a glob."
)
PoolArgument = Annotated[Path, Argument(metavar="DIR", help="Folder of the pool.")]
TextsArgument = Annotated[str, READ, Argument(metavar="TEXTS", help=_TEXTS_HELP)]
TokenizerOption = Annotated[
    str, HERE, Option(metavar="PATH", help="Folder or Hub id of the model whose tokenizer counts.")
]
OutputOption = Annotated[Path, Option(metavar="DIR", help="Folder of the new pool.")]
GroupsOption = Annotated[
    Place | None,
    READ,
    Option(help="Groups file (entity_id, group); takes the place of the group column."),
]
MaxBytesOption = Annotated[
    int | None,
    Option(
        min=1,
        metavar="N",
        help="Most bytes of the pool's files, about; texts accepted least and longest ago go.",
    ),
]


class Levels(StrEnum):
    """Which indexes a pool keeps."""

    BOTH = "both"
    ALL = "all"
    GROUP = "group"


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildOptions(TextColumnOptions):
    """The command line of `draftrec pool build`."""

    texts: TextsArgument
    tokenizer: TokenizerOption
    output: OutputOption
    groups: GroupsOption = None
    levels: Annotated[
        Levels,
        Option(help="One index over all texts, one per group, or both (twice the bytes)."),
    ] = Levels.BOTH
    max_bytes: MaxBytesOption = None
    json: JsonOption = False
    debug: DebugOption = False


@command(BuildOptions, writes=["output"])
def build(options: BuildOptions) -> int:
    """Make a pool of TEXTS."""
    from draftrec.evaluate.replay.pool_job import build_pool
    from draftrec.pool.store import LEVELS

    levels = tuple(n for n in LEVELS if options.levels in (Levels.BOTH, n))
    return _told(
        options.json,
        build_pool,
        options.files(options.texts),
        options.tokenizer,
        options.output,
        groups=options.groups,
        levels=levels,
        max_bytes=options.max_bytes,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class AddOptions(TextColumnOptions):
    """The command line of `draftrec pool add`."""

    pool: PoolArgument
    texts: TextsArgument
    tokenizer: TokenizerOption
    groups: GroupsOption = None
    max_bytes: MaxBytesOption = None
    json: JsonOption = False
    debug: DebugOption = False


@command(AddOptions, writes=["pool"])
def add(options: AddOptions) -> int:
    """Add TEXTS to the pool in DIR."""
    from draftrec.evaluate.replay.pool_job import add_to_pool

    return _told(
        options.json,
        add_to_pool,
        options.pool,
        options.files(options.texts),
        options.tokenizer,
        groups=options.groups,
        max_bytes=options.max_bytes,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeOptions:
    """The command line of `draftrec pool merge`."""

    one: Annotated[Path, Argument(metavar="A", help="A pool.")]
    other: Annotated[Path, Argument(metavar="B", help="Another, made with the same tokenizer.")]
    output: OutputOption
    json: JsonOption = False
    debug: DebugOption = False


@command(MergeOptions, writes=["output"])
def merge(options: MergeOptions) -> int:
    """Make one pool of two; texts that both hold are kept once."""
    from draftrec.evaluate.replay.pool_job import merge_pools

    return _told(options.json, merge_pools, options.one, options.other, options.output)


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneOptions:
    """The command line of `draftrec pool prune`."""

    pool: PoolArgument
    max_bytes: Annotated[int, Option(min=1, metavar="N", help="Most bytes of files, about.")]
    json: JsonOption = False
    debug: DebugOption = False


@command(PruneOptions, writes=["pool"])
def prune(options: PruneOptions) -> int:
    """Shrink the pool in DIR: texts accepted least and longest ago go first."""
    from draftrec.evaluate.replay.pool_job import prune_pool

    return _told(options.json, prune_pool, options.pool, options.max_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class LookOptions:
    """The command line of `draftrec pool info` and `draftrec pool check`."""

    pool: PoolArgument
    json: JsonOption = False
    debug: DebugOption = False


@command(LookOptions)
def info(options: LookOptions) -> int:
    """Show a pool's size, and what it was worth to the runs that drafted from it."""
    from draftrec.evaluate.replay.pool_job import describe

    return _told(options.json, describe, options.pool)


@command(LookOptions)
def check(options: LookOptions) -> int:
    """Verify the checksums of the pool in DIR."""
    from draftrec.evaluate.replay.pool_job import check_pool

    return _told(options.json, check_pool, options.pool)


#: What the `draftrec` command makes of this module.
SUBCOMMANDS: dict[str, Callable[..., int]] = {
    "build": build,
    "add": add,
    "merge": merge,
    "prune": prune,
    "info": info,
    "check": check,
}
_MOST_LINES = 8


def _told(json: bool, work: Callable[..., dict[str, Any]], *args: Any, **more: Any) -> int:  # noqa: FBT001
    """Do the work and show what came of it."""
    from rich.console import Console

    summary = work(*args, **more)
    console = Console(stderr=json, highlight=False)
    for name, value in summary.items():
        console.print(f"{name.replace('_', ' '):>24}  {_readable(name, value)}", soft_wrap=True)
    if json:
        print_json(summary)
    return DONE


def _readable(name: str, value: Any) -> str:
    if isinstance(value, dict):
        found = {str(k): v for k, v in value.items()}  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
        best = sorted(found.items(), key=lambda row: -row[1]["accepted_tokens"])
        shown = [f"{key or '(none)'} {row['accepted_tokens']:,}" for key, row in best[:_MOST_LINES]]
        return ", ".join(shown + ["..."] * (len(best) > _MOST_LINES)) or "-"
    if isinstance(value, list):
        return " ".join(map(str, value)) or "-"  # pyright: ignore[reportUnknownArgumentType]
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "-"}[value]
    if name == "tokenizer":
        return str(value)[:16]
    return (
        f"{value:,}" if isinstance(value, int | float) and name != "format_version" else str(value)
    )
