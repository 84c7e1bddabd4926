"""Folders of drafters: what is written is read again, what is none, or another's, is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from draftrec.engine.learned.head import DraftHead, HeadShape
from draftrec.errors import DraftrecError
from draftrec.models.drafters import (
    INFO_FILE,
    WEIGHTS_FILE,
    DrafterInfo,
    OutputRows,
    describe_drafter,
    load_drafter,
    save_drafter,
    score_transform,
)
from tests.models import zoo

PRINTS = {"model": "m", "tokenizer": "t"}
TOKENS = torch.tensor([7, 3, 90, 2])


def save(folder: Path, model: Any) -> DraftHead:
    """A head for `model` in `folder`."""
    torch.manual_seed(0)
    shape = HeadShape.of(model.config.get_text_config())
    head = DraftHead(shape)
    sizes = {name: getattr(shape, name) for name in HeadShape.__slots__}
    scale, cap = score_transform(model)
    info = DrafterInfo(shape=sizes, levels=4, vocabulary=4, scale=scale, cap=cap, **PRINTS)
    save_drafter(folder, head.state_dict(), TOKENS, info)
    return head


def test_a_folder_is_read_as_it_was_written(tmp_path: Path) -> None:
    model = zoo.plain("llama")
    head = save(tmp_path, model)
    found = load_drafter(tmp_path, model, PRINTS)
    assert found.head.shape == head.shape
    assert found.tokens.tolist() == TOKENS.tolist()
    assert (found.info.form, found.info.levels, found.info.mixing) == ("head", 4, None)
    embedded, features = torch.randn(2, 3, 32)
    rounded = head.bfloat16().float()  # weights may be, what they are multiplied by may not
    torch.testing.assert_close(
        found.head.joined(embedded, features), rounded.joined(embedded, features)
    )
    assert not any(p.requires_grad for p in found.head.parameters())


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        *((name, {}) for name in zoo.NAMES),
        ("gemma2", {"final_logit_softcapping": 3.0}),
        ("gemma3", {"final_logit_softcapping": 3.0}),
    ],
)
def test_output_rows_score_as_the_target_does(name: str, changes: dict[str, Any]) -> None:
    model = zoo.build(name, **changes)
    scale, cap = score_transform(model)
    assert cap == changes.get("final_logit_softcapping", cap)
    ids = torch.tensor([[5, 9, 1, 44]])
    features = model.base_model(input_ids=ids).last_hidden_state[0]
    found = OutputRows.of(model, TOKENS, torch.float32, scale, cap)(features)
    torch.testing.assert_close(
        found, model(input_ids=ids).logits[0][:, TOKENS], rtol=1e-4, atol=1e-4
    )


def test_scaled_scores_are_recognised() -> None:
    import transformers as tf

    for config in (
        tf.CohereConfig(
            vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
            num_attention_heads=4, logit_scale=0.3, initializer_range=0.3,
        ),
        tf.GraniteConfig(
            vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
            num_attention_heads=4, logits_scaling=4.0, initializer_range=0.3,
        ),
    ):  # fmt: skip
        torch.manual_seed(0)
        model = tf.AutoModelForCausalLM.from_config(config).eval()
        scale = {"cohere": 0.3, "granite": 0.25}[config.model_type]
        assert score_transform(model) == (pytest.approx(scale), None)


def test_a_target_that_does_more_to_its_scores_is_refused() -> None:
    model: Any = zoo.build("llama")
    forward = model.forward

    def squared(*args: Any, **options: Any) -> Any:
        found = forward(*args, **options)
        found.logits = found.logits**2
        return found

    model.forward = squared
    with pytest.raises(DraftrecError, match="does not choose tokens by its last hidden state"):
        score_transform(model)


@pytest.mark.parametrize("what", ["tokenizer", "model"])
def test_another_targets_drafter_is_refused(tmp_path: Path, what: str) -> None:
    model = zoo.plain("llama")
    save(tmp_path, model)
    with pytest.raises(DraftrecError, match=f"another {what} than the target's"):
        load_drafter(tmp_path, model, {**PRINTS, what: "other"})


def test_what_is_no_drafter_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DraftrecError, match="so it is no drafter"):
        load_drafter(tmp_path, zoo.plain("llama"), PRINTS)


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_damaged_folders_are_refused(tmp_path: Path) -> None:
    model = zoo.plain("llama")

    def refused(words: str) -> None:
        with pytest.raises(DraftrecError, match=words):
            load_drafter(tmp_path, model, PRINTS)

    save(tmp_path, model)
    change(tmp_path / INFO_FILE, format_version=2)
    refused("update draftrec")
    change(tmp_path / INFO_FILE, format_version=1, vocabulary=5)
    refused("does not fit its drafter.json")
    change(tmp_path / INFO_FILE, vocabulary=4, shape={"hidden": 32})
    refused("drafter.json is damaged")
    save(tmp_path, model)
    sizes = json.loads((tmp_path / INFO_FILE).read_text())["shape"]
    change(tmp_path / INFO_FILE, shape={**sizes, "inner": 20})
    refused("head.safetensors is damaged")
    save(tmp_path, model)
    path = tmp_path / WEIGHTS_FILE
    path.write_bytes(path.read_bytes()[:-100])
    refused("head.safetensors is damaged")
    path.unlink()
    refused("head.safetensors is missing")
    with pytest.raises(DraftrecError, match=r"head\.safetensors is missing"):
        describe_drafter(tmp_path)
    save(tmp_path, model)
    (tmp_path / INFO_FILE).write_text("{")
    refused("drafter.json is damaged")
