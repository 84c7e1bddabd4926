"""A teacher folder: contexts with the target's beams, and its log-probabilities along them.

`teacher-NNNNN.safetensors` hold contexts, `catalogue.safetensors` the items and the legal codes,
`manifest.json` says of which target, and which shards are finished.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from draftrec.alignment.trees import ContextTree, context_tree
from draftrec.core import BoolArray, HalfArray, IntArray, LongArray
from draftrec.data.writers import replace_file
from draftrec.errors import DraftrecError
from draftrec.models.recommender import Recommender

FORMAT_VERSION = 2
_RAGGED = ("prompt", "answers", "beams", "log_probs", "prompt_log_probs")


class TeacherManifest(BaseModel):
    """Where a teacher folder comes from. `target`, `tokenizer`, `sids` and `contexts` are
    fingerprints, the last of what was asked; `shards` counts the contexts of each."""

    model_config = ConfigDict(extra="ignore")

    format_version: int = FORMAT_VERSION
    target: str
    tokenizer: str
    sids: str
    contexts: str
    levels: int = Field(ge=1)
    beams: int = Field(ge=1)
    total: int
    prompt: dict[str, Any]
    settings: dict[str, Any] = Field(default_factory=dict)
    shards: list[int] = Field(default_factory=list[int])
    seconds: float = 0.0

    @property
    def finished(self) -> bool:
        """Are all contexts recorded?"""
        return sum(self.shards) == self.total


@dataclass(frozen=True, eq=False, slots=True)
class Context:
    """One prompt and what the target says after it.

    `prompt` int32 `[p]`, `answers` bool `[p]` (tokens of items that teach); `truth` int32 `[L]`, or
    `[0]` if unknown; `beams` int32 `[k, L]`, best first; `log_probs` float16 `[rows, A]`: of the
    legal codes of a row's level, normalised over the whole vocabulary, rows as in `tree`;
    `prompt_log_probs` float16 `[answers, A]`: the same before every token that teaches.
    """

    prompt: IntArray
    answers: BoolArray
    truth: IntArray
    beams: IntArray
    log_probs: HalfArray
    prompt_log_probs: HalfArray

    def tree(self) -> ContextTree:
        """The contexts that `log_probs` has a row for."""
        return context_tree(self.beams, self.truth)


@dataclass(frozen=True, eq=False, slots=True)
class Catalogue:
    """`items` int64 `[n]` (their places where ids are texts), their tokens `item_tokens` int32
    `[n, L]`, and the legal codes of every level `codes` int32 `[L, A]`, padded with -1."""

    items: LongArray
    item_tokens: IntArray
    codes: IntArray


def legal_codes(item_tokens: IntArray) -> IntArray:
    """int32 `[L, A]`: the tokens seen on every level (A_j), ascending, padded with -1."""
    levels = [np.unique(column) for column in item_tokens.T]
    found = np.full((len(levels), max(map(len, levels))), -1, np.int32)
    for level, tokens in enumerate(levels):
        found[level, : len(tokens)] = tokens
    return found


@dataclass(frozen=True)
class TeacherFolder:
    """Reads and writes a teacher folder."""

    path: Path

    def manifest(self) -> TeacherManifest | None:
        """What the folder holds, None for a new one. Raises DraftrecError for a damaged one."""
        path = self.path / "manifest.json"
        if not path.is_file():
            return None
        try:
            found = TeacherManifest.model_validate_json(path.read_bytes())
        except ValidationError as error:
            raise DraftrecError(
                f"{path} is damaged ({error.errors()[0]['msg']}); record the teacher data again"
            ) from error
        if found.format_version != FORMAT_VERSION:
            raise DraftrecError(
                f"{path} has format version {found.format_version}, this draftrec reads "
                f"{FORMAT_VERSION}; record the teacher data again with this draftrec"
            )
        return found

    def write_manifest(self, manifest: TeacherManifest) -> None:
        """Replace the manifest. This is the moment at which a shard counts as finished."""
        content = manifest.model_dump_json(indent=1) + "\n"
        replace_file(self.path / "manifest.json", content.encode())

    def write_catalogue(self, catalogue: Catalogue) -> None:
        arrays = {f.name: getattr(catalogue, f.name) for f in fields(catalogue)}
        replace_file(self.path / "catalogue.safetensors", save(arrays))

    def catalogue(self) -> Catalogue:
        """Raises DraftrecError if it is damaged or missing."""
        return Catalogue(**_load(self.path / "catalogue.safetensors"))

    def write_shard(self, number: int, contexts: Seq[Context]) -> None:
        """Write contexts one after another, with the lengths of everything that is ragged."""
        levels = contexts[0].beams.shape[1]
        arrays: dict[str, npt.NDArray[Any]] = {}
        for name in _RAGGED:
            arrays[name] = np.concatenate([getattr(c, name) for c in contexts])
            arrays[f"{name}_lengths"] = np.array([len(getattr(c, name)) for c in contexts])
        known = [c.truth if len(c.truth) else np.full(levels, -1, np.int32) for c in contexts]
        arrays["truth"] = np.stack(known)
        replace_file(self.shard(number), save(arrays))

    def contexts(self, number: int) -> list[Context]:
        """The contexts of a shard. Raises DraftrecError if it is damaged or missing."""
        arrays = _load(self.shard(number))
        ragged = {
            name: np.split(arrays[name], np.cumsum(arrays[f"{name}_lengths"])[:-1])
            for name in _RAGGED
        }
        truths = [truth[truth >= 0] for truth in arrays["truth"]]
        return [
            Context(truth=truth, **{name: ragged[name][i] for name in _RAGGED})
            for i, truth in enumerate(truths)
        ]

    def clear(self) -> None:
        """Remove everything that a recording wrote here, the manifest first, and nothing else."""
        (self.path / "manifest.json").unlink(missing_ok=True)
        (self.path / "catalogue.safetensors").unlink(missing_ok=True)
        for path in self.path.glob("teacher-*.safetensors"):
            path.unlink()

    def shard(self, number: int) -> Path:
        return self.path / f"teacher-{number:05d}.safetensors"


def check_teacher(
    folder: Path, manifest: TeacherManifest | None, target: Recommender
) -> TeacherManifest:
    """The manifest. Raises DraftrecError unless it is finished and speaks for this target."""
    if manifest is None:
        raise DraftrecError(
            f"{folder} has no manifest.json, so it is no teacher data; name a folder that "
            "`draftrec genrec teach` wrote"
        )
    if manifest.target != target.fingerprint:
        raise DraftrecError(
            f"the teacher data in {folder} comes from another target; record it again with "
            "`draftrec genrec teach`, or name the target that it comes from"
        )
    if not manifest.finished:
        raise DraftrecError(
            f"the teacher data in {folder} stops after {sum(manifest.shards):,} of "
            f"{manifest.total:,} contexts; run the same `draftrec genrec teach` again"
        )
    return manifest


def _load(path: Path) -> dict[str, Any]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise DraftrecError(
            f"{path} is missing or damaged; record the teacher data again"
        ) from error
