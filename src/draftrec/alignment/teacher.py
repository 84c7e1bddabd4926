"""Record what a target recommends in training contexts, for drafts to learn from: the job.

Contexts are drawn from the users' train items and recorded in shards, so that an interrupted
recording goes on after the last one. What is asked of the target is in `recorder`.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from draftrec.alignment.histories import read_training_data
from draftrec.alignment.recorder import Ask, Recorder
from draftrec.alignment.settings import TeachSettings
from draftrec.alignment.teacher_files import Catalogue, TeacherFolder, TeacherManifest, legal_codes
from draftrec.core import LongArray
from draftrec.data.ledger import input_changes, refuse_changes
from draftrec.data.locks import sole_writer
from draftrec.data.sequences import USUAL, SequenceColumns, read_semantic_ids
from draftrec.errors import DraftrecError, Interrupted
from draftrec.items.ids import is_text
from draftrec.items.prompts import HistoryEncoder
from draftrec.items.trie import ItemTrie
from draftrec.models.loading import tokenizer_fingerprint
from draftrec.models.recommender import Recommender, load_recommender


@dataclass(frozen=True, slots=True)
class TeachSpec:
    """A recording: `target` is the folder of a recommender, `limit` counts users."""

    target: str
    sequences: str
    sids: str
    output: Path
    settings: TeachSettings = field(default_factory=TeachSettings)
    limit: int | None = None
    device: str = "auto"
    overwrite: bool = False
    columns: SequenceColumns = USUAL


class TeachWatcher:
    """Is told how a recording gets on. This one does not care."""

    def begin(self, manifest: TeacherManifest) -> None:
        """Recording goes on after the shards that `manifest` lists."""

    def shard(self, manifest: TeacherManifest) -> None:
        """One more shard is finished."""


def teach(
    spec: TeachSpec,
    watcher: TeachWatcher | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> dict[str, Any]:
    """Record the teacher data, or what is missing of it; a summary.

    Raises DraftrecError for unusable input, a model that cannot be recorded and a folder that
    another process writes to, and Interrupted, after a shard, once `should_stop()` is true.
    """
    with sole_writer(spec.output):
        return _teach(spec, watcher or TeachWatcher(), should_stop)


def _teach(
    spec: TeachSpec, watcher: TeachWatcher, should_stop: Callable[[], bool] | None
) -> dict[str, Any]:
    recommender = load_recommender(spec.target, spec.device)
    sids = read_semantic_ids(spec.sids, spec.columns)
    tokens = sids.token_ids(recommender.tokenizer.get_vocab())
    encoder = HistoryEncoder(recommender.format, recommender.tokenizer, tokens)
    data = read_training_data(
        spec.sequences, sids, spec.limit, with_valid=False, columns=spec.columns
    )
    asks = contexts_of(data.train, spec.settings)
    folder = TeacherFolder(spec.output)
    manifest = _begun(spec, folder, recommender, asks, sids.fingerprint())
    if not manifest.shards:
        # Items are told apart by number; texts have none but their places.
        numbers = np.arange(len(sids)) if is_text(sids.items) else sids.items
        folder.write_catalogue(Catalogue(numbers, tokens, legal_codes(tokens)))
    trie = ItemTrie.build(np.arange(len(sids)), tokens)
    recorder = Recorder(recommender, encoder, trie, spec.settings.beams)
    watcher.begin(manifest)
    while not manifest.finished:
        if should_stop and should_stop():
            raise Interrupted(manifest)
        done = sum(manifest.shards)
        _record_shard(recorder, folder, manifest, asks[done : done + spec.settings.shard_size])
        watcher.shard(manifest)
    size = sum(folder.shard(i).stat().st_size for i in range(len(manifest.shards)))
    return {
        "output": str(spec.output),
        "contexts": manifest.total,
        "beams": manifest.beams,
        "bytes": size,
        "seconds": round(manifest.seconds, 1),
    }


def _record_shard(
    recorder: Recorder, folder: TeacherFolder, manifest: TeacherManifest, asks: Seq[Ask]
) -> None:
    """Record, check and write one shard, and note it in the manifest."""
    started = time.monotonic()
    number = len(manifest.shards)
    contexts = recorder.record(asks)
    recorder.check(contexts[number % len(contexts)])
    folder.write_shard(number, contexts)
    manifest.shards.append(len(contexts))
    manifest.seconds += time.monotonic() - started
    folder.write_manifest(manifest)


def contexts_of(users: Seq[LongArray], settings: TeachSettings) -> list[Ask]:
    """What the target is asked. Raises DraftrecError if that is nothing."""
    found: list[Ask] = []
    rng = np.random.default_rng(settings.seed)
    for items in users:
        cuts = np.arange(1, len(items))
        chosen = cuts[-1:]
        if settings.per_user > 1 and len(cuts) > 1:
            more = min(settings.per_user, len(cuts)) - 1
            chosen = np.concatenate((chosen, rng.choice(cuts[:-1], more, replace=False)))
        if settings.per_user:
            found += [(items[:cut], int(items[cut])) for cut in chosen.tolist()]
        if settings.ends:
            found.append((items, -1))
    if not found:
        raise DraftrecError(
            "no user has two train items, so there are no contexts with a true answer; add --ends"
        )
    return found


def _begun(
    spec: TeachSpec, folder: TeacherFolder, recommender: Recommender, asks: list[Ask], sids: str
) -> TeacherManifest:
    """The manifest of the folder, or a new one. Raises DraftrecError if it holds something else."""
    digest = hashlib.sha256(json.dumps(asdict(spec.settings)).encode())
    for history, truth in asks:
        digest.update(np.array([truth, len(history), *history], "<i8").tobytes())
    wanted = TeacherManifest(
        target=recommender.fingerprint,
        tokenizer=tokenizer_fingerprint(recommender.tokenizer),
        sids=sids,
        contexts=digest.hexdigest(),
        levels=recommender.info.levels,
        beams=spec.settings.beams,
        total=len(asks),
        prompt=recommender.format.as_dict(),
        settings=asdict(spec.settings),
    )
    if spec.overwrite:
        folder.clear()
    found = folder.manifest()
    if found is None:
        folder.path.mkdir(parents=True, exist_ok=True)
        return wanted
    names = ("target", "sids", "contexts")
    before, now = ({name: getattr(it, name) for name in names} for it in (found, wanted))
    refuse_changes(folder.path, "teacher data", input_changes(before, now))
    return found
