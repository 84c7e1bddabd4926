"""What a process may use of its processor, as containers limit it."""

from __future__ import annotations

import logging
import os
from math import inf
from pathlib import Path

import pytest
import torch

from draftrec.engine.passes import registers
from draftrec.models import cpu
from draftrec.models.cpu import (
    allowed_cores,
    multiplies_bfloat16,
    set_threads,
    usable_cores,
)


def machine(root: Path, groups: str, files: dict[str, str]) -> Path:
    for name, text in {"proc/self/cgroup": groups, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


V1 = "12:cpu,cpuacct:/docker/a\n3:memory:/docker/a"


@pytest.mark.parametrize(
    ("groups", "files", "cores"),
    [
        ("0::/", {"sys/fs/cgroup/cpu.max": "150000 100000"}, 1.5),
        ("0::/", {"sys/fs/cgroup/cpu.max": "max 100000"}, inf),
        # The limit of the pod above the container's own group.
        (
            "0::/pod/a",
            {"sys/fs/cgroup/pod/cpu.max": "400000 100000", "sys/fs/cgroup/pod/a/cpu.max": "max 1"},
            4.0,
        ),
        # A path of the host's, which is not seen from inside.
        ("0::/../other", {"sys/fs/cgroup/cpu.max": "200000 100000"}, 2.0),
        (
            V1,
            {
                "sys/fs/cgroup/cpu/docker/a/cpu.cfs_quota_us": "300000",
                "sys/fs/cgroup/cpu/docker/a/cpu.cfs_period_us": "100000",
            },
            3.0,
        ),
        (
            V1,
            {
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
            },
            inf,
        ),
        ("0::/", {"sys/fs/cgroup/cpu.max": "nonsense"}, inf),
        ("0::/", {}, inf),
    ],
)
def test_control_groups_of_both_versions_limit_cores(
    tmp_path: Path, groups: str, files: dict[str, str], cores: float
) -> None:
    assert allowed_cores(machine(tmp_path, groups, files)) == cores


def test_without_control_groups_there_is_no_limit(tmp_path: Path) -> None:
    assert allowed_cores(tmp_path) == inf


def test_parts_of_a_core_do_not_count_but_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    for allowed, cores in ((inf, 8), (2.5, 2), (0.3, 1), (64.0, 8)):
        monkeypatch.setattr(cpu, "allowed_cores", lambda n=allowed: n)
        assert usable_cores() == cores


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number that PyTorch uses, last; it began with 16."""
    used = [16]
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: used[-1])
    monkeypatch.setattr(torch, "set_num_threads", used.append)
    monkeypatch.setattr(cpu, "usable_cores", lambda: 4)
    return used


def test_threads_are_no_more_than_the_cores_that_may_be_used(
    threads: list[int], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "draftrec"):
        set_threads(None)
    assert threads == [16, 4]
    assert "4 threads instead of 16" in caplog.text
    set_threads(7)
    assert threads == [16, 4, 7]
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    set_threads(None)
    assert threads == [16, 4, 7], "somebody has chosen"


def test_fewer_threads_than_cores_stay(threads: list[int]) -> None:
    threads.append(2)
    set_threads(None)
    assert threads[-1] == 2


def test_bfloat16_needs_the_instructions_and_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registers, "PAIRWISE", True)
    assert multiplies_bfloat16()
    monkeypatch.setattr(registers, "PAIRWISE", False)
    assert not multiplies_bfloat16()
