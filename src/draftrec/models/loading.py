"""Loading models and tokenizers, with errors a user can act on."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from draftrec.config import ModelConfig
from draftrec.data.places import here
from draftrec.errors import DraftrecError, UnsupportedModelError

_WEIGHTS = ("*.safetensors", "*.bin", "*.safetensors.index.json")


def pick_device(name: str) -> torch.device:
    """`auto` is CUDA if there is any. Raises DraftrecError for a device that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise DraftrecError(f"Unknown device {name!r}; use auto, cpu, cuda or cuda:<number>.")
    if device.type == "cuda":
        count = torch.cuda.device_count()
        if (device.index or 0) >= count:
            raise DraftrecError(
                f"Device {name!r} is not there: PyTorch sees {count} CUDA devices; "
                "use --device cpu."
            )
    return device


def pick_dtype(name: str, stored: torch.dtype | None, device: torch.device) -> torch.dtype:
    """`auto`: as stored on CUDA, float32 on CPU.

    On CPU, bfloat16 is faster for models past some hundred million parameters, but passes of
    different shapes round differently there, and a near-tie between two tokens may fall either way.
    """
    if name != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[
            name
        ]
    return torch.float32 if device.type == "cpu" else stored or torch.float32


def load_tokenizer(model: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer beside a model. Raises DraftrecError if there is none."""
    _check_folder(model)
    try:
        return AutoTokenizer.from_pretrained(str(model))
    except Exception as error:
        raise DraftrecError(
            f"No tokenizer could be loaded from {model} ({_first_line(error)}); the model folder "
            "needs tokenizer.json or the files of a slow tokenizer beside the weights."
        ) from error


def load_model(config: ModelConfig) -> PreTrainedModel:
    """The model on its device in its dtype, ready to score. Raises DraftrecError."""
    return _load(config, AutoModelForCausalLM)


def load_body(config: ModelConfig) -> PreTrainedModel:
    """The model without a head: tokens in, hidden states out. Raises DraftrecError."""
    return _load(config, AutoModel)


def _load(config: ModelConfig, kind: Any) -> PreTrainedModel:
    device = pick_device(config.device)
    transformers_logging.disable_progress_bar()
    folder = _check_folder(config.model)
    if folder and not any(next(folder.glob(pattern), None) for pattern in _WEIGHTS):
        raise DraftrecError(
            f"The model folder {folder} has no weights (*.safetensors or *.bin); save the model "
            "there with save_pretrained, or name another folder."
        )
    try:
        stored = AutoConfig.from_pretrained(config.model)
        dtype = pick_dtype(config.dtype, getattr(stored, "dtype", None), device)
        model, report = cast(
            "tuple[Any, dict[str, Any]]",
            kind.from_pretrained(config.model, dtype=dtype, output_loading_info=True),
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        unknown = "Unrecognized configuration class" in str(error)
        raise (UnsupportedModelError if unknown else DraftrecError)(
            f"The model {config.model} could not be loaded ({_first_line(error)}); name a folder "
            "with config.json and weights, or a Hub id that this machine can reach."
        ) from error
    # Checkpoints trained without BERT's pooler lack it, and hidden states do not pass through it.
    missing = sorted(k for k in report.get("missing_keys", ()) if not k.startswith("pooler."))
    if missing:
        raise DraftrecError(
            f"The model {config.model} lacks {len(missing)} weights (the first is {missing[0]}), "
            "which would be random; save the whole model, language-model head included."
        )
    model.requires_grad_(False)
    return model.to(device).eval()


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """sha256 over the vocabulary in order of id: equal where token ids mean the same."""
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: (item[1], item[0]))
    digest = hashlib.sha256()
    for token, index in vocabulary:
        digest.update(f"{index}\t{token}\n".encode())
    digest.update(f"eos\t{tokenizer.eos_token_id}".encode())
    return digest.hexdigest()


def model_fingerprint(model: PreTrainedModel) -> str:
    """sha256 over the configuration and a few values of every weight: cheap, and it tells
    checkpoints of one architecture apart."""
    digest = hashlib.sha256()
    config = {
        k: v for k, v in model.config.to_dict().items() if k not in ("_name_or_path", "dtype")
    }
    digest.update(json.dumps(config, sort_keys=True, default=str).encode())
    hash_weights(digest, model)
    return digest.hexdigest()


def hash_weights(digest: Any, module: torch.nn.Module) -> None:
    """Add the name and a few values of every weight to a hashlib digest."""
    for name, weight in sorted(module.named_parameters()):
        flat = weight.detach().reshape(-1)
        step = max(1, flat.numel() // 16)
        digest.update(name.encode())
        digest.update(flat[::step][:17].float().cpu().numpy().tobytes())


def eos_token_ids(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None
) -> frozenset[int]:
    """Every id that ends a text: the generation settings', the model's or the tokenizer's."""
    for holder in (getattr(model, "generation_config", None), model.config, tokenizer):
        found = getattr(holder, "eos_token_id", None)
        if found is not None:
            return frozenset([found] if isinstance(found, int) else found)
    return frozenset()


def context_length(model: PreTrainedModel) -> int:
    """Most tokens of prompt and text together."""
    config = model.config.get_text_config()
    for name in ("max_position_embeddings", "n_positions", "max_sequence_length"):
        if isinstance(found := getattr(config, name, None), int) and found > 0:
            return found
    return 1 << 20


def _check_folder(model: str | Path) -> Path | None:
    """The folder that `model` names, or None for a Hub id. Raises DraftrecError if missing."""
    path = here(model, "a model")
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise DraftrecError(
                f"The model folder {path} has no config.json; name the folder that save_pretrained "
                "wrote."
            )
        return path
    looks_local = path.is_absolute() or str(model).startswith((".", "~")) or len(path.parts) > 2
    if path.exists() or looks_local:
        raise DraftrecError(
            f"The model folder {model} does not exist; name a folder with config.json and weights, "
            "or a Hub id."
        )
    return None


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0][:200] if lines else type(error).__name__).rstrip(". ")
