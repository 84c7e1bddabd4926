"""Where a job runs: the options that commands share, and the cluster that they name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from draftrec.cli.options.knobs import CLUSTER_PANEL, option
from draftrec.errors import DraftrecError

Cluster = partial(option, panel=CLUSTER_PANEL)


@dataclass(frozen=True, kw_only=True)
class ClusterOptions:
    """Who does the shards of a job."""

    engine: Literal["local", "ray"] = Cluster(
        "Run in this process, or by workers on a Ray cluster.", default="local"
    )
    workers: int = Cluster("Ray: workers, each with a model of its own.", default=1, min=1)
    gpus_per_worker: float | None = Cluster(
        "Ray: GPUs of each worker, or a share of one.", min=0.0, show_default="1, if any"
    )
    cpus_per_worker: float | None = Cluster(
        "Ray: processor cores of each worker.",
        min=0.0,
        show_default="its share of this machine, 1 on a cluster",
    )
    address: str | None = Cluster(
        "Ray: a running cluster (auto, HOST:PORT or ray://HOST:PORT).",
        show_default="RAY_ADDRESS, or a cluster on this machine for this job",
    )


_RAY_ONLY = ("workers", "gpus_per_worker", "cpus_per_worker", "address")


def cluster_of(options: Any) -> Any:
    """The `ClusterSpec` that a command's options ask for; None for the local engine.

    Raises DraftrecError where options of the Ray engine are given without it.
    """
    values = {name: getattr(options, name) for name in _RAY_ONLY}
    if options.engine == "local":
        given = [n for n, value in values.items() if value not in (None, 1)]
        if given:
            raise DraftrecError(f"--{given[0].replace('_', '-')} needs --engine ray")
        return None
    from draftrec.jobs.ray.cluster import ClusterSpec

    if options.device == "cpu" and options.gpus_per_worker is None:
        values["gpus_per_worker"] = 0.0
    return ClusterSpec(**values)


def executor_of(cluster: Any, note: Callable[[str], None]) -> Any:
    """Starts who does the shards of a job: workers of a cluster, of which `note` is told what a
    user should know, or this process."""
    if cluster is not None:
        from draftrec.jobs.ray.executor import on_ray

        return on_ray(cluster, note)
    from draftrec.jobs.executor import LocalExecutor

    return LocalExecutor
