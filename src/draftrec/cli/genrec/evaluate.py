"""`draftrec genrec evaluate`: Recall@K and NDCG@K of a file of recommendations."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any

import typer

from draftrec.cli.common import (
    DONE,
    DebugOption,
    JsonOption,
    ManyNumbers,
    command,
    print_json,
    say,
)
from draftrec.cli.options.columns import SequenceColumnOptions
from draftrec.cli.options.places import READ

Option = typer.Option


class Part(StrEnum):
    """Which items are the targets."""

    TRAIN = "train"
    VALID = "valid"
    TEST = "test"


class Definition(StrEnum):
    """Which of a user's items count."""

    MULTI = "multi"
    SINGLE = "single"


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateOptions(SequenceColumnOptions):
    """The command line of `draftrec genrec evaluate`."""

    recommendations: Annotated[
        str,
        READ,
        typer.Argument(
            metavar="RECOMMENDATIONS",
            help="What `genrec recommend` wrote, or Parquet, JSONL or CSV with user and items, "
            "best first.",
        ),
    ]
    sequences: Annotated[
        str,
        READ,
        typer.Argument(
            metavar="SEQUENCES", help="Parquet, JSONL or CSV with user, items and part."
        ),
    ]
    k: Annotated[
        list[int] | None,
        Option(
            "-k", min=1, metavar="K...", show_default="1 3 5 10 20",
            help="Lengths of list to score, as in -k 1 3 5.",
        ),
    ] = None  # fmt: skip
    part: Annotated[Part, Option(help="Part whose items are the targets.")] = Part.TEST
    definition: Annotated[
        Definition,
        Option(help="multi: all items of the part are targets; single: the first one alone."),
    ] = Definition.MULTI
    json: JsonOption = False
    debug: DebugOption = False


@command(EvaluateOptions, cls=ManyNumbers)
def evaluate(options: EvaluateOptions) -> int:
    """Compare RECOMMENDATIONS with what users took: Recall@K and NDCG@K.

    Only users with a list and with items of the part are scored.
    """
    from rich.console import Console

    from draftrec.evaluate.ranking import KS, evaluate_recommendations

    found = evaluate_recommendations(
        options.recommendations,
        options.sequences,
        ks=options.k or KS,
        part=options.part.value,
        definition=options.definition.value,
        columns=options.columns(),
    )
    summary = found.summary()
    _warn(summary, max(found.scores.recall))
    _show(summary, list(found.scores.recall), Console(stderr=options.json))
    if options.json:
        print_json(summary)
    return DONE


def _warn(summary: dict[str, Any], longest: int) -> None:
    """Say who is not in the means, and whose lists are short."""
    part = summary["part"]
    notes = {
        "users_without_targets": f"users without items of part {part!r} are left out",
        "users_without_list": f"users with items of part {part!r} have no list and are left out",
        "short_lists": f"users have fewer than {longest} items; missing places count as misses",
    }
    for key, text in notes.items():
        if summary[key]:
            say(f"{summary[key]:,} {text}")


def _show(summary: dict[str, Any], ks: list[int], console: Any) -> None:
    from draftrec.report.blocks import Table, row
    from draftrec.report.terminal import show_block

    targets = {"multi": "all items", "single": "the first item"}[summary["definition"]]
    console.print(f"{summary['users']:,} users; targets: {targets} of part {summary['part']}")
    scores = (
        row(str(k), f"{summary[f'recall@{k}']:.4f}", f"{summary[f'ndcg@{k}']:.4f}") for k in ks
    )
    show_block(Table(("k", "recall@k", "ndcg@k"), tuple(scores)), console)
