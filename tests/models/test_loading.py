"""Loading: what is found, and the sentence a user reads where something is missing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from draftrec.config import ModelConfig
from draftrec.core import Request
from draftrec.engine.rotary import context_length
from draftrec.errors import DraftrecError
from draftrec.jobs.knowledge.generator import Generator
from draftrec.models import loading
from tests.models import zoo
from tests.models.folders import make_tokenizer, save

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole model folder: configuration, weights in bfloat16, tokenizer."""
    return save(zoo.build("llama").bfloat16(), tmp_path_factory.mktemp("models") / "llama")


def config(model: Path | str, **settings: Any) -> ModelConfig:
    return ModelConfig(model=str(model), device="cpu", **settings)


@pytest.fixture
def broken(saved: Path, tmp_path: Path) -> Callable[..., Path]:
    """A copy of the folder without some of its files."""

    def make(*patterns: str) -> Path:
        folder = tmp_path / "copy"
        shutil.copytree(saved, folder)
        for pattern in patterns:
            for file in folder.glob(pattern):
                file.unlink()
        return folder

    return make


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_whole_folder_loads(saved: Path, dtype: str) -> None:
    model = loading.load_model(config(saved, dtype=dtype))
    assert model.dtype == getattr(torch, dtype)
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())
    tokenizer = loading.load_tokenizer(saved)
    assert loading.eos_token_ids(model, tokenizer) == frozenset([2])
    assert context_length(model) == zoo.CONTEXT


def refused(action: Callable[[], Any], *parts: str) -> None:
    """Refused in one sentence that holds all `parts` and no trace of the library's own error."""
    with pytest.raises(DraftrecError) as error:
        action()
    message = str(error.value)
    assert "\n" not in message
    assert message.endswith(".")
    for part in parts:
        assert part in message


def test_missing_pieces_are_named(broken: Callable[..., Path], tmp_path: Path) -> None:
    folder = broken("*.safetensors", "*.bin")
    refused(lambda: loading.load_model(config(folder)), "has no weights", str(folder))
    (folder / "config.json").unlink()
    refused(lambda: loading.load_model(config(folder)), "no config.json", str(folder))
    refused(lambda: loading.load_tokenizer(folder), "no config.json")
    refused(lambda: loading.load_model(config(tmp_path / "nowhere")), "does not exist")


def test_a_folder_without_tokenizer_is_named(broken: Callable[..., Path]) -> None:
    folder = broken("tokenizer*", "special_tokens*")
    refused(lambda: loading.load_tokenizer(folder), "No tokenizer", str(folder), "tokenizer.json")


def test_damaged_weights_are_refused(broken: Callable[..., Path]) -> None:
    folder = broken()
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:2000])
    refused(lambda: loading.load_model(config(folder)), "could not be loaded", str(folder))


def test_a_config_that_is_no_language_models_is_refused(broken: Callable[..., Path]) -> None:
    folder = broken()
    (folder / "config.json").write_text('{"model_type": "no-such-architecture"}')
    refused(lambda: loading.load_model(config(folder)), "could not be loaded")


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_settings_that_are_json_of_another_shape_are_refused(
    broken: Callable[..., Path], name: str
) -> None:
    folder = broken()
    (folder / name).write_text("[]")
    refused(lambda: loading.load_model(config(folder)), "could not be loaded", str(folder))


@pytest.mark.parametrize("name", ["gpu", "cpu:x", "mps", "", "cuda:-1"])
def test_unknown_devices_are_refused(name: str) -> None:
    refused(lambda: loading.pick_device(name), "nknown device")


def test_a_cuda_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert loading.pick_device("cuda:1").index == 1
    refused(lambda: loading.pick_device("cuda:2"), "not there", "2 CUDA devices")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    refused(lambda: loading.pick_device("cuda"), "not there", "--device cpu")


def test_automatic_device_is_cuda_if_there_is_any(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert loading.pick_device("auto").type == "cuda"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert loading.pick_device("auto").type == "cpu"


def test_automatic_dtype_is_the_stored_one_but_exact_on_the_cpu() -> None:
    for stored in (torch.bfloat16, torch.float16, torch.float32, None):
        assert loading.pick_dtype("auto", stored, CPU) == torch.float32
    assert loading.pick_dtype("auto", torch.bfloat16, CUDA) == torch.bfloat16
    assert loading.pick_dtype("bfloat16", torch.float32, CPU) == torch.bfloat16
    assert loading.pick_dtype("auto", torch.float16, CUDA) == torch.float16
    assert loading.pick_dtype("float16", torch.float32, CPU) == torch.float16


def test_bfloat16_weights_stay_that_where_they_are_packed_and_multiplied(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "multiplies_bfloat16", lambda: True)
    assert loading.load_model(config(saved), packs=True).dtype == torch.bfloat16
    assert loading.load_model(config(saved)).dtype == torch.float32, "as encoders and others"
    for native in (True, False):
        monkeypatch.setattr(loading, "multiplies_bfloat16", lambda native=native: native)
        for stored in (torch.bfloat16, torch.float16, torch.float32, None):
            for packs in (True, False):
                found = loading.pick_dtype("auto", stored, CPU, packs=packs)
                narrow = native and packs and stored == torch.bfloat16
                assert found == (torch.bfloat16 if narrow else torch.float32)
        assert loading.pick_dtype("float32", torch.bfloat16, CPU, packs=True) == torch.float32


def test_only_models_whose_attention_can_be_replaced_are_packed() -> None:
    for name in zoo.NAMES:
        packed = loading._replaceable(AutoModelForCausalLM, zoo.build(name).config)
        assert packed == (name not in zoo.FALLBACK)


@pytest.mark.parametrize("name", zoo.SEEING)
def test_models_that_also_look_at_images_write_what_transformers_writes(
    name: str, tmp_path: Path
) -> None:
    """transformers does not list them among causal language models."""
    model: Any = zoo.build(name)
    folder = save(model, tmp_path / name)
    prompts = [np.array(p, np.int32) for p in ([1, 40, 7], [8, 9, 30, 31], [77])]
    expected = [
        model.generate(
            torch.tensor(p[None], dtype=torch.long), do_sample=False, max_new_tokens=12,
            pad_token_id=0,
        )[0, len(p) :].tolist()
        for p in prompts
    ]  # fmt: skip
    assert len({t for text in expected for t in text}) > 3, "texts this dull would hide differences"
    generator = Generator.from_pretrained(folder, max_new_tokens=12, budget=4, batch_size=2)
    generator.commit([(np.array(text, np.int32), "") for text in expected])
    done = generator.run([Request(str(i), p) for i, p in enumerate(prompts)])
    assert [g.token_ids.tolist() for g in done] == expected
    assert sum(g.counts.accepted_tokens for g in done) > 0
    assert loading.load_outline(config(folder)).config.model_type == name


def test_fingerprint_tells_tokenizers_apart() -> None:
    same = loading.tokenizer_fingerprint(make_tokenizer())
    assert loading.tokenizer_fingerprint(make_tokenizer()) == same
    assert loading.tokenizer_fingerprint(make_tokenizer(words=96)) != same
    assert loading.tokenizer_fingerprint(make_tokenizer(eos=3)) != same


def test_fingerprint_tells_checkpoints_apart() -> None:
    same = loading.model_fingerprint(zoo.build("llama"))
    assert loading.model_fingerprint(zoo.build("llama")) == same
    assert loading.model_fingerprint(zoo.build("qwen2")) != same
    trained: Any = zoo.build("llama")
    trained.model.layers[1].mlp.up_proj.weight.data += 1e-3
    assert loading.model_fingerprint(trained) != same


def test_what_ends_a_text_is_in_the_settings_and_in_the_tokenizer() -> None:
    """Checkpoints whose chat format was changed name the end of a turn in the tokenizer alone."""
    model: Any = zoo.build("llama")
    model.generation_config.eos_token_id = [5, 6]
    assert loading.eos_token_ids(model, make_tokenizer()) == frozenset([2, 5, 6])
    assert loading.eos_token_ids(model, None) == frozenset([5, 6])
    model.generation_config.eos_token_id = None
    assert loading.eos_token_ids(model, make_tokenizer()) == frozenset([2])
    model.config.eos_token_id = None
    assert loading.eos_token_ids(model, make_tokenizer(eos=7)) == frozenset([7])
    assert loading.eos_token_ids(model, None) == frozenset()


@pytest.mark.parametrize("name", ["llama", "gpt2", "gptj"])
def test_context_length_is_found_under_any_name(name: str) -> None:
    assert context_length(zoo.build(name)) == zoo.CONTEXT


def test_an_incomplete_checkpoint_is_refused(broken: Callable[..., Path]) -> None:
    folder = broken()
    path = folder / "model.safetensors"
    weights = load_file(path)
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(DraftrecError, match=r"lacks 1 weights .*up_proj"):
        loading.load_model(config(folder))


def test_the_chat_template_of_models_that_also_look_at_images_is_read(
    broken: Callable[..., Path],
) -> None:
    """transformers reads this file for their processors, not for tokenizers."""
    folder = broken()
    assert loading.load_tokenizer(folder).chat_template is None
    (folder / "chat_template.json").write_text('{"chat_template": "{{ messages }}"}')
    assert loading.load_tokenizer(folder).chat_template == "{{ messages }}"
    (folder / "chat_template.jinja").write_text("own")
    assert loading.load_tokenizer(folder).chat_template == "own"
    (folder / "chat_template.jinja").unlink()
    (folder / "chat_template.json").write_text("{}")
    refused(lambda: loading.load_tokenizer(folder), "No tokenizer", "chat_template")


def test_a_tokenizer_of_mistrals_own_library_makes_way(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where that is installed, transformers takes it for Mistral's models: without a template."""
    backend = type("MistralCommonBackend", (), {})
    monkeypatch.setattr(tf.AutoTokenizer, "from_pretrained", lambda *_, **__: backend())
    assert loading.load_tokenizer(saved).get_vocab() == make_tokenizer().get_vocab()


def test_a_long_prompt_is_not_said_to_end_in_indexing_errors(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    log = tf.tokenization_utils_base.logger
    monkeypatch.setattr(log, "warning", lambda text, *_: said.append(text))
    folder = shutil.copytree(saved, tmp_path / "short")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"model_max_length": 4}))
    tokenizer = loading.load_tokenizer(folder)
    assert tokenizer.model_max_length == 4
    assert len(tokenizer("a b c d e f g h").input_ids) > 4
    assert not said
