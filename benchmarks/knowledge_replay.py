"""Replay half of knowledge.py: a 341M Llama with random weights 'writes' recorded real texts.

Each forward pass costs what it costs, the verdict comes from the recorded text. This is the honest
case: real LLM-written texts repeat themselves less than a small model's.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from common import spread
from replay import ReplayRule
from transformers import AutoModelForCausalLM, DynamicCache, LlamaConfig

from draftrec.config import AcceptConfig
from draftrec.core import IntArray, Request
from draftrec.engine.passes.prepacked import prepack
from draftrec.engine.selfcheck import checked_target
from draftrec.engine.target import Target
from draftrec.engine.text import loop
from draftrec.engine.text.budget import AutoBudget, FixedBudget
from draftrec.engine.text.loop import NoDrafter
from draftrec.pool.costs import measure_cost
from draftrec.pool.drafter import PoolDrafter
from draftrec.pool.index import warm_up
from draftrec.pool.store import Pool

TRACES = {
    "chatqa_ml1m_user": "chatqa_user",
    "gear_ml1m_user": "gear_user",
    "gear_ml1m_item": "gear_item",
    "agent4rec_ml1m_persona_like": None,
}


def build_model(seed: int, layers: int = 24, width: int = 1024) -> Any:
    """A Llama of 24 layers x 1024 (341M parameters), vocabulary 32,000, random weights, bf16."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=32_000, hidden_size=width, intermediate_size=width * 11 // 4,
        num_hidden_layers=layers, num_attention_heads=width // 64,
        num_key_value_heads=width // 64, max_position_embeddings=4096, tie_word_embeddings=True,
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()


class Trace:
    """Recorded texts of one source, split by entity: `tests` to replay, a pool of the others."""

    def __init__(
        self, folder: Path, name: str, tokenizer: Any, counts: tuple[int, int, int]
    ) -> None:
        tests, warm, seed = counts
        rows = pq.read_table(folder / "texts" / f"{name}.parquet").to_pylist()
        order = np.random.default_rng(seed).permutation(len(rows))
        rows = [rows[i] for i in order]
        prompts = self._prompts(folder, TRACES[name])

        def encode(text: str) -> IntArray:
            ids = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
            return np.array([*ids, tokenizer.eos_token_id], np.int32)

        self.eos: int = tokenizer.eos_token_id
        self.requests: list[Request] = []
        self.texts: dict[str, IntArray] = {}
        for row in rows[:tests]:
            prompt = row["prompt"] or prompts.get(row["entity_id"], "")
            ids = np.array(tokenizer(prompt, verbose=False).input_ids, np.int32)
            self.requests.append(Request(row["entity_id"], ids, row["group"]))
            self.texts[row["entity_id"]] = encode(row["text"])
        self.pool = Pool("replay")
        self.pool.add((encode(r["text"]), r["group"]) for r in rows[tests:][-warm:])

    @staticmethod
    def _prompts(folder: Path, task: str | None) -> dict[str, str]:
        rows = pq.read_table(folder / "profiles.parquet", columns=["task", "entity_id", "prompt"])
        return {r["entity_id"]: r["prompt"] for r in rows.to_pylist() if r["task"] == task}


def run_engine(
    target: Target, trace: Trace, requests: list[Request], slots: int, budget: AutoBudget | None
) -> dict[str, float]:
    """Replay `requests`; `budget` None is plain decoding. Returns seconds, tokens and calls."""
    engine = loop.Engine(
        target=target,
        drafter=NoDrafter() if budget is None else PoolDrafter(trace.pool),
        rule=ReplayRule(trace.texts),
        budget=budget or FixedBudget(0),
        accept=AcceptConfig(),
        eos_ids=frozenset([trace.eos]),
        slots=slots,
        max_new_tokens=max(len(t) for t in trace.texts.values()),
    )
    start = time.perf_counter()
    done = loop.generate(engine, requests)
    seconds = time.perf_counter() - start
    for generation in done:
        if not np.array_equal(generation.token_ids, trace.texts[generation.entity_id]):
            raise RuntimeError("the replay emitted other tokens than the recorded text")
    return {
        "seconds": seconds,
        "decode_seconds": seconds - engine.timing.prefill_seconds,
        "draft_seconds": engine.timing.draft_seconds,
        "tokens": sum(len(g.token_ids) for g in done),
        "calls": sum(g.counts.target_calls for g in done),
        "drafted": sum(g.counts.drafted_tokens for g in done),
    }


def replay_trace(
    target: Target, trace: Trace, batch: int, cost: Any, rounds: int
) -> dict[str, Any]:
    """Plain and drafted runs in turn over slices of the requests; ratios are paired per slice."""
    budget = AutoBudget(cost)  # learns from slice to slice, as within the shard of a job
    slices = [list(x) for x in np.array_split(np.arange(len(trace.requests)), rounds)]
    pairs: list[tuple[dict[str, float], dict[str, float]]] = []
    for turn, part in enumerate(slices):
        requests = [trace.requests[i] for i in part]
        order = [None, budget] if turn % 2 == 0 else [budget, None]
        runs = {b is None: run_engine(target, trace, requests, batch, b) for b in order}
        pairs.append((runs[True], runs[False]))

    def total(which: int, key: str) -> float:
        return sum(p[which][key] for p in pairs)

    return {
        "texts": len(trace.requests),
        "speedup": spread([a["seconds"] / b["seconds"] for a, b in pairs]),
        "speedup_of_sums": round(total(0, "seconds") / total(1, "seconds"), 3),
        "decode_speedup_of_sums": round(total(0, "decode_seconds") / total(1, "decode_seconds"), 3),
        "tokens_per_call": round(total(1, "tokens") / total(1, "calls"), 3),
        "drafted_per_call": round(total(1, "drafted") / total(1, "calls"), 2),
        "draft_share_of_time": round(total(1, "draft_seconds") / total(1, "seconds"), 4),
        "plain_ms_per_call": round(1e3 * total(0, "decode_seconds") / total(0, "calls"), 2),
    }


@torch.inference_mode()
def transformers_step(model: Any, repeats: int = 9) -> dict[str, Any]:
    """Milliseconds of a plain step as transformers runs it at batch 1, 400 tokens cached.

    bfloat16 with two rows is often faster than with one on a CPU, so both are given: the faster is
    the best plain way without draftrec.
    """
    cache = DynamicCache()
    model(input_ids=torch.full((1, 400), 5), past_key_values=cache)
    times: dict[str, list[float]] = {"one_row": [], "two_rows": []}
    for turn in range(repeats + 1):
        for rows, name in enumerate(times, start=1):
            start = time.perf_counter()
            model(input_ids=torch.full((1, rows), 5), past_key_values=cache)
            if turn:
                times[name].append(1e3 * (time.perf_counter() - start))
            cache.crop(-rows)
    return {name: spread(values) for name, values in times.items()}


def run_replay(
    data: tuple[Path, Any],
    sizes: dict[int, int],
    seed: int,
    model: Any,
    save: Callable[[dict[str, Any]], None],
) -> None:
    """All traces at all batch sizes; `sizes` maps batch to the number of texts replayed.

    `data` is the folder and the tokenizer; `save` is called after every trace with all so far.
    """
    warm_up()
    found: dict[str, Any] = {"transformers_step_ms": transformers_step(model), "traces": {}}
    prepack(model)  # what `generate` does: our own plain decoding is the baseline, and the best
    target = checked_target(model, way="auto")
    costs = {b: measure_cost(target, b, 300, seconds=25.0) for b in sizes}
    found["cost_curves"] = {str(b): c.to_json() for b, c in costs.items()}
    for name in TRACES:
        trace = Trace(data[0], name, data[1], (max(sizes.values()), 2000, seed))
        found["traces"][name] = {}
        everything = trace.requests
        for batch, count in sizes.items():
            trace.requests = everything[:count]
            rounds = count if batch == 1 else max(1, count // batch)
            result = replay_trace(target, trace, batch, costs[batch], rounds)
            found["traces"][name][str(batch)] = result
        save(found)
