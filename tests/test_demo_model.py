"""The shipped small model: it loads offline, loses no text, and brings its texts to an end."""

from __future__ import annotations

from itertools import islice

import pytest
import torch
from bookshop.world import knowledge_text, stream_records
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, TokenizersBackend

from draftrec.data.templates import load_template
from draftrec.demo.shop import demo_model_path


@pytest.fixture(scope="module")
def tokenizer() -> TokenizersBackend:
    return AutoTokenizer.from_pretrained(demo_model_path(), padding_side="left")


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(demo_model_path(), dtype=torch.float32)


def test_it_is_small_enough_to_ship() -> None:
    files = [path for path in demo_model_path().rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 4_500_000
    assert {path.suffix for path in files} == {".json", ".safetensors"}


def test_model_is_what_the_demo_expects(model: PreTrainedModel) -> None:
    config = model.config
    assert config.architectures == ["LlamaForCausalLM"]
    assert config.dtype == torch.float32
    assert 1_600_000 <= model.num_parameters() <= 2_200_000
    assert config.max_position_embeddings == 1024
    assert config.num_key_value_heads < config.num_attention_heads
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (1, 2, 0)


def test_tokenizer_adds_bos_in_front_and_nothing_behind(tokenizer: TokenizersBackend) -> None:
    ids = tokenizer("This reader keeps returning.")["input_ids"]
    assert ids[0] == tokenizer.bos_token_id == 1
    assert tokenizer.eos_token_id == 2
    assert 2 not in ids
    assert tokenizer("x", add_special_tokens=False)["input_ids"][0] != 1
    assert len(tokenizer) == 2048


@pytest.mark.parametrize(
    "text",
    [
        "The Salt Lantern (sea tales): 5\n- next",
        ' {"summarization": "a , b ."}  two  spaces ',
        "naïve Ördeal 北京 🙂\ttab\r\n",
        "it 's don 't",
    ],
)
def test_text_survives_the_tokenizer(tokenizer: TokenizersBackend, text: str) -> None:
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_knowledge_texts_survive_the_tokenizer(tokenizer: TokenizersBackend) -> None:
    for record in islice(stream_records("user"), 50):
        text = knowledge_text(record)
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
        assert 40 <= len(ids) <= 160


@pytest.mark.slow
@pytest.mark.parametrize("side", ["user", "item"])
def test_greedy_texts_end_and_differ(
    model: PreTrainedModel, tokenizer: TokenizersBackend, side: str
) -> None:
    records = list(stream_records(side, 16, seed=11))
    template = load_template("kar", side)
    prompts = [template.render(record) for record in records]
    inputs = tokenizer(prompts, return_tensors="pt", padding=True)
    output = model.generate(**inputs, max_new_tokens=200, do_sample=False)
    new = output[:, inputs["input_ids"].shape[1] :]
    assert (new == tokenizer.eos_token_id).any(dim=1).all()
    texts = tokenizer.batch_decode(new, skip_special_tokens=True)
    assert len(set(texts)) == len(texts)
    assert len({" ".join(text.split()[:6]) for text in texts}) >= 4
    assert all(text.endswith(".") for text in texts)
    if side == "item":
        named = [record["title"] in text for record, text in zip(records, texts, strict=True)]
        assert sum(named) >= 12
