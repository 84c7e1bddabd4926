"""Clusters that are not there, and workers that do not fit, are named in one sentence."""

from __future__ import annotations

import builtins
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from draftrec.cli.main import run
from draftrec.cli.messages import StopSignal
from draftrec.errors import DraftrecError
from draftrec.jobs import ray as ray_jobs
from draftrec.jobs.ray import ClusterSpec, Share, connected

pytestmark = pytest.mark.slow

LINES = {
    "generate": ["generate", "in.jsonl", "--model", "m", "--output", "out"],
    "encode": ["encode", "in.jsonl", "--encoder", "hashed:8", "--output", "out.parquet"],
    "recommend": [
        *("genrec", "recommend", "in.jsonl", "--target", "t", "--sids", "s"),
        *("--output", "out.parquet"),
    ],
}  # fmt: skip


@pytest.mark.parametrize("command", LINES)
@pytest.mark.parametrize(
    "option", [("--workers", "2"), ("--gpus-per-worker", "0.5"), ("--address", "auto")]
)
def test_options_of_the_ray_engine_need_it(
    command: str, option: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*LINES[command], *option]) == 2
    assert capsys.readouterr().err.strip() == f"draftrec: {option[0]} needs --engine ray"


def test_a_missing_ray_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name == "ray":
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with (
        pytest.raises(DraftrecError, match=r'pip install "draftrec\[ray\]"'),
        connected(ClusterSpec()),
    ):
        pass


class TakesSignals:
    """As Ray does."""

    def is_initialized(self) -> bool:
        return False

    def init(self, *_: Any, **__: Any) -> None:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(15))

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 2.0}

    def shutdown(self) -> None: ...


def test_a_job_hears_signals_on_a_cluster_too(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_AUTH_TOKEN", "RAY_USAGE_STATS_ENABLED", "RAY_worker_niceness"):
        monkeypatch.setenv(name, "0")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray_jobs, "import_ray", TakesSignals)
    with StopSignal() as stop, connected(ClusterSpec()):
        stop.arm()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop()


def test_a_running_cluster_is_used_and_left_running(share: Share) -> None:
    import ray

    assert share.cpus == 1
    assert share.gpus == 0
    with connected(ClusterSpec(workers=2, cpus_per_worker=0.5, gpus_per_worker=0.25)) as mine:
        assert mine == Share(0.5, 0.25, None)
    assert ray.is_initialized()


def test_a_worker_without_a_gpu_takes_none_by_itself() -> None:
    assert Share(1, 0, 1).device("auto") == "cpu"
    assert Share(1, 0.5, 1).device("auto") == "auto"
    assert Share(1, 0, 1).device("cuda:1") == "cuda:1"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (ClusterSpec(workers=0), "--workers must be 1 or more"),
        (ClusterSpec(gpus_per_worker=-1), "--gpus-per-worker must be 0 or more"),
    ],
)
def test_impossible_shares_are_named(spec: ClusterSpec, message: str) -> None:
    with pytest.raises(DraftrecError, match=message), connected(spec):
        pass


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "no such address"])
def test_a_cluster_that_does_not_answer_is_named(tmp_path: Path, address: str) -> None:
    """In a process of its own: this one is connected."""
    records = tmp_path / "in.jsonl"
    records.write_text('{"entity_id": "a", "prompt": "b"}\n')
    line = ["generate", str(records), "--model", "m", "--output", str(tmp_path / "out")]
    code = "import sys; from draftrec.cli.main import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", code, *line, "--engine", "ray", "--address", address],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert f"no Ray cluster answers at {address}" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_no_home_folder_is_needed() -> None:
    """Ray would keep the secret of a cluster there."""
    code = (
        "from draftrec.jobs.ray import ClusterSpec, connected\n"
        "with connected(ClusterSpec(cpus_per_worker=1)) as share: print(share.threads)"
    )
    without = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**without, "HOME": "/dev/null/home", "OMP_NUM_THREADS": "3"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "3\n", done.stderr
