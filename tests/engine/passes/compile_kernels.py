"""Compile the kernels of tree attention for an NVIDIA GPU, which need not be there, for slabs of
the dtypes that are named: each kernel's name with the dtype."""

from __future__ import annotations

import sys
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from draftrec.engine.passes import tree_kernels

# As wide as heads come, four of them to a KV head.
_SIZES = {
    "KEY": 256, "VALUE": 256, "WIDE_KEY": 256, "WIDE_VALUE": 256, "HEADS": 32, "SHARED": 4,
    "TALL": 16, "WORDS": 2, "CAPPED": True, "SUNK": True, "WIDEN": False,
    "SPLIT": tree_kernels.SPLIT, "STEP": 64, "SPLITS": 8,
}  # fmt: skip
_SHARED_MEMORY = 99 << 10  # bytes, the least of GPUs from 2020 on
_INTEGERS = {"slots", "columns", "sight"}
_NUMBERS = {"scale": "fp32", "softcap": "fp32"}


def compile_for_gpu(kernel: Any, dtype: str) -> None:
    kinds: dict[str, str] = {}
    for name in kernel.arg_names:
        if name in _SIZES:
            kinds[name] = "constexpr"
        elif name in _NUMBERS:
            kinds[name] = _NUMBERS[name]
        elif name.startswith("part"):
            kinds[name] = "*fp32"
        elif name in _INTEGERS:
            kinds[name] = "*i64"
        else:
            kinds[name] = "i32" if "_" in name else f"*{dtype}"
    sizes = {n: _SIZES[n] for n in kernel.arg_names if n in _SIZES}
    source = ASTSource(fn=kernel, signature=kinds, constexprs=sizes)
    options = {"num_stages": tree_kernels.STAGES}
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    assert made.asm["cubin"]
    assert made.metadata.shared < _SHARED_MEMORY


for _dtype in sys.argv[1:]:
    for _name in ("_write", "_attend", "_join"):
        compile_for_gpu(getattr(tree_kernels, _name), _dtype)
        print(f"{_name}:{_dtype}")  # noqa: T201
