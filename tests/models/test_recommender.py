"""Folders of recommenders: what is written is read again, what is none is refused."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from draftrec.errors import DraftrecError
from draftrec.items.prompts import HistoryEncoder
from draftrec.items.semantic_ids import SemanticIds
from draftrec.items.settings import PromptFormat
from draftrec.models.recommender import (
    RecommenderInfo,
    check_draft,
    check_ids,
    load_recommender,
    new_tokenizer,
    save_recommender,
    weights_fingerprint,
)
from tests.fakes import Killed

TOKENS = ("<a_0>", "<a_1>", "<b_0>", "<b_1>")


IDS = SemanticIds.of([7, 8, 9], [["<a_0>", "<b_0>"], ["<a_0>", "<b_1>"], ["<a_1>", "<b_0>"]])


def save(
    folder: Path, tokens: tuple[str, ...] = TOKENS, seed: int = 0, sids: SemanticIds | None = None
) -> Path:
    torch.manual_seed(seed)
    tokenizer = new_tokenizer(tokens)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1,
            num_attention_heads=2, max_position_embeddings=64, bos_token_id=1, eos_token_id=2,
        )
    )  # fmt: skip
    known = sids.fingerprint() if sids else "s"
    info = RecommenderInfo(levels=2, sids=known, prompt=PromptFormat(max_items=3).as_dict())
    save_recommender(folder, model, tokenizer, info, sids)
    return folder


def test_tokens_of_semantic_ids_are_single_tokens():
    tokenizer = new_tokenizer(TOKENS)
    assert tokenizer.get_vocab() == {
        "<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, **{t: i + 4 for i, t in enumerate(TOKENS)}
    }  # fmt: skip
    assert tokenizer.encode("<a_1><b_0> <b_1>", add_special_tokens=False) == [5, 6, 7]
    assert tokenizer.bos_token_id == 1
    with pytest.raises(DraftrecError, match="must be distinct"):
        new_tokenizer(("<a_0>", "<a_0>"))
    with pytest.raises(DraftrecError, match="none of <pad>"):
        new_tokenizer(("<s>",))


def test_a_folder_is_read_as_it_was_written(tmp_path: Path):
    found = load_recommender(save(tmp_path / "a"), "cpu")
    assert found.format == PromptFormat(max_items=3)
    assert (found.info.kind, found.info.levels) == ("target", 2)
    assert found.fingerprint == weights_fingerprint(tmp_path / "a")
    encoder = HistoryEncoder(found.format, found.tokenizer, np.array([[4, 6], [5, 7]], np.int32))
    prompt = encoder.encode(np.array([1, 0]))
    assert prompt.tolist() == [1, 5, 7, 4, 6]
    logits = found.model(input_ids=torch.from_numpy(prompt).long()[None]).logits
    assert logits.shape == (1, 5, 8)


def test_a_model_is_on_the_disk_before_its_sign(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save(tmp_path / "model", sids=IDS)
    (folder / "training").mkdir()
    synced: set[str] = set()
    fsync, replace = os.fsync, Path.replace

    def noted(descriptor: int) -> None:
        known = os.fstat(descriptor)
        synced.update(p.name for p in folder.iterdir() if os.path.samestat(p.stat(), known))
        fsync(descriptor)

    def checked(path: Path, target: Path) -> Path:
        if target.name == "genrec.json":
            assert {p.name for p in folder.iterdir() if p.is_file()} <= synced
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", noted)
    monkeypatch.setattr(Path, "replace", checked)
    save(folder, seed=1, sids=IDS)


def test_fingerprints_tell_checkpoints_apart(tmp_path: Path):
    first, same, other = (
        weights_fingerprint(save(tmp_path / name, seed=seed))
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert first == same
    assert first != other


def test_a_model_is_bound_to_its_ids(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    found = load_recommender(save(tmp_path / "a", sids=IDS), "cpu")

    def check(items: list[int | str], sids: list[list[str]], *, again: bool = False) -> None:
        given = SemanticIds.of(items, sids)
        check_ids(found.info, found.folder, given, "new.parquet", again=again)

    old = IDS.sids_of(IDS.items)
    check([9, 8, 7], old[::-1])
    check([7, 8, 9, 10], [*old, ["<a_1>", "<b_1>"]])  # one has joined
    check([7, 9, 11], [old[0], old[2], ["<a_7>", "<b_7>"]])  # one has left
    assert not caplog.records
    moved = "a was trained on other semantic ids than new.parquet are: 2 of 3 items .* item 8, "
    moved += "which had <a_0> <b_1> and now has <a_1> <b_0>; give the semantic ids that"
    with pytest.raises(DraftrecError, match=moved):
        check([7, 8, 9], [old[0], old[2], old[1]])
    with pytest.raises(DraftrecError, match="3 of 3 items"):
        check([7, 8, 9], [[*sid, "<c_0>"] for sid in old])
    assert not caplog.records
    check([7, 8, 9], [old[0], old[2], old[1]], again=True)
    assert caplog.records.pop().getMessage().endswith("what it knows of items is learnt anew")
    check(["x", "y", "z"], old)
    assert "new.parquet have no item that" in caplog.records.pop().getMessage()


def test_ids_of_models_that_kept_none_are_doubted(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    info = load_recommender(save(tmp_path / "a", sids=IDS), "cpu").info
    save(tmp_path / "a")  # an earlier version's
    check_ids(info, tmp_path / "a", IDS, "ids.parquet")
    assert not caplog.records
    check_ids(info, tmp_path / "a", SemanticIds.of([7], [["<a_0>", "<b_0>"]]), "ids.parquet")
    assert "ids.parquet are not, to the letter" in caplog.text


def test_a_draft_needs_the_vocabulary_of_its_target(tmp_path: Path):
    target = load_recommender(save(tmp_path / "a"), "cpu")
    check_draft(target, load_recommender(save(tmp_path / "b", seed=3), "cpu"))
    with pytest.raises(DraftrecError, match="another vocabulary"):
        check_draft(target, load_recommender(save(tmp_path / "c", TOKENS[::-1]), "cpu"))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "has no genrec.json"),
        ("{", "is damaged"),
        ('{"sids": "s"}', "is damaged"),
        ('{"sids": "s", "levels": 4, "format_version": 99}', "format version 99"),
        ('{"sids": "s", "levels": 4, "prompt": {"colour": 1}}', "does not know"),
    ],
)
def test_other_folders_are_refused_in_a_sentence(tmp_path: Path, content: str | None, words: str):
    folder = save(tmp_path / "a")
    (folder / "genrec.json").unlink()
    if content is not None:
        (folder / "genrec.json").write_text(content)
    with pytest.raises(DraftrecError, match=words) as error:
        load_recommender(folder, "cpu")
    assert "\n" not in str(error.value)


def test_ids_in_the_models_folder_are_there_whatever_ends_the_saving(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """They may be those that it is trained on again: a kill between two steps cost them."""
    save(tmp_path, sids=IDS)
    before = (tmp_path / "sids.parquet").read_bytes()

    def killed(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("draftrec.models.recommender.write_semantic_ids", killed)
        with pytest.raises(Killed):
            save(tmp_path, sids=IDS)
    assert (tmp_path / "sids.parquet").read_bytes() == before
    save(tmp_path)
    assert not (tmp_path / "sids.parquet").exists()
