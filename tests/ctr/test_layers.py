"""Layers against deepctr-torch's, with the same weights, and against the formulas of the papers."""

from __future__ import annotations

import sys
import warnings
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch_rechub.basic.layers import (
    CIN,
    FM,
    BiLinearInteractionLayer,
    CrossNetwork,
    InteractingLayer,
    SENETLayer,
)

from draftrec.ctr.backbones import FieldGraph, InterestEvolution, MatrixCross, TargetAttention

FIELDS, SIZE, LENGTH = 4, 8, 3


@pytest.fixture(scope="module")
def theirs() -> Any:
    """deepctr-torch's layers. Its package asks PyPI for its newest version when it is imported."""
    pytest.importorskip("sklearn")
    quiet = ModuleType("deepctr_torch.utils")
    quiet.check_version = lambda version: None  # type: ignore[attr-defined]
    sys.modules.setdefault("deepctr_torch.utils", quiet)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        layers = pytest.importorskip("deepctr_torch.layers")
        from deepctr_torch.layers import interaction, sequence
    found = ModuleType("layers")
    for module in (layers, interaction, sequence):
        found.__dict__.update(module.__dict__)
    return found


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape)


def copy_in_order(source: nn.Module, target: nn.Module) -> None:
    """Weights in the order of their layers; the two name them differently."""
    pairs = zip(source.parameters(), target.parameters(), strict=True)
    with torch.no_grad():
        for mine, other in pairs:
            other.copy_(mine.view_as(other))


def same(mine: Tensor, other: Tensor) -> bool:
    return torch.allclose(mine, other.view_as(mine), atol=1e-5)


def test_cross_network(theirs: Any) -> None:
    mine, other = CrossNetwork(SIZE, 2), theirs.CrossNet(SIZE, 2)
    with torch.no_grad():
        other.kernels.copy_(torch.stack([w.weight.T for w in mine.w]))
        for bias, of in zip(mine.b, other.bias, strict=True):
            of.copy_(bias.normal_().unsqueeze(1))
    x = drawn(5, SIZE)
    assert same(mine(x), other(x))


def test_matrix_cross_network(theirs: Any) -> None:
    mine, other = MatrixCross(SIZE, 2), theirs.CrossNet(SIZE, 2, parameterization="matrix")
    with torch.no_grad():
        other.kernels.copy_(torch.stack([layer.weight for layer in mine.layers]))  # type: ignore[arg-type]
        other.bias.copy_(torch.stack([layer.bias for layer in mine.layers]).unsqueeze(2))  # type: ignore[arg-type]
    x = drawn(5, SIZE)
    assert same(mine(x), other(x))


def test_factorization_machine(theirs: Any) -> None:
    x = drawn(5, FIELDS, SIZE)
    assert same(FM(reduce_sum=True)(x), theirs.FM()(x))


def test_compressed_interactions(theirs: Any) -> None:
    # Without split halves: with them, theirs hands the other half on, which is a convention.
    mine, other = (
        CIN(FIELDS, [6, 6], split_half=False),
        theirs.CIN(FIELDS, (6, 6), split_half=False),
    )
    with torch.no_grad():
        for conv, of in zip(mine.conv_layers, other.conv1ds, strict=True):
            # Theirs multiplies (state, input), ours (input, state): the pairs come transposed.
            shape = (6, FIELDS, conv.in_channels // FIELDS)
            of.weight.copy_(conv.weight.view(shape).transpose(1, 2).reshape_as(of.weight))
            of.bias.copy_(conv.bias)
    x = drawn(5, FIELDS, SIZE)
    assert same(mine(x), mine.fc(other(x)))


def test_attention_between_fields(theirs: Any) -> None:
    mine = InteractingLayer(SIZE, num_heads=2)
    other = theirs.InteractingLayer(SIZE, head_num=2, scaling=True)
    with torch.no_grad():
        for name, of in (("Q", "Query"), ("K", "key"), ("V", "Value"), ("Res", "Res")):
            getattr(other, f"W_{of}").copy_(getattr(mine, f"W_{name}").weight.T)
    x = drawn(5, FIELDS, SIZE)
    assert same(mine(x), other(x))


@pytest.mark.parametrize("pair", ["SENETLayer", "BilinearInteraction"])
def test_layers_of_fibinet(theirs: Any, pair: str) -> None:
    if pair == "SENETLayer":
        mine, other = SENETLayer(FIELDS, 2), theirs.SENETLayer(FIELDS, 2)
    else:
        mine = BiLinearInteractionLayer(SIZE, FIELDS)
        other = theirs.BilinearInteraction(FIELDS, SIZE)
    copy_in_order(mine, other)
    x = drawn(5, FIELDS, SIZE)
    assert same(mine(x), other(x))


@pytest.mark.parametrize("normalised", [True, False])
def test_attention_to_the_target(theirs: Any, normalised: bool) -> None:  # noqa: FBT001
    mine = TargetAttention(SIZE, normalised=normalised)
    other = theirs.AttentionSequencePoolingLayer(
        (80, 40), weight_normalization=normalised, embedding_dim=SIZE
    )
    copy_in_order(mine, other)
    sequence, target = drawn(4, LENGTH, SIZE), drawn(4, SIZE)
    lengths = torch.tensor([1, 2, 3, 3])
    mask = torch.arange(LENGTH) < lengths[:, None]
    assert same(mine(sequence, mask, target), other(target.unsqueeze(1), sequence, lengths))


def test_evolution_of_interests(theirs: Any) -> None:
    """The second GRU step by step with their cell, each sequence alone and without padding."""
    mine, cell = InterestEvolution(SIZE), theirs.AUGRUCell(SIZE, SIZE, bias=False)
    with torch.no_grad():
        mine_cell = mine.evolve
        cell.weight_ih.copy_(torch.cat([mine_cell.Wr.T, mine_cell.Wu.T, mine_cell.Wh.T]))
        cell.weight_hh.copy_(torch.cat([mine_cell.Ur.T, mine_cell.Uu.T, mine_cell.Uh.T]))
        for bias in (mine_cell.br, mine_cell.bu, mine_cell.bh):
            bias.zero_()  # theirs are placed elsewhere
    sequence, target = drawn(3, LENGTH, SIZE), drawn(3, SIZE)
    lengths = [0, 2, 3]
    found = mine(sequence, torch.arange(LENGTH) < torch.tensor(lengths)[:, None], target)
    assert not found[0].any()
    for row, length in enumerate(lengths[1:], 1):
        interests, _ = mine.extract(sequence[row : row + 1, :length])
        weights = (interests[0] @ mine.attention(target[row])).softmax(dim=0)
        state = torch.zeros(1, SIZE)
        for step in range(length):
            state = cell(interests[:, step], state, weights[step])
        assert same(found[row : row + 1], state)


def test_one_step_of_the_graph_by_hand() -> None:
    graph = FieldGraph(3, 2, steps=1)
    nodes = drawn(1, 3, 2)
    edges = graph.edges(nodes)
    assert torch.allclose(edges.sum(dim=2), torch.ones(1, 3))
    assert not edges.diagonal(dim1=1, dim2=2).any()
    weight = torch.cat([graph.listener.weight, graph.speaker.weight], dim=1)[0]
    expected: list[Tensor] = []
    for i in range(3):
        others = [j for j in range(3) if j != i]
        pairs = torch.stack([weight @ torch.cat([nodes[0, i], nodes[0, j]]) for j in others])
        shares = nn.functional.leaky_relu(pairs).softmax(dim=0)
        assert torch.allclose(edges[0, i, others], shares)
        said = [share * nodes[0, j] @ graph.outgoing[j] for share, j in zip(shares, others)]  # noqa: B905
        heard = torch.stack(said).sum(dim=0) @ graph.incoming[i] + graph.bias
        expected.append(graph.gru(heard[None], nodes[0, i][None])[0] + nodes[0, i])
    assert torch.allclose(graph(nodes)[0], torch.stack(expected), atol=1e-6)
