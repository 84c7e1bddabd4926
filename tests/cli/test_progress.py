"""What a job tells a log while it runs."""

from __future__ import annotations

import pytest

from draftrec.cli import progress
from draftrec.cli.messages import StopSignal
from draftrec.cli.progress import ProgressBar, duration, rate
from draftrec.engine.text.stats import Spent, StepStats
from draftrec.jobs.knowledge.manifest import InputEntry, Manifest


def manifest() -> Manifest:
    entry = InputEntry(sha256="", files=1, records=12)
    return Manifest(settings={}, fingerprints={}, paths={}, versions={}, input=entry)


def test_a_log_gets_a_line_every_half_minute_whether_or_not_steps_come(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now, said = [0.0], list[str]()
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(progress, "say", said.append)
    stop = StopSignal()
    bar = ProgressBar(stop)
    now[0] = 100.0
    assert not bar.should_stop()  # loading is named by others
    bar.begin(manifest(), kept=3)
    assert said == ["continuing after 3 of 12 records"]
    spent = Spent(draft=1.0, verify=4.0, prefill=5.0, passes=2.0, plain=6.0)
    bar.step(StepStats(2, 0, 2, 8, 30, 10, 40, 20, scored=2, spent=spent))
    now[0] = 129.0
    bar.should_stop()
    assert len(said) == 1
    now[0] = 130.0
    bar.should_stop()
    bar.should_stop()
    assert said[1:] == [
        "5 of 12 records, 1.0 tokens/s, 3.00 tokens/call, 50% accepted, 1.70 times plain"
    ]
    now[0] = 161.0
    stop.requested = True
    assert bar.should_stop()
    assert len(said) == 3
    bar.close()


def test_durations_are_written_as_people_do() -> None:
    assert duration(8.32) == "8.3 s"
    assert duration(125) == "2 min 05 s"
    assert duration(11_230) == "3 h 07 min"


def test_slow_rates_keep_a_decimal() -> None:
    assert [rate(x) for x in (0.42, 9.0, 12.4, 1234.5)] == ["0.4", "9.0", "12", "1,234"]
