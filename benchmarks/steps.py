"""What a decoding step takes on CPU: transformers', ours over the unmodified model, ours written by
hand, llama.cpp's and OpenVINO GenAI's, beside the time that it takes to read the weights.

    PYTHONPATH=src OMP_NUM_THREADS=1 python benchmarks/steps.py [--model DIR ...] [--rounds 11]

A model without a folder is a 341M-parameter Llama of random weights, as if published in bfloat16;
it runs in float32. All ways run in turn after the same `context` tokens, plain (one token each) and
with 8 drafted tokens (ours a tree, the others' a chain), on as many threads as torch has. `packed`
and `by_hand` have their weights laid out, `packed` by oneDNN, `by_hand` as `generate` does it, in
bfloat16 where that loses nothing; llama.cpp has the same ones. `bfloat16` is the pass by hand of
the model in bfloat16, which `generate` chooses by itself where the processor multiplies that, and
where rows are rounded as llama.cpp rounds them. Other engines are optional (`peer_llama_cpp.py` and
`peer_openvino.py` say how to install them): whether they write what transformers writes is counted
first, and one that is missing or fails is named with the reason. The last line is the result.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import ROOT, in_turn, interleave, note, paired_ratio, seconds_of, spread, write_result
from knowledge_replay import build_model
from packed_weights import PrepackedLinear
from peers import PEERS, skipped, start_engines
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache, StoppingCriteria

from draftrec.core import EMPTY_TREE
from draftrec.engine.packing import Segment
from draftrec.engine.passes import prepacked
from draftrec.engine.target import Target
from draftrec.engine.tree import make_tree
from draftrec.models.cpu import multiplies_bfloat16

# Tokens of the texts, unless others are asked for.
_CONTEXT = 300
_NODES = 8
#: Tokens that a call of transformers' `generate` writes beside its first.
_WRITTEN = 4
#: Our passes by hand, and what they run in.
OURS = {"by_hand": torch.float32, "bfloat16": torch.bfloat16}
#: Texts, their prompts' tokens and new tokens that a peer has to write as transformers does.
_CHECKED, _PROMPT, _NEW = 4, 64, 16


def load(folder: Path | None, seed: int) -> Any:
    """In float32."""
    if folder is None:
        return build_model(seed).float()
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def texts(folder: Path | None, count: int, length: int, seed: int) -> Any:
    """int64 `[count, length]`: pieces of this repository's pages, without the one made of results;
    drawn tokens where the model has no tokenizer."""
    if folder is None:
        return np.random.default_rng(seed).integers(5, 30_000, (count, length))
    files = sorted(p for p in (ROOT / "docs").glob("*.md") if p.stem != "benchmarks")
    pages = "\n".join(p.read_text() for p in files)
    ids = AutoTokenizer.from_pretrained(folder)(
        pages[: 8 * count * length], verbose=False
    ).input_ids
    return np.resize(np.array(ids, np.int64), (count, length))


def targets(model: Any) -> dict[str, Target]:
    """Ours over the same weights; `packed` in oneDNN's layout, in float32."""
    own = copy.deepcopy(model)
    by_rows = prepacked._by_rows
    prepacked._by_rows = lambda linears, _: PrepackedLinear(*linears)
    try:
        prepacked.prepack(own)
    finally:
        prepacked._by_rows = by_rows
    found = {"packed": Target(own)}
    for name, dtype in OURS.items():
        if dtype == torch.float32 or multiplies_bfloat16():
            by_hand = copy.deepcopy(model).to(dtype)
            prepacked.prepack(by_hand)
            found[name] = Target(by_hand, way="auto")
            found[name].runner.by_row = True  # as `checked_target` finds that it may
    return found


@torch.inference_mode()
def read_prompts(model: Any, prompts: Any) -> DynamicCache:
    """Keys and values of the prompts."""
    cache = DynamicCache()
    model(torch.from_numpy(prompts), None, None, cache, logits_to_keep=1)  # releases name it apart
    return cache


def transformers_step(model: Any, cache: DynamicCache, following: Any) -> Callable[[], object]:
    """Logits of `following` `[texts, rows]`, by `model` and its own cache."""
    tokens = torch.from_numpy(following)

    @torch.inference_mode()
    def step() -> None:
        model(tokens, None, None, cache)
        cache.crop(-tokens.shape[1])

    return step


class _Clock(StoppingCriteria):
    """When each token was there; stops nothing."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> Any:
        self.times.append(time.perf_counter())
        return torch.zeros(len(input_ids), dtype=torch.bool)


def generate_step(model: Any, cache: DynamicCache, texts: Any) -> Callable[[], float]:
    """Seconds that `generate` takes for a token of each text: mean of those after its first. All
    but the last token of `texts` are in `cache`."""
    ids = torch.from_numpy(texts)
    asked = {"min_new_tokens": _WRITTEN + 1, "max_new_tokens": _WRITTEN + 1, "do_sample": False}

    def step() -> float:
        clock = _Clock()
        model.generate(
            ids, attention_mask=torch.ones_like(ids), past_key_values=cache,
            stopping_criteria=[clock], pad_token_id=0, **asked,
        )  # fmt: skip
        cache.crop(ids.shape[1] - 1 - cache.get_seq_length())
        return (clock.times[-1] - clock.times[0]) / _WRITTEN

    return step


def fill(target: Target, cache: DynamicCache, room: int) -> None:
    """Give the target the keys and values that transformers computed, and room for more."""
    batch, _, length, _ = cache.layers[0].keys.shape
    target.reserve(batch, length + room)
    slab = target.slab
    for place, layer in enumerate(cache.layers):
        slab.keys[place][:, :, :length] = layer.keys
        slab.values[place][:, :, :length] = layer.values


def our_step(target: Target, following: Any, start: int) -> Callable[[], object]:
    """Scores of `following` `[texts, 1 + nodes]`: a pending token and a tree of the rest."""
    nodes = following.shape[1] - 1
    parents = [max(-1, i - 2) for i in range(-1, nodes - 1)]
    segments = [
        Segment(slot, start, row[:1], make_tree(row[1:].tolist(), parents) if nodes else EMPTY_TREE)
        for slot, row in enumerate(following.astype(np.int32))
    ]
    return lambda: target.score(segments)


def start_peers(model: Any, prompts: Any, scratch: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The other engines over the model's weights, and what is known of each: how much it writes as
    transformers does, or why it was skipped."""
    started, known = start_engines(PEERS, model, scratch)
    for name in list(started):
        try:
            known[name] = known[name] | agreement(started[name], model, prompts)
        except Exception as error:  # noqa: BLE001 - the other ways are worth measuring
            known[name] = skipped(error)
            del started[name]
        note(f"{name}: {known[name]}")
    return started, known


def agreement(peer: Any, model: Any, prompts: Any) -> dict[str, Any]:
    """Tokens that the peer writes as transformers does, each text up to the first difference."""
    prompts = np.ascontiguousarray(prompts[:_CHECKED, :_PROMPT])
    equal = np.array(peer.greedy(prompts, _NEW)) == greedy(model, prompts, _NEW)
    same = int(np.logical_and.accumulate(equal, 1).sum())
    return {"same_tokens": same, "of_tokens": equal.size}


@torch.inference_mode()
def greedy(model: Any, prompts: Any, tokens: int) -> Any:
    """int64 `[texts, tokens]`: the likeliest tokens after each prompt, also past its end."""
    cache, last, found = DynamicCache(), torch.from_numpy(prompts), []
    for _ in range(tokens):
        logits = model(last, None, None, cache, logits_to_keep=1).logits
        last = logits[:, -1].argmax(-1, keepdim=True)
        found.append(last)
    return torch.cat(found, 1).numpy()


def measure(model: Any, drawn: Any, batches: list[int], rounds: int) -> dict[str, Any]:
    """Of `drawn` `[texts, context + 1 + nodes]`, by batch, plain and with drafts: milliseconds of a
    step by way, and what those by hand are beside the others."""
    ours, start = targets(model), drawn.shape[1] - 1 - _NODES
    found: dict[str, Any] = {
        "read_ms": read_milliseconds(model, 1),
        "read_half_ms": read_milliseconds(model, 2),
    }
    with tempfile.TemporaryDirectory() as scratch:
        peers, found["peers"] = start_peers(model, drawn, Path(scratch))
        for batch in batches:
            ways = _ways(model, ours, peers, drawn[:batch], start)
            for step in (*ways.values(), *ways.values()):
                step()
            found |= _cells(batch, in_turn(ways, rounds))
            note(f"batch {batch}: {found[f'batch_{batch}_plain']}")
        for peer in peers.values():
            peer.close()
    return found


def _ways(
    model: Any, ours: dict[str, Target], peers: dict[str, Any], drawn: Any, start: int
) -> dict[str, Callable[[], float]]:
    """Every way to step, by `plain way` or `drafts way`; each says how many seconds it took."""
    cache = read_prompts(model, drawn[:, :start])
    for target in ours.values():
        fill(target, cache, 1 + _NODES)
    for peer in peers.values():
        peer.begin(drawn[:, :start])
    ways: dict[str, Callable[[], float]] = {
        "plain generate": generate_step(model, copy.deepcopy(cache), drawn[:, : start + 1])
    }
    for kind, rows in {"plain": 1, "drafts": 1 + _NODES}.items():
        following = np.ascontiguousarray(drawn[:, start : start + rows])
        steps = {"transformers": transformers_step(model, cache, following)}
        steps |= {name: our_step(target, following, start) for name, target in ours.items()}
        for name, peer in peers.items():
            if rows == 1 or peer.drafts:
                steps[name] = peer.step(following)
        ways |= {f"{kind} {name}": partial(seconds_of, step) for name, step in steps.items()}
    return ways


def _cells(batch: int, seconds: dict[str, list[float]]) -> dict[str, Any]:
    """`over_packed`: how many times as fast the pass by hand is; `over_` another engine: its time
    over that one's; `break_even`: tokens a call with drafts has to give to beat plain steps."""
    cells: dict[str, Any] = {}
    for kind in ("plain", "drafts"):
        taken = {n.split()[1]: s for n, s in seconds.items() if n.startswith(kind)}
        cell: dict[str, Any] = {n: {"ms": spread([1e3 * x for x in s])} for n, s in taken.items()}
        for name in [n for n in OURS if n in taken]:
            for other in ("packed", *PEERS):
                if other in taken:
                    pair = taken["packed"], taken[name]
                    pair = pair if other == "packed" else (taken[name], taken[other])
                    cell[name][f"over_{other}"] = paired_ratio(*pair)
        cells[f"batch_{batch}_{kind}"] = cell
    plain = {n.split()[1]: s for n, s in seconds.items() if n.startswith("plain")}
    for name in [n for n in OURS if n in plain]:
        cells[f"batch_{batch}_drafts"][name]["break_even"] = {
            other: paired_ratio(seconds[f"drafts {name}"], taken) for other, taken in plain.items()
        }
    return cells


def read_milliseconds(model: Any, part: int, repeats: int = 9) -> dict[str, Any]:
    """How long one pass over the bytes of its float32 weights takes, divided by `part`, from memory
    with huge pages, which numpy asks for."""
    weights = sum(p.numel() for p in {id(p): p for p in model.parameters()}.values())
    numbers = torch.from_numpy(np.ones(weights // part, np.float32))
    seconds = interleave({"sum": lambda: numbers.sum()}, repeats)["sum"]
    return spread([1e3 * s for s in seconds])


def main(argv: list[str] | None = None) -> int:
    """Parse, measure, write benchmarks/results/steps.json, or steps-CONTEXT.json after texts that
    are longer than usual."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, nargs="*", default=[], help="folders of real models")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--context", type=int, default=_CONTEXT)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-random", action="store_true", help="only the folders")
    parser.add_argument("--results", type=Path, help="folder of the result file")
    args = parser.parse_args(argv)
    models: dict[str, Any] = {}
    for folder in [*args.model, *([] if args.no_random else [None])]:
        model = load(folder, args.seed)
        count = max(*args.batch, _CHECKED)
        drawn = texts(folder, count, args.context + 1 + _NODES, args.seed)
        for row in drawn:  # siblings of a tree differ
            if len(set(row[-_NODES:].tolist())) < _NODES:
                row[-_NODES:] = np.arange(5, 5 + _NODES)
        name = folder.name if folder else "random 341M"
        models[name] = measure(model, drawn, args.batch, args.rounds)
    payload = {"context": args.context, "nodes": _NODES, "models": models}
    name = "steps" if args.context <= _CONTEXT else f"steps-{args.context}"
    write_result(name, payload, seed=args.seed, folder=args.results)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
