"""The command lines of `draftrec genrec fit`, `teach` and `align`."""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from draftrec.cli.common import (
    DONE,
    INTERRUPTED,
    MODEL_PANEL,
    OBJECTIVE_PANEL,
    OUTPUT_PANEL,
    PROMPTS_PANEL,
    TRAINING_PANEL,
    DebugOption,
    JsonOption,
    StopSignal,
    command,
    print_json,
    say,
)
from draftrec.cli.options.columns import GenrecColumnOptions
from draftrec.cli.options.idle import Idle
from draftrec.cli.options.places import HERE, READ
from draftrec.errors import DraftrecError, Interrupted
from draftrec.train.settings import ObjectiveSettings, TeachSettings, TrainSettings

if TYPE_CHECKING:
    from draftrec.items.prompts import PromptFormat
    from draftrec.train.presets import ModelSource


Argument, Option = typer.Argument, typer.Option
Prompts = partial(Option, rich_help_panel=PROMPTS_PANEL)
Aim = partial(Option, rich_help_panel=OBJECTIVE_PANEL)
Training = partial(Option, rich_help_panel=TRAINING_PANEL)
Machine = partial(Option, rich_help_panel=MODEL_PANEL)
Output = partial(Option, rich_help_panel=OUTPUT_PANEL)
_TRAIN, _OBJECTIVE, _TEACH = TrainSettings(), ObjectiveSettings(), TeachSettings()


class Preset(StrEnum):
    """Sizes of new models."""

    TINY = "tiny"
    SMALL = "small"
    BASE = "base"


class Precision(StrEnum):
    """What training computes in."""

    NO = "no"
    BF16 = "bf16"
    FP16 = "fp16"


class Objective(StrEnum):
    """What a draft learns."""

    SFT = "sft"
    WORDKD = "wordkd"
    TVDKD = "tvdkd"
    SEQKD = "seqkd"
    BEAMKD = "beamkd"
    ATSPEED_S = "atspeed-s"
    ATSPEED_R = "atspeed-r"


SequencesArgument = Annotated[
    str,
    READ,
    Argument(metavar="SEQUENCES", help="Parquet, JSONL or CSV with user, items and part."),
]
SidsOption = Annotated[str, READ, Option(metavar="FILE", help="Semantic ids: item, sid.")]
OverwriteOption = Annotated[bool, Output("--overwrite", help="Give up what is in --output.")]
LimitOption = Annotated[int | None, Option(min=1, metavar="USERS", help="First users only.")]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainOptions:
    """What `fit` and `align` have in common."""

    output: Annotated[Path, Option(metavar="DIR", help="Folder of the trained model.")]
    preset: Annotated[
        Preset | None, Option(help="Size of a new model.", show_default="small; tiny for drafts")
    ] = None
    config: Annotated[
        Path | None,
        Option(metavar="FILE", help="config.json of a decoder-only transformers model, new."),
    ] = None
    source: Annotated[
        str | None, HERE, Option("--from", metavar="CHECKPOINT", help="Train this model further.")
    ] = None
    epochs: Annotated[int, Option(help="Passes over the training data, at most.")] = _TRAIN.epochs
    batch_tokens: Annotated[int, Training(help="Tokens per step, padding included.")] = (
        _TRAIN.batch_tokens
    )
    lr: Annotated[float, Training(help="Highest learning rate.")] = _TRAIN.lr
    weight_decay: Annotated[float, Training(help="AdamW's, of matrices.")] = _TRAIN.weight_decay
    warmup: Annotated[float, Training(help="Share of steps until the highest rate.")] = (
        _TRAIN.warmup
    )
    clip: Annotated[float, Training(help="Longest gradient.")] = _TRAIN.clip
    dropout: Annotated[float, Training(help="Share of the stream that is dropped.")] = (
        _TRAIN.dropout
    )
    patience: Annotated[int, Training(help="End after so many epochs without a better one.")] = (
        _TRAIN.patience
    )
    save_steps: Annotated[int, Output(help="Steps between checkpoints.")] = _TRAIN.save_steps
    seed: Annotated[int, Training(min=0, help="Of weights, batches and dropout.")] = _TRAIN.seed
    device: Annotated[str, Machine(help="auto, cpu or cuda.")] = _TRAIN.device
    precision: Annotated[Precision, Machine(help="Mixed precision; no: float32 throughout.")] = (
        Precision.NO
    )
    overwrite: OverwriteOption = False
    json: JsonOption = False
    debug: DebugOption = False


@dataclass(frozen=True, slots=True, kw_only=True)
class FitOptions(GenrecColumnOptions, TrainOptions):
    """The command line of `draftrec genrec fit`."""

    sequences: SequencesArgument
    sids: SidsOption
    drop_items: Annotated[
        float, Training(help="Share of items left out of training sequences, anew every epoch.")
    ] = _TRAIN.drop_items
    jitter: Annotated[
        float, Training(help="Items trade places with others about so far away, anew every epoch.")
    ] = _TRAIN.jitter
    lora: Annotated[
        int | None,
        Option(min=1, metavar="RANK", help="With --from: train adapters and new tokens alone."),
    ] = None
    max_items: Annotated[int, Prompts(min=1, help="Items of a history in a prompt.")] = 20
    prefix: Annotated[str | None, Prompts(help="Text before the items of a prompt.")] = None
    separator: Annotated[str | None, Prompts(help="Text between items.")] = None
    suffix: Annotated[str | None, Prompts(help="Text after them.")] = None
    limit: LimitOption = None
    recall_users: Annotated[
        int, Training(min=0, help="Valid users whose Recall@10 is shown; the loss decides.")
    ] = 1000
    with_valid: Annotated[
        bool,
        Training("--with-valid", help="Learn from valid items too, all --epochs, unvalidated."),
    ] = False


@dataclass(frozen=True, slots=True, kw_only=True)
class TeachOptions(GenrecColumnOptions):
    """The command line of `draftrec genrec teach`."""

    target: Annotated[str, HERE, Argument(metavar="TARGET", help="Folder of the target model.")]
    sequences: SequencesArgument
    sids: SidsOption
    output: Annotated[Path, Option(metavar="DIR", help="Folder of the teacher data.")]
    beams: Annotated[int, Option(help="Beams recorded per context (K).")] = _TEACH.beams
    per_user: Annotated[
        int, Option(help="Contexts per user: before the last train item, and earlier ones.")
    ] = _TEACH.per_user
    ends: Annotated[
        bool, Option("--ends", help="Also after the last train item, where no answer is known.")
    ] = _TEACH.ends
    limit: LimitOption = None
    shard_size: Annotated[int, Output(help="Contexts written, and resumed from, together.")] = (
        _TEACH.shard_size
    )
    seed: Annotated[int, Option(min=0, help="Of the choice of contexts.")] = _TEACH.seed
    device: Annotated[str, Machine(help="auto, cpu, cuda or cuda:N.")] = "auto"
    overwrite: OverwriteOption = False
    json: JsonOption = False
    debug: DebugOption = False


@dataclass(frozen=True, slots=True, kw_only=True)
class AlignOptions(TrainOptions):
    """The command line of `draftrec genrec align`."""

    teacher: Annotated[Path, Argument(metavar="TEACHER", help="What `genrec teach` wrote.")]
    target: Annotated[str, HERE, Option(metavar="DIR", help="Folder of the target model.")]
    objective: Annotated[Objective, Option(help="What the draft learns.")] = Objective.ATSPEED_S
    alpha: Annotated[float, Aim(help="Weight of alignment, 1 - alpha of next items.")] = (
        _OBJECTIVE.alpha
    )
    soft: Annotated[
        float, Aim(help="Share of the next-item loss that is the target's opinion; AtSpeed: 0.")
    ] = _OBJECTIVE.soft
    tau: Annotated[float, Aim(help="atspeed-r, tvdkd: divides the logits.")] = _OBJECTIVE.tau
    beta: Annotated[float, Aim(help="atspeed-s: weight of the density term.")] = _OBJECTIVE.beta
    top_k: Annotated[int, Aim(help="atspeed-s: the draft's codes that count.")] = _OBJECTIVE.top_k
    sharpen: Annotated[
        float | None, Aim(help="atspeed-s: softmax(probability / X) for plain renormalisation.")
    ] = _OBJECTIVE.sharpen
    dropout: Annotated[float, Training(help="Share of the stream that is dropped.")] = 0.0
    held_out: Annotated[int, Training(min=0, help="Contexts to validate on, at most a tenth.")] = (
        256
    )


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
        lambda o: o.objective is Objective.SFT,
        "with --objective sft, which does not look at the target",
    ),
    Idle("soft", lambda o: o.alpha == 1, "with --alpha 1, which leaves next items out"),
    Idle(
        "tau",
        lambda o: o.objective not in (Objective.ATSPEED_R, Objective.TVDKD),
        "without --objective atspeed-r or tvdkd",
    ),
    Idle(
        "beta top_k sharpen",
        lambda o: o.objective is not Objective.ATSPEED_S,
        "without --objective atspeed-s",
    ),
    Idle("patience", lambda o: o.held_out == 0, "with --held-out 0, as nothing is validated on"),
)


@command(FitOptions, idle=_FIT_IDLE)
def fit(options: FitOptions) -> int:
    """Train a target on SEQUENCES: a model that writes the semantic id of the next item.

    The same command again goes on where it was interrupted.
    """
    from draftrec.train.fit import FitSpec
    from draftrec.train.fit import fit as run
    from draftrec.train.lora import LoraSettings

    rank = options.lora
    spec = FitSpec(
        sequences=options.sequences,
        sids=options.sids,
        output=options.output,
        source=_source(options, Preset.SMALL),
        settings=_train_settings(options),
        form=_form(options),
        lora=LoraSettings(rank, 2 * rank) if rank else None,
        limit=options.limit,
        recall_users=options.recall_users,
        with_valid=options.with_valid,
        overwrite=options.overwrite,
        columns=options.columns(),
    )
    return _trained(run, spec, as_json=options.json)


@command(TeachOptions, idle=_TEACH_IDLE)
def teach(options: TeachOptions) -> int:
    """Record the beams of TARGET in training contexts, for drafts to learn from.

    The same command again goes on where it was interrupted.
    """
    from draftrec.cli.progress import TeachBar
    from draftrec.train.settings import TeachSettings
    from draftrec.train.teacher import TeachSpec
    from draftrec.train.teacher import teach as run

    settings = TeachSettings(
        options.beams, options.per_user, options.ends, options.seed, options.shard_size
    )
    spec = TeachSpec(
        options.target, options.sequences, options.sids, options.output, settings,
        options.limit, options.device, options.overwrite, options.columns(),
    )  # fmt: skip
    with StopSignal() as stop:
        bar = TeachBar(stop)
        try:
            summary = run(spec, bar, stop)
        except Interrupted as event:
            bar.end()
            done, total = sum(event.progress.shards), event.progress.total
            say(f"interrupted after {done:,} of {total:,} contexts; the same command continues")
            return INTERRUPTED
        finally:
            bar.end()
    megabytes = summary["bytes"] / 1e6
    say(f"{summary['contexts']:,} contexts, {megabytes:,.0f} MB, in {summary['output']}")
    if options.json:
        print_json(summary)
    return DONE


@command(AlignOptions, idle=_ALIGN_IDLE)
def align(options: AlignOptions) -> int:
    """Train a draft on what TEACHER says that its target recommends.

    The same command again goes on where it was interrupted.
    """
    from draftrec.train.align import AlignSpec
    from draftrec.train.align import align as run

    objective = ObjectiveSettings(
        options.objective.value, options.alpha, options.soft, options.tau, options.beta,
        options.top_k, options.sharpen,
    )  # fmt: skip
    spec = AlignSpec(
        teacher=options.teacher,
        target=options.target,
        output=options.output,
        source=_source(options, Preset.TINY),
        objective=objective,
        settings=_train_settings(options),
        held_out=options.held_out,
        overwrite=options.overwrite,
    )
    return _trained(run, spec, as_json=options.json)


def _trained(run: Any, spec: Any, *, as_json: bool) -> int:
    from draftrec.cli.progress import TrainBar

    with StopSignal() as stop:
        bar = TrainBar(stop)
        try:
            summary = run(spec, bar, stop)
        except Interrupted as event:
            bar.end()
            done = event.progress
            say(
                f"interrupted in epoch {done.epoch + 1} after {done.step} steps; the same command "
                "continues"
            )
            return INTERRUPTED
        finally:
            bar.end()
    say(
        f"{summary['kind']} with {summary['weights']:,} weights in {summary['output']}, best of "
        f"{summary['epochs']} epochs: {summary['best_epoch'] + 1}"
    )
    if as_json:
        print_json(summary)
    return DONE


def _source(options: TrainOptions, usual: Preset) -> ModelSource:
    """Where the model comes from. Raises DraftrecError for two answers."""
    from draftrec.train.presets import ModelSource

    given = {
        "preset": options.preset.value if options.preset else None,
        "config": str(options.config) if options.config else None,
        "checkpoint": options.source,
    }
    chosen = [(kind, name) for kind, name in given.items() if name is not None]
    if len(chosen) > 1:
        raise DraftrecError("give one of --preset, --config and --from, not several")
    kind, name = chosen[0] if chosen else ("preset", usual.value)
    return ModelSource(kind, name)  # type: ignore[arg-type]


def _form(options: FitOptions) -> PromptFormat | None:
    """The prompt that was asked for, None to leave it to the model."""
    from dataclasses import replace

    from draftrec.items.prompts import TEXT_FORMAT, PromptFormat

    texts = {name: getattr(options, name) for name in ("prefix", "separator", "suffix")}
    given = {name: text for name, text in texts.items() if text is not None}
    if not given and options.max_items == PromptFormat().max_items:
        return None
    usual = TEXT_FORMAT if options.source else PromptFormat()
    return replace(usual, max_items=options.max_items, **given)


def _train_settings(options: TrainOptions) -> TrainSettings:
    """Raises DraftrecError for values that cannot work."""
    names = [field.name for field in fields(TrainSettings) if hasattr(options, field.name)]
    values: dict[str, Any] = {name: getattr(options, name) for name in names}
    values["precision"] = options.precision.value
    return TrainSettings(**values)
