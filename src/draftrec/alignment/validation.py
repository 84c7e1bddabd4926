"""Is a recommender getting better? The loss of the next item, and Recall@K by real beam search."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from draftrec.alignment.lessons import IGNORED, padded
from draftrec.alignment.train import Validation
from draftrec.core import LongArray
from draftrec.engine.beams.drafters import NoBeamDrafter
from draftrec.engine.beams.loop import BeamEngine, search
from draftrec.engine.beams.model import BeamModel, Constraint
from draftrec.engine.beams.state import BeamRequest
from draftrec.engine.target import Target
from draftrec.items.prompts import HistoryEncoder
from draftrec.items.trie import ItemTrie

_BATCH = 64


@dataclass(frozen=True, eq=False)
class Validator:
    """Asks a model what comes after `histories` (int64 `[h]` places each) and compares with
    `targets` (int64 `[t]` places each, t >= 1, all of what came next, in order).

    `k` items are recommended from `beams` beams; users beyond `recall_users` count for the loss
    alone, and none at all are searched for 0.
    """

    encoder: HistoryEncoder
    trie: ItemTrie
    histories: Seq[LongArray]
    targets: Seq[LongArray]
    k: int = 10
    beams: int = 20
    recall_users: int = 1000

    def __call__(self, model: Any) -> Validation:
        """The loss, in nats per item, which decides, and the recall, which is there to be seen.

        A thousand users' Recall@10 of a few percent is uncertain by a tenth of itself and more: it
        would stop a training that is still getting better.
        """
        figures = {"valid_loss": self.loss(model)}
        if self.recall_users:
            figures[f"valid_recall@{self.k}"] = self.recall(model)
        return Validation(figures, -figures["valid_loss"])

    @torch.inference_mode()
    def loss(self, model: Any) -> float:
        """Mean negative log-probability of the item that came next, all of its tokens."""
        lessons = []
        for history, targets in zip(self.histories, self.targets, strict=True):
            prompt, answer = self.encoder.encode(history), self.encoder.item_tokens[targets[0]]
            ids = np.concatenate([prompt, answer])
            lessons.append((ids, np.arange(len(ids)) >= len(prompt)))
        lessons.sort(key=lambda lesson: len(lesson[0]))
        total = 0.0
        for first in range(0, len(lessons), _BATCH):
            batch = padded(lessons[first : first + _BATCH])
            total += float(answer_loss(model, batch, "sum"))
        return total / len(lessons)

    def recall(self, model: Any) -> float:
        """Share of a user's targets among the `k` recommended items, averaged over users."""
        count = self.recall_users
        requests = [
            BeamRequest(i, self.encoder.encode(history))
            for i, history in enumerate(self.histories[:count])
        ]
        attention = model.config._attn_implementation
        try:
            target = BeamModel(Target(model), Constraint(self.trie, self.encoder.levels))
            engine = BeamEngine(target, NoBeamDrafter(), width=self.beams, slots=_BATCH)
            found = search(engine, requests)
        finally:
            model.set_attn_implementation(attention)
        ids = self.trie.items
        hits = [
            self._hits(beams.leaves, targets, ids)
            for beams, targets in zip(found, self.targets[:count], strict=True)
        ]
        return float(np.mean(hits))

    def _hits(self, leaves: LongArray, targets: LongArray, ids: LongArray) -> float:
        items: list[int] = []
        for leaf in leaves[leaves >= 0].tolist():
            items += self.trie.items_at(leaf).tolist()
        wanted = set(ids[self.trie.positions[targets]].tolist())
        return len(wanted.intersection(items[: self.k])) / len(wanted)


def answer_loss(model: Any, batch: dict[str, torch.Tensor], reduction: str) -> torch.Tensor:
    """Cross entropy of the answers (`labels`) after what comes before them."""
    device = next(iter(model.parameters())).device
    logits = model(input_ids=batch["input_ids"].to(device), use_cache=False).logits[:, :-1]
    labels = batch["labels"][:, 1:].to(device)
    return cross_entropy(
        logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORED, reduction=reduction
    )
