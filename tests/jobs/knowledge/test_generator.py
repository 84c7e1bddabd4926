"""`Generator`: from a folder on disk to texts, under every setting that must not change them."""

from __future__ import annotations

import json
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from draftrec.config import make_config
from draftrec.core import Generation, Request
from draftrec.engine.text.budget import AutoBudget
from draftrec.engine.text.stats import StepStats
from draftrec.errors import DraftrecError, Interrupted, PoolMismatchError
from draftrec.jobs.knowledge.generator import Generator
from draftrec.pool import costs as module
from draftrec.pool.store import Pool
from tests.engine.text.helpers import PROMPTS, observed_eos, plain_text, requests
from tests.models import zoo
from tests.models.folders import save, word

NEW = 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model whose EOS comes up in some of its texts."""
    model: Any = zoo.build("llama")
    model.generation_config.eos_token_id = sorted(observed_eos("llama"))
    return save(model, tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture
def fixed_costs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Measuring takes seconds: cheap rows instead. Returns the slots it was asked for."""
    asked: list[int] = []

    def measured(_target: Any, slots: int, _context: int, **_: Any) -> module.CostCurve:
        asked.append(slots)
        return module.CostCurve((1, 200), (1.0, 1.5))

    monkeypatch.setattr(module, "measure_cost", measured)
    return asked


def load(folder: Path, **settings: Any) -> Generator:
    defaults = {"device": "cpu", "max_new_tokens": NEW, "budget": 8, "batch_size": 3}
    return Generator.from_pretrained(folder, **(defaults | settings))


def expected() -> list[list[int]]:
    return [plain_text("llama", p, observed_eos("llama"), NEW) for p in PROMPTS]


def ids(done: list[Generation]) -> list[list[int]]:
    return [g.token_ids.tolist() for g in done]


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"draft": "none", "batch_size": 1},
        {"draft": "none", "batch_size": "auto"},
        {"draft": "prompt", "prefill_chunk": 7},
        {"draft": "pool", "budget": 0},
        {"draft": "pool", "budget": 30, "depth": 3},
        {"draft": "pool", "budget": "auto", "batch_size": "auto"},
        {"draft": "pool", "accept": "relaxed", "top_k": 1, "min_prob": 0.0},
    ],
    ids=str,
)
@pytest.mark.usefixtures("fixed_costs")
def test_texts_are_transformers_own_under_every_setting(
    folder: Path, settings: dict[str, Any]
) -> None:
    generator = load(folder, **settings)
    assert ids(generator.run(requests())) == expected()
    generator.commit((np.array(t, np.int32), "g") for t in expected()[::2])
    done = generator.run(requests())
    assert ids(done) == expected()
    accepted = sum(g.counts.accepted_tokens for g in done)
    assert (accepted > 0) == (settings["draft"] != "none" and settings.get("budget") != 0)


def words(prompt: tuple[int, ...]) -> str:
    return " ".join(map(word, prompt))


def test_prompts_become_texts_and_texts_become_drafts(folder: Path) -> None:
    generator = load(folder)
    records = [
        words(PROMPTS[0]),
        {"prompt": words(PROMPTS[1]), "entity_id": "b", "group": "g"},
        {"prompt": words(PROMPTS[2]), "group": None},
    ]
    texts = generator.generate(records)
    for text, tokens in zip(texts, expected(), strict=False):
        special = {0, 2}  # unknown word and end of text are not part of what is read
        assert text.split() == [word(i) for i in tokens if i not in special]
    assert generator.pool is not None
    assert len(generator.pool) == 3
    assert list(generator.pool.groups) == ["g"]
    again = generator.run(requests(PROMPTS[:3]))
    assert ids(again) == expected()[:3]
    assert sum(g.counts.target_calls for g in again) < sum(len(g.token_ids) for g in again)
    assert generator.timing.verify_seconds > 0


def test_chat_templates_are_used_where_there_are_any(folder: Path) -> None:
    generator = load(folder, draft="none", max_new_tokens=2)
    assert not generator.has_chat_template
    template = "{% for m in messages %}w007 {{ m['content'] }}{% endfor %} w008"
    generator.tokenizer.chat_template = template
    assert generator.has_chat_template
    assert [x.tolist() for x in generator.encode(["w005"], chat=True)] == [[7, 5, 8]]
    assert [x.tolist() for x in generator.encode(["w005"])] == [[5]]
    plain, chat, default = (generator.generate(["w005"], chat=c) for c in (False, True, None))
    assert chat == default == generator.generate(["w007 w005 w008"], chat=False) != plain


def test_prompts_without_room_are_refused(folder: Path) -> None:
    generator = load(folder)
    long = Request("the-long-one", np.ones(zoo.CONTEXT, np.int32))
    with pytest.raises(DraftrecError, match=r"'the-long-one' has 256 tokens.*context 256"):
        generator.run([long])
    with pytest.raises(DraftrecError, match="has 0 tokens"):
        generator.run([Request("empty", np.empty(0, np.int32))])
    fits = Request("fits", np.ones(zoo.CONTEXT - 1, np.int32))
    assert [len(g.token_ids) for g in generator.run([fits])] == [1]
    assert generator.run([]) == []


@pytest.mark.slow
def test_automatic_budget_works_next_to_the_end_of_the_context(folder: Path) -> None:
    generator = load(folder, budget="auto", batch_size=1)
    prompt = np.random.default_rng(0).integers(3, zoo.VOCABULARY, zoo.CONTEXT - 4)
    done = generator.run([Request("a", prompt.astype(np.int32))])
    assert ids(done) == [plain_text("llama", tuple(prompt.tolist()), observed_eos("llama"), 4)]


def test_unknown_settings_are_named() -> None:
    with pytest.raises(DraftrecError, match=r"Unknown setting 'temprature'.*temperature"):
        make_config("model", temprature=1.0)
    config = make_config("m", accept="relaxed", budget=5, batch_size=2, dtype="float32")
    assert (config.accept.accept, config.draft.budget) == ("relaxed", 5)
    assert (config.batch.batch_size, config.target.dtype, config.target.model) == (
        2,
        "float32",
        "m",
    )


@pytest.mark.slow
def test_other_settings_share_weights_and_measured_costs(
    folder: Path, fixed_costs: list[int]
) -> None:
    generator = load(folder, budget="auto")
    generator.run(requests())
    generator.run(requests())
    assert fixed_costs == [3]
    state = json.loads(json.dumps(generator.cost_state))
    relaxed = generator.config.accept.model_copy(update={"accept": "relaxed"})
    other = generator.with_config(generator.config.model_copy(update={"accept": relaxed}))
    assert other.target is generator.target
    other.run(requests())
    assert fixed_costs == [3]
    resumed = load(folder, budget="auto", cost_state=state)
    curve = resumed.cost_curve(10)
    assert curve is not None
    assert {"slots": 3, **curve.to_json()} == state
    resumed.run(requests())
    assert fixed_costs == [3]
    assert resumed.cost_state["slots"] == 3


def test_costs_are_measured_for_as_many_texts_as_there_are(
    folder: Path, fixed_costs: list[int]
) -> None:
    generator = load(folder, budget="auto")
    for texts in (2, 5, 15, 16, 100, 1000, None):
        generator.cost_curve(10, texts)
    # Two texts together, then three slots: for 16, eight times as many; for 1000; for any number.
    assert fixed_costs == [2, 3, 3, 3]
    assert generator.cost_state["slots"] == 3


@pytest.mark.slow
@pytest.mark.usefixtures("fixed_costs")
def test_automatic_batch_fits_memory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = {}
    for slots in (1, 4):
        generator = load(folder, batch_size="auto", budget=4)
        room = generator.target.bytes_per_token * (len(PROMPTS[5]) + NEW + 65)
        monkeypatch.setattr(module, "_free_memory", lambda _, r=room, n=slots: int(2.1 * r * n))
        steps: list[StepStats] = []
        texts[slots] = ids(generator.run(requests(), on_step=steps.append))
        assert max(s.active for s in steps) <= slots
        slab = generator.target.slab
        assert slab is not None
        assert slab.slots == slots
    assert texts[1] == texts[4] == expected()


@pytest.mark.slow
def test_sampled_texts_belong_to_their_key(folder: Path) -> None:
    generator = load(folder, temperature=0.9, seed=3)
    all_of_them = ids(generator.run(requests()))
    assert ids(generator.run(requests()[::-2])) == all_of_them[::-2]
    other_key = Request("x", np.array(PROMPTS[0], np.int32), key=99)
    assert ids(generator.run([other_key])) != all_of_them[:1]
    assert ids(load(folder, temperature=0.9, seed=4).run(requests())) != all_of_them


@pytest.mark.slow
def test_relaxed_texts_repeat_with_a_fixed_budget_and_the_same_pool(folder: Path) -> None:
    runs = []
    for _ in range(2):
        pool = Pool(load(folder).fingerprint["tokenizer"])
        pool.add((np.random.default_rng(i).integers(3, 97, 30), None) for i in range(300))
        settings = {"accept": "relaxed", "top_k": 50, "min_prob": 0.001, "budget": 24}
        runs.append(load(folder, pool=pool, **settings).run(requests()))
    assert ids(runs[0]) == ids(runs[1]) != expected()
    assert sum(g.counts.relaxed_tokens for g in runs[0]) > 0


def test_stopping_is_heard(folder: Path) -> None:
    generator = load(folder)
    with pytest.raises(Interrupted):
        generator.run(requests(), should_stop=lambda: True)
    assert ids(generator.run(requests())) == expected()


@pytest.mark.slow
def test_calls_of_several_threads_wait_for_each_other(folder: Path) -> None:
    generator, calls = load(folder), list[Future[list[Generation]]]()
    with ThreadPoolExecutor(1) as threads:

        def meanwhile(_: StepStats) -> None:
            if not calls:
                calls.append(threads.submit(generator.run, requests()[::-1]))
            time.sleep(0.02)

        first = ids(generator.run(requests(), on_step=meanwhile))
        assert first == ids(calls[0].result(60))[::-1] == expected()


def test_what_runs_is_reported(folder: Path) -> None:
    generator = load(folder)
    assert (generator.device, generator.dtype) == ("cpu", "float32")
    assert generator.fingerprint == load(folder).fingerprint
    prints = {"model", "tokenizer", "generation_config", "drafter"}
    assert set(generator.fingerprint) == prints
    assert generator.pool is not None
    assert generator.pool.tokenizer_fingerprint == generator.fingerprint["tokenizer"]


def test_the_entitys_previous_text_is_the_first_to_draft_from(folder: Path) -> None:
    generator = load(folder, budget=30, batch_size=1)
    request = requests()[1]
    previous = np.array(expected()[1], np.int32)
    refreshed = Request("r", request.prompt_ids, previous_ids=previous)
    plain, fast = generator.run([request])[0], generator.run([refreshed])[0]
    assert fast.token_ids.tolist() == plain.token_ids.tolist() == expected()[1]
    assert fast.counts.target_calls < plain.counts.target_calls
    assert fast.counts.accepted_by_source[1] > 5


@pytest.mark.slow
def test_bfloat16_texts_differ_by_rounding_only(folder: Path) -> None:
    plain = load(folder, dtype="bfloat16", draft="none", batch_size=1)
    assert plain.target.dtype == torch.bfloat16
    texts = ids(plain.run(requests()))
    assert sum(a == b for a, b in zip(texts, expected(), strict=True)) >= 3


@pytest.mark.slow
@pytest.mark.usefixtures("fixed_costs")
@pytest.mark.parametrize("accept", ["strict", "relaxed"])
def test_a_resumed_run_decides_as_the_uninterrupted_one(folder: Path, accept: str) -> None:
    whole = load(folder, budget="auto", accept=accept)
    first = whole.run(requests())
    shard = [(g.token_ids, None) for g in first]
    whole.commit(shard)
    state = whole.cost_state
    second = whole.run(requests())
    resumed = load(folder, budget="auto", accept=accept, cost_state=state)
    resumed.commit(shard)
    for a, b in zip(second, resumed.run(requests()), strict=True):
        assert a.token_ids.tolist() == b.token_ids.tolist()
        # How much is drafted of a strict text follows the clock within a run as well.
        assert a.counts == b.counts or accept == "strict"


@pytest.mark.usefixtures("fixed_costs")
@pytest.mark.parametrize("accept", ["strict", "relaxed"])
def test_what_drafts_are_worth_is_learned_over_all_strict_runs(folder: Path, accept: str) -> None:
    generator = load(folder, budget="auto", accept=accept)
    generator.commit((g.token_ids, None) for g in generator.run(requests()))
    generator.run(requests())
    budget = generator.engine(10).budget
    assert isinstance(budget, AutoBudget)
    # Of relaxed texts, what a resumed job writes must not hang on what its first life has seen.
    assert (budget.calibration.expected.sum() > 1) == (accept == "strict")


def test_a_pool_of_another_tokenizer_is_refused(folder: Path) -> None:
    with pytest.raises(PoolMismatchError, match="another tokenizer"):
        load(folder, pool=Pool("another"))


def test_frozen_passes_go_by_their_names_in_python() -> None:
    for settings in ({"pass_": "frozen"}, {"pass": "frozen"}, {"compile": True}):
        assert make_config("m", **settings).target.pass_ == "frozen"
    assert make_config("m", compile=False).target.pass_ == "auto"
