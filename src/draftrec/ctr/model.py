"""A click model: embeddings of both sides, an adaptor for knowledge, a backbone."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from draftrec.ctr.adaptors import ContrastiveAdaptor, make_adaptor
from draftrec.ctr.backbones import BACKBONES
from draftrec.ctr.features import Inputs, Side

#: Small, so that products of embeddings start near zero.
_SPREAD = 0.01


class SideEncoder(nn.Module):
    """Users, or items, as fields of `size` numbers each: the id, then each attribute (the mean of
    its values). Row 0 and everything unknown is zeros."""

    ids: Tensor
    vectors: Tensor

    def __init__(self, side: Side, size: int) -> None:
        super().__init__()
        self.width = 0 if side.vectors is None else side.vectors.shape[1]
        if side.vectors is not None:
            self._keep("vectors", torch.from_numpy(side.vectors))
        self.embed = None
        if side.ids is not None:
            self._keep("ids", torch.from_numpy(side.ids))
            self.embed = _embedding(side.id_count, size)
        self.attributes = nn.ModuleList(_embedding(a.size, size) for a in side.attributes)
        for number, attribute in enumerate(side.attributes):
            self._keep(f"codes_{number}", torch.from_numpy(attribute.codes))

    @property
    def fields(self) -> int:
        """How many fields there are."""
        return len(self.attributes) + (self.embed is not None)

    def identity(self, rows: Tensor) -> Tensor:
        """Embeddings of the ids, `[..., E]` for rows `[...]`."""
        assert self.embed is not None
        return self.embed(self.ids[rows])

    def known(self, rows: Tensor) -> Tensor:
        """Whether an entity has both a vector and an id of its own, bool `[B]`."""
        return (self.ids[rows] > 0) & self.vectors[rows].any(dim=1)

    def forward(self, rows: Tensor) -> list[Tensor]:
        """The fields of rows `[B]`, `[B, E]` each."""
        found = [] if self.embed is None else [self.identity(rows)]
        for number, embed in enumerate(self.attributes):
            codes = self.get_buffer(f"codes_{number}")[rows]
            counts = (codes > 0).sum(dim=1, keepdim=True).clamp(min=1)
            found.append(embed(codes).sum(dim=1) / counts)
        return found

    def _keep(self, name: str, values: Tensor) -> None:
        self.register_buffer(name, values, persistent=False)


class ClickModel(nn.Module):
    """Logits of clicks for samples, given as rows of the two sides.

    Raises DraftrecError for an adaptor that the vectors do not suit.
    """

    def __init__(
        self, inputs: Inputs, backbone: str, adaptor: str, size: int, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.users, self.items = SideEncoder(inputs.users, size), SideEncoder(inputs.items, size)
        sides = {"user": self.users, "item": self.items}
        widths = {name: side.width for name, side in sides.items() if side.width}
        self.adaptor = make_adaptor(adaptor, widths, size)
        knowledge = len(widths) if self.adaptor else 0
        self.backbone = BACKBONES[backbone](self.users.fields + self.items.fields + knowledge, size)

    def forward(self, users: Tensor, items: Tensor, sequence: Tensor) -> tuple[Tensor, Tensor]:
        """Logits `[B]` and the adaptor's loss (0 for most), of users and items int64 `[B]` and
        sequence int64 `[B, L]`, 0 behind its end."""
        fields = [*self.users(users), *self.items(items)]
        loss = torch.zeros(())
        if self.adaptor is not None:
            knowledge, loss = self._knowledge({"user": users, "item": items})
            fields += knowledge
        target, followed = self.items.identity(items), self.items.identity(sequence)
        logits = self.backbone(torch.stack(fields, dim=1), followed, sequence > 0, target)
        return logits, loss

    @property
    def weights(self) -> int:
        """How many numbers are trained."""
        return sum(weight.numel() for weight in self.parameters())

    def _knowledge(self, rows: Mapping[str, Tensor]) -> tuple[list[Tensor], Tensor]:
        """A field `[B, E]` for each side with vectors, and the adaptor's loss.

        A batch names an entity many times; its vector goes through the adaptor once.
        """
        assert self.adaptor is not None
        sides = {"user": self.users, "item": self.items}
        entities, places = {}, {}
        for name, side in sides.items():
            if side.width:
                entities[name], places[name] = rows[name].unique(return_inverse=True)
        found = self.adaptor({n: self.dropout(sides[n].vectors[e]) for n, e in entities.items()})
        loss = torch.zeros(())
        if isinstance(self.adaptor, ContrastiveAdaptor):
            for name in entities:
                if sides[name].embed is not None:
                    known = sides[name].known(entities[name])
                    embedded = sides[name].identity(entities[name][known])
                    loss = loss + self.adaptor.alignment(found[name][known], embedded)
        return [found[name][places[name]] for name in found], loss


def _embedding(count: int, size: int) -> nn.Embedding:
    embedding = nn.Embedding(count, size, padding_idx=0)
    with torch.no_grad():
        embedding.weight[1:].normal_(std=_SPREAD)
    return embedding
