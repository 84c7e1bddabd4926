"""A click model: embeddings of both sides, an adaptor for knowledge, a backbone; and its training,
which chooses on validation AUC alone and tests once.

An adaptor turns the vectors of users and of items, float32 `[n, d_u]` and `[m, d_i]` (either may
be missing), into fields of the embedding size, `[n, E]` and `[m, E]`, so that any backbone takes
them as it takes its other fields.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import torch
from scipy.special import expit
from sklearn.metrics import log_loss, roc_auc_score
from torch import Tensor, nn
from torch.nn import functional

from draftrec.core import FloatArray
from draftrec.ctr.backbones import BACKBONES
from draftrec.ctr.features import Inputs, Part, Side
from draftrec.ctr.settings import FitSettings
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


_SCORED_AT_ONCE = 8192


@dataclass(frozen=True, slots=True)
class Scores:
    """Area under the ROC curve and mean negative log-likelihood in nats."""

    auc: float
    logloss: float


@dataclass(frozen=True, eq=False, slots=True)
class _Fitted:
    model: ClickModel
    valid: Scores
    best_epoch: int
    epochs: int
    lr: float
    batch_size: int


def train_and_test(
    inputs: Inputs, model: str, adaptor: str, seed: int, settings: FitSettings
) -> dict[str, Any]:
    """Train one click model for each cell of the grid, test the one with the best validation AUC.

    `seed` decides initial weights and batches; equal arguments give equal results on one thread.
    Returns `lr` and `batch_size` (the chosen ones), `valid_auc`, `valid_logloss`, `auc`,
    `logloss`, `best_epoch` (from 1), `epochs` (done), `weights` (trained numbers).
    """
    best: _Fitted | None = None
    for lr, batch_size in product(settings.learning_rates, settings.batch_sizes):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            fresh = ClickModel(inputs, model, adaptor, settings.size, settings.dropout)
            fitted = _fit(fresh, inputs, lr, batch_size, settings)
        if best is None or fitted.valid.auc > best.valid.auc:
            best = fitted
    assert best is not None
    test = score(best.model, inputs.test)
    return {
        "lr": best.lr,
        "batch_size": best.batch_size,
        "valid_auc": best.valid.auc,
        "valid_logloss": best.valid.logloss,
        "auc": test.auc,
        "logloss": test.logloss,
        "best_epoch": best.best_epoch,
        "epochs": best.epochs,
        "weights": best.model.weights,
    }


def score(model: ClickModel, part: Part) -> Scores:
    """AUC and LogLoss of a model on one part. Raises DraftrecError where training has diverged."""
    logits = predict(model, part).astype(np.float64)
    if not np.isfinite(logits).all():
        raise DraftrecError(
            "training has diverged, the scores are no numbers any more; give a smaller --lr"
        )
    clicks = expit(logits)  # warns of no overflow
    return Scores(float(roc_auc_score(part.labels, clicks)), float(log_loss(part.labels, clicks)))


def predict(model: ClickModel, part: Part) -> FloatArray:
    """Logits, float32 `[n]`."""
    model.eval()
    with torch.inference_mode():
        blocks = [model(*block)[0] for block in zip(*map(_blocks, _tensors(part)), strict=True)]
    return torch.cat(blocks).numpy()


def _fit(
    model: ClickModel, inputs: Inputs, lr: float, batch_size: int, settings: FitSettings
) -> _Fitted:
    """Train until validation AUC stops rising; the weights are those of the best epoch."""
    steps = -(-len(inputs.train.labels) // batch_size)
    optimizer = torch.optim.AdamW(model.parameters(), lr, weight_decay=settings.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps * settings.epochs)
    best, best_epoch, kept, epoch = Scores(-1.0, float("inf")), 0, {}, 0
    while epoch < settings.epochs and epoch - best_epoch < settings.patience:
        epoch += 1
        _epoch(model, inputs.train, batch_size, (optimizer, schedule), settings.contrast)
        found = score(model, inputs.valid)
        if found.auc > best.auc:
            best, best_epoch = found, epoch
            kept = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(kept)
    return _Fitted(model, best, best_epoch, epoch, lr, batch_size)


def _epoch(
    model: ClickModel, part: Part, batch_size: int, optimising: tuple[Any, Any], contrast: float
) -> None:
    """One pass over the training samples in a new order."""
    model.train()
    optimizer, schedule = optimising
    inputs, labels = _tensors(part), torch.from_numpy(part.labels)
    criterion = nn.BCEWithLogitsLoss()
    for rows in torch.randperm(len(labels)).split(batch_size):
        logits, alignment = model(*(values[rows] for values in inputs))
        loss = criterion(logits, labels[rows]) + contrast * alignment
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()


def _tensors(part: Part) -> tuple[Tensor, Tensor, Tensor]:
    users, items, sequence = map(torch.from_numpy, (part.users, part.items, part.sequence))
    return users, items, sequence


def _blocks(values: Tensor) -> tuple[Tensor, ...]:
    return values.split(_SCORED_AT_ONCE)
