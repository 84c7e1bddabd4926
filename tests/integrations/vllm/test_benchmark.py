"""What the comparison inside vLLM reports is what its rounds say, and its document says it too."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]
RESULT = ROOT / "benchmarks" / "results" / "vllm.json"


@pytest.fixture(scope="module")
def benchmark() -> Any:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import vllm_proposer_summary

    return vllm_proposer_summary


def one_round(texts: list[list[int]], seconds: float, passes: int, **counts: int) -> dict[str, Any]:
    defaults = {"num_drafts": 0, "num_draft_tokens": 0, "num_accepted_tokens": 0}
    measured = {"texts": texts, "seconds": seconds, "cpu_seconds": seconds / 2, "passes": passes}
    return {"timed": {"8": measured | {"draft_seconds": 0.5} | defaults | counts}}


def test_rounds_are_summed_up(benchmark: Any) -> None:
    texts = [[5, 6, 7], [8, 9, 2]]
    plain = [one_round(texts, 4.0, 6), one_round(texts, 6.0, 6)]
    counts = {"num_draft_tokens": 8, "num_accepted_tokens": 4}
    drafted = [
        one_round(texts, 2.0, 2, **counts),
        one_round([[5, 6, 7], [8, 9, 3]], 2.0, 2, **counts),
    ]
    found = benchmark.summary(drafted, plain)["8"]
    assert (found["identical"], found["prompts"]) == (1, 2), "one text differs in one round"
    assert found["tokens_per_step"] == 3.0
    assert found["drafted_per_step"] == 4.0
    assert found["acceptance"] == 0.5
    assert found["draft_share"] == 0.25
    assert found["speedup"] == {"median": 2.5, "low": 2.0, "high": 3.0, "n": 2}


def test_plain_rounds_have_no_acceptance(benchmark: Any) -> None:
    plain = [one_round([[5, 6, 7]], 4.0, 3)]
    found = benchmark.summary(plain, plain)["8"]
    assert (found["acceptance"], found["tokens_per_step"]) == (None, 1.0)
    assert found["speedup"]["median"] == 1.0


def test_the_document_quotes_the_committed_result(benchmark: Any) -> None:
    made = benchmark.vllm(json.loads(RESULT.read_text())).splitlines()
    page = (ROOT / "docs" / "vllm.md").read_text().splitlines()
    quoted = [line for line in page if line.startswith(("| 1 |", "| 8 |", "| chatqa", "| gear"))]
    assert len(quoted) > 5
    assert set(quoted) <= set(made)
