"""Loops that threads share. `share` has torch's own OpenMP threads, which wait for work awake, so
that a part of some ten microseconds is worth handing over; those of Python, which any compiled
function can have (`over_rows`), take five times as long to begin.

A loop for `share` is a compiled function of one address, that of its task: int64 numbers, of which
the first counts up as parts are taken and the others say what it needs. Where torch was built
without OpenMP, or with one that has no entry for compilers of GNU's, Python's threads run it.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from collections.abc import Sequence as Seq
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numba
import numpy as np
import torch
from numba import cfunc, njit, types
from numba.core import cgutils
from numba.extending import intrinsic

# Nanoseconds of work that a thread is given at least.
_LEAST = 30_000
# Nanoseconds from which Python's threads are worth their start, which takes some 50,000.
_LEAST_SHARED = 150_000
# Parts of a loop for each thread: the last ones even out what some were late by.
_PARTS = 4


def threads_for(nanoseconds: float) -> int:
    """How many threads a loop is worth that takes one so long, about."""
    return max(1, min(torch.get_num_threads(), int(nanoseconds / _LEAST)))


def share(loop: Callable[[Any], None], total: int, threads: int, *task: Any) -> None:
    """Run `loop` on all `threads` until `total` is taken, in parts. `task`: whole numbers, and
    arrays whose rows lie one after the other, as their address and sizes."""
    numbers = [0, total, max(1, total // (threads * _PARTS))]
    for it in task:
        numbers += [_address(it), *it.shape] if isinstance(it, np.ndarray) else [it]
    data = np.array(numbers, np.int64)
    _runner()(_compiled(loop), _address(data), threads)


def over_rows(kernel: Callable[..., None], rows: int, work: float, *arguments: Any) -> None:
    """`kernel(first, last, *arguments)` for rows `0 .. rows - 1`, by several threads where `work`,
    the nanoseconds that it takes about, is worth them."""
    threads = min(torch.get_num_threads(), rows) if work >= _LEAST_SHARED else 1
    if threads <= 1:
        kernel(0, rows, *arguments)
        return
    parts = pairwise(np.linspace(0, rows, threads + 1).astype(int).tolist())
    _together(kernel, [(*part, *arguments) for part in parts])


def _take(typing: Any, task: Any, step: Any) -> Any:
    """The begin of the next `step` of a task."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = builder.bitcast(arguments[0], cgutils.intp_t.as_pointer())
        return builder.atomic_rmw("add", place, arguments[1], "monotonic")

    return types.intp(task, types.intp), generate


def _pointer(typing: Any, address: Any) -> Any:
    """An address as `carray` takes it."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(types.intp), generate


_took: Any = intrinsic(_take)
pointer: Any = intrinsic(_pointer)
#: The array at an address, of a shape and dtype.
carray: Any = numba.carray  # pyright: ignore[reportPrivateImportUsage]


@njit(cache=True, nogil=True)
def take(data: Any, task: Any) -> tuple[int, int]:
    """The next part of a task, `first .. last - 1`, nothing once all are taken; `data`: its
    address, `task`: its numbers."""
    first = _took(data, task[2])
    return first, min(first + task[2], task[1])


def _address(array: Any) -> int:
    return int(array.__array_interface__["data"][0])


@cache
def _compiled(loop: Callable[[Any], None]) -> Any:
    """The loop as C calls it."""
    return cfunc(types.void(types.voidptr), cache=True)(loop).ctypes


@cache
def _runner() -> Callable[[Any, int, int], None]:
    """Calls a compiled loop with a task's address, on as many threads."""
    _children_go_alone()
    parallel = _openmp()
    if parallel is None:
        return _by_python
    return lambda loop, task, threads: parallel(loop, task, threads, 0)


def _openmp() -> Any:
    """`GOMP_parallel` of the library that torch has loaded, which LLVM's has as well."""
    library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    try:
        found = ctypes.CDLL(str(library)).GOMP_parallel
    except (OSError, AttributeError):
        return None
    found.restype = None
    found.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    return found


def _by_python(loop: Any, task: int, threads: int) -> None:
    _together(loop, [(task,)] * threads)


def _together(kernel: Callable[..., None], calls: Seq[tuple[Any, ...]]) -> None:
    """All calls at once, the first of them in this thread."""
    own, *others = calls
    pending = [_pool(len(others)).submit(kernel, *call) for call in others]
    kernel(*own)
    for done in pending:
        done.result()


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    _children_go_alone()
    return ThreadPoolExecutor(threads, "draftrec-team")


@cache
def _children_go_alone() -> None:
    """Let processes that are forked from this one have one thread: they have none of its others,
    for whom loops would wait forever, torch's own too."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_alone)


def _alone() -> None:
    torch.set_num_threads(1)
    _pool.cache_clear()
