"""What `--model` names (a folder, a Hub id, a GGUF file, or an adapter and so the model that it
belongs to), found out before anything is loaded, with errors a user can act on.

transformers answers a missing file, a missing network and a missing library alike, and tries a
network that is not there for more than a minute. Here each gets its own sentence, at once.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from draftrec.data.files.places import here
from draftrec.errors import DraftrecError, not_installed
from draftrec.models import adapters

#: What weights may lie in.
_WEIGHTS = ("*.safetensors", "*.bin", "*.safetensors.index.json")
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_POINTER = b"version https://git-lfs"
# Seconds that the Hub may take to say whether it has a model.
_PATIENCE = 5.0


@dataclass(frozen=True, slots=True)
class Source:
    """`place` is a folder or a Hub id, `gguf` the name of a file in it; `cached`: only what an
    earlier download left can be read, because the Hub is out of reach. `adapter`: the folder or Hub
    id of an adapter, which was trained on what lies at `place`."""

    place: str
    gguf: str | None = None
    cached: bool = False
    adapter: str | None = None

    @property
    def folder(self) -> Path | None:
        return Path(self.place) if Path(self.place).is_dir() else None

    @property
    def name(self) -> str:
        """What the user may call it."""
        if self.adapter:
            return self.adapter
        if self.gguf is None:
            return self.place
        return str(Path(self.place) / self.gguf) if self.folder else f"{self.place}:{self.gguf}"

    def options(self) -> dict[str, Any]:
        """What `from_pretrained` needs beside `place`."""
        found: dict[str, Any] = {"local_files_only": True} if self.cached else {}
        return found | ({"gguf_file": self.gguf} if self.gguf else {})


def find_source(model: str | Path) -> Source:
    """Where `model` is. Raises DraftrecError for what is not there or out of reach, with the cause.

    A folder, `FILE.gguf`, a Hub id, or `HUB_ID:FILE.gguf`; a folder or Hub id may be an adapter's.
    """
    text, path = str(model), here(model)
    if path.is_dir():
        return _folder(path)
    if text.endswith(".gguf"):
        return _gguf(text, path)
    if path.exists():
        raise DraftrecError(
            f"{model} is a file; name the folder that holds it with config.json and a tokenizer, a "
            ".gguf file, or a Hub id."
        )
    if not _HUB_ID.fullmatch(text) or text.startswith("."):
        raise DraftrecError(
            f"The model folder {model} does not exist; name a folder with config.json and weights, "
            "a .gguf file, or a Hub id."
        )
    return _on_hub(text)


def check_weights(source: Source) -> None:
    """Raise DraftrecError for a folder without weights."""
    folder = source.folder
    if folder is None or source.gguf:
        return
    if not _has_weights(folder):
        raise DraftrecError(
            f"The model folder {folder} has no weights (*.safetensors or *.bin); save the model "
            "there with save_pretrained, or name another folder."
        )


def _has_weights(folder: Path) -> bool:
    found = (file for pattern in _WEIGHTS for file in folder.glob(pattern))
    return any(not file.name.startswith("adapter_") for file in found)


def _folder(path: Path) -> Source:
    for file in sorted(path.iterdir()):
        if file.is_file() and _is_pointer(file):
            raise DraftrecError(
                f"{file} is a pointer of git-lfs and not the file itself; run `git lfs pull` in "
                f"{path}, or download the model with `hf download`."
            )
    if (path / adapters.FILE).is_file():
        if _has_weights(path) and (path / "config.json").is_file():
            raise DraftrecError(
                f"The model folder {path} holds a whole model and an adapter ({adapters.FILE}); "
                "put one of them into a folder of its own, and name what is meant."
            )
        if not next(path.glob("adapter_model.*"), None):
            raise DraftrecError(
                f"The adapter folder {path} has no weights (adapter_model.safetensors); save the "
                "adapter there with save_pretrained, or name another folder."
            )
        return _adapted(str(path), path / adapters.FILE)
    if not (path / "config.json").is_file():
        found = sorted(p.name for p in path.glob("*.gguf"))
        if found:
            raise DraftrecError(
                f"The model folder {path} has no config.json, but GGUF files; name one of them, "
                f"for example {path / found[0]}."
            )
        raise DraftrecError(
            f"The model folder {path} has no config.json; name the folder that save_pretrained "
            "wrote."
        )
    return Source(str(path))


def _adapted(adapter: str, file: Path) -> Source:
    """The source of an adapter whose configuration is `file`."""
    base = adapters.base_of(file)
    try:
        nested = base == adapter or (here(base) / adapters.FILE).is_file()
        found = None if nested else find_source(base)
    except DraftrecError as error:
        raise DraftrecError(
            f"{adapter} is an adapter; the model that it was trained on, by base_model_name_or_path"
            f" in {file}, cannot be had: {error}"
        ) from error
    if found is None or found.adapter:
        raise DraftrecError(
            f"{adapter} is an adapter of {base}, which is one itself; merge that into its model "
            "with peft's merge_and_unload(), and name the result in base_model_name_or_path."
        )
    return replace(found, adapter=adapter)


def _is_pointer(file: Path) -> bool:
    if file.stat().st_size > 1024:
        return False
    with file.open("rb") as opened:
        return opened.read(len(_POINTER)) == _POINTER


def _gguf(text: str, path: Path) -> Source:
    if path.is_file():
        if _is_pointer(path):
            raise DraftrecError(f"{path} is a pointer of git-lfs; run `git lfs pull` beside it.")
        source = Source(str(path.parent), path.name)
    else:
        place, _, file = text.rpartition(":")
        if not place or not _HUB_ID.fullmatch(place):
            raise DraftrecError(
                f"The GGUF file {text} does not exist; name one that does, or HUB_ID:FILE.gguf."
            )
        source = Source(place, file, cached=_only_cached(place, file))
    _need_gguf(source)
    return source


def _need_gguf(source: Source) -> None:
    from transformers.utils.import_utils import is_gguf_available

    if not is_gguf_available():
        why = f"{source.name} is a GGUF file, and what reads those is missing or too old"
        raise not_installed("gguf", why)


class _NoFileError(DraftrecError):
    """The Hub has the model and not the file."""


def _on_hub(model: str) -> Source:
    """A model of the Hub, or an adapter, which has no config.json."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    try:
        return Source(model, cached=_only_cached(model, "config.json"))
    except DraftrecError as error:
        known = isinstance(try_to_load_from_cache(model, adapters.FILE), str)
        if not known and not isinstance(error, _NoFileError):
            raise
        try:
            cached = _only_cached(model, adapters.FILE)
        except DraftrecError:
            raise error from None
    file = hf_hub_download(model, adapters.FILE, local_files_only=cached)
    return _adapted(model, Path(file))


def _only_cached(model: str, file: str) -> bool:
    """Must the Hub's model be read from what was downloaded before?

    Raises DraftrecError if it was not and the Hub is out of reach or has none of that name.
    """
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.errors import (
        GatedRepoError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    downloaded = isinstance(try_to_load_from_cache(model, file), str)
    missing = f"There is no folder {model}, and as a Hub id it could not be loaded"
    if constants.HF_HUB_OFFLINE:
        if downloaded:
            return True
        raise DraftrecError(
            f"{missing}: HF_HUB_OFFLINE is set and it was not downloaded before; unset it, or name "
            "a folder with config.json and weights."
        )
    try:
        get_hf_file_metadata(hf_hub_url(model, file), timeout=_PATIENCE)
    except GatedRepoError as error:
        raise DraftrecError(
            f"{missing}: it is gated; ask for access on its page, then log in with `hf auth login`."
        ) from error
    except RepositoryNotFoundError as error:
        raise DraftrecError(
            f"{missing}: the Hub has none of that name, or it is private; check the name, or log "
            "in with `hf auth login`."
        ) from error
    except OfflineModeIsEnabled:
        return downloaded
    except Exception as error:  # whatever its HTTP library raises
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status == 404:
            raise _NoFileError(
                f"{missing}: it has no {file}; name a model that transformers reads, or "
                "HUB_ID:FILE.gguf."
            ) from error
        if downloaded:
            return True
        cause = " ".join(str(error).split())[:160].rstrip(". ") or type(error).__name__
        raise DraftrecError(
            f"{missing}: the Hub is out of reach ({cause}) and it was not downloaded before; check "
            "the network, or name a folder with config.json and weights."
        ) from error
    return False
