"""Replay: a model whose greedy output is, by decree, a text that was recorded elsewhere.

A random model of the wanted size writes noise, so nothing could be drafted for it. Here every
forward pass costs what it costs, and so does reading its verdict; then the recording overrides
what the model said. What is measured is the speed of a model that would write these texts.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Seq

import numpy as np
import torch

from draftrec.core import DraftTree, IntArray, Verdict
from draftrec.engine import sampling
from draftrec.engine.text.batch import RunningSequence


class ReplayRule:
    """The strict greedy rule of a target whose own choice is always the recording's next token.

    `texts`: int32 token ids by `request.entity_id`, each ending in the model's EOS; one cut short
    by `max_new_tokens` comes out as a prefix. Raises KeyError for an entity without a recording,
    ValueError where a recording is over and the sequence goes on.
    """

    def __init__(self, texts: Mapping[str, IntArray]) -> None:
        self.texts = texts

    def accept(
        self, batch: Seq[RunningSequence], trees: Seq[DraftTree], logits: torch.Tensor
    ) -> list[Verdict]:
        """The longest path that the recording contains, then its next token."""
        # The strict rule's device work and its one transfer, so that a step takes as long as live.
        sampling.greedy(logits).cpu().numpy()
        return self.follow(batch, trees)

    def follow(self, batch: Seq[RunningSequence], trees: Seq[DraftTree]) -> list[Verdict]:
        """The same verdicts, whatever the model says."""
        verdicts: list[Verdict] = []
        for sequence, tree in zip(batch, trees, strict=True):
            name = sequence.request.entity_id
            left = self.texts[name][sequence.new_tokens :]
            if not len(left):
                raise ValueError(f"the recording of {name!r} does not end in the model's EOS")
            verdicts.append(_follow(tree, left[: min(len(tree) + 1, sequence.room)]))
        return verdicts


def _follow(tree: DraftTree, recorded: IntArray) -> Verdict:
    """Verdict for a tree under which the text goes on with `recorded`, its bonus token included."""
    path: list[int] = []
    tail = -1
    for token in recorded.tolist():
        found = np.flatnonzero((tree.parents == tail) & (tree.token_ids == token))
        if not len(found):
            break
        tail = int(found[0])
        path.append(tail)
    # One token more than the path, unless the path took all that was left, the EOS included.
    return Verdict(np.array(path, np.int32), recorded[: len(path) + 1].astype(np.int32))
