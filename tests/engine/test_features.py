"""The features that a target keeps are the last hidden states of the committed texts."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from draftrec.core import EMPTY_TREE
from draftrec.engine.packing import Segment
from draftrec.engine.passes import eager
from draftrec.engine.passes.eager import PackedRunner, sixteens
from draftrec.engine.passes.frozen import FrozenRunner
from draftrec.engine.target import Target, Way
from draftrec.engine.tree import make_tree
from draftrec.errors import UnsupportedModelError
from tests.engine.passes.test_frozen import Tape, frozen_target, graphs
from tests.engine.test_exactness import _sized, build
from tests.models import zoo
from tests.strategies import paths, token_lists, trees

SLOTS, CAPACITY = 3, 128
_BY_HAND = ["llama", "qwen2", "qwen3", "mistral"]
_LENGTHS = {
    "dynamic": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10_000.0},
    "longrope": {
        "rope_type": "longrope", "rope_theta": 10_000.0, "original_max_position_embeddings": 12,
        "short_factor": [1.0] * 4, "long_factor": [3.0] * 4,
    },
}  # fmt: skip


def keeping(model: Any, way: Way = "eager", **options: Any) -> Target:
    """A target that keeps features, its slab full of rubbish."""
    target = Target(model, way=way, **options)
    if isinstance(target.runner, FrozenRunner):
        target.runner.backend = "eager"
    target.keep_features()
    target.reserve(SLOTS, CAPACITY)
    for rows in memories(target):
        rows.normal_(generator=torch.Generator().manual_seed(0))
    return target


def memories(target: Target) -> tuple[torch.Tensor, ...]:
    slab = target.slab
    assert slab is not None
    assert slab.features is not None
    return *slab.memory, slab.features


@torch.inference_mode()
def states(model: Any, tokens: list[int]) -> torch.Tensor:
    """`[T, H]`: the last hidden states of a plain pass."""
    found = model(torch.tensor([tokens]), use_cache=False, output_hidden_states=True)
    return found.hidden_states[-1][0]


def is_kept(target: Target, plain: Any, slot: int, tokens: list[int]) -> None:
    features = memories(target)[-1][slot, : len(tokens)]
    torch.testing.assert_close(features, states(plain, tokens), rtol=0, atol=1e-4)


def grown(target: Target, slot: int, tokens: list[int], computed: int, data: Any) -> list[int]:
    """A text after a pass with a drawn tree, of which a drawn path is kept."""
    tree = data.draw(trees(zoo.VOCABULARY, 8))
    segment = Segment(slot, computed, np.array(tokens[computed:], np.int32), tree)
    others = [Segment(s, 0, np.array([5], np.int32), EMPTY_TREE) for s in data.draw(beside(slot))]
    target.score([*others, segment])
    path = data.draw(paths(tree))
    target.commit([segment], [path])
    return [*tokens, *tree.token_ids[path].tolist()]


def beside(slot: int) -> st.SearchStrategy[list[int]]:
    return st.sampled_from([[], [(slot + 2) % SLOTS]])


def check(target: Target, plain: Any, data: Any) -> None:
    """Prompts in pieces, drafts, taken-over prefixes, slots that held another text before."""
    for slot in (1, 2, 1):
        tokens = data.draw(token_lists(zoo.VOCABULARY, 2, 30))
        cut = data.draw(st.integers(1, len(tokens) - 1))
        first = Segment(slot, 0, np.array(tokens[:cut], np.int32), EMPTY_TREE, scored=False)
        target.score([first])
        tokens = grown(target, slot, tokens, cut, data)
        for _ in range(2):
            tokens, before = [*tokens, data.draw(st.integers(0, 96))], tokens
            tokens = grown(target, slot, tokens, len(before), data)
        is_kept(target, plain, slot, tokens)
    shared = data.draw(st.integers(1, len(tokens)))
    assert target.slab is not None
    target.slab.copy_prefix(1, 0, shared)
    other = grown(target, 0, [*tokens[:shared], 7], shared, data)
    is_kept(target, plain, 0, other)
    is_kept(target, plain, 1, tokens[:1])


_TARGETS: dict[tuple[str, Way], Target] = {}


@pytest.mark.parametrize(
    ("name", "way"),
    [
        *((name, "eager") for name in zoo.NAMES),
        *((name, "auto") for name in _BY_HAND),
        *(
            pytest.param(name, "frozen", marks=pytest.mark.slow)
            for name in ("llama", "gemma2", "gemma3", "gemma4", "gpt2")
        ),
    ],
)
@settings(max_examples=3)
@given(data=st.data())
def test_features_of_committed_texts_are_the_models(
    name: str, way: Way, data: st.DataObject
) -> None:
    if (name, way) not in _TARGETS:
        _TARGETS[name, way] = keeping(zoo.build(name), way)
    target = _TARGETS[name, way]
    assert target.by_hand == (way == "auto")
    assert isinstance(target.runner, FrozenRunner) == (way == "frozen")
    check(target, zoo.plain(name), data)
    assert not getattr(target.runner, "broken", False)


@pytest.mark.parametrize("name", _LENGTHS)
def test_rows_with_factors_of_their_own_lengths(name: str) -> None:
    """With `longrope`, of a text that is computed anew as it grows past the limit."""
    config = _sized("Phi3" if name == "longrope" else "Llama", rope_parameters=_LENGTHS[name])
    target, plain = keeping(build(config())), build(config())
    assert target.rule is not None
    for slot, length in ((0, 8), (1, 20)):
        tokens = [*range(3, 3 + length)]
        segment = Segment(slot, 0, np.array(tokens, np.int32), make_tree([40, 41], [-1, -1]))
        target.score([segment])
        target.commit([segment], [np.array([1], np.int32)])
        tokens = [*tokens, 41]
        is_kept(target, plain, slot, tokens if length == 8 else tokens[:length])


@pytest.mark.parametrize("way", ["eager", "auto"])
@pytest.mark.parametrize("narrow_kv", [False, True])
def test_bfloat16_features_are_the_models_up_to_rounding(way: Way, narrow_kv: bool) -> None:  # noqa: FBT001
    model = zoo.build("qwen3").bfloat16()
    plain, tokens = copy.deepcopy(model), [*range(3, 40)]
    target = keeping(model, way, narrow_kv=narrow_kv)
    features = memories(target)[-1]
    assert features.dtype == torch.bfloat16
    target.score([Segment(1, 0, np.array(tokens, np.int32), EMPTY_TREE)])
    found, expected = features[1, : len(tokens)].float(), states(plain, tokens).float()
    assert (found - expected).norm() < 0.05 * expected.norm()


@pytest.mark.parametrize(
    ("name", "way"),
    [("gpt2", "eager"), ("llama", "auto"), ("llama", "frozen"), ("falcon", "eager")],
)
def test_rows_are_written_where_they_belong_and_padding_nowhere(name: str, way: Way) -> None:
    """Also where a column is the last one that there is."""
    target = keeping(zoo.build(name), way)
    if isinstance(target.runner, PackedRunner):
        target.runner.padded_rows = sixteens
    features = memories(target)[-1]
    assert features.shape == (SLOTS, CAPACITY + 1, 32)
    before = features.clone()
    start = CAPACITY - 2
    segments = [
        Segment(0, start, np.array([5], np.int32), make_tree([6], [-1])),
        Segment(2, 4, np.array([7, 8, 9], np.int32), EMPTY_TREE, scored=False),
    ]
    target.score(segments)
    changed = (features != before).any(-1)[:, :CAPACITY].nonzero().tolist()
    assert changed == [[0, start], [0, start + 1], [2, 4], [2, 5], [2, 6]]


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_one_frozen_graph_keeps_features_of_passes_of_all_sizes(backend: str) -> None:
    """What a replay gives lies where the one before lay; features are written at each."""
    target, runner = frozen_target(zoo.build("llama"), backend, tape := Tape())
    before = graphs()
    target.keep_features()
    assert (graphs() - before, tape.recorded) == (1, 1)
    plain, text = zoo.plain("llama"), [*range(3, 60)]
    for slots in (1, 4):
        target.reserve(slots, 100 * slots)
        for length, rest in ((1, 3), (9, 5), (40, 30)):
            ids = np.array(text, np.int32)
            target.score([Segment(slots - 1, 0, ids[:length], EMPTY_TREE)])
            target.score([Segment(slots - 1, length, ids[length : length + rest], EMPTY_TREE)])
            is_kept(target, plain, slots - 1, text[: length + rest])
    assert graphs() - before == 1
    assert tape.replayed > tape.recorded
    assert not runner.broken


def test_they_count_as_memory_and_none_is_taken_unasked() -> None:
    target = Target(zoo.build("llama"))
    target.reserve(SLOTS, CAPACITY)
    assert target.slab is not None
    assert target.slab.features is None
    before = target.bytes_per_token
    target.keep_features()
    assert target.slab is None
    assert target.bytes_per_token == before + 32 * 4
    target.reserve(SLOTS, CAPACITY)
    slab = target.slab
    target.keep_features()
    assert target.slab is slab
    assert not any(m._forward_hooks for m in target.model.modules())


def test_a_model_that_does_more_before_its_output_layer_is_refused() -> None:
    model: Any = zoo.build("llama")
    inner = model.model.forward

    def scaled(*args: Any, **options: Any) -> Any:
        found = inner(*args, **options)
        found.last_hidden_state = found.last_hidden_state / 2
        return found

    model.model.forward = scaled
    target = Target(model)
    with pytest.raises(UnsupportedModelError, match="output layer does not read"):
        target.keep_features()
    assert target.bytes_per_token == zoo.target("llama").bytes_per_token
    assert model.config._attn_implementation == "draftrec_packed"
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    model.model.forward, model.get_output_embeddings = inner, lambda: None
    with pytest.raises(UnsupportedModelError, match="output layer does not read"):
        target.keep_features()


def test_features_that_are_not_the_models_are_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = eager.LastHidden.taken
    monkeypatch.setattr(eager.LastHidden, "taken", lambda self: taken(self).flip(0))
    with pytest.raises(UnsupportedModelError, match="are not those"):
        Target(zoo.build("llama")).keep_features()
