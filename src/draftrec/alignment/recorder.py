"""Ask a target what it recommends in given contexts, and with which probabilities.

For every context the target's best beams are searched, then all their prefixes are scored in one
pass. `Recorder.check` computes one beam again token by token, the plain way: a shift by one
position, or an architecture whose masks are its own, does not pass.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from typing import Any

import numpy as np
import torch

from draftrec.alignment.teacher_files import Context, legal_codes
from draftrec.alignment.trees import (
    ContextTree,
    at_rows,
    context_tree,
    tree_inputs,
    tree_logits,
)
from draftrec.core import IntArray, LongArray
from draftrec.engine.beams.drafters import NoBeamDrafter
from draftrec.engine.beams.loop import BeamEngine, search
from draftrec.engine.beams.model import BeamModel, Constraint
from draftrec.engine.beams.state import BeamRequest, Beams
from draftrec.engine.target import Target
from draftrec.errors import UnsupportedModelError
from draftrec.items.prompts import HistoryEncoder
from draftrec.items.trie import ItemTrie
from draftrec.models.recommender import Recommender

# float16 keeps three digits, and passes of different shapes round differently.
_TOLERANCE = 0.05
_SLOTS = 32

#: A history, and the place of the item that came next (-1: unknown).
Ask = tuple[LongArray, int]


class Recorder:
    """Asks one target for its best `beams` in every context."""

    def __init__(
        self,
        recommender: Recommender,
        encoder: HistoryEncoder,
        trie: ItemTrie,
        beams: int,
    ) -> None:
        self.model: Any = recommender.model
        self.encoder, self.trie, self.beams = encoder, trie, beams
        self.codes = legal_codes(encoder.item_tokens)

    def record(self, asks: Seq[Ask]) -> list[Context]:
        """One context for each question, in order."""
        prompts = [self.encoder.encode(history) for history, _ in asks]
        beams = [found.tokens for found in self._searched(prompts)]
        truths = [self._truth(place) for _, place in asks]
        trees = [context_tree(b, t) for b, t in zip(beams, truths, strict=True)]
        answers = [self._answers(p, asked) for p, (asked, _) in zip(prompts, asks, strict=True)]
        order = sorted(range(len(asks)), key=lambda i: len(prompts[i]) + len(trees[i].tokens))
        found: dict[int, tuple[Any, Any]] = {}
        for first in range(0, len(order), _SLOTS):
            chosen = order[first : first + _SLOTS]
            log_probs = self._log_probs(
                [prompts[i] for i in chosen],
                [trees[i] for i in chosen],
                [answers[i] for i in chosen],
            )
            found |= dict(zip(chosen, log_probs, strict=True))
        return [
            Context(prompts[i], answers[i], truths[i], beams[i], *found[i])
            for i in range(len(asks))
        ]

    def check(self, context: Context) -> None:
        """Compute one beam, and the true item, token by token, and compare.

        Raises UnsupportedModelError where the recorded log-probabilities are others.
        """
        tree = context.tree()
        taught = np.flatnonzero(context.answers)
        paths = [context.beams[-1], *([context.truth] if len(context.truth) else [])]
        for path in paths:
            ids = torch.from_numpy(np.concatenate((context.prompt, path[:-1]))).long()[None]
            with torch.inference_mode():
                logits = self.model(input_ids=ids.to(self.model.device), use_cache=False).logits[0]
            plain = logits.float().log_softmax(-1).cpu().numpy()
            for i, place in enumerate(taught.tolist()):
                level = i % self.encoder.levels
                self._compare(context.prompt_log_probs[i], plain[place - 1], level)
            row = 0
            for level, token in enumerate(path.tolist()):
                end = len(context.prompt) - 1
                self._compare(context.log_probs[row], plain[end + level], level)
                child = np.flatnonzero((tree.parents == row - 1) & (tree.tokens == token))
                row = int(child[0]) + 1 if len(child) else row

    def _compare(self, recorded: Any, plain: Any, level: int) -> None:
        codes = self.codes[level][self.codes[level] >= 0]
        expected, found = plain[codes], recorded[: len(codes)].astype(np.float32)
        near = np.maximum(1.0, np.abs(expected)) * _TOLERANCE
        if not (np.abs(found - expected) <= near).all():
            raise UnsupportedModelError(
                f"{type(self.model).__name__} cannot be recorded: at level {level + 1} a beam has "
                "other probabilities in the tree than token by token; it probably uses positions "
                "or masks that draftrec does not know"
            )

    def _searched(self, prompts: Seq[IntArray]) -> list[Beams]:
        attention = self.model.config._attn_implementation
        try:
            target = BeamModel(Target(self.model), Constraint(self.trie, self.trie.levels))
            engine = BeamEngine(target, NoBeamDrafter(), self.beams, _SLOTS)
            return search(engine, [BeamRequest(i, prompt) for i, prompt in enumerate(prompts)])
        finally:
            self.model.set_attn_implementation(attention)

    @torch.inference_mode()
    def _log_probs(
        self, prompts: Seq[IntArray], trees: Seq[ContextTree], answers: Seq[Any]
    ) -> list[tuple[Any, Any]]:
        """Of every context, float16 `[rows, A]` and `[answers, A]`."""
        batch = tree_inputs(prompts, trees)
        logits = tree_logits(self.model, batch)
        taught = [np.flatnonzero(a) for a in answers]
        places = [np.stack((np.full(len(t), i), t - 1), axis=1) for i, t in enumerate(taught)]
        levels = [np.arange(len(t)) % self.encoder.levels for t in taught]
        before = at_rows(logits, torch.from_numpy(np.concatenate(places)))
        rows = self._legal(at_rows(logits, batch["rows"]), [tree.next_level for tree in trees])
        return list(zip(rows, self._legal(before, levels), strict=True))

    def _legal(self, logits: torch.Tensor, levels: Seq[Any]) -> list[Any]:
        """Log-probabilities of the legal codes, float16 `[r, A]` for each of `levels` int `[r]`;
        -inf where a level has no such code."""
        codes = torch.from_numpy(self.codes[np.concatenate(levels)]).long().to(logits.device)
        log_probs = logits.float().log_softmax(-1).gather(1, codes.clamp_min(0))
        found = log_probs.masked_fill(codes < 0, -torch.inf).half().cpu().numpy()
        return np.split(found, np.cumsum([len(some) for some in levels])[:-1])

    def _truth(self, place: int) -> IntArray:
        return self.encoder.item_tokens[place] if place >= 0 else np.empty(0, np.int32)

    def _answers(self, prompt: IntArray, history: LongArray) -> Any:
        """Which tokens of a prompt teach: those of its items, where a lesson has them."""
        answers = np.zeros(len(prompt), np.bool_)
        kept = history[-self.encoder.form.max_items :]
        ids, taught = self.encoder.lesson(kept) if len(kept) else (prompt[:0], answers[:0])
        if np.array_equal(ids, prompt[: len(ids)]):
            answers[: len(ids)] = taught
        return answers
