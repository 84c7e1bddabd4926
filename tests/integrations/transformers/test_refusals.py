"""What cannot be served exactly is refused in a sentence that names it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from transformers import StoppingCriteriaList
from transformers.cache_utils import DynamicCache
from transformers.generation.streamers import BaseStreamer

from draftrec.config import AcceptConfig
from draftrec.errors import DraftrecError, PoolMismatchError, UnsupportedModelError
from draftrec.integrations import transformers as ours
from draftrec.pool.store import Pool
from tests.models import zoo

IDS = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])


class Silent(BaseStreamer):
    def put(self, value: torch.Tensor) -> None:
        """Nothing to do."""

    def end(self) -> None:
        """Nothing to do."""


def never(input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
    return torch.zeros(len(input_ids), dtype=torch.bool)


def run(model: Any = None, ids: torch.Tensor = IDS, **settings: Any) -> torch.Tensor:
    model = model or zoo.plain("llama")
    defaults = {"max_new_tokens": 4, "attention_mask": torch.ones_like(ids), "budget": 4}
    return model.generate(ids, custom_generate=ours.generate, **(defaults | settings))


CASES: dict[str, tuple[Callable[[], dict[str, Any]], str]] = {
    "beams": (lambda: {"num_beams": 2}, "beam_search"),
    "texts per prompt": (
        lambda: {"do_sample": True, "num_return_sequences": 2}, "num_return_sequences=2",
    ),
    "prompt lookup": (lambda: {"prompt_lookup_num_tokens": 3}, "assisted_generation"),
    "assistant": (lambda: {"assistant_model": zoo.plain("qwen2")}, "assisted_generation"),
    "scores": (
        lambda: {"return_dict_in_generate": True, "output_scores": True}, "output_scores",
    ),
    "guidance": (lambda: {"guidance_scale": 1.5}, "FreeGuidance.*guidance_scale=None"),
    "streamed batch": (lambda: {"streamer": Silent()}, "streamer takes one text.* has 2"),
    "right padding": (
        lambda: {"attention_mask": torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]])}, "pad on the left",
    ),
    "empty row": (
        lambda: {"attention_mask": torch.tensor([[0, 0, 0, 0], [1, 1, 1, 1]])}, "a whole row",
    ),
    "positions": (lambda: {"position_ids": torch.tensor([[3, 4, 5, 6]] * 2)}, "position_ids"),
    "embeddings": (
        lambda: {"inputs_embeds": zoo.plain("llama").get_input_embeddings()(IDS)}, "inputs_embeds",
    ),
    "no padding token": (
        lambda: {
            "stopping_criteria": StoppingCriteriaList([never]), "eos_token_id": None,
            "pad_token_id": None,
        },
        "pad_token_id",
    ),
    "past the context": (lambda: {"max_new_tokens": 300}, "context of 256; ask for at most 252"),
    "unknown rule": (lambda: {"accept": "loose"}, "accept='loose' is not allowed: input should"),
    "negative budget": (lambda: {"budget": -1}, "budget=-1 is not allowed"),
    "no rows at once": (lambda: {"batch_size": 0}, "batch_size=0 is not allowed"),
    "sampling twice": (lambda: {"accept": AcceptConfig(temperature=0.5)}, "generate's business"),
    "seeded twice": (lambda: {"accept": AcceptConfig(seed=3)}, "torch.manual_seed"),
    "a path": (lambda: {"pool": "some/folder"}, "pool is a str and must be a Pool.*open_pool"),
    "nothing to grow": (lambda: {"grow_pool": True}, "new_pool"),
    "groups": (lambda: {"pool": Pool("t"), "groups": ["a"]}, "1 entries and the batch 2 rows"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
@pytest.mark.filterwarnings("ignore")
def test_refused_with_one_sentence(case: str) -> None:
    settings, message = CASES[case]
    model: Any = zoo.build("llama")
    model.generation_config.pad_token_id = None if case == "no padding token" else 0
    with pytest.raises(DraftrecError, match=message) as caught:
        run(model, **settings())
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore")
def test_a_filled_cache_is_refused() -> None:
    model = zoo.plain("llama")
    cache = DynamicCache(config=model.config)
    name: Any = "cache" if "cache" in model.forward.__code__.co_varnames else "past_key_values"
    model(IDS[:, :2], use_cache=True, **{name: cache})
    with pytest.raises(DraftrecError, match="cache of its own"):
        run(None, IDS, **{name: cache})


def test_a_pool_of_foreign_tokens_is_refused() -> None:
    pool = Pool("other")
    pool.add([(np.array([3, zoo.VOCABULARY], np.int32), None)])
    with pytest.raises(PoolMismatchError, match="vocabulary of 97"):
        run(zoo.build("llama"), pool=pool)


def test_a_model_over_several_devices_is_refused() -> None:
    model: Any = zoo.build("llama")
    model.hf_device_map = {"model": 0, "lm_head": 1}
    with pytest.raises(UnsupportedModelError, match="several devices"):
        run(model)


def test_a_model_that_cannot_be_served_is_refused_and_left_alone() -> None:
    model: Any = zoo.build("qwen2")
    model.model.layers[1].mlp.register_forward_hook(lambda _m, _i, out: out + out.cumsum(1))
    before = model.config._attn_implementation
    with pytest.raises(UnsupportedModelError, match="other logits"):
        run(model)
    assert model.config._attn_implementation == before
