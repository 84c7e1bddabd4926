"""`generate` with draftrec inside writes what it writes without, whatever else it is asked."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GPTNeoConfig,
    LlamaConfig,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.generation.streamers import BaseStreamer

from draftrec.config import AcceptConfig
from draftrec.engine.costs import CostCurve
from draftrec.errors import DraftrecError
from draftrec.integrations import transformers as ours
from draftrec.integrations.transformers import method as lent
from draftrec.pool.store import Pool
from tests.models import zoo

NEW = 24
SMALL: dict[str, Any] = {
    "vocab_size": zoo.VOCABULARY, "hidden_size": 32, "intermediate_size": 48,
    "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": zoo.CONTEXT,
}  # fmt: skip
PAD = 0
#: Settings that transformers knows, as opposed to ours.
THEIRS = ("max_length", "max_new_tokens", "suppress_tokens", "use_cache", "pad_token_id")
ROWS = [
    np.random.default_rng(40 + i).integers(3, zoo.VOCABULARY, 3 + 3 * i).tolist() for i in range(8)
]


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    """Models of these tests alone, by name: what a call left behind would be found by the next."""
    return {name: zoo.build(name) for name in (*zoo.NAMES, *zoo.SEEING)}


@pytest.fixture
def llama(models: dict[str, Any]) -> Any:
    return models["llama"]


def inputs(rows: list[list[int]] = ROWS) -> dict[str, torch.Tensor]:
    """Prompts padded on the left, as a tokenizer gives them."""
    width = max(map(len, rows))
    ids = torch.tensor([[PAD] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return {"input_ids": ids, "attention_mask": mask}


def plain(model: Any, rows: list[list[int]] = ROWS, **settings: Any) -> torch.Tensor:
    defaults = {"do_sample": False, "max_new_tokens": NEW, "pad_token_id": PAD}
    return model.generate(**inputs(rows), **(defaults | settings))


def drafted(model: Any, rows: list[list[int]] = ROWS, **settings: Any) -> Any:
    return plain(
        model, rows,
        **({"custom_generate": ours.generate, "budget": 8, "return_dict_in_generate": True}
           | settings),
    )  # fmt: skip


def pool_of(sequences: torch.Tensor, prompt: int) -> Pool:
    """A pool of the texts behind the prompts."""
    pool = Pool("tests")
    pool.add((row[prompt:].numpy().astype(np.int32), None) for row in sequences)
    return pool


def own_pool(model: Any) -> Pool:
    return pool_of(plain(model), max(map(len, ROWS)))


def accepted(output: ours.Output) -> int:
    assert output.counts is not None
    return sum(counts.accepted_tokens for counts in output.counts)


def ends(model: Any) -> list[int]:
    """Tokens that end some of the texts early: two that come up in the middle of them."""
    texts = plain(model, eos_token_id=None)[:, max(map(len, ROWS)) :]
    return [int(texts[1, 9]), int(texts[5, 4])]


@pytest.mark.slow
@pytest.mark.parametrize("name", [*zoo.NAMES, *zoo.SEEING])
def test_texts_are_generate_s_own_on_every_architecture(models: dict[str, Any], name: str) -> None:
    model = models[name]
    eos = ends(model)
    expected = plain(model, eos_token_id=eos)
    assert len(set((expected != PAD).sum(1).tolist())) > 2, "texts of one length test little"
    pool = pool_of(expected, max(map(len, ROWS)))
    found = drafted(model, pool=pool, eos_token_id=eos)
    assert torch.equal(found.sequences, expected)
    assert accepted(found) > len(ROWS)
    alone = [drafted(model, [row], pool=pool, eos_token_id=eos) for row in ROWS]
    for row, one in zip(ROWS, alone, strict=True):
        assert torch.equal(one.sequences, plain(model, [row], eos_token_id=eos))
    assert sum(map(accepted, alone)) > len(ROWS)


def test_tokens_of_images_are_refused_and_tokens_of_text_are_not(models: dict[str, Any]) -> None:
    """A processor says of every token what it is."""
    model, kinds = models["qwen3_vl"], torch.zeros_like(inputs()["input_ids"])
    found = drafted(model, mm_token_type_ids=kinds)
    assert torch.equal(found.sequences, plain(model, mm_token_type_ids=kinds))
    with pytest.raises(DraftrecError, match="cannot pass mm_token_type_ids on"):
        drafted(model, mm_token_type_ids=kinds + 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"draft": "none"},
        {"draft": "prompt", "budget": 0},
        {"budget": 30, "depth": 2, "batch_size": 3},
        {"accept": AcceptConfig(accept="relaxed", top_k=1, min_prob=0.0)},
        {"accept": AcceptConfig(accept="relaxed", max_deviations=0)},
        {"accept": AcceptConfig(accept="typical", max_deviations=0)},
        {"accept": AcceptConfig(accept="entropy", max_deviations=0)},
        {"max_length": 33, "max_new_tokens": None},
        {"suppress_tokens": [5, 9, 17]},
        {"use_cache": False},
        {"cache_implementation": "static"},
        {"pad_token_id": 7},
    ],
    ids=str,
)
def test_no_lossless_setting_changes_a_text(llama: Any, settings: dict[str, Any]) -> None:
    eos = ends(llama)
    expected = plain(llama, eos_token_id=eos, **{k: v for k, v in settings.items() if k in THEIRS})
    found = drafted(llama, pool=own_pool(llama), eos_token_id=eos, **settings)
    assert torch.equal(found.sequences, expected)


@pytest.mark.slow
@pytest.mark.parametrize("accept", ["relaxed", "typical", "entropy"])
def test_every_rule_takes_drafts(llama: Any, accept: str) -> None:
    """Drafts of the model's own text are its own choices, which every rule keeps."""
    expected = plain(llama, eos_token_id=None)
    pool = pool_of(expected, max(map(len, ROWS)))
    assert accepted(drafted(llama, pool=pool, accept=accept, eos_token_id=None)) > NEW


def test_without_a_mask_and_a_dictionary_a_tensor_comes_back(llama: Any) -> None:
    ids = torch.tensor([ROWS[4]])
    found = llama.generate(ids, custom_generate=ours.generate, budget=4, max_new_tokens=5)
    assert torch.equal(found, llama.generate(ids, max_new_tokens=5))


@pytest.mark.slow
def test_relaxed_acceptance_takes_drafts_that_the_model_would_not_write(llama: Any) -> None:
    other = plain(zoo.build("llama", rms_norm_eps=0.5))
    pool = pool_of(other, max(map(len, ROWS)))
    rule = AcceptConfig(accept="relaxed", top_k=97, min_prob=0.0, eos_guard=False)
    found = drafted(llama, pool=pool, accept=rule, eos_token_id=None)
    assert found.counts is not None
    assert sum(counts.relaxed_tokens for counts in found.counts) > 0
    assert not torch.equal(found.sequences, plain(llama, eos_token_id=None))


@pytest.mark.slow
def test_texts_written_join_the_pool_under_their_groups(llama: Any) -> None:
    pool = Pool("tests")
    groups = ["a", "b", None] + ["a"] * 5
    first = drafted(llama, pool=pool, groups=groups, grow_pool=True, eos_token_id=ends(llama))
    width = max(map(len, ROWS))
    assert [group for _, group in pool] == groups
    for (ids, _), row in zip(pool, first.sequences[:, width:].tolist(), strict=True):
        assert ids.tolist() + [PAD] * (len(row) - len(ids)) == row
    again = drafted(llama, pool=pool, groups=groups, eos_token_id=ends(llama))
    assert len(pool) == len(ROWS)
    assert accepted(again) > accepted(first)
    assert torch.equal(again.sequences, first.sequences)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings", [{"top_k": 0}, {"top_k": 5, "temperature": 0.7}, {"top_p": 0.8}, {"min_p": 0.05}]
)
def test_sampling_follows_torch_s_seed_and_the_processed_scores(
    llama: Any, settings: dict[str, Any]
) -> None:
    def sample(seed: int, **more: Any) -> torch.Tensor:
        torch.manual_seed(seed)
        return drafted(llama, do_sample=True, **settings, **more).sequences

    first = sample(1)
    assert torch.equal(first, sample(1, budget=0))
    assert torch.equal(first, sample(1, pool=pool_of(first, max(map(len, ROWS)))))
    assert not torch.equal(first, sample(2))


@pytest.mark.slow
def test_sampled_tokens_have_generate_s_distribution(llama: Any) -> None:
    """One token, 2,000 draws: shares within five standard errors of the probabilities."""
    rows, count = [ROWS[3]], 2000
    with torch.no_grad():
        scores = llama(torch.tensor(rows)).logits[0, -1] / 0.9
    kept = scores.topk(4)
    probs = torch.zeros_like(scores).scatter(0, kept.indices, kept.values.softmax(-1))
    torch.manual_seed(0)
    found = drafted(
        llama, rows * count, do_sample=True, temperature=0.9, top_k=4, max_new_tokens=1,
        budget=0, batch_size=16,
    )  # fmt: skip
    shares = torch.bincount(found.sequences[:, -1], minlength=zoo.VOCABULARY) / count
    assert ((shares - probs).abs() <= 5 * (probs * (1 - probs) / count).sqrt() + 1e-9).all()


@pytest.mark.slow
def test_relaxed_sampling_knows_temperature_and_top_p(llama: Any) -> None:
    def sample(**settings: Any) -> torch.Tensor:
        torch.manual_seed(3)
        shared = {"accept": "relaxed", "do_sample": True, "top_k": 0, "draft": "none"}
        return drafted(llama, **shared, **settings).sequences

    assert torch.equal(sample(temperature=1e-4), plain(llama))
    assert torch.equal(sample(temperature=2.0, top_p=1e-6), plain(llama))
    assert not torch.equal(sample(temperature=2.0), plain(llama))


class Recorder(BaseStreamer):
    def __init__(self) -> None:
        self.heard: list[Any] = []

    def put(self, value: torch.Tensor) -> None:
        self.heard.append(value.tolist())

    def end(self) -> None:
        self.heard.append("end")


@pytest.mark.slow
def test_a_streamer_hears_what_it_would_hear_without_drafts(llama: Any) -> None:
    pool = own_pool(llama)
    for eos in (ends(llama), None):
        expected, found = Recorder(), Recorder()
        plain(llama, ROWS[1:2], eos_token_id=eos, streamer=expected)
        output = drafted(llama, ROWS[1:2], eos_token_id=eos, streamer=found, pool=pool)
        assert found.heard == expected.heard
        assert accepted(output) > 0


class Repeats(StoppingCriteria):
    """Ends a text at the first token that it has already, or at `most` tokens, padding included."""

    def __init__(self, most: int) -> None:
        self.most, self.asked = most, list[tuple[int, ...]]()

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> Any:  # type: ignore[override]
        self.asked.append(tuple(input_ids.shape))
        last, before = input_ids[:, -1:], input_ids[:, max(map(len, ROWS)) : -1]
        return (before == last).any(1) | (input_ids.shape[1] >= self.most)


@pytest.mark.slow
@pytest.mark.parametrize("most", [999, 35])
def test_criteria_end_each_text_where_they_would_without_drafts(llama: Any, most: int) -> None:
    eos = [96]
    rule = Repeats(most)
    expected = plain(llama, eos_token_id=eos, stopping_criteria=StoppingCriteriaList([rule]))
    pool = own_pool(llama)
    own = Repeats(most)
    found = drafted(
        llama, eos_token_id=eos, pool=pool, stopping_criteria=StoppingCriteriaList([own])
    )
    assert torch.equal(found.sequences, expected)
    assert accepted(found) > 0
    assert len({int(n) for n in (expected == PAD).sum(1)}) > 2
    assert set(own.asked) <= {(1, n) for _, n in rule.asked}, "texts past their end were judged"


def test_criteria_cut_what_is_streamed_too(llama: Any) -> None:
    expected, found = Recorder(), Recorder()
    criteria = StoppingCriteriaList([Repeats(max(map(len, ROWS)) + 7)])
    plain(llama, ROWS[7:], stopping_criteria=criteria, streamer=expected)
    drafted(llama, ROWS[7:], stopping_criteria=criteria, streamer=found, pool=own_pool(llama))
    assert found.heard == expected.heard


def test_time_is_a_criterion_as_well(llama: Any) -> None:
    assert drafted(llama, max_time=-1.0).sequences.shape[1] == max(map(len, ROWS)) + 1


@pytest.mark.slow
def test_costs_are_measured_once_for_batches_of_about_a_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[int] = []

    def measured(_target: Any, slots: int, _context: int, **_: Any) -> CostCurve:
        asked.append(slots)
        return CostCurve((1, 200), (1.0, 1.5))

    monkeypatch.setattr(lent, "measure_cost", measured)
    model: Any = zoo.build("llama")
    pool = own_pool(model)
    for rows in (ROWS, ROWS[:5], ROWS[:1]):
        found = drafted(model, rows, pool=pool, budget="auto")
        assert torch.equal(found.sequences, plain(model, rows))
        assert accepted(found) > 0
    assert asked == [8, 1]
    # What drafts are worth is learned over all calls.
    assert lent._STATES[model].calibrations[False].expected.sum() > 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2", "falcon"])
def test_the_model_is_given_back_as_it_was(models: dict[str, Any], name: str) -> None:
    model = copy.deepcopy(models[name])
    if name not in zoo.FALLBACK:  # whose attention cannot be chosen
        model.set_attn_implementation("eager")
    attention = model.config._attn_implementation
    before = model(torch.tensor([ROWS[2]])).logits
    model.train()
    model.get_input_embeddings().eval()
    modes = [module.training for module in model.modules()]
    settings = model.generation_config.to_dict()
    assert torch.equal(drafted(model).sequences, plain(models[name]))
    assert model.config._attn_implementation == attention
    assert [module.training for module in model.modules()] == modes
    assert model.generation_config.to_dict() == settings
    model.requires_grad_(True)
    model(torch.tensor([ROWS[2]])).logits.sum().backward()
    assert torch.equal(model.eval()(torch.tensor([ROWS[2]])).logits, before)
    assert all(w.grad is not None for w in model.get_input_embeddings().parameters())


def test_the_model_is_given_back_after_a_failure_too(llama: Any) -> None:
    class Broken(BaseStreamer):
        def __init__(self) -> None:
            self.calls = 0

        def put(self, value: torch.Tensor) -> None:
            self.calls += 1
            if self.calls > 3:
                raise OSError("the reader has gone")

        def end(self) -> None:
            raise AssertionError("nothing ended")

    before = llama.config._attn_implementation
    with pytest.raises(OSError, match="gone"):
        drafted(llama, ROWS[:1], streamer=Broken())
    assert llama.config._attn_implementation == before
    assert torch.equal(drafted(llama).sequences, plain(llama))


@pytest.mark.slow
def test_calls_from_two_threads_wait_for_each_other(llama: Any) -> None:
    expected = plain(llama)
    with ThreadPoolExecutor(1) as threads:
        with lent.adapted(llama):
            call = threads.submit(drafted, llama)
            with pytest.raises(TimeoutError):
                call.result(timeout=0.5)
        assert torch.equal(call.result(timeout=60).sequences, expected)


@pytest.mark.slow
def test_nothing_keeps_a_model_alive() -> None:
    model: Any = zoo.build("llama")
    drafted(model)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


@pytest.mark.slow
def test_weights_that_change_between_calls_are_used() -> None:
    model: Any = zoo.build("llama")
    first = drafted(model).sequences
    with torch.no_grad():
        model.lm_head.weight[3:] = model.lm_head.weight[3:].flip(0)
    found = drafted(model).sequences
    assert not torch.equal(found, first)
    assert torch.equal(found, plain(model))


def test_a_compiled_model_is_not_compiled_anew_for_every_kind_of_pass() -> None:
    model: Any = zoo.build("llama")
    expected = plain(model)
    compiled: list[Any] = []

    def backend(graph: Any, _inputs: Any) -> Any:
        compiled.append(graph)
        return graph.forward

    model.forward = torch.compile(model.forward, backend=backend)
    assert torch.equal(drafted(model).sequences, expected)
    assert not compiled
    model(**inputs())
    assert compiled, "its own passes still are"


@pytest.mark.parametrize(
    "config",
    [
        LlamaConfig(
            **SMALL, rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
        ),
        GPTNeoConfig(
            vocab_size=zoo.VOCABULARY, hidden_size=32, num_layers=2, num_heads=4, window_size=9,
            attention_types=[[["global", "local"], 1]], max_position_embeddings=zoo.CONTEXT,
        ),
    ],
    ids=["dynamic", "gpt_neo"],
)  # fmt: skip
def test_nothing_is_left_in_a_model_whose_modules_are_stood_in_for(config: Any) -> None:
    """What is left would grow with every call, and keep the model from being copied."""
    torch.manual_seed(5)
    model: Any = AutoModelForCausalLM.from_config(config).eval()
    for _ in range(2):
        assert torch.equal(drafted(model, ROWS[5:6]).sequences, plain(model, ROWS[5:6]))
    for module in model.modules():
        assert "forward" not in vars(module)
        assert not module._forward_pre_hooks
        assert not module._forward_hooks
    again = pickle.loads(pickle.dumps(model))
    assert torch.equal(plain(again, ROWS[5:6]), plain(model, ROWS[5:6]))
