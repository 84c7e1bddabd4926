"""Live half of knowledge.py: a small real model writes, every engine on the same prompts.

Engines run interleaved, round after round over disjoint slices of the prompts, so that a change of
the machine's mood meets all of them. Speed is new tokens per second, drafting and prompts included.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from common import spread
from transformers import AutoModelForCausalLM

from draftrec.config import make_config
from draftrec.core import Generation, IntArray, Request
from draftrec.jobs.knowledge.account import loops
from draftrec.jobs.knowledge.generator import Generator

MAX_NEW = 320


@dataclass(frozen=True)
class Written:
    """What one engine made of one slice of prompts."""

    texts: list[list[int]]
    seconds: float
    calls: int = 0

    @property
    def tokens(self) -> int:
        return sum(len(t) for t in self.texts)


Engine = Callable[[list[Request]], Written]


@dataclass(frozen=True, slots=True)
class Asked:
    """What engines that know only tokens are asked for: texts `batch` at a time, of at most
    `max_new_tokens` tokens, greedy at temperature 0, each until a token of `ends`."""

    batch: int
    max_new_tokens: int
    repetition_penalty: float
    temperature: float
    seed: int
    ends: frozenset[int]


def requests_from(
    path: Path, generator: Generator, split: str, count: int, seed: int
) -> list[Request]:
    """`count` prompts of one split, the tasks in turn, tokenised for the model."""
    rows = [r for r in pq.read_table(path).to_pylist() if r["split"] == split]
    rng = np.random.default_rng(seed)
    by_task: dict[str, list[dict[str, Any]]] = {}
    for i in rng.permutation(len(rows)):
        by_task.setdefault(rows[i]["task"], []).append(rows[i])
    mixed = [r for group in zip(*by_task.values(), strict=False) for r in group][:count]
    ids = generator.encode([r["prompt"] for r in mixed])
    return [
        Request(f"{r['task']}/{r['entity_id']}", x, r["task"], key=i)
        for i, (r, x) in enumerate(zip(mixed, ids, strict=True))
    ]


def ours(
    generator: Generator, on_text: Callable[[Request, Generation], None] | None = None
) -> Engine:
    """An engine from a Generator; `on_text` is told of every text in the step that finishes it."""

    def write(requests: list[Request]) -> Written:
        start = time.perf_counter()
        done = generator.run(requests, on_text=on_text)
        seconds = time.perf_counter() - start
        calls = sum(g.counts.target_calls for g in done)
        return Written([g.token_ids.tolist() for g in done], seconds, calls)

    return write


def another(peer: Any, asked: Asked) -> Engine:
    """An engine from a peer of `peers.py`."""

    def write(requests: list[Request]) -> Written:
        start = time.perf_counter()
        texts = peer.write([r.prompt_ids for r in requests], asked)
        return Written(texts, time.perf_counter() - start)

    return write


def hugging_face(model: Any, tokenizer: Any, batch: int, **options: Any) -> Engine:
    """`model.generate` as a user runs it: static batches, padded on the left."""

    def write(requests: list[Request]) -> Written:
        texts: list[list[int]] = []
        start = time.perf_counter()
        for first in range(0, len(requests), batch):
            texts += _generate(model, tokenizer, requests[first : first + batch], options)
        return Written(texts, time.perf_counter() - start)

    return write


def _generate(
    model: Any, tokenizer: Any, requests: list[Request], options: dict[str, Any]
) -> list[list[int]]:
    prompts: list[IntArray] = [r.prompt_ids for r in requests]
    width = max(len(p) for p in prompts)
    pads = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    pad = next(x for x in pads if x is not None)
    ids = torch.full((len(prompts), width), pad, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.from_numpy(prompt).long()
        mask[row, width - len(prompt) :] = 1
    with torch.inference_mode():
        out = model.generate(ids, attention_mask=mask, **{"max_new_tokens": MAX_NEW, **options})
    texts = []
    for row in out[:, width:].tolist():
        end = row.index(tokenizer.eos_token_id) + 1 if tokenizer.eos_token_id in row else len(row)
        texts.append(row[:end])
    return texts


def engines(
    base: Generator, other: Generator, batch: int, temperature: float, pool: Any
) -> dict[str, Engine]:
    """Every way of running the model at this batch size and temperature.

    `other` is the same model in another dtype: its plain decoding may be the faster baseline.
    """
    model_path, tokenizer = base.config.target.model, base.tokenizer
    common = {"batch_size": batch, "max_new_tokens": MAX_NEW, "temperature": temperature}
    sampled = {"do_sample": temperature > 0} | (
        {"temperature": temperature, "top_k": 0} if temperature else {}
    )
    dtype = base.config.target.dtype
    reference = AutoModelForCausalLM.from_pretrained(model_path, dtype=getattr(torch, dtype)).eval()
    found: dict[str, Engine] = {"hf_generate": hugging_face(reference, tokenizer, batch, **sampled)}
    if batch == 1:
        found["hf_prompt_lookup"] = hugging_face(
            reference, tokenizer, 1, prompt_lookup_num_tokens=10, **sampled
        )

    def make(**settings: Any) -> Engine:
        config = make_config(model_path, dtype=dtype, **common, **settings)
        return ours(base.with_config(config, pool=pool if settings["draft"] == "pool" else None))

    plain = make_config(model_path, dtype=other.config.target.dtype, draft="none", **common)
    found["plain"] = make(draft="none")
    found["plain_other_dtype"] = ours(other.with_config(plain))
    found["strict"] = make(draft="pool")
    found["relaxed"] = make(draft="pool", accept="relaxed")
    return found


def compare(
    engines_: dict[str, Engine],
    requests: list[Request],
    rounds: int,
    warmup: list[Request] | None = None,
) -> dict[str, Any]:
    """Run all engines on each of `rounds` slices; `warmup`, or a part of the first slice, comes
    before and is not counted."""
    slices = np.array_split(np.arange(len(requests)), rounds)
    for write in engines_.values():
        write(warmup or [requests[i] for i in slices[0][: max(1, len(slices[0]) // 3)]])
    results: dict[str, list[Written]] = {name: [] for name in engines_}
    for turn, part in enumerate(slices):
        names = list(engines_)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            results[name].append(engines_[name]([requests[i] for i in part]))
    return summarise(results)


def summarise(results: dict[str, list[Written]]) -> dict[str, Any]:
    """Tokens per second, and speedups against the best plain way, paired per round."""
    rates = {n: [w.tokens / w.seconds for w in ws] for n, ws in results.items()}
    ways = [n for n in ("plain", "plain_other_dtype", "hf_generate") if n in rates]
    best = max(ways, key=lambda n: float(np.median(rates[n])))
    report: dict[str, Any] = {"best_plain_way": best}
    plain_texts = [t for w in results["plain"] for t in w.texts]
    for name, written in results.items():
        calls = sum(w.calls for w in written)
        texts = [t for w in written for t in w.texts]
        ratio = lambda base: spread([a / b for a, b in zip(rates[name], rates[base], strict=True)])  # noqa: E731, B023
        report[name] = {
            "tokens_per_second": spread(rates[name]),
            "speedup_over_best_plain": ratio(best),
            "speedup_over_hf_generate": ratio("hf_generate"),
            "tokens_per_call": round(sum(w.tokens for w in written) / calls, 3) if calls else None,
            "identical_to_plain": sum(a == b for a, b in zip(texts, plain_texts, strict=True)),
            "texts": len(texts),
            "looping": sum(loops(np.array(t[:-1], np.int32)) for t in texts),
        }
    return report
