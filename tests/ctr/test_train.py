"""Training: every backbone learns, knowledge helps where it must, selection sees no test data."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss, roc_auc_score

from draftrec.ctr.backbones import BACKBONES
from draftrec.ctr.features import FeatureSources, Inputs, prepare
from draftrec.ctr.model import (
    ADAPTORS,
    ClickModel,
    ContrastiveAdaptor,
    predict,
    score,
    train_and_test,
)
from draftrec.ctr.settings import FitSettings
from draftrec.data.events import CutSettings, EventColumns, cut_samples, read_events
from draftrec.errors import DraftrecError
from tests.ctr.world import World

FIT = FitSettings(learning_rates=(3e-3,), batch_sizes=(128,), size=8, epochs=6, dropout=0.0)


@pytest.fixture(scope="module")
def inputs(world: World) -> Inputs:
    events = read_events(str(world.interactions), EventColumns())
    samples = cut_samples(events, CutSettings())
    sources = FeatureSources(
        str(world.items),
        user_vectors=str(world.user_vectors),
        item_vectors=str(world.item_vectors),
    )
    return prepare(events, samples, sources, ("user_id", "item_id"), user_ids=False).inputs


@pytest.mark.slow
@pytest.mark.parametrize("backbone", list(BACKBONES))
def test_every_backbone_finds_what_the_vectors_say(inputs: Inputs, backbone: str) -> None:
    fit = replace(FIT, epochs=12)
    assert train_and_test(inputs, backbone, "moe", 0, fit)["auc"] > 0.9


@pytest.mark.slow
@pytest.mark.parametrize("adaptor", list(ADAPTORS))
def test_every_adaptor_is_worth_more_than_none(inputs: Inputs, adaptor: str) -> None:
    plain = train_and_test(inputs, "deepfm", "none", 0, FIT)
    found = train_and_test(inputs, "deepfm", adaptor, 0, FIT)
    assert found["auc"] > plain["auc"] + 0.05
    assert found["logloss"] < plain["logloss"]
    assert found["weights"] > plain["weights"]


@pytest.mark.slow
def test_equal_seeds_are_equal_runs(inputs: Inputs) -> None:
    fit = replace(FIT, epochs=2)
    first, again, other = (train_and_test(inputs, "din", "hea", s, fit) for s in (1, 1, 2))
    assert first == again
    assert first["logloss"] != other["logloss"]


def test_the_random_state_of_others_is_left_alone(inputs: Inputs) -> None:
    torch.manual_seed(5)
    train_and_test(inputs, "dcn", "none", 1, replace(FIT, epochs=1))
    after = torch.rand(1)
    torch.manual_seed(5)
    assert after == torch.rand(1)


@pytest.mark.slow
def test_labels_of_the_test_decide_nothing(inputs: Inputs) -> None:
    fit = replace(FIT, learning_rates=(1e-3, 1e-2), epochs=4)
    found = train_and_test(inputs, "deepfm", "mlp", 0, fit)
    flipped = replace(inputs, test=replace(inputs.test, labels=1 - inputs.test.labels))
    other = train_and_test(flipped, "deepfm", "mlp", 0, fit)
    assert other["auc"] == pytest.approx(1 - found["auc"])
    same = ("lr", "batch_size", "valid_auc", "valid_logloss", "best_epoch", "epochs")
    assert [other[name] for name in same] == [found[name] for name in same]


@pytest.mark.slow
def test_the_grid_is_chosen_on_validation(inputs: Inputs) -> None:
    grid = replace(FIT, learning_rates=(1e-7, 3e-3), batch_sizes=(64, 128), epochs=3)
    found = train_and_test(inputs, "deepfm", "moe", 0, grid)
    cells = [
        train_and_test(
            inputs, "deepfm", "moe", 0, replace(grid, learning_rates=(lr,), batch_sizes=(size,))
        )
        for lr in grid.learning_rates
        for size in grid.batch_sizes
    ]
    assert found == max(cells, key=lambda cell: cell["valid_auc"])
    assert found["lr"] == 3e-3


@pytest.mark.slow
def test_weights_are_those_of_the_best_epoch(inputs: Inputs) -> None:
    """A training that ends at its best epoch ends with the same weights, but for the schedule."""
    fit = replace(FIT, learning_rates=(0.05,), epochs=12, patience=12)
    found = train_and_test(inputs, "deepfm", "none", 0, fit)
    assert found["best_epoch"] < found["epochs"] == 12
    model = trained_until(inputs, fit, found["best_epoch"])
    assert score(model, inputs.test).auc == pytest.approx(found["auc"], abs=1e-6)


def trained_until(inputs: Inputs, fit: FitSettings, epochs: int) -> ClickModel:
    """The same training, plainly written, stopped after some epochs."""
    torch.manual_seed(0)
    model = ClickModel(inputs, "deepfm", "none", fit.size)
    (lr,), (size,) = fit.learning_rates, fit.batch_sizes
    steps = -(-len(inputs.train.labels) // size) * fit.epochs
    optimizer = torch.optim.AdamW(model.parameters(), lr, weight_decay=fit.weight_decay)
    labels, done = torch.from_numpy(inputs.train.labels), 0
    for _ in range(epochs):
        for rows in torch.randperm(len(labels)).split(size):
            optimizer.param_groups[0]["lr"] = lr * (1 + np.cos(np.pi * done / steps)) / 2
            part = inputs.train
            logits, _loss = model(
                *(torch.from_numpy(v)[rows] for v in (part.users, part.items, part.sequence))
            )
            optimizer.zero_grad()
            torch.nn.functional.binary_cross_entropy_with_logits(logits, labels[rows]).backward()
            optimizer.step()
            done += 1
    return model


def test_scores_are_those_of_scikit_learn(inputs: Inputs) -> None:
    model = ClickModel(inputs, "din", "moe", 8)
    clicks = torch.from_numpy(predict(model, inputs.valid)).double().sigmoid().numpy()
    found = score(model, inputs.valid)
    assert found.auc == roc_auc_score(inputs.valid.labels, clicks)
    assert found.logloss == pytest.approx(log_loss(inputs.valid.labels, clicks))


def test_a_training_that_diverged_says_so(inputs: Inputs) -> None:
    model = ClickModel(inputs, "din", "moe", 8)
    for weight in model.parameters():
        torch.nn.init.constant_(weight, float("nan"))
    with pytest.raises(DraftrecError, match=r"diverged.*smaller --lr"):
        score(model, inputs.valid)


@pytest.mark.parametrize("backbone", ["din", "dien", "deepfm"])
def test_padding_changes_nothing(inputs: Inputs, backbone: str) -> None:
    torch.manual_seed(0)
    model, part = ClickModel(inputs, backbone, "none", 8), inputs.valid
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    model.items.embed.weight.data[0] = 0  # type: ignore[union-attr]
    longer = np.pad(part.sequence, ((0, 0), (0, 3)))
    assert np.allclose(
        predict(model, part), predict(model, replace(part, sequence=longer)), atol=1e-5
    )
    others = np.roll(part.sequence, 7, axis=0)
    assert not np.allclose(predict(model, part), predict(model, replace(part, sequence=others)))


def test_the_contrastive_loss_counts_each_known_entity_once(inputs: Inputs) -> None:
    assert inputs.items.ids is not None
    assert inputs.items.vectors is not None
    ids, vectors = inputs.items.ids.copy(), inputs.items.vectors.copy()
    ids[3], vectors[4] = 0, 0  # a stranger, and one nobody wrote about
    model = ClickModel(replace(inputs, items=replace(inputs.items, ids=ids, vectors=vectors)),
                       "deepfm", "contrastive", 8)  # fmt: skip
    items = torch.tensor([1, 2, 1, 3, 4, 2])
    _, loss = model(torch.ones_like(items), items, torch.zeros(6, 5, dtype=torch.int64))
    assert isinstance(model.adaptor, ContrastiveAdaptor)
    kept = torch.tensor([1, 2])
    projected = model.adaptor.sides["item"](model.items.vectors[kept])
    expected = model.adaptor.alignment(projected, model.items.identity(kept))
    assert torch.allclose(loss, expected)
    assert loss > 0


@pytest.mark.slow
def test_the_contrastive_loss_has_its_weight(inputs: Inputs) -> None:
    light, heavy = (
        train_and_test(inputs, "deepfm", "contrastive", 0, replace(FIT, contrast=c, epochs=2))
        for c in (0.0, 2.0)
    )
    assert light["valid_logloss"] != heavy["valid_logloss"]


def test_dropout_is_for_training_only(inputs: Inputs) -> None:
    torch.manual_seed(0)
    model = ClickModel(inputs, "deepfm", "moe", 8, dropout=0.5)
    assert np.array_equal(predict(model, inputs.valid), predict(model, inputs.valid))
    model.train()
    rows = torch.arange(1, 9)
    one, other = (model(rows, rows, torch.zeros(8, 5, dtype=torch.int64))[0] for _ in range(2))
    assert not torch.equal(one, other)
    plain, dropped = (
        train_and_test(inputs, "deepfm", "moe", 0, replace(FIT, dropout=d, epochs=1))
        for d in (0.0, 0.5)
    )
    assert plain["valid_logloss"] != dropped["valid_logloss"]


def test_logits_of_any_size_are_scored(monkeypatch: pytest.MonkeyPatch, inputs: Inputs) -> None:
    logits = np.where(inputs.test.labels > 0, -900, 900).astype(np.float32)
    monkeypatch.setattr("draftrec.ctr.model.predict", lambda *_: logits)
    found = score(ClickModel(inputs, "din", "none", 8), inputs.test)
    assert (found.auc, found.logloss > 30) == (0.0, True)
