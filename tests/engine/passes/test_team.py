"""Threads that share loops, and processes that are forked from one that has them."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

# Twice, by torch's threads and by Python's, in a parent and then in its child.
_FORK = """
import os, signal, sys
import numpy as np, torch
from draftrec.engine.passes import team
from draftrec.engine.passes.prepacked import RowLinear

torch.set_num_threads(2)
team._LEAST = 1
kernels = []

def both():
    RowLinear([torch.ones(241, 64)], None)(torch.ones(2, 64))
    team.over_rows(lambda first, last: kernels.append((first, last)), 2, 1e9)

both()
child = os.fork()
if child == 0:
    signal.alarm(60)  # ends it, where it waits for threads that it has not
    kernels.clear()
    both()
    os._exit(0 if kernels == [(0, 2)] else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing is forked here")
def test_a_forked_process_waits_for_no_thread_of_its_parent() -> None:
    subprocess.run([sys.executable, "-c", _FORK], check=True, timeout=300)
