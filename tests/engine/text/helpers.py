"""Drafters whose quality a test chooses, and engines made of tiny parts."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from functools import cache
from typing import Any

import numpy as np
import torch

from draftrec.config import AcceptConfig
from draftrec.core import Drafter, DraftTree, Request, SequenceView, Verdict
from draftrec.engine.text.accept import make_rule
from draftrec.engine.text.budget import FixedBudget
from draftrec.engine.text.loop import Engine, NoDrafter
from draftrec.engine.tree import check_tree, make_tree
from tests.models import zoo

#: Long enough to pass every window, different enough to end at different steps.
PROMPTS = tuple(
    tuple(np.random.default_rng(100 + i).integers(3, zoo.VOCABULARY, 3 + 7 * i).tolist())
    for i in range(6)
)
NEW_TOKENS = 20


@cache
def plain_text(
    name: str, prompt: tuple[int, ...], eos: frozenset[int] = frozenset(), most: int = NEW_TOKENS
) -> list[int]:
    """What `model.generate(do_sample=False)` writes after one prompt."""
    ids = torch.tensor([prompt])
    out = zoo.plain(name).generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=most,
        eos_token_id=sorted(eos) or None,
        pad_token_id=0,
    )
    return out[0, len(prompt) :].tolist()


@cache
def observed_eos(name: str) -> frozenset[int]:
    """Tokens that, taken for EOS, end some of the texts of `PROMPTS` early and in the middle."""
    texts = [plain_text(name, p) for p in PROMPTS]
    return frozenset([texts[0][NEW_TOKENS // 2], texts[3][5]])


def requests(prompts: Seq[Seq[int]] = PROMPTS) -> list[Request]:
    """One request per prompt, named and keyed by its place."""
    return [Request(str(i), np.array(p, np.int32), key=i) for i, p in enumerate(prompts)]


class GuessingDrafter:
    """Draws random trees; on the true path, each node's token is right with chance `hit`.

    0 is noise, 1 an oracle whose true continuation hides among wrong siblings. `truth` maps entity
    ids to texts, which may go on after an EOS. Checks what the loop promises to drafters.
    """

    def __init__(self, truth: dict[str, Seq[int]], hit: float, seed: int = 0) -> None:
        self.truth, self.hit = truth, hit
        self.random = np.random.default_rng(seed)
        self.running: dict[str, list[int]] = {}

    def start(self, sequence: SequenceView) -> None:
        assert sequence.request.entity_id not in self.running
        self.running[sequence.request.entity_id] = sequence.request.prompt_ids.tolist()

    def draft(self, batch: Seq[SequenceView], limit: int, depth: int) -> list[DraftTree]:
        return [self._tree(s, limit, depth) for s in batch]

    def observe(self, batch: Seq[SequenceView], verdicts: Seq[Verdict]) -> None:
        for sequence, verdict in zip(batch, verdicts, strict=True):
            known = self.running[sequence.request.entity_id]
            known += verdict.token_ids.tolist()
            assert sequence.context.tolist() == known

    def stop(self, sequence: SequenceView) -> None:
        del self.running[sequence.request.entity_id]

    def _tree(self, sequence: SequenceView, limit: int, depth: int) -> DraftTree:
        written = len(sequence.context) - len(sequence.request.prompt_ids)
        truth = list(self.truth.get(sequence.request.entity_id, ()))[written:]
        tokens: list[int] = []
        parents: list[int] = []
        level = {-1: 0}
        right = {-1}
        for _ in range(3 * limit):
            parent = max(right) if self.random.random() < 0.5 else int(self.random.choice([*level]))
            if level[parent] == depth or len(tokens) == limit:
                continue
            token = int(self.random.integers(zoo.VOCABULARY))
            correct = parent in right and level[parent] < len(truth)
            if correct and self.random.random() < self.hit:
                token = truth[level[parent]]
            if (parent, token) in zip(parents, tokens, strict=True):
                continue
            node = len(tokens)
            tokens.append(token)
            parents.append(parent)
            level[node] = level[parent] + 1
            if correct and token == truth[level[parent]]:
                right.add(node)
        tree = make_tree(tokens, parents, [0.9 / (1 + level[i]) for i in range(len(tokens))])
        check_tree(tree)
        return tree


def make_engine(name: str, drafter: Drafter | None = None, **settings: Any) -> Engine:
    """An engine over a zoo model: greedy, three slots and eight draft nodes unless told."""
    accept = settings.pop("accept", AcceptConfig())
    eos = settings.pop("eos", frozenset())
    defaults: dict[str, Any] = {
        "budget": FixedBudget(8),
        "slots": 3,
        "max_new_tokens": NEW_TOKENS,
        "context_length": zoo.CONTEXT,
        "prefill_chunk": 16,
    }
    return Engine(
        target=zoo.target(name),
        drafter=drafter or NoDrafter(),
        rule=make_rule(accept, eos),
        accept=accept,
        eos_ids=eos,
        **(defaults | settings),
    )
