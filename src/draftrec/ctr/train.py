"""Training: chosen on validation AUC alone, tested once."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import torch
from sklearn.metrics import log_loss, roc_auc_score
from torch import Tensor, nn

from draftrec.core import FloatArray
from draftrec.ctr.features import Inputs, Part
from draftrec.ctr.model import ClickModel
from draftrec.ctr.settings import FitSettings

_SCORED_AT_ONCE = 8192


@dataclass(frozen=True, slots=True)
class Scores:
    """Area under the ROC curve and mean negative log-likelihood in nats."""

    auc: float
    logloss: float


@dataclass(frozen=True, eq=False, slots=True)
class _Fitted:
    model: ClickModel
    valid: Scores
    best_epoch: int
    epochs: int
    lr: float
    batch_size: int


def train_and_test(
    inputs: Inputs, model: str, adaptor: str, seed: int, settings: FitSettings
) -> dict[str, Any]:
    """Train one click model for each cell of the grid, test the one with the best validation AUC.

    `seed` decides initial weights and batches; equal arguments give equal results on one thread.
    Returns `lr` and `batch_size` (the chosen ones), `valid_auc`, `valid_logloss`, `auc`,
    `logloss`, `best_epoch` (from 1), `epochs` (done), `weights` (trained numbers).
    """
    best: _Fitted | None = None
    for lr, batch_size in product(settings.learning_rates, settings.batch_sizes):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            fresh = ClickModel(inputs, model, adaptor, settings.size, settings.dropout)
            fitted = _fit(fresh, inputs, lr, batch_size, settings)
        if best is None or fitted.valid.auc > best.valid.auc:
            best = fitted
    assert best is not None
    test = score(best.model, inputs.test)
    return {
        "lr": best.lr,
        "batch_size": best.batch_size,
        "valid_auc": best.valid.auc,
        "valid_logloss": best.valid.logloss,
        "auc": test.auc,
        "logloss": test.logloss,
        "best_epoch": best.best_epoch,
        "epochs": best.epochs,
        "weights": best.model.weights,
    }


def score(model: ClickModel, part: Part) -> Scores:
    """AUC and LogLoss of a model on one part."""
    clicks = 1 / (1 + np.exp(-predict(model, part).astype(np.float64)))
    return Scores(float(roc_auc_score(part.labels, clicks)), float(log_loss(part.labels, clicks)))


def predict(model: ClickModel, part: Part) -> FloatArray:
    """Logits, float32 `[n]`."""
    model.eval()
    with torch.inference_mode():
        blocks = [model(*block)[0] for block in zip(*map(_blocks, _tensors(part)), strict=True)]
    return torch.cat(blocks).numpy()


def _fit(
    model: ClickModel, inputs: Inputs, lr: float, batch_size: int, settings: FitSettings
) -> _Fitted:
    """Train until validation AUC stops rising; the weights are those of the best epoch."""
    steps = -(-len(inputs.train.labels) // batch_size)
    optimizer = torch.optim.AdamW(model.parameters(), lr, weight_decay=settings.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps * settings.epochs)
    best, best_epoch, kept, epoch = Scores(-1.0, float("inf")), 0, {}, 0
    while epoch < settings.epochs and epoch - best_epoch < settings.patience:
        epoch += 1
        _epoch(model, inputs.train, batch_size, (optimizer, schedule), settings.contrast)
        found = score(model, inputs.valid)
        if found.auc > best.auc:
            best, best_epoch = found, epoch
            kept = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(kept)
    return _Fitted(model, best, best_epoch, epoch, lr, batch_size)


def _epoch(
    model: ClickModel, part: Part, batch_size: int, optimising: tuple[Any, Any], contrast: float
) -> None:
    """One pass over the training samples in a new order."""
    model.train()
    optimizer, schedule = optimising
    inputs, labels = _tensors(part), torch.from_numpy(part.labels)
    criterion = nn.BCEWithLogitsLoss()
    for rows in torch.randperm(len(labels)).split(batch_size):
        logits, alignment = model(*(values[rows] for values in inputs))
        loss = criterion(logits, labels[rows]) + contrast * alignment
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()


def _tensors(part: Part) -> tuple[Tensor, Tensor, Tensor]:
    users, items, sequence = map(torch.from_numpy, (part.users, part.items, part.sequence))
    return users, items, sequence


def _blocks(values: Tensor) -> tuple[Tensor, ...]:
    return values.split(_SCORED_AT_ONCE)
