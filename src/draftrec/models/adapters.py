"""Adapters as peft saves them (LoRA and its kin): the model that one was trained on, and both in
one.

transformers runs an adapter beside its model if peft is installed, and leaves it out without a word
if it is not. Here its weights are merged into those that they change, so that the model is run as
any other of its architecture is.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from transformers import PreTrainedModel

from draftrec.errors import DraftrecError, needing

#: What makes a folder an adapter's.
FILE = "adapter_config.json"


def base_of(file: Path) -> str:
    """The model that the adapter of this `FILE` was trained on: a folder or a Hub id. A folder may
    be named from where the process runs, or from the adapter's folder.

    Raises DraftrecError where none is named.
    """
    try:
        said = json.loads(file.read_text(encoding="utf-8"))
        base = said.get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError) as error:
        raise DraftrecError(
            f"{file} cannot be read ({type(error).__name__}); save the adapter again."
        ) from error
    if not isinstance(base, str) or not base:
        raise DraftrecError(
            f"{file} names no model that the adapter was trained on; write its folder or Hub id "
            "there, as base_model_name_or_path."
        )
    beside = file.parent / base
    return str(beside) if beside.is_dir() and not Path(base).exists() else base


def merged(model: PreTrainedModel, adapter: str) -> PreTrainedModel:
    """The model with the adapter of a folder or Hub id added to its weights, in their dtype.

    Raises DraftrecError without peft, and for an adapter that is damaged, belongs to another model,
    or is no change of weights.
    """
    with needing("adapters", f"{adapter} is an adapter, which is read with peft"):
        from peft import PeftModel
        from peft.utils import load_peft_weights
    try:
        _resize(model, load_peft_weights(adapter, device="cpu"))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what they warn of is asked for below
            both: Any = PeftModel.from_pretrained(model, adapter, torch_device="cpu")
            if not hasattr(both, "merge_and_unload"):
                raise ValueError("it is a learned prompt, no change of weights")
            found = both.load_adapter(adapter, "default", torch_device="cpu")
        # Embeddings that are saved whole may be in the file twice.
        stray = [key for key in found.unexpected_keys if "modules_to_save" not in key]
        if lost := [*found.missing_keys, *stray]:
            raise ValueError(f"{len(lost)} weights have no counterpart, the first is {lost[0]}")
        return cast("PreTrainedModel", both.merge_and_unload(safe_merge=True))
    except (
        AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError, SafetensorError,
    ) as error:  # fmt: skip
        reason = " ".join(str(error).split())[:200].rstrip(". ")
        raise DraftrecError(
            f"The adapter {adapter} cannot be merged into {model.name_or_path} ({reason}); name "
            f"the model that it was trained on in its {FILE}, or save both as one with peft's "
            "merge_and_unload() and save_pretrained()."
        ) from error


def _resize(model: PreTrainedModel, weights: dict[str, torch.Tensor]) -> None:
    """Give the embedding the rows that it had when the adapter was trained, if that saved them."""
    inputs: Any = model.get_input_embeddings()
    name = next(name for name, module in model.named_modules() if module is inputs)
    saved = f"base_model.model.{name}."
    rows = {
        w.shape[1] if "lora_embedding_A" in key else w.shape[0]
        for key, w in weights.items()
        if key.startswith(saved) and (key.endswith("weight") or "lora_embedding_A" in key)
    }
    if rows and (most := max(rows)) != inputs.weight.shape[0]:
        model.resize_token_embeddings(most, mean_resizing=False)
