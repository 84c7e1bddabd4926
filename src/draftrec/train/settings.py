"""How models are trained, with one default for everything."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from draftrec.errors import DraftrecError

Precision = Literal["no", "bf16", "fp16"]
Objective = Literal["sft", "wordkd", "tvdkd", "seqkd", "beamkd", "atspeed-s", "atspeed-r"]
OBJECTIVES: tuple[Objective, ...] = get_args(Objective)


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """One training. `batch_tokens` padded tokens make a step; the learning rate rises to `lr` over
    the first `warmup` share of all steps and falls to zero along a cosine.

    `dropout` applies to embeddings and to what every layer's parts add to its stream, `drop_items`
    leaves items out of training sequences at random, and `jitter` lets items trade places with
    others about so many places away: small catalogues are learnt by heart otherwise. Training ends
    early after `patience` epochs without a better validation.
    """

    epochs: int = 20
    batch_tokens: int = 2048
    lr: float = 1e-3
    weight_decay: float = 0.1
    warmup: float = 0.05
    clip: float = 1.0
    dropout: float = 0.2
    drop_items: float = 0.1
    jitter: float = 0.0
    patience: int = 5
    seed: int = 0
    device: str = "auto"
    precision: Precision = "no"
    save_steps: int = 500

    def __post_init__(self) -> None:
        """Raises DraftrecError for values that cannot work."""
        for name in ("epochs", "batch_tokens", "patience", "save_steps"):
            if getattr(self, name) < 1:
                raise DraftrecError(
                    f"{_option(name)} must be at least 1, not {getattr(self, name)}"
                )
        for name in ("warmup", "dropout", "drop_items"):
            if not 0 <= getattr(self, name) < 1:
                raise DraftrecError(
                    f"{_option(name)} must lie between 0 and 1, not be {getattr(self, name)}"
                )
        for name in ("lr", "clip"):
            if not getattr(self, name) > 0:
                raise DraftrecError(f"{_option(name)} must be above 0, not {getattr(self, name)}")
        if self.jitter < 0:
            raise DraftrecError(f"--jitter must be at least 0, not {self.jitter}")
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

    objective: Objective = "atspeed-s"
    alpha: float = 0.7
    soft: float = 0.0
    tau: float = 1.0
    beta: float = 1.0
    top_k: int = 20
    sharpen: float | None = None

    def __post_init__(self) -> None:
        """Raises DraftrecError for values that cannot work."""
        if self.objective not in OBJECTIVES:
            raise DraftrecError(
                f"--objective must be one of {', '.join(OBJECTIVES)}, not {self.objective!r}"
            )
        if not 0 <= self.alpha <= 1:
            raise DraftrecError(f"--alpha must lie between 0 and 1, not be {self.alpha}")
        if not 0 <= self.soft <= 1:
            raise DraftrecError(f"--soft must lie between 0 and 1, not be {self.soft}")
        if not self.tau > 0 or self.beta < 0 or self.top_k < 1:
            raise DraftrecError("--tau must be above 0, --beta at least 0 and --top-k at least 1")
        if self.sharpen is not None and not self.sharpen > 0:
            raise DraftrecError(f"--sharpen must be above 0, not {self.sharpen}")


@dataclass(frozen=True, slots=True)
class TeachSettings:
    """`beams` (K) are recorded of each context. Every user with two train items or more gives
    `per_user` contexts: before the last item, then before earlier ones drawn at random; with `ends`
    one more after the last item, where nobody knows what is true."""

    beams: int = 20
    per_user: int = 1
    ends: bool = False
    seed: int = 0
    shard_size: int = 512

    def __post_init__(self) -> None:
        """Raises DraftrecError for values that cannot work."""
        for name in ("beams", "shard_size"):
            if getattr(self, name) < 1:
                option = name.replace("_", "-")
                raise DraftrecError(f"--{option} must be at least 1, not {getattr(self, name)}")
        if self.per_user < 0 or not (self.per_user or self.ends):
            raise DraftrecError("no contexts: --per-user must be above 0, or --ends be given")


def setting_names(kind: type[Any]) -> tuple[str, ...]:
    """The names of a settings class's fields."""
    return tuple(field.name for field in fields(kind))


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"
