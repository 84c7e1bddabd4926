"""Model folders that draft wherever they are loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from draftrec.config import AcceptConfig
from draftrec.errors import DraftrecError, PoolMismatchError
from draftrec.integrations import transformers as ours
from draftrec.integrations.transformers import generate_ready
from tests.models import folders, zoo

IDS = torch.tensor([[0, 0, 5, 6, 7], [8, 9, 10, 11, 12], [0, 0, 0, 0, 20]])
SETTINGS = {"max_new_tokens": 24, "do_sample": False, "eos_token_id": None}


def save_model(folder: Path) -> Path:
    return folders.save(zoo.build("llama"), folder)


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A model folder that is ready, what to ask it, and what the plain way writes."""
    folder = save_model(tmp_path_factory.mktemp("models") / "ready")
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    inputs = {"input_ids": IDS, "attention_mask": (IDS > 0).long()}
    plain = model.generate(**inputs, **SETTINGS)
    pool = ours.new_pool(folders.make_tokenizer())
    pool.add((row.numpy(), None) for row in plain[:, IDS.shape[1] :])
    ours.make_ready(folder, pool, budget=6, depth=12)
    return {"folder": folder, "inputs": inputs, "plain": plain, "pool": pool}


def ask(model: Any, texts: dict[str, Any], **settings: Any) -> ours.Output:
    return model.generate(**texts["inputs"], **(SETTINGS | settings), return_dict_in_generate=True)


def from_the_pool(output: ours.Output) -> int:
    assert output.counts is not None
    return sum(sum(counts.accepted_by_source[2:]) for counts in output.counts)


def test_a_loaded_model_drafts_from_its_folder(texts: dict[str, Any]) -> None:
    model = ours.load_ready(texts["folder"])
    found = ask(model, texts)
    assert torch.equal(found.sequences, texts["plain"])
    assert from_the_pool(found) > 10


def test_a_call_may_differ_from_the_folder(texts: dict[str, Any]) -> None:
    model: Any = ours.load_ready(texts["folder"], dtype=torch.float32)
    undrafted = ask(model, texts, draft="none")
    assert from_the_pool(undrafted) == 0
    plain = model.generate(**texts["inputs"], **SETTINGS, custom_generate=None)
    assert torch.equal(undrafted.sequences, plain)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_transformers_own_way_drafts_as_well(
    texts: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path))
    monkeypatch.syspath_prepend(tmp_path)
    folder = str(texts["folder"])
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    asked = {"custom_generate": folder, "trust_remote_code": True}
    found = [ask(model, texts, **asked)]
    trusted: Any = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    found += [ask(trusted, texts), ask(trusted, texts, **asked)]
    for output in found:
        assert torch.equal(output.sequences, texts["plain"])
        assert from_the_pool(output) > 10
    ids = IDS[1:2]
    assert torch.equal(trusted.generate(ids, **SETTINGS), model.generate(ids, **SETTINGS))


def test_without_a_pool_prompt_and_text_are_drafted_from(
    texts: dict[str, Any], tmp_path: Path
) -> None:
    folder = save_model(tmp_path / "ready")
    ours.make_ready(folder, budget=4, accept=AcceptConfig(accept="relaxed", max_deviations=0))
    found = ask(ours.load_ready(folder), texts)
    assert torch.equal(found.sequences, texts["plain"])
    assert found.counts is not None
    assert sum(counts.drafted_tokens for counts in found.counts) > 0
    assert from_the_pool(found) == 0


@pytest.mark.slow
def test_a_pool_stays_where_settings_are_written_again(
    texts: dict[str, Any], tmp_path: Path
) -> None:
    folder = save_model(tmp_path / "ready")
    ours.make_ready(folder, texts["pool"], budget=6)
    ours.make_ready(folder, budget=0)
    assert from_the_pool(ask(ours.load_ready(folder), texts)) == 0
    ours.make_ready(folder, budget=6)
    assert from_the_pool(ask(ours.load_ready(folder), texts)) > 10


def test_what_cannot_be_made_ready_is_refused(texts: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(DraftrecError, match=r"no config\.json; write the model"):
        ours.make_ready(tmp_path)
    folder = save_model(tmp_path / "model")
    with pytest.raises(DraftrecError, match="groups is not a setting of a folder"):
        ours.make_ready(folder, groups=["a"])
    with pytest.raises(DraftrecError, match="budget=-1 is not allowed"):
        ours.make_ready(folder, budget=-1)
    with pytest.raises(PoolMismatchError, match="another tokenizer"):
        ours.make_ready(folder, type(texts["pool"])("other"))
    assert not (folder / "custom_generate").exists()


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"accept": {"top_k": 0}}'])
def test_damaged_settings_are_named(tmp_path: Path, content: str) -> None:
    folder = save_model(tmp_path / "ready")
    ours.make_ready(folder)
    (folder / "draftrec" / "settings.json").write_text(content)
    with pytest.raises(DraftrecError, match=r"settings.json cannot be read.*make_ready"):
        ours.load_ready(folder)


def test_unknown_settings_of_a_folder_are_named(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "ready")
    ours.make_ready(folder)
    path = folder / "draftrec" / "settings.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"beams": 4}))
    with pytest.raises(DraftrecError, match="beams is not a setting"):
        ours.load_ready(folder)


def test_a_folder_that_is_not_ready_is_named(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model")
    with pytest.raises(DraftrecError, match=r"not a local folder that drafts.*make_ready"):
        ours.load_ready(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    with pytest.raises(DraftrecError, match="not a local folder that drafts"):
        generate_ready(torch.tensor([[5, 6]]), model=model)
