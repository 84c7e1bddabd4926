"""How models are trained, with one default for everything."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

from draftrec.config import Device, FirstUsers
from draftrec.errors import DraftrecError
from draftrec.knobs import check_knobs, knob

Preset = Literal["tiny", "small", "base"]
Precision = Literal["no", "bf16", "fp16"]
Objective = Literal["sft", "wordkd", "tvdkd", "seqkd", "beamkd", "atspeed-s", "atspeed-r"]
#: Sizes of new models, where none is asked for.
TARGET_PRESET: Preset = "small"
DRAFT_PRESET: Preset = "tiny"
#: `TrainSettings.dropout` of drafts, which learn from more than users did.
ALIGN_DROPOUT = 0.0
#: Of item models: options of `genrec fit` whose defaults are others than targets'. Little width,
#: much dropout, long histories and small steps are what helps where every item has a vector of its
#: own, by NDCG@20 of the valid part of Amazon Beauty.
ITEM_DEFAULTS: dict[str, Any] = {
    "preset": "tiny",
    "max_items": 50,
    "batch_tokens": 1024,
    "weight_decay": 0.0,
    "dropout": 0.4,
    "drop_items": 0.0,
}


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """One training. `batch_tokens` padded tokens make a step; the learning rate rises to `lr` over
    the first `warmup` share of all steps and falls to zero along a cosine.

    `dropout` applies to embeddings and to what every layer's parts add to its stream, `drop_items`
    leaves items out of training sequences at random, and `jitter` lets items trade places with
    others about so many places away: small catalogues are learnt by heart otherwise. Training ends
    early after `patience` epochs without a better validation.
    """

    epochs: Annotated[int, knob("Passes over the training data, at most.", ge=1)] = 20
    batch_tokens: Annotated[int, knob("Tokens per step, padding included.", ge=1)] = 2048
    lr: Annotated[float, knob("Highest learning rate.", gt=0)] = 1e-3
    weight_decay: Annotated[float, knob("AdamW's, of matrices.", ge=0)] = 0.1
    warmup: Annotated[float, knob("Share of steps until the highest rate.", ge=0, lt=1)] = 0.05
    clip: Annotated[float, knob("Longest gradient.", gt=0)] = 1.0
    dropout: Annotated[float, knob("Share of the stream that is dropped.", ge=0, lt=1)] = 0.2
    drop_items: Annotated[
        float,
        knob("Share of items left out of training sequences, anew every epoch.", ge=0, lt=1),
    ] = 0.1
    jitter: Annotated[
        float, knob("Items trade places with others about so far away, anew every epoch.", ge=0)
    ] = 0.0
    patience: Annotated[int, knob("End after so many epochs without a better one.", ge=1)] = 5
    seed: Annotated[int, knob("Of weights, batches and dropout.", ge=0)] = 0
    device: Annotated[str, knob("auto, cpu or cuda.")] = "auto"
    precision: Annotated[Precision, knob("Mixed precision; no: float32 throughout.")] = "no"
    save_steps: Annotated[int, knob("Steps between checkpoints.", ge=1)] = 500

    def __post_init__(self) -> None:
        """Raises DraftrecError for values that cannot work."""
        check_knobs(self)
        if self.device not in ("auto", "cpu", "cuda"):
            raise DraftrecError(
                f"--device must be auto, cpu or cuda, not {self.device!r}; choose among several "
                "GPUs with CUDA_VISIBLE_DEVICES"
            )

    def deciding(self) -> dict[str, Any]:
        """The settings that decide what comes out: all but where and how often it is saved."""
        kept = asdict(self)
        return {name: kept[name] for name in kept if name not in ("device", "save_steps")}


@dataclass(frozen=True, slots=True)
class ObjectiveSettings:
    """What a draft learns: `(1 - alpha) * next-item loss + alpha * alignment loss`.

    The next-item loss is the target's opinion of every item of a history for a share of `soft`, and
    what users took for the rest: all of it for SFT, and in the paper.

    `top_k` codes of the draft count in AtSpeed-S, `beta` weighs its density term, and `sharpen`
    takes the place of its plain renormalisation; `tau` divides the logits of AtSpeed-R and TVDKD
    (the published script sets 0.001, where gradients all but vanish).
    """

    objective: Annotated[Objective, knob("What the draft learns.")] = "atspeed-s"
    alpha: Annotated[float, knob("Weight of alignment, 1 - alpha of next items.", ge=0, le=1)] = 0.7
    soft: Annotated[
        float,
        knob("Share of the next-item loss that is the target's opinion; AtSpeed: 0.", ge=0, le=1),
    ] = 0.0
    tau: Annotated[float, knob("atspeed-r, tvdkd: divides the logits.", gt=0)] = 1.0
    beta: Annotated[float, knob("atspeed-s: weight of the density term.", ge=0)] = 1.0
    top_k: Annotated[int, knob("atspeed-s: the draft's codes that count.", ge=1)] = 20
    sharpen: Annotated[
        float | None,
        knob("atspeed-s: softmax(probability / X) for plain renormalisation.", gt=0),
    ] = None

    def __post_init__(self) -> None:
        """Raises DraftrecError for values that cannot work."""
        check_knobs(self)


@dataclass(frozen=True, slots=True)
class TeachSettings:
    """`beams` (K) are recorded of each context. Every user with two train items or more gives
    `per_user` contexts: before the last item, then before earlier ones drawn at random; with `ends`
    one more after the last item, where nobody knows what is true."""

    beams: Annotated[int, knob("Beams recorded per context (K).", ge=1)] = 20
    per_user: Annotated[
        int,
        knob("Contexts per user: before the last train item, and earlier ones.", ge=0),
    ] = 1
    ends: Annotated[bool, knob("Also after the last train item, where no answer is known.")] = False
    seed: Annotated[int, knob("Of the choice of contexts.", ge=0)] = 0
    shard_size: Annotated[int, knob("Contexts written, and resumed from, together.", ge=1)] = 512

    def __post_init__(self) -> None:
        """Raises DraftrecError for values that cannot work."""
        check_knobs(self)
        if not (self.per_user or self.ends):
            raise DraftrecError("no contexts: --per-user must be above 0, or --ends be given")


@dataclass(frozen=True, kw_only=True)
class FitRun:
    """Whom a target learns from, and how it is watched. `with_valid`: learn from the valid items
    too, for as many epochs as were found to be good. `whole_items`: an item model, not a target."""

    limit: FirstUsers = None
    recall_users: Annotated[
        int, knob("Valid users whose Recall@10 is shown; the loss decides.", ge=0)
    ] = 1000
    with_valid: Annotated[bool, knob("Learn from valid items too, all --epochs, unvalidated.")] = (
        False
    )
    whole_items: Annotated[
        bool,
        knob(
            "Every item is one token, whatever its semantic id: an item model for `recommend "
            "--item-model`, to be blended in, in place of a target; with defaults of its own."
        ),
    ] = False


@dataclass(frozen=True, kw_only=True)
class TeachRun:
    """For whom a target is asked, and where it computes."""

    limit: FirstUsers = None
    device: Device = "auto"


@dataclass(frozen=True, kw_only=True)
class AlignRun:
    """How a draft is watched: the last `held_out` contexts, or a tenth if that is less, validate;
    the best weights are those with the fewest target calls."""

    held_out: Annotated[int, knob("Contexts to validate on, at most a tenth.", ge=0)] = 256


#: Of draft heads, which have few texts and no catalogue to learn by heart.
HEAD_TRAINING: dict[str, Any] = {
    "epochs": 10,
    "batch_tokens": 2048,
    "weight_decay": 0.01,
    "dropout": 0.0,
    "drop_items": 0.0,
    "patience": 3,
    "save_steps": 100,
}
Loss = Literal["kl", "ce"]


@dataclass(frozen=True, slots=True)
class HeadSettings:
    """What a draft head learns: to follow its target for `levels` tokens in a row, over the
    `vocabulary` tokens that texts use most.

    Level j (from 0) counts `decay ** j`: a level is drafted only where the one before was taken.
    """

    loss: Annotated[
        Loss,
        knob("kl: the target's probabilities of draft tokens; ce: the token that was written."),
    ] = "kl"
    vocabulary: Annotated[int, knob("Draft tokens: those that texts use most.", ge=2)] = 8192
    levels: Annotated[int, knob("Tokens that the head learns to draft in a row.", ge=1, le=16)] = 4
    decay: Annotated[
        float, knob("Weight of a level, times that of the one before.", gt=0, le=1)
    ] = 0.8

    def __post_init__(self) -> None:
        """Raises DraftrecError for values that cannot work."""
        check_knobs(self)


@dataclass(frozen=True, kw_only=True)
class HeadRun:
    """Which texts a head learns from, and how it is watched: all texts of `held_out` entities, or
    of a tenth of them if that is less, validate; the best weights are those with the most tokens
    per call. `keep_features`: the target's hidden states stay in the training's folder."""

    limit: Annotated[int | None, knob("First texts of every run only.", ge=1)] = None
    held_out: Annotated[int, knob("Entities to validate on, at most a tenth.", ge=0)] = 128
    keep_features: Annotated[
        bool, knob("Keep the target's hidden states, for a training with other settings.")
    ] = False
