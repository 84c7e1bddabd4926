"""The pool benchmarks: their workload, their comparison, and a dry run of each."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pool
import pool_scale
import pytest
from workload import FIRST, Workload, make_texts, repeated_share


@pytest.mark.slow
def test_the_workload_has_the_sizes_and_the_repetition_it_claims() -> None:
    workload = Workload()
    made = make_texts(workload, 0)
    texts = [ids for ids, _ in made]
    assert [len(t) for t in texts] == [workload.length] * workload.texts
    assert len({group for _, group in made}) == workload.groups
    tokens = np.concatenate(texts)
    assert tokens.min() >= FIRST
    assert tokens.max() < workload.vocabulary
    assert repeated_share(texts, 2) == pytest.approx(0.79, abs=0.02)
    assert repeated_share(texts, 8) == pytest.approx(0.48, abs=0.02)
    again = make_texts(workload, 0)
    assert all(np.array_equal(a, b) for (a, _), (b, _) in zip(made, again, strict=True))


def test_repeated_grams_are_counted() -> None:
    def ids(*tokens: int) -> np.ndarray:
        return np.array(tokens, np.int32)

    assert repeated_share([ids(1, 2, 3), ids(1, 2, 4)], 2) == 0.25
    assert repeated_share([ids(1, 1, 1)], 2) == 0.5
    assert repeated_share([ids(1)], 2) == 0.0


def test_the_lead_is_over_the_best_rival_at_each_budget() -> None:
    engines = {
        name: {b: {"tokens_per_step": rate} for b, rate in zip(("8", "64"), rates, strict=True)}
        for name, rates in {"pool": (3.0, 6.0), "arctic": (2.0, 5.0), "ngram": (2.5, 4.0)}.items()
    }
    found = pool.lead(engines)
    assert found["best_rival"] == {"8": "ngram", "64": "arctic"}
    assert found["over_best_rival"] == {"8": 1.2, "64": 1.2}
    assert pool.lead({"pool": engines["pool"]})["over_best_rival"] == {}


@pytest.mark.slow
def test_a_small_comparison_runs_to_its_result(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = "--traces synthetic --engines pool ngram --texts 3 --warm 40 --budgets 4 8 --repeats 1"
    pool.main([*line.split(), "--in-process", "--results", str(tmp_path)])
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    kept = json.loads((tmp_path / "pool-rivals.json").read_text())
    assert last["traces"] == kept["traces"]
    found = kept["traces"]["synthetic"]
    assert found["warm_tokens"] == 40 * 300
    for engine in ("pool", "ngram"):
        rates = [found["engines"][engine][b]["tokens_per_step"] for b in ("4", "8")]
        assert 1.0 <= rates[0] <= rates[1]


def test_traces_that_are_not_there_are_skipped_with_a_reason(tmp_path: Path) -> None:
    line = "--traces gear_ml1m_user --engines pool --texts 3 --in-process"
    pool.main([*line.split(), "--data", str(tmp_path), "--results", str(tmp_path)])
    kept = json.loads((tmp_path / "pool-rivals.json").read_text())
    assert kept["traces"] == {}
    assert "no recorded texts" in kept["skipped"]["gear_ml1m_user"]


@pytest.mark.slow
def test_a_small_pool_is_measured_at_scale(tmp_path: Path) -> None:
    if not Path("/proc/self/smaps").exists():
        pytest.skip("needs /proc")
    line = ["--millions", "0.03", "--budgets", "8", "--results", str(tmp_path)]
    pool_scale.main([*line, "--folder", str(tmp_path)])
    found = json.loads((tmp_path / "pool-scale.json").read_text())["sizes"]["0.03M"]
    assert found["tokens"] == 30_000
    assert found["closed_bytes_per_token"] < 30
    assert found["lookup"]["8"]["lookups"] > 1000
    readers = found["readers"]
    assert readers["proportional_bytes_all"] <= 1.2 * readers["mapped_bytes_each"]
    assert [p.name for p in tmp_path.iterdir()] == ["pool-scale.json"]
