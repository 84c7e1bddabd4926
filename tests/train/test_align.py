"""Aligning drafts: every objective brings target calls down; what does not belong is refused."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from draftrec.data.sequences import read_semantic_ids, write_semantic_ids
from draftrec.errors import DraftrecError, Interrupted
from draftrec.models.recommender import IDS_FILE, check_draft, load_recommender
from draftrec.train import objectives
from draftrec.train.align import Alignment, AlignSpec, align, alignment_loss
from draftrec.train.fit import fit
from draftrec.train.presets import ModelSource
from draftrec.train.settings import Objective, ObjectiveSettings, TeachSettings, TrainSettings
from draftrec.train.teacher import TeachSpec, teach
from draftrec.train.teacher_files import TeacherFolder
from tests.jobs.recommend.worlds import reassigned
from tests.train.small import SETTINGS, fit_spec

TRAIN = TrainSettings(
    epochs=4, batch_tokens=600, lr=3e-3, dropout=0.0, drop_items=0.0, device="cpu", save_steps=2
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A target and its teacher data."""
    path = tmp_path_factory.mktemp("align")
    fit(fit_spec(path, settings=replace(SETTINGS, epochs=10), recall_users=0))
    settings = TeachSettings(beams=3, per_user=3, ends=True, shard_size=40)
    sequences, sids = str(path / "sequences.jsonl"), str(path / "sids.jsonl")
    teach(TeachSpec(str(path / "target"), sequences, sids, path / "teacher", settings))
    return path


def spec_in(folder: Path, output: Path, **changes: object) -> AlignSpec:
    spec = AlignSpec(folder / "teacher", str(folder / "target"), output, settings=TRAIN)
    return replace(spec, **changes)


def task_in(folder: Path, **objective: object) -> Alignment:
    target = load_recommender(folder / "target", "cpu")
    files = TeacherFolder(folder / "teacher")
    return Alignment(ObjectiveSettings(**objective), TRAIN, files, 10, target)


@pytest.fixture
def task(folder: Path) -> Alignment:
    return task_in(folder)


@pytest.mark.slow
def test_epochs_visit_every_context_once_in_an_order_of_their_own(task: Alignment):
    def seen(epoch: int) -> list[tuple[int, ...]]:
        batches = list(task.batches(epoch))
        assert len(batches) == task.steps()
        return [tuple(row.tolist()) for batch in batches for row in batch["input_ids"]]

    contexts = sum(task.shards) - 10
    assert len(seen(0)) == len(seen(1)) == contexts
    assert seen(0) == seen(0)
    assert seen(0) != seen(1)
    assert len(task.held_out) == 10


@pytest.mark.slow
def test_the_target_as_its_own_draft_has_nothing_to_learn(folder: Path, task: Alignment):
    model = task.target.model
    batch = next(task.batches(0))
    for name, alpha in (
        ("wordkd", 1.0), ("tvdkd", 1.0), ("beamkd", 1.0), ("atspeed-r", 1.0), ("atspeed-s", 1.0),
        ("beamkd", 0.0),
    ):  # fmt: skip
        task.objective = ObjectiveSettings(objective=name, alpha=alpha, beta=0.0, soft=1.0)
        with torch.inference_mode():
            assert float(task.loss(model, batch)) == pytest.approx(0, abs=2e-3), name
    assert task.target_calls(model) == 1.0, "a draft that agrees is always accepted"


@pytest.mark.slow
def test_losses_are_those_of_single_contexts_computed_token_by_token(folder: Path):
    """Nothing of trees, masks and gathering: beams one by one, as the paper has them."""
    task = task_in(folder, objective="atspeed-r", alpha=0.4)
    torch.manual_seed(5)
    model = load_recommender(folder / "target", "cpu").model
    for weight in model.parameters():
        weight.add_(torch.randn_like(weight) * 0.05)
    contexts = [c for c in task.folder.contexts(0)[:6] if len(c.truth)]
    with torch.inference_mode():
        found = float(task.loss(model, task.batch(contexts)))
        next_item, alignment = [], []
        for context in contexts:
            history = torch.from_numpy(np.concatenate((context.prompt, context.truth))).long()
            log_q = model(input_ids=history[None]).logits[0, :-1].log_softmax(-1)
            known = np.concatenate((context.answers, np.ones(3, np.bool_)))[1:]
            every = -log_q.gather(1, history[1:, None])[:, 0]
            next_item += every[torch.from_numpy(known)].tolist()
            for beam in context.beams:
                ids = torch.from_numpy(np.concatenate((context.prompt, beam[:-1]))).long()[None]
                both = [m(input_ids=ids).logits[0, -3:] for m in (model, task.target.model)]
                for level in range(3):
                    codes = task.catalogue.codes[level]
                    legal = torch.from_numpy(codes[codes >= 0]).long()
                    q, p = (z[level, legal].softmax(-1) for z in both)
                    alignment.append(float((q - p).abs().sum() / 2))
    expected = 0.6 * np.mean(next_item) + 0.4 * np.mean(alignment)
    assert found == pytest.approx(expected, rel=2e-3)


@pytest.mark.slow
def test_word_kd_looks_at_the_true_path_and_seqkd_at_the_beams(folder: Path):
    task = task_in(folder)
    batch = task.batch(task.folder.contexts(0)[:5])
    rows = torch.randn(len(batch["truth"]), task.target.model.config.vocab_size)
    true = batch["truth"] >= 0
    assert int(true.sum()) == 3 * sum(len(c.truth) > 0 for c in task.folder.contexts(0)[:5])
    moved = rows.clone()
    moved[~true] += torch.randn_like(moved[~true])
    for name in ("wordkd", "tvdkd"):
        settings = ObjectiveSettings(objective=name)
        before, after = (alignment_loss(r, batch, settings) for r in (rows, moved))
        assert float(before) == pytest.approx(float(after))
    seqkd = alignment_loss(rows, batch, ObjectiveSettings(objective="seqkd"))
    losses = [
        float(objectives.token_loss(rows[row][None], token[None], torch.ones(1)))
        for row, token, beams in zip(
            batch["edge_rows"], batch["edge_tokens"], batch["edge_beams"].tolist(), strict=True
        )
        for _ in range(int(beams))
    ]
    assert float(seqkd) == pytest.approx(float(np.mean(losses)), rel=1e-5)


@pytest.mark.slow
def test_soft_labels_are_the_target_s_own_opinion_of_every_prompt(folder: Path):
    task = task_in(folder, objective="beamkd", alpha=0.0, soft=1.0)
    torch.manual_seed(2)
    model = load_recommender(folder / "target", "cpu").model
    for weight in model.parameters():
        weight.add_(torch.randn_like(weight) * 0.05)
    contexts = [c for c in task.folder.contexts(0)[:6] if len(c.truth)]
    expected = []
    with torch.inference_mode():
        found = float(task.loss(model, task.batch(contexts)))
        for context in contexts:
            ids = torch.from_numpy(np.concatenate((context.prompt, context.truth))).long()[None]
            q, p = (
                m(input_ids=ids).logits[0, :-1].log_softmax(-1) for m in (model, task.target.model)
            )
            for place in range(len(p)):  # all tokens but BOS are those of items
                legal = torch.from_numpy(task.catalogue.codes[place % 3]).long()
                legal = legal[legal >= 0]
                at = p[place, legal]
                expected.append(float((at.exp() * (at - q[place, legal])).sum()))
    assert found == pytest.approx(np.mean(expected), rel=5e-3)


@pytest.mark.slow
@pytest.mark.parametrize("objective", get_args(Objective))
def test_every_objective_aligns(folder: Path, tmp_path: Path, objective: str):
    settings = replace(TRAIN, lr=1e-12, epochs=1)
    spec = spec_in(folder, tmp_path / "draft", objective=ObjectiveSettings(objective=objective))
    untrained = align(replace(spec, output=tmp_path / "before", settings=settings))
    found = align(spec)
    assert found["valid_loss"] < untrained["valid_loss"] - 0.01
    assert 1 <= found["valid_target_calls"] <= untrained["valid_target_calls"]
    draft, target = (load_recommender(f, "cpu") for f in (spec.output, folder / "target"))
    check_draft(target, draft)
    assert (draft.info.kind, draft.info.objective) == ("draft", objective)
    assert draft.info.target == target.fingerprint
    assert draft.info.sids == target.info.sids
    kept = [read_semantic_ids(one.folder / IDS_FILE).fingerprint() for one in (draft, target)]
    assert kept == [target.info.sids] * 2
    assert draft.format == target.format


@pytest.mark.slow
def test_interrupted_and_resumed_equals_uninterrupted(folder: Path, tmp_path: Path):
    whole, broken = (spec_in(folder, tmp_path / name) for name in ("whole", "broken"))
    align(whole)
    stops = iter([False] * 4 + [True])
    with pytest.raises(Interrupted):
        align(broken, should_stop=lambda: next(stops))
    align(broken)
    one, other = (load_file(s.output / "model.safetensors") for s in (whole, broken))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow
def test_a_draft_can_start_from_another(folder: Path, tmp_path: Path):
    align(spec_in(folder, tmp_path / "first"))
    source = ModelSource("checkpoint", str(tmp_path / "first"))
    found = align(spec_in(folder, tmp_path / "second", source=source))
    assert found["kind"] == "draft"


@pytest.mark.slow
def test_what_does_not_belong_is_refused(folder: Path, tmp_path: Path):
    other = fit_spec(folder, "other", settings=replace(SETTINGS, seed=5, epochs=1), recall_users=0)
    fit(other)
    spec = spec_in(folder, tmp_path / "draft")

    def refused(words: str, **changes: object) -> None:
        with pytest.raises(DraftrecError, match=words) as error:
            align(replace(spec, **changes))
        assert "\n" not in str(error.value)
        assert not spec.output.exists()

    refused("comes from another target", target=str(other.output))
    refused("no teacher data", teacher=tmp_path)
    refused("no preset", source=ModelSource("preset", "enormous"))
    alibi = tmp_path / "config.json"
    alibi.write_text('{"model_type": "bloom", "hidden_size": 32, "n_layer": 1, "n_head": 2}')
    refused("cannot be served", source=ModelSource("config", str(alibi)))
    strange = tmp_path / "strange"
    save_strange(strange, folder / "target")
    refused("another vocabulary", source=ModelSource("checkpoint", str(strange)))
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    manifest = TeacherFolder(folder / "teacher").manifest()
    assert manifest is not None
    TeacherFolder(unfinished).write_manifest(manifest.model_copy(update={"shards": [7]}))
    refused("stops after 7 of", teacher=unfinished)
    old = manifest.model_copy(update={"format_version": 1})
    TeacherFolder(unfinished).write_manifest(old)
    refused("record the teacher data again with this draftrec", teacher=unfinished)
    whole = tmp_path / "reassigned"
    shutil.copytree(folder / "teacher", whole)
    write_semantic_ids(whole / IDS_FILE, reassigned(read_semantic_ids(whole / IDS_FILE)))
    refused("target was trained on other semantic ids than those of", teacher=whole)
    (unfinished / "manifest.json").write_text("{}")
    refused("is damaged", teacher=unfinished)


def save_strange(folder: Path, like: Path) -> None:
    """The same model with its tokens in another order."""
    from draftrec.models.recommender import new_tokenizer, read_info, save_recommender

    found = load_recommender(like, "cpu")
    tokens = [t for t in found.tokenizer.get_vocab() if len(t) > 4 and "_" in t]
    tokenizer = new_tokenizer(sorted(tokens, reverse=True))
    save_recommender(folder, found.model, tokenizer, read_info(like))
