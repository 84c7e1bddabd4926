"""Tiny random models of many architectures, and what they say when run the plain way."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Seq
from functools import cache
from typing import Any

import torch
import transformers as tf
from packaging.version import Version

from draftrec.core import DraftTree
from draftrec.engine.target import Target

VOCABULARY = 97
CONTEXT = 256
WINDOW = 9
_SIZE: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": CONTEXT,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "initializer_range": 0.25,
}  # fmt: skip
_OLD: dict[str, Any] = {"bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.25}
_MIXED = ["sliding_attention", "full_attention", "sliding_attention"]
_GEMMA = {**_SIZE, "head_dim": 8, "num_hidden_layers": 3, "layer_types": _MIXED}
_EXPERTS = {"num_experts_per_tok": 2, "head_dim": 8}

_CONFIGS: dict[str, Callable[[], Any]] = {
    "llama": lambda: tf.LlamaConfig(**_SIZE),
    "qwen2": lambda: tf.Qwen2Config(**_SIZE),
    "qwen3": lambda: tf.Qwen3Config(**_SIZE, head_dim=8),
    "qwen3_moe": lambda: tf.Qwen3MoeConfig(
        **_SIZE, **_EXPERTS, num_experts=4, moe_intermediate_size=16
    ),
    "mistral": lambda: tf.MistralConfig(**_SIZE, sliding_window=WINDOW),
    "gemma2": lambda: tf.Gemma2Config(
        **_GEMMA, sliding_window=WINDOW, query_pre_attn_scalar=8, attn_logit_softcapping=5.0
    ),
    "gemma3": lambda: tf.Gemma3TextConfig(
        **_GEMMA, sliding_window=WINDOW, query_pre_attn_scalar=8
    ),
    # Wider heads in the layers that see everything, and the last layers read others' rows.
    "gemma4": lambda: tf.Gemma4TextConfig(
        **{**_GEMMA, "num_hidden_layers": 4, "layer_types": _MIXED[:2] * 2},
        global_head_dim=16, sliding_window=WINDOW, num_kv_shared_layers=2,
        hidden_size_per_layer_input=8,
    ),
    "phi3": lambda: tf.Phi3Config(**_SIZE),
    "olmo2": lambda: tf.Olmo2Config(**_SIZE),
    "gpt2": lambda: tf.GPT2Config(
        **_OLD, vocab_size=VOCABULARY, n_positions=CONTEXT, n_embd=32, n_layer=2, n_head=4
    ),
    "opt": lambda: tf.OPTConfig(
        **_OLD, vocab_size=VOCABULARY, max_position_embeddings=CONTEXT, hidden_size=32,
        ffn_dim=48, num_hidden_layers=2, num_attention_heads=4, word_embed_proj_dim=32,
        init_std=0.25, pad_token_id=0,
    ),
    "gpt_neox": lambda: tf.GPTNeoXConfig(
        **_OLD, vocab_size=VOCABULARY, max_position_embeddings=CONTEXT, hidden_size=32,
        intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, pad_token_id=0,
    ),
    "gpt_oss": lambda: tf.GptOssConfig(
        **_GEMMA, num_experts_per_tok=2, num_local_experts=4, sliding_window=WINDOW
    ),
    "falcon": lambda: tf.FalconConfig(
        **_OLD, vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        multi_query=True, alibi=False, new_decoder_architecture=False,
        max_position_embeddings=CONTEXT,
    ),
    "gptj": lambda: tf.GPTJConfig(
        **_OLD, vocab_size=VOCABULARY, n_positions=CONTEXT, n_embd=32, n_layer=2, n_head=4,
        rotary_dim=8,
    ),
}  # fmt: skip

_EYE = {
    "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "image_size": 28, "patch_size": 14,
}  # fmt: skip
#: Models that also look at images, which transformers does not list as causal language models.
SEEING: dict[str, Callable[[], Any]] = {
    "mistral3": lambda: tf.Mistral3Config(
        text_config={"model_type": "mistral", **_SIZE},
        vision_config={"model_type": "pixtral", **_EYE},
    ),
    "qwen3_vl": lambda: tf.Qwen3VLConfig(
        text_config={**_SIZE, "head_dim": 8, "rope_parameters": {
            "rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [1, 1, 2],
        }},
        vision_config={
            "depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2,
            "out_hidden_size": 32, "deepstack_visual_indexes": [0],
        },
    ),
}  # fmt: skip

# GPT-J got an attention backend in transformers 5.24.
FALLBACK = ["falcon"] if Version(tf.__version__) >= Version("5.24") else ["falcon", "gptj"]
PACKED = [name for name in _CONFIGS if name not in FALLBACK]
NAMES = [*PACKED, *FALLBACK]


@cache
def plain(name: str) -> tf.PreTrainedModel:
    """The model as transformers runs it: the reference. Never give it to a `Target`."""
    return build(name)


@cache
def target(name: str) -> Target:
    """The same weights behind our engine."""
    return Target(build(name))


def build(name: str, **changes: Any) -> tf.PreTrainedModel:
    """A fresh copy: equal weights at every call. Large random weights, so that texts vary."""
    sees = name in SEEING
    config = (SEEING if sees else _CONFIGS)[name]()
    for key, value in changes.items():
        setattr(config, key, value)
    if hasattr(config, "vocab_size_per_layer_input"):
        config.vocab_size_per_layer_input = config.vocab_size
    torch.manual_seed(5)
    kind = tf.AutoModelForImageTextToText if sees else tf.AutoModelForCausalLM
    model = kind.from_config(config).eval().requires_grad_(False)
    if (settings := model.generation_config) is not None:
        settings.pad_token_id = 0
    return model


@torch.inference_mode()
def plain_rows(model: tf.PreTrainedModel, context: Seq[int], tree: DraftTree) -> torch.Tensor:
    """Logits `[1 + nodes, V]` after `context` and after each node, one plain pass per leaf path."""
    parents = tree.parents.tolist()
    leaves = sorted(set(range(-1, len(tree))) - set(parents)) or [-1]
    rows: dict[int, torch.Tensor] = {}
    for leaf in leaves:
        path = [leaf]
        while path[-1] >= 0:
            path.append(parents[path[-1]])
        path.reverse()  # starts at -1, the last token of the context
        ids = [*context, *(int(tree.token_ids[i]) for i in path[1:])]
        logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
        for place, node in enumerate(path):
            rows[node] = logits[len(context) - 1 + place]
    return torch.stack([rows[i] for i in range(-1, len(tree))])
