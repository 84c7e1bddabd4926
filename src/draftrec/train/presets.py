"""Where a model to train comes from: a preset, a configuration file, or a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    LlamaConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from draftrec.config import ModelConfig
from draftrec.errors import DraftrecError
from draftrec.models.loading import load_model, load_tokenizer
from draftrec.train.settings import TARGET_PRESET


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Where a model comes from: a preset's name, a configuration file, or a checkpoint."""

    kind: Literal["preset", "config", "checkpoint"] = "preset"
    name: str = TARGET_PRESET


@dataclass(frozen=True, slots=True)
class Shape:
    """The size of a Llama-type model."""

    layers: int
    width: int
    heads: int
    inner: int


#: About 0.15, 3.4 and 25 million parameters with a thousand codes.
PRESETS = {
    "tiny": Shape(layers=2, width=64, heads=4, inner=176),
    "small": Shape(layers=4, width=256, heads=8, inner=704),
    "base": Shape(layers=8, width=512, heads=8, inner=1408),
}


def untrained(
    source: ModelSource, tokenizer: PreTrainedTokenizerBase, context: int, seed: int
) -> PreTrainedModel:
    """A new model for this vocabulary, by a preset or a configuration file.

    Raises DraftrecError as the functions below do.
    """
    if source.kind == "preset":
        return new_model(preset_config(source.name, tokenizer, context), seed)
    return new_model(file_config(Path(source.name), tokenizer, context), seed)


def preset_config(name: str, tokenizer: PreTrainedTokenizerBase, context: int) -> LlamaConfig:
    """A configuration for this vocabulary and for sequences of up to `context` tokens.

    Raises DraftrecError for an unknown name.
    """
    if name not in PRESETS:
        raise DraftrecError(f"there is no preset {name!r}; choose one of {', '.join(PRESETS)}")
    shape = PRESETS[name]
    return LlamaConfig(
        vocab_size=vocabulary(tokenizer),
        hidden_size=shape.width,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        max_position_embeddings=context,
        tie_word_embeddings=True,
        **_special(tokenizer),
    )


def file_config(path: Path, tokenizer: PreTrainedTokenizerBase, context: int) -> Any:
    """The configuration of a file or folder of transformers, with this vocabulary.

    Raises DraftrecError for a file that transformers cannot read, and for a context that is too
    short.
    """
    try:
        config = AutoConfig.from_pretrained(str(path))
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200].rstrip(". ")
        raise DraftrecError(
            f"no model configuration could be read from {path} ({reason}); give a config.json of a "
            "decoder-only transformers model"
        ) from error
    config.vocab_size = vocabulary(tokenizer)
    for name, value in _special(tokenizer).items():
        setattr(config, name, value)
    room = getattr(config, "max_position_embeddings", context)
    if room < context:
        raise DraftrecError(
            f"the model of {path} has room for {room} tokens, the longest prompt and its answer "
            f"have {context}; raise max_position_embeddings, or lower --max-items"
        )
    return config


def new_model(config: Any, seed: int) -> PreTrainedModel:
    """A model with random weights, the same for the same seed.

    Raises DraftrecError for a configuration that is not of a decoder-only language model.
    """
    torch.manual_seed(seed)
    try:
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    except ValueError as error:
        raise DraftrecError(
            f"a model of type {getattr(config, 'model_type', '?')!r} is no decoder-only language "
            "model; give the configuration of one, such as llama"
        ) from error


def extended_checkpoint(
    source: str, tokens: tuple[str, ...], seed: int
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, int]:
    """A checkpoint whose tokenizer and embeddings know `tokens`; the rows it had before.

    Raises DraftrecError if it cannot be loaded.
    """
    tokenizer = load_tokenizer(source)
    model = load_model(ModelConfig(model=source, device="cpu", dtype="float32"))
    embeddings: Any = model.get_input_embeddings()
    before = int(embeddings.weight.shape[0])
    known = tokenizer.get_vocab()
    tokenizer.add_tokens([token for token in tokens if token not in known])
    if vocabulary(tokenizer) > before:
        torch.manual_seed(seed)
        model.resize_token_embeddings(vocabulary(tokenizer))
    return model, tokenizer, min(before, len(known))


def vocabulary(tokenizer: PreTrainedTokenizerBase) -> int:
    """Rows that embeddings need for this tokenizer."""
    return max(tokenizer.get_vocab().values()) + 1


def _special(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    return {name: getattr(tokenizer, name, None) for name in names}
