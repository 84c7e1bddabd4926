"""A pool that is exchanged while texts are being written: those keep the one they began with."""

from __future__ import annotations

from typing import Any

import numpy as np

from draftrec.core import DraftTree, Verdict
from draftrec.serve.work import SwitchingDrafter


class Named:
    """Drafts its own number, and remembers what it was told."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.calls: list[tuple[str, list[Any]]] = []

    def start(self, sequence: Any) -> None:
        self.calls.append(("start", [sequence]))

    def draft(self, batch: Any, limit: int, depth: int) -> list[DraftTree]:
        self.calls.append(("draft", list(batch)))
        one = np.array([self.number], np.int32)
        root, sure, source = np.array([-1], np.int32), np.ones(1, np.float32), np.zeros(1, np.uint8)
        return [DraftTree(one, root, sure, source) for _ in batch]

    def observe(self, batch: Any, verdicts: Any) -> None:
        self.calls.append(("observe", list(zip(batch, [v.relaxed for v in verdicts], strict=True))))

    def stop(self, sequence: Any) -> None:
        self.calls.append(("stop", [sequence]))


class Text:
    """Stands for a running sequence."""


def verdict(number: int) -> Verdict:
    return Verdict(np.empty(0, np.int32), np.array([1], np.int32), ((0, 0.0),) * number)


def test_texts_keep_the_drafter_with_which_they_began() -> None:
    old, new = Named(1), Named(2)
    a, b, c = texts = [Text(), Text(), Text()]
    switching = SwitchingDrafter(old)
    switching.start(a)  # type: ignore[arg-type]
    switching.current = new
    switching.start(b)  # type: ignore[arg-type]
    switching.current = old
    switching.start(c)  # type: ignore[arg-type]
    trees = switching.draft(texts, 4, 4)  # type: ignore[arg-type]
    assert [int(t.token_ids[0]) for t in trees] == [1, 2, 1]
    switching.observe(texts, [verdict(7), verdict(8), verdict(9)])  # type: ignore[arg-type]
    for text in texts:
        switching.stop(text)  # type: ignore[arg-type]
    assert old.calls == [
        ("start", [a]), ("start", [c]), ("draft", [a, c]), ("observe", [(a, 7), (c, 9)]),
        ("stop", [a]), ("stop", [c]),
    ]  # fmt: skip
    assert new.calls == [
        ("start", [b]), ("draft", [b]), ("observe", [(b, 8)]), ("stop", [b]),
    ]  # fmt: skip
    assert switching._of == {}
