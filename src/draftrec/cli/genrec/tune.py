"""`draftrec genrec tune`: the weight of a blend, chosen on the valid part."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from draftrec.cli.command import DONE, INTERRUPTED, command, print_json
from draftrec.cli.knobs import (
    MODEL_PANEL,
    SEARCH_PANEL,
    WRITTEN,
    option,
    option_of,
    settings_of,
)
from draftrec.cli.messages import StopSignal, say
from draftrec.cli.options import (
    GenrecColumnOptions,
    ItemModel,
    Sequences,
    Sids,
    Target,
    TrackOptions,
)
from draftrec.config import RecommendConfig, RecommendRun, RetrieverSettings
from draftrec.data.files.places import Place
from draftrec.errors import Interrupted
from draftrec.evaluate.settings import BlendRun, Metric

if TYPE_CHECKING:
    from draftrec.cli.tracking import Tracker
    from draftrec.evaluate.blend import Way
    from draftrec.jobs.recommend.setup import Inputs, TaskSettings

Config = partial(option_of, RecommendConfig)
Run = partial(option_of, RecommendRun, panel=MODEL_PANEL)
Blend = partial(option_of, BlendRun)


@dataclass(frozen=True, slots=True, kw_only=True)
class GenrecTuneOptions(TrackOptions, GenrecColumnOptions):
    """The command line of `draftrec genrec tune`."""

    sequences: str = Sequences()
    target: Path = Target()
    sids: Place = Sids()
    item_model: Path | None = ItemModel(panel=SEARCH_PANEL)
    output: Place | None = option(
        "Settings for `genrec recommend --config`.", metavar="FILE.yaml", place=WRITTEN
    )
    k: int = Config("k", "-k")
    metric: Metric = Blend("metric")
    item_item_draws: int = Blend("item_item_draws")
    seed: int = Blend("seed")
    limit: int | None = Run("limit", metavar="USERS", panel=None)
    beams: int | None = Config("beams", panel=SEARCH_PANEL)
    blend_candidates: int = Config("blend_candidates", panel=SEARCH_PANEL)
    renormalise: bool = Config("renormalise", "--renormalise/--no-renormalise", panel=SEARCH_PANEL)
    exclude_seen: bool = Config("exclude_seen")
    batch_size: int = Config("batch_size", panel=MODEL_PANEL)
    device: str = Run("device")
    dtype: str = Run("dtype")


@command(GenrecTuneOptions, writes=["output"])
def tune(options: GenrecTuneOptions) -> int:
    """Choose the weight of `genrec recommend --blend`: what every weight finds of the valid part.

    The model and item-item co-occurrence, and an item model where one is named, predict the valid
    items of users from their train items. With --item-item-draws item-item's own settings are
    chosen there before.
    """
    from draftrec.cli.tracking import tracked
    from draftrec.data.files.writers import replace_file
    from draftrec.evaluate.blend import blend_summary, blend_yaml

    try:
        with tracked(options.track, options.output, options) as tracker:
            ways, item_item = _ways(options, tracker)
            summary = blend_summary(ways, options.metric, options.k)
            if options.item_item_draws:
                summary["item_item"] = asdict(item_item)
            tracker.end(summary)
    except Interrupted:
        say("interrupted; nothing was chosen")
        return INTERRUPTED
    _show(summary, as_json=options.json)
    if (output := options.output) is not None:
        replace_file(output, blend_yaml(summary, _chosen_with(options, item_item)).encode())
        say(f"settings written to {output}; use them with genrec recommend --config {output}")
    if options.json:
        print_json(summary)
    return DONE


def _ways(options: GenrecTuneOptions, tracker: Tracker) -> tuple[list[Way], RetrieverSettings]:
    """What every weight finds, and the settings of the item-item that found it."""
    from draftrec.cli.progress import users_bar
    from draftrec.cli.tracking import of_count
    from draftrec.evaluate.blend import rank_by_weight
    from draftrec.jobs.recommend.setup import TaskSettings, load, read_inputs
    from draftrec.models.recommender import read_info

    for folder in (options.target, options.item_model):
        learnt = read_info(folder).training.get("epochs", []) if folder else []
        if learnt and not any("valid_loss" in epoch for epoch in learnt):
            say(f"{folder} has learnt from the valid part, so that it looks better than it is")
    item_share = None if options.item_model is None else 0.0
    settings = TaskSettings(
        sequences=options.sequences,
        sids=options.sids,
        target=options.target,
        draft="none",
        output=options.sids,  # not written
        part="valid",
        config=settings_of(RecommendConfig, options, blend=0.0, blend_item_model=item_share),
        item_model=options.item_model,
        columns=options.columns(),
        **{name: getattr(options, name) for name in ("limit", "device", "dtype")},
    )
    with StopSignal() as stop:
        inputs = read_inputs(settings)
        item_item = settings.config.item_item
        if options.item_item_draws:
            item_item = _item_item(options, settings, inputs)
            config = settings.config.model_copy(update={"item_item": item_item})
            settings = replace(settings, config=config)
        recommender = load(settings, inputs.sids).recommender
        stop.arm()
        users = sum(len(history.items) > 0 for history in inputs.histories)
        with users_bar(users, "valid") as bar:
            told = of_count(tracker, bar, "users")
            ways = rank_by_weight(recommender, inputs.histories, on_done=told, should_stop=stop)
    return ways, item_item


def _item_item(
    options: GenrecTuneOptions, settings: TaskSettings, inputs: Inputs
) -> RetrieverSettings:
    """The settings with which item-item alone finds most of the valid part."""
    from draftrec.evaluate.item_item import rate_settings, search
    from draftrec.jobs.recommend.loading import known_places

    known = list(known_places(options.sequences, inputs.sids, settings.columns, "valid"))
    histories = [history for history in inputs.histories if len(history.items)]
    rated = rate_settings(
        known, inputs.sids, histories, options.k, exclude_seen=options.exclude_seen
    )

    def value(it: RetrieverSettings) -> float:
        return float(rated(it).values(options.metric, options.k).mean())

    def told(tried: int, best: RetrieverSettings, reached: float) -> None:
        say(f"item-item: {tried:,} settings tried, {options.metric}@{options.k} {reached:.4f}")

    found, _ = search(value, options.item_item_draws, options.seed, told)
    usual = value(RetrieverSettings())
    say(
        f"item-item tuned: {options.metric}@{options.k} {value(found):.4f}, with its defaults "
        f"{usual:.4f}"
    )
    return found


def _chosen_with(options: GenrecTuneOptions, item_item: RetrieverSettings) -> dict[str, Any]:
    """The options that decide what a weight is worth, where they are not the usual ones."""
    fitted, defaults = asdict(item_item), asdict(RetrieverSettings())
    names = ("k", "beams", "renormalise", "exclude_seen")
    usual = {it.name: it.default for it in fields(options)}
    values = {name: getattr(options, name) for name in names}
    other = {name: value for name, value in values.items() if value != usual[name]}
    other |= {
        f"item_item_{name}": value for name, value in fitted.items() if value != defaults[name]
    }
    return {"blend_candidates": options.blend_candidates, **other}


_OTHERS = {"gain": "the model", "over_item_item": "item-item", "over_item_model": "the item model"}


def _show(summary: dict[str, Any], *, as_json: bool) -> None:
    from rich.console import Console

    from draftrec.report.blocks import Table, row
    from draftrec.report.show import show_block

    console, metric = Console(stderr=as_json), summary["metric"]
    rows = [
        row(name, f"{way[metric]:.4f}", f"{way[f'{metric}_error']:.4f}")
        for name, way in summary["ways"].items()
    ]
    console.print(f"{summary['users']:,} users of the valid part who have a history")
    show_block(Table(("weight", metric, "error"), tuple(rows)), console)
    if summary["blend"] is None:
        say("no blend is better than the model alone")
        return
    gains = [
        f"{summary[key]:+.4f} (error {summary[f'{key}_error']:.4f}) beside {other} alone"
        for key, other in _OTHERS.items()
        if key in summary
    ]
    shares = f"--blend {summary['blend']:g}"
    if (share := summary.get("blend_item_model")) is not None:
        shares += f" --blend-item-model {share:g}"
    say(f"best: {shares}, {metric} {', '.join(gains)}")
    if summary["blend"] + summary.get("blend_item_model", 0) > 1 - 1e-9:
        say("the model has no say in it: what it finds beside the others is ranked by them alone")
