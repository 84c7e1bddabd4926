"""A teacher folder: contexts with the target's beams, and its log-probabilities along them.

`teacher-NNNNN.safetensors` hold contexts, `catalogue.safetensors` the items and the legal codes,
`sids.parquet` the semantic ids, `manifest.json` says of which target, and which shards are
finished.

The contexts of one prompt are one tree that one pass goes through: twenty beams of four codes share
most of their prefixes, a tree holds each prefix once, and counts how many beams go through it. So
the prompt is computed once instead of twenty times.
"""

from __future__ import annotations

import re
from collections.abc import Sequence as Seq
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel, Field, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from draftrec.core import BoolArray, FloatArray, HalfArray, IntArray, LongArray
from draftrec.data.files.writers import replace_file
from draftrec.data.sequences import read_semantic_ids, write_semantic_ids
from draftrec.engine.masks import Reach, by_kind
from draftrec.errors import DraftrecError
from draftrec.items.semantic_ids import SemanticIds
from draftrec.jobs.ledger import Ledger
from draftrec.models.recommender import IDS_FILE, Recommender, check_ids


@dataclass(frozen=True, eq=False, slots=True)
class ContextTree:
    """`m` prefixes of beams and of the true item, shorter than an item; parents before children.

    `tokens`, `parents` int32 `[m]` (-1: the prompt's end) and `levels` int32 `[m]`, from 1. A *row*
    is a context: row 0 is the prompt's end, row i + 1 what follows prefix i. Of rows `[m + 1]`:
    `next_level` int32, the level of the code to choose there; `beams` float32, how many beams go
    through; `truth` int64, the true item's next token there, -1 off its path. Edges are the tokens
    that beams choose: `edge_rows`, `edge_tokens` int64 `[e]`, and `edge_beams` float32 `[e]`.
    """

    tokens: IntArray
    parents: IntArray
    levels: IntArray
    beams: FloatArray
    truth: LongArray
    edge_rows: LongArray
    edge_tokens: LongArray
    edge_beams: FloatArray

    @property
    def next_level(self) -> IntArray:
        return np.concatenate((np.zeros(1, np.int32), self.levels))

    def sees(self) -> BoolArray:
        """bool `[m, m]`: which prefixes lead to which, themselves included."""
        seen = np.eye(len(self.tokens), dtype=np.bool_)
        for level in range(2, int(self.levels.max(initial=0)) + 1):
            here = np.flatnonzero(self.levels == level)
            seen[here] |= seen[self.parents[here]]
        return seen


def context_tree(beams: IntArray, truth: IntArray) -> ContextTree:
    """The tree of `beams` int32 `[k, L]` and of the true item, `truth` int32 `[L]`, or `[0]` where
    nobody knows it."""
    paths = np.concatenate((beams, truth.reshape(-1, beams.shape[1])))
    weights = (np.arange(len(paths)) < len(beams)).astype(np.float32)
    known = np.flatnonzero(weights == 0)
    tokens, parents, levels = [np.empty(0, np.int32)], [np.empty(0, np.int32)], [0]
    rows = np.zeros(len(paths), np.int64)  # the row of every path's prefix so far
    counts, nexts = [np.array([len(beams)], np.float32)], {}
    edges: list[tuple[LongArray, LongArray, FloatArray]] = []
    count = 0
    for level in range(paths.shape[1]):
        pairs = np.stack((rows, paths[:, level].astype(np.int64)), axis=1)
        unique, inverse = np.unique(pairs, axis=0, return_inverse=True)
        inverse = inverse.reshape(-1)
        through = np.bincount(inverse, weights, len(unique)).astype(np.float32)
        edges.append((unique[:, 0], unique[:, 1], through))
        nexts |= {int(rows[i]): int(paths[i, level]) for i in known}
        if level + 1 < paths.shape[1]:
            parents.append((unique[:, 0] - 1).astype(np.int32))
            tokens.append(unique[:, 1].astype(np.int32))
            levels += [level + 1] * len(unique)
            counts.append(through)
            rows = inverse + count + 1
            count += len(unique)
    truths = np.full(count + 1, -1, np.int64)
    truths[list(nexts)] = list(nexts.values())
    return ContextTree(
        np.concatenate(tokens), np.concatenate(parents), np.array(levels[1:], np.int32),
        np.concatenate(counts), truths, np.concatenate([rows for rows, _, _ in edges]),
        np.concatenate([chosen for _, chosen, _ in edges]),
        np.concatenate([through for _, _, through in edges]),
    )  # fmt: skip


def tree_inputs(prompts: Seq[IntArray], trees: Seq[ContextTree]) -> dict[str, torch.Tensor]:
    """One pass over prompts and their trees, padded on the right.

    `input_ids`, `position_ids` int64 `[B, T]`; `sees` bool `[B, 1, T, T]`; `rows` int64 `[R, 2]`:
    where, as (batch, column), the logits of all rows of all trees lie, one tree after another.
    """
    longest = max(len(p) + len(t.tokens) for p, t in zip(prompts, trees, strict=True))
    shape = (len(prompts), longest)
    ids, positions = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    sees = np.zeros((len(prompts), 1, longest, longest), np.bool_)
    sees[:, :, np.arange(longest), np.arange(longest)] = True  # padding has to see something
    rows: list[LongArray] = []
    for i, (prompt, tree) in enumerate(zip(prompts, trees, strict=True)):
        p, end = len(prompt), len(prompt) + len(tree.tokens)
        ids[i, :p], ids[i, p:end] = prompt, tree.tokens
        positions[i, :p], positions[i, p:end] = np.arange(p), p - 1 + tree.levels
        sees[i, 0, :p, :p] = np.tri(p, dtype=np.bool_)
        sees[i, 0, p:end, :p] = True
        sees[i, 0, p:end, p:end] = tree.sees()
        columns = np.arange(p - 1, end)
        rows.append(np.stack((np.full(len(columns), i), columns), axis=1))
    arrays = {"input_ids": ids, "position_ids": positions, "sees": sees}
    arrays["rows"] = np.concatenate(rows).astype(np.int64)
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def tree_logits(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Logits `[B, T, V]` of the pass that `tree_inputs` describes, its layers' windows kept."""
    weights = next(iter(model.parameters()))
    sees, positions = (batch[name].to(weights.device) for name in ("sees", "position_ids"))
    rows, keys = positions[:, None, :, None], positions[:, None, None, :]
    longest = int(positions.max()) + 1

    def mask(reach: Reach) -> torch.Tensor:
        seen = sees if reach.within(longest) else sees & reach.covers(rows, keys)
        if model.config._attn_implementation == "sdpa":
            return seen
        hidden = torch.zeros(seen.shape, dtype=weights.dtype, device=weights.device)
        # The others add their mask to the scores.
        return hidden.masked_fill_(~seen, torch.finfo(weights.dtype).min)

    return model(
        input_ids=batch["input_ids"].to(weights.device),
        position_ids=positions,
        attention_mask=by_kind(model.config.get_text_config(), mask),
        use_cache=False,
    ).logits


def at_rows(logits: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """`[R, V]` out of `[B, T, V]`, at (batch, column) pairs `[R, 2]`."""
    rows = rows.to(logits.device)
    return logits[rows[:, 0], rows[:, 1]]


FORMAT_VERSION = 2
# Not the ids, which are replaced whole: they may be the ones that are read.
_OWNED = re.compile(r"catalogue\.safetensors|teacher-\d{5,}\.safetensors")
_RAGGED = ("prompt", "answers", "beams", "log_probs", "prompt_log_probs")


class TeacherManifest(BaseModel):
    """Where a teacher folder comes from. `target`, `tokenizer`, `sids` and `contexts` are
    fingerprints, the last of what was asked; `shards` counts the contexts of each, `sizes` the
    bytes of its file, where no earlier version wrote it."""

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
    sizes: list[int] = Field(default_factory=list[int])
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
class ItemRows:
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

    @property
    def ledger(self) -> Ledger:
        return Ledger(self.path, self.path, "teacher data", "manifest.json", _OWNED)

    def manifest(self) -> TeacherManifest | None:
        """What the folder holds, None for a new one. Raises DraftrecError for a damaged one."""
        path = self.ledger.path
        if not path.is_file():
            return None
        try:
            found = TeacherManifest.model_validate_json(path.read_bytes())
        except ValidationError as error:
            raise DraftrecError(
                f"{path} is damaged ({error.errors()[0]['msg']}); record the teacher data again "
                "with --overwrite"
            ) from error
        if found.format_version != FORMAT_VERSION:
            raise DraftrecError(
                f"{path} has format version {found.format_version}, this draftrec reads "
                f"{FORMAT_VERSION}; record the teacher data again with this draftrec"
            )
        return found

    def write_manifest(self, manifest: TeacherManifest) -> None:
        """Replace the manifest. This is the moment at which a shard counts as finished."""
        self.ledger.write(manifest.model_dump_json(indent=1) + "\n")

    def write_catalogue(self, catalogue: ItemRows, sids: SemanticIds) -> None:
        write_semantic_ids(self.path / IDS_FILE, sids)
        arrays = {f.name: getattr(catalogue, f.name) for f in fields(catalogue)}
        replace_file(self.path / "catalogue.safetensors", save(arrays))

    def catalogue(self) -> ItemRows:
        """Raises DraftrecError if it is damaged or missing."""
        return ItemRows(**_load(self.path / "catalogue.safetensors"))

    def has_catalogue(self) -> bool:
        """Can what `write_catalogue` writes be read?"""
        try:
            self.catalogue()
            return self.sids() is not None
        except DraftrecError:
            return False

    def sids(self) -> SemanticIds | None:
        """The semantic ids of the contexts; None where an earlier version has not kept them."""
        path = self.path / IDS_FILE
        return read_semantic_ids(path) if path.is_file() else None

    def write_shard(self, number: int, contexts: Seq[Context]) -> int:
        """Write contexts one after another, with the lengths of everything that is ragged; the
        file's size."""
        levels = contexts[0].beams.shape[1]
        arrays: dict[str, npt.NDArray[Any]] = {}
        for name in _RAGGED:
            arrays[name] = np.concatenate([getattr(c, name) for c in contexts])
            arrays[f"{name}_lengths"] = np.array([len(getattr(c, name)) for c in contexts])
        known = [c.truth if len(c.truth) else np.full(levels, -1, np.int32) for c in contexts]
        arrays["truth"] = np.stack(known)
        content = save(arrays)
        replace_file(self.shard(number), content)
        return len(content)

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

    def shard(self, number: int) -> Path:
        return self.path / f"teacher-{number:05d}.safetensors"


def check_teacher(teacher: TeacherFolder, target: Recommender) -> TeacherManifest:
    """The manifest. Raises DraftrecError unless it is finished and speaks for this target, in the
    semantic ids that this one knows."""
    folder, manifest = teacher.path, teacher.manifest()
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
    if (sids := teacher.sids()) is not None:
        check_ids(target.info, target.folder, sids, f"those of {folder}")
    return manifest


def _load(path: Path) -> dict[str, Any]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise DraftrecError(
            f"{path} is missing or damaged; record the teacher data again with --overwrite"
        ) from error
