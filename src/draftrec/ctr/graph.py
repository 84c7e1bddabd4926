"""FiGNN's graph layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class FieldGraph(nn.Module):
    """Gated graph network over fields (arXiv:1910.05552, section 3.5).

    Edge i <- j weighs softmax_j LeakyReLU(w [h_i; h_j]), without loops to itself; what j says
    passes through a matrix of j, what i hears through one of i; a GRU takes it in, and the first
    state is added (their residual connection).
    """

    def __init__(self, fields: int, size: int, steps: int = 2) -> None:
        super().__init__()
        self.steps = steps
        self.listener, self.speaker = nn.Linear(size, 1, bias=False), nn.Linear(size, 1, bias=False)
        self.outgoing = nn.Parameter(torch.empty(fields, size, size))
        self.incoming = nn.Parameter(torch.empty(fields, size, size))
        self.bias = nn.Parameter(torch.zeros(size))
        self.gru = nn.GRUCell(size, size)
        self.register_buffer("loops", torch.eye(fields, dtype=torch.bool), persistent=False)
        for weight in (self.outgoing, self.incoming):
            nn.init.uniform_(weight, -(size**-0.5), size**-0.5)

    def edges(self, nodes: Tensor) -> Tensor:
        """`[B, F, F]`, rows summing to one: how much row i hears of column j."""
        # w [h_i; h_j] is a sum of one term of i and one of j.
        scores = functional.leaky_relu(self.listener(nodes) + self.speaker(nodes).transpose(1, 2))
        return scores.masked_fill(self.get_buffer("loops"), float("-inf")).softmax(dim=2)

    def forward(self, nodes: Tensor) -> Tensor:
        """New states `[B, F, E]` of the fields `[B, F, E]`."""
        first, edges = nodes, self.edges(nodes)
        for _ in range(self.steps):
            said = torch.einsum("bfe,feg->bfg", nodes, self.outgoing)
            heard = torch.einsum("bfe,feg->bfg", edges @ said, self.incoming) + self.bias
            state = self.gru(heard.flatten(0, 1), nodes.flatten(0, 1)).view_as(nodes)
            nodes = state + first
        return nodes
