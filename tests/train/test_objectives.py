"""Objectives: values against slow loops, gradients, and where they are least."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from draftrec.errors import DraftrecError
from draftrec.train import objectives
from draftrec.train.settings import ObjectiveSettings

ROWS, CODES = 5, 7
SETTINGS = ObjectiveSettings(top_k=3, beta=0.7)
Loss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def density_free(q: torch.Tensor, p: torch.Tensor, legal: torch.Tensor, w: torch.Tensor):
    return objectives.atspeed_s(q, p, legal, w, ObjectiveSettings(top_k=3, beta=0.0))


LOSSES: dict[str, Loss] = {
    "wordkd": objectives.word_kd,
    "tvd": objectives.total_variation,
    "tvd-tau": lambda q, p, legal, w: objectives.total_variation(q, p, legal, w, 0.5),
    "s": lambda q, p, legal, w: objectives.atspeed_s(q, p, legal, w, SETTINGS),
    "s-sharp": lambda q, p, legal, w: objectives.atspeed_s(
        q, p, legal, w, ObjectiveSettings(top_k=4, beta=1.0, sharpen=0.3)
    ),
    "s-without-density": density_free,
}


def drawn(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits of both, float64, a ragged legal set, and weights, one of them zero."""
    rng = np.random.default_rng(seed)
    z_q, z_p = (torch.from_numpy(rng.normal(0, 2, (ROWS, CODES))) for _ in range(2))
    legal = torch.ones(ROWS, CODES, dtype=torch.bool)
    legal[1, 4:] = False
    legal[3, 1:] = False  # a single legal code
    weights = torch.tensor([1.0, 3.0, 0.0, 2.0, 1.0], dtype=torch.float64)
    return z_q, z_p, legal, weights


def softmax(values: list[float]) -> list[float]:
    top = max(values)
    powers = [math.exp(v - top) for v in values]
    return [x / sum(powers) for x in powers]


def by_loop(name: str, z_q: np.ndarray, z_p: np.ndarray) -> float:
    """One row with all codes legal, straight from the formulas."""
    tau = 0.5 if name == "tvd-tau" else 1.0
    q, p = softmax([z / tau for z in z_q]), softmax([z / tau for z in z_p])
    if name == "wordkd":
        return sum(b * math.log(b / a) for a, b in zip(q, p, strict=True))
    if name.startswith("tvd"):
        return 0.5 * sum(abs(a - b) for a, b in zip(q, p, strict=True))
    k, beta = {"s": (3, 0.7), "s-sharp": (4, 1.0), "s-without-density": (3, 0.0)}[name]
    best = sorted(range(len(q)), key=lambda v: -q[v])[:k]
    inside_q, inside_p = [q[v] for v in best], [p[v] for v in best]
    if name == "s-sharp":
        inside_q = softmax([x / 0.3 for x in inside_q])
        inside_p = softmax([x / 0.3 for x in inside_p])
    else:
        inside_q = [x / sum(inside_q) for x in inside_q]
        inside_p = [x / sum(inside_p) for x in inside_p]
    divergence = sum(a * math.log(a / b) for a, b in zip(inside_q, inside_p, strict=True))
    entropy = -sum(a * math.log(a) for a in inside_q if a > 0)
    return divergence + beta * inside_p[-1] * entropy


@pytest.mark.parametrize("name", LOSSES)
def test_values_are_those_of_the_formulas(name: str):
    for seed in range(3):
        z_q, z_p, legal, weights = drawn(seed)
        expected = 0.0
        for row in range(ROWS):
            kept = legal[row].numpy()
            if name.startswith("s") and kept.sum() < 4 and weights[row]:
                weights[row] = 0.0  # the loop above knows no level with fewer codes than K
            value = by_loop(name, z_q[row].numpy()[kept], z_p[row].numpy()[kept])
            expected += float(weights[row]) * value
        found = LOSSES[name](z_q, z_p, legal, weights)
        assert float(found) == pytest.approx(expected / float(weights.sum()), rel=1e-9)


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_right_and_nothing_flows_into_the_target(name: str):
    z_q, z_p, legal, weights = drawn()
    z_q.requires_grad_(True)
    assert torch.autograd.gradcheck(lambda z: LOSSES[name](z, z_p, legal, weights), z_q)
    z_p.requires_grad_(True)
    LOSSES[name](z_q, z_p, legal, weights).backward()
    assert z_p.grad is None
    assert z_q.grad is not None
    assert torch.isfinite(z_q.grad).all()
    assert not z_q.grad[~legal].any(), "what is not legal does not move"
    assert not z_q.grad[2].any(), "a row without weight does not count"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["wordkd", "tvd", "tvd-tau", "s-without-density"])
def test_they_are_zero_where_draft_and_target_agree_and_descend_there(name: str):
    z_q, z_p, legal, weights = drawn()
    loss = LOSSES[name]
    assert float(loss(z_p, z_p, legal, weights)) == pytest.approx(0, abs=1e-12)
    assert float(loss(z_q, z_p, legal, weights)) > 0.01
    z = z_q.clone().requires_grad_(True)
    optimizer = torch.optim.Adam([z], lr=0.05)
    for _ in range(400):
        optimizer.zero_grad()
        value = loss(z, z_p, legal, weights)
        value.backward()
        optimizer.step()
    assert float(value.detach()) < 0.02 * float(loss(z_q, z_p, legal, weights))


def test_atspeed_s_raises_the_draft_codes_that_the_target_prefers():
    z_q = torch.tensor([[1.0, 0.9, 0.8, -3.0]], requires_grad=True)
    z_p = torch.tensor([[0.0, 2.0, 0.0, 5.0]])
    legal = torch.ones(1, 4, dtype=torch.bool)
    objectives.atspeed_s(z_q, z_p, legal, torch.ones(1), ObjectiveSettings(top_k=3)).backward()
    assert z_q.grad is not None
    assert z_q.grad[0, 1] < 0 < min(z_q.grad[0, 0], z_q.grad[0, 2])
    assert abs(z_q.grad[0, 3]) < 1e-6, "renormalised: codes outside the draft's top K do not move"


def test_the_density_term_draws_probability_together():
    z_p = torch.zeros(1, 4)
    legal = torch.ones(1, 4, dtype=torch.bool)
    flat = torch.tensor([[0.3, 0.1, 0.0, -0.2]], requires_grad=True)
    with_density, without = (
        torch.autograd.grad(
            objectives.atspeed_s(flat, z_p, legal, torch.ones(1), ObjectiveSettings(beta=beta)),
            flat,
        )[0][0, 0]
        for beta in (3.0, 0.0)
    )
    assert with_density < without, "the first code rises"


def test_token_loss_is_a_weighted_mean_and_zero_without_rows():
    logits = torch.tensor([[0.0, math.log(3.0)], [0.0, 0.0]])
    loss = objectives.token_loss(logits, torch.tensor([1, 0]), torch.tensor([3.0, 1.0]))
    assert float(loss) == pytest.approx((3 * math.log(4 / 3) + math.log(2)) / 4)
    assert float(objectives.mean(torch.ones(2), torch.zeros(2))) == 0


def test_soft_labels_are_a_divergence_over_the_whole_vocabulary():
    z_q, z_p, _, weights = drawn()
    codes = torch.tensor([[0, 2, 5, -1]] * ROWS)
    log_p = z_p.gather(1, codes.clamp_min(0)).log_softmax(-1)
    log_p[:, 3] = -torch.inf
    q = z_q.log_softmax(-1)
    rows = [
        sum(float(log_p[r, i].exp() * (log_p[r, i] - q[r, c])) for i, c in enumerate((0, 2, 5)))
        for r in range(ROWS)
    ]
    expected = sum(float(w) * row for w, row in zip(weights, rows, strict=True))
    found = objectives.soft_token_loss(z_q, codes, log_p, weights)
    assert float(found) == pytest.approx(expected / float(weights.sum()))
    z_q.requires_grad_(True)
    assert torch.autograd.gradcheck(
        lambda z: objectives.soft_token_loss(z, codes, log_p, weights), z_q
    )


def test_half_precision_logits_are_computed_in_float32():
    z_q, z_p, legal, weights = drawn()
    for name, loss in LOSSES.items():
        found = loss(z_q.half(), z_p.half(), legal, weights.float())
        assert found.dtype == torch.float32, name
        assert float(found) == pytest.approx(float(loss(z_q, z_p, legal, weights)), rel=0.02)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"objective": "kd"}, "--objective must be one of sft"),
        ({"alpha": 1.5}, "--alpha must be"),
        ({"soft": -0.1}, "--soft must be"),
        ({"tau": 0.0}, "--tau must be"),
        ({"sharpen": 0.0}, "--sharpen must be"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes: dict[str, object], words: str):
    with pytest.raises(DraftrecError, match=words):
        ObjectiveSettings(**changes)
