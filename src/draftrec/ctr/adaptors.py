"""Adaptors: how knowledge vectors become inputs of a click model.

Every adaptor turns the vectors of users and of items, float32 `[n, d_u]` and `[m, d_i]` (either may
be missing), into fields of the embedding size, `[n, E]` and `[m, E]`, so that any backbone takes
them as it takes its other fields.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from draftrec.errors import DraftrecError

#: Vector width by side, `user` and `item`; a side without knowledge is left out.
Widths = Mapping[str, int]


class Experts(nn.Module):
    """Several equal MLPs side by side, `[B, d]` -> `[B, experts, E]`."""

    def __init__(self, width: int, experts: int, hidden: int, size: int) -> None:
        super().__init__()
        self.shape = (experts, hidden)
        self.first = nn.Linear(width, experts * hidden)
        self.weight = nn.Parameter(torch.empty(experts, hidden, size))
        self.bias = nn.Parameter(torch.zeros(experts, size))
        nn.init.uniform_(self.weight, -(hidden**-0.5), hidden**-0.5)

    def forward(self, vectors: Tensor) -> Tensor:
        hidden = functional.relu(self.first(vectors)).unflatten(1, self.shape)
        return torch.einsum("beh,ehs->bes", hidden, self.weight) + self.bias


class MixtureAdaptor(nn.Module):
    """KAR's and TRAWL's adaptor as DARE runs it: one mixture of experts for both sides,
    z = sum_e g_e MLP_e(x) with g = softmax(W x) (arXiv:2408.05676).

    Raises DraftrecError where the two sides' vectors are not equally wide.
    """

    def __init__(self, widths: Widths, size: int, experts: int = 4, hidden: int = 64) -> None:
        super().__init__()
        self.sides = tuple(widths)
        width = _shared_width(widths, "moe")
        self.gate = nn.Linear(width, experts, bias=False)
        self.experts = Experts(width, experts, hidden, size)

    def forward(self, vectors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {side: self._mixed(vectors[side]) for side in self.sides}

    def _mixed(self, vectors: Tensor) -> Tensor:
        gates = self.gate(vectors).softmax(dim=1)
        return torch.einsum("be,bes->bs", gates, self.experts(vectors))


class HybridAdaptor(nn.Module):
    """KAR's hybrid-expert adaptor (arXiv:2306.10933): experts that both sides share beside those
    of one side, with a gate for each side.

    Raises DraftrecError where the two sides' vectors are not equally wide.
    """

    def __init__(
        self, widths: Widths, size: int, shared: int = 2, own: int = 4, hidden: int = 128
    ) -> None:
        super().__init__()
        width = _shared_width(widths, "hea")
        self.shared = Experts(width, shared, hidden, size)
        self.own = nn.ModuleDict({side: Experts(width, own, hidden, size) for side in widths})
        self.gates = nn.ModuleDict(
            {side: nn.Linear(width, shared + own, bias=False) for side in widths}
        )

    def forward(self, vectors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for side, own in self.own.items():
            gates = self.gates[side](vectors[side]).softmax(dim=1)
            experts = torch.cat([self.shared(vectors[side]), own(vectors[side])], dim=1)
            found[side] = torch.einsum("be,bes->bs", gates, experts)
        return found


class ProjectionAdaptor(nn.Module):
    """An MLP for each side, as in ONCE (arXiv:2305.06566)."""

    def __init__(self, widths: Widths, size: int, hidden: int = 128) -> None:
        super().__init__()
        self.sides = nn.ModuleDict(
            {
                side: nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, size))
                for side, width in widths.items()
            }
        )

    def forward(self, vectors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {side: mlp(vectors[side]) for side, mlp in self.sides.items()}


class ContrastiveAdaptor(ProjectionAdaptor):
    """RLMRec's contrastive alignment (arXiv:2310.15950): projections to the size of the id
    embeddings, and a loss that brings a text and the embedding of its own id together."""

    temperature = 0.07

    def alignment(self, projected: Tensor, embedded: Tensor) -> Tensor:
        """InfoNCE by cosine of `projected` and `embedded`, `[n, E]`, of n different entities: of
        all ids, a text is to find its own. Fewer than two entities give 0."""
        if len(projected) < 2:
            return projected.new_zeros(())
        texts = functional.normalize(projected, dim=1)
        ids = functional.normalize(embedded, dim=1)
        return functional.cross_entropy(texts @ ids.T / self.temperature, torch.arange(len(ids)))


ADAPTORS: dict[str, type[nn.Module]] = {
    "moe": MixtureAdaptor,
    "hea": HybridAdaptor,
    "mlp": ProjectionAdaptor,
    "contrastive": ContrastiveAdaptor,
}
#: How a click model may take knowledge; `none` leaves it out.
ADAPTOR_NAMES = ("none", *ADAPTORS)


def make_adaptor(name: str, widths: Widths, size: int) -> nn.Module | None:
    """An adaptor by name, None for `none`. Raises DraftrecError where there are no vectors."""
    if name == "none":
        return None
    if not widths:
        raise DraftrecError(
            f"adaptor {name} needs vectors; give --user-vectors or --item-vectors, or leave it out"
        )
    return ADAPTORS[name](widths, size)


def _shared_width(widths: Widths, name: str) -> int:
    if len(set(widths.values())) > 1:
        raise DraftrecError(
            f"adaptor {name} shares experts between users and items, whose vectors have "
            f"{' and '.join(map(str, widths.values()))} numbers; encode both with one encoder, or "
            "use --adaptor mlp"
        )
    return next(iter(widths.values()))
