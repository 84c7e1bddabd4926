"""The command lines of `draftrec genrec fit`, `teach` and `align`."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from draftrec.cli.command import DONE, INTERRUPTED, command, print_json
from draftrec.cli.knobs import (
    HERE,
    MODEL_PANEL,
    OBJECTIVE_PANEL,
    OUTPUT_PANEL,
    PROMPTS_PANEL,
    REQUIRED,
    TRAINING_PANEL,
    argument,
    option,
    option_of,
    settings_of,
)
from draftrec.cli.messages import StopSignal, again, say
from draftrec.cli.options import (
    GenrecColumnOptions,
    Idle,
    JsonOptions,
    Sequences,
    Sids,
    Target,
    TargetArgument,
    TrackOptions,
)
from draftrec.errors import DraftrecError, Interrupted
from draftrec.items.settings import PromptFormat
from draftrec.knobs import knobs
from draftrec.train.settings import (
    ALIGN_DROPOUT,
    DRAFT_PRESET,
    ITEM_DEFAULTS,
    TARGET_PRESET,
    AlignRun,
    FitRun,
    ObjectiveSettings,
    Preset,
    TeachRun,
    TeachSettings,
    TrainSettings,
)

if TYPE_CHECKING:
    from draftrec.train.presets import ModelSource

Settings = partial(option_of, TrainSettings)
Training = partial(option_of, TrainSettings, panel=TRAINING_PANEL)
Prompts = partial(option_of, PromptFormat, default=None, panel=PROMPTS_PANEL)
Aim = partial(option_of, ObjectiveSettings, panel=OBJECTIVE_PANEL)
Teach = partial(option_of, TeachSettings)
Overwrite = partial(option, "Give up what is in --output.", default=False, panel=OUTPUT_PANEL)
Folder = partial(option, metavar="DIR", default=REQUIRED)


_NEW = "Size of a new model."


def either(settings: type[Any], name: str, **more: Any) -> Any:
    """An option whose default depends on what is fitted: a target, or an item model."""
    usual = f"{knobs(settings)[name].default:g}; {ITEM_DEFAULTS[name]:g} with --whole-items"
    return option_of(settings, name, default=None, show_default=usual, **more)


Either = partial(either, TrainSettings, panel=TRAINING_PANEL)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainOptions(TrackOptions):
    """What `fit` and `align` have in common."""

    output: Path = Folder("Folder of the trained model.")
    preset: Preset | None = option(_NEW, show_default=DRAFT_PRESET)
    config: Path | None = option(
        "config.json of a decoder-only transformers model, new.", metavar="FILE"
    )
    source: str | None = option(
        "Train this model further.", "--from", metavar="CHECKPOINT", place=HERE
    )
    epochs: int = Settings("epochs")
    batch_tokens: int | None = Training("batch_tokens")
    lr: float = Training("lr")
    weight_decay: float | None = Training("weight_decay")
    warmup: float = Training("warmup")
    clip: float = Training("clip")
    dropout: float | None = Training("dropout")
    patience: int = Training("patience")
    save_steps: int = Settings("save_steps", panel=OUTPUT_PANEL)
    seed: int = Training("seed")
    device: str = Settings("device", panel=MODEL_PANEL)
    precision: str = Settings("precision", panel=MODEL_PANEL)
    overwrite: bool = Overwrite()


@dataclass(frozen=True, slots=True, kw_only=True)
class FitOptions(GenrecColumnOptions, TrainOptions):
    """The command line of `draftrec genrec fit`. None: the default of what is fitted."""

    sequences: str = Sequences()
    sids: str = Sids()
    preset: Preset | None = option(
        _NEW, show_default=f"{TARGET_PRESET}; {ITEM_DEFAULTS['preset']} with --whole-items"
    )
    batch_tokens: int | None = Either("batch_tokens")
    weight_decay: float | None = Either("weight_decay")
    dropout: float | None = Either("dropout")
    drop_items: float | None = Either("drop_items")
    jitter: float = Training("jitter")
    lora: int | None = option(
        "With --from: train adapters and new tokens alone.", min=1, metavar="RANK"
    )
    max_items: int | None = either(PromptFormat, "max_items", panel=PROMPTS_PANEL)
    prefix: str | None = Prompts("prefix")
    separator: str | None = Prompts("separator")
    suffix: str | None = Prompts("suffix")
    limit: int | None = option_of(FitRun, "limit", metavar="USERS")
    recall_users: int = option_of(FitRun, "recall_users", panel=TRAINING_PANEL)
    with_valid: bool = option_of(FitRun, "with_valid", panel=TRAINING_PANEL)
    whole_items: bool = option_of(FitRun, "whole_items", panel=MODEL_PANEL)


@dataclass(frozen=True, slots=True, kw_only=True)
class TeachOptions(TrackOptions, GenrecColumnOptions):
    """The command line of `draftrec genrec teach`."""

    target: str = TargetArgument()
    sequences: str = Sequences()
    sids: str = Sids()
    output: Path = Folder("Folder of the teacher data.")
    beams: int = Teach("beams")
    per_user: int = Teach("per_user")
    ends: bool = Teach("ends")
    limit: int | None = option_of(TeachRun, "limit", metavar="USERS")
    shard_size: int = Teach("shard_size", panel=OUTPUT_PANEL)
    seed: int = Teach("seed")
    device: str = option_of(TeachRun, "device", panel=MODEL_PANEL)
    overwrite: bool = Overwrite()


@dataclass(frozen=True, slots=True, kw_only=True)
class AlignOptions(TrainOptions):
    """The command line of `draftrec genrec align`."""

    teacher: Path = argument("TEACHER", "What `genrec teach` wrote.")
    target: str = Target(place=HERE)
    objective: str = option_of(ObjectiveSettings, "objective")
    alpha: float = Aim("alpha")
    soft: float = Aim("soft")
    tau: float = Aim("tau")
    beta: float = Aim("beta")
    top_k: int = Aim("top_k")
    sharpen: float | None = Aim("sharpen")
    dropout: float = Training("dropout", default=ALIGN_DROPOUT)
    held_out: int = option_of(AlignRun, "held_out", panel=TRAINING_PANEL)


_FIT_IDLE = (
    Idle(
        "patience recall_users",
        lambda o: o.with_valid,
        "with --with-valid, which keeps nothing to validate on",
    ),
)
_TEACH_IDLE = (
    Idle("seed", lambda o: o.per_user <= 1, "without --per-user above 1, as nothing is drawn"),
)
_ALIGN_IDLE = (
    Idle(
        "alpha soft",
        lambda o: o.objective == "sft",
        "with --objective sft, which does not look at the target",
    ),
    Idle("soft", lambda o: o.alpha == 1, "with --alpha 1, which leaves next items out"),
    Idle(
        "tau",
        lambda o: o.objective not in ("atspeed-r", "tvdkd"),
        "without --objective atspeed-r or tvdkd",
    ),
    Idle(
        "beta top_k sharpen",
        lambda o: o.objective != "atspeed-s",
        "without --objective atspeed-s",
    ),
    Idle("patience", lambda o: o.held_out == 0, "with --held-out 0, as nothing is validated on"),
)


@command(FitOptions, idle=_FIT_IDLE, resumes=True)
def fit(options: FitOptions) -> int:
    """Train a target on SEQUENCES: a model that writes the semantic id of the next item.

    The same command again goes on where it was interrupted.
    """
    from draftrec.train.fit import FitSpec
    from draftrec.train.fit import fit as run
    from draftrec.train.presets import LoraSettings

    options, rank = _settled(options), options.lora
    source = _source(options, TARGET_PRESET)
    spec = FitSpec(
        sequences=options.sequences,
        sids=options.sids,
        output=options.output,
        source=source,
        settings=settings_of(TrainSettings, options),
        form=_form(options, source),
        lora=LoraSettings(rank, 2 * rank) if rank else None,
        limit=options.limit,
        recall_users=options.recall_users,
        with_valid=options.with_valid,
        whole_items=options.whole_items,
        overwrite=options.overwrite,
        columns=options.columns(),
    )
    return trained(run, spec, options, track=options.track)


@command(TeachOptions, idle=_TEACH_IDLE, resumes=True)
def teach(options: TeachOptions) -> int:
    """Record the beams of TARGET in training contexts, for drafts to learn from.

    The same command again goes on where it was interrupted.
    """
    from draftrec.cli.genrec.train_bar import TeachBar
    from draftrec.cli.tracking import of_recording, tracked
    from draftrec.train.teacher import TeachSpec
    from draftrec.train.teacher import teach as run

    spec = TeachSpec(
        target=options.target,
        sequences=options.sequences,
        sids=options.sids,
        output=options.output,
        settings=settings_of(TeachSettings, options),
        limit=options.limit,
        device=options.device,
        overwrite=options.overwrite,
        columns=options.columns(),
    )
    try:
        with (
            StopSignal() as stop,
            closing(TeachBar(stop)) as bar,
            tracked(options.track, options.output, options) as tracker,
        ):
            summary = run(spec, of_recording(tracker, bar), stop)
            tracker.end(summary)
    except Interrupted as event:
        done, total = sum(event.progress.shards), event.progress.total
        say(f"interrupted after {done:,} of {total:,} contexts; {again()}")
        return INTERRUPTED
    megabytes = summary["bytes"] / 1e6
    say(f"{summary['contexts']:,} contexts, {megabytes:,.0f} MB, in {summary['output']}")
    if options.json:
        print_json(summary)
    return DONE


@command(AlignOptions, idle=_ALIGN_IDLE, resumes=True)
def align(options: AlignOptions) -> int:
    """Train a draft on what TEACHER says that its target recommends.

    The same command again goes on where it was interrupted.
    """
    from draftrec.train.align import AlignSpec
    from draftrec.train.align import align as run

    spec = AlignSpec(
        teacher=options.teacher,
        target=options.target,
        output=options.output,
        source=_source(options, DRAFT_PRESET),
        objective=settings_of(ObjectiveSettings, options),
        settings=settings_of(TrainSettings, options),
        held_out=options.held_out,
        overwrite=options.overwrite,
    )
    return trained(run, spec, options, track=options.track)


def trained(run: Any, spec: Any, options: JsonOptions | None, track: str | None = None) -> int:
    """Run a training under a bar, and say what it came to; an exit code. `options`: those of the
    command that is nothing but this training."""
    from draftrec.cli.genrec.train_bar import TrainBar
    from draftrec.cli.tracking import of_training, tracked

    try:
        with (
            StopSignal() as stop,
            closing(TrainBar(stop)) as bar,
            tracked(track, spec.output, options) as tracker,
        ):
            summary = run(spec, of_training(tracker, bar), stop)
            tracker.end(summary)
    except Interrupted as event:
        done = event.progress
        say(f"interrupted in epoch {done.epoch + 1} after {done.step} steps; {again()}")
        return INTERRUPTED
    say(
        f"{summary['kind']} with {summary['weights']:,} weights in {summary['output']}, best of "
        f"{summary['epochs']} epochs: {summary['best_epoch']}"
    )
    if options is None and stop():  # asked while nobody looked: the command has more to do
        say(f"interrupted; {again()}")
        return INTERRUPTED
    if options and options.json:
        print_json(summary)
    return DONE


def _source(options: TrainOptions, usual: Preset) -> ModelSource:
    """Where the model comes from. Raises DraftrecError for two answers."""
    from draftrec.train.presets import ModelSource

    given = {
        "preset": options.preset,
        "config": str(options.config) if options.config else None,
        "checkpoint": options.source,
    }
    chosen = [(kind, name) for kind, name in given.items() if name is not None]
    if len(chosen) > 1:
        raise DraftrecError("give one of --preset, --config and --from, not several")
    kind, name = chosen[0] if chosen else ("preset", usual)
    return ModelSource(kind, name)  # type: ignore[arg-type]


def _settled(options: FitOptions) -> FitOptions:
    """The same with an item model's defaults where it is one and nothing else was asked for; what
    a model is, and was asked before, is left as it is."""
    if not options.whole_items:
        return options
    kept = ("max_items",) if options.source else ()
    kept += ("preset",) if options.source or options.config else ()
    usual = {name: it for name, it in ITEM_DEFAULTS.items() if name not in kept}
    return replace(options, **{n: it for n, it in usual.items() if getattr(options, n) is None})


def _form(options: FitOptions, source: ModelSource) -> PromptFormat | None:
    """The prompt that was asked for, the rest of it as the model has it; None to leave all to the
    model."""
    from draftrec.train.fit import usual_form

    names = ("max_items", "prefix", "separator", "suffix")
    asked = {name: getattr(options, name) for name in names}
    given = {name: value for name, value in asked.items() if value is not None}
    return replace(usual_form(source), **given) if given else None
