"""The strict guarantee over many architectures: transformers' own texts, or a refusal by name.

Prompts of unequal length share a batch, computed in pieces; right and wrong drafts take part. The
reference is `generate(do_sample=False)`, one prompt at a time, in float32.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from collections.abc import Sequence as Seq
from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf

from draftrec.config import AcceptConfig
from draftrec.core import DraftTree, IntArray, Request
from draftrec.engine.passes.eager import PaddedRunner
from draftrec.engine.rotary import context_length
from draftrec.engine.selfcheck import checked_target
from draftrec.engine.target import Target
from draftrec.engine.text.accept import make_rule
from draftrec.engine.text.budget import FixedBudget
from draftrec.engine.text.loop import Engine, generate
from draftrec.engine.tree import make_tree
from draftrec.errors import UnsupportedModelError

VOCABULARY, CONTEXT, WINDOW, SWITCH = 97, 256, 12, 64
_SIZE: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": CONTEXT,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "initializer_range": 0.25,
}  # fmt: skip
_OLD: dict[str, Any] = {
    "vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.25
}  # fmt: skip
_EXPERTS: dict[str, Any] = {
    "num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16
}  # fmt: skip
_LONG = {
    "rope_type": "longrope", "short_factor": [1.0, 1.2, 1.4, 1.6],
    "long_factor": [4.0, 5.0, 6.0, 8.0], "factor": 8.0,
    "original_max_position_embeddings": SWITCH, "rope_theta": 10_000.0,
}  # fmt: skip
# The layers that see everything have wider heads, and the last two read the rows of others.
_TWO_SHAPES: dict[str, Any] = {
    "num_hidden_layers": 4, "layer_types": ["sliding_attention", "full_attention"] * 2,
    "sliding_window": WINDOW, "head_dim": 8, "global_head_dim": 16, "num_kv_shared_layers": 2,
    "vocab_size_per_layer_input": VOCABULARY, "hidden_size_per_layer_input": 8,
}  # fmt: skip


def _sized(name: str, **more: Any) -> Callable[[], Any]:
    return lambda: getattr(tf, f"{name}Config")(**{**_SIZE, **more})


_MODELS: dict[str, Callable[[], Any]] = {
    "llama": _sized("Llama"),
    "llama3 rope": _sized("Llama", rope_parameters={
        "rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": SWITCH, "rope_theta": 10_000.0,
    }),
    "mistral": _sized("Mistral", sliding_window=WINDOW),
    "mixtral": _sized("Mixtral", **_EXPERTS, sliding_window=WINDOW),
    "phimoe": _sized("Phimoe", **_EXPERTS, sliding_window=WINDOW),
    "qwen2 hybrid": _sized("Qwen2", use_sliding_window=True, sliding_window=WINDOW,
                           max_window_layers=1),
    "qwen2_moe": _sized("Qwen2Moe", **_EXPERTS, shared_expert_intermediate_size=16,
                        use_sliding_window=True, sliding_window=WINDOW, max_window_layers=1),
    "qwen3_moe": _sized("Qwen3Moe", **_EXPERTS, head_dim=8),
    "cohere": _sized("Cohere"),
    "cohere2": _sized("Cohere2", sliding_window=WINDOW, layer_types=[
        "sliding_attention", "full_attention",
    ]),
    "exaone4": _sized("Exaone4", sliding_window=WINDOW, layer_types=[
        "sliding_attention", "full_attention",
    ]),
    "olmo": _sized("Olmo"),
    "olmo3": _sized("Olmo3", sliding_window=WINDOW, layer_types=[
        "sliding_attention", "full_attention",
    ]),
    "gemma4": _sized("Gemma4Text", **_TWO_SHAPES),
    "granite": _sized("Granite"),
    "glm4": _sized("Glm4", head_dim=8),
    "ernie4_5": _sized("Ernie4_5"),
    "stablelm": _sized("StableLm"),
    "starcoder2": _sized("Starcoder2", sliding_window=WINDOW),
    "smollm3": _sized("SmolLM3"),
    "helium": _sized("Helium", head_dim=8),
    "persimmon": _sized("Persimmon"),
    "phi": _sized("Phi"),
    "phi3 window": _sized("Phi3", sliding_window=WINDOW),
    "nemotron": _sized("Nemotron"),
    "llama4": _sized("Llama4Text", **_EXPERTS, attention_chunk_size=WINDOW, head_dim=8,
                     intermediate_size_mlp=48, no_rope_layers=[1, 0]),
    "gpt_bigcode": lambda: tf.GPTBigCodeConfig(
        **_OLD, n_positions=CONTEXT, n_embd=32, n_layer=2, n_head=4
    ),
    "codegen": lambda: tf.CodeGenConfig(
        **_OLD, n_positions=CONTEXT, n_embd=32, n_layer=2, n_head=4, rotary_dim=8
    ),
    "biogpt": _sized("BioGpt"),
    "gpt_neo": lambda: tf.GPTNeoConfig(
        **_OLD, max_position_embeddings=CONTEXT, hidden_size=32, num_layers=2, num_heads=4,
        attention_types=[[["global", "local"], 1]], window_size=WINDOW,
    ),
    "gpt_neo global": lambda: tf.GPTNeoConfig(
        **_OLD, max_position_embeddings=CONTEXT, hidden_size=32, num_layers=2, num_heads=4,
        attention_types=[[["global"], 2]],
    ),
}  # fmt: skip


def build(config: Any) -> Any:
    torch.manual_seed(5)
    model = tf.AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    if (settings := model.generation_config) is not None:
        settings.pad_token_id = 0
    return model


def prompts_of(*lengths: int) -> list[IntArray]:
    random = np.random.default_rng(3)
    return [random.integers(3, VOCABULARY, n).astype(np.int32) for n in lengths]


def reference(config: Any, prompts: Seq[IntArray], new: int) -> list[list[int]]:
    """transformers' own texts, one prompt at a time, each by a fresh model: rotary modules
    remember the longest text that they have seen."""
    found: list[list[int]] = []
    for prompt in prompts:
        ids = torch.tensor([prompt.tolist()])
        whole = build(config).generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=new
        )
        found.append(whole[0, len(prompt) :].tolist())
    return found


class Foretelling:
    """Drafts what the text will be, a few tokens at a time, beside tokens that it will not."""

    def __init__(self, texts: dict[str, list[int]]) -> None:
        self.texts, self.random = texts, np.random.default_rng(0)

    def draft(self, batch: Seq[Any], limit: int, depth: int) -> list[DraftTree]:
        return [self._tree(q, depth) for q in batch]

    def _tree(self, sequence: Any, depth: int) -> DraftTree:
        ahead = self.texts[sequence.request.entity_id][sequence.new_tokens :]
        right = ahead[: int(self.random.integers(0, min(4, depth) + 1))]
        wrong = [t for t in self.random.integers(3, VOCABULARY, 2).tolist() if t not in right]
        tokens = [*wrong[:1], *right]
        first = len(wrong[:1])
        parents = [*[-1] * first, *(-1 if i == 0 else first + i - 1 for i in range(len(right)))]
        return make_tree(tokens, parents)

    def start(self, sequence: Any) -> None:
        """Nothing to prepare."""

    def observe(self, batch: Seq[Any], verdicts: Seq[Any]) -> None:
        """Nothing to learn."""

    def stop(self, sequence: Any) -> None:
        """Nothing to forget."""


def ours(
    target: Target, prompts: Seq[IntArray], told: list[list[int]], new: int, slots: int
) -> list[list[int]]:
    accept, eos = AcceptConfig(), frozenset([2])
    engine = Engine(
        target=target,
        drafter=Foretelling({str(i): text for i, text in enumerate(told)}),
        rule=make_rule(accept, eos),
        budget=FixedBudget(8),
        accept=accept,
        eos_ids=eos,
        slots=slots,
        max_new_tokens=new,
        context_length=context_length(target.model),
        prefill_chunk=16,
    )
    requests = [Request(str(i), ids, None, key=i) for i, ids in enumerate(prompts)]
    return [g.token_ids.tolist() for g in generate(engine, requests)]


@pytest.mark.slow
@pytest.mark.parametrize("name", _MODELS)
def test_texts_are_transformers_own(name: str) -> None:
    prompts = prompts_of(5, 30, 17)
    config = _MODELS[name]
    expected = reference(config(), prompts, 10)
    assert len({t for text in expected for t in text}) > 3, "texts this dull would hide differences"
    target = checked_target(build(config()))
    assert ours(target, prompts, expected, 10, slots=3) == expected


def test_windows_are_read_off_the_models_own_masks() -> None:
    found = {
        name: {(r.window, r.chunk) for r in Target(build(_MODELS[name]())).runner.reaches.values()}
        for name in ("llama", "phimoe", "qwen2_moe", "cohere2", "llama4")
    }
    assert found == {
        "llama": {(None, None)},
        "phimoe": {(WINDOW, None)},
        "qwen2_moe": {(WINDOW, None), (None, None)},
        "cohere2": {(WINDOW, None), (None, None)},
        "llama4": {(None, WINDOW), (None, None)},
    }


def test_attention_that_keeps_its_options_runs_padded() -> None:
    assert isinstance(Target(build(_MODELS["nemotron"]())).runner, PaddedRunner)


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        (_sized("DiffLlama"), "attends more than once"),
        (_sized("Doge"), "Reach"),
        (_sized("Moshi", sliding_window=WINDOW), "its cache forgets"),
        (lambda: tf.BloomConfig(**_OLD, hidden_size=32, n_layer=2, n_head=4), "no position ids"),
        (lambda: tf.MptConfig(vocab_size=VOCABULARY, d_model=32, n_heads=4, n_layers=2),
         "cannot be served"),
        (_sized("Bert"), "neither causal"),
    ],
    ids=["diffllama", "doge", "moshi", "bloom", "mpt", "bert"],
)  # fmt: skip
def test_what_is_not_exact_is_refused(made: Callable[[], Any], reason: str) -> None:
    with pytest.raises(UnsupportedModelError, match=reason) as error:
        checked_target(build(made()))
    assert "cannot be served" in str(error.value)


class TestRotaryFactorsThatFollowTheLength:
    """Texts below, across and above the length at which factors change, in one batch."""

    LENGTHS = (20, 61, 64, 65, 90, 120, 40)
    NEW = 30

    @pytest.mark.slow
    @pytest.mark.parametrize("slots", [1, 3, 7])
    @pytest.mark.parametrize("kind", ["Phi3", "Phimoe"])
    def test_longrope_computes_a_text_anew_where_it_grows_past_it(
        self, kind: str, slots: int
    ) -> None:
        config = {
            "Phi3": _sized("Phi3", rope_parameters=dict(_LONG),
                           original_max_position_embeddings=SWITCH),
            "Phimoe": _sized("Phimoe", **_EXPERTS, rope_parameters=_LONG | {
                "short_mscale": 1.1, "long_mscale": 1.3,
            }),
        }[kind]  # fmt: skip
        prompts = prompts_of(*self.LENGTHS)
        expected = reference(config(), prompts, self.NEW)
        target = checked_target(build(config()))
        assert target.anew_length == SWITCH
        assert context_length(target.model) == CONTEXT
        assert ours(target, prompts, expected, self.NEW, slots) == expected

    @pytest.mark.slow
    @pytest.mark.parametrize("slots", [1, 3, 7])
    def test_dynamic_scaling_keeps_the_factors_of_each_rows_time(self, slots: int) -> None:
        config = _sized(
            "Llama",
            max_position_embeddings=SWITCH,
            rope_parameters={"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10_000.0},
        )
        prompts = prompts_of(*self.LENGTHS)
        expected = reference(config(), prompts, self.NEW)
        target = checked_target(build(config()))
        assert context_length(target.model) == 4 * SWITCH
        assert ours(target, prompts, expected, self.NEW, slots) == expected

    @pytest.mark.slow
    def test_rows_are_not_shared_between_lengths(self) -> None:
        """The same beginning, one text below the switch and one above it."""
        config = _sized(
            "Phi3", rope_parameters=dict(_LONG), original_max_position_embeddings=SWITCH
        )
        long = prompts_of(100)[0]
        prompts = [long[:40], long, long[:50], long[:90], long[:45]]
        expected = reference(config(), prompts, 12)
        target = checked_target(build(config()))
        for slots in (1, 2):
            assert ours(target, prompts, expected, 12, slots) == expected

    def test_without_computing_anew_the_context_ends_there(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Llama's `generate` goes on with the rows that it has: no two ways to come to a text
        would agree beyond."""
        config = _sized("Llama", rope_parameters=dict(_LONG))
        with caplog.at_level(logging.WARNING, "draftrec"):
            target = checked_target(build(config()))
            assert context_length(target.model) == SWITCH
        assert "is exact up to 64 tokens" in caplog.text
        prompts = prompts_of(20, 50)
        expected = reference(config(), prompts, 12)
        assert ours(target, prompts, expected, 12, 2) == expected

    @pytest.mark.parametrize(
        ("rope", "length"),
        [
            ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": CONTEXT},
             4 * CONTEXT),
            ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": SWITCH},
             CONTEXT),
            ({"rope_type": "linear", "factor": 4.0}, CONTEXT),
            ({"rope_type": "default"}, CONTEXT),
        ],
        ids=["yarn on top", "yarn included", "linear", "none"],
    )  # fmt: skip
    def test_the_context_is_the_extended_one(self, rope: dict[str, Any], length: int) -> None:
        model = build(_sized("Qwen2", rope_parameters=rope | {"rope_theta": 10_000.0})())
        assert context_length(model) == length
