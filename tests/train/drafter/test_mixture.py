"""Weights for what a head and a pool say together: what was said, and what it was worth."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from draftrec.core import ALL
from draftrec.engine.learned.growth import DEFAULT
from draftrec.engine.learned.rules import ScoreRules
from draftrec.engine.tree import make_tree
from draftrec.train.drafter.fit import Observations, fit_mixture, mixture_of, observations_of
from draftrec.train.drafter.texts import TrainingText

TOKENS = np.array([5, 7, 9], np.int32)


def known() -> np.ndarray:
    found = np.full(12, -1, np.int32)
    found[TOKENS] = np.arange(3)
    return found


def log_odds(p: float) -> float:
    return float(np.log(p / (1 - p)))


def test_what_is_said_follows_the_text_down_the_tree() -> None:
    tree = make_tree([7, 2, 9], [-1, -1, 0], [0.5, 0.2, 0.4], [ALL] * 3)
    probs = np.array([[0.1, 0.7, 0.2], [0.6, 0.3, 0.1], [0.2, 0.2, 0.6]])
    first, second, third = observations_of(
        tree, probs, TOKENS, known(), np.array([7, 5, 9], np.int32)
    )
    assert first.cases.tolist() == [0, 2, 1, 1]  # 7: both, 2: the pool's, then 9 and 5: the head's
    assert first.came.tolist() == [True, False, False, False]
    np.testing.assert_allclose(first.inputs[0], [1, log_odds(0.5), log_odds(0.7)], rtol=1e-6)
    np.testing.assert_allclose(first.inputs[1], [1, log_odds(0.2), 0], rtol=1e-6)
    np.testing.assert_allclose(first.inputs[2], [1, log_odds(0.2), log_odds(0.3)], rtol=1e-5)
    # Below 7 the pool gives 9 four fifths; what came is 5, where it leaves the tree.
    np.testing.assert_allclose(second.inputs[0], [1, log_odds(0.8), log_odds(0.1)], rtol=1e-5)
    assert second.came.tolist() == [False, True, False]
    assert third.cases.tolist() == [1, 1, 1]
    assert third.inputs[0, 2] == pytest.approx(log_odds(1 - 1e-4))


def test_the_weights_are_those_that_texts_were_drawn_by() -> None:
    rng = np.random.default_rng(0)
    truth = np.array([-0.5, 0.9, 0.4])
    inputs = np.column_stack([np.ones(40_000), rng.normal(-2, 2, (40_000, 2))])
    came = rng.random(40_000) < 1 / (1 + np.exp(-inputs @ truth))
    said = Observations(inputs, np.zeros(40_000, np.int32), came)
    weights = fit_mixture([[said]], levels=2)
    np.testing.assert_allclose(weights[0, :3], truth, atol=0.06)
    np.testing.assert_array_equal(weights[0, 3:], DEFAULT[3:])
    np.testing.assert_array_equal(weights[1], DEFAULT)


def test_rare_and_certain_things_do_not_lead_it_astray() -> None:
    inputs = np.column_stack([np.ones(3000), np.full((3000, 2), -9.0)])
    inputs[0, 1:] = 9.0
    came = np.zeros(3000, np.bool_)
    came[0] = True
    weights = fit_mixture([[Observations(inputs, np.ones(3000, np.int32), came)]], levels=1)
    assert np.isfinite(weights).all()
    assert 1 / (1 + np.exp(-inputs[1] @ weights[0, 3:6])) < 0.01


def test_who_knows_the_texts_is_believed() -> None:
    """A head that always says what comes, and one that says anything else, beside one pool."""
    rng = np.random.default_rng(1)
    tokens = np.arange(10, dtype=np.int32)
    ids = [np.array([11, 12, *rng.integers(0, 10, 40)], np.int32) for _ in range(6)]
    texts = [TrainingText(str(i), x, 2, ScoreRules()) for i, x in enumerate(ids)]

    def says(text: TrainingText, *, right: bool) -> np.ndarray:
        written = text.ids[2:]
        said = written if right else (written + 1 + rng.integers(0, 9, 40)) % 10
        probs = np.full((2, 40, 10), 0.1 / 9)
        probs[:, np.arange(40), said] = 0.9
        return probs

    for right in (True, False):
        along = [(text, partial(says, text, right=right)) for text in texts[3:]]
        weights = mixture_of(texts[:3], along, tokens, levels=2)
        assert weights.shape == (2, 8)
        likely = weights[0, 3:6] @ [1.0, log_odds(0.9), log_odds(0.5)]
        unlikely = weights[0, 3:6] @ [1.0, log_odds(0.01), log_odds(0.5)]
        assert (likely > 0 > unlikely) if right else (likely < 0)
