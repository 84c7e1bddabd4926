"""The target's last hidden states of prompts and texts, computed once and kept in files.

Texts are passed in the order of their tokens, so that what two neighbours begin with (a template, a
system prompt) is computed once. A file holds those of some texts and owes nothing to other files:
an interrupted pass goes on with the next file, and ends with the same bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Seq
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from draftrec.core import EMPTY_TREE, IntArray
from draftrec.data.files.writers import replace_file
from draftrec.engine.packing import Segment
from draftrec.engine.target import Target
from draftrec.engine.text.batch import common_prefix, sort_key
from draftrec.errors import DraftrecError

_TEXTS = 64  # of a file
_CHUNK = 512  # most rows of a pass
_NAME = "features"
_IDENTITY = "texts.sha256"


class FeatureFiles:
    """Features of `texts` int32 `[L]` each, in `folder`: of text i `[L - 1, H]`, of all rows but
    the last one, in half precision. What lies there of other texts is removed."""

    def __init__(self, folder: Path, texts: Seq[IntArray], model: str) -> None:
        self.folder, self.texts = folder, texts
        self._order = sorted(range(len(texts)), key=lambda i: sort_key(texts[i]))
        sizes = [len(texts[i]) - 1 for i in self._order]
        self._places = {
            text: (at // _TEXTS, sum(sizes[at - at % _TEXTS : at]))
            for at, text in enumerate(self._order)
        }
        digest = hashlib.sha256(model.encode())
        for ids in texts:
            digest.update(np.array([len(ids), *ids], "<i4").tobytes())
        self._identity = digest.hexdigest()

    def claim(self) -> None:
        """Make the folder, or go on in it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / _IDENTITY
        if not path.is_file() or path.read_text() != self._identity:
            self.clear()
            self.folder.mkdir(exist_ok=True)
            replace_file(path, self._identity.encode())

    def clear(self) -> None:
        """Remove what was kept."""
        for path in self.folder.glob("*"):
            path.unlink()
        self.folder.rmdir()

    @property
    def missing(self) -> list[int]:
        """Files that are to be computed."""
        count = -(-len(self.texts) // _TEXTS)
        return [i for i in range(count) if not self._path(i).is_file()]

    def compute(
        self, target: Target, watch: Callable[[int], None], should_stop: Callable[[], bool]
    ) -> bool:
        """Compute what is missing; `watch` is told of how many texts there is something. False if
        `should_stop()` ended it before."""
        target.keep_features()
        target.reserve(1, max(len(ids) for ids in self.texts))
        missing = self.missing
        done = len(self.texts) - sum(len(self._of(file)) for file in missing)
        for file in missing:
            rows: list[torch.Tensor] = []
            for features in self._pass(target, self._of(file)):
                rows.append(features)
                watch(done + len(rows))
                if should_stop():
                    return False
            replace_file(self._path(file), save({_NAME: torch.cat(rows)}))
            done += len(rows)
        return True

    def __getitem__(self, text: int) -> torch.Tensor:
        """`[L - 1, H]`. Raises DraftrecError for a file that was changed."""
        file, first = self._places[text]
        try:
            return self._open(file)[first : first + len(self.texts[text]) - 1]
        except (OSError, SafetensorError) as error:
            raise DraftrecError(
                f"{self._path(file)} is damaged; remove it, and run the same command again"
            ) from error

    def _pass(self, target: Target, texts: Seq[int]) -> Iterator[torch.Tensor]:
        """Features of texts, one after another in one slot."""
        held: IntArray = np.empty(0, np.int32)
        half = torch.bfloat16 if target.dtype == torch.bfloat16 else torch.float16
        most = torch.finfo(half).max
        for text in texts:
            ids = self.texts[text][:-1]
            shared = common_prefix(held, ids)
            if max(len(held), len(ids)) > target.shared_length:
                shared = 0
            for start in range(shared, len(ids), _CHUNK):
                pending = ids[start : start + _CHUNK]
                target.score([Segment(0, start, pending, EMPTY_TREE, False, len(ids))])
            slab: Any = target.slab
            yield slab.features[0, : len(ids)].clamp(-most, most).to("cpu", half, copy=True)
            held = ids

    def _of(self, file: int) -> list[int]:
        return self._order[file * _TEXTS : (file + 1) * _TEXTS]

    def _path(self, file: int) -> Path:
        return self.folder / f"{_NAME}-{file:05d}.safetensors"

    def _open(self, file: int) -> Any:
        if file not in self._opened:
            opened: Any = safe_open(self._path(file), framework="pt")
            self._opened[file] = opened.get_slice(_NAME)
        return self._opened[file]

    @cached_property
    def _opened(self) -> dict[int, Any]:
        return {}
