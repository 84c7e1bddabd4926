"""Which Ray cluster a job runs on, and what each of its workers gets there."""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from draftrec.errors import DraftrecError
from draftrec.jobs.executor import Share
from draftrec.models.processor import usable_cores

# A shard's records and texts are a few megabytes; Ray would take 30 % of the memory.
_OBJECT_STORE_BYTES = 512 << 20
_KNOCK_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class ClusterSpec:
    """`workers`, each with a model of its own. `address`: a running cluster, as `ray.init` takes
    it; None starts one on this machine, unless RAY_ADDRESS is set. `gpus_per_worker` may be a
    fraction; None: one, where the cluster has any. `cpus_per_worker`; None: this machine's cores
    shared out, or one on a cluster."""

    workers: int = 1
    gpus_per_worker: float | None = None
    cpus_per_worker: float | None = None
    address: str | None = None


def import_ray() -> Any:
    """The `ray` package. Raises DraftrecError where it is missing."""
    try:
        import ray
    except ImportError as error:
        raise DraftrecError(
            '--engine ray needs Ray, which is not installed; run `pip install "draftrec[ray]"`'
        ) from error
    return ray


@contextmanager
def connected(spec: ClusterSpec) -> Iterator[Share]:
    """Be part of a cluster; yields what a worker gets there.

    A cluster that was started for this job ends with it, and so does a process's connection that
    was made for it. Raises DraftrecError where no cluster answers, or where this machine has too
    little for the workers.
    """
    _check(spec)
    ray = import_ray()
    ours = not ray.is_initialized()
    address = spec.address or os.environ.get("RAY_ADDRESS")
    if ours:
        _join(ray, address) if address else _start(ray, spec)
    try:
        yield _share(ray, spec, local=ours and not address)
    finally:
        if ours:
            ray.shutdown()


def _check(spec: ClusterSpec) -> None:
    if spec.workers < 1:
        raise DraftrecError(f"--workers must be 1 or more, not {spec.workers}")
    for name in ("gpus_per_worker", "cpus_per_worker"):
        value = getattr(spec, name)
        if value is not None and not 0 <= value < 1024:
            raise DraftrecError(f"--{name.replace('_', '-')} must be 0 or more, not {value:g}")


def _start(ray: Any, spec: ClusterSpec) -> None:
    """A cluster on this machine that has room for the workers and for nothing else."""
    # A local cluster that lives for one job has nobody to report to.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray makes its workers yield to every other process, which a local job does not do either.
    os.environ.setdefault("RAY_worker_niceness", "0")
    # A secret for this cluster alone; Ray's own would be written to the home folder.
    if not {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys():
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    # With fractions of a processor a sum of shares may exceed the whole by a rounding error.
    cpus = spec.workers * _cpus(spec) + 1
    ray.init(
        "local",  # not one that somebody else has started here
        num_cpus=int(cpus),
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        object_store_memory=_OBJECT_STORE_BYTES,
    )


def _join(ray: Any, address: str) -> None:
    try:
        if address != "auto":
            _knock(address)
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except (OSError, ValueError, RuntimeError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise DraftrecError(
            f"no Ray cluster answers at {address} ({reason}); start one with `ray start --head`, "
            f"or leave --address out to use this machine alone"
        ) from error


def _knock(address: str) -> None:
    """Raise OSError where nobody listens: Ray itself would wait for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        raise ValueError("it is neither auto, nor HOST:PORT, nor ray://HOST:PORT")
    with socket.create_connection((host, int(port)), timeout=_KNOCK_SECONDS):
        pass


def _share(ray: Any, spec: ClusterSpec, *, local: bool) -> Share:
    there = ray.cluster_resources()
    gpus = spec.gpus_per_worker
    if gpus is None:
        gpus = 1.0 if there.get("GPU", 0) else 0.0
    if local and gpus * spec.workers > there.get("GPU", 0):
        raise DraftrecError(
            f"{spec.workers} workers with {gpus:g} GPUs each are asked for, this machine has "
            f"{there.get('GPU', 0):g}; lower --workers or --gpus-per-worker, or join a cluster "
            f"with --address"
        )
    if not local:
        return Share(1.0 if spec.cpus_per_worker is None else spec.cpus_per_worker, gpus, None)
    threads = os.environ.get("OMP_NUM_THREADS")
    return Share(_cpus(spec), gpus, int(threads) if threads else max(1, int(_cpus(spec))))


def _cpus(spec: ClusterSpec) -> float:
    """Of this machine, per worker."""
    if spec.cpus_per_worker is not None:
        return spec.cpus_per_worker
    return max(1, usable_cores() // spec.workers)
