"""What laying weights out once saves: the linear layers of a 341M-parameter Llama, by rows.

    PYTHONPATH=src python benchmarks/packed_weights.py [--layers 24] [--repeats 7]

All layers of the model run one after the other, as in a forward pass, so that weights come from
memory and not from a cache. Plain is `F.linear`; both run in turn, on the same inputs.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch
from common import note, spread, write_result
from torch import nn

from draftrec.engine.passes import prepacked
from draftrec.engine.passes.prepacked import PrepackedLinear, RowLinear
from draftrec.engine.passes.row_products import Shelf

_WIDTH, _INNER, _VOCABULARY = 1024, 2816, 32_000
_ROWS = (1, 2, 4, 8, 9, 16, 32, 72, 256)


def build(layers: int, dtype: torch.dtype) -> list[nn.Linear]:
    """Attention's four and the feed-forward block's three projections per layer, and the head."""
    shapes = [(_WIDTH, _WIDTH)] * 4 + [(_WIDTH, _INNER)] * 2 + [(_INNER, _WIDTH)]
    sizes = [*shapes * layers, (_WIDTH, _VOCABULARY)]
    return [nn.Linear(a, b, bias=False, dtype=dtype) for a, b in sizes]


@torch.inference_mode()
def seconds(modules: list[Any], inputs: dict[int, torch.Tensor]) -> float:
    """Wall seconds of one pass through all layers."""
    start = time.perf_counter()
    for module in modules:
        module(inputs[module.in_features])
    return time.perf_counter() - start


def measure(layers: int, dtype: torch.dtype, repeats: int) -> list[dict[str, Any]]:
    """Milliseconds of a pass per number of rows, by way."""
    ways: dict[str, Any] = {"plain": build(layers, dtype)}
    ways["packed"] = [PrepackedLinear(x) for x in ways["plain"]]
    shelf = Shelf()
    ways["ours"] = [RowLinear([x.weight.detach().bfloat16()], None, shelf) for x in ways["plain"]]
    found: list[dict[str, Any]] = []
    for rows in _ROWS:
        inputs = {n: torch.randn(1, rows, n).to(dtype) for n in (_WIDTH, _INNER)}
        times: dict[str, list[float]] = {name: [] for name in ways}
        for turn in range(repeats + 1):
            for name, modules in ways.items():
                elapsed = 1e3 * seconds(modules, inputs)
                if turn:  # the first compiles kernels
                    times[name].append(elapsed)
        found.append({"rows": rows} | {f"{n}_ms": spread(t) for n, t in times.items()})
    return found


def main(argv: list[str] | None = None) -> int:
    """Measure float32 and bfloat16, write benchmarks/results/packed-weights.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args(argv)
    torch.manual_seed(0)
    found: dict[str, Any] = {}
    for dtype in (torch.float32, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        if dtype == torch.float32 or prepacked.packs_rightly():
            found[name] = measure(args.layers, dtype, args.repeats)
        else:
            note(f"{name}: skipped, this torch or processor has no packed linear operators for it")
    write_result("packed-weights", {"layers": args.layers, "passes": found}, seed=0)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
