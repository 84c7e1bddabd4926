"""Models and tokenizers loaded, with errors a user can act on; what they are known by, and how
their texts end.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging as transformers_logging
from transformers.utils.hub import cached_file

from draftrec.config import ModelConfig
from draftrec.errors import DraftrecError, UnsupportedModelError
from draftrec.models import adapters
from draftrec.models.cpu import multiplies_bfloat16, set_threads
from draftrec.models.sources import Source, check_weights, find_source

_LOG = logging.getLogger("draftrec")
_IF_THERE: dict[str, Any] = dict.fromkeys(
    ("_raise_exceptions_for_missing_entries", "_raise_exceptions_for_connection_errors"), False
)
# Packages that read weights quantised in some way, where transformers does not name one.
_QUANTISERS = {"gptq": "gptqmodel", "awq": "gptqmodel", "bitsandbytes": "bitsandbytes"}


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


def pick_dtype(
    name: str, stored: torch.dtype | None, device: torch.device, *, packs: bool = False
) -> torch.dtype:
    """`auto`: as stored on CUDA; on CPU float32, but for bfloat16 weights of a model whose layers
    are packed (`passes.prepacked`) on a processor that multiplies them: there bfloat16 is faster.

    In bfloat16 passes of different shapes round differently, and a near-tie between two tokens may
    fall either way; `Target`'s exact attention rules that out.
    """
    if name != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[
            name
        ]
    if device.type != "cpu":
        return stored or torch.float32
    native = packs and stored == torch.bfloat16 and multiplies_bfloat16()
    return torch.bfloat16 if native else torch.float32


def load_tokenizer(
    model: str | Path, *, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """The tokenizer beside a model or adapter, or in its GGUF file. Raises DraftrecError if there
    is none."""
    source = find_source(model)
    options = {"trust_remote_code": trust_remote_code, **source.options()}
    try:
        if source.adapter and cached_file(source.adapter, "tokenizer_config.json", **_IF_THERE):
            options["config"] = AutoConfig.from_pretrained(source.place, **options)
            return _tokenizer(source.adapter, options)
        return _tokenizer(source.place, options)
    except Exception as error:
        _refuse_known(source, error)
        advice = (
            "the file is damaged, or of a kind that transformers cannot read; download it again, "
            "or name the model's original folder."
            if source.gguf
            else "the model folder needs tokenizer.json or the files of a slow tokenizer beside "
            "the weights."
        )
        raise DraftrecError(
            f"No tokenizer could be loaded from {source.name} ({_first_line(error)}); {advice}"
        ) from error


def _tokenizer(place: str, options: dict[str, Any]) -> PreTrainedTokenizerBase:
    """The tokenizer at a folder or Hub id, with the chat template that lies there."""
    found = AutoTokenizer.from_pretrained(place, **options)
    if type(found).__name__ == "MistralCommonBackend":
        # Chosen where mistral-common is installed; it has no chat template and takes none.
        found = PreTrainedTokenizerFast.from_pretrained(place, **options)
    if not found.chat_template and "gguf_file" not in options:
        # Of models that also look at images: transformers reads it for their processors alone.
        cached = {"local_files_only": options.get("local_files_only", False)}
        if file := cached_file(place, "chat_template.json", **cached, **_IF_THERE):
            found.chat_template = json.loads(Path(file).read_text("utf-8"))["chat_template"]
    # That it has warned already: too long a prompt is refused with a reason, and never run "with
    # indexing errors", as transformers says.
    found.deprecation_warnings["sequence-length-is-longer-than-the-specified-maximum"] = True
    return found


def load_tokenizer_of(config: ModelConfig) -> PreTrainedTokenizerBase:
    """The tokenizer of a target model. Raises DraftrecError if there is none."""
    return load_tokenizer(config.model, trust_remote_code=config.trust_remote_code)


def load_model(config: ModelConfig, *, packs: bool = False) -> PreTrainedModel:
    """The model on its device in its dtype, ready to score; `packs`: its layers will be packed
    where they can be. Raises DraftrecError."""
    return _load(config, AutoModelForCausalLM, packs=packs)


def load_body(config: ModelConfig) -> PreTrainedModel:
    """The model without a head: tokens in, hidden states out. Raises DraftrecError."""
    return _load(config, AutoModel)


def _load(config: ModelConfig, kind: Any, *, packs: bool = False) -> PreTrainedModel:
    set_threads(config.threads)
    device = pick_device(config.device)
    transformers_logging.disable_progress_bar()
    source = find_source(config.model)
    check_weights(source)
    options = {"trust_remote_code": config.trust_remote_code, **source.options()}
    try:
        stored = AutoConfig.from_pretrained(source.place, **options)
        kind = kind_for(kind, stored)
        packs = packs and _replaceable(kind, stored)
        dtype = pick_dtype(config.dtype, getattr(stored, "dtype", None), device, packs=packs)
        if device.type == "cpu" and config.dtype == "auto" and dtype == torch.bfloat16:
            _LOG.info(
                "computing in bfloat16, as the weights are stored and this processor multiplies "
                "them; --dtype float32 is slower and hardly rounds"
            )
        model, report = cast(
            "tuple[Any, dict[str, Any]]",
            kind.from_pretrained(source.place, dtype=dtype, output_loading_info=True, **options),
        )
    except (
        OSError, ValueError, LookupError, RuntimeError, ImportError, NotImplementedError,
        SafetensorError, TypeError, AttributeError,  # the last two: JSON of another shape
    ) as error:  # fmt: skip
        _refuse_known(source, error)
        unknown = "Unrecognized configuration class" in str(error)
        raise (UnsupportedModelError if unknown else DraftrecError)(
            f"The model {source.name} could not be loaded ({_first_line(error)}); name a folder "
            "with config.json and weights, a .gguf file, or a Hub id that this machine can reach."
        ) from error
    # Checkpoints trained without BERT's pooler lack it, and hidden states do not pass through it.
    missing = sorted(k for k in report.get("missing_keys", ()) if not k.startswith("pooler."))
    if missing:
        raise DraftrecError(
            f"The model {source.name} lacks {len(missing)} weights (the first is {missing[0]}), "
            "which would be random; save the whole model, language-model head included."
        )
    if getattr(model, "_hf_peft_config_loaded", False):
        raise DraftrecError(
            f"{source.name} has an adapter beside its config.json; download it with `hf download`, "
            "and name the folder."
        )
    if source.adapter:
        model = cast(Any, adapters.merged(model, source.adapter))
    model.requires_grad_(False)
    return model.to(device).eval()


def kind_for(kind: Any, config: Any) -> Any:
    """transformers' auto class `kind`; for language models that it lists only among those that also
    look at images (Mistral 3, Qwen3-VL) that class, as without an image they are causal ones."""
    asked, other = (auto._model_mapping for auto in (kind, AutoModelForImageTextToText))
    only_there = type(config) not in asked and type(config) in other
    causal = kind is AutoModelForCausalLM and not getattr(config, "is_encoder_decoder", False)
    return AutoModelForImageTextToText if causal and only_there else kind


def _replaceable(kind: Any, config: Any) -> bool:
    """Whether the model of this configuration is one whose attention can be replaced."""
    model = kind._model_mapping.get(type(config), None)
    return bool(getattr(model, "_supports_attention_backend", False))


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
    """Every id that ends a text: the generation settings' (or else the model's), and the
    tokenizer's.

    Checkpoints whose chat format was changed often name the end of a turn in the tokenizer's files
    alone; a text that ran past it would go on with the next turn.
    """
    own: frozenset[int] = frozenset()
    for holder in (getattr(model, "generation_config", None), model.config):
        own = own or _ids(getattr(holder, "eos_token_id", None))
    more = _ids(getattr(tokenizer, "eos_token_id", None)) - own
    if own and more:
        _LOG.info(
            "texts also end at %s, which the tokenizer's files name and generation_config does not",
            ", ".join(str(tokenizer.convert_ids_to_tokens(i)) for i in sorted(more)),  # type: ignore[union-attr]
        )
    return own | more


def vocabulary(model: PreTrainedModel) -> int:
    """Tokens that the model has an embedding for."""
    return int(cast(Any, model).get_input_embeddings().weight.shape[0])


def load_outline(config: ModelConfig) -> PreTrainedModel:
    """The model without its weights, which tells its limits. Raises DraftrecError."""
    source = find_source(config.model)
    options = {"trust_remote_code": config.trust_remote_code, **source.options()}
    try:
        stored = AutoConfig.from_pretrained(source.place, **options)
        with torch.device("meta"):
            return kind_for(AutoModelForCausalLM, stored).from_config(
                stored, trust_remote_code=config.trust_remote_code
            )
    except (
        OSError, ValueError, LookupError, RuntimeError, ImportError, TypeError, AttributeError,
    ) as error:  # fmt: skip
        raise DraftrecError(
            f"The configuration of {source.name} could not be read ({_first_line(error)}); name a "
            "folder with config.json, a .gguf file, or a Hub id that this machine can reach."
        ) from error


def _refuse_known(source: Source, error: Exception) -> None:
    """Raise DraftrecError for what has a way round: code of the model's own, a missing library, an
    architecture that the GGUF reader does not know."""
    text = " ".join(str(error).split())
    if "trust_remote_code" in text:
        raise DraftrecError(
            f"{source.name} comes with Python code of its own, which would run on this machine; if "
            "you trust it, give --trust-remote-code (trust_remote_code=True in Python)."
        ) from error
    if isinstance(error, ImportError):
        named = re.search(r"pip install (?:-U |--upgrade )*[`'\"]?([\w.\[\]-]+)", text)
        package = named[1] if named else _quantiser(source)
        advice = f"run pip install {package}" if package else "install what it names"
        raise DraftrecError(
            f"The model {source.name} needs a library that is not installed "
            f"({_first_line(error)}); {advice}, or use a model that is not quantised."
        ) from error
    if source.gguf and ("architecture" in text or "not supported" in text):
        raise UnsupportedModelError(
            f"{source.name} could not be read ({_first_line(error)}); transformers reads GGUF "
            "files of other architectures, and this model from its original folder."
        ) from error


def _quantiser(source: Source) -> str | None:
    """The package that reads the weights of a folder, by its `quantization_config`."""
    path = source.folder and source.folder / "config.json"
    if not path or not path.is_file():
        return None
    found = json.loads(path.read_text()).get("quantization_config") or {}
    return _QUANTISERS.get(str(found.get("quant_method")))


def _ids(found: int | list[int] | None) -> frozenset[int]:
    return frozenset([found] if isinstance(found, int) else found or ())


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0][:200] if lines else type(error).__name__).rstrip(". ")
