"""Studies of the embedded demo model: figures, resume, search."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from bookshop.world import stream_records

from draftrec.config import (
    BatchConfig,
    DraftConfig,
    GenerateConfig,
    ModelConfig,
    RecordsConfig,
)
from draftrec.demo.shop import demo_model_path
from draftrec.errors import DraftrecError
from draftrec.evaluate.tune import choice as tune_space
from draftrec.evaluate.tune import quality as tune_race
from draftrec.evaluate.tune.choice import Space
from draftrec.evaluate.tune.quality import QualityJob, draw_sample, run_quality_tune
from draftrec.jobs.knowledge.generator import Generator
from draftrec.pool.costs import Passes
from draftrec.pool.store import Pool

pytestmark = pytest.mark.slow

SPEEDS = ("speedup", "speedup_low", "speedup_high", "cpu_speedup")
KNOBS = {"strict": {}, "relaxed": {"top_k": (1, 9), "min_prob": (0.0, 0.001)}}


@pytest.fixture(autouse=True)
def few_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune_space, "KNOBS", KNOBS)


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("records") / "in.jsonl"
    rows = list(stream_records("user", count=9, seed=3))
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def job(records: Path, folder: Path, **changes: Any) -> QualityJob:
    return QualityJob(
        str(records),
        ModelConfig(model=str(demo_model_path()), dtype="float32"),
        folder,
        **{
            "batch": BatchConfig(batch_size=3, max_new_tokens=24),
            "layout": RecordsConfig(template="kar"),
            "space": Space(("relaxed",), (8,)),
            "sample": 3,
            "rounds": 1,
            **changes,
        },
    )


@pytest.fixture(scope="module")
def study(records: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tune_space, "KNOBS", KNOBS)
        return folder, run_quality_tune(job(records, folder, rounds=2))


def test_strict_texts_are_the_models_own(study: tuple[Path, dict[str, Any]]) -> None:
    strict, top_one = (
        next(r for r in study[1]["trials"] if r["rule"] == rule and r["top_k"] == k)
        for rule, k in (("strict", None), ("relaxed", 1))
    )
    for row in (strict, top_one):
        assert (row["exact_match"], row["similarity_kept"], row["length_drift"]) == (1.0, 1.0, 0.0)
        assert (row["loss_per_token"], row["relaxed_share"]) == (0.0, 0.0)
    assert strict["tokens_per_call"] == top_one["tokens_per_call"] > 1.0


def test_looser_rules_lose_more(study: tuple[Path, dict[str, Any]]) -> None:
    rows = study[1]["trials"]
    loose = next(r for r in rows if (r["top_k"], r["min_prob"]) == (9, 0.0))
    assert loose["loss_per_token"] > 0
    assert 0 < loose["relaxed_share"] < 1
    assert loose["similarity_kept"] < 1
    assert loose["exact_match"] < 1
    assert all(0 < r["speedup_low"] <= r["speedup"] <= r["speedup_high"] for r in rows)
    assert all(r["cpu_speedup"] > 0 for r in rows)


def test_the_table_has_a_row_per_trial(study: tuple[Path, dict[str, Any]]) -> None:
    table = pq.read_table(study[0] / "trials.parquet")
    assert table.to_pylist() == study[1]["trials"]
    assert len(table) == 1 + 4
    assert study[1]["chosen"] in study[1]["trials"]
    assert study[1]["texts"] == 3
    assert {r["in_pool"] for r in study[1]["trials"]} == {0.0}


def test_a_pool_of_the_very_texts_is_noted(records: Path, tmp_path: Path) -> None:
    asked = job(records, tmp_path / "study", space=Space((), (8,)))
    generator = Generator.from_pretrained(config=GenerateConfig(
        target=asked.target, draft=DraftConfig(draft="none"), batch=asked.batch
    ))  # fmt: skip
    sample = draw_sample(asked.records, asked.layout, None, asked.sample, asked.seed)
    texts = generator.run(tune_race.requests_of(generator, sample.timed, chat=None))
    pool = Pool(generator.fingerprint["tokenizer"])
    pool.add((text.token_ids, None) for text in texts[:2])
    pool.save(tmp_path / "pool")
    (strict,) = run_quality_tune(replace(asked, pool=tmp_path / "pool"))["trials"]
    assert strict["in_pool"] == pytest.approx(2 / 3, abs=1e-4)


def counting(monkeypatch: pytest.MonkeyPatch, stop_at: int | None = None) -> list[Any]:
    """Notes each trial that is really run, and interrupts one."""
    made: list[Any] = []
    real: Callable[..., Any] = tune_race.Race.__call__

    def call(self: Any, settings: Any) -> Any:
        if len(made) == stop_at:
            raise KeyboardInterrupt
        made.append(settings)
        return real(self, settings)

    monkeypatch.setattr(tune_race.Race, "__call__", call)
    return made


def test_an_interrupted_study_goes_on_and_a_finished_one_runs_nothing(
    records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        first = counting(patch, stop_at=3)
        with pytest.raises(KeyboardInterrupt):
            run_quality_tune(job(records, tmp_path))
    later = counting(monkeypatch)
    done = run_quality_tune(job(records, tmp_path))
    assert [len(first), len(later)] == [3, 2]
    assert not [s for s in later if s in first]
    assert run_quality_tune(job(records, tmp_path)) == done
    assert len(later) == 2
    with pytest.raises(DraftrecError, match="seed was 0, now 1"):
        run_quality_tune(job(records, tmp_path, seed=1))


def test_trials_are_timed_as_generate_runs(
    records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With all threads of the process, and with what a run measures first left out."""
    threads: list[int] = []
    timing, measured = [False], []
    real_timed, real_measure = tune_race._timed, Passes._measure

    def timed(*given: Any) -> Any:
        threads.append(torch.get_num_threads())
        timing[0] = True
        try:
            return real_timed(*given)
        finally:
            timing[0] = False

    def measure(self: Passes, *given: Any) -> Any:
        measured.append(timing[0])
        return real_measure(self, *given)

    monkeypatch.setattr(tune_race, "_timed", timed)
    monkeypatch.setattr(Passes, "_measure", measure)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        many = tmp_path / "many.jsonl"
        rows = list(stream_records("user", count=20, seed=3))
        many.write_text("".join(json.dumps(r) + "\n" for r in rows))
        asked = job(many, tmp_path / "study", sample=10, space=Space((), (8,)))
        found = run_quality_tune(asked)
    finally:
        torch.set_num_threads(before)
    assert set(threads) == {found["threads"]} == {2}
    assert measured
    assert not any(measured)


def test_plain_decoding_runs_next_to_each_setting_first_and_second_in_turns(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    order: list[str] = []
    seconds = {"plain": (6.0, 4.0), "rival": (3.0, 1.0)}

    def timed(generator: Any, requests: Any) -> Any:
        order.append(generator)
        return [], seconds[generator]

    monkeypatch.setattr(tune_race, "_timed", timed)
    race = object.__new__(tune_race.Race)
    race.requests, race.rounds, race.depth, race.pool = [], 3, 24, None  # type: ignore[assignment]
    race.plain = "plain"  # type: ignore[assignment]
    monkeypatch.setattr(race, "_rival", lambda _: "rival", raising=False)
    monkeypatch.setattr(race, "_figures", lambda texts: {})
    found = race({"rule": "strict", "budget": 8})
    assert order == ["plain", "rival", "rival", "plain", "plain", "rival"]
    assert (found["speedup"], found["cpu_speedup"]) == (2.0, 4.0)


def test_a_search_is_smaller_than_the_grid_and_repeats_itself(
    records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("optuna")
    monkeypatch.setattr(tune_race, "Race", FakeRace)
    asked = job(records, tmp_path, trials=2)
    found = run_quality_tune(asked)
    assert [r["rule"] for r in found["trials"]] == ["strict", "relaxed", "relaxed"]
    assert found["trials"][1] != found["trials"][2]
    raced = counting(monkeypatch)
    assert run_quality_tune(replace(asked, overwrite=True)) == found
    assert len(raced) == 3  # each once
    monkeypatch.setattr(FakeRace, "__call__", None)
    assert run_quality_tune(asked) == found


class FakeRace:
    """Figures at once: the looser, the faster."""

    def __init__(self, *_: Any) -> None: ...

    def __call__(self, settings: Any) -> dict[str, Any]:
        speed = 1.0 + (settings.get("top_k") or 1) / 10
        speeds = dict.fromkeys(SPEEDS, speed)
        return {
            **speeds,
            "loss_per_token": speed - 1.1,
            "similarity_kept": 1.0,
            "length_drift": 0.0,
        }


def test_optuna_is_asked_for_by_name(
    records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tune_race, "Race", FakeRace)
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    with pytest.raises(DraftrecError, match=r"draftrec\[tune\]"):
        run_quality_tune(job(records, tmp_path, trials=1))


def test_the_sample_is_drawn_by_the_seed_and_kept_apart_from_the_pool(records: Path) -> None:
    layout = RecordsConfig(template="kar")
    one, same, other = (draw_sample(str(records), layout, None, 3, s) for s in (0, 0, 5))
    assert one == same
    assert {e.entity_id for e in one.timed} != {e.entity_id for e in other.timed}
    assert len(one.timed) == len(one.others) == 3
    assert not {e.entity_id for e in one.timed} & {e.entity_id for e in one.others}
    everything = draw_sample(str(records), layout, None, 64, 0)
    assert (len(everything.timed), len(everything.others)) == (5, 4)


def test_too_few_records_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "one.jsonl"
    path.write_text('{"entity_id": "a", "prompt": "p"}\n{"entity_id": "b", "prompt": null}\n')
    with pytest.raises(DraftrecError, match="1 usable records"):
        draw_sample(str(path), RecordsConfig(), None, 3, 0)


def test_prompts_without_room_are_left_out(records: Path, tmp_path: Path) -> None:
    path = tmp_path / "long.jsonl"
    path.write_text(
        "".join(json.dumps({"entity_id": i, "prompt": "x " * 9000}) + "\n" for i in "ab")
    )
    asked = replace(job(path, tmp_path / "study"), layout=RecordsConfig())
    with pytest.raises(DraftrecError, match="no sampled prompt fits"):
        run_quality_tune(asked)
