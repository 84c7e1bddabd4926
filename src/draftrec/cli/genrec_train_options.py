"""The command lines of `draftrec genrec fit`, `teach` and `align`."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from draftrec.alignment.settings import ObjectiveSettings, TeachSettings, TrainSettings
from draftrec.cli.column_options import GenrecColumnOptions
from draftrec.cli.common import (
    MODEL_PANEL,
    OBJECTIVE_PANEL,
    OUTPUT_PANEL,
    PROMPTS_PANEL,
    TRAINING_PANEL,
    DebugOption,
    JsonOption,
)
from draftrec.cli.places import HERE, READ

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
