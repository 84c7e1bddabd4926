"""The example that the documentation shows runs, offline, and shows what it says."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[3] / "examples" / "transformers_generate.py"


@pytest.mark.slow
def test_texts_stay_the_same_and_need_fewer_and_fewer_calls(
    capsys: pytest.CaptureFixture[str],
) -> None:
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    found = re.findall(r"same texts: (\w+); target calls (\d+), .* (\d+)", capsys.readouterr().out)
    assert [same for same, _, _ in found] == ["True"] * 3
    calls, accepted = ([int(row[i]) for row in found] for i in (1, 2))
    assert calls[0] > calls[1] > calls[2]
    assert accepted[2] > 5 * accepted[0]
