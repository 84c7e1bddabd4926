"""Refreshing an earlier run: what it wrote for an entity, and whether that may stay.

A text stays where its prompt has not changed, token for token, and was written by the same model
under the same acceptance settings. Every other entity drafts from its own earlier text.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from draftrec.config import AcceptConfig, ControlsConfig, StructureConfig
from draftrec.core import BoolArray, Counts, FinishReason, Generation, IntArray, Request
from draftrec.data.files.places import Place, arrow_path
from draftrec.errors import DraftrecError
from draftrec.jobs.knowledge.manifest import Manifest, recorded_settings
from draftrec.jobs.knowledge.shards import RunFolder, prompt_hash

# Settings that decide a text, beside the prompt and the model's weights.
_DECISIVE = (
    *(name for name in AcceptConfig.model_fields if name != "n"),
    *ControlsConfig.model_fields,
    *StructureConfig.model_fields,
    "max_new_tokens",
    "dtype",
    "kv_dtype",
)
# Settings that decide what all prompts look like.
_OF_PROMPTS = ("side", "chat", "system", "chat_template_kwargs", "prompt_column")
_SHARDS_IN_MEMORY = 2


@dataclass(frozen=True, slots=True)
class Earlier:
    """What an earlier run wrote for one entity."""

    token_ids: IntArray
    text: str
    finish_reason: FinishReason
    prompt_hash: int

    def kept(self, entity_id: str, prompt_tokens: int) -> Generation:
        """The same text as the result of no work at all."""
        return Generation(entity_id, self.token_ids, self.finish_reason, prompt_tokens, Counts())


class PreviousRun:
    """Texts of an earlier run by entity: 16 bytes per entity in memory, and the shards in use.

    Raises DraftrecError for a folder that holds no finished shard, or whose files were changed.
    """

    def __init__(self, path: Place) -> None:
        self.path, self._folder = path, RunFolder(path)
        manifest = self._folder.to_read()
        if manifest is None or not manifest.shards:
            raise DraftrecError(
                f"{path} holds no finished part of a run; give --previous the --output of an "
                f"earlier `draftrec generate`"
            )
        self.manifest: Manifest = manifest
        self._example = ""
        self._hashes, self._places = self._index(len(manifest.shards))
        self._shard = lru_cache(maxsize=_SHARDS_IN_MEMORY)(self._read)

    @property
    def name(self) -> str:
        return str(self.path)

    @property
    def example(self) -> str:
        """One of the ids; empty if there is none."""
        return self._example

    def knows(self, ids: list[str]) -> BoolArray:
        """Which of `ids` the run wrote a text for."""
        return np.isin(np.array([_hash(i) for i in ids], np.uint64), self._hashes)

    @property
    def fingerprint(self) -> str:
        """sha256 over what the run was and how far it came."""
        content = self.manifest.model_dump_json(include={"settings", "fingerprints", "shards"})
        return hashlib.sha256(content.encode()).hexdigest()

    def find(self, entity_ids: Seq[str]) -> dict[str, list[Earlier]]:
        """The texts that the run wrote for those of the entities that it had, by sample. Reads each
        shard once."""
        wanted = np.array([_hash(i) for i in entity_ids], np.uint64)
        first = np.searchsorted(self._hashes, wanted, side="left")
        last = np.searchsorted(self._hashes, wanted, side="right")
        by_shard: dict[int, list[tuple[int, str]]] = {}
        for entity_id, a, b in zip(entity_ids, first.tolist(), last.tolist(), strict=True):
            for place in self._places[a:b].tolist():
                shard, row = divmod(place, 1 << 32)
                by_shard.setdefault(shard, []).append((row, entity_id))
        found: dict[str, list[Earlier]] = {}
        for shard, rows in sorted(by_shard.items()):
            table = self._shard(shard)
            for row, entity_id in rows:
                if table["entity_id"][row].as_py() == entity_id:  # not another of the same hash
                    found.setdefault(entity_id, []).append(_earlier(table, row))
        return found

    def why_not_kept(
        self, settings: Mapping[str, Any], fingerprints: Mapping[str, str]
    ) -> str | None:
        """Why no text of the run may stay as it is, or None if they may.

        Raises DraftrecError for another tokenizer: its token ids mean something else.
        """
        then = self.manifest
        if then.fingerprints.get("tokenizer") != fingerprints["tokenizer"]:
            raise DraftrecError(
                f"the run in {self.path} was written with another tokenizer; leave --previous out, "
                f"or use its model"
            )
        recorded = recorded_settings(then)
        changed = [name for name in _DECISIVE if recorded.get(name) != settings.get(name)]
        if then.fingerprints.get("model") != fingerprints["model"]:
            changed.insert(0, "model")
        theirs, ours = (f.get("generation_config") for f in (then.fingerprints, fingerprints))
        if (theirs or None) != (ours or None):
            changed.append("generation_config of the model")
        reasons = [f"other {', '.join(changed)}"] if changed else []
        if recorded["n"] < settings["n"]:
            reasons.append("fewer texts of each record")
        return " and ".join(reasons) or None

    def prompts_changed(self, now: Manifest) -> list[str]:
        """What makes all prompts other than those of the run, a phrase each."""
        then, found = self.manifest, []
        if then.chat_date and now.chat_date and then.chat_date.date() != now.chat_date.date():
            found.append(
                f"the chat template writes the date, which was {then.chat_date.date()} "
                f"(--chat-date {then.chat_date.date()} keeps it)"
            )
        recorded = recorded_settings(then)
        settings = [n for n in _OF_PROMPTS if recorded.get(n) != now.settings.get(n)]
        for name in ("template", "chat_template"):
            if then.fingerprints.get(name) != now.fingerprints.get(name, None):
                settings.append(name)
        if settings:
            found.append(f"other {', '.join(name.replace('_', ' ') for name in settings)}")
        return found

    def _index(self, shards: int) -> tuple[np.ndarray, np.ndarray]:
        """Hashes of all entity ids in order, uint64, and `shard << 32 | row` of each, int64."""
        hashes: list[np.ndarray] = []
        places: list[np.ndarray] = []
        for shard in range(shards):
            part = pq.read_table(arrow_path(self._folder.part(shard)), columns=["entity_id"])
            ids = part["entity_id"].to_pylist()
            self._example = self._example or next(iter(ids), "")
            hashes.append(np.array([_hash(i) for i in ids], np.uint64))
            places.append((shard << 32) + np.arange(len(ids), dtype=np.int64))
        flat = np.concatenate(hashes)
        order = np.argsort(flat, kind="stable")
        return flat[order], np.concatenate(places)[order]

    def _read(self, shard: int) -> pa.Table:
        columns = ["entity_id", "text", "token_ids", "finish_reason"]
        part = pq.read_table(arrow_path(self._folder.part(shard)), columns=columns)
        stats = pq.read_table(arrow_path(self._folder.stats(shard)), columns=["prompt_hash"])
        return part.append_column("prompt_hash", stats["prompt_hash"])


def _earlier(table: pa.Table, row: int) -> Earlier:
    ids = np.asarray(table["token_ids"][row].values, np.int32)
    text, reason, hashed = (
        table[name][row].as_py() for name in ("text", "finish_reason", "prompt_hash")
    )
    return Earlier(ids, text, reason, hashed)


def unchanged(earlier: Earlier, request: Request) -> bool:
    """Was the earlier text written for these very tokens?"""
    return earlier.prompt_hash == prompt_hash(request.prompt_ids)


def _hash(entity_id: str) -> int:
    digest = hashlib.blake2b(entity_id.encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little")
