"""The target scores trees exactly as plain forward passes over every path would."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from draftrec.core import EMPTY_TREE
from draftrec.engine import packing
from draftrec.engine.packing import Segment
from draftrec.engine.passes import attention
from draftrec.engine.passes.eager import PackedRunner, PaddedRunner, bucket
from draftrec.engine.target import Target
from draftrec.engine.tree import chain, make_tree
from tests.models import zoo
from tests.strategies import paths, token_lists, trees

SLOTS, CAPACITY = 5, 128


@dataclass
class Text:
    """A sequence as the scheduler sees it: tokens known, rows computed."""

    slot: int
    tokens: list[int] = field(default_factory=list)
    computed: int = 0


def fresh(name: str) -> Target:
    """The target with a slab full of rubbish: what an earlier sequence left must not be seen."""
    target = zoo.target(name)
    target.reserve(SLOTS, CAPACITY)
    assert target.slab is not None
    generator = torch.Generator().manual_seed(0)
    for rows in target.slab.memory:
        rows.normal_(generator=generator)
    return target


def one_round(target: Target, name: str, texts: list[Text], data: st.DataObject) -> None:
    """Score a drawn part of the texts with drawn trees, compare, keep drawn paths."""
    segments = [_segment(text, data) for text in texts]
    found = target.score(segments)
    assert found.segments == [i for i, s in enumerate(segments) if s.scored]
    row = 0
    scored: list[Segment] = []
    kept: list[np.ndarray] = []
    for text, segment in zip(texts, segments, strict=True):
        text.computed += len(segment.pending)
        if not segment.scored:
            continue
        expected = zoo.plain_rows(zoo.plain(name), text.tokens, segment.tree)
        rows = found.logits[row : row + len(expected)]
        torch.testing.assert_close(rows, expected, rtol=0, atol=1e-4)
        row += len(expected)
        path = data.draw(paths(segment.tree))
        scored.append(segment)
        kept.append(path)
        bonus = data.draw(st.integers(0, zoo.VOCABULARY - 1))
        text.tokens += [*segment.tree.token_ids[path].tolist(), bonus]
        text.computed += len(path)
    assert row == len(found.logits)
    target.commit(scored, kept)


def _segment(text: Text, data: st.DataObject) -> Segment:
    pending = np.array(text.tokens[text.computed :], np.int32)
    if len(pending) > 1 and data.draw(st.booleans()):
        cut = data.draw(st.integers(1, len(pending) - 1))
        return Segment(text.slot, text.computed, pending[:cut], EMPTY_TREE, scored=False)
    return Segment(text.slot, text.computed, pending, data.draw(trees(zoo.VOCABULARY, 8)))


@pytest.mark.slow
@pytest.mark.parametrize("name", zoo.NAMES)
@settings(max_examples=8)
@given(data=st.data())
def test_tree_scores_equal_plain_passes(name: str, data: st.DataObject) -> None:
    """Ragged batches of trees, on top of committed paths, prompts in pieces, windows exceeded."""
    target = fresh(name)
    slots = data.draw(st.lists(st.integers(0, SLOTS - 1), min_size=1, max_size=4, unique=True))
    texts = [Text(slot, data.draw(token_lists(zoo.VOCABULARY, 1, 30))) for slot in slots]
    launch = data.draw(st.sampled_from([0, 2_000, 1 << 40]))
    with pytest.MonkeyPatch.context() as patch:
        # Separate blocks, as measured, or one padded block: all must say the same.
        patch.setitem(attention._LAUNCH_COST, "cpu", launch)
        # Nor may keys that no row sees matter.
        patch.setitem(packing.KEYS, "cpu", data.draw(st.sampled_from([1, 64])))
        for _ in range(3):
            taking_part = [t for t in texts if data.draw(st.booleans())] or texts[:1]
            one_round(target, name, taking_part, data)


def check_windows(target: Target, name: str) -> None:
    """A long context and a deep path behind its siblings: rows of a tree sit at later columns than
    positions, so a window counted in columns would reach too far back."""
    tokens = np.random.default_rng(1).integers(3, zoo.VOCABULARY, 60).astype(np.int32)
    tree = make_tree([*range(40, 48), *range(3, 17)], [-1] * 8 + [-1, *range(8, 21)])
    target.score([Segment(2, 0, tokens[:50], EMPTY_TREE, scored=False)])
    found = target.score([Segment(2, 50, tokens[50:], tree)]).logits
    expected = zoo.plain_rows(zoo.plain(name), tokens.tolist(), tree)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    assert expected.std() > 0.1, "logits this flat would hide differences"


@pytest.mark.parametrize("name", zoo.NAMES)
def test_every_layer_forgets_what_lies_outside_its_window(name: str) -> None:
    check_windows(fresh(name), name)


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma3", "gpt2"])
def test_the_fallback_serves_the_same_models(name: str) -> None:
    """Windows too, though today's models without an attention backend have none."""
    model: Any = zoo.build(name)
    model._supports_attention_backend = False
    target = Target(model)
    assert isinstance(target.runner, PaddedRunner)
    target.reserve(SLOTS, CAPACITY)
    check_windows(target, name)


@pytest.mark.parametrize("name", zoo.NAMES)
def test_each_architecture_takes_the_way_it_is_meant_to(name: str) -> None:
    runner = zoo.target(name).runner
    assert isinstance(runner, PaddedRunner if name in zoo.FALLBACK else PackedRunner)


def test_window_matters_in_these_models() -> None:
    """Guard of the tests above: with the window off, the reference itself says something else."""
    tokens = np.random.default_rng(1).integers(3, zoo.VOCABULARY, 60).tolist()
    for name in ("mistral", "gemma2", "gemma3", "gpt_oss"):
        wide = zoo.build(name, sliding_window=CAPACITY)
        near = zoo.plain_rows(zoo.plain(name), tokens, EMPTY_TREE)
        assert (near - zoo.plain_rows(wide, tokens, EMPTY_TREE)).abs().max() > 1e-2, name


def test_bfloat16_row_does_not_depend_on_how_many_rows_run() -> None:
    """One row alone takes another kernel: the runner adds a second, so rounding stays the same."""
    target = Target(zoo.build("llama").bfloat16())
    target.reserve(1, 64)
    prompt = np.arange(3, 23, dtype=np.int32)
    target.score([Segment(0, 0, prompt[:-1], EMPTY_TREE, scored=False)])
    alone = target.score([Segment(0, 19, prompt[-1:], EMPTY_TREE)]).logits
    drafted = target.score([Segment(0, 19, prompt[-1:], chain([5, 6, 7]))]).logits
    assert alone.shape == (1, zoo.VOCABULARY)
    torch.testing.assert_close(alone[0], drafted[0], rtol=0, atol=0)


def test_reserve_keeps_what_is_large_enough_and_replaces_what_is_not() -> None:
    target = Target(zoo.build("llama"))
    with pytest.raises(RuntimeError, match="reserve"):
        target.score([Segment(0, 0, np.ones(1, np.int32), EMPTY_TREE)])
    target.reserve(2, 50)
    slab = target.slab
    target.reserve(2, 40)
    assert target.slab is slab
    target.reserve(2, 200)
    assert target.slab is not slab
    assert target.slab is not None
    assert target.slab.capacity >= 200


def test_bytes_per_token_counts_both_halves_of_every_layer() -> None:
    # 2 layers x 2 KV heads x (8 + 8) float32 values
    assert zoo.target("llama").bytes_per_token == 2 * 2 * 16 * 4


def test_rows_are_padded_to_few_numbers() -> None:
    assert [bucket(n) for n in (0, 1, 2, 3, 16, 17, 64, 65, 257)] == [
        4,
        4,
        4,
        4,
        16,
        20,
        64,
        80,
        320,
    ]
    assert len({bucket(n) for n in range(1, 1025)}) < 60


def test_bfloat16_on_the_cpu_scores_what_float32_does() -> None:
    model = zoo.build("llama")
    tree = make_tree([5, 6, 7], [-1, 0, -1])
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        target = Target(copy.deepcopy(model).to(dtype))
        target.reserve(2, 64)
        segments = [Segment(0, 0, np.arange(3, 20, dtype=np.int32), tree)]
        found.append(target.score(segments).logits.float())
    assert found[1].shape == found[0].shape == (4, found[0].shape[1])
    assert (found[0] - found[1]).abs().max() < 0.15 * found[0].std()


def test_kernels_that_build_a_plan_per_length_are_left_out() -> None:
    """What the rest of the process allows is as before."""
    cudnn, order = torch.backends.cuda.cudnn_sdp_enabled, torch.device("cuda")
    assert cudnn()
    with attention.steady_kernels(order):
        assert not cudnn()
        assert torch.backends.cuda.flash_sdp_enabled()
        assert torch.backends.cuda.mem_efficient_sdp_enabled()
        assert torch.backends.cuda.math_sdp_enabled()
    assert cudnn()
    with attention.steady_kernels(torch.device("cpu")):
        assert cudnn()
