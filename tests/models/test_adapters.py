"""Adapters as peft saves them, named as models."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
import transformers as tf
from safetensors.torch import load_file, save_file

from draftrec import Generator
from draftrec.config import EncoderConfig, ModelConfig
from draftrec.errors import DraftrecError
from draftrec.models import bodies, loading, sources
from tests.models import zoo
from tests.models.folders import make_tokenizer, save

peft = pytest.importorskip("peft")
# peft's, of names in transformers and of embeddings that it saves.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")

PROMPT = [5, 7, 9, 11]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(zoo.build("llama"), tmp_path_factory.mktemp("models") / "base")


def train(base: Path, folder: Path, *, rows: int | None = None, **settings: Any) -> list[int]:
    """Save an adapter that changes much; what transformers and peft write with it, unmerged."""
    model: Any = tf.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if rows is not None:
        model.resize_token_embeddings(rows, mean_resizing=False)
    torch.manual_seed(1)
    config = peft.LoraConfig(
        r=4, lora_alpha=16, task_type="CAUSAL_LM", init_lora_weights=False, **settings
    )
    adapted = peft.get_peft_model(model, config).eval()
    adapted.save_pretrained(folder)
    ids = torch.tensor([PROMPT])
    options = {"do_sample": False, "max_new_tokens": 16, "pad_token_id": 0}
    return adapted.generate(input_ids=ids, **options)[0, len(PROMPT) :].tolist()


def written(folder: Path) -> list[int]:
    generator = Generator.from_pretrained(folder, max_new_tokens=16, device="cpu")
    prompt = " ".join(f"w{i:03}" for i in PROMPT)
    return generator.generate(prompt, full=True)[0].token_ids.tolist()


def refused(model: Path | str, *parts: str) -> None:
    with pytest.raises(DraftrecError) as error:
        loading.load_model(ModelConfig(model=str(model), device="cpu"))
    assert "\n" not in str(error.value)
    for part in parts:
        assert part in str(error.value)


@pytest.fixture
def change(base: Path, tmp_path: Path) -> Callable[..., Path]:
    """An adapter of `base` whose configuration has other values."""
    folder = tmp_path / "adapter"
    train(base, folder, target_modules=["q_proj"])

    def make(**values: Any) -> Path:
        file = folder / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | values))
        return folder

    return make


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": "all-linear"},
        {"target_modules": "all-linear", "use_dora": True},
        {"target_modules": ["q_proj", "embed_tokens"]},
        {"target_modules": ["q_proj"], "trainable_token_indices": [3, 5]},
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"], "rows": 103},
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"], "rows": 90},
    ],
    ids=["lora", "dora", "embeddings", "tokens", "modules", "longer", "shorter"],
)
def test_texts_are_those_of_the_model_beside_its_adapter(
    base: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    expected = train(base, tmp_path, **settings)
    assert written(tmp_path) == expected != written(base)


def test_it_becomes_a_plain_model_with_a_fingerprint_of_its_own(
    base: Path, change: Callable[..., Path]
) -> None:
    config = ModelConfig(model=str(change()), device="cpu")
    model = loading.load_model(config)
    assert type(model) is tf.LlamaForCausalLM
    assert not any(p.requires_grad for p in model.parameters())
    assert {n for n, _ in model.named_parameters()} == {
        n for n, _ in zoo.build("llama").named_parameters()
    }
    ours, plain = (
        loading.model_fingerprint(m)
        for m in (model, loading.load_model(config.model_copy(update={"model": str(base)})))
    )
    assert ours != plain
    assert ours == loading.model_fingerprint(loading.load_model(config))
    assert loading.load_outline(config).config.model_type == "llama"


def test_the_tokenizer_is_its_own_or_the_models(change: Callable[..., Path]) -> None:
    folder = change()
    assert len(loading.load_tokenizer(folder)) == zoo.VOCABULARY
    make_tokenizer(words=103).save_pretrained(folder)
    assert len(loading.load_tokenizer(folder)) == 103


def test_its_model_may_lie_beside_it(base: Path, change: Callable[..., Path]) -> None:
    folder = change(base_model_name_or_path="../model")
    shutil.copytree(base, folder.parent / "model")
    loading.load_model(ModelConfig(model=str(folder), device="cpu"))


def test_a_model_that_is_not_there_is_named_with_the_file_that_names_it(
    change: Callable[..., Path],
) -> None:
    refused(change(base_model_name_or_path="/no/base"), "/no/base", "adapter_config.json", "exist")
    refused(change(base_model_name_or_path=None), "names no model", "base_model_name_or_path")
    folder = change(base_model_name_or_path=str(change()))
    refused(folder, "which is one itself", "merge_and_unload")
    (folder / "adapter_config.json").write_text("[]")
    refused(folder, "cannot be read")


@pytest.mark.parametrize("layers", [1, 3])
def test_that_of_another_model_is_refused(
    change: Callable[..., Path], tmp_path: Path, layers: int
) -> None:
    """Weights without a place would be left out, and places without weights be random, silently."""
    other = save(zoo.build("llama", num_hidden_layers=layers), tmp_path / "other")
    refused(change(base_model_name_or_path=str(other)), "no counterpart", str(other))


def test_what_is_no_change_of_weights_is_refused(base: Path, tmp_path: Path) -> None:
    model: Any = tf.AutoModelForCausalLM.from_pretrained(base)
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    peft.get_peft_model(model, config).save_pretrained(tmp_path / "prompt")
    refused(tmp_path / "prompt", "learned prompt")


def test_damaged_weights_are_refused(change: Callable[..., Path]) -> None:
    weights = change() / "adapter_model.safetensors"
    found = load_file(weights)
    save_file({n: w * float("nan") for n, w in found.items()}, weights)
    refused(weights.parent, "cannot be merged", str(weights.parent))
    weights.write_bytes(b"x" * 100)
    refused(weights.parent, "cannot be merged", str(weights.parent))
    weights.unlink()
    refused(weights.parent, "has no weights", "adapter_model.safetensors")


def test_a_whole_model_beside_it_is_ambiguous(base: Path, change: Callable[..., Path]) -> None:
    """transformers adds the adapter if peft is there, although it may have been merged already."""
    folder = change()
    shutil.copy(base / "config.json", folder)
    sources.find_source(folder)  # some programs leave the configuration there, without weights
    shutil.copy(base / "model.safetensors", folder)
    refused(folder, "a whole model and an adapter", str(folder))


def test_without_peft_it_is_named(
    change: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    refused(change(), 'pip install "draftrec[adapters]"')


def test_an_encoder_it_does_not_fit_is_refused(change: Callable[..., Path]) -> None:
    with pytest.raises(DraftrecError, match="cannot be merged"):
        bodies.load_pooled(str(change()), EncoderConfig(device="cpu"))


def test_on_the_hub_it_is_found_where_no_model_is(
    base: Path, change: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = change() / "adapter_config.json"

    def only_cached(model: str, name: str) -> bool:
        if name == "config.json":
            raise sources._NoFileError(f"{model} has no {name}.")
        return False

    monkeypatch.setattr(sources, "_only_cached", only_cached)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *_, **__: str(file))
    assert sources.find_source("some/lora") == sources.Source(str(base), adapter="some/lora")
    refused(change(base_model_name_or_path="some/lora"), "which is one itself")
    monkeypatch.setattr(sources, "_only_cached", lambda *_: only_cached("some/lora", "config.json"))
    refused("some/lora", "has no config.json")
