"""`draftrec genrec evaluate`: Recall@K and NDCG@K of a file of recommendations."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from draftrec.cli.command import DONE, ManyNumbers, command, print_json
from draftrec.cli.messages import say
from draftrec.cli.options.knobs import argument, option_of
from draftrec.cli.options.places import READ
from draftrec.cli.options.shared import JsonOptions, SequenceColumnOptions, Sequences
from draftrec.evaluate.settings import Definition, Part, RankingRun

Ranking = partial(option_of, RankingRun)


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateOptions(JsonOptions, SequenceColumnOptions):
    """The command line of `draftrec genrec evaluate`."""

    recommendations: str = argument(
        "RECOMMENDATIONS",
        "What `genrec recommend` wrote, or Parquet, JSONL or CSV with user and items, best first.",
        READ,
    )
    sequences: str = Sequences()
    k: list[int] | None = Ranking("ks", "-k", default=None, metavar="K...")
    part: Part = Ranking("part")
    definition: Definition = Ranking("definition")


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
        part=options.part,
        definition=options.definition,
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
