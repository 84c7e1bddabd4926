"""Adaptors: what they make of vectors, and what the contrastive loss is."""

from __future__ import annotations

import pytest
import torch

from draftrec.ctr.model import (
    ADAPTORS,
    ContrastiveAdaptor,
    Experts,
    HybridAdaptor,
    MixtureAdaptor,
    make_adaptor,
)
from draftrec.errors import DraftrecError

WIDTH, SIZE = 6, 4


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def vectors() -> dict[str, torch.Tensor]:
    return {"user": torch.randn(5, WIDTH), "item": torch.randn(5, WIDTH)}


@pytest.mark.parametrize("name", list(ADAPTORS))
@pytest.mark.parametrize("sides", [("user",), ("item",), ("user", "item")])
def test_each_side_becomes_a_field(name: str, sides: tuple[str, ...]) -> None:
    adaptor = make_adaptor(name, dict.fromkeys(sides, WIDTH), SIZE)
    assert adaptor is not None
    found = adaptor(vectors())
    assert {side: field.shape for side, field in found.items()} == dict.fromkeys(sides, (5, SIZE))


def test_none_is_nothing() -> None:
    assert make_adaptor("none", {"user": WIDTH}, SIZE) is None


def test_experts_are_mlps_side_by_side() -> None:
    experts, x = Experts(WIDTH, 3, 5, SIZE), torch.randn(2, WIDTH)
    for number, found in enumerate(experts(x).unbind(dim=1)):
        rows = slice(5 * number, 5 * number + 5)
        hidden = (x @ experts.first.weight[rows].T + experts.first.bias[rows]).relu()
        assert torch.allclose(found, hidden @ experts.weight[number] + experts.bias[number])


def test_the_mixture_is_one_for_both_sides() -> None:
    adaptor = MixtureAdaptor({"user": WIDTH, "item": WIDTH}, SIZE)
    x = torch.randn(5, WIDTH)
    found = adaptor({"user": x, "item": x})
    assert torch.equal(found["user"], found["item"])
    gates = (x @ adaptor.gate.weight.T).softmax(dim=1)
    expected = sum(gates[:, e, None] * adaptor.experts(x)[:, e] for e in range(4))
    assert torch.allclose(found["user"], torch.as_tensor(expected), atol=1e-6)


def test_hybrid_sides_share_some_experts_only() -> None:
    adaptor = HybridAdaptor({"user": WIDTH, "item": WIDTH}, SIZE)
    x = torch.randn(5, WIDTH)
    found = adaptor({"user": x, "item": x})
    assert not torch.allclose(found["user"], found["item"])
    found["user"].sum().backward()
    assert adaptor.shared.weight.grad is not None
    assert [e.weight.grad is not None for e in adaptor.own.values()] == [True, False]  # type: ignore[union-attr]


def test_the_contrastive_loss_is_infonce() -> None:
    adaptor = ContrastiveAdaptor({"user": WIDTH}, SIZE)
    texts, ids = torch.randn(3, SIZE), torch.randn(3, SIZE)
    cosines = torch.nn.functional.cosine_similarity(texts[:, None], ids[None], dim=2) / 0.07
    expected = -cosines.log_softmax(dim=1).diagonal().mean()
    assert torch.allclose(adaptor.alignment(texts, ids), expected, atol=1e-5)
    assert adaptor.alignment(texts[:1], ids[:1]) == 0


@pytest.mark.parametrize(
    ("name", "widths", "words"),
    [
        ("moe", {}, "needs vectors"),
        ("moe", {"user": 3, "item": 4}, "moe shares experts"),
        ("hea", {"user": 3, "item": 4}, "hea shares experts"),
    ],
)
def test_vectors_that_do_not_suit(name: str, widths: dict[str, int], words: str) -> None:
    with pytest.raises(DraftrecError, match=words):
        make_adaptor(name, widths, SIZE)
