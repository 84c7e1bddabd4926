"""A learned drafter in jobs: texts are what they are without it, whatever it proposes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fsspec
import pytest

from draftrec.core import HEAD, Generation
from draftrec.engine.learned.rules import ScoreRules
from draftrec.errors import DraftrecError
from draftrec.jobs.knowledge import generator
from draftrec.jobs.knowledge.generator import Generator
from draftrec.pool import costs as module
from tests.engine.text.helpers import PROMPTS, observed_eos, requests
from tests.models import zoo
from tests.models.folders import save, save_head

NEW = 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model: Any = zoo.build("llama")
    model.generation_config.eos_token_id = sorted(observed_eos("llama"))
    return save(model, tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(autouse=True)
def _fixed_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    curve = module.CostCurve((1, 200), (1.0, 1.5))
    monkeypatch.setattr(module, "measure_cost", lambda *_, **__: curve)


def load(folder: Path, **settings: Any) -> Generator:
    defaults = {"device": "cpu", "max_new_tokens": NEW, "budget": 8, "batch_size": 3}
    return Generator.from_pretrained(folder, **(defaults | settings))


@pytest.fixture(scope="module")
def drafter(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A head that knows nothing yet of the folder's model, and most of its tokens."""
    made = load(folder, draft="none")
    path = tmp_path_factory.mktemp("drafters") / "a"
    return save_head(path, made.target.model.config, made.fingerprint)


def ids(done: list[Generation]) -> list[list[int]]:
    return [g.token_ids.tolist() for g in done]


@pytest.mark.parametrize(
    ("settings", "timed"),
    [({}, True), ({"budget": 8}, False), ({"accept": "relaxed"}, False)],
    ids=str,
)
def test_what_the_clock_says_changes_no_text(
    folder: Path, drafter: Path, settings: dict[str, Any], *, timed: bool
) -> None:
    made = load(folder, drafter=str(drafter), **({"budget": "auto"} | settings))
    drafts: Any = made.engine(20).drafter
    assert (drafts.worth is not None) == timed


@pytest.mark.parametrize(
    "settings",
    [
        {"draft": "prompt"},
        {"draft": "pool", "batch_size": 1, "budget": 30, "depth": 3},
        pytest.param({"draft": "pool", "budget": "auto"}, marks=pytest.mark.slow),
        pytest.param({"repetition_penalty": 1.3, "prefill_chunk": 7}, marks=pytest.mark.slow),
        pytest.param({"draft": "prompt", "temperature": 0.8, "seed": 3}, marks=pytest.mark.slow),
        pytest.param({"draft": "prompt", "pass_": "eager"}, marks=pytest.mark.slow),
        pytest.param({"draft": "prompt", "pass_": "frozen"}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_strict_texts_are_those_without_it(
    folder: Path, drafter: Path, settings: dict[str, Any]
) -> None:
    plain = load(folder, **(settings | {"draft": "none"}))
    drafted = load(folder, drafter=str(drafter), **settings)
    done = drafted.run(requests())
    assert ids(done) == ids(plain.run(requests()))
    counts = sum((g.counts for g in done[1:]), done[0].counts)
    assert counts.accepted_by_source[HEAD] > 0 or settings.get("draft") != "prompt"


@pytest.mark.slow
def test_relaxed_texts_do_not_depend_on_what_is_written_beside(folder: Path, drafter: Path) -> None:
    settings: dict[str, Any] = {"accept": "relaxed", "top_k": 8, "min_prob": 0.001}
    alone, beside = (
        load(folder, drafter=str(drafter), batch_size=size, **settings) for size in (1, 5)
    )
    assert ids(alone.run(requests())) == ids(beside.run(requests()))
    # Of equal prompts the second finds all rows but one in the cache, unless it is resumed with.
    both = requests([PROMPTS[2], PROMPTS[2]])
    assert ids(beside.run(both)[1:]) == ids(alone.run(both[1:]))


def test_it_is_part_of_what_a_run_depends_on(folder: Path, drafter: Path, tmp_path: Path) -> None:
    made = load(folder, drafter=str(drafter))
    assert made.fingerprint["drafter"]
    assert made.with_settings(budget=4).fingerprint == made.fingerprint
    other = save_head(tmp_path / "b", made.target.model.config, made.fingerprint, seed=1)
    again = load(folder, drafter=str(other), repetition_penalty=1.3, temperature=0.7)
    drafting: Any = again.engine(20).drafter
    assert drafting.weights[2].tolist() == [0.1 + i for i in range(8)]
    assert drafting.rules == ScoreRules(1.3, 0.0, 0.0, 0.7)
    assert again.fingerprint["drafter"] != made.fingerprint["drafter"]
    assert load(folder).fingerprint["drafter"] == ""
    with pytest.raises(DraftrecError, match="so it is no drafter; name a folder that"):
        load(folder, drafter=str(tmp_path))


def test_it_may_lie_at_an_address(folder: Path, drafter: Path, tmp_path: Path) -> None:
    store = fsspec.filesystem("memory")
    store.put(str(drafter), f"/{tmp_path.name}/drafter", recursive=True)
    there = load(folder, drafter=f"memory://{tmp_path.name}/drafter", draft="prompt")
    here = load(folder, drafter=str(drafter), draft="prompt")
    assert there.fingerprint == here.fingerprint
    assert ids(there.run(requests()[:2])) == ids(here.run(requests()[:2]))


def test_what_is_none_is_refused_before_the_model_is_loaded(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loaded(*_: Any, **__: Any) -> Any:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(generator.loading, "load_model", loaded)
    for place in (str(tmp_path), f"memory://{tmp_path.name}/nothing"):
        with pytest.raises(DraftrecError, match=f"^{place} has no drafter.json, so it is no"):
            load(folder, drafter=place)
