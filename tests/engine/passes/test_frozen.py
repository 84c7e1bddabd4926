"""Frozen passes: the texts and beams of eager ones, from one compiled graph."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._dynamo.utils import counters

from draftrec.core import EMPTY_TREE
from draftrec.engine import selfcheck
from draftrec.engine.packing import Segment
from draftrec.engine.passes import frozen
from draftrec.engine.passes.eager import PackedRunner, PaddedRunner
from draftrec.engine.passes.frozen import FrozenRunner, cut
from draftrec.engine.selfcheck import checked_target
from draftrec.engine.target import Target
from draftrec.engine.tree import chain, make_tree
from tests.engine.beams import toys
from tests.engine.test_exactness import (
    _EXPERTS,
    _TWO_SHAPES,
    WINDOW,
    _sized,
    build,
    ours,
    prompts_of,
    reference,
)
from tests.engine.test_packing import segments
from tests.models import zoo

_MODELS: dict[str, Callable[[], Any]] = {
    "llama": _sized("Llama"),
    "qwen3": _sized("Qwen3", head_dim=8),
    "gemma2": _sized("Gemma2", head_dim=8, sliding_window=WINDOW, attn_logit_softcapping=5.0),
    "gemma4": _sized("Gemma4Text", **_TWO_SHAPES),
    "gpt_oss": _sized("GptOss", **_EXPERTS, head_dim=8, sliding_window=WINDOW),
    "mixtral": _sized("Mixtral", **_EXPERTS, sliding_window=WINDOW),
}


def frozen_target(
    model: Any, backend: str = "eager", record: Any = None, *, exact: bool = False
) -> tuple[Target, FrozenRunner]:
    """`backend` eager: traced as one graph, which takes a second, and run without a compiler."""
    target = Target(model, way="frozen", by_row=exact)
    assert isinstance(target.runner, FrozenRunner)
    target.runner = FrozenRunner(target.runner.eager, exact=exact, record=record)
    target.runner.backend = backend
    return target, target.runner


def graphs() -> int:
    """Graphs that were compiled so far."""
    return counters["stats"]["unique_graphs"]


class Tape:
    """Stands in for CUDA graphs: what is recorded runs when it is replayed, into one place."""

    def __init__(self) -> None:
        self.recorded = self.replayed = 0

    def __call__(self, work: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
        self.recorded += 1
        place = work().clone()

        def replay() -> torch.Tensor:
            self.replayed += 1
            return place.copy_(work())

        return replay


@pytest.mark.slow
def test_one_graph_serves_passes_of_all_sizes_and_slabs() -> None:
    tape = Tape()
    (target, _), eager = frozen_target(zoo.build("mistral"), record=tape), zoo.target("mistral")
    before = graphs()
    prompt = np.arange(3, 40, dtype=np.int32)
    for slots, capacity in ((3, 100), (5, 300)):
        target.reserve(slots, capacity)
        eager.reserve(slots, capacity)
        for batch in (
            [
                Segment(1, 0, prompt, EMPTY_TREE, scored=False),
                Segment(2, 0, prompt[:5], chain([7])),
            ],
            [Segment(1, 37, prompt[:1], make_tree([5, 6, 7], [-1, 0, -1]))],
            [Segment(2, 5, prompt[:2], EMPTY_TREE), Segment(1, 37, prompt[3:4], chain([8, 9]))],
            [Segment(2, 5, prompt[:1], make_tree([*range(80)], [-1] * 80))],
            [Segment(1, 37, prompt[:1], EMPTY_TREE)],
        ):
            found, expected = target.score(batch).logits, eager.score(batch).logits
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    assert graphs() - before == 1
    # Rows and words of nodes: 64 and 1, 4 and 1, 8 and 1, 128 and 2; twice as the slab was new.
    assert (tape.recorded, tape.replayed) == (8, 10)


@pytest.mark.slow
def test_longer_passes_run_eagerly_over_the_same_slab() -> None:
    tape = Tape()
    (target, _), eager = frozen_target(zoo.build("llama"), record=tape), zoo.target("llama")
    prompt = np.random.default_rng(0).integers(3, zoo.VOCABULARY, 230).astype(np.int32)
    text = prompt[:90]
    for it in (target, eager):
        it.reserve(2, 256)
        it.score([Segment(0, 0, prompt, EMPTY_TREE, scored=False), Segment(1, 0, text, EMPTY_TREE)])
    assert tape.recorded == 0
    batch = [Segment(0, 230, text[:1], chain([5, 6])), Segment(1, 90, text[:1], EMPTY_TREE)]
    torch.testing.assert_close(
        target.score(batch).logits, eager.score(batch).logits, rtol=0, atol=1e-4
    )
    assert tape.replayed == 1
    assert [target.padded_rows(n) for n in (1, 5, 200, 257)] == [4, 8, 256, 257]


@pytest.mark.slow
def test_frozen_passes_go_with_the_slab() -> None:
    target, _ = frozen_target(zoo.build("llama"))
    target.reserve(2, 64)
    slab, pending = target.slab, np.ones(1, np.int32)
    target.score([Segment(0, 0, pending, EMPTY_TREE)])
    assert slab is not None
    assert list(slab.passes) == [(4, 1)]
    target.reserve(3, 64)
    assert target.slab is not None
    assert not target.slab.passes


@pytest.mark.slow
@pytest.mark.parametrize("name", _MODELS)
def test_texts_are_transformers_own(name: str) -> None:
    prompts, config = prompts_of(5, 30, 17), _MODELS[name]
    expected = reference(config(), prompts, 12)
    assert len({t for text in expected for t in text}) > 3, "texts this dull would hide differences"
    target, runner = frozen_target(build(config()))
    assert ours(target, prompts, expected, 12, slots=2) == expected
    assert not runner.broken


@pytest.mark.slow
def test_compiled_texts_are_transformers_own_without_recompiling() -> None:
    """With torch's compiler, over hundreds of ragged steps after the first job."""
    config = _MODELS["llama"]
    prompts = prompts_of(*range(3, 43, 2))
    expected = reference(config(), prompts, 100)
    target, runner = frozen_target(build(config()), "inductor")
    assert ours(target, prompts[:3], expected, 12, slots=3) == [t[:12] for t in expected[:3]]
    before, passes = graphs(), 0
    score = target.score

    def counted(batch: Any) -> Any:
        nonlocal passes
        passes += 1
        return score(batch)

    target.score = counted  # type: ignore[method-assign]
    for slots in (1, 3):
        assert ours(target, prompts, expected, 100, slots) == expected
    assert passes > 500
    assert graphs() == before
    assert not runner.broken


@pytest.mark.slow
def test_beams_are_those_of_eager_passes() -> None:
    trie, _ = toys.catalogue(2, 300, 4, 9)
    asked, setting = toys.requests(1, 7), toys.Setting(width=6)
    plain = toys.run(Target(toys.model(1)), trie, asked, setting)
    draft, its_runner = frozen_target(toys.model(3, layers=1))
    for drafting in (None, draft):
        tape = Tape()
        target, _ = frozen_target(toys.model(1), record=tape)
        assert toys.same(toys.run(target, trie, asked, setting, drafting), plain)
        assert tape.replayed
    assert not its_runner.broken


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_with_exact_all_passes_have_one_size_and_rows_their_own_bits(dtype: torch.dtype) -> None:
    model = build(_MODELS["llama"]()).to(dtype)
    tape = Tape()
    target, _ = frozen_target(model, record=tape, exact=True)
    assert selfcheck._is_exact(target)
    assert {rows for rows, _ in target.slab.passes} == {16}  # type: ignore[union-attr]
    assert tape.replayed > 20
    assert [target.padded_rows(n) for n in (1, 16, 17, 40)] == [16, 16, 32, 48]
    target.reserve(3, 128)
    prompts = prompts_of(5, 30, 17)
    plain = ours(target, prompts, [[], [], []], 20, slots=1)
    for slots in (1, 3):
        assert ours(target, prompts, plain, 20, slots) == plain


@given(batch=segments(), most=st.integers(1, 9))
def test_passes_are_cut_without_loss(batch: list[Segment], most: int) -> None:
    passes = cut(batch, most)
    assert all(sum(s.rows for s in p) == most for p in passes[:-1])
    assert 0 < sum(s.rows for s in passes[-1]) <= most
    whole = [(s, row) for s in batch for row in rows_of(s)]
    parts = [(s, row) for p in passes for s in p for row in rows_of(s)]
    assert [row for _, row in parts] == [row for _, row in whole]


def rows_of(segment: Segment) -> list[tuple[Any, ...]]:
    """Of each row: slot, column, token, the column that it follows on, whether it is asked for."""
    s, base, known = segment, segment.start + len(segment.pending), len(segment.pending)
    found: list[tuple[Any, ...]] = []
    for i, token in enumerate(s.pending.tolist()):
        asked = s.scored and i == known - 1
        found.append((s.slot, s.start + i, token, s.start + i - 1, asked))
    for node in range(s.past, len(s.tree)):
        parent = int(s.tree.parents[node])
        above = base + parent if parent >= 0 else base - 1
        found.append((s.slot, base + node, int(s.tree.token_ids[node]), above, s.scored))
    return found


@pytest.mark.slow
@settings(max_examples=10)
@given(data=st.data())
def test_passes_cut_in_pieces_score_the_same(data: st.DataObject) -> None:
    (target, runner), eager = CUT, zoo.target("mistral")
    runner.sizes = (data.draw(st.sampled_from([4, 8])),)
    for it in (target, eager):
        it.reserve(6, 128)
        assert it.slab is not None
        generator = torch.Generator().manual_seed(0)
        for rows in it.slab.memory:
            rows.normal_(generator=generator)
    batch = data.draw(segments())
    torch.testing.assert_close(
        target.score(batch).logits, eager.score(batch).logits, rtol=0, atol=1e-4
    )


CUT = frozen_target(zoo.build("mistral"), exact=True)


@pytest.mark.slow
def test_a_model_that_breaks_the_graph_runs_eagerly(caplog: pytest.LogCaptureFixture) -> None:
    model: Any = build(_MODELS["llama"]())
    mlp = model.model.layers[0].mlp
    forward = mlp.forward

    def breaking(x: torch.Tensor) -> torch.Tensor:
        torch._dynamo.graph_break()
        return forward(x)

    mlp.forward = breaking
    with caplog.at_level(logging.WARNING, "draftrec"):
        target = checked_target(model, way="frozen")
        prompts = prompts_of(5, 9)
        expected = reference(_MODELS["llama"](), prompts, 6)
        assert ours(target, prompts, expected, 6, slots=2) == expected
    assert target.runner.broken  # type: ignore[attr-defined]
    (line,) = caplog.messages
    assert line.startswith("passes of LlamaForCausalLM are not frozen, it cannot be compiled whole")
    assert target.padded_rows(5) == 5


@pytest.mark.slow
def test_frozen_passes_that_say_something_else_are_found_out(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FrozenRunner, "backend", "eager")
    monkeypatch.setattr(frozen, "_as_it_is", lambda work: lambda: work() * 1.5)
    with caplog.at_level(logging.WARNING, "draftrec"):
        target = checked_target(zoo.build("llama"), way="frozen")
    assert target.runner.broken  # type: ignore[attr-defined]
    assert "frozen passes of LlamaForCausalLM give other logits than its own" in caplog.text


@pytest.mark.parametrize(
    ("config", "runner", "why"),
    [
        (_sized("Nemotron"), PaddedRunner, "its attention cannot be replaced"),
        (
            _sized("Llama", rope_parameters={"rope_type": "dynamic", "factor": 2.0,
                                             "rope_theta": 10_000.0}),
            PackedRunner,
            "its rotary factors follow each text's length",
        ),
    ],
)  # fmt: skip
def test_models_that_are_never_frozen_say_so(
    config: Callable[[], Any], runner: type, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "draftrec"):
        assert isinstance(Target(build(config()), way="frozen").runner, runner)
        assert caplog.text.count(why) == 1
        assert isinstance(Target(build(config()), way="auto").runner, runner)
    assert caplog.text.count(why) == 1


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_graphs_of_a_gpu(name: str, dtype: torch.dtype, exact: bool) -> None:  # noqa: FBT001
    prompts, config = prompts_of(5, 30, 17), _MODELS[name]
    target = checked_target(build(config()).to("cuda", dtype), exact=exact, way="auto")
    assert isinstance(target.runner, FrozenRunner)
    assert not target.runner.broken
    assert target.exact == exact
    plain = ours(target, prompts, [[] for _ in prompts], 40, slots=1)
    for slots in (1, 3):
        if exact or dtype == torch.float32:
            assert ours(target, prompts, plain, 40, slots) == plain
    if dtype == torch.float32:
        assert plain == reference(config(), prompts, 40)
    assert target.slab is not None
    assert target.slab.passes
