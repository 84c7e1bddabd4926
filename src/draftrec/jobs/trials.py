"""Trials: one function under many settings, side by side on the cores there are, into one table;
and means over seeds with what is known of them (Student t intervals, plain and paired).

Every finished trial is a line of `trials.jsonl` at once, so an interrupted study goes on where it
stopped; the last step writes `trials.parquet`, one row per trial in the order that was asked for.
What a trial took stands in `times.jsonl`, so that the other files are the same every time.
"""

from __future__ import annotations

import json
import math
import os
import re
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Sequence as Seq
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import active_children, get_context, parent_process
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pyarrow as pa

from draftrec.data.files.locks import check_still_held
from draftrec.data.files.places import Place
from draftrec.data.files.writers import (
    append_file,
    cut_torn_line,
    replace_file,
    replace_parquet,
)
from draftrec.errors import DraftrecError
from draftrec.jobs.ledger import Ledger, changes

Scalar = str | int | float | bool | None
Settings = dict[str, Scalar]
#: From one trial's settings to its figures. Picklable: a function of a module, or a `partial` of
#: one, if trials run in other processes.
TrialFunction = Callable[[Settings], Mapping[str, Scalar]]
#: Is told how many trials are finished, and of how many: once at the start, then after each.
Watch = Callable[[int, int], None]

_JOURNAL = "trials.jsonl"
_OWNED = re.compile(r"trials\.parquet|times\.jsonl")
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def read_identity(folder: Place) -> dict[str, Scalar]:
    """What all trials of a study's folder share, by its journal. Raises OSError where there is
    none, ValueError for another file."""
    with (folder / _JOURNAL).open(encoding="utf-8") as file:
        found = json.loads(file.readline())
    if not isinstance(found, dict) or not isinstance(found.get("identity"), dict):
        raise ValueError("the first line names no identity")
    return found["identity"]


@dataclass(frozen=True, slots=True)
class TrialStore:
    """The folder of a study. `identity` names what all its trials share (fingerprints of inputs,
    common settings): a store that was begun with another identity is not continued, unless
    `overwrite` gives up what it holds."""

    folder: Path
    identity: Mapping[str, Scalar]
    overwrite: bool = False

    @property
    def ledger(self) -> Ledger:
        return Ledger(self.folder, self.folder, "a study", _JOURNAL, _OWNED, inside=True)

    @property
    def journal(self) -> Path:
        """Line one: the identity. Then a line per finished trial, in the order of finishing."""
        return self.folder / self.ledger.record

    @property
    def table(self) -> Path:
        """The tidy table, written when all trials are finished."""
        return self.folder / "trials.parquet"

    @property
    def times(self) -> Path:
        """Seconds of each trial, as JSON lines; of the last one twice if it had to run again."""
        return self.folder / "times.jsonl"

    @contextmanager
    def opened(self) -> Iterator[dict[str, dict[str, Scalar]]]:
        """Figures of finished trials by `trial_key`, while no other process may write here.

        Raises DraftrecError for a store of another identity, and one that is in use.
        """
        with self.ledger.held():
            yield self._begin()

    def append(self, settings: Settings, figures: Mapping[str, Scalar], seconds: float) -> None:
        """Keep a finished trial."""
        check_still_held(self.folder)
        # The journal last: whatever it holds is whole, also if this is interrupted here.
        append_file(self.times, _line({"settings": settings, "seconds": round(seconds, 3)}))
        append_file(self.journal, _line({"settings": settings, "figures": dict(figures)}))

    def _begin(self) -> dict[str, dict[str, Scalar]]:
        lines = [] if self.overwrite else self._whole_lines()
        if not lines:
            self.ledger.clear()
            self.ledger.write(_line({"identity": dict(self.identity)}).decode())
            return {}
        self.ledger.refuse(changes(lines[0]["identity"], self.identity))
        cut_torn_line(self.times)
        return {trial_key(line["settings"]): line["figures"] for line in lines[1:]}

    def _whole_lines(self) -> list[dict[str, Any]]:
        """The journal's entries; a last line that a crash cut off is removed from the file."""
        content = self.journal.read_bytes() if self.journal.is_file() else b""
        whole, _, torn = content.rpartition(b"\n")
        if torn:
            replace_file(self.journal, whole + b"\n" if whole else b"")
        entries: list[dict[str, Any]] = []
        for number, line in enumerate(whole.splitlines(), 1):
            names = ("settings", "figures") if entries else ("identity",)
            try:
                entry = json.loads(line)
                if not all(isinstance(entry[name], dict) for name in names):
                    raise ValueError("it is not what a study writes")
            except (ValueError, KeyError, TypeError) as error:
                raise DraftrecError(
                    f"{self.journal} is damaged in line {number} ({error}); remove the line, or "
                    "start again with --overwrite"
                ) from error
            entries.append(entry)
        return entries


def trial_key(settings: Settings) -> str:
    """What makes a trial the same one: its settings, whatever their order."""
    return json.dumps(settings, sort_keys=True)


def run_trials(
    function: TrialFunction,
    settings: Seq[Settings],
    store: TrialStore,
    *,
    workers: int = 1,
    one_thread: bool = True,
    watch: Watch | None = None,
) -> pa.Table:
    """Run the trials that `store` lacks, write its table and return it: a row for each of
    `settings`, in their order; columns of settings first, then of figures.

    Each trial has one thread of PyTorch, so its figures do not depend on `workers`. One worker is
    this process, where trials of speed may have all threads (`one_thread` False). Ctrl-C keeps what
    is finished. Raises DraftrecError for a trial that fails, with
    its settings named, for settings given twice, and for a store of other inputs.
    """
    keys = [trial_key(s) for s in settings]
    if repeated := sorted({k for k in keys if keys.count(k) > 1}):
        raise DraftrecError(f"trial {repeated[0]} is asked for twice; leave one out")
    with store.opened() as finished:
        missing = [s for s, key in zip(settings, keys, strict=True) if key not in finished]
        tell = watch or (lambda done, total: None)
        tell(len(settings) - len(missing), len(settings))
        in_process = workers <= 1 or len(missing) <= 1
        results = (
            _here(function, missing, one_thread=one_thread)
            if in_process
            else _beside(function, missing, workers)
        )
        for number, (trial, figures, seconds) in enumerate(results, 1):
            store.append(trial, figures, seconds)
            finished[trial_key(trial)] = dict(figures)
            tell(len(settings) - len(missing) + number, len(settings))
        table = _tidy(settings, [finished[key] for key in keys])
        replace_parquet(store.table, table)
    return table


_Result = tuple[Settings, Mapping[str, Scalar], float]


def _here(function: TrialFunction, trials: Seq[Settings], *, one_thread: bool) -> Iterator[_Result]:
    """The trials one after the other."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1 if one_thread else threads)
    try:
        for trial in trials:
            try:
                figures, seconds = _timed(function, trial)
            except Exception as error:
                raise _failed(trial, error) from error
            yield trial, figures, seconds
    finally:
        torch.set_num_threads(threads)


def _beside(function: TrialFunction, trials: Seq[Settings], workers: int) -> Iterator[_Result]:
    """The trials in processes of their own, as they finish."""
    before = active_children()
    pool = ProcessPoolExecutor(min(workers, len(trials)), get_context("spawn"), _start, (function,))
    try:
        with _one_thread():
            futures = {pool.submit(_run, trial): trial for trial in trials}
        waiting: set[Future[tuple[Mapping[str, Scalar], float]]] = set(futures)
        while waiting:
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            # What is finished is kept before a failure beside it ends the study.
            for future in sorted(done, key=lambda f: f.exception() is not None):
                if (error := future.exception()) is not None:
                    raise _failed(futures[future], error) from error
                yield futures[future], *future.result()
    except BaseException:
        for child in active_children():
            if child not in before:
                child.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _failed(trial: Settings, error: BaseException) -> DraftrecError:
    if isinstance(error, BrokenProcessPool):
        return DraftrecError(
            "a worker process ended by itself, perhaps for want of memory; run again with fewer "
            "--workers"
        )
    named = ", ".join(f"{name}={value}" for name, value in trial.items())
    kind = "" if isinstance(error, DraftrecError) else f"{type(error).__name__}: "
    return DraftrecError(f"trial {named} failed: {kind}{error}")


@contextmanager
def _one_thread() -> Iterator[None]:
    """Processes started meanwhile have one thread each; their libraries read it when loaded."""
    before = {name: os.environ.get(name) for name in _THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(_THREAD_VARIABLES, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


_function: TrialFunction | None = None


def _start(function: TrialFunction) -> None:
    """Once per worker process: its function, one thread, and a quiet end by Ctrl-C, or with the
    study where that is killed."""
    global _function  # unpickled once per process, not once per trial
    import torch

    Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    _function = function


def _end_with_parent() -> None:
    """The queue that a worker waits at has no end while the worker itself can write to it."""
    if (parent := parent_process()) is not None:
        parent.join()
        os._exit(1)


def _run(trial: Settings) -> tuple[Mapping[str, Scalar], float]:
    if _function is None:
        raise RuntimeError("the worker was not started")
    return _timed(_function, trial)


def _timed(function: TrialFunction, trial: Settings) -> tuple[Mapping[str, Scalar], float]:
    start = time.perf_counter()
    figures = function(dict(trial))
    return figures, time.perf_counter() - start


def _tidy(settings: Seq[Settings], figures: Seq[Mapping[str, Scalar]]) -> pa.Table:
    """Null where a trial has no such setting or figure."""
    names = list(dict.fromkeys(name for s in settings for name in s))
    results = list(dict.fromkeys(name for f in figures for name in f))
    if both := [name for name in results if name in names]:
        raise DraftrecError(f"{both[0]} is a setting and a figure of the trials; rename one")
    columns = {name: pa.array([s.get(name) for s in settings]) for name in names}
    return pa.table(columns | {name: pa.array([f.get(name) for f in figures]) for name in results})


def _line(entry: Mapping[str, Any]) -> bytes:
    return (json.dumps(entry) + "\n").encode()


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean, the sample's standard deviation (n - 1) and the bounds of the mean's confidence
    interval. One value has no deviation: `std`, `low` and `high` are None."""

    mean: float
    std: float | None
    low: float | None
    high: float | None

    def as_dict(self, digits: int = 6) -> dict[str, float | None]:
        """The four numbers, rounded, as summaries show them."""
        values = {"mean": self.mean, "std": self.std, "low": self.low, "high": self.high}
        return {name: None if v is None else round(v, digits) for name, v in values.items()}


def interval(values: Seq[float], confidence: float = 0.95) -> Interval:
    """Mean of `values` and its two-sided Student t interval, mean -+ t * std / sqrt(n).

    Raises ValueError for no values.
    """
    if not len(values):
        raise ValueError("an interval needs at least one value")
    sample = np.asarray(values, np.float64)
    mean = float(sample.mean())
    if len(sample) == 1:
        return Interval(mean, None, None, None)
    from scipy.special import stdtrit

    std = float(sample.std(ddof=1))
    t = float(stdtrit(len(sample) - 1, (1 + confidence) / 2))
    half = t * std / math.sqrt(len(sample))
    return Interval(mean, std, mean - half, mean + half)


def paired(a: Seq[float], b: Seq[float], confidence: float = 0.95) -> Interval:
    """Interval of the differences `b - a` of runs that share a seed each.

    Raises ValueError where the two are not equally long.
    """
    if len(a) != len(b):
        raise ValueError(f"{len(a)} values cannot be paired with {len(b)}")
    return interval([y - x for x, y in zip(a, b, strict=True)], confidence)
