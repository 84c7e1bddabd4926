"""Trials: skipped when finished, kept when interrupted, the same in one process and in two."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from draftrec.errors import DraftrecError
from draftrec.jobs.trials import Settings, TrialStore, run_trials, trial_key
from tests.locks import held_elsewhere
from tests.waiting import until

#: Functions for worker processes, which import them from a file of their own.
_MODULE = """
import os, sys, time

def square(settings, offset=0):
    if settings.get("fail"):
        raise ValueError("too large")
    if settings.get("die"):
        os._exit(1)
    import torch
    return {"square": settings["x"] ** 2 + offset, "threads": torch.get_num_threads()}

def slow(settings):
    if settings["x"]:
        time.sleep(60)
    return {"y": 1}

def main(folder, workers):
    from pathlib import Path
    from draftrec.jobs.trials import (TrialStore, run_trials)
    trials = [{"x": i} for i in range(4)]
    try:
        run_trials(slow, trials, TrialStore(Path(folder), {}), workers=int(workers))
    except KeyboardInterrupt:
        sys.exit(130)
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    folder = tmp_path / "functions"
    folder.mkdir()
    (folder / "functions_of_trials.py").write_text(_MODULE)
    monkeypatch.syspath_prepend(folder)
    sys.modules.pop("functions_of_trials", None)
    import functions_of_trials  # type: ignore[import-not-found]

    return functions_of_trials


def counted(calls: list[Settings], settings: Settings) -> dict[str, Any]:
    calls.append(settings)
    return {"double": int(settings["x"] or 0) * 2}


def xs(*values: int) -> list[Settings]:
    return [{"x": value} for value in values]


def test_rows_have_the_order_of_the_settings_and_columns_of_both(tmp_path: Path) -> None:
    store = TrialStore(tmp_path, {"inputs": "abc"})
    trials: list[Settings] = [{"x": 3, "name": "c"}, {"x": 1}, {"x": 2, "name": "b"}]
    table = run_trials(partial(counted, []), trials, store)
    assert table.to_pylist() == [
        {"x": 3, "name": "c", "double": 6},
        {"x": 1, "name": None, "double": 2},
        {"x": 2, "name": "b", "double": 4},
    ]
    assert pq.read_table(store.table).equals(table)


def test_finished_trials_are_not_run_again(tmp_path: Path) -> None:
    store, calls = TrialStore(tmp_path, {"inputs": "abc"}), []
    seen: list[tuple[int, int]] = []
    run_trials(partial(counted, calls), xs(1, 2), store)
    table = run_trials(
        partial(counted, calls), xs(3, 2, 1), store, watch=lambda *now: seen.append(now)
    )
    assert calls == xs(1, 2, 3)
    assert seen == [(2, 3), (3, 3)]
    assert table["double"].to_pylist() == [6, 4, 2]


def test_a_last_line_that_was_cut_off_is_run_again(tmp_path: Path) -> None:
    store, calls = TrialStore(tmp_path, {}), []
    run_trials(partial(counted, calls), xs(1, 2), store)
    whole, table = store.journal.read_bytes(), store.table.read_bytes()
    store.journal.write_bytes(whole[:-9])
    run_trials(partial(counted, calls), xs(1, 2), store)
    assert calls == xs(1, 2, 2)
    assert (store.journal.read_bytes(), store.table.read_bytes()) == (whole, table)


def test_a_first_line_that_was_cut_off_begins_anew(tmp_path: Path) -> None:
    store, calls = TrialStore(tmp_path, {"inputs": "abc"}), []
    store.journal.write_bytes(b'{"ident')
    run_trials(partial(counted, calls), xs(1), store)
    assert calls == xs(1)


def test_other_inputs_are_refused_by_name(tmp_path: Path) -> None:
    one, other_one = "0123456789abcdef", "fedcba9876543210"
    run_trials(partial(counted, []), xs(1), TrialStore(tmp_path, {"items": one, "epochs": 3}))
    other = TrialStore(tmp_path, {"items": other_one, "epochs": 4, "vectors": "new"})
    words = r"\(epochs was 3, now 4; items changed; vectors was unset, now new\)"
    with pytest.raises(DraftrecError, match=words):
        run_trials(partial(counted, []), xs(1), other)
    calls: list[Settings] = []
    run_trials(partial(counted, calls), xs(1), TrialStore(tmp_path, {"epochs": 4}, overwrite=True))
    assert calls == xs(1)


@pytest.mark.parametrize(
    ("journal", "line"),
    [
        ('{"identity": {}}\nnonsense\n', 2),
        ('{"identity": {}}\n[]\n', 2),
        ('{"identity": {}}\n{"settings": {"x": 1}}\n', 2),
        ('{"identity": {}}\n{"settings": 3, "figures": {}}\n', 2),
        ('{"identity": {}}\n{"settings": {"x": 1}, "figures": [1]}\n', 2),
        ('{"identity": 5}\n', 1),
        ("[1]\n", 1),
    ],
)
def test_a_damaged_journal_is_named(tmp_path: Path, journal: str, line: int) -> None:
    store = TrialStore(tmp_path, {})
    store.journal.write_text(journal)
    with pytest.raises(DraftrecError, match=f"damaged in line {line}"):
        run_trials(partial(counted, []), xs(1), store)
    assert store.journal.read_text() == journal


def test_a_store_in_use_is_left_alone(tmp_path: Path) -> None:
    store = TrialStore(tmp_path, {})
    with (
        held_elsewhere(tmp_path, inside=True),
        pytest.raises(DraftrecError, match="another process"),
    ):
        run_trials(partial(counted, []), xs(1), store)


@pytest.mark.parametrize("trials", [xs(1, 1), [{"x": 1, "y": 2}, {"y": 2, "x": 1}]])
def test_one_trial_twice_is_refused(tmp_path: Path, trials: list[Settings]) -> None:
    with pytest.raises(DraftrecError, match="twice"):
        run_trials(partial(counted, []), trials, TrialStore(tmp_path, {}))


def test_the_key_does_not_know_the_order() -> None:
    assert trial_key({"a": 1, "b": 2.5}) == trial_key({"b": 2.5, "a": 1})
    assert trial_key({"a": 1}) != trial_key({"a": "1"})


@pytest.mark.slow
def test_two_workers_write_what_one_does(tmp_path: Path, module: Any) -> None:
    function = partial(module.square, offset=1)
    one = TrialStore(tmp_path / "one", {})
    two = TrialStore(tmp_path / "two", {})
    run_trials(function, xs(5, 1, 4), one, workers=1)
    table = run_trials(function, xs(5, 1, 4), two, workers=2)
    assert table["square"].to_pylist() == [26, 2, 17]
    assert table["threads"].to_pylist() == [1, 1, 1]
    assert one.table.read_bytes() == two.table.read_bytes()


def test_trials_of_speed_have_the_threads_of_their_process(tmp_path: Path, module: Any) -> None:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        timed = run_trials(module.square, xs(1), TrialStore(tmp_path / "a", {}), one_thread=False)
        alone = run_trials(module.square, xs(1), TrialStore(tmp_path / "b", {}))
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert (timed["threads"].to_pylist(), alone["threads"].to_pylist()) == ([3], [1])


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_failing_trial_is_named_and_the_others_stay(
    tmp_path: Path, module: Any, workers: int
) -> None:
    store = TrialStore(tmp_path, {})
    trials: list[Settings] = [{"x": 1}, {"x": 2, "fail": True}]
    with pytest.raises(DraftrecError, match="trial x=2, fail=True failed: ValueError: too large"):
        run_trials(module.square, trials, store, workers=workers)
    with store.opened() as finished:
        assert set(finished) <= {trial_key(trials[0])}
    assert not store.table.exists()


@pytest.mark.slow
def test_a_worker_that_dies_is_reported(tmp_path: Path, module: Any) -> None:
    trials: list[Settings] = [{"x": 1, "die": True}, {"x": 2, "die": True}]
    with pytest.raises(DraftrecError, match="ended by itself"):
        run_trials(module.square, trials, TrialStore(tmp_path, {}), workers=2)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_an_interruption_keeps_what_is_finished(tmp_path: Path, module: Any, workers: int) -> None:
    # A shell lets jobs in the background ignore Ctrl-C, and their children inherit that.
    heed = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    line = (
        f"{heed}; import functions_of_trials as f; f.main({str(tmp_path / 'study')!r}, {workers})"
    )
    paths = os.pathsep.join([str(Path(module.__file__).parent), *sys.path])
    process = subprocess.Popen(
        [sys.executable, "-c", line], env={**os.environ, "PYTHONPATH": paths}
    )
    store = TrialStore(tmp_path / "study", {})
    try:
        until(lambda: store.journal.is_file() and store.journal.read_text().count("\n") == 2)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130
    finally:
        process.kill()
        process.wait()
    with store.opened() as finished:
        assert finished == {trial_key({"x": 0}): {"y": 1}}
    assert [json.loads(t)["settings"] for t in store.times.read_text().splitlines()] == xs(0)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_workers_end_with_a_study_that_is_killed(tmp_path: Path, module: Any) -> None:
    paths = os.pathsep.join([str(Path(module.__file__).parent), *sys.path])
    line = f"import functions_of_trials as f; f.main({str(tmp_path / 'study')!r}, 2)"
    process = subprocess.Popen(
        [sys.executable, "-c", line], env={**os.environ, "PYTHONPATH": paths}
    )
    store = TrialStore(tmp_path / "study", {})
    try:
        until(lambda: store.journal.is_file() and store.journal.read_text().count("\n") == 2)
        workers = children(process.pid)
        assert len(workers) >= 2
    finally:
        process.kill()
        process.wait()
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers))


def children(pid: int) -> list[str]:
    """Processes that a process has started."""
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def test_a_line_of_times_that_was_cut_off_goes(tmp_path: Path) -> None:
    """What a full disk has torn became one line with the next trial's."""
    store = TrialStore(tmp_path, {})
    run_trials(partial(counted, []), xs(1), store)
    whole = store.times.read_bytes()
    store.times.write_bytes(whole + whole[:9])
    run_trials(partial(counted, []), xs(1, 2), store)
    lines = [json.loads(line) for line in store.times.read_text().splitlines()]
    assert [line["settings"] for line in lines] == xs(1, 2)
