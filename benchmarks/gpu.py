"""What draftrec costs and gains on an accelerator: one command, under ten minutes on an H200.

    PYTHONPATH=src python benchmarks/gpu.py [--texts DIR] [--tokenizer DIR]
    PYTHONPATH=src python benchmarks/gpu.py --tiny --device cpu        # dry run, seconds

Builds Llamas of 1B and 7B parameters with random weights on the device and measures, for each: the
plain step against the time to read the weights once, the cost of a pass against its rows, Hugging
Face's step, and recorded texts replayed with and without drafts. Reads nothing but --texts.
"""

from __future__ import annotations

import argparse
import gc
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from common import SHARED, note, slug, spread, write_result
from gpu_replay import Cell, longest_for
from gpu_steps import (
    SHAPES,
    TINY,
    build,
    busy_seconds,
    copy_bandwidth,
    first_sight_seconds,
    hf_step_seconds,
    pass_seconds,
    reserve,
    segments_for,
    sync_for,
    weight_bytes,
)
from recorded import Trace, make_trace, pick_tokenizer, read_rows

from draftrec.engine.selfcheck import checked_target
from draftrec.engine.target import Target
from draftrec.pool.costs import measure_cost

BATCHES = (1, 8, 32)
# Passes that see one key more each.
_GROWTH = 12
ROWS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256)


@dataclass(frozen=True)
class Plan:
    """How much of everything; `cell_seconds` bounds one plain replay, `seconds` the whole run."""

    device: torch.device
    context: int = 512
    repeats: int = 9
    copy_bytes: int = 4 << 30
    curve_seconds: float = 6.0
    cell_seconds: float = 9.0
    seconds: float = 540.0
    warm: int = 2000

    @classmethod
    def tiny(cls, device: torch.device) -> Plan:
        return cls(device, 64, 2, 1 << 22, 0.05, 0.1, 60.0, 60)


class Clock:
    """Time since the start; parts that would end too late are left out and named."""

    def __init__(self, limit: float) -> None:
        self.start, self.limit = time.perf_counter(), limit
        self.left_out: list[str] = []

    @property
    def elapsed(self) -> float:
        return time.perf_counter() - self.start

    def allows(self, what: str, until: float) -> bool:
        """Whether there is time left; `until` is a share of the limit."""
        if self.elapsed < until * self.limit:
            return True
        self.left_out.append(what)
        return False


def measure_steps(model: Any, target: Target, plan: Plan, bandwidth: float) -> dict[str, Any]:
    """The plain step at each batch size against its floors."""
    weights = weight_bytes(model)
    report: dict[str, Any] = {"weight_bytes": weights, "weights_once_ms": 1e3 * weights / bandwidth}
    for batch in BATCHES:
        segments = segments_for(batch, batch, plan.context, model.config.vocab_size)
        reserve(target, batch, plan.context + _GROWTH + 8)
        wall = spread([1e3 * s for s in pass_seconds(target, segments, 3 * plan.repeats)])
        drafted = segments_for(batch, 4 * batch, plan.context, model.config.vocab_size)
        first = {
            "plain": first_sight_seconds(target, segments, _GROWTH),
            "drafted": first_sight_seconds(target, drafted, _GROWTH),
        }
        busy = busy_seconds(target, segments)
        kv = batch * plan.context * target.bytes_per_token
        floor = 1e3 * (weights + kv) / bandwidth
        report[f"batch_{batch}"] = {
            "step_ms": wall,
            "first_sight_ms": {k: spread([1e3 * s for s in v]) for k, v in first.items()},
            "busy_ms": None if busy is None else round(1e3 * busy, 4),
            "weights_and_kv_once_ms": round(floor, 4),
            "step_over_weights_once": round(wall["median"] / report["weights_once_ms"], 3),
            "step_over_floor": round(wall["median"] / floor, 3),
        }
    return report


def measure_rows(model: Any, target: Target, plan: Plan) -> dict[str, Any]:
    """Milliseconds of a pass against its rows, for one sequence and spread over more of them."""
    report: dict[str, Any] = {"context": plan.context, "rows": list(ROWS)}
    for batch in BATCHES:
        reserve(target, batch, plan.context + max(ROWS) + 8)
        medians = []
        for rows in ROWS:
            segments = segments_for(batch, rows, plan.context, model.config.vocab_size)
            medians.append(spread([1e3 * s for s in pass_seconds(target, segments, plan.repeats)]))
        report[f"batch_{batch}_ms"] = [m["median"] for m in medians]
    return report


def measure_replay(
    target: Target, plan: Plan, traces: list[Trace], clock: Clock, until: float, eos: int
) -> dict[str, Any]:
    """Every source at every batch size, and the cost curves that steered the budget."""
    report: dict[str, Any] = {"cost_curves": {}}
    for batch in BATCHES:
        cost = measure_cost(target, batch, plan.context, seconds=plan.curve_seconds)
        report["cost_curves"][f"batch_{batch}"] = cost.to_json()
        step = float(cost(batch))
        for place, trace in enumerate(traces):
            if not clock.allows(f"replay {trace.name} batch {batch}", until):
                continue
            cell = Cell(target, trace, batch, cost, eos)
            if place == 0:  # kernels and the index's code are compiled here, not inside a figure
                for drafts in (False, True):
                    cell.run(cell.requests(), 8, drafts=drafts)
            longest = longest_for(plan.cell_seconds, step, batch)
            report.setdefault(trace.name, {})[f"batch_{batch}"] = cell.measure(longest)
    return report


def measure_model(
    name: str, plan: Plan, traces: list[Trace], clock: Clock, shares: tuple[float, int]
) -> dict[str, Any]:
    """All figures of one model shape. `shares`: when it must be over, and the EOS id."""
    until, eos = shares
    started = clock.elapsed
    bandwidth = copy_bandwidth(plan.device, plan.copy_bytes)
    model = build((SHAPES | TINY)[name], plan.device)
    sync_for(plan.device)()
    parameters = sum(p.numel() for p in model.parameters())
    note(f"{name}: {parameters:,} parameters, built after {clock.elapsed - started:.1f} s")
    report: dict[str, Any] = {"parameters": parameters, "copy_bytes_per_second": bandwidth}
    steps = 32 if plan.context > 64 else 2
    report["hf_generate_step_ms"] = {
        f"batch_{b}": spread([1e3 * s for s in hf_step_seconds(model, b, plan.context, steps)])
        for b in BATCHES
    }
    target = checked_target(model)
    report["plain_step"] = measure_steps(model, target, plan, bandwidth["median"])
    report["pass_against_rows"] = measure_rows(model, target, plan)
    note(f"{name}: single passes measured after {clock.elapsed - started:.1f} s")
    report["replay"] = measure_replay(target, plan, traces, clock, until, eos)
    report["seconds"] = round(clock.elapsed - started, 1)
    return report


def run(
    plan: Plan, shapes: list[str], texts: Path | None, tokenizer: Path | None
) -> dict[str, Any]:
    """Everything, as one payload."""
    clock = Clock(plan.seconds)
    tests = max(BATCHES)
    sources = read_rows(texts, plan.warm + tests, seed=0)
    words = pick_tokenizer(tokenizer, sources, 8192)
    least = min((SHAPES | TINY)[name].vocabulary for name in shapes)
    if len(words) > least:
        raise SystemExit(f"the tokenizer has {len(words)} tokens, a shape only {least}")
    traces = [make_trace(name, rows, words, tests) for name, rows in sources.items()]
    sizes = {t.name: {"pool_texts": len(t.pool), "pool_tokens": t.pool.tokens} for t in traces}
    note(f"texts read and indexed after {clock.elapsed:.1f} s")
    report: dict[str, Any] = {"sources": sizes, "vocabulary": len(words), "models": {}}
    for place, name in enumerate(shapes):
        until = (place + 1) / len(shapes) * 0.9
        shares = (until, int(words.eos_token_id))
        report["models"][name] = measure_model(name, plan, traces, clock, shares)
        gc.collect()
        if plan.device.type == "cuda":
            torch.cuda.empty_cache()
    return report | {"left_out": clock.left_out, "seconds": round(clock.elapsed, 1)}


def main(argv: list[str] | None = None) -> None:
    """Parse, measure, write benchmarks/results/gpu-<device name>.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes and times: a dry run")
    parser.add_argument("--shapes", nargs="+", choices=[*SHAPES, *TINY])
    parser.add_argument("--texts", type=Path, default=SHARED / "data" / "texts")
    parser.add_argument("--tokenizer", type=Path, help="default: trained on the pools' texts")
    parser.add_argument("--results", type=Path, help="folder of the result file")
    args = parser.parse_args(argv)
    device = torch.device(args.device)
    on_gpu = device.type == "cuda"
    name = slug(torch.cuda.get_device_name(device) if on_gpu else args.device)
    plan = Plan.tiny(device) if args.tiny else Plan(device)
    shapes = args.shapes or list(TINY if args.tiny else SHAPES)
    payload = run(plan, shapes, args.texts, args.tokenizer)
    payload = {"dry_run": args.tiny, "dtype": "bfloat16", **payload}
    write_result(f"gpu-{name}{'-dry' if args.tiny else ''}", payload, seed=0, folder=args.results)


if __name__ == "__main__":
    main()
