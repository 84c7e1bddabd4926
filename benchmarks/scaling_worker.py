"""One GPU: what a pass takes, the best batch and draft for a workload, how long a shard takes.

A pass reads the weights once and the running texts' keys and values once, and computes every row.
Linear layers take the longer of reading and computing; attention reads on its own. A frozen pass
takes a little more, whatever it does; an eager one no less than launching its kernels. The host
works in between, on one core, as `engine/text/loop.py` does. Prompts are computed in the same
passes, at most `chunk` rows of them at a time.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scaling_inputs import Gpu, Input, Model, Way, Workload

from draftrec.core import DoubleArray

#: Tokens of the longest text, for which every slot has room.
_LONGEST = 512
_SLOTS = (1, 2, 4, 8, 12, 16, 20, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
_NODES = (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
#: Share of the fastest setting's speed from which another one is as good.
_AS_GOOD = 0.98
_CHUNKS = (32, 64, 128, 256, 512, 1024, 2048)


@dataclass(frozen=True, slots=True)
class Drafting:
    """Tokens per pass (`tokens`) and the host's seconds per sequence and pass (`host`), by number
    of draft nodes, linear between the given ones; `variation` of the passes of single texts."""

    nodes: tuple[int, ...]
    tokens: tuple[float, ...]
    host_nodes: tuple[int, ...]
    host: tuple[float, ...]
    variation: float

    def tokens_at(self, nodes: int) -> float:
        """Tokens per pass; between measured numbers of nodes, linear in their logarithm."""
        return float(np.interp(np.log1p(nodes), np.log1p(self.nodes), self.tokens))

    def host_at(self, nodes: int) -> float:
        """Seconds per sequence and pass; beyond what was measured, the last slope goes on."""
        xs, ys = np.array(self.host_nodes, float), np.array(self.host)
        if nodes <= xs[-1] or len(xs) < 2:
            return float(np.interp(nodes, xs, ys))
        return float(ys[-1] + (nodes - xs[-1]) * (ys[-1] - ys[-2]) / (xs[-1] - xs[-2]))


@dataclass(frozen=True, slots=True)
class Setting:
    """Sequences at once, draft nodes per sequence, most prompt rows in a pass."""

    slots: int
    nodes: int
    chunk: int


@dataclass(frozen=True, slots=True)
class Speed:
    """The steady state of one GPU: `texts` per second, and a pass on average: its seconds, those
    that prompts add, those of the host, its rows."""

    setting: Setting
    texts: float
    tokens_per_pass: float
    pass_seconds: float
    prompt_seconds: float
    host_seconds: float
    rows: float


@dataclass(frozen=True, slots=True)
class Worker:
    """A GPU with a model and a workload. `prompt_rows`: those of a text that are computed."""

    gpu: Gpu
    model: Model
    inputs: Mapping[str, Input]
    workload: Workload
    drafting: Drafting
    way: Way = "frozen"

    @property
    def prompt_rows(self) -> int:
        return self.workload.prompt - self.workload.shared

    def gpu_seconds(self, rows: float, sequences: float) -> float:
        """Seconds of a pass of `rows` rows over `sequences` half-written texts."""
        inputs = {name: it.value for name, it in self.inputs.items()}
        bandwidth = self.gpu.bandwidth * inputs["bandwidth_share"]
        flops = self.gpu.flops * inputs["flops_share"]
        # Two bytes of a weight are read; multiplying and adding are two operations of a row.
        linear = 2 * self.model.parameters * max(1 / bandwidth, rows / flops)
        context = self.workload.prompt + self.workload.text / 2
        work = linear + sequences * context * self.model.kv_bytes / bandwidth
        seconds = work + 1e-6 * inputs["pass_us"]
        if self.way == "frozen":
            return seconds
        launching = self.model.layers * inputs["kernels_per_layer"] * inputs["launch_us"]
        return max(seconds, 1e-6 * (launching + sequences * inputs["eager_us"]))

    def fits(self, slots: int) -> bool:
        """Whether so many slots have room beside the weights, a tenth of the memory left free."""
        room = self.workload.prompt + _LONGEST + 65
        free = 0.9 * self.gpu.memory - 2 * self.model.parameters
        return slots * room * self.model.kv_bytes <= free

    def speed(self, setting: Setting) -> Speed:
        """The steady state under a setting."""
        passes = self.workload.text / self.drafting.tokens_at(setting.nodes)
        reading = -(-self.prompt_rows // setting.chunk)
        starts = min(setting.slots / (passes + reading), setting.chunk / self.prompt_rows)
        writing = starts * passes
        prompt = starts * self.prompt_rows
        host = writing * self.drafting.host_at(setting.nodes)
        rows = writing * (1 + setting.nodes)
        # Not every pass has prompt rows: a prompt comes whole, or in pieces of a chunk.
        burst = min(setting.chunk, max(self.prompt_rows, prompt))
        without = self.gpu_seconds(rows, writing)
        reads = prompt / burst * (self.gpu_seconds(rows + burst, writing) - without)
        seconds = without + reads + host
        return Speed(
            setting, starts / seconds, self.drafting.tokens_at(setting.nodes), seconds, reads,
            host, rows + prompt,
        )  # fmt: skip

    def best(
        self,
        nodes: tuple[int, ...] = _NODES,
        slots: tuple[int, ...] = _SLOTS,
        chunks: tuple[int, ...] = _CHUNKS,
    ) -> Speed:
        """Of the settings that fit and are as good as the fastest, the fastest of those with the
        fewest slots: shards end sooner, and there is memory left. Raises ValueError where none
        fits."""
        speeds = [
            self.speed(Setting(s, n, c))
            for s in slots
            if self.fits(s)
            for n in nodes
            for c in chunks
        ]
        least = _AS_GOOD * max(speed.texts for speed in speeds)
        good = [speed for speed in speeds if speed.texts >= least]
        return min(good, key=lambda speed: (speed.setting.slots, -speed.texts))

    def shard_seconds(self, setting: Setting, texts: int, random: np.random.Generator) -> float:
        """Seconds of one shard, drawn: prompts are read one after another, texts take passes as
        they come, and at the end fewer and fewer are left."""
        mean = self.workload.text / self.drafting.tokens_at(setting.nodes)
        passes = lognormal(mean, self.drafting.variation, texts, random)
        reading = self.prompt_rows / setting.chunk
        steady = self.speed(setting).pass_seconds
        host = self.drafting.host_at(setting.nodes)
        running: list[float] = []  # the passes after which texts are done, a heap
        clock = seconds = read = 0.0
        for count in passes.tolist():
            if len(running) == setting.slots:
                now = heapq.heappop(running)
                seconds += (now - clock) * steady
                clock = now
            start = max(clock, read)
            read = start + reading
            heapq.heappush(running, max(read, start + 1) + count)
        while running:
            left = len(running)
            rows = left * (1 + setting.nodes)
            now = heapq.heappop(running)
            with_prompts = max(0.0, min(now, read) - clock)
            seconds += with_prompts * self.gpu_seconds(rows + setting.chunk, left)
            seconds += (now - clock - with_prompts) * self.gpu_seconds(rows, left)
            seconds += (now - clock) * left * host
            clock = now
        return seconds


def lognormal(
    mean: float, variation: float, count: int, random: np.random.Generator
) -> DoubleArray:
    """float64 `[count]` of that mean and coefficient of variation."""
    sigma = np.sqrt(np.log1p(variation**2))
    return mean * np.exp(sigma * random.standard_normal(count) - sigma**2 / 2)


def drafting_of(
    found: Mapping[str, Any], inputs: Mapping[str, Input], texts_in_pool: int | None = None
) -> Drafting:
    """What was measured on one trace, with its largest pool or that of `texts_in_pool`."""
    pools = {int(size): pool for size, pool in found["pools"].items()}
    budgets = pools[texts_in_pool or max(pools)]["budgets"]
    nodes = {0: 1.0} | {int(n): b["tokens_per_step"] for n, b in budgets.items()}
    host = {
        int(name.removeprefix("host_us_")): 1e-6 * value.value
        for name, value in inputs.items()
        if name.startswith("host_us_")
    }
    order, hosts = sorted(nodes), sorted(host)
    return Drafting(
        tuple(order), tuple(nodes[n] for n in order),
        tuple(hosts), tuple(host[n] for n in hosts), found["steps_variation"],
    )  # fmt: skip


def relaxed(drafting: Drafting, factor: float) -> Drafting:
    """The same with `factor` times the tokens per pass, as far as there are nodes to accept."""
    pairs = zip(drafting.nodes, drafting.tokens, strict=True)
    return replace(drafting, tokens=tuple(min(1 + n, t * factor) if n else t for n, t in pairs))
