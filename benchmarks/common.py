"""What every benchmark needs: where it ran, how figures are summed up, where results go."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Seq
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
#: Recorded data and models that are measured with and never committed.
SHARED = ROOT.parent / "shared"
RESULTS = ROOT / "benchmarks" / "results"
_PACKAGES = ("torch", "transformers", "tokenizers", "numpy", "pyarrow", "numba")


def machine() -> dict[str, Any]:
    """The machine, the versions and the commit that a figure belongs to."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": _cpu_model(),
        "cores": _cores(),
        "memory_bytes": _memory_bytes(),
        "threads": os.environ.get("OMP_NUM_THREADS", "default"),
        "gpu": _gpu(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{name: _version(name) for name in _PACKAGES},
        **git_state(),
    }


def git_state() -> dict[str, Any]:
    """Commit and whether tracked files differ from it; Nones in a copy without history."""
    commit = _git("rev-parse", "HEAD")
    changed = _git("status", "--porcelain", "--untracked-files=no")
    # Results of benchmarks run before this one do not change what is measured.
    lines = [line for line in (changed or "").splitlines() if "benchmarks/results/" not in line]
    return {"commit": commit, "dirty": None if changed is None else bool(lines)}


def write_result(
    name: str, payload: Mapping[str, Any], *, seed: int | None = None, folder: Path | None = None
) -> Path:
    """Write `<folder>/<name>.json` and print it as one JSON line, the last of the output.

    A second copy goes to the folder that the variable OUT names, for machines that send only one
    folder back.
    """
    result = {"benchmark": name, "seed": seed, "machine": machine(), **payload}
    folders = [folder or RESULTS]
    if copy := os.environ.get("OUT"):
        folders.append(Path(copy))
    for place in folders:
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result), flush=True)
    return folders[0] / f"{name}.json"


def note(text: str) -> None:
    """Progress, on standard error, so that the result stays the last line of the output."""
    print(text, file=sys.stderr, flush=True)


def spread(values: Seq[float], digits: int = 4) -> dict[str, Any]:
    """Median, extremes and number of repeated measurements, to `digits` significant digits."""
    if not values:
        return {"median": None, "low": None, "high": None, "n": 0}
    figures = statistics.median(values), min(values), max(values)
    median, low, high = (float(f"{x:.{digits}g}") for x in figures)
    return {"median": median, "low": low, "high": high, "n": len(values)}


def paired_ratio(slow: Seq[float], fast: Seq[float]) -> dict[str, Any]:
    """How many times faster, round by round: what slows a whole round down cancels out."""
    return spread([a / b for a, b in zip(slow, fast, strict=True)])


def interleave(
    variants: Mapping[str, Callable[[], object]],
    rounds: int,
    *,
    sync: Callable[[], None] = lambda: None,
) -> dict[str, list[float]]:
    """Seconds of each variant, one after another in every round, the first one rotating.

    Whatever drifts (other load, clocks, caches) meets all variants alike. `sync` waits for a
    device. Call each variant once before, so that nothing is compiled inside.
    """

    def timed(run: Callable[[], object]) -> Callable[[], float]:
        return lambda: seconds_of(run, sync)

    return in_turn({name: timed(run) for name, run in variants.items()}, rounds)


def in_turn(variants: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """As `interleave`, of variants that say themselves how many seconds count."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    names = list(variants)
    for turn in range(rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            seconds[name].append(variants[name]())
    return seconds


def seconds_of(run: Callable[[], object], sync: Callable[[], None] = lambda: None) -> float:
    """Wall time of one call."""
    sync()
    start = time.perf_counter()
    run()
    sync()
    return time.perf_counter() - start


def slug(text: str) -> str:
    """A name that is safe in file names: `NVIDIA H200` -> `nvidia-h200`."""
    return "-".join("".join(c if c.isalnum() else " " for c in text.lower()).split())


def _git(*args: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *args], cwd=ROOT, capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.rstrip()


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


def _cores() -> int | None:
    """Those this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count()


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return None


def _gpu() -> str | None:
    # Only where a script uses torch already; asking must not import it.
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return None
    return torch.cuda.get_device_name()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
