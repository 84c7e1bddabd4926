"""Learned drafters on disk: a draft head, bound to the target that it was trained for.

`drafter.json` says what it is, `head.safetensors` holds its weights and its draft tokens. What the
head borrows from the target, the output rows of those tokens, is taken from the target itself.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import nn
from torch.nn.functional import linear

from draftrec.core import Drafter
from draftrec.data.files.places import Place, place
from draftrec.data.files.writers import replace_file
from draftrec.engine.learned.drafter import HeadDrafter, Worth
from draftrec.engine.learned.head import DraftHead, HeadPasses, HeadShape
from draftrec.engine.learned.rules import ScoreRules
from draftrec.engine.passes.prepacked import RowLinear
from draftrec.engine.target import Target
from draftrec.engine.text.budget import AutoBudget
from draftrec.errors import DraftrecError

FORMAT_VERSION = 1
INFO_FILE, WEIGHTS_FILE = "drafter.json", "head.safetensors"
# Beside the weights, whose names are `head.*`.
_TOKENS, _HEAD = "tokens", "head."
# Relative to the largest score; half precision rounds by less.
_CLOSE = 0.02


class DrafterInfo(BaseModel):
    """What `drafter.json` holds.

    `shape`: `HeadShape`'s fields; `levels`: how far the head was trained to go on from itself;
    `vocabulary`: V, its draft tokens; `model` and `tokenizer`: fingerprints, as runs record them.
    `scale` and `cap`: what the target does to what its output layer gives. `mixing`: how its
    probabilities are joined with a pool's, None if that is not known yet. `training`: for people.
    """

    model_config = ConfigDict(frozen=True)

    format: Literal["draftrec-drafter"] = "draftrec-drafter"
    format_version: int = FORMAT_VERSION
    form: Literal["head"] = "head"
    shape: dict[str, int | float]
    levels: int = Field(ge=1)
    vocabulary: int = Field(ge=1)
    model: str
    tokenizer: str
    scale: float = 1.0
    cap: float | None = None
    mixing: dict[str, Any] | None = None
    training: dict[str, Any] = Field(default_factory=dict)


@dataclass(frozen=True, eq=False, slots=True)
class OutputRows:
    """The target's output layer for some tokens: `product` gives `[..., V]` of features `[..., H]`;
    scores are then multiplied by `scale` and, with a `cap`, bent to stay within it (Gemma 2's soft
    cap)."""

    product: Callable[[torch.Tensor], torch.Tensor]
    scale: float = 1.0
    cap: float | None = None

    def __call__(self, features: torch.Tensor) -> torch.Tensor:
        """Logits `[..., V]` of features `[..., H]`."""
        scores = self.product(features)
        if self.scale != 1.0:
            scores = scores * self.scale
        return scores if self.cap is None else self.cap * torch.tanh(scores / self.cap)

    @classmethod
    def of(
        cls, model: Any, tokens: torch.Tensor, dtype: torch.dtype, scale: float, cap: float | None
    ) -> OutputRows:
        """Copies of the rows of `tokens` int64 `[V]`. Raises DraftrecError for a model whose output
        layer has no plain weight, as where it is quantised."""
        layer = output_layer(model)
        rows = layer.weight[tokens.to(layer.weight.device)].detach().to(dtype)
        bias = getattr(layer, "bias", None)
        bias = None if bias is None else bias[tokens.to(bias.device)].detach().to(dtype)
        return cls(partial(linear, weight=rows, bias=bias), scale, cap)

    def narrowed(self) -> OutputRows:
        """With bfloat16 weights, laid out for few rows."""
        held: Any = self.product
        product = RowLinear([held.keywords["weight"].bfloat16()], held.keywords["bias"])
        return replace(self, product=product)


@dataclass(frozen=True, eq=False, slots=True)
class LearnedDrafter:
    """A draft head on the target's device and in its dtype, and its draft `tokens` int64 `[V]`, the
    most frequent first. `output(head.foretold(...))` are their logits. `fingerprint`: sha256 of the
    weights and of how they are joined with a pool."""

    head: DraftHead
    tokens: torch.Tensor
    output: OutputRows
    info: DrafterInfo
    fingerprint: str = ""


def output_layer(model: Any) -> Any:
    """The layer that gives logits. Raises DraftrecError where there is none with a plain weight."""
    layer = model.get_output_embeddings()
    weight = getattr(layer, "weight", None)
    hidden = int(model.config.get_text_config().hidden_size)
    plain = weight is not None and weight.is_floating_point() and weight.shape[-1] == hidden
    if not plain:
        raise DraftrecError(
            "the target's output layer has no plain weights of its own, which a draft head shares; "
            "use a model that is not quantised"
        )
    return layer


@torch.no_grad()
def score_transform(model: Any) -> tuple[float, float | None]:
    """`scale` and `cap` of the target's scores, found by comparing a few of its logits with what
    its output layer makes of its last hidden states.

    Raises DraftrecError for a target that does anything else between the two.
    """
    config = model.config.get_text_config()
    ids = torch.arange(min(8, int(config.vocab_size)), device=model.device)
    wanted = model(input_ids=ids[None], use_cache=False).logits[0].float()
    features = model.base_model(input_ids=ids[None], use_cache=False).last_hidden_state[0]
    tokens = torch.arange(wanted.shape[1])
    caps = {None, getattr(config, "final_logit_softcapping", None)}
    errors: dict[tuple[float, float | None], float] = {}
    for scale, cap in product(_scales(config), caps):
        found = OutputRows.of(model, tokens, features.dtype, scale, cap)(features).float()
        errors[scale, cap] = float((found - wanted).abs().max())
    best = min(errors, key=errors.__getitem__)
    if errors[best] <= _CLOSE * float(wanted.abs().max()):
        return best
    raise DraftrecError(
        f"the target, of type {config.model_type}, does not choose tokens by its last hidden state "
        "and its output layer alone, as a draft head takes it to; no head can be trained for it"
    )


def _scales(config: Any) -> list[float]:
    """By what configurations say that scores are multiplied, or divided."""
    names = ("logit_scale", "logits_scaling", "lm_head_multiplier", "output_multiplier")
    given = [float(getattr(config, name, None) or 1.0) for name in names]
    return [1.0, *given, *(1 / scale for scale in given)]


def save_drafter(
    folder: Path, weights: Mapping[str, torch.Tensor], tokens: torch.Tensor, info: DrafterInfo
) -> None:
    """Write a folder that `load_drafter` reads; `drafter.json` last, as the sign that it is whole.
    `weights`: the head's `state_dict()`; `tokens` `[V]`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / INFO_FILE).unlink(missing_ok=True)
    held = {_HEAD + name: weight.cpu().contiguous() for name, weight in weights.items()}
    held[_TOKENS] = tokens.to("cpu", torch.int32)
    replace_file(folder / WEIGHTS_FILE, save(held))
    replace_file(folder / INFO_FILE, (info.model_dump_json(indent=1) + "\n").encode())


def read_drafter_info(folder: str | Place) -> DrafterInfo:
    """What `drafter.json` says. Raises DraftrecError if there is none that this version reads, and
    where the weights that it speaks of are not there."""
    path = place(folder) / INFO_FILE
    if not path.is_file():
        raise DraftrecError(
            f"{place(folder)} has no {INFO_FILE}, so it is no drafter; name a folder that "
            "`draftrec drafter fit` wrote"
        )
    try:
        info = DrafterInfo.model_validate_json(path.read_bytes())
        HeadShape(**info.shape)  # type: ignore[arg-type]
    except (ValidationError, TypeError) as error:
        first = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise DraftrecError(f"{path} is damaged ({first}); train the drafter again") from error
    if info.format_version > FORMAT_VERSION:
        raise DraftrecError(
            f"{path} has format version {info.format_version}, this draftrec reads up to "
            f"{FORMAT_VERSION}; update draftrec"
        )
    if not (weights := place(folder) / WEIGHTS_FILE).is_file():
        raise DraftrecError(f"{weights} is missing; train the drafter again, or copy all its files")
    return info


def describe_drafter(folder: str | Place) -> dict[str, Any]:
    """What people want to know of a drafter, by name. Raises as `read_drafter_info`."""
    info = read_drafter_info(folder)
    record = info.training
    epochs = record.get("epochs") or [{}]
    best = epochs[min(max(record.get("best_epoch", -1), -1), len(epochs) - 1)]
    return {
        "form": info.form,
        "levels": info.levels,
        "vocabulary": info.vocabulary,
        "weights": record.get("weights"),
        "texts": record.get("texts"),
        "loss": record.get("loss"),
        "epochs": record.get("best_epoch", -1) + 1 or None,
        "seconds": record.get("seconds"),
        **{name: best[name] for name in best if name.startswith("valid_")},
        "joined_with_pools_as_fitted": info.mixing is not None,
        "model": info.model,
        "tokenizer": info.tokenizer,
        "format_version": info.format_version,
    }


def check_drafter(folder: str | Place, info: DrafterInfo, fingerprint: Mapping[str, str]) -> None:
    """Raise DraftrecError unless the drafter was trained for the target with these fingerprints, of
    its `model` and, where that is known, its `tokenizer`."""
    for what in ("tokenizer", "model"):
        if getattr(info, what) != fingerprint.get(what, getattr(info, what)):
            raise DraftrecError(
                f"the drafter {place(folder)} was trained for another {what} than the target's; "
                "train one for this target with `draftrec drafter fit`"
            )


def load_drafter(folder: str | Place, model: Any, fingerprint: Mapping[str, str]) -> LearnedDrafter:
    """The drafter of a folder, for `model`, whose layers are not packed yet; `fingerprint`: as
    `check_drafter` takes it.

    Raises DraftrecError for a folder of anything else, a damaged one, and another target's.
    """
    info = read_drafter_info(folder)
    check_drafter(folder, info, fingerprint)
    path = place(folder) / WEIGHTS_FILE
    try:
        content = path.read_bytes()
        held = load(content)
        tokens = held.pop(_TOKENS).long()
        head = DraftHead(HeadShape(**info.shape))  # type: ignore[arg-type]
        head.load_state_dict({name.removeprefix(_HEAD): held[name] for name in held})
    except (OSError, SafetensorError, KeyError, RuntimeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:160].rstrip(".: ")
        raise DraftrecError(f"{path} is damaged ({reason}); train the drafter again") from error
    rows = int(output_layer(model).weight.shape[0])
    hidden = int(model.config.get_text_config().hidden_size)
    inside = len(tokens) == info.vocabulary and tokens.min() >= 0 and tokens.max() < rows
    if not inside or head.shape.hidden != hidden:
        raise DraftrecError(f"{path} does not fit its {INFO_FILE}; train the drafter again")
    head = head.requires_grad_(False).to(model.device, model.dtype).eval()
    output = OutputRows.of(model, tokens, model.dtype, info.scale, info.cap)
    if model.dtype in (torch.float32, torch.bfloat16) and model.device.type == "cpu":
        _narrow(head)  # a draft may be rounded, and half the weights take half the time to be read
        output = output.narrowed()
    digest = hashlib.sha256(content)
    digest.update(json.dumps(info.mixing).encode())
    return LearnedDrafter(head, tokens.to(model.device), output, info, digest.hexdigest())


def _narrow(head: DraftHead) -> None:
    """Let the head's products keep their weights in bfloat16, laid out for few rows."""
    for name, layer in list(head.named_children()):
        if isinstance(layer, nn.Linear):
            setattr(head, name, RowLinear([layer.weight.detach().bfloat16()]))


@dataclass(frozen=True, eq=False, slots=True)
class HeadDrafting:
    """A drafter ready to draft beside a target that keeps its features. `worth`: what is known, by
    rules, of what it brings and takes; kept from run to run."""

    learned: LearnedDrafter
    passes: HeadPasses
    target: Target
    worth: dict[ScoreRules, Worth] = field(default_factory=dict)

    def drafter(self, inner: Drafter, budget: AutoBudget | None, rules: ScoreRules) -> HeadDrafter:
        """One that draws into the trees of `inner`; `rules` as `HeadDrafter` takes them. With a
        `budget` it drafts while that pays at the budget's pace."""
        info, tokens = self.learned.info, self.learned.tokens.cpu().numpy()
        weights = None if info.mixing is None else np.array(info.mixing["weights"])
        worth = None
        if budget is not None:
            worth = self.worth.setdefault(rules, Worth(info.levels, budget.rate))
            worth.rate = budget.rate
        return HeadDrafter(
            inner, self.passes, self.target, tokens, info.levels,
            weights=weights, worth=worth, rules=rules,
            set_aside=budget.set_aside if budget else None,
        )  # fmt: skip


def drafting_with(learned: LearnedDrafter, target: Target) -> HeadDrafting:
    """Let the target keep its features, and the head use its embeddings.

    Raises UnsupportedModelError for a target whose features cannot be had.
    """
    target.keep_features()
    embed = cast(Any, target.model.get_input_embeddings())
    return HeadDrafting(learned, HeadPasses(learned.head, embed, learned.output), target)
