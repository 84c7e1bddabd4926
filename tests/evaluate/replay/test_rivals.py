"""The rivals do what is published of them, so that a comparison with them is fair."""

from __future__ import annotations

from collections.abc import Sequence as Seq

import numpy as np
import pytest

from draftrec.core import DraftTree, IntArray, Request, Verdict
from draftrec.engine.text.batch import RunningSequence
from draftrec.evaluate.replay import published_trie
from draftrec.evaluate.replay.ngram_drafter import NgramEngine, most_frequent
from draftrec.evaluate.replay.published_trie import PublishedTrie, SpecialTokens

EOS = 0


def ids(values: Seq[int]) -> IntArray:
    return np.array(values, np.int32)


def drafted(
    engine: NgramEngine | PublishedTrie, prompt: Seq[int], limit: int = 64, depth: int = 24
) -> DraftTree:
    sequence = RunningSequence(0, 0, Request("a", ids(prompt)), 50)
    engine.start(sequence)
    (tree,) = engine.draft([sequence], limit, depth)
    engine.stop(sequence)
    return tree


def paths(tree: DraftTree) -> list[list[int]]:
    """The token path down to every node, in order of nodes."""
    out: list[list[int]] = []
    for token, parent in zip(tree.token_ids.tolist(), tree.parents.tolist(), strict=True):
        out.append([*(out[parent] if parent >= 0 else []), token])
    return out


class TestNgram:
    def engine(self, *texts: Seq[int]) -> NgramEngine:
        engine = NgramEngine()
        engine.add([(ids(text), None) for text in texts])
        return engine

    def test_the_longest_match_wins_over_more_frequent_shorter_ones(self) -> None:
        engine = self.engine([7, 2, 3, 4], [9, 3, 5], [9, 3, 5])
        assert paths(drafted(engine, [8, 2, 3])) == [[4]]
        assert paths(drafted(engine, [8, 8, 3]))[0] == [5]

    def test_matches_longer_than_its_keys_are_told_apart(self) -> None:
        same = [1, 2, 3, 4, 5, 6]
        engine = self.engine([10, *same, 20], [11, *same, 21], [11, *same, 21])
        assert paths(drafted(engine, [10, *same])) == [[20]]

    def test_texts_do_not_run_together(self) -> None:
        engine = self.engine([1, 2], [3, 4])
        assert len(drafted(engine, [1, 2])) == 0
        assert len(drafted(engine, [2, 3, 9])) == 0

    def test_the_running_text_is_a_source(self) -> None:
        tree = drafted(NgramEngine(), [1, 2, 3, 9, 1, 2])
        assert paths(tree) == [[3], [3, 9], [3, 9, 1], [3, 9, 1, 2]]

    def test_budget_goes_to_the_most_frequent(self) -> None:
        rows = ids([[1, 2, 3], [1, 2, 4], [1, 5, -1], [6, -1, -1]])
        assert paths(most_frequent(rows, 3)) == [[1], [1, 2], [6]]
        assert most_frequent(rows, 3).probs.tolist() == [0.75, 0.5, 0.25]
        assert len(most_frequent(rows, 64)) == 6

    def test_storage_grows(self) -> None:
        engine = self.engine(*[list(range(i, i + 100)) for i in range(0, 5000, 100)])
        assert paths(drafted(engine, [4321], depth=2)) == [[4322], [4322, 4323]]
        assert engine.tokens == 5000


class TestTrie:
    def engine(self, *texts: Seq[int], stops: Seq[int] = ()) -> PublishedTrie:
        engine = PublishedTrie(SpecialTokens(bos=99, eos=EOS, stops=frozenset(stops)))
        engine.add([(ids(text), None) for text in texts])
        return engine

    def test_depth_is_twelve_levels_below_the_match(self) -> None:
        text = list(range(1, 40))
        assert paths(drafted(self.engine(text), [1, 2]))[-1] == list(range(3, 15))
        assert paths(drafted(self.engine(text), [50, 1]))[-1] == list(range(2, 14))

    def test_a_short_answer_for_two_tokens_is_replaced_by_that_for_one(self) -> None:
        engine = self.engine([1, 2, 3], [7, 2, 8], [7, 2, 8])
        assert paths(drafted(engine, [1, 2])) == [[8], [3]]

    def test_a_lone_stop_word_is_not_looked_up(self) -> None:
        engine = self.engine([1, 2, 3], stops=[2])
        assert paths(drafted(engine, [1, 2])) == [[3]]
        assert len(drafted(engine, [9, 2])) == 0

    def test_the_end_is_never_drafted(self) -> None:
        assert paths(drafted(self.engine([1, 2, EOS, 3]), [1])) == [[2]]

    def test_a_prompt_counts_more_than_any_text(self) -> None:
        engine = self.engine(*[[1, 2]] * 50)
        assert paths(drafted(engine, [1, 3, 1]))[0] == [3]
        assert paths(drafted(engine, [1])) == [[2]]  # and is forgotten with its sequence
        assert paths(drafted(engine, [99, 5, 99])) == []  # BOS is not stored

    def test_half_of_the_budget_goes_to_outputs_the_rest_by_weight(self) -> None:
        texts = [[1, t] for t in range(10, 20) for _ in range(t)]
        tree = drafted(self.engine(*texts), [1], limit=4)
        assert paths(tree) == [[19], [18], [17], [16]]

    def test_drafts_depth_first(self) -> None:
        engine = self.engine([1, 2, 3], [1, 2, 3], [1, 4])
        assert paths(drafted(engine, [1], limit=2)) == [[2], [2, 3]]

    def test_what_is_written_streams_in_while_the_sequence_runs(self) -> None:
        engine = self.engine()
        sequence = RunningSequence(0, 0, Request("a", ids([50])), 50)
        engine.start(sequence)
        verdict = Verdict(ids([]), ids(range(1, 20)))
        sequence.extend(verdict, frozenset())
        engine.observe([sequence], [verdict])
        assert paths(drafted(engine, [1, 2]))[0] == [3]
        assert paths(drafted(engine, [7, 8])) == []  # its branch is not complete yet
        engine.stop(sequence)
        assert paths(drafted(engine, [1, 2])) == []

    def test_large_trees_are_thinned_out(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(published_trie, "_TOUCHED", 1)
        monkeypatch.setattr(published_trie, "_MOST_NODES", 3)
        engine = self.engine([1, 2, 3], [1, 2, 3], [1, 4, 5])
        assert len(drafted(engine, [1])) == 4
        assert paths(drafted(engine, [1])) == [[2], [2, 3]]
        assert [n.outputs for n in engine.trees[1].children.values()] == [1]
