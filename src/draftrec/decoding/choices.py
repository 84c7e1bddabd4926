"""The target's own choices, and verdicts from paths: what all acceptance rules share."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from typing import Protocol

import numpy as np
import torch

from draftrec.config import AcceptConfig
from draftrec.core import DoubleArray, DraftTree, LongArray, Verdict
from draftrec.decoding.batch import RunningSequence
from draftrec.models import sampling
from draftrec.models.warping import Warping
from draftrec.tokens.tree import depths


class AcceptanceRule(Protocol):
    """Decides which draft nodes are kept and which token follows them."""

    def accept(
        self, batch: Seq[RunningSequence], trees: Seq[DraftTree], logits: torch.Tensor
    ) -> list[Verdict]:
        """`logits` `[R, V]`: per sequence one row for its last token, then one per node."""
        ...


def own_choices(
    warping: Warping | None,
    batch: Seq[RunningSequence],
    trees: Seq[DraftTree],
    logits: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """int64 `[R]`: the token that the target itself emits after each row, and the scores that it
    is chosen from. Without a `warping` it is the most probable one, else a draw."""
    if warping is None:
        return sampling.greedy(logits), logits
    places = [
        np.concatenate(([0], depths(tree) + 1)) + sequence.new_tokens
        for sequence, tree in zip(batch, trees, strict=True)
    ]
    uniforms = np.concatenate(
        [
            sequence.uniforms[np.minimum(place, len(sequence.uniforms) - 1)]
            for sequence, place in zip(batch, places, strict=True)
        ]
    )
    scores = warping(logits)
    return sampling.draw(scores, torch.as_tensor(uniforms, device=logits.device)), scores


def warping_of(config: AcceptConfig) -> Warping | None:
    """How the target's own tokens are drawn; None where they are not (temperature 0)."""
    if config.temperature == 0.0:
        return None
    return Warping(
        temperature=config.temperature,
        top_k=config.sample_top_k,
        top_p=config.top_p,
        min_p=config.min_p,
        typical_p=config.typical_p,
    )


def uniforms_for(seed: int, key: int, count: int) -> DoubleArray:
    """float64 `[count]`: one uniform per position of a text, from (seed, key) alone."""
    bits = np.random.Philox(key=np.array([seed % 2**64, key % 2**64], np.uint64))
    return np.random.Generator(bits).random(count)


def verdict_of(
    tree: DraftTree, path: list[int], chosen: LongArray, room: int, eos_ids: frozenset[int]
) -> Verdict:
    """Path tokens and the bonus token, cut to `room`; nothing follows an EOS."""
    tokens = [int(t) for t in tree.token_ids[path]] if path else []
    if not tokens or tokens[-1] not in eos_ids:
        tokens.append(int(chosen[path[-1] + 1 if path else 0]))
    return Verdict(np.array(path[:room], np.int32), np.array(tokens[:room], np.int32))
