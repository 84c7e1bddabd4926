"""The retrieval index: what it counts, and the trees it draws from the counts."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from draftrec.core import EMPTY_TREE, DraftTree, IntArray
from draftrec.engine.noise import foreseen
from draftrec.engine.tree import check_tree, depths
from draftrec.pool import ngrams
from draftrec.pool.index import UNSEEN, NgramIndex, TreeBuilder, tail_of_text, warm_up
from draftrec.pool.ngrams import ORDER, START
from draftrec.pool.suffix_states import REACH
from draftrec.pool.suffixes import ClosedIndex
from tests.strategies import token_lists

EOS = 0


def ids(tokens: list[int]) -> IntArray:
    return np.array(tokens, np.int32)


def index_of(*texts: list[int]) -> NgramIndex:
    index = NgramIndex(1)
    for text in texts:
        index.add_text(ids(text))
    return index


def draw(
    index: NgramIndex, context: list[int], limit: int = 32, depth: int = 24, escape: float = 4.0
) -> DraftTree:
    source = (index, tail_of_text(ids(context)), 1.0, 3)
    return TreeBuilder(escape).build([source], limit, depth)


texts_drawn = st.lists(token_lists(5, 1, 25), min_size=1, max_size=5)


def reference(texts: list[list[int]]) -> dict[tuple[int, ...], Counter[int]]:
    """What followed every context of up to ORDER tokens, counted the slow way."""
    follows: dict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
    for text in texts:
        whole = [START, *text]
        for i, token in enumerate(whole):
            for j in range(min(ORDER, i) + 1):
                follows[tuple(whole[i - j : i])][token] += 1
    return follows


def walk(index: NgramIndex, path: tuple[int, ...]) -> int:
    """The context of a path, which must have been seen."""
    context = 0
    for token in path:
        context = int(ngrams.find(index.arrays, context, token))
        assert context != -1
    return context


def followers(index: NgramIndex, context: int) -> dict[int, int]:
    """What followed a context, and how often; checks the list that says so."""
    nodes, text = index.arrays.nodes, index.arrays.text
    place = int(ngrams.place_of(nodes, context))
    if place < -1:
        token = int(ngrams.next_token(text, place))
        return {} if token == ngrams.BREAK else {token: 1}
    found: dict[int, int] = {}
    child, before = place, -1
    while child >= 0:
        assert nodes[child, ngrams.BEFORE] == before
        assert nodes[child, ngrams.PARENT] == context
        found[int(nodes[child, ngrams.TOKEN])] = int(nodes[child, ngrams.COUNT])
        child, before = int(nodes[child, ngrams.AFTER]), child
    return found


@pytest.mark.slow
@given(texts_drawn)
def test_counts_are_those_of_a_dictionary(texts: list[list[int]]) -> None:
    index = index_of(*texts)
    for context, expected in reference(texts).items():
        node = walk(index, context)
        said = ngrams.said(index.arrays.nodes, index.arrays.text, node)
        assert said == (sum(expected.values()), len(expected))
        assert followers(index, node) == expected
    assert index.texts == len(texts)
    assert index.tokens == sum(len(t) + 1 for t in texts)


def test_what_occurred_once_has_no_nodes_below_it() -> None:
    index = index_of(list(range(100, 200)))
    assert int(index.arrays.size[0]) == 1 + 101, "a root, and a node per token"
    longest = tuple(range(110, 110 + ORDER))
    assert followers(index, walk(index, longest)) == {110 + ORDER: 1}
    index.add_text(ids(list(longest)))
    assert followers(index, walk(index, longest)) == {110 + ORDER: 1}
    index.add_text(ids([*longest, 7]))
    assert followers(index, walk(index, longest)) == {110 + ORDER: 1, 7: 1}


def test_unseen_contexts_are_not_found() -> None:
    index = index_of([1, 2, 3])
    assert ngrams.find(index.arrays, 0, 9) == -1
    assert ngrams.find(index.arrays, walk(index, (1, 2)), 1) == -1


@pytest.mark.slow
@given(token_lists(5, 1, 30), st.data())
def test_text_grown_piece_by_piece_counts_like_text_at_once(
    text: list[int], data: st.DataObject
) -> None:
    pieces = NgramIndex(1)
    pieces.begin()
    left = [START, *text]
    while left:
        cut = data.draw(st.integers(1, len(left)))
        pieces.extend(ids(left[:cut]))
        left = left[cut:]
    whole = index_of(text)
    used = int(whole.arrays.size[0])
    assert int(pieces.arrays.size[0]) == used
    for context, expected in reference([text]).items():
        assert followers(pieces, walk(pieces, context)) == expected


@pytest.mark.slow
def test_growing_across_reallocations_loses_nothing() -> None:
    random = np.random.default_rng(0)
    texts = [random.integers(0, 300, 60).tolist() for _ in range(40)]
    index = index_of(*texts)
    sizes = len(index.arrays.nodes)
    assert sizes > 40 * 60
    for context, expected in reference(texts).items():
        assert followers(index, walk(index, context)) == expected
    assert index.nbytes == sum(a.nbytes for a in index.arrays)


@pytest.mark.slow
@given(texts_drawn, token_lists(5, 0, 12), st.integers(0, 40), st.integers(0, 10))
def test_trees_are_valid_and_within_their_limits(
    texts: list[list[int]], context: list[int], limit: int, depth: int
) -> None:
    tree = draw(index_of(*texts), context, limit, depth)
    check_tree(tree)
    assert len(tree) <= limit
    if not len(tree):
        return
    assert depths(tree).max() < depth
    assert (tree.token_ids >= 0).all(), "the mark of a beginning is not a token"
    assert ((tree.probs > 0) & (tree.probs <= 1 + 1e-6)).all()
    below = tree.parents >= 0
    assert (tree.probs[below] <= tree.probs[tree.parents[below]] + 1e-6).all()
    for parent in {-1, *tree.parents.tolist()}:
        siblings = tree.probs[tree.parents == parent].sum()
        assert siblings <= (tree.probs[parent] if parent >= 0 else 1.0) + 1e-5
    assert (np.diff(tree.probs) <= 1e-6).all(), "nodes come best first"
    assert set(tree.sources.tolist()) == {3}


@settings(max_examples=30)
@given(st.integers(0, 1000), st.integers(2, 20))
def test_a_text_seen_before_is_drafted_back_whole(seed: int, length: int) -> None:
    """From its beginning to its EOS, one step per draft of full depth."""
    text = [*np.random.default_rng(seed).integers(1, 500, length).tolist(), EOS]
    others = [np.random.default_rng(seed + i).integers(500, 900, 20).tolist() for i in range(1, 4)]
    index = index_of(*others, text)
    written: list[int] = text[:2]
    while written != text:
        tree = draw(index, written, limit=24)
        path = follow(tree, text[len(written) :])
        assert path, f"nothing drafted after {written}"
        written += path


def follow(tree: DraftTree, truth: list[int]) -> list[int]:
    """The longest beginning of `truth` that is a path of the tree."""
    node, found = -1, []
    for token in truth:
        below = np.flatnonzero((tree.parents == node) & (tree.token_ids == token))
        if not len(below):
            break
        node = int(below[0])
        found.append(token)
    return found


def test_beginnings_are_drafted_from_beginnings() -> None:
    index = index_of([7, 8, 9], [7, 8, 5], [1, 7, 2])
    tree = draw(index, [])
    assert tree.token_ids[0] == 7
    assert follow(tree, [7, 8]) == [7, 8]
    first = tree.token_ids[tree.parents == -1].tolist()
    assert tree.token_ids[0] == 7
    assert 8 not in first[:2], "no text began with it"


def test_eos_is_drafted_like_any_token() -> None:
    tree = draw(index_of([4, 5, 6, EOS]), [4, 5])
    assert follow(tree, [6, EOS]) == [6, EOS]
    assert tree.token_ids[0] == 6


def test_frequent_continuations_come_first() -> None:
    texts = [[1, 2, 3]] * 5 + [[1, 2, 4]] * 2 + [[1, 2, 5]]
    tree = draw(index_of(*texts), [1, 2], limit=3, depth=1)
    assert tree.token_ids.tolist() == [3, 4, 5]
    assert tree.probs[0] > 2 * tree.probs[1] > 2 * tree.probs[2]


def test_the_longest_context_speaks_loudest() -> None:
    """After 2 mostly comes 9, after 1 2 always 3."""
    texts = [[8, 2, 9]] * 4 + [[1, 2, 3]] * 3
    assert draw(index_of(*texts), [1, 2], limit=1, escape=0.5).token_ids.tolist() == [3]
    assert draw(index_of(*texts), [5, 2], limit=1, escape=0.5).token_ids.tolist() == [9]


def test_sources_are_merged_and_named_by_who_said_most() -> None:
    own, pool = index_of([1, 2, 3]), index_of([1, 2, 3], [1, 2, 4], [1, 2, 4])
    tail = tail_of_text(ids([1, 2]))
    sources = [(own, tail, 10.0, 0), (pool, tail, 1.0, 3)]
    tree = TreeBuilder().build(sources, 8, 1)
    check_tree(tree)
    by_token = dict(zip(tree.token_ids.tolist(), tree.sources.tolist(), strict=True))
    assert by_token == {3: 0, 4: 3, 1: 0, 2: 0}
    assert tree.token_ids[0] == 3
    swapped = TreeBuilder().build([(own, tail, 0.1, 0), (pool, tail, 1.0, 3)], 8, 1)
    assert swapped.token_ids[0] == 4


def test_a_sampled_text_is_drafted_as_it_will_be_drawn() -> None:
    """Children are weighted by their own place's variables, and not where nothing is drawn."""
    texts = [[1, t, u] for t in range(2, 12) for u in (20, 21, 22)]
    tail = tail_of_text(ids([1]))
    builder, source = TreeBuilder(least_prob=0.0), (index_of(*texts), tail, 1.0, 3)
    plain, first, later = builder.build_many([[source]] * 3, 32, 1, [None, (77, 4), (77, 5)])
    assert plain.probs.tolist() == builder.build([source], 32, 1).probs.tolist()
    likely = dict(zip(plain.token_ids.tolist(), plain.probs.tolist(), strict=True))
    tokens = np.array(list(likely))
    for tree, position in ((first, 4), (later, 5)):
        check_tree(tree)
        probs = np.array(list(likely.values()), np.float64)
        seen = foreseen(probs, tokens, UNSEEN * (1 - probs.sum()), 77, position)
        wanted = dict(zip(tokens.tolist(), seen.tolist(), strict=True))
        shares = np.array([wanted[t] for t in tree.token_ids.tolist()])
        np.testing.assert_allclose(shares / shares.sum(), tree.probs / tree.probs.sum(), 1e-4)
        assert tree.token_ids.tolist() != plain.token_ids.tolist()
    deep = builder.build_many([[source]], 40, 2, [(77, 4)])[0]
    start = int(np.flatnonzero(deep.parents == -1)[0])
    below = deep.token_ids[deep.parents == start].tolist()
    after = tail_of_text(ids([1, int(deep.token_ids[start])]))
    alone = builder.build_many([[(source[0], after, 1.0, 3)]], 40, 1, [(77, 5)])[0]
    assert below[:3] == alone.token_ids.tolist()[:3]


def test_unlikely_paths_are_not_proposed() -> None:
    texts = [[1, 2, 3]] * 20 + [[1, 2, t] for t in range(4, 12)]
    source = (index_of(*texts), tail_of_text(ids([1, 2])), 1.0, 0)
    tree = TreeBuilder(least_prob=0.05).build([source], 50, 5)
    assert (tree.probs >= 0.05).all()
    assert len(tree) < len(TreeBuilder(least_prob=0.0).build([source], 50, 5))


def test_nothing_is_drafted_from_nothing() -> None:
    builder = TreeBuilder()
    tail = tail_of_text(ids([1]))
    assert builder.build([], 8, 8) is EMPTY_TREE
    assert len(builder.build([(NgramIndex(), tail, 1.0, 0)], 8, 8)) == 0
    assert builder.build_many([], 8, 8) == []


def test_an_unknown_context_goes_on_with_what_is_frequent() -> None:
    texts = [[1, 2], [1, 3], [1, 4, 1, 4]]
    closed = ClosedIndex.build([ids(t) for t in texts])
    for index in (index_of(*texts), closed):
        source = (index, tail_of_text(ids([5, 6])), 1.0, 3)
        tree = TreeBuilder(escape=1.0).build([source], 4, 1)
        assert tree.token_ids.tolist()[:2] == [1, 4]
        assert tree.probs[0] == 2 * tree.probs[1]
        assert tree.probs.sum() < 0.7, "half and more is left to tokens that nobody has seen"


def test_tails_are_the_last_tokens_or_the_whole_beginning() -> None:
    assert tail_of_text(ids([])).tolist() == [START]
    assert tail_of_text(ids([4, 5])).tolist() == [START, 4, 5]
    long = list(range(2 * REACH))
    tail = tail_of_text(ids(long)[::1])
    assert tail.tolist() == long[-REACH:]
    assert tail.flags.c_contiguous


def test_warming_up_compiles_and_changes_nothing() -> None:
    warm_up()
    assert draw(index_of([1, 2, 3]), [1, 2]).token_ids[0] == 3


_CREDITED = """
import numpy as np
from draftrec.pool import suffixes
from draftrec.pool.index import warm_up
from draftrec.pool.store import Pool

warm_up()
before = suffixes.locate.signatures
text = np.arange(32, dtype=np.int32)
pool = Pool("tokenizer")
pool.add([(text, None)] * 20)
pool.credit(None, text, 2, [(1, 3), (2, 7)])
assert before, "what a finished text counts is compiled with the rest"
assert suffixes.locate.signatures == before
"""


def test_what_a_finished_text_counts_is_compiled_before_texts_are_timed() -> None:
    """In a process of its own: another test may have compiled it."""
    subprocess.run([sys.executable, "-c", _CREDITED], check=True)
