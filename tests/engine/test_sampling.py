"""Choosing tokens: greedy ties, the nucleus of transformers, and draws that invert a CDF."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import TemperatureLogitsWarper, TopPLogitsWarper

from draftrec.engine import sampling
from draftrec.engine.warping import Warping


def random_logits(seed: int, rows: int = 1, vocabulary: int = 12) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(rows, vocabulary, generator=generator)


def sample(
    logits: torch.Tensor, uniforms: torch.Tensor, temperature: float, top_p: float
) -> torch.Tensor:
    return sampling.draw(Warping(temperature=temperature, top_p=top_p)(logits), uniforms)


def reachable(logits: torch.Tensor, temperature: float, top_p: float) -> torch.Tensor:
    """bool `[V]`: tokens that some uniform leads to, one row of logits."""
    uniforms = torch.linspace(0, 1, 4001, dtype=torch.float64)[:-1]
    drawn = sample(logits.expand(len(uniforms), -1), uniforms, temperature, top_p)
    return torch.bincount(drawn, minlength=logits.shape[-1]) > 0


@given(st.integers(0, 500), st.sampled_from([0.05, 0.3, 0.6, 0.9]), st.sampled_from([0.5, 1.0]))
def test_nucleus_is_the_one_transformers_keeps(seed: int, top_p: float, temperature: float) -> None:
    logits = random_logits(seed)
    warped = TemperatureLogitsWarper(temperature)(torch.empty(0), logits)
    kept = torch.isfinite(TopPLogitsWarper(top_p)(torch.empty(0), warped))[0]
    found = reachable(logits, temperature, top_p)
    probs = torch.softmax(warped, -1)[0]
    assert not (found & ~kept).any()
    # what the grid of uniforms must hit: anything wider than its step
    assert not (kept & ~found & (probs > 1e-3)).any()


@pytest.mark.parametrize("top_p", [1.0, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_even_uniforms_draw_in_proportion(top_p: float, dtype: torch.dtype) -> None:
    logits = random_logits(1).to(dtype)
    uniforms = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    drawn = sample(logits.expand(20_000, -1), uniforms, 0.7, top_p)
    warped = TemperatureLogitsWarper(0.7)(torch.empty(0), logits.float())
    if top_p < 1:
        warped = TopPLogitsWarper(top_p)(torch.empty(0), warped)
    expected = torch.softmax(warped, -1)[0]
    share = torch.bincount(drawn, minlength=12) / 20_000
    torch.testing.assert_close(share, expected, rtol=0, atol=2e-3)


def test_rows_are_drawn_independently() -> None:
    """A row's token depends on its own logits and uniform, whatever else is in the batch."""
    logits = random_logits(2, rows=8)
    uniforms = torch.linspace(0.01, 0.99, 8, dtype=torch.float64)
    for top_p in (1.0, 0.8):
        together = sample(logits, uniforms, 1.0, top_p)
        alone = [sample(logits[i : i + 1], uniforms[i : i + 1], 1.0, top_p) for i in range(8)]
        assert together.tolist() == torch.cat(alone).tolist()
        assert len(set(together.tolist())) > 1


@pytest.mark.parametrize("top_p", [1.0, 0.5])
@pytest.mark.parametrize("uniform", [0.0, 0.5, float(np.nextafter(1.0, 0.0))])
def test_impossible_tokens_are_never_drawn(top_p: float, uniform: float) -> None:
    """Neither before the first nor after the last token that has any weight."""
    logits = torch.full((1, 6), -float("inf"))
    logits[0, 2:4] = 0.0
    drawn = sample(logits, torch.tensor([uniform], dtype=torch.float64), 1.0, top_p)
    assert int(drawn[0]) in (2, 3)


def test_low_temperature_is_greedy() -> None:
    logits = random_logits(3, rows=50)
    uniforms = torch.rand(50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(sample(logits, uniforms, 1e-4, 1.0), sampling.greedy(logits))


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
    assert all(len(set(row)) == width for row in ids.tolist())
