"""Replay counts what a strict greedy target would accept, for every drafter."""

from __future__ import annotations

import types
from collections.abc import Sequence as Seq
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from draftrec.config import AcceptConfig
from draftrec.core import DraftTree, IntArray, Request, SequenceView, Verdict
from draftrec.engine.packing import Segment
from draftrec.engine.target import Scores
from draftrec.engine.text.accept import Strict
from draftrec.engine.text.budget import FixedBudget
from draftrec.engine.text.loop import Engine as LoopEngine
from draftrec.engine.text.loop import generate
from draftrec.engine.tree import chain, check_tree, depths, make_tree
from draftrec.errors import DraftrecError
from draftrec.evaluate.replay.loop import (
    NAMES,
    FromPool,
    Intake,
    ReplayDrafter,
    ReplaySettings,
    follow,
    maker_of,
    replay,
)
from draftrec.evaluate.replay.recordings import Recording
from draftrec.pool.drafter import PoolDrafter
from draftrec.pool.store import Pool
from tests.evaluate.replay.tokenizer import ToyTokenizer
from tests.strategies import token_lists, trees

EOS = 0
VOCABULARY = 50
PROMPT = np.array([VOCABULARY + 1], np.int32)
#: Drafters that know how texts begin, and those that need a token before they can draft.
FROM_THE_START, AFTER_ONE = ("pool", "all", "group"), ("ngram", "trie", "trie-group")


def ids(values: Seq[int]) -> IntArray:
    return np.array(values, np.int32)


def recording(text: Seq[int], entity: str = "a", **more: Any) -> Recording:
    return Recording(entity, ids(text), PROMPT, **more)


def make(name: str) -> ReplayDrafter:
    return maker_of(name)(ToyTokenizer(eos_token_id=EOS))


def replayed(name: str, warm: Seq[Seq[int]], texts: Seq[Recording], **more: Any) -> Any:
    drafter = make(name)
    drafter.add([(ids(text), None) for text in warm])
    return replay(drafter, texts, ReplaySettings(**more))


class Spy:
    """Passes everything on, and checks what drafters are shown and what they draw."""

    names_sources = False
    nbytes = None

    def __init__(self, name: str) -> None:
        self.inner = make(name)
        self.written: dict[str, list[int]] = {}

    @property
    def tokens(self) -> int:
        return self.inner.tokens

    def add(self, texts: Any) -> None:
        self.inner.add(texts)

    def start(self, sequence: SequenceView) -> None:
        self.written[sequence.request.entity_id] = []
        self.inner.start(sequence)

    def draft(self, batch: Seq[SequenceView], limit: int, depth: int) -> list[DraftTree]:
        drawn = self.inner.draft(batch, limit, depth)
        for tree in drawn:
            check_tree(tree)
            assert len(tree) <= limit
            assert not len(tree) or depths(tree).max() < depth
        return drawn

    def observe(self, batch: Seq[SequenceView], verdicts: Seq[Verdict]) -> None:
        for sequence, verdict in zip(batch, verdicts, strict=True):
            written = self.written[sequence.request.entity_id]
            written += verdict.token_ids.tolist()
            assert sequence.context[len(sequence.request.prompt_ids) :].tolist() == written
        self.inner.observe(batch, verdicts)

    def stop(self, sequence: SequenceView) -> None:
        self.inner.stop(sequence)


class RecordedTarget:
    """A target whose greedy text is `text`: every row at depth d says the text's token d later."""

    shared_length = anew_length = 1 << 30

    def __init__(self, text: Seq[int], prompt: int) -> None:
        self.text, self.prompt = text, prompt
        self.slab = types.SimpleNamespace(copy_prefix=lambda *_: None)

    def reserve(self, slots: int, capacity: int) -> None:
        """Nothing is cached."""

    def score(self, segments: Seq[Segment]) -> Scores:
        (segment,) = segments
        written = segment.start + len(segment.pending) - self.prompt
        places = [written, *(written + 1 + depths(segment.tree)).tolist()]
        logits = torch.zeros(len(places), VOCABULARY)
        for row, place in enumerate(places):
            logits[row, self.text[place] if place < len(self.text) else EOS] = 1
        return Scores(logits, [0])

    def commit(self, segments: Seq[Segment], paths: Seq[Any]) -> None:
        """Nothing is cached."""


def steps_of_the_loop(pool: Pool, text: list[int], budget: int, depth: int) -> int:
    """Forward passes in which the real decoding loop writes `text`."""
    target: Any = RecordedTarget(text, len(PROMPT))
    accept, eos = AcceptConfig(), frozenset([EOS])
    engine = LoopEngine(
        target=target,
        drafter=PoolDrafter(pool),
        rule=Strict(accept, eos),
        budget=FixedBudget(budget),
        accept=accept,
        eos_ids=eos,
        slots=1,
        max_new_tokens=len(text) + depth + 2,
        depth=depth,
    )
    (done,) = generate(engine, [Request("a", PROMPT)])
    assert done.token_ids.tolist() == text
    return done.counts.target_calls


class TestKnownAnswers:
    @pytest.mark.parametrize("name", NAMES)
    def test_an_empty_pool_and_nothing_repeated_takes_a_step_per_token(self, name: str) -> None:
        done = replayed(name, [], [recording(range(1, 24))])
        assert (done.texts, done.tokens, done.steps) == (1, 23, 23)

    @pytest.mark.parametrize("name", FROM_THE_START)
    @pytest.mark.parametrize(("length", "depth"), [(1, 4), (20, 4), (21, 4), (25, 4), (24, 3)])
    def test_a_known_text_takes_a_step_per_depth_and_bonus(
        self, name: str, length: int, depth: int
    ) -> None:
        text = [*range(1, length), EOS]
        done = replayed(name, [text], [recording(text)], depth=depth)
        assert done.steps == -(-length // (depth + 1))

    @pytest.mark.parametrize("name", AFTER_ONE)
    def test_rivals_that_do_not_know_how_texts_begin_take_one_more(self, name: str) -> None:
        text = list(range(1, 22))
        assert replayed(name, [text], [recording(text)], depth=4).steps == 1 + 20 // 5

    @pytest.mark.parametrize("name", NAMES)
    def test_without_a_budget_a_step_writes_a_token(self, name: str) -> None:
        text = list(range(1, 9))
        done = replayed(name, [text], [recording(text)], budget=0)
        assert (done.steps, done.drafted) == (8, 0)

    def test_empty_texts_take_nothing(self) -> None:
        done = replayed("pool", [], [recording([]), recording([EOS])])
        assert (done.texts, done.tokens, done.steps) == (2, 1, 1)

    def test_the_end_is_drafted_like_any_token(self) -> None:
        text = [1, 2, EOS]
        assert replayed("pool", [text], [recording(text)], depth=3).steps == 1
        assert replayed("pool", [text[:-1]], [recording(text)], depth=3).steps == 1
        assert replayed("pool", [[1, 2, 3]], [recording(text)], depth=2).steps == 1
        assert replayed("pool", [[1, 2, 3]], [recording(text)], depth=1).steps == 2


class TestFollow:
    def test_takes_the_longest_path_and_the_next_token(self) -> None:
        tree = make_tree([5, 6, 7, 7, 8], [-1, -1, 1, 0, 2])
        verdict = follow(tree, ids([6, 7, 9, 1]))
        assert verdict.path.tolist() == [1, 2]
        assert verdict.token_ids.tolist() == [6, 7, 9]

    def test_stops_where_the_text_does(self) -> None:
        verdict = follow(chain([1, 2, 3]), ids([1, 2]))
        assert verdict.path.tolist() == [0, 1]
        assert verdict.token_ids.tolist() == [1, 2]

    @given(trees(3), token_lists(3, 1, 12))
    def test_agrees_with_a_walk_from_the_root(self, tree: DraftTree, text: list[int]) -> None:
        path: list[int] = []
        for token in text:
            here = path[-1] if path else -1
            below = np.flatnonzero((tree.parents == here) & (tree.token_ids == token))
            if not len(below):
                break
            path.append(int(below[0]))
        verdict = follow(tree, ids(text))
        assert verdict.path.tolist() == path
        assert verdict.token_ids.tolist() == text[: len(path) + 1]


@pytest.mark.parametrize("name", NAMES)
class TestEveryDrafter:
    @pytest.mark.slow
    @settings(max_examples=25, deadline=None)
    @given(
        st.lists(token_lists(4, 0, 20), max_size=4),
        st.lists(token_lists(4, 0, 30), min_size=1, max_size=3),
        st.integers(1, 20),
        st.integers(1, 6),
    )
    def test_writes_the_recorded_text(
        self, name: str, warm: list[list[int]], texts: list[list[int]], budget: int, depth: int
    ) -> None:
        spy = Spy(name)
        spy.add([(ids(text), None) for text in warm])
        recordings = [recording(text, str(i)) for i, text in enumerate(texts)]
        done = replay(spy, recordings, ReplaySettings(budget, depth))
        assert list(spy.written.values()) == texts
        assert done.tokens == sum(map(len, texts))
        assert done.steps <= done.tokens <= done.steps * (depth + 1)

    def test_remembers_a_finished_text_only_if_it_grows(self, name: str) -> None:
        texts = [recording(range(1, 31), str(i)) for i in range(3)]
        kept = replayed(name, [], texts, grow=True)
        assert replayed(name, [], texts).steps == 90
        assert (kept.steps == 90) == (name == "prompt")

    def test_leaves_no_trace_of_a_text(self, name: str) -> None:
        drafter = make(name)
        drafter.add([(ids([1, 2, 3, 4, 5] * 6), None)])
        settings = ReplaySettings(8, 4)
        first = recording([1, 2, 9, 9, 8, 7] * 5)
        steps = [replay(drafter, [first], settings).steps for _ in range(2)]
        assert steps[0] == steps[1]

    def test_growth_is_charged_to_the_intake(self, name: str) -> None:
        intake = Intake()
        drafter = make(name)
        replay(drafter, [recording(range(9))] * 2, ReplaySettings(grow=True), intake)
        assert intake.tokens == 18
        assert intake.us_per_token > 0
        assert drafter.tokens == (0 if name == "prompt" else 18)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(
    st.lists(token_lists(5, 0, 30), max_size=4),
    st.lists(st.integers(1, 4), max_size=30),
    st.integers(1, 12),
    st.integers(1, 6),
)
def test_pool_takes_the_steps_of_the_decoding_loop(
    warm: list[list[int]], words: list[int], budget: int, depth: int
) -> None:
    text = [*words, EOS]
    pool = Pool("toy")
    pool.add((ids(t), None) for t in warm)
    done = replay(FromPool(pool), [recording(text)], ReplaySettings(budget, depth))
    assert done.steps == steps_of_the_loop(pool, text, budget, depth)


class TestGroups:
    TEXT = tuple(range(1, 21))

    def steps(self, name: str, group: str | None, **more: Any) -> int:
        drafter = make(name)
        drafter.add([(ids(self.TEXT), "x"), (ids(range(30, 50)), "y")])
        text = recording(self.TEXT, group=group, **more)
        return replay(drafter, [text], ReplaySettings(depth=4)).steps

    @pytest.mark.parametrize("name", ["group", "trie-group"])
    def test_only_the_own_group_is_drafted_from(self, name: str) -> None:
        assert self.steps(name, "x") < 6
        assert self.steps(name, "y") == 20
        assert self.steps(name, "unseen") == 20
        assert self.steps(name, None) == 20

    @pytest.mark.parametrize("name", ["pool", "all", "ngram", "trie"])
    def test_others_draft_from_all(self, name: str) -> None:
        assert self.steps(name, "unseen") < 6

    def test_all_leaves_groups_out(self) -> None:
        drafter = make("all")
        drafter.add([(ids([1, 2]), "x"), (ids([3]), "y")])
        assert isinstance(drafter, FromPool)
        assert not drafter.pool.groups


class TestRefresh:
    @pytest.mark.parametrize("name", ["pool", "all", "group", "prompt", "ngram"])
    def test_drafts_from_the_previous_text(self, name: str) -> None:
        text = recording(range(1, 26), previous_ids=ids(range(1, 26)))
        assert replayed(name, [], [text], refresh=True).steps < 12

    def test_first_texts_are_not_replayed_but_join_the_pool(self) -> None:
        first = recording(range(1, 26), "other")
        second = recording(range(1, 26), previous_ids=ids([40, 41]))
        alone = replayed("pool", [], [first, second], refresh=True)
        assert (alone.texts, alone.steps) == (1, 25)
        grown = replayed("pool", [], [first, second], refresh=True, grow=True)
        assert grown.texts == 1
        assert grown.steps < 12


class TestSummary:
    def test_has_the_contract_s_figures(self) -> None:
        drafter, intake = make("pool"), Intake()
        intake.add(drafter, [(ids([1, 2, 3, 4, EOS]), "x")])
        found = replay(drafter, [recording([1, 2, 3, 9, EOS])], ReplaySettings(8, 2))
        summary = found.summary(drafter, intake)
        assert summary["texts"] == 1
        assert summary["tokens"] == 5
        assert summary["steps"] == found.steps
        assert summary["tokens_per_step"] == pytest.approx(5 / found.steps, abs=1e-4)
        assert summary["drafted_per_step"] == pytest.approx(found.drafted / found.steps, abs=1e-3)
        for key in ("lookup_us_p50", "lookup_us_p99", "build_us_per_token", "bytes_per_token"):
            assert summary[key] > 0
        assert summary["pool_tokens"] == 5
        # Every token is an accepted one or a step's bonus; the last step may end without.
        accepted = sum(summary["accepted_by_source"].values())
        assert found.tokens - found.steps <= accepted <= found.tokens - found.steps + 1

    def test_nothing_replayed_is_no_error(self) -> None:
        drafter = make("ngram")
        summary = replay(drafter, [], ReplaySettings()).summary(drafter, Intake())
        assert summary["tokens_per_step"] == 0
        assert summary["bytes_per_token"] == 0
        assert "accepted_by_source" not in summary

    def test_a_drafter_that_cannot_tell_its_size(self) -> None:
        drafter = make("ngram")
        drafter.add([(ids([1, 2]), None)])
        assert (
            replay(drafter, [], ReplaySettings()).summary(drafter, Intake())["bytes_per_token"]
            is None
        )


def test_a_drafter_that_overdraws_is_refused() -> None:
    drafter = make("pool")
    drafter.draft = lambda batch, limit, depth: [chain([1, 2, 3])]  # type: ignore[method-assign]
    for budget, depth in ((2, 9), (9, 2)):
        with pytest.raises(RuntimeError, match="3 nodes on 3 levels"):
            replay(drafter, [recording([1])], ReplaySettings(budget, depth))


def test_unknown_drafter() -> None:
    with pytest.raises(DraftrecError, match="no drafter 'suffix'"):
        make("suffix")
