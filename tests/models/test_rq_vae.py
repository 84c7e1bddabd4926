"""RQ-VAE: it learns, it is repeatable, and it leaves other random numbers alone."""

from __future__ import annotations

import builtins
from typing import Any

import numpy as np
import pytest
import torch

from draftrec.errors import DraftrecError
from draftrec.items.quantise import relative_error
from draftrec.items.settings import QuantiseSettings, RqVaeSettings
from draftrec.models.rq_vae import fit_rq_vae

CPU = torch.device("cpu")
CODES = QuantiseSettings(levels=3, codes=8)


def vectors(n: int) -> np.ndarray:
    random = np.random.default_rng(0)
    middles = 3.0 * random.normal(size=(6, 12))
    return (middles[random.integers(0, 6, n)] + random.normal(size=(n, 12))).astype(np.float32)


def settings(epochs: int) -> RqVaeSettings:
    return RqVaeSettings(dim=4, hidden=(32,), epochs=epochs, learning_rate=5e-3)


@pytest.mark.slow
def test_training_rebuilds_vectors_better() -> None:
    pytest.importorskip("vector_quantize_pytorch")
    rows = vectors(300)
    before, after = (
        relative_error(rows, fit_rq_vae(rows, CODES, settings(epochs), CPU)[1])
        for epochs in (1, 80)
    )
    assert after < 0.5 < before


def test_the_same_seed_gives_the_same_codes() -> None:
    pytest.importorskip("vector_quantize_pytorch")
    rows = vectors(200)
    state = torch.random.get_rng_state()
    first, _ = fit_rq_vae(rows, CODES, settings(3), CPU)
    assert (torch.random.get_rng_state() == state).all()
    torch.rand(1)
    again, _ = fit_rq_vae(rows, CODES, settings(3), CPU)
    assert (first.codes == again.codes).all()
    assert first.codes.shape == (200, 3)
    assert len(np.unique(first.codes, axis=0)) == 200
    assert np.bincount(first.codes[:, 0]).max() <= CODES.cap(200)


def test_too_few_items_are_refused() -> None:
    with pytest.raises(DraftrecError, match="7 items are too few"):
        fit_rq_vae(vectors(7), CODES, settings(1), CPU)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "vector_quantize_pytorch":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(DraftrecError, match=r'install "draftrec\[sid\]"'):
        fit_rq_vae(vectors(20), CODES, settings(1), CPU)
