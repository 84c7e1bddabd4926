"""Speculative decoding inside transformers' own `generate`.

```python
from draftrec.integrations import transformers as draftrec

pool = draftrec.new_pool(tokenizer)
model.generate(**inputs, custom_generate=draftrec.generate, pool=pool, grow_pool=True)
```
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from draftrec.config import AcceptConfig
from draftrec.data.files.places import here
from draftrec.data.files.writers import replace_file
from draftrec.errors import DraftrecError, PoolMismatchError
from draftrec.integrations.transformers.call import read_settings
from draftrec.integrations.transformers.method import Output, generate
from draftrec.models import loading
from draftrec.pool.store import Pool

__all__ = [
    "Output",
    "generate",
    "generate_ready",
    "load_ready",
    "make_ready",
    "new_pool",
    "open_pool",
]


# Inside a model folder. The first two names are transformers' own.
_CODE = Path("custom_generate/generate.py")
_REQUIREMENTS = Path("custom_generate/requirements.txt")
_SETTINGS = Path("draftrec/settings.json")
_POOL = Path("draftrec/pool")
_METHOD = '''"""Drafts from the pool of this folder."""

from draftrec.integrations.transformers import generate_ready as generate
'''
_KNOWN = {"accept": "strict", "draft": "pool", "budget": "auto", "depth": 24, "batch_size": "auto"}

#: The decoding methods of models whose `generate` came from a folder, each with its open pool.
_METHODS: WeakKeyDictionary[PreTrainedModel, Callable[..., Any]] = WeakKeyDictionary()


def new_pool(tokenizer: Any) -> Pool:
    """An empty pool for texts of this tokenizer's tokens."""
    return Pool(loading.tokenizer_fingerprint(tokenizer))


def open_pool(folder: str | Path, tokenizer: Any) -> Pool:
    """A pool that `Pool.save`, `draftrec generate` or `draftrec pool` wrote.

    Raises DraftrecError for a missing or damaged pool, PoolMismatchError for one that was made with
    another tokenizer.
    """
    return Pool.load(here(folder, "a pool"), loading.tokenizer_fingerprint(tokenizer))


def make_ready(folder: str | Path, pool: Pool | None = None, **settings: Any) -> None:
    """Have the model in `folder` draft wherever it is loaded from there.

    `folder` is a model with its tokenizer, as `save_pretrained` writes them. `pool` is saved in it;
    None keeps one that is there already, and without any, prompt and text are drafted from.
    `settings`: `accept`, `draft`, `budget`, `depth` and `batch_size` of `generate`.

    Raises DraftrecError for a folder without a model and for settings that are not allowed,
    PoolMismatchError for a pool made with another tokenizer.
    """
    folder = here(folder, "a model")
    if not (folder / "config.json").is_file():
        raise DraftrecError(
            f"{folder} has no config.json; write the model and its tokenizer there first, with "
            "save_pretrained."
        )
    chosen = _checked(settings)
    written = json.dumps(chosen | {"accept": chosen["accept"].model_dump()}, indent=2) + "\n"
    if pool is not None:
        theirs = loading.tokenizer_fingerprint(loading.load_tokenizer(folder))
        if pool.tokenizer_fingerprint != theirs:
            raise PoolMismatchError(
                f"The pool was made with another tokenizer than the one in {folder}; use the pool "
                "of this model's texts."
            )
        pool.save(folder / _POOL)
    for name, content in {
        _SETTINGS: written,
        _REQUIREMENTS: "draftrec\n",
        _CODE: _METHOD,
    }.items():
        (folder / name).parent.mkdir(exist_ok=True)
        replace_file(folder / name, content.encode())


def load_ready(folder: str | Path, **model_settings: Any) -> PreTrainedModel:
    """The model of a folder of `make_ready`; its `generate` drafts without a further argument.

    No code of the folder is run, so nothing has to be trusted. `model_settings` are
    `from_pretrained`'s. Arguments of a call come before the folder's settings; with
    `custom_generate=None` it is written the plain way.

    Raises DraftrecError for a folder that is not ready, or whose pool cannot be used.
    """
    method = _method(folder)
    trusted = model_settings.get("trust_remote_code")
    config = AutoConfig.from_pretrained(str(folder), trust_remote_code=trusted)
    kind = loading.kind_for(AutoModelForCausalLM, config)
    model: Any = kind.from_pretrained(str(folder), **model_settings)
    model.generate = partial(type(model).generate, model, custom_generate=method)
    return model


def generate_ready(inputs: Any = None, *, model: PreTrainedModel, **arguments: Any) -> Any | Output:
    """What transformers calls for `custom_generate/generate.py`: `generate` with the settings and
    the pool of the folder that `model` was loaded from.

    Raises DraftrecError where that folder is not ready.
    """
    method = _METHODS.get(model)
    if method is None:
        method = _METHODS[model] = _method(model.name_or_path or "")
    # The model's own attribute may be this function; its class has transformers' method.
    return type(model).generate(model, inputs, **({"custom_generate": method} | arguments))  # type: ignore[arg-type]


def _method(folder: str | Path) -> Callable[..., Any]:
    """`generate` with a folder's pool and settings. transformers finds a decoding method's
    arguments by its signature, which a partial keeps."""
    folder = here(folder, "a model")
    try:
        stored = json.loads((folder / _SETTINGS).read_text())
        settings = _checked(stored | {"accept": AcceptConfig(**stored["accept"])})
    except FileNotFoundError:
        raise DraftrecError(
            f"{folder} is not a local folder that drafts; make it one with "
            "draftrec.integrations.transformers.make_ready, or download it and load it from there."
        ) from None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise DraftrecError(
            f"{folder / _SETTINGS} cannot be read ({type(error).__name__}); write it again with "
            "draftrec.integrations.transformers.make_ready."
        ) from error
    pool = None
    if (folder / _POOL).exists():
        pool = open_pool(folder / _POOL, loading.load_tokenizer(folder))
    return partial(generate, pool=pool, **settings)


def _checked(settings: dict[str, Any]) -> dict[str, Any]:
    """All settings, `accept` as an AcceptConfig. Raises DraftrecError for one that is unknown or
    not allowed."""
    odd = sorted(settings.keys() - _KNOWN)
    if odd:
        raise DraftrecError(
            f"{odd[0]} is not a setting of a folder, which has {', '.join(_KNOWN)}; pass it to "
            "generate."
        )
    chosen = _KNOWN | settings
    drafting = {name: chosen[name] for name in ("draft", "budget", "depth")}
    read = read_settings(chosen["accept"], drafting, chosen["batch_size"], rows=1)
    return chosen | {"accept": read.accept}
