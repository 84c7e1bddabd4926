"""One drafter on one trace in a process of its own: memory, building, replay at every budget."""

from __future__ import annotations

import gc
import resource
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Seq
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from arctic import DEFAULT, MISSING, ArcticDrafter, installed
from common import spread
from pool_traces import Trace
from rivals.ngram import NgramDrafter
from rivals.published_trie import PublishedTrie, SpecialTokens

from draftrec.evaluate.replay.loop import NAMES as REPLAYED
from draftrec.evaluate.replay.loop import (
    OWN,
    Intake,
    PerGroup,
    ReplayDrafter,
    ReplaySettings,
    replay,
)
from draftrec.evaluate.replay.recordings import Recording
from draftrec.pool.index import warm_up

_ARCTIC: dict[str, Callable[[], ReplayDrafter]] = {
    "arctic": ArcticDrafter,
    "arctic-group": lambda: PerGroup(ArcticDrafter),
    "arctic-default": lambda: ArcticDrafter(DEFAULT),
}
#: Ours, and what it is compared with.
OURS = tuple(OWN)
RIVALS = (*_ARCTIC, "ngram", "trie", "trie-group")
NAMES = (*REPLAYED, *_ARCTIC)
_TIMES = ("lookup_us_p50", "lookup_us_p99", "upkeep_us_per_token")


@dataclass(frozen=True)
class Run:
    """What one process does. `repeats` replays for the times; the counts are the first one's."""

    drafter: str
    warm: list[Recording]
    texts: list[Recording]
    special: SpecialTokens
    budgets: tuple[int, ...]
    depth: int = 24
    repeats: int = 1
    #: Texts that join the pool one after another, in order; the ones before these are not counted.
    grow_after: list[Recording] | None = None


def missing(drafter: str) -> str | None:
    """Why a drafter cannot run here."""
    return MISSING if drafter in _ARCTIC and not installed() else None


def make(name: str, special: SpecialTokens) -> ReplayDrafter:
    """A new drafter of draftrec's, or a rival."""
    if name in OWN:
        return OWN[name](None)
    rivals: dict[str, Callable[[], ReplayDrafter]] = {
        "ngram": NgramDrafter,
        "trie": lambda: PublishedTrie(special),
        "trie-group": lambda: PerGroup(lambda: PublishedTrie(special)),
    }
    return (_ARCTIC | rivals)[name]()


def measure(run: Run) -> dict[str, Any]:
    """Build once, replay at every budget; figures by budget, with `rss_bytes_per_token`."""
    warm_up()
    texts = [(r.token_ids, r.group) for r in run.warm]
    gc.collect()
    drafter, intake, before = make(run.drafter, run.special), Intake(), _resident()
    intake.add(drafter, texts)
    gc.collect()
    grown = (_resident() - before) / max(intake.tokens, 1)
    found: dict[str, Any] = {}
    for budget in run.budgets:
        if run.grow_after is not None:  # what grew for one budget must not help the next
            drafter, intake = make(run.drafter, run.special), Intake()
            intake.add(drafter, texts)
        figures = _repeated(drafter, intake, run, budget)
        found[str(budget)] = {**figures, "rss_bytes_per_token": round(grown, 1)}
    return found


def _repeated(drafter: ReplayDrafter, intake: Intake, run: Run, budget: int) -> dict[str, Any]:
    growing = run.grow_after is not None
    settings = ReplaySettings(budget, run.depth, grow=growing)
    if run.grow_after:
        replay(drafter, run.grow_after, settings, intake)
    repeats = 1 if growing else run.repeats
    all_figures = [
        replay(drafter, run.texts, settings, intake).summary(drafter, intake)
        for _ in range(repeats)
    ]
    times = {key: spread([f[key] for f in all_figures]) for key in _TIMES}
    # Ours repeats itself to the token; evicting a text may leave Arctic's ties in another order.
    steps = spread([f["steps"] for f in all_figures], digits=9)
    return {**all_figures[0], **times, "steps_of_repeats": steps}


@contextmanager
def processes(*, in_process: bool = False) -> Iterator[Callable[[Run], dict[str, Any]]]:
    """`measure`, each call in a fresh process, one at a time."""
    if in_process:
        yield measure
        return
    with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as pool:
        yield lambda run: pool.submit(measure, run).result()


def run_of(trace: Trace, drafter: str, budgets: Seq[int], **more: Any) -> Run:
    """A run of `drafter` over all of a trace."""
    values = {"warm": trace.warm, "texts": trace.texts, "special": trace.special, **more}
    return Run(drafter=drafter, budgets=tuple(budgets), **values)


def _resident() -> int:
    """Bytes of this process in memory."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * resource.getpagesize()
    except OSError:  # no such file outside Linux: the peak has to do
        return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
