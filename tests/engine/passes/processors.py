"""What code gives on this processor and on one with fewer and narrower registers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from numba.core.codegen import get_host_cpu_features


def on_both_registers(code: str, folder: Path) -> list[bytes]:
    """What `code` prints with the registers that there are, and with those of AVX2, whose kernels
    are kept in `folder`. Skips the test on a processor without that."""
    narrow = {
        "NUMBA_CPU_NAME": "haswell",
        "NUMBA_CPU_FEATURES": "+avx,+avx2,+fma,+sse4.2,+bmi,+bmi2",
        "NUMBA_CACHE_DIR": str(folder),
    }
    if "avx2" not in str(get_host_cpu_features()):
        pytest.skip("a processor without AVX2")
    return [
        subprocess.run(
            [sys.executable, "-c", code], env=os.environ | more, check=True, capture_output=True
        ).stdout
        for more in ({}, narrow)
    ]
