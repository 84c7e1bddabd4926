"""Whole jobs on 8, 64 and 512 GPUs, as they are and with something done otherwise."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Any

import numpy as np
from scaling_cluster import Cluster, Outcome, Simulation
from scaling_gpu import LARGE, MAIN, MODES, Variant, World

GPUS = (8, 64, 512)
_DRAWN = 60


@dataclass(frozen=True, slots=True)
class Job:
    """One job on a cluster of a `variant`'s GPUs. `shard`: records of one; `lag`: pool lag in
    shards per worker; `parts`: jobs that share the entities and the GPUs; `ready`: prompts come
    rendered; `bad`: nodes fail as often as the worse of the published clusters'; `slowness`: of
    slow workers, in place of the inputs'."""

    gpus: int
    mode: str
    variant: Variant = MAIN
    shard: int = 1024
    lag: int = 2
    parts: int = 1
    ready: bool = False
    bad: bool = False
    slowness: float | None = None


_TOLD = ("gpus", "mode", "shard", "lag", "parts", "ready", "bad", "slowness")
_USUAL = Job(0, "")


def play(world: World, job: Job, seeds: Seq[int]) -> dict[str, Any]:
    """A job from the first shard to the last; the mean of several runs of it."""
    worker, setting = world.worker(job.variant, job.mode), world.best(job.variant, job.mode).setting
    random = np.random.default_rng(seeds[0])
    drawn = [worker.shard_seconds(setting, job.shard, random) for _ in range(_DRAWN)]
    cluster = cluster_of(world, job)
    outcomes = [
        Simulation(cluster, lambda r: drawn[r.integers(len(drawn))], seed).run() for seed in seeds
    ]
    steady = job.shard / worker.speed(setting).texts
    given = {name: getattr(job, name) for name in _TOLD}
    told = {name: value for name, value in given.items() if value != getattr(_USUAL, name)}
    return {
        "model": job.variant.model.name,
        **told,
        "shard_seconds": round(float(np.mean(drawn)), 2),
        "shard_variation": round(float(np.std(drawn) / np.mean(drawn)), 4),
        "steady_share": round(steady / float(np.mean(drawn)), 4),
        **_summed(outcomes, job, cluster, float(np.mean(drawn))),
    }


def cluster_of(world: World, job: Job) -> Cluster:
    """The cluster of a job, or of one of its parts: what the driver does per shard, what fails and
    for how long."""
    texts = world.value("entities") / job.parts
    reading = world.value("read_ready_us" if job.ready else "read_us")
    per_text = reading + world.value("receive_us") + world.value("write_us")
    rate = world.value("bad_failures_per_gpu_day" if job.bad else "failures_per_gpu_day")
    per_node = int(world.value("gpus_per_node"))
    # A worker that comes back reads what was written so far, on average half of all texts.
    catching_up = 1e-6 * world.value("fetch_us") * texts / 2
    return Cluster(
        workers=job.gpus // job.parts,
        shards=int(texts / job.shard),
        window=job.lag * (job.gpus // job.parts) + 1,
        per_node=per_node,
        failures=rate * per_node,
        down=world.value("repair_seconds") + world.value("reload_seconds") + catching_up,
        driver_down=world.value("driver_restart_seconds") + catching_up,
        slow=world.value("slow_workers"),
        slowness=job.slowness or world.value("slowness"),
        commit=lambda k: 1e-6 * (job.shard * per_text + k * world.value("manifest_us")),
    )


def _summed(
    outcomes: Seq[Outcome], job: Job, cluster: Cluster, shard_seconds: float
) -> dict[str, Any]:
    """Of all GPUs of the job; shares are of their time."""
    seconds = float(np.mean([o.seconds for o in outcomes]))
    total = sum(o.seconds for o in outcomes) * cluster.workers
    hours = seconds * job.gpus / 3600

    def share(name: str) -> float:
        return round(sum(getattr(o, name) for o in outcomes) / total, 5)

    # To first order, from rates alone: few runs see anything that is this rare.
    days = seconds / 86_400
    expected = cluster.failures * job.gpus / cluster.per_node * days
    each = cluster.per_node * (cluster.down + shard_seconds / 2)
    writing = sum(map(cluster.commit, range(cluster.shards)))
    return {
        "texts_per_second": round(cluster.shards * job.shard * job.parts / seconds, 1),
        "days": round(days, 3),
        "gpu_hours": round(hours),
        "dollars": round(hours * job.variant.gpu.price),
        **{name: share(name) for name in ("useful", "waiting", "lost", "down")},
        "driver_busy": round(writing / seconds, 4),
        "failures_per_day": round(cluster.failures * job.gpus / cluster.per_node, 3),
        "expected_failures": round(expected, 4),
        "expected_loss": round(expected * each / (seconds * job.gpus), 6),
        "failures_seen": sum(o.failures for o in outcomes),
        "runs": len(outcomes),
    }


def usual(world: World, seeds: Seq[int]) -> list[dict[str, Any]]:
    """Both models, all numbers of GPUs, all modes, with draftrec's own settings."""
    return [
        play(world, Job(gpus, mode, variant), seeds)
        for variant in (MAIN, LARGE)
        for gpus in GPUS
        for mode in MODES
    ]


def changes(world: World, seeds: Seq[int]) -> dict[str, Any]:
    """What becomes of strict jobs when something is done otherwise, or goes worse."""
    few, big = seeds[:1], GPUS[-1]
    return {
        "shards of 8,192": [play(world, Job(big, "strict", shard=8192), few)],
        "and prompts ready": [play(world, Job(big, "strict", shard=8192, ready=True), few)],
        "eight jobs beside each other": [play(world, Job(big, "strict", parts=8), few)],
        "and shards of 8,192": [play(world, Job(big, "strict", parts=8, shard=8192), few)],
        "slow workers": [
            play(world, Job(64, "strict", lag=lag, slowness=slowness), few)
            for slowness in (2.0, 4.0)
            for lag in (2, 8)
        ],
        "failures as of OPT-175B": [play(world, Job(big, "strict", LARGE, bad=True), seeds)],
    }
