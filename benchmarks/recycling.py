"""Would the target's own second thoughts draft what a pool does not? Nothing is timed.

Every verified row tells the target's most probable next tokens for nothing. Token Recycling (arXiv
2408.08696) remembers the latest ones after each token, and drafts a tree of them. Here texts that
the model has written are replayed, drafted from by a pool of earlier ones, by such a memory (of the
pool's texts too, as a running job would have it), and by the union of both trees, beside a pool
that may draft as many nodes as the union has. A memory that adds something makes the union better.

    python benchmarks/recycling.py RUN --model DIR [--pool 500] [--texts 60] [--nodes 16]

RUN: a folder of `draftrec generate`, greedy, whose records lie where they lay. The last line is the
result.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import note, write_result

from draftrec.config import ModelConfig
from draftrec.core import EMPTY_TREE, DraftTree, IntArray, Request
from draftrec.data.files.places import place
from draftrec.engine.text.batch import RunningSequence
from draftrec.engine.tree import make_tree
from draftrec.evaluate.replay.loop import follow
from draftrec.models.loading import load_model, load_tokenizer
from draftrec.pool.drafter import PoolDrafter
from draftrec.pool.store import Pool
from draftrec.train.drafter.texts import TrainingText, open_runs

_DEPTH = 24
# Successors remembered of a token, and the rows of the tree: how many children the nodes of each
# level have, best first. Few levels, since what comes after a token alone soon means little.
_KEPT, _CHILDREN = 8, ((8,), (4, 2, 1, 1), (2, 1))


class Memory:
    """The latest most probable tokens after each token."""

    def __init__(self, vocabulary: int) -> None:
        self._next = np.full((vocabulary, _KEPT), -1, np.int32)

    def learn(self, tokens: IntArray, best: IntArray) -> None:
        """`best` int32 `[n, 8]`: after each of `tokens` `[n]`; of equal ones the last counts."""
        self._next[tokens] = best

    def tree(self, last: int, nodes: int) -> DraftTree:
        """At most `nodes` below a token."""
        tokens: list[int] = []
        parents: list[int] = []
        level = [(-1, last)]
        for widths in _CHILDREN:
            below: list[tuple[int, int]] = []
            for (node, token), width in zip(level, widths, strict=False):
                for child in self._next[token, :width].tolist():
                    if child >= 0 and len(tokens) < nodes:
                        tokens.append(child)
                        parents.append(node)
                        below.append((len(tokens) - 1, child))
            level = below
        return make_tree(tokens, parents)


@torch.inference_mode()
def second_thoughts(model: Any, text: TrainingText) -> IntArray:
    """int32 `[len(ids), 8]`: the target's most probable tokens after every token of the text, the
    run's repetition penalty applied; -1 in the prompt, whose rows nobody scores."""
    ids = torch.from_numpy(text.ids).long()
    found = np.full((len(ids), _KEPT), -1, np.int32)
    scores = model(input_ids=ids[None], use_cache=False).logits[0, text.first - 1 :].float()
    for row, here in enumerate(scores, text.first - 1):
        seen, penalty = ids[: row + 1].unique(), text.rules.repetition
        had = here[seen]
        here[seen] = torch.where(had < 0, had * penalty, had / penalty)
        found[row] = here.topk(_KEPT).indices.int().numpy()
    return found


def union(a: DraftTree, b: DraftTree) -> DraftTree:
    """Both trees as one, equal paths once."""
    tokens, parents = a.token_ids.tolist(), a.parents.tolist()
    known = {(p, t): i for i, (t, p) in enumerate(zip(tokens, parents, strict=True))}
    place_of: dict[int, int] = {-1: -1}
    for i, (token, parent) in enumerate(zip(b.token_ids.tolist(), b.parents.tolist(), strict=True)):
        key = place_of[parent], token
        if key not in known:
            known[key] = len(tokens)
            tokens.append(token)
            parents.append(key[0])
        place_of[i] = known[key]
    return make_tree(tokens, parents)


def replayed(
    pool: Pool, memory: Memory, texts: list[tuple[TrainingText, IntArray]], nodes: int
) -> Iterator[tuple[str, float]]:
    """Tokens per call of each way; the memory learns as texts go on, in every way alike."""
    ways = {
        f"pool, {nodes} nodes": (nodes, 0),
        f"memory, {nodes} nodes": (0, nodes),
        f"both, {nodes} nodes each": (nodes, nodes),
        f"pool, {2 * nodes} nodes": (2 * nodes, 0),
    }
    start = memory._next.copy()
    for name, (of_pool, of_memory) in ways.items():
        memory._next[:] = start
        drafter, calls, tokens = PoolDrafter(pool), 0, 0
        for text, best in texts:
            answer = text.ids[text.first :]
            request = Request(text.entity_id, text.ids[: text.first])
            sequence = RunningSequence(0, 0, request, len(answer) + _DEPTH)
            drafter.start(sequence)
            while sequence.new_tokens < len(answer):
                tree = drafter.draft([sequence], of_pool, _DEPTH)[0] if of_pool else EMPTY_TREE
                if of_memory and sequence.new_tokens:
                    tree = union(tree, memory.tree(int(sequence.context[-1]), of_memory))
                before = len(sequence.context)
                verdict = follow(tree, answer[sequence.new_tokens :])
                sequence.extend(verdict, frozenset())
                drafter.observe([sequence], [verdict])
                rows = slice(before - 1, len(sequence.context) - 1)
                memory.learn(text.ids[rows], best[rows])
                calls += 1
            drafter.stop(sequence)
            tokens += len(answer)
        yield name, round(tokens / calls, 4)
    memory._next[:] = start


def main() -> None:
    """Parse, run, write recycling.json to benchmarks/results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--pool", type=int, default=500, help="texts in the pool")
    parser.add_argument("--remembered", type=int, default=60, help="of these, in the memory")
    parser.add_argument("--texts", type=int, default=60, help="texts that are replayed")
    parser.add_argument("--nodes", type=int, nargs="+", default=[8, 16])
    parser.add_argument("--results", type=Path, help="folder of the result file")
    args = parser.parse_args()
    model: Any = load_model(ModelConfig(model=str(args.model), dtype="float32"), packs=False)
    runs, _ = open_runs([place(args.run)], (), args.pool + args.texts)
    texts = runs[0].training_texts(model, load_tokenizer(str(args.model)))
    pool = Pool("")
    pool.add((it.ids[it.first :], None) for it in texts[: args.pool])
    memory = Memory(model.config.get_text_config().vocab_size)
    thoughts: list[IntArray] = []
    asked = texts[args.pool - args.remembered :]
    for count, text in enumerate(asked):
        thoughts.append(second_thoughts(model, text))
        if count % 10 == 9:
            note(f"{count + 1} of {len(asked)} texts read")
    for text, best in zip(asked[: args.remembered], thoughts, strict=False):
        memory.learn(text.ids[text.first :], best[text.first :])
    pairs = list(zip(asked[args.remembered :], thoughts[args.remembered :], strict=True))
    found = {n: dict(replayed(pool, memory, pairs, n)) for n in args.nodes}
    settings = {name: getattr(args, name) for name in ("pool", "remembered", "texts", "nodes")}
    payload = {"settings": settings, "model": args.model.name, "tokens_per_call": found}
    write_result("recycling", payload, seed=0, folder=args.results)


if __name__ == "__main__":
    main()
