"""The closed index: its order, its counts, its drafts against slow references; its file."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from draftrec.core import DraftTree, IntArray
from draftrec.engine.tree import check_tree
from draftrec.errors import DraftrecError
from draftrec.pool import suffixes as contexts
from draftrec.pool import views
from draftrec.pool.index import NgramIndex, TreeBuilder, tail_of_text
from draftrec.pool.ngrams import ORDER, START
from draftrec.pool.suffix_states import (
    BLOCK,
    FIRST,
    FOLLOWS,
    HIGH,
    KINDS,
    LEAST,
    LENGTH,
    LOW,
    MANY,
    PARENT,
    REACH,
)
from draftrec.pool.suffixes import ClosedIndex
from tests.strategies import token_lists

texts_drawn = st.lists(token_lists(4, 1, 40), min_size=1, max_size=12)


def ids(tokens: list[int]) -> IntArray:
    return np.array(tokens, np.int32)


def build(texts: list[list[int]]) -> ClosedIndex:
    return ClosedIndex.build([ids(t) for t in texts])


def backwards(texts: list[list[int]]) -> list[tuple[tuple[int, ...], int | None]]:
    """The context of every place (last token first, START last) and what follows it, sorted."""
    found: list[tuple[tuple[int, ...], int | None]] = []
    for text in texts:
        whole = [START, *text]
        for i in range(len(whole)):
            after = whole[i + 1] if i + 1 < len(whole) else None
            found.append((tuple(whole[i::-1])[:REACH], after))
    return sorted(found, key=lambda f: f[0])


def agree(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    n = 0
    while n < min(len(a), len(b)) and a[n] == b[n]:
        n += 1
    return n


def values(index: ClosedIndex, place: int) -> tuple[int, ...]:
    found: list[int] = []
    while len(found) < REACH:
        dense = int(index.tokens[place])
        found.append(START if dense == 0 else int(index.vocabulary[dense - 1]))
        if dense == 0:
            break
        place -= 1
    return tuple(found)


@settings(deadline=None)
@given(texts_drawn)
def test_places_are_sorted_by_what_stands_before_them(texts: list[list[int]]) -> None:
    index = build(texts)
    expected = backwards(texts)
    found = [values(index, int(place)) for place in index.order]
    assert found == [context for context, _ in expected]
    assert sorted(index.order.tolist()) == list(range(len(index.tokens)))
    for i in range(1, len(found)):
        assert index.shared[i] == agree(found[i - 1], found[i])
    for i, (token, onward) in enumerate(index.follows.tolist()):
        if onward < 0:
            assert token == -1
        else:
            assert index.order[onward] == index.order[i] + 1
            assert values(index, int(index.order[onward]))[0] == token
    assert [t.tolist() for t in index.texts_in_order()] == texts
    assert index.texts == len(texts)


# Few tokens and long texts, so that frequent contexts get states, some inside others.
many_texts = st.lists(token_lists(2, 1, 120), min_size=1, max_size=12)


@settings(deadline=None, max_examples=60)
@given(many_texts)
def test_states_count_what_follows_frequent_contexts(texts: list[list[int]]) -> None:
    index = build(texts)
    contexts_ = [values(index, int(place)) for place in index.order]
    for s, state in enumerate(index.states.tolist()):
        low, high, length = state[LOW], state[HIGH], state[LENGTH]
        assert high - low >= LEAST
        prefix = contexts_[low][:length]
        inside = [i for i, c in enumerate(contexts_) if c[:length] == prefix]
        assert inside == list(range(low, high))
        after = Counter(t for t, onward in index.follows[low:high].tolist() if onward >= 0)
        assert (state[FOLLOWS], state[KINDS]) == (sum(after.values()), len(after))
        rows = index.children[state[FIRST] : state[FIRST] + state[MANY]].tolist()
        assert [c for _, c, _ in rows] == sorted((c for _, c, _ in rows), reverse=True)
        for token, count, rank in rows:
            assert after[token] == count
            assert contexts_[rank][: min(length + 1, REACH)] == (token, *prefix)[:REACH]
        parent = state[PARENT]
        if parent >= 0:
            outer = index.states[parent]
            assert outer[LOW] <= low < high <= outer[HIGH]
            assert outer[LENGTH] < length
            assert parent > s


@pytest.mark.slow
@settings(deadline=None, max_examples=60)
@given(many_texts)
def test_the_innermost_state_is_found_from_every_rank(texts: list[list[int]]) -> None:
    index = build(texts)
    for rank in range(len(index.tokens)):
        around = [
            s for s, state in enumerate(index.states.tolist()) if state[LOW] <= rank < state[HIGH]
        ]
        innermost = min(
            around, key=lambda s: index.states[s, HIGH] - index.states[s, LOW], default=-1
        )
        assert contexts.innermost(index.handle[None], 0, rank) == innermost
        assert index.blocks[rank // BLOCK] in (-1, *range(len(index.states)))


@pytest.mark.slow
@settings(deadline=None)
@given(texts_drawn, token_lists(4, 0, 30))
def test_search_finds_the_longest_context(texts: list[list[int]], context: list[int]) -> None:
    index = build(texts)
    arrays = views.Sorted(*(getattr(index, name) for name in views.Sorted._fields))
    wanted = tuple(reversed([START, *context]))[:REACH]
    rank, length = contexts.search(arrays, tail_of_text(ids(context)), np.empty(REACH, np.int32))
    best = max(agree(wanted, known) for known, _ in backwards(texts))
    assert length == best
    if length:
        assert agree(wanted, values(index, int(index.order[rank]))) == length


@pytest.mark.slow
@settings(deadline=None)
@given(texts_drawn, token_lists(4, 1, 30))
def test_a_text_is_located_in_the_text_that_agrees_longest(
    texts: list[list[int]], written: list[int]
) -> None:
    index = build(texts)
    ends = np.arange(1, len(written) + 1)
    places, lengths = index.locate(ids(written), ends)
    for end, place, length, owner in zip(
        ends.tolist(), places, lengths, index.owners(places), strict=True
    ):
        wanted = tuple(reversed([START, *written[:end]]))[:REACH]
        assert length == max(agree(wanted, known) for known, _ in backwards(texts))
        if length:
            context = values(index, int(place))
            assert agree(wanted, context) == length
            core = [t for t in reversed(context[:length]) if t != START]
            text = texts[owner]
            assert any(text[i : i + len(core)] == core for i in range(len(text) + 1))


def naive_first_level(texts: list[list[int]], context: list[int]) -> dict[int, float]:
    """Next-token estimates as the blend defines them, from counts of all orders from REACH to 0."""
    whole = [START, *context]
    probs: dict[int, float] = {}
    residual = 1.0
    for order in range(min(REACH, len(whole)), -1, -1):
        tail = tuple(reversed(whole))[:order]
        after = Counter(
            t for known, t in backwards(texts) if known[:order] == tail and t is not None
        )
        total, kinds = sum(after.values()), len(after)
        if not total:
            continue
        escape = 20.0 if order > ORDER else 6.0 if order == 1 else 3.0
        rest = escape * kinds / (total + escape * kinds)
        for token, count in after.items():
            probs[token] = probs.get(token, 0.0) + residual * (1.0 - rest) * count / total
        residual *= rest
    return probs


@settings(deadline=None)
@given(st.lists(token_lists(6, 1, 20), min_size=1, max_size=2), st.data())
def test_estimates_are_those_of_all_orders(texts: list[list[int]], data: st.DataObject) -> None:
    """Few occurrences: all neighbours are read, so the blend is exact but for one hundredth."""
    text = data.draw(st.sampled_from(texts))
    context = text[: data.draw(st.integers(0, len(text)))]
    tail = tail_of_text(ids(context))
    tree = TreeBuilder(3.0, 20.0, 0.0).build([(build(texts), tail, 1.0, 3)], 32, 1)
    expected = naive_first_level(texts, context)
    found = dict(zip(tree.token_ids.tolist(), tree.probs.tolist(), strict=True))
    assert sum(found.values()) <= 1.0 + 1e-6
    for token, prob in expected.items():
        assert found.get(token, 0.0) == pytest.approx(prob, abs=0.0101)


def draw(index: ClosedIndex | NgramIndex, context: list[int], limit: int = 32) -> DraftTree:
    return TreeBuilder().build([(index, tail_of_text(ids(context)), 1.0, 3)], limit, 24)


@settings(deadline=None)
@given(many_texts, token_lists(2, 0, 20), st.integers(1, 64))
def test_drafts_are_trees_of_what_the_texts_hold(
    texts: list[list[int]], context: list[int], limit: int
) -> None:
    tree = draw(build(texts), context, limit)
    check_tree(tree)
    assert len(tree) <= limit
    assert (np.diff(tree.probs) <= 1e-6).all()
    assert set(tree.token_ids.tolist()) <= {token for text in texts for token in text}


def test_a_known_text_is_drafted_to_its_end() -> None:
    texts = [list(range(10, 40)), list(range(50, 80))]
    tree = TreeBuilder(escape=1.0).build(
        [(build(texts), tail_of_text(ids(texts[0][:3])), 1.0, 3)], 24, 24
    )
    assert tree.token_ids.tolist() == texts[0][3:27]
    assert tree.parents.tolist() == list(range(-1, 23))
    assert draw(build(texts), [], 2).token_ids.tolist() in ([10, 50], [50, 10])


@settings(deadline=None, max_examples=40)
@given(st.lists(token_lists(5, 1, 25), min_size=1, max_size=5), token_lists(5, 0, 12))
def test_closed_and_open_indexes_agree_on_short_contexts(
    texts: list[list[int]], context: list[int]
) -> None:
    """Up to `ORDER` tokens of context both know the same, so they estimate the same."""
    context = context[: ORDER - 2]
    trie = NgramIndex()
    for text in texts:
        trie.add_text(ids(text))
    closed, tail = build(texts), tail_of_text(ids(context))
    builder = TreeBuilder(least_prob=0.0)
    found = [
        dict(zip(t.token_ids.tolist(), t.probs.tolist(), strict=True))
        for t in (builder.build([(i, tail, 1.0, 3)], 32, 1) for i in (trie, closed))
    ]
    total = sum(len(t) + 1 for t in texts)
    if total <= 24:  # the closed index reads every neighbour then
        assert found[0] == pytest.approx(found[1], abs=0.0101)
    assert set(found[0]) == set(found[1]) or total > 24


def test_large_tokens_and_rare_vocabularies_are_kept() -> None:
    texts = [[2**31 - 1, 7, 2**30], [7, 7]]
    index = build(texts)
    assert [t.tolist() for t in index.texts_in_order()] == texts
    assert draw(index, [2**31 - 1]).token_ids.tolist()[0] == 7


def test_more_tokens_than_an_index_can_number_are_refused() -> None:
    class Long:
        def __len__(self) -> int:
            return 2**30

    texts: list[Any] = [Long(), Long()]
    with pytest.raises(DraftrecError, match=r"2 texts have 2,147,483,648 tokens.*--levels group"):
        ClosedIndex.build(texts)


def test_an_empty_index_drafts_nothing() -> None:
    index = ClosedIndex.build([])
    assert len(draw(index, [1, 2])) == 0
    assert (index.texts, index.tokens.tolist()) == (0, [])


@settings(deadline=None, max_examples=20)
@given(texts=many_texts)
def test_a_file_holds_the_same_index(
    tmp_path_factory: pytest.TempPathFactory, texts: list[list[int]]
) -> None:
    path = tmp_path_factory.mktemp("closed") / "index.safetensors"
    index = build(texts)
    index.save(path)
    opened = ClosedIndex.open(path)
    for name, array in index.arrays().items():
        assert np.array_equal(getattr(opened, name), array)
        assert not getattr(opened, name).flags.writeable
    context = texts[0][:2]
    a, b = draw(index, context), draw(opened, context)
    assert a.token_ids.tolist() == b.token_ids.tolist()
    assert a.probs.tolist() == b.probs.tolist()


@pytest.mark.parametrize("damage", ["cut", "empty", "other", "gone"])
def test_a_damaged_file_is_refused(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "index.safetensors"
    build([[1, 2, 3]] * 30).save(path)
    content = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes({"cut": content[:-9], "empty": b"", "other": b"\xff" * 64}[damage])
    with pytest.raises(DraftrecError, match="damaged") as error:
        ClosedIndex.open(path)
    assert path.name in str(error.value)


@pytest.mark.slow
def test_processes_that_open_a_file_share_its_memory(tmp_path: Path) -> None:
    """A page that two processes have mapped counts as shared; copies would be private."""
    smaps = Path("/proc/self/smaps")
    if not smaps.exists():
        pytest.skip("needs /proc")
    path = tmp_path / "index.safetensors"
    rng = np.random.default_rng(0)
    ClosedIndex.build([rng.integers(0, 5000, 100_000).astype(np.int32)]).save(path)
    script = (
        "import sys, pathlib; from draftrec.pool.suffixes import ClosedIndex\n"
        "index = ClosedIndex.open(pathlib.Path(sys.argv[1]))\n"
        "total = sum(int(a.sum()) for a in index.arrays().values())\n"
        "part = pathlib.Path('/proc/self/smaps').read_text().split(sys.argv[1])[1]\n"
        "facts = dict(l.split(':') for l in part.splitlines()[1:20] if ':' in l)\n"
        "private = [facts[f'Private_{kind}'].split()[0] for kind in ('Clean', 'Dirty')]\n"
        "print(facts['Rss'].split()[0], sum(map(int, private)))\n"
    )
    opened = ClosedIndex.open(path)
    assert sum(int(a.sum()) for a in opened.arrays().values()) > 0
    out = subprocess.run(
        [sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True
    )
    resident, private = map(int, out.stdout.split())
    assert resident * 1024 >= 0.9 * path.stat().st_size
    assert private == 0
