"""A service whose texts are drafted by a learned drafter beside its pool."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from draftrec.cli.main import run
from draftrec.core import HEAD, SOURCES
from draftrec.engine.learned.drafter import HeadDrafter
from draftrec.jobs.knowledge.generator import Generator
from draftrec.pool.store import Pool
from draftrec.serve.settings import load_settings
from draftrec.serve.work import SwitchingDrafter
from tests.engine.text.helpers import observed_eos
from tests.models import zoo
from tests.models.folders import save, save_head, word
from tests.serve.services import running

PROMPTS = [" ".join(word(i) for i in range(first, first + 9)) for first in (5, 20, 40)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model: Any = zoo.build("llama")
    model.generation_config.eos_token_id = sorted(observed_eos("llama"))
    return save(model, tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="module")
def plain(folder: Path) -> Generator:
    return Generator.from_pretrained(folder, device="cpu", draft="none", max_new_tokens=20)


def settings_file(folder: Path, model: Path, drafter: Path, pool: Path) -> Path:
    target = {"model": str(model), "drafter": str(drafter), "device": "cpu"}
    batch = {"batch_size": 2, "max_new_tokens": 20}
    generate = {"target": target, "draft": {"budget": 8}, "batch": batch}
    path = folder / "serve.yaml"
    path.write_text(yaml.safe_dump({"knowledge": {"generate": generate, "pool": str(pool)}}))
    return path


def save_pool(folder: Path, fingerprint: str, tokens: int) -> None:
    pool = Pool(fingerprint)
    pool.add([(np.arange(3, 3 + tokens, dtype=np.int32), None)])
    pool.save(folder)


def from_head(metrics: str) -> float:
    line = f'draftrec_source_accepted_tokens_total{{source="{SOURCES[HEAD]}"}} '
    return sum(float(x.removeprefix(line)) for x in metrics.splitlines() if x.startswith(line))


def test_it_drafts_from_request_to_answer_and_survives_a_reload(
    folder: Path, plain: Generator, tmp_path: Path
) -> None:
    drafter = save_head(tmp_path / "drafter", plain.target.model.config, plain.fingerprint)
    pool, tokenizer = tmp_path / "pool", plain.fingerprint["tokenizer"]
    save_pool(pool, tokenizer, 20)
    expected = [plain.generate(prompt, chat=False) for prompt in PROMPTS]
    settings = load_settings(settings_file(tmp_path, folder, drafter, pool))
    with running(settings) as served:

        def texts() -> list[str]:
            return [t["text"] for t in served.knowledge(*PROMPTS).json()["texts"]]

        assert texts() == expected
        metrics = served.client.get("/metrics").text
        work: Any = served.service.writing
        mark = f'fingerprint="{work.generator.fingerprint["drafter"][:12]}"'
        assert f'draftrec_drafter_info{{{mark},form="head",levels="3"}} 1.0' in metrics
        before = from_head(metrics)
        assert before > 0
        save_pool(pool, tokenizer, 30)
        served.client.portal.call(served.service.reload)  # type: ignore[union-attr]
        assert texts() == expected
        assert from_head(served.client.get("/metrics").text) > before
        head = work._engine.drafter.inner  # behind what texts with a grammar are drafted by
        assert isinstance(head, HeadDrafter)
        assert isinstance(head.inner, SwitchingDrafter)
        assert head.inner.current.pool.tokens == 30  # type: ignore[attr-defined]
        drawn = {"prompt": PROMPTS[0], "temperature": 0.8, "seed": 3, "n": 2, "max_tokens": 20}
        alone = served.client.post("/v1/completions", json=drawn).json()["choices"]
        with ThreadPoolExecutor(2) as clients:  # greedy and drawn texts in one batch
            both = clients.submit(served.client.post, "/v1/completions", json=drawn)
            assert texts() == expected
        assert both.result().json()["choices"] == alone


def test_one_of_another_model_is_refused_in_one_sentence(
    folder: Path, plain: Generator, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = plain.fingerprint | {"model": "another"}
    drafter = save_head(tmp_path / "drafter", plain.target.model.config, other)
    save_pool(tmp_path / "pool", plain.fingerprint["tokenizer"], 20)
    path = settings_file(tmp_path, folder, drafter, tmp_path / "pool")
    assert run(["serve", "--config", str(path), "--port", "0"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    [said] = [line for line in err.splitlines() if "drafter" in line]
    assert "was trained for another model than the target's; train one" in said
