"""A processor with fewer and narrower registers (AVX2, no instruction for bfloat16) gives what this
one gives, up to the order of sums where instructions differ."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from numba.core.codegen import get_host_cpu_features

from draftrec.engine.passes import team
from draftrec.engine.passes.prepacked import RowLinear
from draftrec.engine.passes.row_attention import attend
from tests.engine.passes.test_row_attention import sight_of, tensors

pytestmark = pytest.mark.slow

_CODE = f"import json; from {__name__} import found; print(json.dumps(found()))"


def attended(dtype: torch.dtype) -> list[float]:
    """Rows of a text together; one of them has the same bits alone."""
    q, k, v = tensors(14, 9, 3, 34, 0, dtype)
    slots, sight = (
        torch.ones(14, dtype=torch.int64),
        sight_of([(0, 90, [n, n + 3]) for n in range(14)]),
    )
    rows = attend(q, k, v, (slots, sight), scale=0.3)
    alone = attend(q[5:6], k, v, (slots[5:6], sight[5:6]), scale=0.3)
    assert torch.equal(alone[0], rows[5])
    return rows.flatten().tolist()


def summed(weights: torch.Tensor, rows: torch.Tensor) -> Any:
    """The bits of products."""
    bits = torch.int16 if rows.dtype == torch.bfloat16 else torch.int32
    return RowLinear([weights])(rows).view(bits).tolist()


def found() -> dict[str, Any]:
    """All that is compared, from a process that has this processor's registers or others; the same
    where several threads share the loops, which hold kinds that not every processor can multiply.
    """
    alone = results()
    least, threads = team._LEAST, torch.get_num_threads()
    team._LEAST = 1
    torch.set_num_threads(3)
    try:
        assert results() == alone
    finally:
        team._LEAST = least
        torch.set_num_threads(threads)
    return alone


def results() -> dict[str, Any]:
    torch.manual_seed(0)
    narrow, rows = torch.randn(70, 91).bfloat16(), torch.randn(9, 91)
    return {
        "attention": [attended(dtype) for dtype in (torch.float32, torch.bfloat16)],
        "narrow weights": summed(narrow, rows),
        "wide weights": summed(narrow.float() / 3, rows),
        "narrow rows": summed(narrow, rows.bfloat16()),
    }


@pytest.fixture(scope="module")
def fewer(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What AVX2's registers give: in a process of its own, whose kernels lie apart."""
    if "avx2" not in str(get_host_cpu_features()):
        pytest.skip("a processor without AVX2")
    narrow = {
        "NUMBA_CPU_NAME": "haswell",
        "NUMBA_CPU_FEATURES": "+avx,+avx2,+fma,+sse4.2,+bmi,+bmi2",
        "NUMBA_CACHE_DIR": str(tmp_path_factory.mktemp("kernels")),
    }
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", _CODE], env=os.environ | narrow, cwd=root, check=True,
        capture_output=True,
    )  # fmt: skip
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def here() -> dict[str, Any]:
    return found()


def test_rows_attend_the_same_up_to_rounding(here: dict[str, Any], fewer: dict[str, Any]) -> None:
    """In both dtypes."""
    for one, other in zip(here["attention"], fewer["attention"], strict=True):
        torch.testing.assert_close(torch.tensor(one), torch.tensor(other), rtol=1e-5, atol=1e-5)


def test_rows_sum_the_same(here: dict[str, Any], fewer: dict[str, Any]) -> None:
    """float32 rows, for which only the registers differ: the order of the sums does not."""
    for name in ("narrow weights", "wide weights"):
        assert fewer[name] == here[name]
    assert len(fewer["narrow rows"]) == 9
