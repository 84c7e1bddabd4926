"""Run folders of known figures, written by the code that writes real ones."""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from draftrec.config import AcceptConfig, DraftConfig, GenerateConfig, JobConfig, ModelConfig
from draftrec.core import Counts, Generation
from draftrec.jobs.knowledge.manifest import InputEntry, Manifest, settings_of
from draftrec.jobs.knowledge.shards import RunFolder, Written

#: What one text of these runs costs and brings.
TOKENS, PROMPT = 40, 10
GROUPS = ("night readers", "plotters", "wanderers")


class RunWriter:
    """Writes a run of `records` texts shard by shard, as a job would.

    Every text has `TOKENS` tokens and took `calls` calls; a group's texts get one more accepted
    token per draft than those of the group before. `seconds` is what a text takes.
    """

    def __init__(
        self,
        path: Path,
        *,
        draft: str = "pool",
        accept: str = "strict",
        budget: Any = "auto",
        records: int = 24,
        seconds: float = 0.02,
        pool: Path | None = None,
        cost_state: dict[str, Any] | None = None,
        source: str = "input",
        temperature: float = 0.0,
        text: str = "text",
        pieces: tuple[tuple[str, int], ...] | None = None,
    ) -> None:
        config = GenerateConfig(
            target=ModelConfig(model="models/toy-lm"),
            accept=AcceptConfig(accept=accept, temperature=temperature),  # type: ignore[arg-type]
            draft=DraftConfig(draft=draft, budget=budget),  # type: ignore[arg-type]
        )
        self.plain, self.relaxed = draft == "none", accept != "strict"
        self.seconds = seconds
        self.text, self.pieces = text, pieces
        self.folder = RunFolder(path)
        path.mkdir(parents=True, exist_ok=True)
        prints = {"input": source, "template": None, "model": "m", "tokenizer": "t"}
        self.manifest = Manifest(
            settings=settings_of(JobConfig(generate=config)),
            fingerprints=prints,
            paths={"pool": str(pool) if pool else None, "save_pool": None},
            versions={},
            input=InputEntry(sha256=source, files=1, records=records),
            device="cpu",
            dtype="float32",
            cost_state=cost_state,
        )
        self.folder.write_manifest(self.manifest)

    @property
    def calls(self) -> int:
        """Target calls of a text."""
        return TOKENS if self.plain else 10

    def steps(self, texts: float, *, finished: int = 0, at: float | None = None) -> None:
        """A record of steps that wrote as much as `texts` texts have."""
        accepted = 0 if self.plain else round(20 * texts)
        self._append(
            "steps",
            at,
            seconds=self.seconds * texts,
            new_tokens=round(TOKENS * texts),
            target_calls=round(self.calls * texts),
            draft_calls=0 if self.plain else round(9 * texts),
            drafted_tokens=0 if self.plain else round(36 * texts),
            accepted_tokens=accepted,
            relaxed_tokens=accepted // 4 if self.relaxed else 0,
            accepted_by_source=[0, 0, 0, accepted, 0],
            finished=finished,
            active=4,
        )

    def shard(self, texts: int = 8, *, steps: bool = True) -> None:
        """One more finished shard, its records of steps before it."""
        if steps:
            self.steps(texts / 2)
            self.steps(texts / 2, finished=texts)
        manifest = self.manifest
        first = manifest.records_done
        written = [self._text(first + i) for i in range(texts)]
        entry, _ = self.folder.write_shard(len(manifest.shards), written, [], 0)
        manifest.shards.append(entry)
        manifest.totals.add([w.generation for w in written], rejected=0, kept=0)
        totals = manifest.totals
        totals.wall_seconds += self.seconds * texts
        totals.verify_seconds += 0.7 * self.seconds * texts
        totals.prefill_seconds += 0.1 * self.seconds * texts
        totals.draft_seconds += 0 if self.plain else 0.05 * self.seconds * texts
        self._append(
            "shard", None, wall_seconds=self.seconds * texts, new_tokens=TOKENS * texts,
            target_calls=self.calls * texts, entities=texts,
        )  # fmt: skip
        self.folder.write_manifest(manifest)

    def finish(self) -> Path:
        """Write what is left, and say that the run is finished."""
        while not self.manifest.shards_complete:
            self.shard(min(8, self.manifest.input.records - self.manifest.records_done))
        self.folder.write_summary(self.manifest.summary())
        self.manifest.finished = True
        self.folder.write_manifest(self.manifest)
        return self.folder.path

    def _text(self, number: int) -> Written:
        place = number % len(GROUPS)
        accepted = 0 if self.plain else 15 + 9 * place
        by_group = accepted // 3
        counts = Counts(
            target_calls=self.calls,
            draft_calls=0 if self.plain else 9,
            drafted_tokens=0 if self.plain else 36,
            accepted_tokens=accepted,
            relaxed_tokens=accepted // 4 if self.relaxed else 0,
            accepted_by_source=[0, 0, by_group, accepted - by_group, 0],
        )
        ids = np.full(TOKENS, 3, np.int32)
        generation = Generation(f"e{number}", ids, "eos", PROMPT, counts)
        return Written(generation, GROUPS[place], self.text, 0, pieces=self.pieces)

    def _append(self, kind: str, at: float | None, **values: Any) -> None:
        moment = datetime.now(UTC) if at is None else datetime.fromtimestamp(at, UTC)
        self.folder.append_metrics(
            {"kind": kind, "at": moment.isoformat(timespec="milliseconds"), **values}
        )


def write_pool(path: Path, sizes: Iterable[int] = (1_000_000, 2_000_000, 4_000_000)) -> Path:
    """The manifest of a pool with a file for each of `GROUPS` and one for all of 10 MB."""
    files = {f"group-{i:05d}.safetensors": {"bytes": n} for i, n in enumerate(sizes)}
    files["all.safetensors"] = {"bytes": 10_000_000}
    usage = {"drafts": 100, "hits": 60, "accepted": 300, "by_length": [0, 100, 200], "by_group": {}}
    manifest = {"files": files, "groups": list(GROUPS), "texts": 50, "tokens": 2000, "usage": usage}
    path.mkdir(parents=True, exist_ok=True)
    (path / "manifest.json").write_text(json.dumps(manifest))
    return path
