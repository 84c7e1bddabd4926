"""Encode: a text per entity in, a vector per entity out.

The shard is the unit of work and of resume. Which texts share a batch depends on the shard alone,
so an interrupted job that goes on writes the same bytes as one that was never interrupted.
"""

from __future__ import annotations

import hashlib
import time
from collections import deque
from collections.abc import Iterator
from collections.abc import Sequence as Seq
from contextlib import closing
from dataclasses import dataclass, replace

import numpy as np

from draftrec.data.files.places import shown
from draftrec.data.records import Entity, Rejected
from draftrec.errors import DraftrecError
from draftrec.jobs.encode.files import EncodeFiles, EncodeManifest, ShardRows
from draftrec.jobs.encode.inputs import (
    Documents,
    EncodeInputs,
    EncoderFacts,
    EncodeSpec,
    EncodeWork,
    Loader,
    Watch,
    load_for_job,
    settings_of,
)
from draftrec.jobs.executor import Executor, LocalExecutor, Start
from draftrec.jobs.ledger import JobResult, package_versions
from draftrec.models.encoders import Document, Encoded, joined


def run_encode(
    spec: EncodeSpec,
    watch: Watch | None = None,
    *,
    start: Start = LocalExecutor,
    load: Loader = load_for_job,
) -> JobResult:
    """Encode every text of `spec.input`, or what is left of them. `start` finds who does it.

    Raises DraftrecError for unusable inputs and for an output that was made otherwise.
    """
    inputs = EncodeInputs(spec)
    files = EncodeFiles(spec.output)
    earlier = _earlier(spec, inputs, files)
    if earlier and earlier.size is not None:
        files.drop_leavings()
        return JobResult(earlier.summary(), fresh=False)
    total = inputs.reader.check_ids()
    work = EncodeWork(inputs.spec.config, load, inputs.fit_texts)
    with files.locked(), closing(start(work)) as executor:
        earlier = _earlier(spec, inputs, files)  # another process may have gone on meanwhile
        if earlier and earlier.size is not None:
            return JobResult(earlier.summary(), fresh=False)
        fingerprints = {**inputs.fingerprints, "encoder": executor.facts.fingerprint}
        if earlier is None:
            manifest = _new_manifest(spec, executor.facts, fingerprints)
            files.ledger.clear()
            files.write_manifest(manifest)
        else:
            manifest = earlier
            files.ledger.refuse(manifest.differences({}, fingerprints))
            files.drop_unfinished(manifest)
        _Run(inputs, files, manifest, executor).shards(watch or _unwatched, total)
        files.finish(manifest)
    return JobResult(manifest.summary(), fresh=True)


@dataclass(frozen=True, slots=True)
class _Shard:
    """Records under way, the hash of each entity's text, and which texts are being encoded."""

    records: Seq[Entity | Rejected]
    entities: list[Entity]
    digests: list[bytes]
    new: list[bytes]


class _Run:
    """The shards of one job, from the first unfinished one on.

    Equal texts are encoded once, with the first shard that has them, whether or not it is finished
    when a later one needs them: so a shard's batches do not depend on who is fast.
    """

    def __init__(
        self, inputs: EncodeInputs, files: EncodeFiles, manifest: EncodeManifest, executor: Executor
    ) -> None:
        self.inputs, self.files, self.manifest = inputs, files, manifest
        self.executor = executor
        self._known: dict[bytes, tuple[int, int]] = {}  # text -> shard and row
        self._unfit: dict[bytes, Encoded] = {}
        self._given: set[bytes] = set()
        self._open: deque[_Shard] = deque()
        for index in range(len(manifest.shards)):
            self._remember(index, files.digests(index))
        self._given.update(self._known)

    def shards(self, watch: Watch, total: int) -> None:
        """Do all that are left."""

        def progress(told: tuple[int, int]) -> None:
            done, of = told
            watch(self.manifest.records_done + len(self._open[0].records) * done // of, total)

        watch(self.manifest.records_done, total)
        start = time.perf_counter()
        for encoded in self.executor.results(self._documents(total), progress):
            self._finish(self._open.popleft(), encoded)
            now = time.perf_counter()
            self.manifest.totals.seconds += now - start
            start = now
            self.files.write_manifest(self.manifest)
            watch(self.manifest.records_done, total)

    def _documents(self, total: int) -> Iterator[Documents]:
        """Of each shard that is left, the texts that no shard before it has."""
        reader = replace(self.inputs.reader, skip=self.manifest.records_done)
        for _, block in reader.blocks(total, 0, lambda _: self.inputs.spec.config.shard_size):
            entities = [record for record in block if isinstance(record, Entity)]
            documents = [self.inputs.document(entity) for entity in entities]
            digests = [_digest(document) for document in documents]
            new: dict[bytes, Document] = {}
            for digest, document in zip(digests, documents, strict=True):
                if digest not in self._given:
                    new.setdefault(digest, document)
            self._given.update(new)
            self._open.append(_Shard(block, entities, digests, list(new)))
            yield list(new.values())

    def _finish(self, shard: _Shard, encoded: Encoded) -> None:
        rows = self._rows(shard, encoded)
        reasons = {
            entity.entity_id: reason
            for i, entity in enumerate(shard.entities)
            if (reason := self._why_unfit(rows, i))
        }
        rejected = [r for record in shard.records if (r := _rejected(record, reasons))]
        kept = np.flatnonzero(rows.windows > 0)
        done = ShardRows(
            [shard.entities[i].entity_id for i in kept],
            [shard.digests[i] for i in kept],
            rows.take(kept),
            rejected,
        )
        index = len(self.manifest.shards)
        self.manifest.shards.append(self.files.write_shard(index, done))
        self._count(done, encoded)
        self._remember(index, done.digests)

    def _count(self, done: ShardRows, encoded: Encoded) -> None:
        totals = self.manifest.totals
        totals.encoded += int((encoded.windows > 0).sum())
        totals.add(done.rows)
        totals.rejected += len(done.rejected)
        if self.inputs.spec.history:
            known = self.inputs.histories
            totals.without_history += sum(e not in known for e in done.entities)

    def _rows(self, shard: _Shard, encoded: Encoded) -> Encoded:
        """A row per entity: of this shard's own texts, and of those that earlier ones had."""
        for i in np.flatnonzero(encoded.windows == 0).tolist():
            self._unfit[shard.new[i]] = encoded.take(np.array([i]))
        found = [encoded]
        place = {digest: i for i, digest in enumerate(shard.new)}
        for digests, rows in self._repeated(set(shard.digests) - place.keys()):
            first = sum(len(part.tokens) for part in found)
            found.append(rows)
            place.update({digest: first + i for i, digest in enumerate(digests)})
        return joined(found).take(np.array([place[d] for d in shard.digests], np.int64))

    def _repeated(self, digests: set[bytes]) -> Iterator[tuple[list[bytes], Encoded]]:
        """Rows of texts that earlier shards had."""
        by_shard: dict[int, list[bytes]] = {}
        for digest in digests:
            if digest in self._known:
                by_shard.setdefault(self._known[digest][0], []).append(digest)
            else:
                yield [digest], self._unfit[digest]
        for index, texts in sorted(by_shard.items()):
            places = np.array([self._known[digest][1] for digest in texts], np.int64)
            yield texts, self.files.rows(index).take(places)

    def _remember(self, index: int, digests: Seq[bytes]) -> None:
        for row, digest in enumerate(digests):
            self._known.setdefault(digest, (index, row))

    def _why_unfit(self, rows: Encoded, i: int) -> str | None:
        if rows.windows[i]:
            return None
        tokens = rows.knowledge_lost[i] + rows.history_lost[i]
        if tokens:
            most = self.executor.facts.max_tokens
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
    files.ledger.refuse(manifest.differences(settings_of(spec), inputs.fingerprints))
    files.check(manifest)
    return manifest


def _new_manifest(
    spec: EncodeSpec, facts: EncoderFacts, fingerprints: dict[str, str | None]
) -> EncodeManifest:
    return EncodeManifest(
        settings=settings_of(spec),
        fingerprints=fingerprints,
        paths={
            "input": shown(spec.input),
            "history": shown(spec.history),
            "fit_on": [shown(location) for location in spec.fit_on],
        },
        versions=package_versions(),
        dim=facts.dim,
        pooling=facts.pooling,
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
