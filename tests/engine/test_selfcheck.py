"""Models that cannot be served exactly are refused with a sentence that says why."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as tf

from draftrec.engine.selfcheck import checked_target
from draftrec.engine.target import Target
from draftrec.errors import UnsupportedModelError
from tests.models import zoo


@pytest.mark.parametrize("name", zoo.NAMES)
def test_served_architectures_pass(name: str) -> None:
    assert checked_target(zoo.build(name)).slab is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_of_narrow_types_passes(dtype: torch.dtype) -> None:
    checked_target(zoo.build("llama").to(dtype))


def test_a_model_that_ignores_positions_given_to_it_is_refused() -> None:
    """The planted fault: siblings end up at different positions, as columns would have them."""
    model: Any = zoo.build("llama")
    inner = model.model.rotary_emb.forward

    def by_column(x: torch.Tensor, position_ids: torch.Tensor) -> Any:
        shift = torch.zeros_like(position_ids)
        if position_ids.shape[-1] > 2:  # a tree's rows, not the pass of one path
            shift = torch.arange(position_ids.shape[-1])[None] // 3
        return inner(x, position_ids + shift * (position_ids[:, :1] > 0))

    model.model.rotary_emb.forward = by_column
    with pytest.raises(UnsupportedModelError, match="other logits than its own forward pass"):
        checked_target(model)


def test_a_model_with_state_outside_attention_is_refused() -> None:
    model: Any = zoo.build("qwen2")
    model.model.layers[1].mlp.register_forward_hook(lambda _m, _i, out: out + out.cumsum(1))
    with pytest.raises(UnsupportedModelError, match="other logits"):
        checked_target(model)


def test_a_model_whose_logits_are_not_numbers_is_refused() -> None:
    model: Any = zoo.build("llama")
    model.lm_head.weight.data[3, 3] = float("nan")
    with pytest.raises(UnsupportedModelError, match="difference nan"):
        checked_target(model)


@pytest.mark.parametrize("made", [Target, checked_target])
@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (
            lambda: tf.FalconForCausalLM(
                tf.FalconConfig(
                    vocab_size=97, hidden_size=32, num_hidden_layers=1, num_attention_heads=4,
                    alibi=True, bos_token_id=1, eos_token_id=2,
                )
            ),
            "ALiBi",
        ),
        (
            lambda: tf.T5ForConditionalGeneration(
                tf.T5Config(vocab_size=97, d_model=16, d_ff=16, num_layers=1, num_heads=2, d_kv=8)
            ),
            "encoder-decoder",
        ),
        (
            lambda: tf.MambaForCausalLM(
                tf.MambaConfig(
                    vocab_size=97, hidden_size=16, num_hidden_layers=1, state_size=4,
                    bos_token_id=1, eos_token_id=2, pad_token_id=0,
                )
            ),
            "cannot be served",
        ),
        (
            lambda: tf.BertModel(
                tf.BertConfig(
                    vocab_size=97, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                    intermediate_size=16,
                )
            ),
            "language-model head",
        ),
    ],
    ids=["falcon-alibi", "t5", "mamba", "bert"],
)  # fmt: skip
def test_what_cannot_be_served_is_refused_in_a_sentence(made: Any, model: Any, reason: str) -> None:
    with pytest.raises(UnsupportedModelError, match=reason) as error:
        made(model())
    assert str(error.value).endswith(".")
    assert "cannot be served" in str(error.value)


def test_layers_of_unknown_kinds_are_refused() -> None:
    model = zoo.build("llama")
    model.config.layer_types = ["full_attention", "linear_attention"]
    with pytest.raises(UnsupportedModelError, match="linear_attention layers"):
        Target(model)


def test_options_of_attention_with_unknown_meaning_are_refused() -> None:
    target = Target(zoo.build("llama"))
    with pytest.raises(UnsupportedModelError, match="new_trick"):
        target.model(
            input_ids=torch.zeros((1, 1), dtype=torch.long), use_cache=False, new_trick=1.0,
            draftrec_plan=None,
        )  # fmt: skip


def test_a_model_that_caches_nothing_is_refused() -> None:
    """Whatever its configuration calls its layers: there would be no rows to draft over."""
    model: Any = zoo.build("llama")
    model.model.layers = model.model.layers[:0]
    with pytest.raises(UnsupportedModelError, match="none of its layers caches keys and values"):
        Target(model)
    fallback: Any = zoo.build("falcon")
    fallback.transformer.h = fallback.transformer.h[:0]
    with pytest.raises(UnsupportedModelError, match="none of its layers caches keys and values"):
        Target(fallback)
