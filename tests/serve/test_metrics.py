"""Metrics: what a scrape shows, and that it agrees with what a run says of itself."""

from __future__ import annotations

import sys
from dataclasses import dataclass

import pytest
from prometheus_client.parser import text_string_to_metric_families

from draftrec.engine.text.stats import Spent, StepStats, Timing
from draftrec.errors import DraftrecError
from draftrec.serve.metrics import MOST_GROUPS, ServiceMetrics


def scraped(metrics: ServiceMetrics) -> dict[str, float]:
    """Every sample of a scrape by name and labels, as Prometheus would read it."""
    body, content_type = metrics.render()
    assert content_type.startswith("text/plain")
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(body.decode()):
        for sample in family.samples:
            labels = ",".join(f"{k}={v}" for k, v in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


def step(**changes: object) -> StepStats:
    values = {
        "active": 3, "waiting": 5, "finished": 1, "rows": 20, "new_tokens": 7, "target_calls": 3,
        "drafted_tokens": 10, "accepted_tokens": 4, "draft_calls": 2, "relaxed_tokens": 1,
        "kv_tokens": 120, "accepted_by_source": (1, 0, 3, 0, 0, 0), "accepted_by_depth": (2, 1, 1),
        "by_group": {"a": (6, 3), "": (4, 1)},
    }  # fmt: skip
    return StepStats(**{**values, **changes})  # type: ignore[arg-type]


@dataclass
class Search:
    target_calls: int = 2
    draft_calls: int = 3
    drafted: int = 120
    accepted_steps: int = 2


def test_steps_add_up() -> None:
    metrics = ServiceMetrics()
    metrics.observe_step(step())
    metrics.observe_step(step(active=2, waiting=0))
    found = scraped(metrics)
    assert found["draftrec_passes_total"] == 2
    assert found["draftrec_pass_rows_total"] == 40
    assert found["draftrec_new_tokens_total"] == 14
    assert found["draftrec_target_calls_total"] == 6
    assert found["draftrec_draft_calls_total"] == 4
    assert found["draftrec_relaxed_tokens_total"] == 2
    assert found["draftrec_source_accepted_tokens_total{source=group}"] == 6
    assert found["draftrec_depth_accepted_tokens_total{depth=1}"] == 4
    assert found["draftrec_depth_accepted_tokens_total{depth=3}"] == 2
    assert found["draftrec_group_drafted_tokens_total{group=a}"] == 12
    assert found["draftrec_group_accepted_tokens_total{group=}"] == 2
    assert found["draftrec_batch_sequences"] == 2
    assert found["draftrec_waiting_sequences"] == 0
    assert found["draftrec_kv_tokens"] == 120


def test_requests_queue_errors_pool_and_texts() -> None:
    metrics = ServiceMetrics()
    metrics.observe_request("/v1/recommend", 200, 0.03, [0.01])
    metrics.observe_request("/v1/recommend", 429, 0.0004)
    metrics.set_queue("/v1/recommend", 4)
    metrics.observe_error("engine")
    metrics.set_pool(2048, 0.25, 10)
    metrics.set_kv_capacity(4096, 1 << 20)
    metrics.observe_text("eos", 40)
    found = scraped(metrics)
    assert found["draftrec_requests_total{route=/v1/recommend,status=200}"] == 1
    assert found["draftrec_requests_total{route=/v1/recommend,status=429}"] == 1
    assert found["draftrec_request_seconds_count{route=/v1/recommend,status=200}"] == 1
    assert found["draftrec_request_seconds_sum{route=/v1/recommend,status=429}"] == 0.0004
    assert found["draftrec_request_seconds_bucket{le=0.05,route=/v1/recommend,status=200}"] == 1
    assert found["draftrec_queue_seconds_count{route=/v1/recommend}"] == 1
    assert found["draftrec_queue_requests{route=/v1/recommend}"] == 4
    assert found["draftrec_errors_total{kind=engine}"] == 1
    assert found["draftrec_pool_bytes"] == 2048
    assert found["draftrec_pool_hit_ratio"] == 0.25
    assert found["draftrec_kv_capacity_bytes"] == 1 << 20
    assert found["draftrec_text_ends_total{reason=eos}"] == 1
    assert found["draftrec_text_tokens_sum"] == 40


def test_beams() -> None:
    metrics = ServiceMetrics()
    metrics.observe_beam_pass(users=8, rows=320, seconds=0.02)
    plain = Search(target_calls=4, draft_calls=0, drafted=0, accepted_steps=0)
    metrics.observe_beams([Search(), Search(), plain], results=60, invalid=2, partial=1)
    found = scraped(metrics)
    assert found["draftrec_beam_passes_total"] == 1
    assert found["draftrec_beam_pass_seconds_sum"] == pytest.approx(0.02)
    assert found["draftrec_beam_users_total"] == 3
    assert found["draftrec_beam_target_calls_total"] == 8
    assert found["draftrec_beam_accepted_steps_total"] == 4
    assert found["draftrec_beam_plain_users_total"] == 1
    assert found["draftrec_beam_invalid_total"] == 2
    assert found["draftrec_beam_partial_users_total"] == 1


def test_first_tokens_rest_and_the_other_counts() -> None:
    metrics = ServiceMetrics()
    metrics.observe_first_token("/v1/completions", 0.25)
    metrics.observe_token_time("/v1/completions", 0.02)
    metrics.observe_users(3, 200)
    metrics.observe_users(5, 429)
    metrics.count_dropped_line()
    metrics.set_drafter("head", 4, "0123456789abcdef")
    metrics.observe_spent(Spent(draft=0.5, verify=1.0, prefill=0.25, passes=2.0, plain=6.0))
    metrics.observe_step(step())
    metrics.observe_beam_pass(users=8, rows=320, seconds=0.02)
    assert scraped(metrics)["draftrec_beam_batch_users"] == 8
    metrics.rest_texts()
    metrics.rest_beams()
    found = scraped(metrics)
    assert found["draftrec_time_to_first_token_seconds_sum{route=/v1/completions}"] == 0.25
    assert found["draftrec_time_per_output_token_seconds_sum{route=/v1/completions}"] == 0.02
    assert found["draftrec_recommend_users_total{status=200}"] == 3
    assert found["draftrec_recommend_users_total{status=429}"] == 5
    assert found["draftrec_log_dropped_lines_total"] == 1
    assert found["draftrec_drafter_info{fingerprint=0123456789ab,form=head,levels=4}"] == 1
    assert found["draftrec_phase_seconds_total{phase=prefill}"] == 0.25
    for gauge in ("batch_sequences", "waiting_sequences", "kv_tokens", "beam_batch_users"):
        assert found[f"draftrec_{gauge}"] == 0


def test_clocks_count_what_they_gained_and_may_start_anew() -> None:
    metrics = ServiceMetrics()
    timing = Timing(draft_seconds=1.0, verify_seconds=2.0)
    metrics.observe_timing(timing)
    timing.draft_seconds = 1.5
    metrics.observe_timing(timing)
    metrics.observe_timing(Timing(draft_seconds=0.25, verify_seconds=2.0))
    found = scraped(metrics)
    assert found["draftrec_phase_seconds_total{phase=draft}"] == pytest.approx(1.75)
    assert found["draftrec_phase_seconds_total{phase=verify}"] == pytest.approx(2.0)


def test_groups_beyond_the_limit_share_a_label() -> None:
    metrics = ServiceMetrics()
    for i in range(MOST_GROUPS + 3):
        metrics.observe_step(step(by_group={f"g{i}": (2, 1)}))
    metrics.observe_step(step(by_group={"g0": (2, 1)}))
    found = scraped(metrics)
    assert found["draftrec_group_accepted_tokens_total{group=(others)}"] == 3
    assert found["draftrec_group_accepted_tokens_total{group=g0}"] == 2


def test_groups_that_nobody_knows_take_no_label() -> None:
    metrics = ServiceMetrics()
    metrics.name_groups({"a"})
    for i in range(MOST_GROUPS):
        metrics.observe_step(step(by_group={f"made up {i}": (2, 1)}))
    metrics.observe_step(step(by_group={"a": (2, 1), "": (2, 1)}))
    found = scraped(metrics)
    assert found["draftrec_group_accepted_tokens_total{group=(others)}"] == MOST_GROUPS
    assert found["draftrec_group_accepted_tokens_total{group=a}"] == 1
    assert found["draftrec_group_accepted_tokens_total{group=}"] == 1


def test_what_may_fail_is_there_at_zero() -> None:
    metrics = ServiceMetrics()
    metrics.expect(["/v1/recommend"], lambda: 3)
    found = scraped(metrics)
    assert found["draftrec_errors_total{kind=engine}"] == 0
    assert found["draftrec_reloads_total{result=failed}"] == 0
    assert found["draftrec_requests_total{route=/v1/recommend,status=503}"] == 0
    assert found["draftrec_requests_in_flight"] == 3
    assert found["process_start_time_seconds"] > 0
    assert sum(found[name] for name in found if name.startswith("draftrec_build_info{")) == 1


def test_a_reload_that_fails_leaves_the_time_of_the_last_that_did_not() -> None:
    metrics = ServiceMetrics()
    loaded = scraped(metrics)["draftrec_last_reload_success_timestamp_seconds"]
    metrics.observe_reload(succeeded=False, seconds=0.2)
    found = scraped(metrics)
    assert found["draftrec_last_reload_successful"] == 0
    assert found["draftrec_last_reload_success_timestamp_seconds"] == loaded
    metrics.observe_reload(succeeded=True, seconds=0.3)
    found = scraped(metrics)
    assert found["draftrec_last_reload_successful"] == 1
    assert found["draftrec_last_reload_success_timestamp_seconds"] > loaded
    assert found["draftrec_reload_seconds_sum"] == pytest.approx(0.5)


def test_several_in_one_process_do_not_meet() -> None:
    one, other = ServiceMetrics(), ServiceMetrics()
    one.observe_step(step())
    assert scraped(one)["draftrec_new_tokens_total"] == 7
    assert scraped(other)["draftrec_new_tokens_total"] == 0


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(DraftrecError, match=r"pip install \"draftrec\[serve\]\""):
        ServiceMetrics()
