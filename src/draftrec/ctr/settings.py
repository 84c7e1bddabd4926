"""Settings of training, apart from PyTorch, which takes seconds to load."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from draftrec.config import Auto, Size
from draftrec.knobs import knob

Backbone = Literal[
    "din", "dien", "dcn", "dcnv2", "deepfm", "xdeepfm", "autoint", "fibinet", "fignn"
]
Adaptor = Literal["none", "moe", "hea", "mlp", "contrastive"]


@dataclass(frozen=True, slots=True)
class FitSettings:
    """Learning rates and batch sizes are tried in all combinations. `size`: of embeddings.
    `patience`: epochs without a better validation AUC before training ends. `contrast`: weight of
    the contrastive adaptor's loss. `dropout`: share of a knowledge vector's numbers that is zero in
    a training step, so that entities are not learnt by heart (validation AUC of DeepFM with mlp on
    MovieLens-100K, random vectors for users: 0.700 without, 0.704 with; counts of genres for users:
    0.704 and 0.715)."""

    learning_rates: Annotated[
        tuple[float, ...], knob("Learning rate; repeat it to choose on validation.")
    ] = (5e-4,)
    batch_sizes: Annotated[
        tuple[Annotated[int, Field(ge=2)], ...],
        knob("Batch size; repeat it to choose on validation."),
    ] = (512,)
    size: Annotated[int, knob("Numbers per embedding, even.", ge=2)] = 32
    epochs: Annotated[int, knob("Most passes over the training samples.", ge=1)] = 20
    patience: Annotated[
        int, knob("Epochs without a better validation AUC before the end.", ge=1)
    ] = 3
    weight_decay: Annotated[float, knob("Weight decay of AdamW.", ge=0)] = 1e-2
    contrast: Annotated[float, knob("Weight of the loss of --adaptor contrastive.", ge=0)] = 0.1
    dropout: Annotated[
        float, knob("Share of a vector that is zeroed in training.", ge=0, le=0.95)
    ] = 0.5


@dataclass(frozen=True, kw_only=True)
class StudyRun:
    """What is trained, each with `seeds` seeds."""

    models: Annotated[
        tuple[Backbone, ...], knob("Click model; may be repeated [default: din].")
    ] = ("din",)
    adaptors: Annotated[
        tuple[Adaptor, ...],
        knob(
            "How vectors enter: moe (KAR and TRAWL as in DARE), hea (KAR), mlp (ONCE), contrastive "
            "(RLMRec), none; may be repeated [default: none]."
        ),
    ] = ("none",)
    seeds: Annotated[int, knob("Runs of each model and adaptor.", ge=1)] = 5
    workers: Annotated[Size | Auto, knob("Processes side by side; auto: one per core.")] = "auto"
