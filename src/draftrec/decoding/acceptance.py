"""Acceptance rules: target scores and draft trees in, verdicts out.

The device does what is wide (one argmax, top-k, entropy or draw over all rows of all sequences) and
sends a few numbers per row back in one transfer; the walk over a handful of matching nodes is host
work.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq

import numpy as np
import torch

from draftrec.config import AcceptConfig
from draftrec.core import DraftTree, LongArray, Verdict
from draftrec.decoding.batch import RunningSequence
from draftrec.decoding.choices import (
    AcceptanceRule,
    own_choices,
    uniforms_for,
    verdict_of,
    warping_of,
)
from draftrec.decoding.relaxed import Relaxed
from draftrec.models.warping import Warping

__all__ = ["AcceptanceRule", "Relaxed", "Strict", "make_rule", "uniforms_for"]


def make_rule(
    config: AcceptConfig, eos_ids: frozenset[int], warping: Warping | None = None
) -> AcceptanceRule:
    """The rule that `config` describes. `warping`: how it samples, if not as that says."""
    kind = Strict if config.accept == "strict" else Relaxed
    return kind(config, eos_ids, warping)


class Strict:
    """Lossless: a node is kept only if it is the token the target itself chose at that place.

    Temperature 0: the argmax, so the text is the model's greedy text. Otherwise the target draws
    from its warped distribution (temperature, top-p and so on) at every node and the walk follows
    the child that matches the draw: every emitted token is a draw from the target given its prefix.
    """

    def __init__(
        self, config: AcceptConfig, eos_ids: frozenset[int], warping: Warping | None = None
    ) -> None:
        self.config, self.eos_ids = config, eos_ids
        self.warping = warping or warping_of(config)

    def accept(
        self, batch: Seq[RunningSequence], trees: Seq[DraftTree], logits: torch.Tensor
    ) -> list[Verdict]:
        """Longest path of the target's own choices, then its next choice."""
        choices = own_choices(self.warping, batch, trees, logits)[0].cpu().numpy()
        verdicts: list[Verdict] = []
        row = 0
        for sequence, tree in zip(batch, trees, strict=True):
            chosen = choices[row : row + 1 + len(tree)]
            path = _follow(tree, chosen, self.eos_ids)
            verdicts.append(verdict_of(tree, path, chosen, sequence.room, self.eos_ids))
            row += 1 + len(tree)
        return verdicts


def _follow(tree: DraftTree, chosen: LongArray, eos_ids: frozenset[int]) -> list[int]:
    """The path of nodes that equal the choice of their parent's row."""
    path: list[int] = []
    if not len(tree):
        return path
    tail = -1
    for node in np.flatnonzero(tree.token_ids == chosen[tree.parents + 1]).tolist():
        if int(tree.parents[node]) == tail:
            path.append(node)
            tail = node
            if int(tree.token_ids[node]) in eos_ids:
                break
    return path
