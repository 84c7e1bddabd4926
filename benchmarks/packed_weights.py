"""What laying weights out once saves: the linear layers of a 341M-parameter Llama, by rows.

    PYTHONPATH=src python benchmarks/packed_weights.py [--layers 24] [--repeats 7]

All layers of the model run one after the other, as in a forward pass, so that weights come from
memory and not from a cache. Plain is `F.linear`, packed is oneDNN with weights in the layout that
it likes best; all run in turn, on the same inputs.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch
from common import note, spread, write_result
from torch import nn

from draftrec.engine.passes.prepacked import RowLinear
from draftrec.engine.passes.row_products import Shelf, has_tiles

_WIDTH, _INNER, _VOCABULARY = 1024, 2816, 32_000
_ROWS = (1, 2, 4, 8, 9, 16, 32, 72, 256)


# The operators are those of torch's own graph compiler, which packs constant weights with them.
_OPS: Any = torch.ops.mkldnn
# Rows that oneDNN's layout is chosen for: a small draft tree's.
_FEW = 8


class PrepackedLinear(nn.Module):
    """Linear layers that read the same rows, as one: their weights `[out, in]`, one below the other
    and in oneDNN's layout, without a bias. For inference only."""

    def __init__(self, *linears: nn.Linear) -> None:
        super().__init__()
        self.in_features = linears[0].in_features
        self.out_features = sum(x.out_features for x in linears)
        weight = torch.cat([x.weight.detach() for x in linears])
        packed = _OPS._reorder_linear_weight(weight, _FEW)
        self.weight = nn.Parameter(packed, requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[..., in]` to `[..., out]`, in the weight's dtype."""
        return _OPS._linear_pointwise(x, self.weight, None, "none", [], "")


def packs() -> bool:
    """Has this torch oneDNN's operators for bfloat16?"""
    try:
        PrepackedLinear(nn.Linear(64, 48, bias=False, dtype=torch.bfloat16))
    except (RuntimeError, AttributeError):  # not built in, or of another signature
        return False
    return True


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
        if dtype == torch.float32 or packs():
            found[name] = measure(args.layers, dtype, args.repeats)
        else:
            note(f"{name}: skipped, this torch or processor has no packed linear operators for it")
    payload = {"layers": args.layers, "tiles": has_tiles(), "passes": found}
    write_result("packed-weights-tiles" if has_tiles() else "packed-weights", payload, seed=0)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
