"""What this process may use of its machine's processor, and what that can do."""

from __future__ import annotations

import logging
import os
from math import inf
from pathlib import Path

_LOG = logging.getLogger("draftrec")


def usable_cores() -> int:
    """How many cores this process may use: those that it may run on, and no more than whole ones of
    what its control groups (a container's limit) allow it."""
    here = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if here else os.cpu_count() or 1
    return max(1, int(min(cores, allowed_cores())))


def allowed_cores(root: Path = Path("/")) -> float:
    """Cores' worth of time that the control groups of this process allow, versions 1 and 2; inf
    without a limit. `root`: where /proc and /sys are."""
    try:
        groups = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return inf
    limits = [inf]
    for line in groups:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        # Inside a container the path may be one of the host's, of which only the top is seen.
        top = root / "sys/fs/cgroup" / ("cpu" if controllers else "")
        group = top / path.lstrip("/")
        inside = [group, *group.parents]
        limits += [_limit(place) for place in inside[: inside.index(top) + 1]]
    return min(limits)


def _limit(group: Path) -> float:
    """Cores of one control group, inf if it has no limit."""
    try:
        if (group / "cpu.max").exists():
            quota, period = (group / "cpu.max").read_text().split()
        else:
            names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
            quota, period = ((group / name).read_text() for name in names)
        return inf if quota == "max" or int(quota) <= 0 else int(quota) / int(period)
    except (OSError, ValueError):
        return inf


def set_threads(asked: int | None) -> None:
    """Let PyTorch use so many threads; None: as it decides, or as OMP_NUM_THREADS does, and no more
    than the process may use, where PyTorch counts the machine's."""
    import torch

    if asked is not None:
        torch.set_num_threads(asked)
        return
    cores, own = usable_cores(), torch.get_num_threads()
    if own > cores and not os.environ.get("OMP_NUM_THREADS"):
        torch.set_num_threads(cores)
        _LOG.info(
            "PyTorch uses %d threads instead of %d, as many as this process has cores; --threads "
            "sets another number",
            cores,
            own,
        )


def multiplies_bfloat16() -> bool:
    """Has this processor instructions for products of bfloat16, and have we kernels that use
    them?"""
    from draftrec.engine.passes.registers import PAIRWISE

    return PAIRWISE
