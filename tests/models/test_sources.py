"""What `--model` names, and the sentence where it is not there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
import transformers as tf
from huggingface_hub import constants

from draftrec import Generator
from draftrec.config import ModelConfig
from draftrec.errors import DraftrecError, UnsupportedModelError
from draftrec.models import loading, sources
from draftrec.models.sources import find_source
from tests.models import gguf_files, zoo
from tests.models.folders import save


def refused(action: Callable[[], Any], *parts: str) -> None:
    with pytest.raises(DraftrecError) as error:
        action()
    assert "\n" not in str(error.value)
    for part in parts:
        assert part in str(error.value)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return gguf_files.write(tmp_path_factory.mktemp("gguf") / "tiny.Q8_0.gguf")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: Path) -> Path:
    """What an earlier download of `some/model` left: one GGUF file."""
    root = tmp_path / "hub"
    folder = root / "models--some--model"
    (folder / "snapshots" / "0").mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("0")
    (folder / "snapshots" / "0" / tiny.name).write_bytes(tiny.read_bytes())
    for module in (constants, huggingface_hub.file_download.constants):
        monkeypatch.setattr(module, "HF_HUB_CACHE", str(root))
    return root


def out_of_reach(*_: Any, **__: Any) -> Any:
    raise OSError("[Errno -2] Name or service not known")


class TestTheHub:
    @pytest.fixture(autouse=True)
    def reachable(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Whatever the environment says of staying offline."""
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)

    def test_out_of_reach_is_said_at_once_with_the_cause(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", out_of_reach)
        for load in (loading.load_tokenizer, lambda m: loading.load_model(ModelConfig(model=m))):
            refused(
                lambda load=load: load("nobody/nothing"),
                "no folder nobody/nothing", "out of reach", "Name or service not known",
            )  # fmt: skip

    def test_a_switch_that_keeps_it_offline_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", out_of_reach)
        refused(lambda: find_source("nobody/nothing"), "HF_HUB_OFFLINE is set")

    def test_what_was_downloaded_before_is_read_without_it(
        self, cache: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", out_of_reach)
        found = find_source("some/model:tiny.Q8_0.gguf")
        assert found.cached
        assert found.name == "some/model:tiny.Q8_0.gguf"
        assert found.options() == {"local_files_only": True, "gguf_file": "tiny.Q8_0.gguf"}
        refused(lambda: find_source("some/model:other.gguf"), "out of reach")


class TestFolders:
    def test_one_that_exists_is_never_called_missing(self, tmp_path: Path) -> None:
        refused(lambda: find_source(tmp_path), str(tmp_path), "has no config.json")
        file = tmp_path / "model.safetensors"
        file.write_bytes(b"x")
        refused(lambda: find_source(file), "is a file")
        refused(lambda: find_source(tmp_path / "none"), "does not exist")

    def test_gguf_files_in_it_are_offered(self, tiny: Path) -> None:
        refused(lambda: find_source(tiny.parent), "GGUF files", str(tiny))

    def test_pointers_of_git_lfs_are_named(self, tmp_path: Path) -> None:
        folder = save(zoo.build("llama"), tmp_path / "model")
        pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
        (folder / "model.safetensors").write_text(pointer)
        refused(lambda: find_source(folder), "model.safetensors", "git-lfs", "git lfs pull")


class TestCodeOfTheModels:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        """A model of an architecture that is a Python file beside it."""
        folder = save(zoo.build("llama"), tmp_path / "model")
        text = (folder / "config.json").read_text()
        auto = (
            '"auto_map": {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"},'
        )
        text = text.replace('"llama"', '"own"').replace("{", "{" + auto, 1)
        (folder / "config.json").write_text(text)
        (folder / "own.py").write_text(
            "from transformers import LlamaConfig, LlamaForCausalLM\n"
            "class OwnConfig(LlamaConfig):\n    model_type = 'own'\n"
            "class OwnModel(LlamaForCausalLM):\n    config_class = OwnConfig\n"
        )
        return folder

    def test_it_is_refused_and_never_asked_about(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def asked(*_: Any) -> str:
            raise AssertionError("asked on standard input")

        monkeypatch.setattr("builtins.input", asked)
        load = loading.load_model
        refused(lambda: load(ModelConfig(model=str(folder))), "--trust-remote-code")

    def test_an_option_allows_it(self, folder: Path) -> None:
        config = ModelConfig(model=str(folder), device="cpu", trust_remote_code=True)
        assert type(loading.load_model(config)).__name__ == "OwnModel"


@pytest.mark.parametrize(
    ("method", "package"),
    [("gptq", "gptqmodel"), ("bitsandbytes", "bitsandbytes"), ("awq", "gptqmodel")],
)
def test_quantised_weights_name_the_package_that_reads_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, package: str
) -> None:
    folder = save(zoo.build("llama"), tmp_path / "model")
    text = (folder / "config.json").read_text()
    settings = f'"quantization_config": {{"quant_method": "{method}", "bits": 4}},'
    (folder / "config.json").write_text(text.replace("{", "{" + settings, 1))

    def missing(*_: Any, **__: Any) -> Any:
        raise ImportError(f"Loading a {method} model needs a library")

    monkeypatch.setattr(tf.AutoModelForCausalLM, "from_pretrained", missing)
    refused(
        lambda: loading.load_model(ModelConfig(model=str(folder))),
        "needs a library", f"pip install {package}",
    )  # fmt: skip


class TestGguf:
    @pytest.mark.slow
    def test_texts_are_those_of_transformers_own_load(self, tiny: Path) -> None:
        place = {"pretrained_model_name_or_path": tiny.parent, "gguf_file": tiny.name}
        tokenizer = tf.AutoTokenizer.from_pretrained(**place)
        model = tf.AutoModelForCausalLM.from_pretrained(**place, dtype=torch.float32)
        prompts = ["the man in a tree", "an ant"]
        expected = []
        for prompt in prompts:
            ids = tokenizer(prompt, return_tensors="pt")
            whole = model.generate(**ids, do_sample=False, max_new_tokens=24, pad_token_id=0)
            new = whole[0, ids["input_ids"].shape[1] :]
            expected.append(tokenizer.decode(new, skip_special_tokens=True))
        ours = Generator.from_pretrained(tiny, device="cpu", max_new_tokens=24)
        assert ours.generate(prompts) == expected
        assert len(set(expected)) == 2
        assert ours.context_length == gguf_files.CONTEXT
        assert ours.eos_ids == frozenset([1])

    @pytest.mark.slow
    def test_files_are_told_apart(self, tiny: Path, tmp_path: Path) -> None:
        config = ModelConfig(model=str(tiny), device="cpu")
        same = loading.model_fingerprint(loading.load_model(config))
        assert loading.model_fingerprint(loading.load_model(config)) == same
        data = bytearray(tiny.read_bytes())
        data[-20_000:-1_000] = bytes(19_000)
        changed = tmp_path / "changed.gguf"
        changed.write_bytes(data)
        config = ModelConfig(model=str(changed), device="cpu")
        assert loading.model_fingerprint(loading.load_model(config)) != same

    def test_a_missing_package_is_named(self, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(tf.utils.import_utils, "is_gguf_available", lambda: False)
        refused(lambda: find_source(tiny), 'pip install "draftrec[gguf]"', str(tiny))

    def test_an_unknown_architecture_is_named(self, tmp_path: Path) -> None:
        file = gguf_files.write(tmp_path / "odd.gguf", "no-such")
        with pytest.raises(UnsupportedModelError, match="no-such"):
            loading.load_tokenizer(file)

    def test_what_is_no_gguf_file_is_refused(self, tmp_path: Path) -> None:
        file = tmp_path / "junk.gguf"
        file.write_bytes(b"junk" * 100)
        refused(lambda: loading.load_tokenizer(file), str(file), "damaged")
        refused(lambda: find_source(tmp_path / "no.gguf"), "does not exist")


def test_weights_are_asked_for_in_folders_only() -> None:
    sources.check_weights(sources.Source("nobody/nothing"))
