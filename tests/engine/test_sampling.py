"""Choosing tokens: greedy ties, the nucleus of transformers, draws and what is foreseen of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numba import njit
from scipy import stats
from transformers import TemperatureLogitsWarper, TopPLogitsWarper

from draftrec.engine import sampling
from draftrec.engine.noise import foreseen, noise_of, place_of, uniform
from draftrec.engine.sampling import Warping


def random_logits(seed: int, rows: int = 1, vocabulary: int = 12) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(rows, vocabulary, generator=generator)


def draws(
    logits: torch.Tensor, count: int, warping: Warping | None = None, seed: int = 0
) -> torch.Tensor:
    """int64 `[count]`: what one row of logits gives at the first places of a text."""
    noise = torch.full((count,), noise_bits(seed))
    scores = (warping or Warping())(logits.expand(count, -1))
    return sampling.draw(scores, noise, torch.arange(count))


def noise_bits(seed: int, key: int = 0) -> int:
    noise = noise_of(seed, key)
    return noise - 2**64 if noise >= 2**63 else noise


def p_value(drawn: torch.Tensor, probs: torch.Tensor) -> float:
    """Chi-square of draws against a distribution; 0 where an impossible one was drawn."""
    seen = torch.bincount(drawn, minlength=len(probs)).double().numpy()
    wanted = probs.double().numpy() * len(drawn)
    if seen[wanted == 0].any():
        return 0.0
    rare = wanted < 5
    observed, expected = seen[~rare], wanted[~rare]
    if wanted[rare].sum() >= 5:
        observed = np.append(observed, seen[rare].sum())
        expected = np.append(expected, wanted[rare].sum())
    return float(stats.chisquare(observed, expected * observed.sum() / expected.sum()).pvalue)


WARPINGS = {
    "none": Warping(),
    "cold": Warping(temperature=0.7),
    "top-k": Warping(top_k=7),
    "top-p": Warping(top_p=0.85),
    "min-p": Warping(temperature=1.3, min_p=0.05),
    "typical": Warping(typical_p=0.8),
}


@pytest.fixture(params=[64, 3, 1])
def head(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many tokens compete by themselves."""
    monkeypatch.setattr(sampling, "HEAD", request.param)
    return request.param


@given(st.integers(0, 500), st.sampled_from([0.05, 0.3, 0.6, 0.9]), st.sampled_from([0.5, 1.0]))
def test_nucleus_is_the_one_transformers_keeps(seed: int, top_p: float, temperature: float) -> None:
    logits = random_logits(seed)
    warped = TemperatureLogitsWarper(temperature)(torch.empty(0), logits)
    kept = torch.isfinite(TopPLogitsWarper(top_p)(torch.empty(0), warped))[0]
    found = draws(logits, 4000, Warping(temperature=temperature, top_p=top_p))
    reached = torch.bincount(found, minlength=12) > 0
    probs = torch.softmax(warped, -1)[0]
    assert not (reached & ~kept).any()
    # what so many draws must hit
    assert not (kept & ~reached & (probs > 1e-2)).any()


@pytest.mark.parametrize("name", WARPINGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_draws_follow_the_distribution(name: str, dtype: torch.dtype, head: int) -> None:
    """Also where most of it belongs to tokens that compete together (40, the head of 1 or 3)."""
    logits = random_logits(1, vocabulary=40).to(dtype) / 2
    probs = torch.softmax(WARPINGS[name](logits), -1)[0]
    assert p_value(draws(logits, 20_000, WARPINGS[name], seed=head), probs) > 1e-4


@pytest.mark.parametrize("by", ["place", "key"])
def test_successive_draws_are_independent(by: str, head: int) -> None:
    """Tokens of neighbouring places of a text, and of the same place in texts of neighbouring
    keys."""
    logits, count = random_logits(4, vocabulary=8) / 2, 40_000
    if by == "place":
        drawn = draws(logits, count, seed=head).reshape(-1, 2)
    else:
        noise = torch.tensor([noise_bits(head, key) for key in range(count)])
        drawn = sampling.draw(logits.expand(count, -1), noise, torch.zeros_like(noise))
        drawn = drawn.reshape(-1, 2)
    probs = torch.softmax(logits, -1)[0]
    both = (probs[:, None] * probs).flatten()
    assert p_value(drawn[:, 0] * 8 + drawn[:, 1], both) > 1e-4


def test_rows_are_drawn_independently(head: int) -> None:
    """A row's token depends on its own logits, noise and place, whatever else is in the batch."""
    logits = random_logits(2, rows=16, vocabulary=30)
    logits[8:] = logits[8:].round()  # many tie
    noise = torch.tensor([noise_bits(3, key) for key in range(16)])
    for warping in WARPINGS.values():
        together = sampling.draw(warping(logits), noise, torch.arange(16))
        alone = [
            sampling.draw(warping(logits[i : i + 1]), noise[i : i + 1], torch.tensor([i]))
            for i in range(16)
        ]
        assert together.tolist() == torch.cat(alone).tolist()
        assert len(set(together.tolist())) > 1


def test_where_tokens_tie_it_does_not_matter_which_are_found(
    head: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that tie with the first token beyond the head are left out of it: on a GPU, which of them
    `topk` finds depends on how many rows there are."""
    logits = torch.zeros(1, 80)
    logits[0, [5, 9]] = 2.0
    drawn = draws(logits, 30_000)
    assert p_value(drawn, torch.softmax(logits, -1)[0]) > 1e-4
    topk = torch.Tensor.topk

    def last_found(self: torch.Tensor, k: int, dim: int) -> tuple[torch.Tensor, torch.Tensor]:
        values, ids = topk(self.flip(-1), k, dim)
        return values, self.shape[-1] - 1 - ids

    monkeypatch.setattr(torch.Tensor, "topk", last_found)
    assert torch.equal(draws(logits, 30_000), drawn)


def test_impossible_tokens_are_never_drawn(head: int) -> None:
    """Neither before the first nor after the last token that has any weight."""
    logits = torch.full((1, 100), -float("inf"))
    logits[0, 2:4] = 0.0
    assert set(draws(logits, 500).tolist()) == {2, 3}
    logits[0, 3] = -float("inf")
    assert set(draws(logits, 500).tolist()) == {2}


def test_low_temperature_is_greedy(head: int) -> None:
    logits = random_logits(3, rows=50)
    noise = torch.tensor([noise_bits(0, key) for key in range(50)])
    drawn = sampling.draw(Warping(temperature=1e-4)(logits), noise, torch.zeros_like(noise))
    assert torch.equal(drawn, sampling.greedy(logits))


def test_drafters_and_the_target_see_the_same_numbers() -> None:
    """The hash compiled for drafters has the bits of the one in torch."""
    random = np.random.default_rng(0)
    noise = random.integers(0, 2**64, 500, np.uint64)
    noise[:2] = 0, 2**64 - 1
    positions = random.integers(0, 1 << 20, 500)
    tokens = random.integers(-1, 262_144, (500, 7))
    places = sampling._places(torch.from_numpy(noise.view(np.int64)), torch.from_numpy(positions))
    in_torch = sampling._uniforms(places, torch.from_numpy(tokens)).numpy()
    compiled = np.empty_like(in_torch)
    _uniforms(noise, positions, tokens, compiled)
    assert (in_torch == compiled).all()
    assert 0 < in_torch.min() < in_torch.max() < 1


@njit
def _uniforms(noise: Any, positions: Any, tokens: Any, out: Any) -> None:
    for row in range(len(noise)):
        place = place_of(noise[row], positions[row])
        for i in range(tokens.shape[1]):
            out[row, i] = uniform(place, tokens[row, i])


def test_candidates_are_foreseen_by_the_noise() -> None:
    """The definition, written out; and where probabilities are the target's, the one that is drawn
    is foreseen."""
    random = np.random.default_rng(1)
    for key in range(200):
        probs, ids = random.dirichlet(np.ones(9)), random.permutation(1000)[:9]
        noise = noise_of(5, key)
        own = np.array([uniform_of(noise, 3, int(i)) for i in ids])
        wanted = probs[:7] / (-np.log(own[:7])) ** 0.6
        wanted /= wanted.sum() + probs[7:].sum()
        found = foreseen(probs[:7].astype(np.float64), ids[:7], probs[7:].sum(), noise, 3)
        np.testing.assert_allclose(found, wanted, rtol=1e-12)
        scores = torch.full((1, 1000), -torch.inf)
        scores[0, ids] = torch.from_numpy(np.log(probs)).float()
        drawn = sampling.draw(scores, torch.tensor([noise_bits(5, key)]), torch.tensor([3]))
        sure = foreseen(probs, ids, 0.0, noise, 3, belief=1.0, sharpness=50.0)
        assert ids[sure.argmax()] == int(drawn[0])


def uniform_of(noise: int, position: int, token: int) -> float:
    """splitmix64, written out in whole numbers."""

    def mixed(state: int) -> int:
        state &= 2**64 - 1
        state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        state = (state ^ (state >> 27)) * 0x94D049BB133111EB % 2**64
        return state ^ (state >> 31)

    golden = 0x9E3779B97F4A7C15
    bits = mixed(mixed(noise + golden * (position + 1)) + golden * (token + 3))
    return ((bits >> 12) + 0.5) / 2**52


def test_nothing_is_foreseen_of_nothing() -> None:
    noise = noise_of(0, 0)
    assert len(foreseen(np.empty(0), np.empty(0, np.int32), 1.0, noise, 0)) == 0
    assert foreseen(np.zeros(2), np.arange(2), 0.0, noise, 0).tolist() == [0.0, 0.0]
    assert foreseen(np.array([0.4]), np.array([-1]), 0.6, noise, 0).tolist() == [0.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_greedy_takes_the_smallest_id_among_equals(dtype: torch.dtype) -> None:
    logits = torch.zeros(3, 500, dtype=dtype)
    logits[0, [400, 30, 77]] = 1.0
    logits[1, 499] = 1.0
    found = sampling.greedy(logits)
    assert found.tolist() == [30, 499, 0]
    assert found.dtype == torch.int64


@given(seed=st.integers(0, 300), k=st.integers(1, 15), tied=st.booleans())
def test_most_probable_are_the_largest_with_the_greedy_first(
    seed: int, k: int, *, tied: bool
) -> None:
    logits = random_logits(seed, rows=4)
    if tied:
        logits = (logits > 1).float()
    values, ids = sampling.most_probable(logits, k)
    width = min(k, 12)
    assert values.shape == ids.shape == (4, width)
    log_probs = torch.log_softmax(logits, -1)
    torch.testing.assert_close(values, log_probs.sort(-1, descending=True).values[:, :width])
    torch.testing.assert_close(log_probs.gather(-1, ids), values)
    assert torch.equal(ids[:, 0], sampling.greedy(logits))
    assert torch.equal(ids, logits.sort(dim=-1, descending=True, stable=True).indices[:, :width])
