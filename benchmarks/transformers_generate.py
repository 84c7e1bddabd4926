"""Inside transformers' `generate`, are the texts still its own? Token ids, by architecture.

    PYTHONPATH=src python benchmarks/transformers_generate.py [--prompts 32] [--real 60]

Tiny random models of every architecture of the target adapter's tests write at batch 1 and 8 with
`custom_generate=draftrec...generate` and without, greedily, in float32. The pool holds the plain
texts with every seventh token changed, so that drafts are accepted and refused at every batch. Then
the same on real prompts with the small real model, if it is at hand; there the pool holds what the
model wrote for other entities.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence as Seq
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import ROOT, SHARED, note, write_result
from exactness import read_prompts
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from draftrec.integrations import transformers as draftrec
from draftrec.pool.store import Pool

sys.path.append(str(ROOT))  # the architectures are the tests'
from tests.models import zoo

Rows = list[list[int]]


def batches(rows: Rows, size: int, pad: int) -> list[dict[str, torch.Tensor]]:
    """Inputs of `generate`, `size` rows each, padded on the left."""
    found = []
    for start in range(0, len(rows), size):
        block = rows[start : start + size]
        width = max(map(len, block))
        ids = torch.tensor([[pad] * (width - len(r)) + r for r in block])
        mask = torch.tensor([[0] * (width - len(r)) + [1] * len(r) for r in block])
        found.append({"input_ids": ids, "attention_mask": mask})
    return found


def write(
    model: Any, inputs: Seq[dict[str, torch.Tensor]], pad: int, **settings: Any
) -> tuple[Rows, list[Any]]:
    """The new tokens of every row, padding included, and what drafted ones cost."""
    texts: Rows = []
    costs: list[Any] = []
    for batch in inputs:
        output = model.generate(
            **batch, do_sample=False, pad_token_id=pad, return_dict_in_generate=True, **settings
        )
        texts += output.sequences[:, batch["input_ids"].shape[1] :].tolist()
        costs += getattr(output, "counts", None) or []
    return texts, costs


def compare(
    model: Any, rows: Rows, batch: int, pool: Pool, settings: dict[str, Any]
) -> dict[str, Any]:
    """Both ways at one batch size. `settings`: `pad`, `budget`, and those of both ways."""
    both = {k: v for k, v in settings.items() if k != "budget"}
    inputs = batches(rows, batch, both["pad"])
    expected, _ = write(model, inputs, **both)
    found, costs = write(
        model, inputs, **both,
        custom_generate=draftrec.generate, pool=pool, budget=settings["budget"],
    )  # fmt: skip
    eos = both.get("eos_token_id") or [model.generation_config.eos_token_id]
    tokens = sum(next((i for i, t in enumerate(r, 1) if t in eos), len(r)) for r in found)
    return {
        "prompts": len(rows),
        "identical": sum(a == b for a, b in zip(expected, found, strict=True)),
        "tokens_per_call": round(tokens / sum(c.target_calls for c in costs), 3),
        "drafted_tokens": sum(c.drafted_tokens for c in costs),
        "accepted_tokens": sum(c.accepted_tokens for c in costs),
    }


def spoilt_pool(texts: Rows, vocabulary: int) -> Pool:
    """The texts with every seventh token changed to another one."""
    pool = Pool("benchmark")
    for text in texts:
        ids = np.array(text, np.int32)
        ids[6::7] = 3 + (ids[6::7] + 1) % (vocabulary - 3)
        pool.add([(ids, None)])
    return pool


def architecture(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """One tiny model on drawn prompts; two tokens of its texts end texts, so lengths differ."""
    model: Any = zoo.build(name)
    generator = np.random.default_rng(args.seed)
    lengths = generator.integers(3, 60, args.prompts)
    rows = [generator.integers(3, zoo.VOCABULARY, n).tolist() for n in lengths]
    common = {"pad": 0, "max_new_tokens": args.max_new_tokens}
    texts, _ = write(model, batches(rows, 8, 0), **common, eos_token_id=None)
    half = args.max_new_tokens // 2
    settings = {**common, "eos_token_id": [texts[0][half], texts[-1][half]], "budget": 8}
    pool = spoilt_pool(texts, zoo.VOCABULARY)
    return {str(b): compare(model, rows, b, pool, settings) for b in args.batch}


def real(args: argparse.Namespace) -> dict[str, Any]:
    """The small real model on real prompts; its pool is of prompts of other entities."""
    tokenizer: Any = AutoTokenizer.from_pretrained(args.model)
    model: Any = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    pad = tokenizer.pad_token_id or 0

    def encode(split: str, per_task: int) -> Rows:
        prompts = [row["prompt"] for row in read_prompts(args.texts, split, per_task)]
        return tokenizer(prompts).input_ids if prompts else []

    pool = draftrec.new_pool(tokenizer)
    write(
        model, batches(encode("train", args.warm), 8, pad), pad, max_new_tokens=320,
        custom_generate=draftrec.generate, pool=pool, grow_pool=True, budget=16,
    )  # fmt: skip
    rows = encode("heldout", args.real)[: args.real]
    settings = {"pad": pad, "max_new_tokens": 320, "budget": 16}
    found = {str(b): compare(model, rows, b, pool, settings) for b in args.batch}
    return {"pool_texts": len(pool), "pool_tokens": pool.tokens, "batch": found}


def main(argv: list[str] | None = None) -> int:
    """Parse, measure, write benchmarks/results/transformers.json; 1 if any text differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--architectures", nargs="+", default=zoo.NAMES, choices=zoo.NAMES)
    parser.add_argument("--prompts", type=int, default=32, help="per architecture")
    parser.add_argument("--max-new-tokens", type=int, default=48)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--model", type=Path, default=SHARED / "models" / "profile-lm")
    parser.add_argument("--texts", type=Path, default=SHARED / "data" / "profiles.parquet")
    parser.add_argument("--real", type=int, default=60, help="real prompts; 0 leaves them out")
    parser.add_argument("--warm", type=int, default=40, help="real texts per task in the pool")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, help="folder of the result file")
    args = parser.parse_args(argv)
    logging.disable_progress_bar()
    payload: dict[str, Any] = {"max_new_tokens": args.max_new_tokens, "architectures": {}}
    for name in args.architectures:
        payload["architectures"][name] = architecture(name, args)
        note(f"{name}: {payload['architectures'][name]}")
    if args.real and args.model.is_dir() and args.texts.is_file():
        payload["real"] = real(args)
        note(f"real prompts: {payload['real']}")
    write_result("transformers", payload, seed=args.seed, folder=args.results)
    parts = [*payload["architectures"].values(), payload.get("real", {}).get("batch", {})]
    return int(any(b["identical"] != b["prompts"] for part in parts for b in part.values()))


if __name__ == "__main__":
    raise SystemExit(main())
