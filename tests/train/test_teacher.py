"""Teacher data: trees of contexts, what is recorded along them, and resuming."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from draftrec.data.sequences import read_semantic_ids, write_semantic_ids
from draftrec.errors import DraftrecError, Interrupted, UnsupportedModelError
from draftrec.models.recommender import load_recommender
from draftrec.train import teacher
from draftrec.train import teacher as recorder
from draftrec.train.fit import fit
from draftrec.train.settings import TeachSettings
from draftrec.train.teacher import TeachSpec, teach
from draftrec.train.teacher_files import (
    TeacherFolder,
    at_rows,
    context_tree,
    legal_codes,
    tree_inputs,
    tree_logits,
)
from tests.jobs.recommend.worlds import reassigned
from tests.train.small import SETTINGS as FIT
from tests.train.small import fit_spec

SETTINGS = TeachSettings(beams=5, shard_size=16)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a trained target."""
    path = tmp_path_factory.mktemp("teacher")
    fit(fit_spec(path, settings=replace(FIT, epochs=8)))
    return path


def spec_in(folder: Path, output: Path, **changes: object) -> TeachSpec:
    spec = TeachSpec(
        str(folder / "target"), str(folder / "sequences.jsonl"), str(folder / "sids.jsonl"),
        output, SETTINGS, device="cpu",
    )  # fmt: skip
    return replace(spec, **changes)


def test_a_tree_holds_every_prefix_once_and_counts_beams():
    beams = np.array([[1, 5, 8], [1, 5, 9], [2, 5, 8], [1, 6, 8]], np.int32)
    tree = context_tree(beams, np.array([1, 7, 8], np.int32))
    paths = {(): -1}
    for i in range(len(tree.tokens)):
        above = next(p for p, node in paths.items() if node == tree.parents[i])
        paths[(*above, int(tree.tokens[i]))] = i
    assert list(paths) == [(), (1,), (2,), (1, 5), (1, 6), (1, 7), (2, 5)]
    assert tree.beams.tolist() == [4, 3, 1, 2, 1, 0, 1]
    assert tree.truth.tolist() == [1, 7, -1, -1, -1, 8, -1]
    assert tree.next_level.tolist() == [0, 1, 1, 2, 2, 2, 2]
    edges = {
        (list(paths)[row], token): weight
        for row, token, weight in zip(
            tree.edge_rows.tolist(), tree.edge_tokens.tolist(), tree.edge_beams, strict=True
        )
    }
    assert edges[(), 1] == 3
    assert edges[(1, 5), 9] == 1
    assert edges[(1, 7), 8] == 0
    assert len(context_tree(beams, np.empty(0, np.int32)).tokens) == 5


def check_rows(model: Any) -> None:
    """Rows of trees have the logits of plain passes over their paths."""
    rng = np.random.default_rng(0)
    prompts = [rng.integers(4, 13, n).astype(np.int32) for n in (1, 17, 4)]
    trees = [
        context_tree(rng.integers(4, 9, (6, 3)).astype(np.int32), rng.integers(4, 9, 3, np.int32))
        for _ in prompts
    ]
    with torch.inference_mode():
        batch = tree_inputs(prompts, trees)
        found = at_rows(tree_logits(model, batch), batch["rows"])
        row = 0
        for prompt, tree in zip(prompts, trees, strict=True):
            for node in range(-1, len(tree.tokens)):
                path: list[int] = []
                while node >= 0:
                    path, node = [int(tree.tokens[node]), *path], int(tree.parents[node])
                ids = torch.tensor([[*prompt.tolist(), *path]])
                assert torch.allclose(found[row], model(input_ids=ids).logits[0, -1], atol=1e-4)
                row += 1
    assert row == len(found)


@pytest.mark.slow
def test_rows_of_a_batch_of_trees_are_what_plain_passes_say(folder: Path):
    check_rows(load_recommender(folder / "target", "cpu").model)


LOCAL = ["sliding_attention", "full_attention"]
WINDOWED: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": 5},
    "qwen2": {"sliding_window": 5, "use_sliding_window": True, "layer_types": LOCAL},
    "gemma3_text": {"sliding_window": 5, "layer_types": LOCAL, "query_pre_attn_scalar": 8},
    "gpt_oss": {"sliding_window": 5, "layer_types": LOCAL, "num_local_experts": 4},
    "llama4_text": {
        "attention_chunk_size": 5, "layer_types": ["chunked_attention", "full_attention"],
        "num_local_experts": 2, "intermediate_size_mlp": 16, "attn_temperature_tuning": False,
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", WINDOWED)
def test_windows_and_chunks_of_layers_hold_for_trees(kind: str):
    """All layers saw all of a prompt, in what drafts learn from, and while they learn."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        kind, vocab_size=16, hidden_size=16, intermediate_size=16, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, head_dim=8, pad_token_id=0,
        initializer_range=0.5, max_position_embeddings=64, **WINDOWED[kind],
    )  # fmt: skip
    check_rows(AutoModelForCausalLM.from_config(config).eval())


@pytest.mark.slow
def test_contexts_are_recorded_some_rows_at_a_time(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Of 32 contexts, however long: their scores of a language model's vocabulary were all held."""
    sizes: list[int] = []

    def noted(*args: Any) -> dict[str, torch.Tensor]:
        batch = tree_inputs(*args)
        sizes.append(batch["input_ids"].numel())
        return batch

    monkeypatch.setattr(teacher, "tree_inputs", noted)
    teach(spec_in(folder, tmp_path / "usual"))
    assert max(sizes) > 200
    sizes.clear()
    monkeypatch.setattr(teacher, "_ROWS", 200)
    teach(spec_in(folder, tmp_path / "few"))
    assert max(sizes) <= 200
    few, usual = (TeacherFolder(tmp_path / name).contexts(0) for name in ("few", "usual"))
    for one, other in zip(few, usual, strict=True):
        assert np.array_equal(one.beams, other.beams)
        assert np.allclose(one.log_probs, other.log_probs, atol=0.02)


@pytest.mark.slow
def test_what_is_recorded_is_what_the_target_says(folder: Path, tmp_path: Path):
    found = teach(spec_in(folder, tmp_path))
    files = TeacherFolder(tmp_path)
    manifest, catalogue = files.manifest(), files.catalogue()
    assert manifest is not None
    assert manifest.finished
    assert found["contexts"] == manifest.total == sum(manifest.shards)
    target = load_recommender(folder / "target", "cpu")
    assert manifest.target == target.fingerprint
    assert np.array_equal(catalogue.codes, legal_codes(catalogue.item_tokens))
    context = files.contexts(1)[3]
    assert context.beams.shape == (5, 3)
    assert context.prompt[0] == target.tokenizer.bos_token_id
    assert context.answers.sum() == len(context.prompt) - 1
    items = {tuple(row) for row in catalogue.item_tokens.tolist()}
    assert all(tuple(beam) in items for beam in context.beams.tolist())
    # Best first, and no item that was left out scores higher than the last one kept.
    scores = {item: plain_score(target.model, context.prompt, item) for item in items}
    best = sorted(scores, key=lambda item: -scores[item])
    assert tuple(context.beams[0].tolist()) == best[0]
    assert context.prompt_log_probs.shape == (context.answers.sum(), catalogue.codes.shape[1])
    tree = context.tree()
    assert context.log_probs.shape == (len(tree.next_level), catalogue.codes.shape[1])
    for row, level in enumerate(tree.next_level.tolist()):
        legal = catalogue.codes[level] >= 0
        assert np.isfinite(context.log_probs[row, legal]).all()
        assert np.isneginf(context.log_probs[row, ~legal]).all()
        assert 0.5 < np.exp(context.log_probs[row, legal].astype(np.float64)).sum() < 1.01


def plain_score(model: object, prompt: np.ndarray, item: tuple[int, ...]) -> float:
    ids = torch.tensor([[*prompt.tolist(), *item]])
    with torch.inference_mode():
        log_probs = model(input_ids=ids).logits[0].log_softmax(-1)  # type: ignore[operator]
    return sum(float(log_probs[len(prompt) - 1 + level, token]) for level, token in enumerate(item))


@pytest.mark.slow
def test_an_interrupted_recording_goes_on_and_ends_with_the_same_bytes(
    folder: Path, tmp_path: Path
):
    teach(spec_in(folder, tmp_path / "whole"))
    stops = iter([False, True])
    with pytest.raises(Interrupted):
        teach(spec_in(folder, tmp_path / "broken"), should_stop=lambda: next(stops))
    assert len(list((tmp_path / "broken").glob("teacher-*"))) == 1
    teach(spec_in(folder, tmp_path / "broken"))
    for path in (tmp_path / "whole").glob("*.safetensors"):
        assert path.read_bytes() == (tmp_path / "broken" / path.name).read_bytes()
    with pytest.raises(DraftrecError, match="contexts changed"):
        teach(spec_in(folder, tmp_path / "broken", limit=3))
    (tmp_path / "broken" / "mine.txt").touch()
    assert teach(spec_in(folder, tmp_path / "broken", limit=3, overwrite=True))["contexts"] < 4
    assert (tmp_path / "broken" / "mine.txt").exists()


def test_other_ids_than_the_target_was_trained_on_are_refused(folder: Path, tmp_path: Path):
    sids = tmp_path / "moved.jsonl"
    write_semantic_ids(sids, reassigned(read_semantic_ids(folder / "sids.jsonl")))
    with pytest.raises(DraftrecError, match=r"other semantic ids than .*moved.jsonl"):
        teach(spec_in(folder, tmp_path / "out", sids=str(sids)))
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_shift_by_one_level_is_noticed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def shifted(logits: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        rows = torch.stack((rows[:, 0], (rows[:, 1] - 1).clamp_min(0)), dim=1)
        return at_rows(logits, rows)

    monkeypatch.setattr(recorder, "at_rows", shifted)
    with pytest.raises(UnsupportedModelError, match="a beam has other"):
        teach(spec_in(folder, tmp_path / "out"))


def test_more_contexts_per_user_and_ends():
    users = [np.arange(n) for n in (1, 2, 6)]
    last = teacher.contexts_of(users, TeachSettings())
    assert [(len(history), truth) for history, truth in last] == [(1, 1), (5, 5)]
    more = teacher.contexts_of(users, TeachSettings(per_user=3, ends=True))
    assert sorted(truth for _, truth in more).count(-1) == 3
    assert len({(len(h), t) for h, t in more if t >= 0}) == 4
    assert all(t < 0 or len(h) == t for h, t in more)
    with pytest.raises(DraftrecError, match="no user has two train items"):
        teacher.contexts_of(users[:1], TeachSettings())
    with pytest.raises(DraftrecError, match="no contexts"):
        TeachSettings(per_user=0)


def test_what_is_otherwise_when_a_recording_goes_on_is_named(folder: Path, tmp_path: Path):
    """A shard that was gone was found out at the end, and one that was cut off by `align`."""
    stops = iter([False, True])
    with pytest.raises(Interrupted):
        teach(spec_in(folder, tmp_path), should_stop=lambda: next(stops))
    with pytest.raises(DraftrecError, match=r"otherwise \(beams was 5, now 4\)"):
        teach(spec_in(folder, tmp_path, settings=replace(SETTINGS, beams=4)))
    catalogue, shard = tmp_path / "catalogue.safetensors", TeacherFolder(tmp_path).shard(0)
    catalogue.unlink()
    with pytest.raises(Interrupted):
        teach(spec_in(folder, tmp_path), should_stop=lambda: True)
    assert catalogue.is_file()
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(DraftrecError, match=r"teacher-00000.safetensors is missing or was changed"):
        teach(spec_in(folder, tmp_path))


def test_beginning_anew_keeps_the_ids_of_the_folder(tmp_path: Path):
    """They may be the ones that are read: a kill before they are written again cost them."""
    for name in ("sids.parquet", "teacher-00007.safetensors", "catalogue.safetensors.tmp"):
        (tmp_path / name).write_bytes(b"before")
    TeacherFolder(tmp_path).ledger.clear()
    assert [path.name for path in tmp_path.iterdir()] == ["sids.parquet"]


@pytest.mark.slow
def test_shards_that_no_manifest_speaks_of_go(folder: Path, tmp_path: Path):
    """A kill while --overwrite clears the folder leaves some."""
    (tmp_path / "teacher-00099.safetensors").write_bytes(b"of another recording")
    teach(spec_in(folder, tmp_path))
    assert not (tmp_path / "teacher-00099.safetensors").exists()


@pytest.mark.slow
def test_a_catalogue_that_was_lost_is_written_again(folder: Path, tmp_path: Path):
    """It follows from the input; without it nothing can be aligned to what is recorded."""
    teach(spec_in(folder, tmp_path, limit=3))
    names = ("catalogue.safetensors", "sids.parquet")
    before = {name: (tmp_path / name).read_bytes() for name in names}
    for name in names:
        for content in (before[name][:40], b"", None):
            (tmp_path / name).unlink()
            if content is not None:
                (tmp_path / name).write_bytes(content)
            teach(spec_in(folder, tmp_path, limit=3))
            assert {name: (tmp_path / name).read_bytes() for name in names} == before
