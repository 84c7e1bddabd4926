"""`draftrec pool`: make pools of texts, look after them, see what they were worth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from draftrec.cli.command import DONE, command, print_json
from draftrec.cli.knobs import READ, REQUIRED, argument, option
from draftrec.cli.options import Groups, JsonOptions, TextColumnOptions, Tokenizer
from draftrec.data.files.places import Place

Folder = partial(argument, "DIR", "Folder of the pool.")
Texts = partial(
    argument,
    "TEXTS",
    "Texts: a run folder, or Parquet, JSONL or CSV with entity_id and text (optional: group); a "
    "file, a folder of parts or a glob.",
    READ,
)
Output = partial(option, "Folder of the new pool.", metavar="DIR", default=REQUIRED)
MaxBytes = partial(
    option,
    "Most bytes of the pool's files, about; texts accepted least and longest ago go.",
    min=1,
    metavar="N",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildOptions(JsonOptions, TextColumnOptions):
    """The command line of `draftrec pool build`."""

    texts: str = Texts()
    tokenizer: str = Tokenizer(default=REQUIRED)
    output: Path = Output()
    groups: Place | None = Groups()
    levels: Literal["both", "all", "group"] = option(
        "One index over all texts, one per group, or both (twice the bytes).", default="both"
    )
    max_bytes: int | None = MaxBytes()


@command(BuildOptions, writes=["output"])
def build(options: BuildOptions) -> int:
    """Make a pool of TEXTS."""
    from draftrec.evaluate.replay.job import build_pool
    from draftrec.pool.store import LEVELS

    levels = tuple(n for n in LEVELS if options.levels in ("both", n))
    return told(
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
class AddOptions(JsonOptions, TextColumnOptions):
    """The command line of `draftrec pool add`."""

    pool: Path = Folder()
    texts: str = Texts()
    tokenizer: str = Tokenizer(default=REQUIRED)
    groups: Place | None = Groups()
    max_bytes: int | None = MaxBytes()


@command(AddOptions, writes=["pool"])
def add(options: AddOptions) -> int:
    """Add TEXTS to the pool in DIR."""
    from draftrec.evaluate.replay.job import add_to_pool

    return told(
        options.json,
        add_to_pool,
        options.pool,
        options.files(options.texts),
        options.tokenizer,
        groups=options.groups,
        max_bytes=options.max_bytes,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeOptions(JsonOptions):
    """The command line of `draftrec pool merge`."""

    one: Path = argument("A", "A pool.")
    other: Path = argument("B", "Another, made with the same tokenizer.")
    output: Path = Output()


@command(MergeOptions, writes=["output"])
def merge(options: MergeOptions) -> int:
    """Make one pool of two; texts that both hold are kept once."""
    from draftrec.evaluate.replay.job import merge_pools

    return told(options.json, merge_pools, options.one, options.other, options.output)


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneOptions(JsonOptions):
    """The command line of `draftrec pool prune`."""

    pool: Path = Folder()
    max_bytes: int = option("Most bytes of files, about.", min=1, metavar="N", default=REQUIRED)


@command(PruneOptions, writes=["pool"])
def prune(options: PruneOptions) -> int:
    """Shrink the pool in DIR: texts accepted least and longest ago go first."""
    from draftrec.evaluate.replay.job import prune_pool

    return told(options.json, prune_pool, options.pool, options.max_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class LookOptions(JsonOptions):
    """The command line of `draftrec pool info` and `draftrec pool check`."""

    pool: Path = Folder()


@command(LookOptions)
def info(options: LookOptions) -> int:
    """Show a pool's size, and what it was worth to the runs that drafted from it."""
    from draftrec.evaluate.replay.job import describe

    return told(options.json, describe, options.pool)


@command(LookOptions)
def check(options: LookOptions) -> int:
    """Verify the checksums of the pool in DIR."""
    from draftrec.evaluate.replay.job import check_pool

    return told(options.json, check_pool, options.pool)


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


def told(json: bool, work: Callable[..., dict[str, Any]], *args: Any, **more: Any) -> int:  # noqa: FBT001
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
    if name in ("tokenizer", "model"):
        return str(value)[:16]
    return (
        f"{value:,}" if isinstance(value, int | float) and name != "format_version" else str(value)
    )
