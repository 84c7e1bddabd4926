"""What every crew on Ray is made of: a fleet on a cluster, which end together."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from draftrec.jobs.ray.cluster import ClusterSpec, Share, connected
from draftrec.jobs.ray.fleet import Fleet, Work


class RayWorkers:
    """Actors that are ready, at least the first; `facts` are its own.

    `make` is given a worker's share of the cluster, and gives what makes the work where the worker
    runs. `note` is told what a user should know. Raises DraftrecError as `connected` and
    `Fleet.facts` do.
    """

    def __init__(
        self,
        cluster: ClusterSpec,
        make: Callable[[Share], Callable[[], Work]],
        note: Callable[[str], None],
    ) -> None:
        with ExitStack() as stack:
            share = stack.enter_context(connected(cluster))
            self.fleet = Fleet(make(share), cluster.workers, share, note)
            stack.callback(self.fleet.close)
            self.facts: Any = self.fleet.facts()
            self.window = usual_lag(cluster.workers)
            self._open = stack.pop_all()

    def close(self) -> None:
        """Let the workers go, and leave the cluster."""
        self._open.close()


def usual_lag(workers: int) -> int:
    """Shards that may be under way before one that is begun: two for every worker, so that those
    who are done need not wait for those who are not."""
    return 2 * workers
