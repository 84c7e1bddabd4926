"""`draftrec genrec recommend`: the top-K items of every user; and `draftrec genrec evaluate`:
Recall@K and NDCG@K of such a file.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

from draftrec.cli.command import DONE, INTERRUPTED, ManyNumbers, command, print_json
from draftrec.cli.knobs import (
    DRAFTING_PANEL,
    HERE,
    ITEM_ITEM_PANEL,
    MODEL_PANEL,
    OUTPUT_PANEL,
    READ,
    REQUIRED,
    SEARCH_PANEL,
    WRITTEN,
    argument,
    option,
    option_of,
    settings_of,
)
from draftrec.cli.messages import StopSignal, say
from draftrec.cli.options import (
    ClusterOptions,
    GenrecColumnOptions,
    Idle,
    ItemModel,
    JsonOptions,
    SequenceColumnOptions,
    Sequences,
    SettingsFile,
    Sids,
    Target,
    TrackOptions,
    cluster_of,
    executor_of,
)
from draftrec.config import Auto, RecommendConfig, RecommendRun, RetrieverSettings, Wanted
from draftrec.data.files.places import Place
from draftrec.errors import Interrupted
from draftrec.evaluate.settings import Definition, Part, RankingRun

Config = partial(option_of, RecommendConfig)
Run = partial(option_of, RecommendRun)
ItemItem = partial(option_of, RetrieverSettings, panel=ITEM_ITEM_PANEL)


@dataclass(frozen=True, slots=True, kw_only=True)
class RecommendOptions(TrackOptions, GenrecColumnOptions, ClusterOptions):
    """The command line of `draftrec genrec recommend`."""

    sequences: str = Sequences()
    target: Path = Target()
    sids: Place = Sids()
    output: Place = option(
        "File to write: .parquet, .jsonl or .csv.",
        metavar="FILE",
        default=REQUIRED,
        place=WRITTEN,
    )
    draft: str | None = option(
        "Who drafts: a draft model's folder, items proposed by co-occurrence, or nobody. [default: "
        "items; none with --constraint none, where no item can be proposed]",
        metavar="DIR|items|none",
        place=HERE,
    )
    part: Wanted | None = Run("part")
    k: int = Config("k", "-k")
    limit: int | None = Run("limit", metavar="USERS")
    beams: int | None = Config("beams", panel=SEARCH_PANEL)
    blend: float | None = Config("blend", metavar="WEIGHT", panel=SEARCH_PANEL)
    item_model: Path | None = ItemModel(panel=SEARCH_PANEL)
    blend_item_model: float | None = Config(
        "blend_item_model", metavar="WEIGHT", panel=SEARCH_PANEL
    )
    blend_candidates: int = Config("blend_candidates", panel=SEARCH_PANEL)
    item_item_window: int = ItemItem("window")
    item_item_decay: float = ItemItem("decay")
    item_item_backward: float = ItemItem("backward")
    item_item_from_power: float = ItemItem("from_power")
    item_item_to_power: float = ItemItem("to_power")
    item_item_shrinkage: float = ItemItem("shrinkage")
    item_item_neighbours: int = ItemItem("neighbours")
    item_item_last: int = ItemItem("last")
    item_item_recency: float = ItemItem("recency")
    item_item_popularity: float = ItemItem("popularity")
    draft_beams: str | None = Config(
        "draft_beams", kind=str | None, metavar="N|N,N,...", panel=DRAFTING_PANEL
    )
    draft_steps: int | Auto = Config("draft_steps", panel=DRAFTING_PANEL)
    draft_items: int = Config("draft_items", panel=DRAFTING_PANEL)
    verify: str = Config("verify", panel=SEARCH_PANEL)
    constraint: str = Config("constraint", panel=SEARCH_PANEL)
    renormalise: bool = Config("renormalise", "--renormalise/--no-renormalise", panel=SEARCH_PANEL)
    temperature: float = Config("temperature", panel=SEARCH_PANEL)
    seed: int = Config("seed", panel=SEARCH_PANEL)
    batch_size: int = Config("batch_size", panel=MODEL_PANEL)
    exclude_seen: bool = Config("exclude_seen")
    allow: str | None = option(
        "File of the only items to recommend, such as those in stock: one column, or one called "
        "item. [default: all]",
        metavar="FILE",
        place=READ,
    )
    deny: str | None = option(
        "File of items not to recommend. [default: none]", metavar="FILE", place=READ
    )
    shadow: float = Run("shadow", panel=DRAFTING_PANEL)
    device: str = Run("device", panel=MODEL_PANEL)
    dtype: str = Run("dtype", panel=MODEL_PANEL)
    exact: bool = Run("exact", "--exact/--no-exact", panel=MODEL_PANEL)
    shard_size: int = Run("shard_size", panel=OUTPUT_PANEL)
    overwrite: bool = option("Replace the output.", default=False, panel=OUTPUT_PANEL)
    config: Place | None = SettingsFile()


def drafting_of(options: RecommendOptions) -> str:
    """Who drafts, where nothing is said of it too."""
    return options.draft or ("none" if options.constraint == "none" else "items")


_IDLE = (
    Idle(
        "draft_beams draft_steps draft_items shadow",
        lambda o: drafting_of(o) == "none",
        "with --draft none, which is plain search",
    ),
    Idle(
        "draft_items",
        lambda o: drafting_of(o) == "items" or o.verify == "relaxed" or o.constraint == "none",
        "without a draft model beside whose drafts proposed items can be verified",
    ),
    Idle(
        "temperature seed",
        lambda o: o.verify == "strict",
        "with --verify strict, which draws nothing",
    ),
    Idle(
        "temperature",
        lambda o: o.verify == "relaxed",
        "with --verify relaxed, which draws from the models' own probabilities",
    ),
    Idle(
        "exact",
        lambda o: o.verify == "relaxed",
        "with --verify relaxed, whose answer depends on what was drafted",
    ),
    Idle(
        "blend_candidates",
        lambda o: o.blend is None and o.blend_item_model is None,
        "without --blend",
    ),
    Idle("renormalise", lambda o: o.constraint == "none", "with --constraint none"),
)


@command(RecommendOptions, idle=_IDLE)
def recommend(options: RecommendOptions) -> int:
    """Recommend items: the K best beams of the target model, drafted and verified together."""
    from draftrec.cli.progress import users_bar
    from draftrec.cli.tracking import of_count, tracked
    from draftrec.jobs.recommend.job import run_job
    from draftrec.jobs.recommend.setup import prepare

    settings, start = recommend_settings(options), executor_of(cluster_of(options), say)
    with tracked(options.track, options.output, options) as tracker, StopSignal() as stop:
        task = prepare(settings, start)
        stop.arm()
        try:
            with (
                closing(task.executor) as executor,
                users_bar(len(task.histories), options.output.name) as bar,
            ):
                watch = of_count(tracker, bar, "users")
                summary = run_job(task.job, executor, task.histories, watch, stop)
                summary["unknown_items"] = task.unknown
        except Interrupted:
            tracker.close("stopped")
            say("interrupted; finished users are kept, run the same command again to continue")
            return INTERRUPTED
        tracker.end(summary)
    _report(options, summary)
    return DONE


def recommend_settings(options: RecommendOptions) -> Any:
    """The command line as the settings of a task. Raises DraftrecError for impossible ones."""
    from draftrec.jobs.recommend.setup import TaskSettings

    return TaskSettings(
        sequences=options.sequences,
        sids=options.sids,
        target=options.target,
        draft=drafting_of(options),
        output=options.output,
        item_model=options.item_model,
        allow=options.allow,
        deny=options.deny,
        overwrite=options.overwrite,
        config=settings_of(
            RecommendConfig, options, item_item=settings_of(RetrieverSettings, options)
        ),
        columns=options.columns(),
        **{it.name: getattr(options, it.name) for it in fields(RecommendRun)},
    )


def _report(options: RecommendOptions, summary: dict[str, Any]) -> None:
    say(
        f"{summary['users']:,} users in {summary['walltime_seconds']:.1f} s, "
        f"{summary['mean_target_calls']:.2f} target calls each; {options.output}"
    )
    if options.json:
        print_json(summary)


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
    from draftrec.report.show import show_block

    targets = {"multi": "all items", "single": "the first item"}[summary["definition"]]
    console.print(f"{summary['users']:,} users; targets: {targets} of part {summary['part']}")
    scores = (
        row(str(k), f"{summary[f'recall@{k}']:.4f}", f"{summary[f'ndcg@{k}']:.4f}") for k in ks
    )
    show_block(Table(("k", "recall@k", "ndcg@k"), tuple(scores)), console)
