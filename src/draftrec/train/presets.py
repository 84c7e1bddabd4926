"""Where a model to train comes from: a preset, a configuration file, or a checkpoint; and what it
is trained with: low-rank adapters for big checkpoints (Hu et al. 2021), through peft, and dropout
for models whose configuration has none, such as Llama's.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.functional import dropout
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    LlamaConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from draftrec.config import ModelConfig
from draftrec.engine.selfcheck import checked_target
from draftrec.errors import DraftrecError, needing
from draftrec.models.loading import load_model, load_tokenizer
from draftrec.models.recommender import weights_fingerprint
from draftrec.train.files import SOURCE_FILES
from draftrec.train.settings import TARGET_PRESET


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Where a model comes from: a preset's name, a configuration file, or a checkpoint."""

    kind: Literal["preset", "config", "checkpoint"] = "preset"
    name: str = TARGET_PRESET

    @property
    def folder(self) -> str | None:
        """The checkpoint's, if it is one."""
        return self.name if self.kind == "checkpoint" else None


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


def source_record(source: ModelSource) -> dict[str, str]:
    """What a training records of where its model comes from: the name and, where files lie there,
    a fingerprint of them, since another model may come to lie in their place."""
    found = {"source": f"{source.kind} {source.name}"}
    path, digest = Path(source.name), hashlib.sha256()
    if source.kind == "preset" or not path.exists():
        return found
    if source.kind == "checkpoint":
        digest.update(weights_fingerprint(path).encode())
    for file in (path / "config.json", path / "tokenizer.json") if path.is_dir() else (path,):
        if file.is_file() and file.suffix == ".json":
            digest.update(file.read_bytes())
    return found | {SOURCE_FILES: digest.hexdigest()}


def untrained(
    source: ModelSource, tokenizer: PreTrainedTokenizerBase, context: int, seed: int
) -> PreTrainedModel:
    """A new model for this vocabulary, by a preset or a configuration file.

    Raises DraftrecError as the functions below do.
    """
    if source.kind == "preset":
        return new_model(preset_config(source.name, tokenizer, context), seed)
    model = new_model(file_config(Path(source.name), tokenizer, context), seed)
    check_servable(model)
    return model


def check_servable(model: PreTrainedModel) -> None:
    """Raise UnsupportedModelError for a model that could be trained, but never recommend."""
    own = model.config._attn_implementation
    try:
        checked_target(model)
    finally:
        if model.config._attn_implementation != own:
            model.set_attn_implementation(own or "eager")


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
    room = getattr(config, "max_position_embeddings", None)
    if isinstance(room, int) and 0 < room < context:  # XLNet says -1 for any length
        raise DraftrecError(
            f"the model of {path} has room for {room} tokens, the longest prompt and its answer "
            f"have {context}; raise max_position_embeddings, or lower --max-items"
        )
    return config


def new_model(config: Any, seed: int) -> PreTrainedModel:
    """A model with random weights, the same for the same seed.

    Raises DraftrecError for a configuration that is not of a decoder-only language model, or that
    contradicts itself.
    """
    torch.manual_seed(seed)
    try:
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    except ValueError as error:
        raise DraftrecError(
            f"a model of type {getattr(config, 'model_type', '?')!r} is no decoder-only language "
            "model; give the configuration of one, such as llama"
        ) from error
    except (TypeError, AttributeError, LookupError, ArithmeticError, RuntimeError) as error:
        raise DraftrecError(
            f"no model of type {getattr(config, 'model_type', '?')!r} can be made of its "
            f"configuration ({type(error).__name__}: {error}); mend its sizes"
        ) from error


def extended_checkpoint(
    source: str, tokens: tuple[str, ...], seed: int
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, int]:
    """A checkpoint whose tokenizer and embeddings know `tokens`; the rows it had before.

    Raises DraftrecError if it cannot be loaded, or never recommend.
    """
    tokenizer = load_tokenizer(source)
    model = load_model(ModelConfig(model=source, device="cpu", dtype="float32"))
    check_servable(model)
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


@contextmanager
def stream_dropout(model: Any, share: float) -> Iterator[None]:
    """While it lasts, training passes drop `share` of the embeddings and of what each part of each
    layer (attention, feed-forward) adds to the stream. Evaluation and weights are left alone."""

    def drop(module: nn.Module, inputs: Any, output: Any) -> Any:
        if not module.training:
            return output
        if isinstance(output, torch.Tensor):
            return dropout(output, share)
        return (dropout(output[0], share), *output[1:])

    handles: list[Any] = []
    if share:
        parts = [model.get_input_embeddings(), *_parts(model)]
        handles = [part.register_forward_hook(drop) for part in parts]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _parts(model: nn.Module) -> list[nn.Module]:
    """Attention and feed-forward modules: what the layers are made of, norms left out."""
    stacks = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m)]
    if not stacks:
        return []
    layers = stacks[0]
    return [
        part
        for layer in layers
        for name, part in layer.named_children()
        if any(word in name for word in ("attn", "attention", "mlp", "feed_forward", "ffn"))
        and "norm" not in name
    ]


@dataclass(frozen=True, slots=True)
class LoraSettings:
    """Rank, scale and dropout of the adapters, which all linear layers get."""

    rank: int = 8
    alpha: int = 16
    dropout: float = 0.05


def adapted(model: Any, settings: LoraSettings, first_new: int) -> Any:
    """The model with adapters: they and the embedding rows from `first_new` on are trained, the
    rest is frozen. Raises DraftrecError when peft is missing or finds nothing to adapt.

    Without the new rows, semantic ids would keep the random vectors that they began with.
    """
    with needing("train", "--lora needs peft"):
        from peft import LoraConfig, get_peft_model
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    try:
        with warnings.catch_warnings():
            # peft asks transformers by a name about to change; users can do nothing about it.
            warnings.simplefilter("ignore", FutureWarning)
            adapted_model: Any = get_peft_model(model, config)
    except ValueError as error:
        raise DraftrecError(
            f"peft cannot adapt this model ({str(error).splitlines()[0]}); train it without --lora"
        ) from error
    train_new_rows(model, first_new)
    return adapted_model


def train_new_rows(model: Any, first_new: int) -> None:
    """Let embedding rows from `first_new` on be trained, at both ends of the model, and keep the
    others as they are."""
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    weights = {id(end.weight): end.weight for end in ends if end is not None}
    for weight in weights.values():
        weight.requires_grad_(True)
        weight.no_decay = True  # the others would shrink without a gradient
        weight.register_hook(lambda gradient: _without_old(gradient, first_new))


def merged(model: Any) -> Any:
    """A plain model again, adapters added to the weights that they adapt."""
    return model.merge_and_unload() if hasattr(model, "merge_and_unload") else model


def _without_old(gradient: torch.Tensor, first_new: int) -> torch.Tensor:
    gradient = gradient.clone()
    gradient[:first_new] = 0
    return gradient
