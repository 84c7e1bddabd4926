"""The simulator of large jobs, against answers that can be worked out by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scaling
import scaling_measured
import scaling_tables
from common import RESULTS
from scaling_cluster import Cluster, Outcome, Simulation
from scaling_gpu import LARGE, MAIN, MODES, World, passes
from scaling_inputs import H100, LLAMA_8B, Input, Workload, read_acceptance, read_inputs
from scaling_jobs import Job, cluster_of, play
from scaling_worker import Drafting, Setting, Worker, drafting_of, lognormal, relaxed

SHARES = {
    "bandwidth_share": Input(0.5, "", "assumed", "test"),
    "flops_share": Input(0.5, "", "assumed", "test"),
    "pass_us": Input(0.0, "", "assumed", "test"),
    "launch_us": Input(10.0, "", "assumed", "test"),
    "kernels_per_layer": Input(50.0, "", "assumed", "test"),
    "eager_us": Input(100.0, "", "assumed", "test"),
}
NOTHING = Drafting((0, 32), (1.0, 1.0), (0,), (0.0,), 0.0)
DRAFTS = Drafting((0, 1, 8), (1.0, 1.5, 3.0), (0, 8), (1e-5, 9e-5), 0.0)


def simulate(cluster: Cluster, seconds: float = 10.0, seed: int = 0) -> Outcome:
    return Simulation(cluster, lambda _: seconds, seed).run()


def worker(drafting: Drafting = NOTHING, **workload: Any) -> Worker:
    return Worker(H100, LLAMA_8B, SHARES, Workload(**workload), drafting)


def spent(outcome: Outcome) -> float:
    return outcome.useful + outcome.lost + outcome.waiting + outcome.down


@pytest.mark.parametrize(("workers", "shards", "rounds"), [(1, 7, 7), (4, 12, 3), (4, 13, 4)])
def test_without_variance_rounds_are_counted(workers: int, shards: int, rounds: int) -> None:
    outcome = simulate(Cluster(workers, shards, window=2 * workers))
    assert outcome.seconds == pytest.approx(10 * rounds)
    assert outcome.useful == pytest.approx(10 * shards)
    assert outcome.waiting == pytest.approx(10 * (rounds * workers - shards))


def test_a_window_of_one_shard_uses_one_worker() -> None:
    outcome = simulate(Cluster(8, 20, window=1))
    assert outcome.seconds == pytest.approx(200)
    assert outcome.waiting == pytest.approx(7 * 200)


def test_the_window_holds_fast_workers_back() -> None:
    simulation = Simulation(Cluster(2, 4, window=2), lambda _: 1.0, 0)
    simulation.pace = [1.0, 3.0]
    outcome = simulation.run()
    # Shards 0 and 2 are done at 1 and 2; shard 3 must wait for shard 1, at 3.
    assert (outcome.seconds, outcome.useful, outcome.waiting) == (4.0, 6.0, 2.0)
    wider = Simulation(Cluster(2, 4, window=4), lambda _: 1.0, 0)
    wider.pace = [1.0, 3.0]
    assert wider.run().seconds == 3.0


def test_slow_workers_are_as_many_as_they_should_be() -> None:
    cluster = Cluster(10_000, 1, window=1, slow=0.1, slowness=3.0)
    pace = Simulation(cluster, lambda _: 1.0, 0).pace
    assert set(pace) == {1.0, 3.0}
    assert pace.count(3.0) == pytest.approx(1000, abs=120)


def test_the_driver_can_be_the_slowest() -> None:
    outcome = simulate(Cluster(100, 300, window=200, commit=lambda _: 1.0))
    assert outcome.seconds == pytest.approx(300, rel=0.05)
    alone = simulate(Cluster(1, 30, window=2, commit=lambda k: float(k)))
    # The worker does the next shard meanwhile; the longer of the two counts.
    assert alone.seconds == pytest.approx(10 + sum(max(10, k) for k in range(30)))


def test_failures_cost_what_their_rate_says() -> None:
    cluster = Cluster(8, 40_000, window=17, failures=24.0, down=600.0)
    outcome = simulate(cluster)
    expected = 24 * outcome.seconds / 86_400
    assert outcome.failures == pytest.approx(expected, abs=4 * np.sqrt(expected) + 1)
    assert outcome.down == pytest.approx(8 * 600 * outcome.failures)
    assert 0 < outcome.lost < 8 * 10 * outcome.failures
    assert outcome.useful == pytest.approx(400_000)
    assert spent(outcome) == pytest.approx(8 * outcome.seconds, rel=0.03)


def test_a_driver_that_fails_loses_what_is_under_way_and_nothing_else() -> None:
    cluster = Cluster(16, 20_000, window=33, failures=24.0, down=1.0, driver_down=300.0)
    outcome = simulate(cluster, seconds=20.0)
    assert outcome.driver_failures >= 3
    assert outcome.useful == pytest.approx(400_000)
    assert outcome.lost > 0
    assert spent(outcome) == pytest.approx(16 * outcome.seconds, rel=0.05)


def test_equal_seeds_give_equal_jobs() -> None:
    cluster = Cluster(16, 2000, window=33, failures=50.0, down=60.0, slow=0.1, slowness=2.0)
    assert simulate(cluster) == simulate(cluster)
    assert simulate(cluster) != simulate(cluster, seed=1)


def test_a_window_without_a_shard_is_refused() -> None:
    with pytest.raises(ValueError, match="must hold a shard"):
        simulate(Cluster(2, 2, window=0))


def test_a_pass_is_bound_by_reading_or_by_computing() -> None:
    it = worker(prompt=100, text=200)
    reading = 2 * LLAMA_8B.parameters / (0.5 * H100.bandwidth)
    cache = 200 * LLAMA_8B.kv_bytes / (0.5 * H100.bandwidth)
    assert it.gpu_seconds(1, 1) == pytest.approx(reading + cache)
    assert it.gpu_seconds(64, 3) == pytest.approx(reading + 3 * cache)
    computing = 2 * LLAMA_8B.parameters * 50_000 / (0.5 * H100.flops)
    assert it.gpu_seconds(50_000, 3) == pytest.approx(computing + 3 * cache)


def test_a_frozen_pass_takes_a_little_more_and_an_eager_one_its_launches() -> None:
    it = worker(prompt=100, text=200)
    bare = it.gpu_seconds(1, 1)
    more = {**SHARES, "pass_us": Input(300.0, "", "assumed", "test")}
    assert replace(it, inputs=more).gpu_seconds(1, 1) == pytest.approx(bare + 3e-4)
    eager = replace(it, way="eager")
    assert eager.gpu_seconds(1, 1) == pytest.approx(1e-6 * (32 * 50 * 10 + 100))
    assert eager.gpu_seconds(50_000, 3) == it.gpu_seconds(50_000, 3)


def test_the_arithmetic_stays_within_the_estimates_of_steps(world: World) -> None:
    for step in passes(world):
        for way in ("eager", "frozen"):
            found = step[way]
            assert found["low"] <= found["computed"] <= found["high"], (step["model"], way)
        assert step["frozen"]["computed"] > step["limit_ms"]


def test_one_slot_writes_one_text_after_another() -> None:
    it = worker(prompt=40, text=100)
    speed = it.speed(Setting(1, 0, 512))
    assert 1 / speed.texts == pytest.approx(101 * speed.pass_seconds)
    drawn = it.shard_seconds(Setting(1, 0, 512), 50, np.random.default_rng(0))
    assert drawn == pytest.approx(50 / speed.texts, rel=0.01)


def test_prompts_wait_where_their_share_of_a_pass_is_too_small() -> None:
    it = worker(prompt=1000, text=10)
    speed = it.speed(Setting(64, 0, 100))
    assert speed.rows == pytest.approx(100 + 1)  # a tenth of a prompt, a token of one text
    assert speed.texts == pytest.approx(0.1 / speed.pass_seconds)


def test_a_full_shard_is_steady_but_for_its_ends() -> None:
    it = worker(prompt=64, text=128)
    setting = Setting(16, 0, 512)
    drawn = it.shard_seconds(setting, 16 * 200, np.random.default_rng(0))
    assert drawn == pytest.approx(16 * 200 / it.speed(setting).texts, rel=0.02)
    varied = worker(replace(NOTHING, variation=0.5), prompt=64, text=128)
    few = varied.shard_seconds(setting, 16, np.random.default_rng(0))
    assert few > 1.3 * 16 / it.speed(setting).texts


def test_a_shard_takes_as_long_as_its_prompts_where_they_are_what_takes_long() -> None:
    it = worker(prompt=1000, text=10)
    setting = Setting(64, 0, 100)
    drawn = it.shard_seconds(setting, 2000, np.random.default_rng(0))
    assert drawn == pytest.approx(2000 / it.speed(setting).texts, rel=0.02)


def test_drafting_is_read_between_what_was_measured() -> None:
    assert [DRAFTS.tokens_at(n) for n in (0, 1, 8, 99)] == [1.0, 1.5, 3.0, 3.0]
    assert 1.5 < DRAFTS.tokens_at(3) < 3.0
    assert DRAFTS.host_at(4) == pytest.approx(5e-5)
    assert DRAFTS.host_at(16) == pytest.approx(17e-5)
    assert relaxed(DRAFTS, 1.5).tokens == (1.0, 2.0, 4.5)  # one node gives two tokens at most
    found = {
        "pools": {
            "10": {"budgets": {"8": {"tokens_per_step": 2.0}}},
            "90": {"budgets": {"8": {"tokens_per_step": 4.0}}},
        },
        "steps_variation": 0.3,
    }
    hosts = {"host_us_0": Input(7.0, "us", "measured", "test")}
    assert drafting_of(found, hosts) == Drafting((0, 8), (1.0, 4.0), (0,), (7e-6,), 0.3)
    assert drafting_of(found, hosts, 10).tokens == (1.0, 2.0)


def test_the_best_setting_drafts_only_what_pays() -> None:
    assert worker().best().setting.nodes == 0
    alone = worker(DRAFTS).best(slots=(1,))
    assert alone.setting.nodes == 8
    assert alone.texts > worker(DRAFTS).best(slots=(1,), nodes=(0,)).texts
    assert not worker().fits(10_000)
    with pytest.raises(ValueError, match="empty"):
        worker().best(slots=(10_000,))


def test_drawn_numbers_have_the_mean_and_variation_asked_for() -> None:
    drawn = lognormal(50.0, 0.4, 40_000, np.random.default_rng(0))
    assert drawn.mean() == pytest.approx(50, rel=0.01)
    assert drawn.std() / drawn.mean() == pytest.approx(0.4, rel=0.03)
    assert (lognormal(3.0, 0.0, 5, np.random.default_rng(0)) == 3.0).all()


@pytest.fixture(scope="module")
def world() -> World:
    """The committed inputs, and few entities."""
    inputs = read_inputs()
    few = {"entities": replace(inputs["entities"], value=300_000.0)}
    return World(inputs | few, read_acceptance())


def test_every_input_says_where_it_comes_from(world: World) -> None:
    kinds = {value.kind for value in world.inputs.values()}
    assert kinds == {"measured", "estimated", "published", "assumed", "setting"}
    assert all(value.source and value.value > 0 for value in world.inputs.values())


@pytest.mark.slow
def test_drafts_never_lose_and_help_most_where_slots_are_few(world: World) -> None:
    gains = []
    for variant in (MAIN, LARGE, replace(MAIN, slots=(1,))):
        plain, strict, loose = (world.best(variant, m).texts for m in MODES)
        assert plain <= strict <= loose
        gains.append(strict / plain)
    assert gains == sorted(gains)
    assert gains[1] > 1.5


def test_a_job_of_several_parts_has_several_drivers(world: World) -> None:
    whole = Job(512, "strict")
    one, eighth = cluster_of(world, whole), cluster_of(world, replace(whole, parts=8))
    assert eighth.workers == 64
    assert eighth.shards == one.shards // 8
    assert cluster_of(world, replace(whole, ready=True)).commit(0) < one.commit(0) < one.commit(99)


@pytest.mark.slow
def test_a_job_takes_what_its_gpus_take(world: World) -> None:
    found = play(world, Job(8, "plain"), range(1))
    ideal = 8 * world.best(MAIN, "plain").texts
    assert 0.8 * ideal < found["texts_per_second"] <= ideal
    assert found["model"] == "Llama 3.1 8B"


@pytest.mark.slow
def test_the_whole_plan_is_made(world: World) -> None:
    found = scaling.measure(world, 0)
    assert len(found["jobs"]) == 18
    assert found["one_gpu"][MAIN.name]["plain"]["over_plain"] == 1
    assert json.dumps(found)


@pytest.mark.slow
def test_what_a_plan_needs_is_measured(tmp_path: Path) -> None:
    few = ["--texts", "6", "--sizes", "10", "20", "--budgets", "1", "8", "--slots", "4"]
    more = ["--rounds", "1", "--shard", "32", "--entries", "10", "--data", str(tmp_path)]
    assert scaling_measured.main([*few, *more, "--results", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "scaling-measured.json").read_text())
    steps = found["acceptance"]["synthetic"]["pools"]["20"]["budgets"]
    assert 1 < steps["1"]["tokens_per_step"] < steps["8"]["tokens_per_step"]
    host = found["host"]["nodes"]
    assert 0.5 < host["0"]["tokens_per_call"] <= 1 < host["8"]["tokens_per_call"]
    assert found["driver"]["manifest_by_shards"]["10"]["bytes"] > 500


def test_the_page_is_made_from_the_committed_result() -> None:
    result = json.loads((RESULTS / "scaling.json").read_text())
    page = scaling_tables.PAGE.read_text()
    assert scaling_tables.render(page, result) == page, "run python benchmarks/scaling_tables.py"
    assert page.count("<!-- made: ") == len(scaling_tables.TABLES)


def test_the_committed_result_follows_from_the_committed_inputs() -> None:
    result = json.loads((RESULTS / "scaling.json").read_text())
    inputs = {name: value.value for name, value in read_inputs().items()}
    assert {name: r["value"] for name, r in result["inputs"].items()} == inputs
    best = World(read_inputs(), read_acceptance()).best(MAIN, "relaxed")
    assert result["one_gpu"][MAIN.name]["relaxed"]["texts_per_second"] == round(best.texts, 3)
