"""What the actors of the tests' jobs do. A module of its own, since workers must be able to import
it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from draftrec.jobs.knowledge.plan import JobSpec
from tests.fakes import FakeGenerator, FakePool
from tests.jobs.ray.chores import die, once


def fake_pool(spec: JobSpec, tokenizer: str) -> FakePool:
    return FakePool()


@dataclass(frozen=True)
class LoadFake:
    """The generator of a job; `kill_at`: with which request of a worker's first life it dies."""

    relaxed: bool = False
    kill_at: int | None = None
    marker: Path | None = None

    def __call__(self, spec: JobSpec, cost_state: dict[str, Any] | None) -> FakeGenerator:
        made = FakeGenerator(relaxed=self.relaxed, on_request=self._on_request)
        if spec.config.generate.draft.draft != "pool":
            made.pool = None
        return made

    def _on_request(self, decoded: int) -> None:
        if self.marker is not None and decoded == self.kill_at and once(self.marker):
            die()
