"""What a decoding step takes on CPU: transformers' own, ours over the unmodified model, and the
pass written by hand, beside the time that it takes to read the weights.

    PYTHONPATH=src python benchmarks/steps.py [--model DIR ...] [--context 300] [--rounds 15]

A model without a folder is a 341M-parameter Llama of random weights, as if published in bfloat16;
it runs in float32. All ways run in turn over sequences of `context` tokens, plain (one token each)
and with trees of 8 nodes. `packed` and `by_hand` have their weights laid out as `generate` does it,
`by_hand` in bfloat16 where that loses nothing. The last line is the result.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import interleave, note, paired_ratio, spread, write_result
from knowledge_replay import build_model
from transformers import AutoModelForCausalLM, DynamicCache

from draftrec.core import EMPTY_TREE
from draftrec.engine.packing import Segment
from draftrec.engine.passes import prepacked
from draftrec.engine.target import Target
from draftrec.engine.tree import make_tree

_NODES = 8


def load(folder: Path | None, seed: int) -> Any:
    """In float32."""
    if folder is None:
        return build_model(seed).float()
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def targets(model: Any) -> dict[str, Target]:
    """Ours over the same weights; `packed` as before they could be kept in bfloat16."""
    own, by_hand = copy.deepcopy(model), copy.deepcopy(model)
    halved = prepacked._halved
    prepacked._halved = lambda _: None
    try:
        prepacked.prepack(own)
    finally:
        prepacked._halved = halved
    prepacked.prepack(by_hand)
    return {"packed": Target(own), "by_hand": Target(by_hand, way="auto")}


@torch.inference_mode()
def transformers_step(model: Any, batch: int, context: int) -> Callable[[], object]:
    """One token for each of `batch` texts, by `model` and its own cache."""
    cache = DynamicCache()
    model(input_ids=torch.full((batch, context), 5), past_key_values=cache, logits_to_keep=1)
    tokens = torch.full((batch, 1), 5)

    @torch.inference_mode()
    def step() -> None:
        model(input_ids=tokens, past_key_values=cache)
        cache.crop(-1)

    return step


def our_step(target: Target, batch: int, context: int, nodes: int) -> Callable[[], object]:
    """One pending token for each of `batch` texts, and a tree of `nodes`."""
    target.reserve(batch, context + nodes + 1)
    parents = [max(-1, i - 2) for i in range(-1, nodes - 1)]
    tree = make_tree(list(range(5, 5 + nodes)), parents) if nodes else EMPTY_TREE
    start = np.array([3], np.int32)
    segments = [Segment(slot, context, start, tree) for slot in range(batch)]
    return lambda: target.score(segments)


def measure(model: Any, batches: list[int], context: int, rounds: int) -> dict[str, Any]:
    """Milliseconds of a step by way; how many times as fast the one by hand is as the packed."""
    ours = targets(model)
    found: dict[str, Any] = {"read_ms": read_milliseconds(model)}
    for batch in batches:
        for nodes in (0, _NODES):
            ways = {n: our_step(t, batch, context, nodes) for n, t in ours.items()}
            if not nodes:
                ways = {"transformers": transformers_step(model, batch, context), **ways}
            for step in ways.values():
                step()
                step()
            seconds = interleave(ways, rounds)
            name = f"batch_{batch}_{'drafts' if nodes else 'plain'}"
            found[name] = {
                way: {"ms": spread([1e3 * s for s in taken])} for way, taken in seconds.items()
            }
            ratio = paired_ratio(seconds["packed"], seconds["by_hand"])
            found[name]["by_hand"]["over_packed"] = ratio
            note(f"{name}: {found[name]}")
    return found


def read_milliseconds(model: Any, repeats: int = 9) -> dict[str, Any]:
    """How long one pass over as many bytes takes as its weights have in float32."""
    weights = sum(p.numel() for p in {id(p): p for p in model.parameters()}.values())
    numbers = torch.zeros(weights)
    seconds = interleave({"sum": lambda: numbers.sum()}, repeats)["sum"]
    return spread([1e3 * s for s in seconds])


def main(argv: list[str] | None = None) -> int:
    """Parse, measure, write benchmarks/results/steps.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, nargs="*", default=[], help="folders of real models")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--context", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-random", action="store_true", help="only the folders")
    parser.add_argument("--results", type=Path, help="folder of the result file")
    args = parser.parse_args(argv)
    models: dict[str, Any] = {}
    for folder in [*args.model, *([] if args.no_random else [None])]:
        model = load(folder, args.seed)
        name = folder.name if folder else "random 341M"
        models[name] = measure(model, args.batch, args.context, args.rounds)
    payload = {"context": args.context, "nodes": _NODES, "models": models}
    write_result("steps", payload, seed=args.seed, folder=args.results)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
