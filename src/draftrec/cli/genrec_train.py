"""`draftrec genrec fit`, `teach` and `align`: train targets, record them, train their drafts."""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from draftrec.alignment.settings import ObjectiveSettings, TrainSettings
from draftrec.cli.common import (
    DONE,
    INTERRUPTED,
    DebugOption,
    JsonOption,
    StopSignal,
    command,
    print_json,
    say,
)
from draftrec.errors import DraftrecError

if TYPE_CHECKING:
    from draftrec.alignment.presets import ModelSource
    from draftrec.tokens.prompts import PromptFormat

Argument, Option = typer.Argument, typer.Option
_TRAIN, _OBJECTIVE = TrainSettings(), ObjectiveSettings()


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
    ATSPEED_S = "atspeed-s"
    ATSPEED_R = "atspeed-r"


SequencesArgument = Annotated[
    str, Argument(metavar="SEQUENCES", help="Parquet, JSONL or CSV with user, items and part.")
]
SidsOption = Annotated[str, Option(metavar="FILE", help="Semantic ids: item, sid.")]
OverwriteOption = Annotated[bool, Option("--overwrite", help="Give up what is in --output.")]
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
        str | None, Option("--from", metavar="CHECKPOINT", help="Train this model further.")
    ] = None
    epochs: Annotated[int, Option(help="Passes over the training data, at most.")] = _TRAIN.epochs
    batch_tokens: Annotated[int, Option(help="Tokens per step, padding included.")] = (
        _TRAIN.batch_tokens
    )
    lr: Annotated[float, Option(help="Highest learning rate.")] = _TRAIN.lr
    weight_decay: Annotated[float, Option(help="AdamW's, of matrices.")] = _TRAIN.weight_decay
    warmup: Annotated[float, Option(help="Share of steps until the highest rate.")] = _TRAIN.warmup
    clip: Annotated[float, Option(help="Longest gradient.")] = _TRAIN.clip
    dropout: Annotated[float, Option(help="Share of the stream that is dropped.")] = _TRAIN.dropout
    patience: Annotated[int, Option(help="End after so many epochs without a better one.")] = (
        _TRAIN.patience
    )
    save_steps: Annotated[int, Option(help="Steps between checkpoints.")] = _TRAIN.save_steps
    seed: Annotated[int, Option(min=0, help="Of weights, batches and dropout.")] = _TRAIN.seed
    device: Annotated[str, Option(help="auto, cpu or cuda.")] = _TRAIN.device
    precision: Annotated[Precision, Option(help="Mixed precision; no: float32 throughout.")] = (
        Precision.NO
    )
    overwrite: OverwriteOption = False
    json: JsonOption = False
    debug: DebugOption = False


@dataclass(frozen=True, slots=True, kw_only=True)
class FitOptions(TrainOptions):
    """The command line of `draftrec genrec fit`."""

    sequences: SequencesArgument
    sids: SidsOption
    drop_items: Annotated[
        float, Option(help="Share of items left out of training sequences, anew every epoch.")
    ] = _TRAIN.drop_items
    lora: Annotated[
        int | None,
        Option(min=1, metavar="RANK", help="With --from: train adapters and new tokens alone."),
    ] = None
    max_items: Annotated[int, Option(min=1, help="Items of a history in a prompt.")] = 20
    prefix: Annotated[str | None, Option(help="Text before the items of a prompt.")] = None
    separator: Annotated[str | None, Option(help="Text between items.")] = None
    suffix: Annotated[str | None, Option(help="Text after them.")] = None
    limit: LimitOption = None
    recall_users: Annotated[
        int, Option(min=0, help="Valid users whose Recall@10 is shown; the loss decides.")
    ] = 1000
    with_valid: Annotated[
        bool, Option("--with-valid", help="Learn from valid items too, all --epochs, unvalidated.")
    ] = False


@dataclass(frozen=True, slots=True, kw_only=True)
class TeachOptions:
    """The command line of `draftrec genrec teach`."""

    target: Annotated[str, Argument(metavar="TARGET", help="Folder of the target model.")]
    sequences: SequencesArgument
    sids: SidsOption
    output: Annotated[Path, Option(metavar="DIR", help="Folder of the teacher data.")]
    beams: Annotated[int, Option(help="Beams recorded per context (K).")] = 20
    per_user: Annotated[
        int, Option(help="Contexts per user: before the last train item, and earlier ones.")
    ] = 1
    ends: Annotated[
        bool, Option("--ends", help="Also after the last train item, where no answer is known.")
    ] = False
    limit: LimitOption = None
    shard_size: Annotated[int, Option(help="Contexts written, and resumed from, together.")] = 512
    seed: Annotated[int, Option(min=0, help="Of the choice of contexts.")] = 0
    device: Annotated[str, Option(help="auto, cpu, cuda or cuda:N.")] = "auto"
    overwrite: OverwriteOption = False
    json: JsonOption = False
    debug: DebugOption = False


@dataclass(frozen=True, slots=True, kw_only=True)
class AlignOptions(TrainOptions):
    """The command line of `draftrec genrec align`."""

    teacher: Annotated[Path, Argument(metavar="TEACHER", help="What `genrec teach` wrote.")]
    target: Annotated[str, Option(metavar="DIR", help="Folder of the target model.")]
    objective: Annotated[Objective, Option(help="What the draft learns.")] = Objective.ATSPEED_S
    alpha: Annotated[float, Option(help="Weight of alignment, 1 - alpha of next items.")] = (
        _OBJECTIVE.alpha
    )
    tau: Annotated[float, Option(help="atspeed-r, tvdkd: divides the logits.")] = _OBJECTIVE.tau
    beta: Annotated[float, Option(help="atspeed-s: weight of the density term.")] = _OBJECTIVE.beta
    top_k: Annotated[int, Option(help="atspeed-s: the draft's codes that count.")] = (
        _OBJECTIVE.top_k
    )
    sharpen: Annotated[
        float | None, Option(help="atspeed-s: softmax(probability / X) for plain renormalisation.")
    ] = _OBJECTIVE.sharpen
    dropout: Annotated[float, Option(help="Share of the stream that is dropped.")] = 0.0
    held_out: Annotated[int, Option(min=0, help="Contexts to validate on, at most a tenth.")] = 256


@command(FitOptions)
def fit(options: FitOptions) -> int:
    """Train a target on SEQUENCES: a model that writes the semantic id of the next item.

    The same command again goes on where it was interrupted.
    """
    from draftrec.alignment.fit import FitSpec
    from draftrec.alignment.fit import fit as run
    from draftrec.alignment.lora import LoraSettings

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
    )
    return _trained(run, spec, as_json=options.json)


@command(TeachOptions)
def teach(options: TeachOptions) -> int:
    """Record the beams of TARGET in training contexts, for drafts to learn from.

    The same command again goes on where it was interrupted.
    """
    from draftrec.alignment.teacher import TeachInterrupted, TeachSettings, TeachSpec
    from draftrec.alignment.teacher import teach as run
    from draftrec.cli.train_bar import TeachBar

    settings = TeachSettings(
        options.beams, options.per_user, options.ends, options.seed, options.shard_size
    )
    spec = TeachSpec(
        options.target, options.sequences, options.sids, options.output, settings,
        options.limit, options.device, options.overwrite,
    )  # fmt: skip
    with StopSignal() as stop:
        bar = TeachBar(stop)
        try:
            summary = run(spec, bar, stop)
        except TeachInterrupted as event:
            bar.end()
            done, total = sum(event.manifest.shards), event.manifest.total
            say(f"interrupted after {done:,} of {total:,} contexts; the same command continues")
            return INTERRUPTED
        finally:
            bar.end()
    megabytes = summary["bytes"] / 1e6
    say(f"{summary['contexts']:,} contexts, {megabytes:,.0f} MB, in {summary['output']}")
    if options.json:
        print_json(summary)
    return DONE


@command(AlignOptions)
def align(options: AlignOptions) -> int:
    """Train a draft on what TEACHER says that its target recommends.

    The same command again goes on where it was interrupted.
    """
    from draftrec.alignment.align import AlignSpec
    from draftrec.alignment.align import align as run

    objective = ObjectiveSettings(
        options.objective.value, options.alpha, options.tau, options.beta, options.top_k,
        options.sharpen,
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
    from draftrec.alignment.train import TrainInterrupted
    from draftrec.cli.train_bar import TrainBar

    with StopSignal() as stop:
        bar = TrainBar(stop)
        try:
            summary = run(spec, bar, stop)
        except TrainInterrupted as event:
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
    from draftrec.alignment.presets import ModelSource

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

    from draftrec.tokens.prompts import TEXT_FORMAT, PromptFormat

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
