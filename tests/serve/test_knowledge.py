"""`POST /v1/knowledge`: what the generator writes of each prompt alone."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from draftrec.demo.shop import demo_model_path
from draftrec.jobs.knowledge.generator import Generator
from draftrec.pool.store import Pool
from draftrec.serve.http.schemas import ApiError
from draftrec.serve.settings import KnowledgeSettings
from tests.serve.services import (
    Running,
    counted,
    error_of,
    knowledge_settings,
    running,
    settings,
)
from tests.waiting import until

#: The embedded model goes on and on after these.
PROMPTS = ["hello reader", "a story of ships", "the sea"]


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory, writer: Generator) -> Path:
    folder = tmp_path_factory.mktemp("pool") / "pool"
    made = Pool(writer.fingerprint["tokenizer"])
    made.add([(ids, "a") for ids in writer.encode(["This reader likes stories of ships."] * 2)])
    made.save(folder)
    return folder


@pytest.fixture(scope="module")
def writer() -> Generator:
    return Generator.from_pretrained(config=knowledge_settings().generate)


@pytest.fixture(scope="module")
def served(pool: Path) -> Iterator[Running]:
    chosen = settings(None, knowledge_settings(pool), limits={"records": 8, "prompt_tokens": 64})
    with running(chosen) as found:
        yield found


@pytest.mark.slow
def test_texts_are_those_of_each_prompt_alone(served: Running, writer: Generator) -> None:
    prompts = [f"{p} {'Indeed. ' * (i % 3)}" for i, p in enumerate(PROMPTS * 4)]
    expected = [writer.generate([p], chat=False)[0] for p in prompts]
    with ThreadPoolExecutor(4) as clients:
        jobs = [clients.submit(served.knowledge, *prompts[i : i + 3]) for i in range(0, 12, 3)]
        bodies = [job.result().json() for job in jobs]
    texts = [t for body in bodies for t in body["texts"]]
    assert [t["text"] for t in texts] == expected
    assert [t["entity_id"] for t in texts] == ["e0", "e1", "e2"] * 4
    assert {t["finish_reason"] for t in texts} <= {"eos", "length"}


@pytest.mark.slow
def test_what_does_not_fit_is_refused(served: Running) -> None:
    message = error_of(served.knowledge("fine", "far too long " * 60), 422, "invalid_request")
    assert "'e1'" in message
    assert "64 are possible" in message
    message = error_of(served.knowledge(*["x"] * 9), 422, "invalid_request")
    assert "at most 8" in message
    assert "records: " in error_of(served.knowledge(), 422, "invalid_request")
    empty = {"records": [{"entity_id": "a", "prompt": ""}]}
    answer = served.client.post("/v1/knowledge", json=empty)
    assert "records.0.prompt" in error_of(answer, 422, "invalid_request")


@pytest.mark.slow
def test_half_a_character_is_refused(served: Running) -> None:
    """A lone surrogate is JSON, but no text that could be answered."""
    for field in ("entity_id", "prompt"):
        record = {"entity_id": "a", "prompt": "b"}
        text = f'{{"records": [{str(record).replace(chr(39), chr(34))}]}}'
        text = text.replace(f'"{field}": "', f'"{field}": "\\ud800')
        answer = served.client.post(
            "/v1/knowledge", content=text, headers={"content-type": "application/json"}
        )
        error_of(answer, 422, "invalid_request")


@pytest.mark.slow
def test_a_deadline_gives_the_text_so_far(served: Running) -> None:
    work = served.service.writing
    assert work
    real, passes = work.turn, 0
    over = threading.Event()

    def turn() -> object:
        nonlocal passes
        passes += 1
        if passes > 4:  # five passes of at most seven tokens; the whole texts have forty
            over.wait(0.6)
        return real()

    work.turn = turn  # type: ignore[method-assign, assignment]
    try:
        body = served.knowledge(*PROMPTS, PROMPTS[0], deadline_ms=500).json()
    finally:
        work.turn = real  # type: ignore[method-assign]
    whole = served.knowledge(*PROMPTS, PROMPTS[0]).json()
    assert {t["finish_reason"] for t in body["texts"]} == {"deadline"}
    for part, full in zip(body["texts"], whole["texts"], strict=True):
        assert full["text"].startswith(part["text"])
        assert len(part["text"]) < len(full["text"])
    assert body["texts"][0]["text"], "some of it was written"
    assert body["texts"][3]["text"] == "", "only three run at once"
    assert served.log[-1]["partial"] is False
    answer = served.knowledge(PROMPTS[0], deadline_ms=1)
    assert answer.status_code == 200
    assert served.log[-1]["partial"] is (answer.json()["texts"][0]["finish_reason"] == "deadline")


@pytest.mark.slow
def test_a_far_too_long_prompt_is_refused_before_it_is_tokenised(
    served: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("tokenised")

    assert served.service.writing
    monkeypatch.setattr(served.service.writing.generator, "encode", never)
    answer = served.knowledge("a" * (64 * 32 + 1))
    assert "2049 characters" in error_of(answer, 422, "invalid_request")


@pytest.mark.slow
def test_another_pool_is_used_and_changes_no_strict_text(
    served: Running, pool: Path, writer: Generator
) -> None:
    work = served.service.writing
    assert work
    before = [t["text"] for t in served.knowledge(*PROMPTS).json()["texts"]]
    more = Pool(writer.fingerprint["tokenizer"])
    more.add([(ids, None) for ids in writer.encode(before)])
    more.save(pool)
    with ThreadPoolExecutor(2) as clients:
        jobs = [clients.submit(served.knowledge, *PROMPTS) for _ in range(6)]
        reload = served.client.portal.call  # type: ignore[union-attr]
        assert reload(served.service.reload) == {"pool_texts": 3}
        for job in jobs:
            assert [t["text"] for t in job.result().json()["texts"]] == before
    assert work.generator.pool is not None
    assert len(work.generator.pool) == 3
    assert "draftrec_pool_texts 3.0" in served.client.get("/metrics").text
    other = Pool("another tokenizer")
    other.add([(np.array([1, 2], np.int32), None)])
    other.save(pool)
    with pytest.raises(Exception, match="tokenizer"):
        reload(served.service.reload)
    assert [t["text"] for t in served.knowledge(*PROMPTS).json()["texts"]] == before


@pytest.mark.slow
def test_a_pool_that_is_overwritten_is_left_and_costs_no_text(
    tmp_path: Path, writer: Generator
) -> None:
    """While a text is being written, which began with the pool."""
    own, prompt = tmp_path / "pool", PROMPTS[0]
    pool = Pool(writer.fingerprint["tokenizer"])
    pool.add([(ids, None) for ids in writer.encode([prompt])])
    pool.save(own)
    with running(settings(None, knowledge_settings(own))) as served:
        expected = served.knowledge(prompt).json()
        work = served.service.writing
        assert work
        real = work.turn

        def turn() -> Any:
            found = real()
            if work._passes == before + 2:
                path = own / "all.safetensors"
                path.write_bytes(b"\xff" * path.stat().st_size)
                time.sleep(0.01)
            return found

        before = work._passes
        work.turn = turn  # type: ignore[method-assign]
        assert served.knowledge(prompt).json() == expected
        assert work._passes > before + 2
        [line] = [line for line in served.log if line["event"] == "error"]
        assert line["kind"] == "PoolOverwrittenError"
        assert str(own) in line["message"]
        assert served.knowledge(prompt).json() == expected
        with pytest.raises(ApiError, match="damaged"):
            served.client.portal.call(served.service.reload)  # type: ignore[union-attr]
        pool.save(own)
        served.client.portal.call(served.service.reload)  # type: ignore[union-attr]
        assert work.generator.pool
        assert work.generator.pool.all.closed


def test_a_models_own_settings_hold_in_a_service_too(tmp_path: Path) -> None:
    """A repetition penalty of generation_config.json, as `model.generate` honours it; an option in
    the service's settings overrides it."""
    folder = tmp_path / "model"
    shutil.copytree(demo_model_path(), folder)
    file = folder / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"repetition_penalty": 1.8}))
    values = knowledge_settings(new_tokens=20).model_dump()
    values["generate"]["target"]["model"] = str(folder)

    def texts() -> list[str]:
        with running(settings(None, KnowledgeSettings.model_validate(values))) as service:
            return [t["text"] for t in service.knowledge(*PROMPTS).json()["texts"]]

    penalised = texts()
    assert penalised == [transformers_text(folder, prompt, 20) for prompt in PROMPTS]
    values["generate"]["controls"] = {"repetition_penalty": 1.0}
    assert texts() == [transformers_text(demo_model_path(), p, 20) for p in PROMPTS] != penalised


def transformers_text(folder: Path, prompt: str, new_tokens: int) -> str:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    given = tokenizer(prompt, return_tensors="pt")
    out = model.generate(**given, do_sample=False, max_new_tokens=new_tokens)
    return tokenizer.decode(out[0, given.input_ids.shape[1] :], skip_special_tokens=True)


@pytest.mark.slow
def test_metrics_of_tokens_and_nothing_left_of_them_when_idle(served: Running) -> None:
    def value(name: str, **labels: str) -> float:
        return served.service.metrics.registry.get_sample_value(f"draftrec_{name}", labels) or 0.0

    def counts() -> list[float]:
        names = ("time_to_first_token_seconds_count", "time_per_output_token_seconds_count")
        return [value(name, route="/v1/knowledge") for name in names]

    def idle() -> bool:
        return not any(value(n) for n in ("batch_sequences", "waiting_sequences", "kv_tokens"))

    before = counts()
    records = [{"entity_id": "e", "prompt": PROMPTS[0], "group": g} for g in ("a", "made up")]
    assert served.client.post("/v1/knowledge", json={"records": records}).status_code == 200
    assert [now - then for now, then in zip(counts(), before, strict=True)] == [2, 2]
    groups = served.service.metrics.registry.get_sample_value
    assert groups("draftrec_group_drafted_tokens_total", {"group": "made up"}) is None
    until(idle)
    assert value("kv_capacity_tokens") > 0


@pytest.mark.slow
@pytest.mark.parametrize("new_tokens", [1, 5])
def test_what_a_service_prepares_with_may_be_a_whole_text_and_is_counted_nowhere(
    new_tokens: int,
) -> None:
    with running(settings(None, knowledge_settings(new_tokens=new_tokens))) as found:
        assert counted(found) == {}
        [text] = found.knowledge(PROMPTS[0]).json()["texts"]
        assert text["finish_reason"] == "length"
        counts = counted(found)
        names = ("new_tokens_total", "texts_total", "text_ends_total", "text_tokens_count")
        assert [counts[name] for name in names] == [new_tokens, 1, 1, 1]


@pytest.mark.slow
def test_groups_that_the_pool_does_not_know_are_not_kept(served: Running) -> None:
    """Clients may name whatever group they like, for as long as the service runs."""
    prompt = {"entity_id": "e", "prompt": PROMPTS[0]}
    records = [{**prompt, "group": f"made up {i}"} for i in range(8)]
    assert served.client.post("/v1/knowledge", json={"records": records}).status_code == 200
    work = served.service.writing
    assert work
    assert work.generator.pool
    assert work.generator.pool.usage.drafts > 0
    assert set(work.generator.pool.usage.by_group) <= {"", "a"}
