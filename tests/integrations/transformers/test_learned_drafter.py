"""A learned drafter inside `generate`: the same texts, with tokens that it drafted."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from draftrec.core import HEAD
from draftrec.engine.costs import CostCurve
from draftrec.engine.learned.drafter import HeadDrafter
from draftrec.engine.learned.rules import ScoreRules
from draftrec.errors import DraftrecError
from draftrec.integrations import transformers as ours
from draftrec.integrations.transformers import method
from draftrec.integrations.transformers import method as lent
from draftrec.jobs.knowledge.generator import Generator
from draftrec.models.loading import model_fingerprint
from tests.integrations.transformers.test_generate import drafted, plain
from tests.models import zoo
from tests.models.folders import save, save_head


@pytest.fixture(scope="module")
def llama() -> Any:
    """A model of these tests alone."""
    return zoo.build("llama")


@pytest.fixture(scope="module")
def drafter(llama: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return head_of(llama, tmp_path_factory.mktemp("drafters") / "a")


def head_of(model: Any, folder: Path, seed: int = 0) -> Path:
    prints = {"model": model_fingerprint(model), "tokenizer": "known to nobody here"}
    return save_head(folder, model.config, prints, seed=seed)


def from_head(output: ours.Output) -> int:
    assert output.counts is not None
    return sum(counts.accepted_by_source[HEAD] for counts in output.counts)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"repetition_penalty": 1.3},
        pytest.param({"batch_size": 3, "depth": 2, "budget": 20}, marks=pytest.mark.slow),
        pytest.param({"no_repeat_ngram_size": 2}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_texts_are_generate_s_own(llama: Any, drafter: Path, settings: dict[str, Any]) -> None:
    theirs = {k: v for k, v in settings.items() if k not in ("batch_size", "depth", "budget")}
    expected = plain(llama, eos_token_id=None, **theirs)
    found = drafted(llama, eos_token_id=None, drafter=drafter, draft="prompt", **settings)
    assert torch.equal(found.sequences, expected)
    assert from_head(found) > 0


def test_sampled_texts_are_those_without_it(llama: Any, drafter: Path) -> None:
    def sample(**settings: Any) -> Any:
        torch.manual_seed(5)
        shared = {"do_sample": True, "temperature": 0.7, "top_k": 20, "eos_token_id": None}
        return drafted(llama, **(shared | settings))

    expected, found = sample(budget=0), sample(drafter=drafter, draft="prompt")
    assert torch.equal(found.sequences, expected.sequences)
    assert from_head(found) > 0
    assert from_head(expected) == 0


def test_it_hears_of_penalties_temperature_and_what_passes_cost(
    llama: Any, drafter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = []
    real = method.loop.generate

    def generate(engine: Any, requests: Any) -> Any:
        made.append(engine.drafter)
        return real(engine, requests)

    monkeypatch.setattr(method.loop, "generate", generate)
    monkeypatch.setattr(lent, "measure_cost", lambda *_, **__: CostCurve((1, 200), (1.0, 1.5)))
    shared: dict[str, Any] = {"drafter": drafter, "max_new_tokens": 2}
    drafted(llama, repetition_penalty=1.3, **shared)
    drafted(llama, do_sample=True, temperature=0.7, **shared)
    drafted(llama, budget="auto", **shared)
    drafted(llama, draft="none", **shared)
    heads = [drafter for drafter in made if isinstance(drafter, HeadDrafter)]
    rules = [ScoreRules(1.3), ScoreRules(temperature=0.7), ScoreRules()]
    assert [head.rules for head in heads] == rules
    assert [head.worth is not None for head in heads] == [False, False, True]
    assert len(made) == 4


def test_one_of_a_folder_s_model_serves_the_model_of_that_folder(tmp_path: Path) -> None:
    folder = save(zoo.build("llama"), tmp_path / "llama")
    writer = Generator.from_pretrained(folder, device="cpu", draft="none")
    made = save_head(tmp_path / "drafter", writer.target.model.config, writer.fingerprint)
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    found = drafted(model, eos_token_id=None, drafter=made)
    assert from_head(found) > 0
    assert torch.equal(found.sequences, plain(model, eos_token_id=None))


def test_others_are_refused_and_new_ones_read(tmp_path: Path) -> None:
    model: Any = zoo.build("llama")
    made = head_of(model, tmp_path / "drafter")
    drafted(model, drafter=made, max_new_tokens=2)
    first = lent._STATES[model].learned
    drafted(model, drafter=made, max_new_tokens=2)
    assert lent._STATES[model].learned is first
    head_of(model, made, seed=1)
    drafted(model, drafter=made, max_new_tokens=2)
    second = lent._STATES[model].learned
    assert first
    assert second
    assert first[1].fingerprint != second[1].fingerprint
    with pytest.raises(DraftrecError, match="so it is no drafter; name a folder that"):
        drafted(model, drafter=tmp_path)
    with torch.no_grad():
        model.lm_head.weight[3:] = model.lm_head.weight[3:].flip(0)
    with pytest.raises(DraftrecError, match="was trained for another model than the target's"):
        drafted(model, drafter=made)
    assert torch.equal(drafted(model).sequences, plain(model))


def test_it_does_not_keep_its_model_alive(tmp_path: Path) -> None:
    model: Any = zoo.build("llama")
    drafted(model, drafter=head_of(model, tmp_path / "drafter"), max_new_tokens=2)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None
