"""The rivals do what is published of them, so that a comparison with them is fair."""

from __future__ import annotations

from collections.abc import Sequence as Seq

import numpy as np
import pytest
from rivals import published_trie
from rivals.ngram import NgramDrafter, most_frequent
from rivals.published_trie import PublishedTrie, SpecialTokens

from draftrec.core import DraftTree, IntArray, Request, Verdict
from draftrec.engine.text.batch import RunningSequence

EOS = 0


def ids(values: Seq[int]) -> IntArray:
    return np.array(values, np.int32)


def drafted(
    drafter: NgramDrafter | PublishedTrie, prompt: Seq[int], limit: int = 64, depth: int = 24
) -> DraftTree:
    sequence = RunningSequence(0, 0, Request("a", ids(prompt)), 50)
    drafter.start(sequence)
    (tree,) = drafter.draft([sequence], limit, depth)
    drafter.stop(sequence)
    return tree


def paths(tree: DraftTree) -> list[list[int]]:
    """The token path down to every node, in order of nodes."""
    out: list[list[int]] = []
    for token, parent in zip(tree.token_ids.tolist(), tree.parents.tolist(), strict=True):
        out.append([*(out[parent] if parent >= 0 else []), token])
    return out


class TestNgram:
    def drafter(self, *texts: Seq[int]) -> NgramDrafter:
        drafter = NgramDrafter()
        drafter.add([(ids(text), None) for text in texts])
        return drafter

    def test_the_longest_match_wins_over_more_frequent_shorter_ones(self) -> None:
        drafter = self.drafter([7, 2, 3, 4], [9, 3, 5], [9, 3, 5])
        assert paths(drafted(drafter, [8, 2, 3])) == [[4]]
        assert paths(drafted(drafter, [8, 8, 3]))[0] == [5]

    def test_matches_longer_than_its_keys_are_told_apart(self) -> None:
        same = [1, 2, 3, 4, 5, 6]
        drafter = self.drafter([10, *same, 20], [11, *same, 21], [11, *same, 21])
        assert paths(drafted(drafter, [10, *same])) == [[20]]

    def test_texts_do_not_run_together(self) -> None:
        drafter = self.drafter([1, 2], [3, 4])
        assert len(drafted(drafter, [1, 2])) == 0
        assert len(drafted(drafter, [2, 3, 9])) == 0

    def test_the_running_text_is_a_source(self) -> None:
        tree = drafted(NgramDrafter(), [1, 2, 3, 9, 1, 2])
        assert paths(tree) == [[3], [3, 9], [3, 9, 1], [3, 9, 1, 2]]

    def test_budget_goes_to_the_most_frequent(self) -> None:
        rows = ids([[1, 2, 3], [1, 2, 4], [1, 5, -1], [6, -1, -1]])
        assert paths(most_frequent(rows, 3)) == [[1], [1, 2], [6]]
        assert most_frequent(rows, 3).probs.tolist() == [0.75, 0.5, 0.25]
        assert len(most_frequent(rows, 64)) == 6

    def test_storage_grows(self) -> None:
        drafter = self.drafter(*[list(range(i, i + 100)) for i in range(0, 5000, 100)])
        assert paths(drafted(drafter, [4321], depth=2)) == [[4322], [4322, 4323]]
        assert drafter.tokens == 5000


class TestTrie:
    def drafter(self, *texts: Seq[int], stops: Seq[int] = ()) -> PublishedTrie:
        drafter = PublishedTrie(SpecialTokens(bos=99, eos=EOS, stops=frozenset(stops)))
        drafter.add([(ids(text), None) for text in texts])
        return drafter

    def test_depth_is_twelve_levels_below_the_match(self) -> None:
        text = list(range(1, 40))
        assert paths(drafted(self.drafter(text), [1, 2]))[-1] == list(range(3, 15))
        assert paths(drafted(self.drafter(text), [50, 1]))[-1] == list(range(2, 14))

    def test_a_short_answer_for_two_tokens_is_replaced_by_that_for_one(self) -> None:
        drafter = self.drafter([1, 2, 3], [7, 2, 8], [7, 2, 8])
        assert paths(drafted(drafter, [1, 2])) == [[8], [3]]

    def test_a_lone_stop_word_is_not_looked_up(self) -> None:
        drafter = self.drafter([1, 2, 3], stops=[2])
        assert paths(drafted(drafter, [1, 2])) == [[3]]
        assert len(drafted(drafter, [9, 2])) == 0

    def test_the_end_is_never_drafted(self) -> None:
        assert paths(drafted(self.drafter([1, 2, EOS, 3]), [1])) == [[2]]

    def test_a_prompt_counts_more_than_any_text(self) -> None:
        drafter = self.drafter(*[[1, 2]] * 50)
        assert paths(drafted(drafter, [1, 3, 1]))[0] == [3]
        assert paths(drafted(drafter, [1])) == [[2]]  # and is forgotten with its sequence
        assert paths(drafted(drafter, [99, 5, 99])) == []  # BOS is not stored

    def test_half_of_the_budget_goes_to_outputs_the_rest_by_weight(self) -> None:
        texts = [[1, t] for t in range(10, 20) for _ in range(t)]
        tree = drafted(self.drafter(*texts), [1], limit=4)
        assert paths(tree) == [[19], [18], [17], [16]]

    def test_drafts_depth_first(self) -> None:
        drafter = self.drafter([1, 2, 3], [1, 2, 3], [1, 4])
        assert paths(drafted(drafter, [1], limit=2)) == [[2], [2, 3]]

    def test_what_is_written_streams_in_while_the_sequence_runs(self) -> None:
        drafter = self.drafter()
        sequence = RunningSequence(0, 0, Request("a", ids([50])), 50)
        drafter.start(sequence)
        verdict = Verdict(ids([]), ids(range(1, 20)))
        sequence.extend(verdict, frozenset())
        drafter.observe([sequence], [verdict])
        assert paths(drafted(drafter, [1, 2]))[0] == [3]
        assert paths(drafted(drafter, [7, 8])) == []  # its branch is not complete yet
        drafter.stop(sequence)
        assert paths(drafted(drafter, [1, 2])) == []

    def test_large_trees_are_thinned_out(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(published_trie, "_TOUCHED", 1)
        monkeypatch.setattr(published_trie, "_MOST_NODES", 3)
        drafter = self.drafter([1, 2, 3], [1, 2, 3], [1, 4, 5])
        assert len(drafted(drafter, [1])) == 4
        assert paths(drafted(drafter, [1])) == [[2], [2, 3]]
        assert [n.outputs for n in drafter.trees[1].children.values()] == [1]
