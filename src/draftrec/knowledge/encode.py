"""Encode: a text per entity in, a vector per entity out.

The shard is the unit of work and of resume. Which texts share a batch depends on the shard alone,
so an interrupted job that goes on writes the same bytes as one that was never interrupted.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from draftrec.config import EncodeConfig
from draftrec.data.records import Entity, Rejected
from draftrec.errors import DraftrecError
from draftrec.knowledge.encode_files import EncodeFiles, EncodeManifest, ShardRows
from draftrec.knowledge.encode_inputs import EncodeInputs, EncodeSpec, settings_of
from draftrec.knowledge.manifest import package_versions
from draftrec.models.documents import Document, Encoded, joined

if TYPE_CHECKING:
    from draftrec.models.encoders import Encoder

#: Told how many records of how many are done.
Watch = Callable[[int, int], None]
#: Makes the encoder; the texts are those that a `hashed` one is fitted on.
Loader = Callable[[EncodeConfig, Iterable[str]], "Encoder"]


@dataclass(frozen=True, slots=True)
class EncodeResult:
    """The summary of a finished job. `fresh` is false if there was nothing left to do."""

    summary: dict[str, Any]
    fresh: bool


def load_for_job(config: EncodeConfig, fit_on: Iterable[str]) -> Encoder:
    """The encoder that a job asks for. Takes seconds: it imports PyTorch."""
    from draftrec.models.encoders import load_encoder

    return load_encoder(config.encoder, config.settings, fit_on)


def run_encode(
    spec: EncodeSpec, load: Loader = load_for_job, watch: Watch | None = None
) -> EncodeResult:
    """Encode every text of `spec.input`, or what is left of them.

    Raises DraftrecError for unusable inputs and for an output that was made otherwise.
    """
    inputs = EncodeInputs(spec)
    files = EncodeFiles(spec.output)
    earlier = _earlier(spec, inputs, files)
    if earlier and earlier.size is not None:
        return EncodeResult(earlier.summary(), fresh=False)
    total = inputs.reader.check_ids()
    spec.output.parent.mkdir(parents=True, exist_ok=True)
    encoder = load(spec.config, inputs.fit_texts())
    with files.locked():
        earlier = _earlier(spec, inputs, files)  # another process may have gone on meanwhile
        if earlier and earlier.size is not None:
            files.remove()
            return EncodeResult(earlier.summary(), fresh=False)
        fingerprints = {**inputs.fingerprints, "encoder": encoder.fingerprint}
        if earlier is None:
            manifest = _new_manifest(spec, inputs, encoder, fingerprints)
            files.clear()
            files.write_manifest(manifest)
        else:
            manifest = earlier
            _refuse(spec, manifest.differences({}, fingerprints))
            files.drop_unfinished(manifest)
        _Run(inputs, files, manifest, encoder).shards(watch or _unwatched, total)
        files.finish(manifest)
        files.remove()
    return EncodeResult(manifest.summary(), fresh=True)


@dataclass
class _Run:
    """The shards of one job, from the first unfinished one on."""

    inputs: EncodeInputs
    files: EncodeFiles
    manifest: EncodeManifest
    encoder: Encoder

    def shards(self, watch: Watch, total: int) -> None:
        """Do all that are left."""
        self._known: dict[bytes, tuple[int, int]] = {}  # text -> shard and row
        for index in range(len(self.manifest.shards)):
            self._remember(index, self.files.digests(index))
        records = iter(replace(self.inputs.reader, skip=self.manifest.records_done))
        while block := list(islice(records, self.inputs.spec.config.shard_size)):
            done = self.manifest.records_done
            watch(done, total)
            start = time.perf_counter()
            self._shard(block, lambda n, of, at=done, b=block: watch(at + len(b) * n // of, total))
            self.manifest.totals.seconds += time.perf_counter() - start
            self.files.write_manifest(self.manifest)
        watch(total, total)

    def _shard(self, block: Seq[Entity | Rejected], watch: Watch) -> None:
        entities = [record for record in block if isinstance(record, Entity)]
        digests = [_digest(self.inputs.document(entity)) for entity in entities]
        rows = self._encode(entities, digests, watch)
        reasons = {
            entity.entity_id: reason
            for i, entity in enumerate(entities)
            if (reason := self._unfit(rows, i))
        }
        rejected = [r for record in block if (r := _rejected(record, reasons))]
        kept = np.flatnonzero(rows.windows > 0)
        shard = ShardRows(
            [entities[i].entity_id for i in kept], [digests[i] for i in kept], rows.take(kept),
            rejected,
        )  # fmt: skip
        index = len(self.manifest.shards)
        self.manifest.shards.append(self.files.write_shard(index, shard))
        self.manifest.totals.add(shard.rows)
        self.manifest.totals.rejected += len(rejected)
        if self.inputs.spec.history:
            known = self.inputs.histories
            self.manifest.totals.without_history += sum(e not in known for e in shard.entities)
        self._remember(index, shard.digests)

    def _encode(self, entities: Seq[Entity], digests: Seq[bytes], watch: Watch) -> Encoded:
        """A row per entity; equal texts, of this shard and of those before it, are encoded once."""
        new: dict[bytes, Document] = {}
        for entity, digest in zip(entities, digests, strict=True):
            if digest not in self._known:
                new.setdefault(digest, self.inputs.document(entity))
        found = [self.encoder.encode_documents(list(new.values()), watch)]
        self.manifest.totals.encoded += int((found[0].windows > 0).sum())
        place = {digest: i for i, digest in enumerate(new)}
        for index, rows in sorted(self._repeated(digests).items()):
            first = sum(len(part.tokens) for part in found)
            found.append(self.files.rows(index).take(np.array(list(rows.values()), np.int64)))
            place.update({digest: first + i for i, digest in enumerate(rows)})
        return joined(found).take(np.array([place[digest] for digest in digests], np.int64))

    def _repeated(self, digests: Seq[bytes]) -> dict[int, dict[bytes, int]]:
        """Texts that were encoded before, with their rows, by shard."""
        found: dict[int, dict[bytes, int]] = {}
        for digest in digests:
            if digest in self._known:
                index, row = self._known[digest]
                found.setdefault(index, {})[digest] = row
        return found

    def _remember(self, index: int, digests: Seq[bytes]) -> None:
        for row, digest in enumerate(digests):
            self._known.setdefault(digest, (index, row))

    def _unfit(self, rows: Encoded, i: int) -> str | None:
        if rows.windows[i]:
            return None
        tokens = rows.knowledge_lost[i] + rows.history_lost[i]
        if tokens:
            most = self.encoder.max_tokens
            return f"the text has {tokens} tokens, the encoder takes {most} with its special ones"
        return "the text holds no token that the encoder knows"


def _earlier(spec: EncodeSpec, inputs: EncodeInputs, files: EncodeFiles) -> EncodeManifest | None:
    """The manifest to go on from; None to start anew; refuses to mix two jobs."""
    if spec.overwrite:
        return None
    manifest = files.manifest()
    if manifest is None:
        if spec.output.exists():
            raise DraftrecError(
                f"{spec.output} exists and has no manifest beside it; choose another --output, or "
                "replace it with --overwrite"
            )
        return None
    _refuse(spec, manifest.differences(settings_of(spec), inputs.fingerprints))
    files.check(manifest)
    return manifest


def _refuse(spec: EncodeSpec, found: list[str]) -> None:
    if found:
        raise DraftrecError(
            f"{spec.output} was begun otherwise ({'; '.join(found)}); choose another --output, or "
            "start again with --overwrite"
        )


def _new_manifest(
    spec: EncodeSpec, inputs: EncodeInputs, encoder: Encoder, fingerprints: dict[str, str | None]
) -> EncodeManifest:
    return EncodeManifest(
        settings=settings_of(spec),
        fingerprints=fingerprints,
        paths={"input": spec.input, "history": spec.history, "fit_on": list(spec.fit_on)},
        versions=package_versions(),
        dim=encoder.dim,
        pooling=encoder.pooling,
    )


def _digest(document: Document) -> bytes:
    knowledge = document.knowledge.encode()
    head = len(knowledge).to_bytes(8, "little")
    content = head + knowledge + document.history.encode()
    return hashlib.blake2b(content, digest_size=16).digest()


def _rejected(record: Entity | Rejected, reasons: dict[str, str]) -> Rejected | None:
    if isinstance(record, Rejected):
        return record
    reason = reasons.get(record.entity_id)
    return Rejected(record.entity_id, record.file, record.line, reason) if reason else None


def _unwatched(done: int, total: int) -> None:
    pass
