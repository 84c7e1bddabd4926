"""Encoder models: token ids in, one vector per text out, each with its own pooling."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
)

from draftrec.config import EncoderConfig, ModelConfig
from draftrec.engine.rotary import context_length
from draftrec.errors import DraftrecError, needing
from draftrec.models import loading

#: Names that models give the prompt of what is searched.
_NAMES = ("document", "passage", "corpus")
_PASSAGES: dict[str, tuple[str, ...]] = {name: _NAMES for name in _NAMES}  # noqa: C420
#: Ids and mask, int64 `[B, T]`, padded on the right -> float32 `[B, D]`.
Embed = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, eq=False, slots=True)
class Body:
    """A loaded encoder model.

    `before` and `after`: the tokens around every text, special ones and those of a prompt; `lead`:
    what parts the prompt from the text. `max_tokens`: most tokens of one pass, all included.
    `normalise`: whether it was published with vectors of length 1; `embed` leaves that to its
    caller, because windows are averaged first.
    """

    name: str
    tokenizer: Any
    embed: Embed
    max_tokens: int
    before: tuple[int, ...]
    after: tuple[int, ...]
    pooling: str
    normalise: bool
    device: torch.device
    fingerprint: str
    lead: str = ""


@dataclass(frozen=True, slots=True)
class Published:
    """What is known of a model beside its folder: its name, its pooling, its vectors' length."""

    name: str
    pooling: str
    normalise: bool


def load_pooled(folder: str, config: EncoderConfig, known: Published | None = None) -> Body:
    """Any Hugging Face model: hidden states of the last layer, pooled.

    `auto` pools decoder-only models by their last token, which alone has seen the whole text, and
    others by the mean over all tokens that are not padding. Encoder-decoder models lend their
    encoder. Raises DraftrecError if the model or its tokenizer cannot be loaded.
    """
    wanted = ModelConfig(
        model=folder,
        device=config.device,
        dtype=config.dtype,
        trust_remote_code=config.trust_remote_code,
    )
    tokenizer = loading.load_tokenizer_of(wanted)
    model = loading.load_body(wanted)
    own = known or Published(folder, "last" if _decoder_only(model) else "mean", normalise=False)
    pooling = own.pooling if config.pooling == "auto" else config.pooling
    digest = hashlib.sha256(loading.model_fingerprint(model).encode())
    model.config.use_cache = False
    encoder: Any = model.get_encoder() if model.config.is_encoder_decoder else model
    pool = _POOLINGS[pooling]

    def embed(ids: Tensor, mask: Tensor) -> Tensor:
        hidden = encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        return pool(hidden.float(), mask)

    prompt = _prompt(folder, config, {}, None)
    before, after = _frame(tokenizer)
    before += _ids(tokenizer, prompt.rstrip(), special=False) if prompt else ()
    digest.update(prompt.encode())
    return Body(
        own.name, tokenizer, embed, _limit(folder, tokenizer, model), before, after, pooling,
        own.normalise, model.device, _fingerprint(digest, tokenizer), _lead(prompt),
    )  # fmt: skip


def load_sentence_transformer(folder: str, config: EncoderConfig) -> Body:
    """A sentence-transformers model: the library's own modules, and the prompt that is asked for,
    else its default one.

    Raises DraftrecError if the package is missing, the model cannot be loaded or has no such
    prompt.
    """
    if config.pooling != "auto":
        raise DraftrecError(
            f"{folder} is a sentence-transformers model, whose pooling is part of it; leave "
            "--pooling at auto"
        )
    model = _sentence_transformer(folder, config)
    steps = [step for step in model if type(step).__name__ != "Normalize"]
    prompt = _prompt(folder, config, model.prompts, model.default_prompt_name)
    before, after = _frame(model.tokenizer)
    # Most tokenizers join a space to the word behind it, so it goes with the text.
    before += _ids(model.tokenizer, prompt.rstrip(), special=False)

    def embed(ids: Tensor, mask: Tensor) -> Tensor:
        features: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
        if prompt:
            features["prompt_length"] = len(before)
        for step in steps:
            features = step(features)
        return features["sentence_embedding"].float()

    digest = hashlib.sha256(f"{model!r}{prompt}".encode())
    loading.hash_weights(digest, model)
    named = model.max_seq_length or model.tokenizer.model_max_length
    return Body(
        folder, model.tokenizer, embed, min(named, _positions(model)), before, after,
        "sentence-transformers", len(steps) < len(model), model.device,
        _fingerprint(digest, model.tokenizer), _lead(prompt),
    )  # fmt: skip


def _prompt(folder: str, config: EncoderConfig, named: Mapping[str, str], usual: str | None) -> str:
    """What goes before every text; empty for nothing. `named`: the model's own prompts."""
    if config.prompt is not None:
        if config.prompt_name is not None:
            raise DraftrecError("give --prompt or --prompt-name, not both")
        return config.prompt
    name = config.prompt_name
    if name is None:
        return named.get(usual or "", "")
    found = next((n for n in (name, *_PASSAGES.get(name, ())) if n in named), None)
    # The library lists empty prompts for models that name none.
    if found is None or not any(named.values()):
        listed = ", ".join(n for n, text in named.items() if text) or "none"
        raise DraftrecError(
            f"the encoder {folder} has no prompt of the name {name!r} (it has {listed}); write the "
            "words that its authors put before such texts with --prompt, such as 'query: '"
        )
    return named[found]


def _lead(prompt: str) -> str:
    """The space behind a prompt: most tokenizers join it to the word that follows."""
    return prompt[len(prompt.rstrip()) :]


def _sentence_transformer(folder: str, config: EncoderConfig) -> Any:
    with needing("encoders", f"{folder} needs the package sentence-transformers"):
        from sentence_transformers import SentenceTransformer
    device = loading.pick_device(config.device)
    dtype = loading.pick_dtype(config.dtype, None, device)
    try:
        model = SentenceTransformer(
            folder,
            device=str(device),
            trust_remote_code=config.trust_remote_code,
            model_kwargs={"dtype": dtype},
        )
    except (
        OSError, ValueError, KeyError, RuntimeError, ImportError, TypeError, AttributeError,
    ) as error:  # fmt: skip
        reason = " ".join(str(error).split())[:200].rstrip(". ")
        raise DraftrecError(
            f"the sentence-transformers model {folder} could not be loaded ({reason}); name a "
            "folder that the library saved, or a Hub id that this machine can reach"
        ) from error
    if (first := type(model[0]).__name__) != "Transformer":
        raise DraftrecError(
            f"the sentence-transformers model {folder} begins with {first}, which reads no tokens "
            "that could be counted; choose one that begins with a Transformer"
        )
    return model.eval().requires_grad_(False)


def _mean(hidden: Tensor, mask: Tensor) -> Tensor:
    weights = mask.unsqueeze(-1).float()
    return (hidden * weights).sum(1) / weights.sum(1)


def _last(hidden: Tensor, mask: Tensor) -> Tensor:
    rows = torch.arange(len(mask), device=mask.device)
    return hidden[rows, mask.sum(1) - 1]


def _first(hidden: Tensor, mask: Tensor) -> Tensor:
    return hidden[:, 0]


_POOLINGS = {"mean": _mean, "last": _last, "cls": _first}


def _decoder_only(model: PreTrainedModel) -> bool:
    kind = type(model.config)
    return kind in MODEL_FOR_CAUSAL_LM_MAPPING and kind not in MODEL_FOR_MASKED_LM_MAPPING


def _limit(folder: str, tokenizer: Any, model: PreTrainedModel) -> int:
    """Most tokens of one pass, special ones included."""
    most = min(context_length(model), tokenizer.model_max_length, _positions(model))
    trained = Path(folder) / "sentence_bert_config.json"
    if trained.is_file():
        try:
            most = min(most, json.loads(trained.read_text()).get("max_seq_length") or most)
        except (ValueError, TypeError, AttributeError) as error:
            raise DraftrecError(
                f"{trained} is damaged ({str(error)[:200]}); download the encoder again, or remove "
                "the file"
            ) from error
    return most


def _positions(module: torch.nn.Module) -> int:
    """Tokens that the table of learned positions has rows for, if there is one."""
    tables = [
        child
        for name, child in module.named_modules()
        if name.rpartition(".")[2] == "position_embeddings"
        and isinstance(child, torch.nn.Embedding)
    ]
    # RoBERTa and its kin count positions from behind the padding's.
    unused = [0 if t.padding_idx is None else t.padding_idx + 1 for t in tables]
    rows = [t.num_embeddings - n for t, n in zip(tables, unused, strict=True)]
    return min(rows, default=1 << 30)


def _frame(tokenizer: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The special tokens that the tokenizer puts before and behind a text."""
    bare, whole = _ids(tokenizer, "a", special=False), _ids(tokenizer, "a", special=True)
    for start in range(len(whole) - len(bare) + 1):
        if bare and whole[start : start + len(bare)] == bare:
            return whole[:start], whole[start + len(bare) :]
    return whole, ()


def _ids(tokenizer: Any, text: str, *, special: bool) -> tuple[int, ...]:
    return tuple(tokenizer(text, add_special_tokens=special).input_ids)


def _fingerprint(digest: Any, tokenizer: Any) -> str:
    """sha256 of a model's digest and of all that its tokenizer does, not its vocabulary alone."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    digest.update(
        backend.to_str().encode()
        if backend is not None
        else loading.tokenizer_fingerprint(tokenizer).encode()
    )
    return digest.hexdigest()
