"""Training a target: it learns, goes on exactly where it stopped, and refuses what cannot work."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig

from draftrec.data.sequences import read_semantic_ids, write_semantic_ids
from draftrec.errors import DraftrecError, Interrupted
from draftrec.items.prompts import HistoryEncoder
from draftrec.items.settings import PromptFormat
from draftrec.jobs.recommend.item_model import ItemModel
from draftrec.models.recommender import IDS_FILE, load_recommender, new_tokenizer
from draftrec.train import presets, session
from draftrec.train.align import AlignSpec, align
from draftrec.train.drafter.fit import DrafterSpec, fit_drafter
from draftrec.train.fit import FitSpec, fit
from draftrec.train.presets import LoraSettings, ModelSource
from draftrec.train.teacher import TeachSpec, teach
from tests.jobs.recommend.worlds import reassigned
from tests.train.small import SETTINGS, catalogue, fit_spec


class StopAfter:
    """Asks to stop after so many steps."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def __call__(self) -> bool:
        self.left -= 1
        return self.left == 0


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def same(one: Path, other: Path) -> bool:
    first, second = weights(one), weights(other)
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


@pytest.mark.slow
def test_a_target_learns_and_is_saved_whole(tmp_path: Path):
    spec = fit_spec(tmp_path, settings=replace(SETTINGS, epochs=12))
    found = fit(spec)
    assert found["valid_recall@10"] > 0.7
    assert found["valid_loss"] < 3.0
    target = load_recommender(spec.output, "cpu")
    assert (target.info.kind, target.info.levels) == ("target", 3)
    assert target.info.sids == catalogue().fingerprint()
    assert read_semantic_ids(target.folder / IDS_FILE).fingerprint() == target.info.sids
    assert target.info.training["epochs"][-1]["train_loss"] < 1.0
    tokens = catalogue().token_ids(target.tokenizer.get_vocab())
    encoder = HistoryEncoder(target.format, target.tokenizer, tokens)
    prompt = torch.from_numpy(encoder.encode(np.array([3, 4, 5]))).long()[None]
    assert int(target.model(input_ids=prompt).logits[0, -1].argmax()) == tokens[6, 0]
    lines = (spec.output / "training" / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == found["epochs"]
    assert json.loads(lines[0])["epoch"] == 0


@pytest.mark.slow
def test_an_item_model_learns_items_as_single_tokens(tmp_path: Path):
    spec = fit_spec(tmp_path, whole_items=True, settings=replace(SETTINGS, epochs=12))
    found = fit(spec)
    assert found["kind"] == "items"
    assert found["valid_ndcg@20"] > 0.7
    model = ItemModel.of(load_recommender(spec.output, "cpu"), catalogue())
    best, _ = model.propose(np.array([3, 4, 5]), 1)
    assert best.tolist() == [6]
    assert len(read_semantic_ids(spec.output / IDS_FILE).tokens) == 24
    assert fit(spec)["epochs"] == found["epochs"]  # already trained


@pytest.mark.slow
@pytest.mark.parametrize("steps", [1, 4, 7])
def test_interrupted_and_resumed_equals_uninterrupted(tmp_path: Path, steps: int):
    whole = fit_spec(tmp_path, "whole")
    fit(whole)
    broken = replace(whole, output=tmp_path / "broken")
    with pytest.raises(Interrupted):
        fit(broken, should_stop=StopAfter(steps))
    assert not (broken.output / "genrec.json").exists()
    with pytest.raises(Interrupted):
        fit(broken, should_stop=StopAfter(5))
    fit(broken)
    assert same(whole.output, broken.output)


@pytest.mark.parametrize("gone", ["", "training"])
def test_a_training_says_that_its_folder_was_removed(tmp_path: Path, gone: str):
    spec = fit_spec(tmp_path)

    def remove() -> bool:
        if (spec.output / "training" / "state.pt").exists():
            shutil.rmtree(spec.output / gone)
        return False

    with pytest.raises(DraftrecError, match="was removed while this process trained there"):
        fit(spec, should_stop=remove)


def test_a_training_whose_folder_goes_at_the_end_is_not_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    spec = fit_spec(tmp_path, settings=replace(SETTINGS, epochs=1), recall_users=0)
    save = session.save_recommender

    def removed(*args: Any) -> None:
        shutil.rmtree(spec.output)
        save(*args)

    monkeypatch.setattr(session, "save_recommender", removed)
    with pytest.raises(DraftrecError, match="was removed while this process trained there"):
        fit(spec)
    assert not (spec.output / "genrec.json").exists()
    monkeypatch.undo()
    assert fit(spec)["epochs"] == 1, "the same command trains anew"


@pytest.mark.slow
def test_a_finished_training_is_left_alone_unless_it_differs(tmp_path: Path):
    spec = fit_spec(tmp_path)
    first = fit(spec)
    before = (spec.output / "model.safetensors").stat().st_mtime_ns
    assert fit(spec) == first
    assert (spec.output / "model.safetensors").stat().st_mtime_ns == before
    other = replace(spec, settings=replace(SETTINGS, lr=1e-4))
    with pytest.raises(DraftrecError, match=r"lr was 0\.003, now 0\.0001"):
        fit(other)
    assert fit(replace(other, overwrite=True))["valid_loss"] != first["valid_loss"]


@pytest.mark.slow
def test_valid_items_can_be_learnt_from_as_well(tmp_path: Path):
    found = fit(fit_spec(tmp_path, with_valid=True))
    assert found["epochs"] == SETTINGS.epochs
    assert "valid_loss" not in found


@pytest.mark.slow
def test_mixed_precision_trains_too(tmp_path: Path):
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        found = fit(fit_spec(tmp_path, settings=replace(SETTINGS, precision="bf16")))
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
    assert np.isfinite(found["valid_loss"])


@pytest.mark.slow
@pytest.mark.parametrize("tied", [False, True])
def test_a_checkpoint_learns_new_tokens_through_adapters(tmp_path: Path, *, tied: bool):
    source = save_language_model(tmp_path / "language", tied=tied)
    spec = fit_spec(
        tmp_path,
        source=ModelSource("checkpoint", str(source)),
        lora=LoraSettings(rank=2, alpha=4, dropout=0.0),
        settings=replace(SETTINGS, dropout=0.0),
    )
    fit(spec)
    before, after = weights(source), weights(spec.output)
    assert before.keys() == after.keys()
    rows = len(before["model.embed_tokens.weight"])
    for name in ("model.embed_tokens.weight", *([] if tied else ["lm_head.weight"])):
        assert torch.equal(after[name][:rows], before[name]), "old rows stay"
        assert len(after[name]) == rows + len(catalogue().tokens)
    name = "model.layers.0.self_attn.q_proj.weight"
    assert not torch.equal(before[name], after[name])
    moved = load_recommender(spec.output, "cpu")
    assert moved.format.prefix
    fresh = replace(spec, output=tmp_path / "again", settings=replace(spec.settings, lr=1e-9))
    fit(fresh)
    still = weights(fresh.output)["model.embed_tokens.weight"][rows:]
    assert not torch.allclose(still, after["model.embed_tokens.weight"][rows:], atol=1e-4)


@pytest.mark.slow
def test_a_recommender_is_trained_further(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    first = fit_spec(tmp_path, "first")
    fit(first)
    spec = replace(
        first, output=tmp_path / "second", source=ModelSource("checkpoint", str(first.output))
    )
    fit(spec)
    assert weights(spec.output).keys() == weights(first.output).keys()
    assert load_recommender(spec.output, "cpu").format == load_recommender(first.output).format
    assert "trained on other" not in caplog.text
    moved = tmp_path / "moved.jsonl"
    write_semantic_ids(moved, reassigned(catalogue()))
    third = replace(spec, output=tmp_path / "third", sids=str(moved))
    fit(replace(third, settings=replace(SETTINGS, epochs=1)))
    assert "first was trained on other semantic ids than" in caplog.text


SMALL = {
    "model_type": "llama", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
    "num_attention_heads": 2, "max_position_embeddings": 128,
}  # fmt: skip


@pytest.mark.slow
def test_another_configuration_in_the_same_file_is_refused(tmp_path: Path):
    """Weights of equal shapes went on as another model's."""
    path = tmp_path / "config.json"
    path.write_text(json.dumps(SMALL))
    spec = fit_spec(
        tmp_path, source=ModelSource("config", str(path)), recall_users=0,
        settings=replace(SETTINGS, epochs=1),
    )  # fmt: skip
    with pytest.raises(Interrupted):
        fit(spec, should_stop=StopAfter(1))
    path.write_text(json.dumps({**SMALL, "rope_theta": 100.0}))
    with pytest.raises(DraftrecError, match=r"source_files changed.*--overwrite"):
        fit(spec)
    path.write_text(json.dumps(SMALL))
    fit(spec)


@pytest.mark.slow
def test_another_checkpoint_in_the_same_folder_is_refused(tmp_path: Path):
    once = replace(SETTINGS, epochs=1)
    first = fit_spec(tmp_path, "first", settings=once, recall_users=0)
    fit(first)
    second = replace(
        first, output=tmp_path / "second", source=ModelSource("checkpoint", str(first.output))
    )
    with pytest.raises(Interrupted):
        fit(second, should_stop=StopAfter(1))
    fit(replace(first, settings=replace(once, seed=1), overwrite=True))
    with pytest.raises(DraftrecError, match=r"source_files changed.*--overwrite"):
        fit(second)
    record = second.output / "training" / "settings.json"
    earlier = json.loads(record.read_text())
    del earlier["source_files"]
    record.write_text(json.dumps(earlier))
    found = fit(second)  # earlier versions did not look at the files
    shutil.rmtree(first.output)
    assert fit(second) == found


def test_an_output_that_is_an_input_is_refused(tmp_path: Path):
    here = str(tmp_path)
    source = ModelSource("checkpoint", here)
    runs: list[tuple[str, Callable[[], Any]]] = [
        ("--from", lambda: fit(FitSpec("none", "none", tmp_path, source, overwrite=True))),
        ("--from", lambda: align(AlignSpec(tmp_path / "a", "b", tmp_path, source))),
        ("--target", lambda: align(AlignSpec(tmp_path / "a", here, tmp_path))),
        ("TEACHER", lambda: align(AlignSpec(tmp_path, "b", tmp_path))),
        ("TARGET", lambda: teach(TeachSpec(here, "none", "none", tmp_path))),
        ("--model", lambda: fit_drafter(DrafterSpec(runs=[], model=here, output=tmp_path))),
    ]
    for option, run in runs:
        with pytest.raises(DraftrecError, match=f"is the folder of {option}, which is only read"):
            run()
    assert not list(tmp_path.iterdir())


def save_language_model(folder: Path, *, tied: bool) -> Path:
    from transformers import LlamaConfig, LlamaForCausalLM

    from tests.models import folders

    tokenizer = folders.make_tokenizer(40)
    tokenizer.add_special_tokens({"bos_token": "w001"})
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=40, hidden_size=32, intermediate_size=64, num_hidden_layers=1,
            num_attention_heads=2, max_position_embeddings=128, bos_token_id=1, eos_token_id=2,
            tie_word_embeddings=tied,
        )
    )  # fmt: skip
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def refused(spec: FitSpec, words: str) -> None:
    with pytest.raises(DraftrecError, match=words) as error:
        fit(spec)
    assert "\n" not in str(error.value)
    assert not spec.output.exists()


def test_bad_input_is_refused_in_a_sentence(tmp_path: Path):
    spec = fit_spec(tmp_path)
    sequences = Path(spec.sequences)
    rows = [json.loads(line) for line in sequences.read_text().splitlines()]

    def written(*changed: dict[str, object]) -> FitSpec:
        path = tmp_path / "other.jsonl"
        path.write_text("\n".join(map(json.dumps, changed)))
        return replace(spec, sequences=str(path))

    stranger = {"user": 7, "items": [4, 5], "part": "train"}
    refused(written(stranger), "no item of any history has a semantic id, such as item 4 of user 7")
    refused(written(*(r for r in rows if r["part"] != "train")), "no items of part 'train'")
    refused(replace(spec, source=ModelSource("preset", "huge")), "no preset 'huge'")
    refused(replace(spec, source=ModelSource("config", str(tmp_path))), "no model configuration")
    refused(replace(spec, lora=LoraSettings()), "give one with --from")
    refused(
        replace(spec, source=ModelSource("checkpoint", str(tmp_path / "none"))), "does not exist"
    )
    for name, value in (("epochs", 0), ("dropout", 1.0), ("lr", 0.0), ("device", "tpu")):
        with pytest.raises(DraftrecError, match=f"--{name} must"):
            replace(SETTINGS, **{name: value})
    for value, words in ((-1.0, "at least 0"), (float("nan"), "a finite number")):
        with pytest.raises(DraftrecError, match=f"--weight-decay must be {words}"):
            replace(SETTINGS, weight_decay=value)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"model_type": "bloom", "hidden_size": 32, "n_layer": 1, "n_head": 2}, "cannot be served"),
        (
            {"model_type": "mamba", "hidden_size": 32, "num_hidden_layers": 1, "state_size": 8},
            "MambaForCausalLM cannot be served",
        ),
        (
            {
                "model_type": "falcon", "hidden_size": 32, "num_hidden_layers": 1,
                "num_attention_heads": 2, "alibi": True,
            },
            "cannot be served: its ALiBi biases",
        ),
        (
            {
                "model_type": "bert", "hidden_size": 32, "num_hidden_layers": 1,
                "num_attention_heads": 2, "intermediate_size": 32,
            },
            "cannot be served",
        ),
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["config", "checkpoint"])
def test_what_could_never_recommend_is_refused_before_it_is_trained(
    tmp_path: Path, config: dict[str, Any], words: str, kind: Any
):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    if kind == "checkpoint":
        path = tmp_path / "checkpoint"
        tokenizer = new_tokenizer(catalogue().tokens)
        presets.file_config(tmp_path / "config.json", tokenizer, 8).save_pretrained(path)
        tokenizer.save_pretrained(path)
        presets.new_model(AutoConfig.from_pretrained(path), 0).save_pretrained(path)
    refused(fit_spec(tmp_path, source=ModelSource(kind, str(path))), words)


@pytest.mark.slow
def test_a_configuration_file_gives_the_architecture(tmp_path: Path):
    config = tmp_path / "config.json"
    config.write_text(
        json.dumps(
            {"model_type": "gpt2", "n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 128}
        )
    )
    spec = fit_spec(tmp_path, source=ModelSource("config", str(config)))
    fit(spec)
    assert load_recommender(spec.output, "cpu").model.config.model_type == "gpt2"
    config.write_text(json.dumps({"model_type": "gpt2", "n_positions": 16}))
    refused(replace(spec, output=tmp_path / "short"), "room for 16 tokens")


def test_words_that_a_new_tokenizer_cannot_know_are_refused_before_anything_is_written(
    tmp_path: Path,
):
    spec = replace(fit_spec(tmp_path), form=PromptFormat(prefix="Then"))
    with pytest.raises(DraftrecError, match="words of --prefix 'Then'"):
        fit(spec)
    assert not spec.output.exists()
