"""Is the strict text the model's own? Token ids against `model.generate`, prompt by prompt.

    PYTHONPATH=src python benchmarks/exactness.py [--model DIR] [--prompts FILE] [--limit 300] \
        [--passes auto eager frozen]
    PYTHONPATH=src python benchmarks/exactness.py --part bits [--model DIR ...] [--limit 300] \
        [--settings pass_=frozen]
    PYTHONPATH=src python benchmarks/exactness.py --part bits-cost [--model DIR ...] [--timed 16]

The reference is Hugging Face's greedy search, one prompt at a time and unpadded, in float32.
draftrec runs at several batch sizes, its passes in each of several ways, drafting from a pool of
texts that the model itself wrote for train prompts. Every text must be equal; the first that is not
is named, with the gap between the two largest logits where the texts part (a gap of rounding size
is a tie, anything else a bug).
`--part bits` asks the same of draftrec's own plain decoding, bit for bit, and `--part bits-cost`
times it (exactness_bits.py).
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from common import SHARED, note, write_result
from exactness_bits import all_equal, measure_bits
from transformers import AutoModelForCausalLM

from draftrec.config import make_config
from draftrec.core import Generation, IntArray, Request
from draftrec.jobs.knowledge.generator import Generator
from draftrec.pool.store import Pool

Texts = dict[str, list[int]]


def read_prompts(path: Path, split: str, per_task: int) -> list[dict[str, Any]]:
    """The first `per_task` rows of every task in a split, the tasks taking turns."""
    columns = ["task", "entity_id", "prompt", "split"]
    tasks: dict[str, list[dict[str, Any]]] = {}
    for row in pq.read_table(path, columns=columns).to_pylist():
        if row["split"] == split:
            rows = tasks.setdefault(row["task"], [])
            if len(rows) < per_task:
                rows.append(row)
    longest = max((len(rows) for rows in tasks.values()), default=0)
    return [rows[i] for i in range(longest) for rows in tasks.values() if i < len(rows)]


def requests_for(rows: list[dict[str, Any]], generator: Generator) -> list[Request]:
    """Requests named `task/entity`, in the groups of their tasks."""
    ids = generator.encode([row["prompt"] for row in rows])
    return [
        Request(f"{row['task']}/{row['entity_id']}", x, row["task"])
        for row, x in zip(rows, ids, strict=True)
    ]


@torch.inference_mode()
def reference_texts(
    model: Any, requests: list[Request], generator: Generator, longest: int
) -> Texts:
    """What `model.generate` writes, one prompt at a time."""
    texts: Texts = {}
    for count, request in enumerate(requests):
        prompt = torch.as_tensor(request.prompt_ids, dtype=torch.long, device=model.device)[None]
        room = min(longest, generator.context_length - prompt.shape[1])
        output = model.generate(
            prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=room,
            pad_token_id=generator.tokenizer.pad_token_id,
        )  # fmt: skip
        texts[request.entity_id] = output[0, prompt.shape[1] :].tolist()
        if (count + 1) % 50 == 0:
            note(f"reference: {count + 1} of {len(requests)}")
    return texts


def warm_pool(generator: Generator, rows: list[dict[str, Any]]) -> Pool:
    """Texts the model itself writes for `rows`."""
    requests = requests_for(rows, generator)
    pool = Pool(generator.fingerprint["tokenizer"])
    done = generator.run(requests)
    pool.add((g.token_ids, r.group) for g, r in zip(done, requests, strict=True))
    return pool


@torch.inference_mode()
def first_difference(model: Any, prompt: IntArray, expected: list[int], found: list[int]) -> Any:
    """Where two texts part, and how far apart the reference's two largest logits are there."""
    shortest = min(len(expected), len(found))
    differing = (i for i in range(shortest) if expected[i] != found[i])
    place = next(differing, shortest)
    context = torch.as_tensor([*prompt.tolist(), *expected[:place]], device=model.device)[None]
    best = model(context).logits[0, -1].float().topk(2)
    return {
        "position": place,
        "expected": expected[place : place + 1],
        "found": found[place : place + 1],
        "top_two": best.indices.tolist(),
        "logit_gap": float(best.values[0] - best.values[1]),
    }


def compare(
    model: Any, requests: list[Request], expected: Texts, done: list[Generation]
) -> dict[str, Any]:
    """How many texts are equal; all that are not, by entity, the first one described."""
    found = {g.entity_id: g.token_ids.tolist() for g in done}
    different = [r for r in requests if found[r.entity_id] != expected[r.entity_id]]
    report: dict[str, Any] = {
        "prompts": len(requests),
        "identical": len(requests) - len(different),
        "different": [r.entity_id for r in different],
    }
    if different:
        one = different[0]
        texts = expected[one.entity_id], found[one.entity_id]
        report["first_difference"] = {
            "entity": one.entity_id,
            **first_difference(model, one.prompt_ids, *texts),
        }
    return report


def run_batch(
    generator: Generator, requests: list[Request], settings: dict[str, Any], pool: Pool
) -> tuple[list[Generation], dict[str, Any]]:
    """All requests at one batch size, and what drafting was worth."""
    model = generator.config.target.model
    config = make_config(model, **settings, draft="pool", accept="strict")
    start = time.perf_counter()
    done = generator.with_config(config, pool=pool).run(requests)
    seconds = time.perf_counter() - start
    calls = sum(g.counts.target_calls for g in done)
    drafted = sum(g.counts.drafted_tokens for g in done)
    return done, {
        "tokens_per_call": round(sum(len(g.token_ids) for g in done) / calls, 3),
        "drafted_tokens": drafted,
        "accepted_tokens": sum(g.counts.accepted_tokens for g in done),
        "eos": sum(g.finish_reason == "eos" for g in done),
        "seconds": round(seconds, 2),
    }


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Reference, warm pool, every batch size; the payload."""
    base = {"dtype": "float32", "device": args.device, "max_new_tokens": args.max_new_tokens}
    base |= dict(args.settings)
    budget, folder = args.budget[-1], (args.model or [SHARED / "models" / "profile-lm"])[0]
    settings = {**base, "budget": budget if budget == "auto" else int(budget)}
    generator = Generator.from_pretrained(folder, **base, batch_size=16, draft="none")
    held_out = read_prompts(args.prompts, "heldout", args.limit)
    requests = requests_for(held_out, generator)[: args.limit]
    pool = warm_pool(generator, read_prompts(args.prompts, "train", args.warm))
    note(f"pool: {len(pool)} texts, {pool.tokens:,} tokens; {len(requests)} prompts to write")
    # Its own copy of the model: draftrec's has another attention function.
    model: Any = AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32)
    model = model.to(generator.target.device).eval()
    start = time.perf_counter()
    expected = reference_texts(model, requests, generator, args.max_new_tokens)
    payload: dict[str, Any] = {
        "prompts": len(requests),
        "pool_texts": len(pool),
        "budget": budget,
        "settings": dict(args.settings),
        "max_new_tokens": args.max_new_tokens,
        "reference_tokens": int(np.sum([len(t) for t in expected.values()])),
        "reference_seconds": round(time.perf_counter() - start, 2),
        "batch": {},
        "passes": {},
    }
    for way in args.passes:
        made, found, own = generator, payload["batch"], settings
        if way != "auto":  # which the first generator has
            own, found = settings | {"pass_": way}, payload["passes"].setdefault(way, {})
            made = Generator.from_pretrained(folder, **base | {"pass_": way}, draft="none")
        for batch in args.batch:
            done, worth = run_batch(made, requests, {**own, "batch_size": batch}, pool)
            report = compare(model, requests, expected, done)
            found[str(batch)] = {**report, **worth}
            note(f"{way}, batch {batch}: {report['identical']} of {report['prompts']} identical")
    return payload


def _setting(text: str) -> tuple[str, Any]:
    name, found, value = text.partition("=")
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return name, value


def main(argv: list[str] | None = None) -> int:
    """Parse, measure, write exactness.json or exactness-bits.json in benchmarks/results; 1 if any
    text differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=("generate", "bits", "bits-cost"), default="generate")
    parser.add_argument("--model", type=Path, nargs="+", help="bits: any number; default: embedded")
    parser.add_argument("--prompts", type=Path, default=SHARED / "data" / "profiles.parquet")
    parser.add_argument("--limit", type=int, default=300, help="held-out prompts, tasks in turn")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--warm", type=int, default=40, help="train prompts per task for the pool")
    parser.add_argument(
        "--budget", nargs="+", default=["4", "16", "auto"],
        help="auto, or draft nodes per text; of several, generate and times take the last",
    )  # fmt: skip
    parser.add_argument(
        "--passes", nargs="+", choices=("auto", "eager", "frozen"), default=["auto"],
        help="how passes run",
    )  # fmt: skip
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"], help="of bits")
    parser.add_argument(
        "--timed", type=int, default=16, help="bits-cost: prompts, at least a batch"
    )
    parser.add_argument("--rounds", type=int, default=5, help="bits-cost")
    parser.add_argument("--max-new-tokens", type=int, default=512)
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--settings", type=_setting, nargs="*", default=[], metavar="NAME=VALUE",
        help="further settings of the generator",
    )  # fmt: skip
    parser.add_argument("--results", type=Path, help="folder of the result file")
    args = parser.parse_args(argv)
    if args.part == "bits-cost":
        write_result("exactness-bits-cost", measure_bits(args, cost=True), folder=args.results)
        return 0
    if args.part == "bits":
        payload = measure_bits(args, cost=False)
        name = "-".join(["exactness-bits", *(str(value) for _, value in args.settings)])
        write_result(name, payload, folder=args.results)
        return int(not all_equal(payload))
    payload = measure(args)
    write_result("exactness", payload, folder=args.results)
    batches = [
        *payload["batch"].values(),
        *(b for w in payload["passes"].values() for b in w.values()),
    ]
    return int(any(b["identical"] != b["prompts"] for b in batches))


if __name__ == "__main__":
    raise SystemExit(main())
