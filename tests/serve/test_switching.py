"""A pool that is exchanged while texts are being written: those keep the one they began with."""

from __future__ import annotations

import asyncio
import io
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from draftrec.core import DraftTree, Verdict
from draftrec.errors import DraftrecError
from draftrec.serve.http.schemas import ApiError
from draftrec.serve.logs import RequestLog
from draftrec.serve.model_thread import WorkError
from draftrec.serve.service import Service, ServiceSources
from draftrec.serve.work import SwitchingDrafter
from tests.serve.services import settings


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


class Thread:
    """Exchanges at once, or says why not."""

    def __init__(self, *, fails: bool = False) -> None:
        self.now, self.fails = "old", fails

    def change(self, new: Any) -> Future[None]:
        done: Future[None] = Future()
        if self.fails:
            done.set_exception(WorkError("it cannot be used"))
        else:
            self.now = new
            done.set_result(None)
        return done


class Source:
    """Loads a new one, unless it is broken."""

    chat = None

    def __init__(self, new: Any) -> None:
        self.new = new

    def reload(self, old: Any) -> Any:
        if self.new is None:
            raise DraftrecError("it is damaged")
        return self.new


@pytest.mark.parametrize(("pool", "fails"), [(None, False), ("new", True)])
def test_a_reload_of_which_half_fails_changes_nothing(pool: Any, *, fails: bool) -> None:
    stream = io.StringIO()
    service = Service(settings(), ServiceSources(), RequestLog(stream))
    catalogue = SimpleNamespace(catalogue=SimpleNamespace(sids=[1, 2]))
    service.sources = ServiceSources(Source(catalogue), Source(pool))  # type: ignore[arg-type]
    recommend, knowledge = Thread(), Thread(fails=fails)
    service.recommend, service.knowledge = recommend, knowledge  # type: ignore[assignment]
    service.recommending = SimpleNamespace(recommender="old")  # type: ignore[assignment]
    service.writing = SimpleNamespace(generator=SimpleNamespace(pool="old"))  # type: ignore[assignment]
    with pytest.raises(ApiError, match="the old files stay in use"):
        asyncio.run(service.reload())
    assert (recommend.now, knowledge.now) == ("old", "old")
