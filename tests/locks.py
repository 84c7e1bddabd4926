"""Outputs that somebody else is writing to."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

from draftrec.data.files.locks import sole_writer
from draftrec.data.files.places import Place


@contextmanager
def held_elsewhere(output: Place, *, inside: bool = False) -> Iterator[None]:
    """Hold an output as another process would: a thread's lock is not its neighbour's."""
    stack = ExitStack()
    with ThreadPoolExecutor(1) as other:
        other.submit(stack.enter_context, sole_writer(output, inside=inside)).result()
        try:
            yield
        finally:
            other.submit(stack.close).result()
