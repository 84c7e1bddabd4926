"""What a comparison is asked, and what it finds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from draftrec.data.files.places import Place
from draftrec.data.templates import Side
from draftrec.evaluate.compare.ctr import CellChange
from draftrec.evaluate.compare.limits import Limits, Measured, Verdict, passed
from draftrec.evaluate.texts.templates import Framework


@dataclass(frozen=True, slots=True)
class CompareJob:
    """What to compare. `runs`: name -> folder, the baseline first; `ctr` and `vectors` by the same
    names. `form`: what texts must look like, None = what the runs' manifests say."""

    runs: Mapping[str, Place]
    limits: Limits
    ctr: Mapping[str, Place] = field(default_factory=dict)
    vectors: Mapping[str, Place] = field(default_factory=dict)
    titles: str | None = None
    prompts: str | None = None
    framework: Framework | None = None
    side: Side | None = None
    seed: int = 0
    resamples: int = 1000


@dataclass(frozen=True, slots=True)
class RunResult:
    """One run's figures by metric. `faults`: kind of fault -> texts of the run that have it;
    `must_equal`: a greedy strict run of the baseline's model."""

    name: str
    measured: Mapping[str, Measured]
    faults: Mapping[str, int]
    verdicts: tuple[Verdict, ...] = ()
    cells: tuple[CellChange, ...] = ()
    must_equal: bool = False


@dataclass(frozen=True, slots=True)
class Comparison:
    """All that was found. `facts` say how it was measured, in words and numbers."""

    baseline: RunResult
    runs: tuple[RunResult, ...]
    entities: int
    limits: Limits
    facts: Mapping[str, str]

    @property
    def verdicts(self) -> list[Verdict]:
        """Of all runs."""
        return [v for run in self.runs for v in run.verdicts]

    @property
    def passed(self) -> bool:
        """Whether the gate lets all runs through."""
        return passed(self.verdicts, self.limits)
