"""The loop writes the model's own greedy text, token by token, whatever is drafted."""

from __future__ import annotations

from collections.abc import Sequence as Seq

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from draftrec.core import Counts, DraftTree, Generation, Request, SequenceView
from draftrec.engine.costs import CostCurve, LearningCurve
from draftrec.engine.passes import prepacked
from draftrec.engine.target import Target
from draftrec.engine.text.budget import AutoBudget, FixedBudget
from draftrec.engine.text.loop import NoDrafter, generate
from draftrec.engine.text.stats import StepStats, Timing
from draftrec.errors import Interrupted
from draftrec.pool.drafter import PoolDrafter
from draftrec.pool.store import Pool
from tests.engine.text.helpers import (
    NEW_TOKENS,
    PROMPTS,
    GuessingDrafter,
    make_engine,
    observed_eos,
    plain_text,
    requests,
)
from tests.models import zoo


def truth(name: str) -> dict[str, list[int]]:
    """What the model writes, by entity, going on after what tests take for EOS."""
    return {str(i): plain_text(name, p) for i, p in enumerate(PROMPTS)}


class GrowingBudget(FixedBudget):
    """One node at first, `most` from then on: the slab must have room from the start."""

    asked = 0

    def limit(self) -> int:
        self.asked += 1
        return self.most if self.asked > 1 else 1


def check(done: list[Generation], name: str, eos: frozenset[int]) -> None:
    """Every text equals transformers' own and says correctly why it ended."""
    for i, (text, prompt) in enumerate(zip(done, PROMPTS, strict=True)):
        expected = plain_text(name, prompt, eos)
        assert text.token_ids.tolist() == expected
        assert text.entity_id == str(i)
        assert text.prompt_tokens == len(prompt)
        assert text.finish_reason == ("eos" if expected[-1] in eos else "length")


@pytest.mark.slow
@pytest.mark.parametrize("name", zoo.NAMES)
@settings(max_examples=4)
@given(
    slots=st.sampled_from([1, 2, 6]),
    chunk=st.sampled_from([1, 5, 64]),
    nodes=st.sampled_from([0, 3, 12]),
    hit=st.sampled_from([0.0, 0.6, 1.0]),
    seed=st.integers(0, 1000),
)
def test_greedy_text_is_transformers_own(
    name: str, slots: int, chunk: int, nodes: int, hit: float, seed: int
) -> None:
    """More requests than slots, prompts in pieces, EOS inside paths, noise to oracle drafts."""
    eos = observed_eos(name)
    drafter = GuessingDrafter(truth(name), hit, seed)
    engine = make_engine(
        name, drafter, eos=eos, slots=slots, prefill_chunk=chunk, budget=FixedBudget(nodes)
    )
    done = generate(engine, requests())
    check(done, name, eos)
    assert not drafter.running
    accepted = sum(g.counts.accepted_tokens for g in done)
    assert accepted >= 20 or hit < 1 or nodes < 12
    assert nodes or not accepted


@pytest.mark.slow
@pytest.mark.parametrize("name", zoo.NAMES)
def test_drafts_from_pools_change_nothing_but_the_number_of_calls(name: str) -> None:
    eos = observed_eos(name)
    pool = Pool("tokenizer")
    pool.add((np.array(t, np.int32), "even") for t in list(truth(name).values())[::2])
    plain = generate(make_engine(name, eos=eos), requests())
    done = generate(make_engine(name, PoolDrafter(pool), eos=eos), requests())
    check(plain, name, eos)
    check(done, name, eos)
    assert not sum(g.counts.drafted_tokens for g in plain)
    calls = [sum(g.counts.target_calls for g in texts) for texts in (plain, done)]
    assert calls[1] < 0.8 * calls[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", zoo.PACKED)
def test_packed_weights_write_transformers_own_text(name: str) -> None:
    """The reference runs on the plain weights."""
    eos = observed_eos(name)
    model = zoo.build(name)
    prepacked.prepack(model)
    engine = make_engine(name, GuessingDrafter(truth(name), 0.6, 3), eos=eos)
    engine.target = Target(model)
    check(generate(engine, requests()), name, eos)


def test_nothing_follows_an_eos_in_the_middle_of_an_accepted_path() -> None:
    eos = observed_eos("llama")
    drafter = GuessingDrafter(truth("llama"), hit=1.0)  # knows what would come after the EOS
    engine = make_engine("llama", drafter, eos=eos, budget=FixedBudget(40), slots=1)
    first = generate(engine, requests())[0]
    assert first.finish_reason == "eos"
    assert first.token_ids.tolist() == plain_text("llama", PROMPTS[0], eos)
    # the last step ended on the drafted EOS itself: no bonus token was needed
    assert first.counts.accepted_tokens + first.counts.target_calls > len(first.token_ids)


@pytest.mark.parametrize("most", [1, 2, 3, 5, 8])
def test_a_path_longer_than_the_text_may_be_is_cut(most: int) -> None:
    drafter = GuessingDrafter(truth("qwen3"), hit=1.0)
    done = generate(make_engine("qwen3", drafter, max_new_tokens=most), requests())
    for text, prompt in zip(done, PROMPTS, strict=True):
        assert text.token_ids.tolist() == plain_text("qwen3", prompt)[:most]
        assert text.finish_reason == "length"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "gpt2", "falcon"])
def test_texts_end_where_the_context_ends(name: str) -> None:
    """Positions past the context would be an error in GPT-2, and other texts elsewhere."""
    length = len(PROMPTS[5]) + 4
    drafter = GuessingDrafter(truth(name), hit=0.7)
    done = generate(make_engine(name, drafter, context_length=length), requests())
    for text, prompt in zip(done, PROMPTS, strict=True):
        room = min(NEW_TOKENS, length - len(prompt))
        assert text.token_ids.tolist() == plain_text(name, prompt)[:room]
        assert text.finish_reason == "length"


def test_memory_is_taken_for_the_context_and_not_for_tokens_that_never_fit() -> None:
    """Who wants texts to end by themselves asks for as many tokens as there are."""
    engine = make_engine("llama", NoDrafter(), max_new_tokens=10**12)
    engine.target.slab = None
    (done,) = generate(engine, requests(PROMPTS[:1]))
    assert len(PROMPTS[0]) + len(done.token_ids) == zoo.CONTEXT
    assert engine.target.slab is not None
    assert engine.target.slab.capacity < 2 * zoo.CONTEXT


def test_the_last_position_of_the_model_can_be_used_and_none_after_it() -> None:
    """A neighbour with more room may be drafted for more deeply; position 256 is an error."""
    prompt = np.random.default_rng(3).integers(3, zoo.VOCABULARY, zoo.CONTEXT - 3).tolist()
    expected = plain_text("gpt2", tuple(prompt), most=3)
    drafter = GuessingDrafter({"0": [*expected, *[5] * 20], "1": []}, hit=1.0)
    engine = make_engine("gpt2", drafter, prefill_chunk=400, budget=FixedBudget(30))
    done = generate(engine, requests([prompt, [7]]))
    assert done[0].token_ids.tolist() == expected
    assert done[1].token_ids.tolist() == plain_text("gpt2", (7,))


def test_plain_decoding_is_one_call_per_token() -> None:
    steps: list[StepStats] = []
    engine = make_engine("llama", slots=1, prefill_chunk=64)
    done = generate(engine, requests(PROMPTS[:2]), steps.append)
    for text in done:
        assert text.counts.target_calls == len(text.token_ids) == NEW_TOKENS
        assert text.counts.draft_calls == text.counts.drafted_tokens == 0
    assert [s.rows for s in steps[1:NEW_TOKENS]] == [1] * (NEW_TOKENS - 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "gemma3", "gptj"])
def test_a_shared_prefix_is_computed_once(name: str) -> None:
    shared = np.random.default_rng(4).integers(3, zoo.VOCABULARY, 40).tolist()
    prompts = [[*shared, 5 + i, 9] for i in range(5)]
    steps: list[StepStats] = []
    engine = make_engine(name, slots=2, max_new_tokens=6, prefill_chunk=64)
    done = generate(engine, requests(prompts), steps.append)
    for text, prompt in zip(done, prompts, strict=True):
        assert text.token_ids.tolist() == plain_text(name, tuple(prompt), most=6)
    rows = sum(s.rows for s in steps)
    decoded = sum(len(g.token_ids) - 1 for g in done)
    assert rows == 42 + 4 * 2 + decoded


def test_a_free_slot_is_refilled_in_the_same_step() -> None:
    eos = observed_eos("llama")
    steps: list[StepStats] = []
    engine = make_engine("llama", slots=2, prefill_chunk=64, eos=eos)
    done = generate(engine, requests(), steps.append)
    check(done, "llama", eos)
    lengths = [len(g.token_ids) for g in done]
    assert len(set(lengths)) > 1, "texts of one length could not tell batches from refilling"
    assert all(s.active == 2 for s in steps if s.waiting)
    static = sum(max(lengths[i : i + 2]) for i in range(0, len(lengths), 2))
    assert len(steps) < static


def test_counts_add_up() -> None:
    steps: list[StepStats] = []
    drafter = GuessingDrafter(truth("llama"), hit=0.8)
    engine = make_engine("llama", drafter, prefill_chunk=64)
    done = generate(engine, requests(), steps.append)
    counts = [g.counts for g in done]
    new = sum(len(g.token_ids) for g in done)
    assert new == sum(s.new_tokens for s in steps)
    assert sum(c.accepted_tokens for c in counts) == sum(s.accepted_tokens for s in steps) > 0
    assert sum(c.drafted_tokens for c in counts) == sum(s.drafted_tokens for s in steps)
    assert sum(c.target_calls for c in counts) == sum(s.target_calls for s in steps)
    assert [sum(c.accepted_by_source) for c in counts] == [c.accepted_tokens for c in counts]
    assert sum(s.finished for s in steps) == len(done)
    assert sum(c.relaxed_tokens for c in counts) == 0
    timing = engine.timing
    assert min(timing.draft_seconds, timing.verify_seconds, timing.prefill_seconds) > 0


@pytest.mark.slow
def test_stopping_finishes_the_step_and_leaves_the_engine_usable() -> None:
    steps: list[StepStats] = []
    engine = make_engine("llama")
    with pytest.raises(Interrupted):
        generate(engine, requests(), steps.append, lambda: len(steps) == 4)
    assert len(steps) == 4
    check(generate(engine, requests()), "llama", frozenset())


def test_measured_budget_changes_no_token() -> None:
    curve = CostCurve((1, 8, 64), (1.0, 1.05, 2.0))
    drafter = GuessingDrafter(truth("llama"), hit=0.9)
    done = generate(make_engine("llama", drafter, budget=AutoBudget(curve)), requests())
    check(done, "llama", frozenset())
    assert sum(g.counts.accepted_tokens for g in done) > 10


@pytest.mark.parametrize("seed", [0, 1])
def test_costs_are_learnt_from_passes_and_change_no_token(seed: int) -> None:
    """By a clock that jumps as it likes."""
    jumps = np.random.default_rng(seed).exponential(1.0, 100_000).cumsum()
    ticks = iter(jumps.tolist())
    costs = LearningCurve(CostCurve((1, 8, 64), (1.0, 1.05, 2.0)))
    engine = make_engine(
        "llama",
        GuessingDrafter(truth("llama"), hit=0.3),
        slots=1,
        budget=AutoBudget(costs),
        costs=costs,
        timing=Timing(clock=lambda: next(ticks)),
    )
    steps: list[StepStats] = []
    done = generate(engine, requests(), steps.append)
    check(done, "llama", frozenset())
    assert costs.passes == len(steps) >= 16
    assert costs.to_json() != costs.first.to_json()


@pytest.mark.parametrize("aside", [False, True])
def test_what_a_drafter_weighs_by_itself_is_no_price_of_the_other_drafts(*, aside: bool) -> None:
    """Half a step per draft that somebody else answers for: drafts that hit go on all the same."""
    now = 0.0
    costs = LearningCurve(CostCurve((1, 8, 64), (1.0, 1.05, 2.0)))
    budget = AutoBudget(costs)

    class Slow(GuessingDrafter):
        def draft(self, batch: Seq[SequenceView], limit: int, depth: int) -> list[DraftTree]:
            nonlocal now
            now += 30.0
            if aside:
                budget.set_aside(30.0)
            return super().draft(batch, limit, depth)

    def clock() -> float:
        nonlocal now
        now += 0.5
        return now

    engine = make_engine(
        "llama", Slow(truth("llama"), hit=0.9), slots=1, budget=budget, costs=costs,
        timing=Timing(clock=clock),
    )  # fmt: skip
    done = [g for _ in range(3) for g in generate(engine, requests())]
    if aside:
        assert costs.draft_seconds < 2.0
    else:
        assert costs.draft_seconds > 20.0
    counts = sum((g.counts for g in done[len(done) // 3 :]), Counts())
    assert (counts.draft_calls > 0.9 * (counts.target_calls - len(done))) == aside


@pytest.mark.slow
def test_slots_hold_the_largest_tree_that_may_come() -> None:
    long = np.random.default_rng(6).integers(3, zoo.VOCABULARY, 82).tolist()
    drafter = GuessingDrafter({}, hit=0.0)
    engine = make_engine("llama", drafter, budget=GrowingBudget(60))
    done = generate(engine, requests([long, [4], [5]]))
    assert done[0].token_ids.tolist() == plain_text("llama", tuple(long))


def test_no_requests_give_no_texts() -> None:
    assert generate(make_engine("llama"), []) == []


def test_one_token_prompts_work() -> None:
    drafter = GuessingDrafter({}, hit=0.0)
    done = generate(make_engine("llama", drafter), [Request("a", np.array([7], np.int32))])
    assert done[0].token_ids.tolist() == plain_text("llama", (7,))
