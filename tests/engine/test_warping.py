"""Cuts of a distribution against those of transformers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as tf

from draftrec.engine.sampling import Warping, _entropy

CUTS: dict[str, tuple[dict[str, Any], Callable[[], Any]]] = {
    "top_k": ({"top_k": 3}, lambda: tf.TopKLogitsWarper(3)),
    "top_k beyond": ({"top_k": 500}, lambda: tf.TopKLogitsWarper(500)),
    "top_p": ({"top_p": 0.7}, lambda: tf.TopPLogitsWarper(0.7)),
    "top_p wide": ({"top_p": 0.99}, lambda: tf.TopPLogitsWarper(0.99)),
    "top_p of nothing": ({"top_p": 0.0}, lambda: tf.TopPLogitsWarper(0.0)),
    "min_p": ({"min_p": 0.2}, lambda: tf.MinPLogitsWarper(0.2)),
    "typical_p": ({"typical_p": 0.6}, lambda: tf.TypicalLogitsWarper(0.6)),
    "epsilon": ({"epsilon_cutoff": 0.02}, lambda: tf.EpsilonLogitsWarper(0.02)),
    "eta": ({"eta_cutoff": 0.05}, lambda: tf.EtaLogitsWarper(0.05)),
    "top_h": ({"top_h": 0.5}, lambda: tf.TopHLogitsWarper(0.5)),
}


@pytest.mark.parametrize("scale", [0.1, 2.0, 8.0])
@pytest.mark.parametrize("name", CUTS)
def test_a_cut_is_the_one_transformers_makes(name: str, scale: float) -> None:
    logits = scale * torch.randn(50, 400, generator=torch.Generator().manual_seed(3))
    logits[::3, 7:11] = -torch.inf  # what a control has forbidden
    setting, make = CUTS[name]
    expected = make()(None, tf.TemperatureLogitsWarper(0.8)(None, logits.clone()))
    assert torch.equal(Warping(temperature=0.8, **setting)(logits), expected)
    assert Warping(**setting).cuts


def test_cuts_follow_one_another_in_transformers_order() -> None:
    logits = 3 * torch.randn(50, 400, generator=torch.Generator().manual_seed(4))
    config = tf.GenerationConfig(
        do_sample=True, temperature=1.3, top_k=40, top_p=0.9, min_p=0.02, typical_p=0.95,
        epsilon_cutoff=3e-3, eta_cutoff=3e-3, top_h=0.9,
    )  # fmt: skip
    names = ("top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff", "top_h")
    ours = Warping(temperature=1.3, **{n: getattr(config, n) for n in names})
    model = tf.LlamaForCausalLM(
        tf.LlamaConfig(
            vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
            num_attention_heads=1,
        )
    )  # fmt: skip
    theirs = model._get_logits_processor(config, input_ids_seq_length=1, device="cpu")
    assert torch.equal(ours(logits), theirs(torch.zeros(50, 1, dtype=torch.long), logits))


@pytest.mark.parametrize("name", CUTS)
def test_a_cut_does_not_depend_on_other_rows(name: str) -> None:
    """Many tokens tie in half precision; beside a flat row more of them are looked at."""
    random = torch.Generator().manual_seed(5)
    sharp = (3 * torch.randn(40, 3_000, generator=random)).bfloat16().float()
    flat = 0.01 * torch.randn(1, 3_000, generator=random)
    cut = Warping(**CUTS[name][0])
    alone = torch.cat([cut(row) for row in sharp.split(1)])
    assert torch.equal(cut(torch.cat([sharp, flat]))[:-1], alone)


def test_an_entropy_does_not_depend_on_other_rows() -> None:
    """Several threads share the sum of one row of a large vocabulary, and part many rows."""
    logits = 3 * torch.randn(8, 40_000, generator=torch.Generator().manual_seed(6))
    log_probs = logits.log_softmax(-1)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        together = _entropy(log_probs)
        alone = torch.cat([_entropy(row) for row in log_probs.split(1)])
    finally:
        torch.set_num_threads(before)
    assert torch.equal(together, alone)


def test_of_tokens_that_tie_where_top_p_ends_the_first_ones_stay() -> None:
    logits = torch.tensor([[0.0, 2.0, 0.0, 0.0, -torch.inf, 0.0]])
    kept = Warping(top_p=0.8)(logits).isfinite()
    assert kept.tolist() == [[True, True, True, False, False, False]]


def test_nothing_asked_for_cuts_nothing() -> None:
    logits = torch.randn(4, 30)
    off = Warping(top_k=0, top_p=1.0, min_p=0.0, typical_p=1.0, epsilon_cutoff=0.0, eta_cutoff=0.0)
    assert not off.cuts
    assert torch.equal(off(logits), logits)
