"""The sections of gpu.py: what each measures, on which shapes, and how much of it."""

from __future__ import annotations

import gc
import os
import statistics
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gpu_exact
import gpu_texts
import torch
from common import git_state, note, spread
from gpu_beams import catalogue, measure_beams
from gpu_peers import PEERS, measure_peer, missing
from gpu_replay import Cell, longest_for
from gpu_steps import (
    SHAPES,
    TINY,
    WAYS,
    build,
    busy_seconds,
    copy_bandwidth,
    first_sight_seconds,
    hf_step_seconds,
    pass_seconds,
    reserve,
    segments_for,
    sync_for,
    target_of,
    weight_bytes,
)

from draftrec.engine.target import Target, Way
from draftrec.pool.costs import measure_cost
from draftrec.pool.index import warm_up
from draftrec.pool.store import Pool

KINDS = ("texts", "steps", "replay", "exact", "beams", "rows", *PEERS)
NAMES = (*SHAPES, *TINY)
# Passes that see one key more each.
_GROWTH = 12
__all__ = ["KINDS", "NAMES", "PEERS", "Bench", "Settings", "missing"]


@dataclass(frozen=True)
class Settings:
    """How much of everything; `cell_seconds` bounds one plain replay."""

    device: str
    texts: Path
    ways: tuple[Way, ...] = WAYS
    batches: tuple[int, ...] = (1, 8, 32, 128)
    rows: tuple[int, ...] = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256)
    context: int = 512
    repeats: int = 9
    copy_bytes: int = 4 << 30
    curve_seconds: float = 5.0
    cell_seconds: float = 6.0
    longest: int = 192
    warm: int = 1500
    hf_steps: int = 32
    exact: gpu_exact.Plan = field(default_factory=gpu_exact.Plan)
    beams: tuple[int, ...] = (20, 50)
    users: tuple[int, ...] = (1, 8, 32)
    items: int = 100_000
    rounds: int = 5

    @classmethod
    def of(cls, device: str, texts: Path, *, dry: bool) -> Settings:
        if not dry:
            return cls(device, texts)
        return cls(
            device, texts, batches=(1, 2), rows=(1, 2, 8), context=64, repeats=2,
            copy_bytes=1 << 22, curve_seconds=0.05, cell_seconds=0.1, longest=16, warm=8,
            hf_steps=2, exact=gpu_exact.Plan(3, 8, (1, 2), (4,)), beams=(3,), users=(2,),
            items=300, rounds=2,
        )  # fmt: skip


def shapes_of(*, dry: bool) -> list[str]:
    """By size."""
    return list(TINY)[1:] if dry else list(SHAPES)


def unusable(device: str) -> str | None:
    """Why nothing can be measured; None if it can."""
    if device.startswith("cuda") and not torch.cuda.is_available():
        return "PyTorch sees no CUDA device here; --dry tries everything on CPU with tiny shapes"
    return None


def device_name(device: str) -> str:
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else device


def where(device: str) -> dict[str, Any]:
    """The card with its driver and libraries, and the commit, that a figure belongs to."""
    found: dict[str, Any] = {
        "card": device_name(device),
        "torch": version("torch"),
        "transformers": version("transformers"),
        "commit": git_state()["commit"],
        "dirty": git_state()["dirty"],
    }
    if device.startswith("cuda"):
        facts = torch.cuda.get_device_properties(device)
        found |= {
            "memory_bytes": facts.total_memory,
            "capability": f"{facts.major}.{facts.minor}",
            "driver": _driver(),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
    return found


def _driver() -> str | None:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.split("\n")[0].strip()


class Bench:
    """Measures sections; the model of the last shape is kept for the next one."""

    def __init__(self, settings: Settings, scratch: Path) -> None:
        self.settings, self.device = settings, torch.device(settings.device)
        self._scratch = scratch
        self._shape, self._model = "", None
        self._targets: dict[tuple[Way, bool], Target] = {}
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

    def measure(self, kind: str, shape: str) -> dict[str, Any]:
        """One section's figures."""
        if kind in PEERS:
            it = self.settings
            return measure_peer(kind, shape, self.sources[0], it.batches, it.longest)
        own: dict[str, Callable[[str], dict[str, Any]]] = {
            "texts": self._texts, "steps": self._steps, "rows": self._rows,
            "replay": self._replay, "exact": self._exact, "beams": self._beams,
        }  # fmt: skip
        return own[kind](shape)

    @cached_property
    def sources(self) -> list[gpu_texts.Replayed]:
        return gpu_texts.load(self._scratch / "texts.written")

    @cached_property
    def pools(self) -> dict[str, Pool]:
        return {source.name: source.pool() for source in self.sources}

    def model(self, shape: str) -> Any:
        """The shape with random weights, as transformers makes it."""
        if shape != self._shape:
            self._model = None
            self._targets.clear()
            self._free()
            self._shape, self._model = shape, build((SHAPES | TINY)[shape], self.device)
            sync_for(self.device)()
        return self._model

    def target(self, shape: str, way: Way, *, exact: bool = False) -> Target:
        """The shape run one way. What the other ways have cached is forgotten."""
        model = self.model(shape)
        for other in self._targets.values():
            other.slab = None
        self._free()
        if (way, exact) not in self._targets:
            self._targets[way, exact] = target_of(model, way, exact=exact)
        return self._targets[way, exact]

    def _free(self) -> None:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _fitting(self, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What `measure` gives, or that it needs more memory than there is."""
        try:
            return measure()
        except torch.OutOfMemoryError:
            for target in self._targets.values():
                target.slab = None
        self._free()
        return {"skipped": "does not fit into the memory"}

    def _texts(self, _shape: str) -> dict[str, Any]:
        it = self.settings
        found = gpu_texts.make_texts(it.texts, it.device, it.warm, max(it.batches))
        gpu_texts.save(self._scratch / "texts.written", found)
        return gpu_texts.summary(found)

    def _steps(self, shape: str) -> dict[str, Any]:
        """The plain step at each batch size against its floors, by every way to run it, and Hugging
        Face's."""
        it, model = self.settings, self.model(shape)
        bandwidth = copy_bandwidth(self.device, it.copy_bytes)
        weights = weight_bytes(model)
        report: dict[str, Any] = {
            "parameters": sum(p.numel() for p in model.parameters()),
            "copy_bytes_per_second": bandwidth,
            "weight_bytes": weights,
            "weights_once_ms": round(1e3 * weights / bandwidth["median"], 4),
            "ways": {},
        }
        for way in self.settings.ways:
            target = self.target(shape, way)
            report["ways"][way] = {
                f"batch_{batch}": self._fitting(
                    partial(self._step, target, batch, weights, bandwidth["median"])
                )
                for batch in it.batches
            }
            target.slab = None
        report["hf_generate_step_ms"] = {
            f"batch_{batch}": self._fitting(partial(self._hf_step, model, batch))
            for batch in it.batches
        }
        return report

    def _hf_step(self, model: Any, batch: int) -> dict[str, Any]:
        it = self.settings
        return spread([1e3 * s for s in hf_step_seconds(model, batch, it.context, it.hf_steps)])

    def _step(self, target: Target, batch: int, weights: int, bandwidth: float) -> dict[str, Any]:
        it, vocabulary = self.settings, target.model.config.vocab_size
        segments = segments_for(batch, batch, it.context, vocabulary)
        drafted = segments_for(batch, 4 * batch, it.context, vocabulary)
        reserve(target, batch, it.context + _GROWTH + 8)
        first = {
            "plain": first_sight_seconds(target, segments, _GROWTH),
            "drafted": first_sight_seconds(target, drafted, _GROWTH),
        }
        wall = spread([1e3 * s for s in pass_seconds(target, segments, 3 * it.repeats)])
        busy = busy_seconds(target, segments)
        once = 1e3 * weights / bandwidth
        floor = once + 1e3 * batch * it.context * target.bytes_per_token / bandwidth
        note(f"  batch {batch}: {wall['median']} ms, {wall['median'] / floor:.2f} of the limit")
        return {
            "step_ms": wall,
            "first_sight_ms": {k: spread([1e3 * s for s in v]) for k, v in first.items()},
            "busy_ms": None if busy is None else round(1e3 * busy, 4),
            "weights_and_kv_once_ms": round(floor, 4),
            "step_over_weights_once": round(wall["median"] / once, 3),
            "step_over_floor": round(wall["median"] / floor, 3),
        }

    def _rows(self, shape: str) -> dict[str, Any]:
        """Milliseconds of a pass against its rows, for one sequence and spread over more."""
        it = self.settings
        report: dict[str, Any] = {"context": it.context, "rows": list(it.rows), "ways": {}}
        for way in self.settings.ways:
            target = self.target(shape, way)
            report["ways"][way] = {
                f"batch_{batch}": self._fitting(partial(self._curve, target, batch))
                for batch in it.batches
            }
        return report

    def _curve(self, target: Target, batch: int) -> dict[str, Any]:
        it, vocabulary = self.settings, target.model.config.vocab_size
        reserve(target, batch, it.context + max(it.rows) + 8)
        found: list[float] = []
        for rows in it.rows:
            segments = segments_for(batch, rows, it.context, vocabulary)
            found.append(statistics.median(pass_seconds(target, segments, it.repeats)))
        return {"ms": [round(1e3 * s, 4) for s in found]}

    def _replay(self, shape: str) -> dict[str, Any]:
        """Every source at every batch size, by every way, and the curves that steered drafting."""
        warm_up()
        report: dict[str, Any] = {}
        for way in self.settings.ways:
            target = self.target(shape, way)
            found = report[way] = {"cost_curves": {}}
            for batch in self.settings.batches:
                cells = self._fitting(partial(self._cells, target, batch))
                if "skipped" in cells:
                    found["cost_curves"][f"batch_{batch}"] = cells
                    continue
                for name, cell in cells.items():
                    found.setdefault(name, {})[f"batch_{batch}"] = cell
        return report

    def _cells(self, target: Target, batch: int) -> dict[str, Any]:
        it = self.settings
        cost = measure_cost(target, batch, it.context, seconds=it.curve_seconds)
        longest = min(it.longest, longest_for(it.cell_seconds, float(cost(batch)), batch))
        found: dict[str, Any] = {"cost_curves": cost.to_json()}
        for place, source in enumerate(self.sources):
            cell = Cell(target, source, self.pools[source.name], batch, cost)
            if place == 0:  # what is compiled at first use is no part of a figure
                for mode in cell.modes:
                    cell.run(cell.requests(), 8, mode)
            found[source.name] = cell.measure(longest)
        return found

    def _exact(self, shape: str) -> dict[str, Any]:
        """Whether strict is plain, by every way and with what --exact does."""
        report: dict[str, Any] = {}
        for way in self.settings.ways:
            for name, exact in ((way, False), (f"{way}, --exact", True)):
                target = self.target(shape, way, exact=exact)
                report[name] = gpu_exact.measure_exact(target, self.settings.exact)
        return report

    def _beams(self, shape: str) -> dict[str, Any]:
        it, trie = self.settings, catalogue(self.settings.items)
        sizes, kind = (it.beams, it.users), (SHAPES | TINY)[shape]
        report: dict[str, Any] = {}
        for way in self.settings.ways:
            target = self.target(shape, way)
            report[way] = measure_beams(target, kind, trie, sizes, it.rounds)
        return report
