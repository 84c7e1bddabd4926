"""A target whose distributions are a table: the next token depends on the last one only.

No transformers, so thousands of texts take a second and every probability is known.
"""

from __future__ import annotations

import types
from collections.abc import Sequence as Seq
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from draftrec.config import AcceptConfig
from draftrec.core import Drafter, DraftTree, Request, SequenceView, Verdict
from draftrec.engine.packing import Segment
from draftrec.engine.target import Scores
from draftrec.engine.text.accept import AcceptanceRule, make_rule
from draftrec.engine.text.budget import FixedBudget
from draftrec.engine.text.loop import Engine, NoDrafter
from draftrec.engine.tree import make_tree

EOS = 0


class ToyTarget:
    """Answers each row with the table's logits for the row's own token."""

    shared_length = anew_length = 1 << 30

    def __init__(self, table: npt.ArrayLike) -> None:
        self.table = torch.as_tensor(np.asarray(table, np.float64))
        self.slab = types.SimpleNamespace(copy_prefix=lambda *_: None)

    def reserve(self, slots: int, capacity: int) -> None:
        """Nothing is cached."""

    def score(self, segments: Seq[Segment]) -> Scores:
        scored = [(i, s) for i, s in enumerate(segments) if s.scored]
        rows = [t for _, s in scored for t in (s.pending[-1], *s.tree.token_ids)]
        flat = torch.as_tensor(np.array(rows, np.int64))
        return Scores(self.table[flat], [i for i, _ in scored])

    def commit(self, segments: Seq[Segment], paths: Seq[Any]) -> None:
        """Nothing is cached."""


class BushyDrafter:
    """At each node, random distinct tokens as children: often right with a small vocabulary.

    Low ids are drafted more often: evenly random drafts would hide some biases of a rule.
    """

    def __init__(self, vocabulary: int, seed: int = 0, width: int = 3) -> None:
        self.vocabulary, self.width = vocabulary, width
        self.random = np.random.default_rng(seed)
        weights = 0.6 ** np.arange(vocabulary)
        self.favour = weights / weights.sum()

    def start(self, sequence: SequenceView) -> None:
        """Nothing to prepare."""

    def draft(self, batch: Seq[SequenceView], limit: int, depth: int) -> list[DraftTree]:
        return [self._tree(limit, depth) for _ in batch]

    def observe(self, batch: Seq[SequenceView], verdicts: Seq[Verdict]) -> None:
        """Nothing to learn."""

    def stop(self, sequence: SequenceView) -> None:
        """Nothing to forget."""

    def _tree(self, limit: int, depth: int) -> DraftTree:
        tokens: list[int] = []
        parents: list[int] = []
        queue = [(-1, 0)]
        while queue:
            node, level = queue.pop(0)
            if level == depth:
                continue
            drawn = self.random.choice(self.vocabulary, self.width, replace=False, p=self.favour)
            for token in drawn.tolist():
                if len(tokens) < limit:
                    queue.append((len(tokens), level + 1))
                    tokens.append(token)
                    parents.append(node)
        return make_tree(tokens, parents)


def toy_engine(
    table: npt.ArrayLike,
    config: AcceptConfig,
    drafter: Drafter | None = None,
    *,
    most: int = 3,
    rule: AcceptanceRule | None = None,
) -> Engine:
    """The real loop over a table."""
    target: Any = ToyTarget(table)
    eos = frozenset([EOS])
    return Engine(
        target=target,
        drafter=drafter or NoDrafter(),
        rule=rule or make_rule(config, eos),
        budget=FixedBudget(14),
        accept=config,
        eos_ids=eos,
        slots=64,
        max_new_tokens=most,
        depth=3,
    )


def toy_requests(count: int, first: int = 1) -> list[Request]:
    """`count` requests with the same one-token prompt and keys of their own."""
    return [Request(str(i), np.array([first], np.int32), key=i) for i in range(count)]
