"""Record what a target recommends in training contexts, and with which probabilities, for drafts to
learn from.

Contexts are drawn from the users' train items and recorded in shards, so that an interrupted
recording goes on after the last one. For every context the target's best beams are searched, then
all their prefixes are scored in one pass. `Recorder.check` computes one beam again token by token,
the plain way: a shift by one position, or an architecture whose masks are its own, does not pass.
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
import torch

from draftrec.core import IntArray, LongArray
from draftrec.data.sequences import USUAL, SequenceColumns, read_semantic_ids
from draftrec.engine.sampling import log_sum_exp
from draftrec.errors import DraftrecError, Interrupted, UnsupportedModelError
from draftrec.items.ids import is_text
from draftrec.items.prompts import HistoryEncoder
from draftrec.items.trie import ItemTrie
from draftrec.jobs.ledger import changes, input_changes
from draftrec.models.loading import tokenizer_fingerprint
from draftrec.models.recommender import Recommender, check_ids, load_recommender
from draftrec.train.examples import cuts, read_training_data
from draftrec.train.files import check_apart
from draftrec.train.loop import best_beams
from draftrec.train.settings import TeachRun, TeachSettings
from draftrec.train.teacher_files import (
    Context,
    ContextTree,
    ItemRows,
    TeacherFolder,
    TeacherManifest,
    at_rows,
    context_tree,
    legal_codes,
    tree_inputs,
    tree_logits,
)

# float16 keeps three digits, and passes of different shapes round differently.
_TOLERANCE = 0.05
_SLOTS = 32
# Rows of a pass, padding included: a language model's scores of them would be most of its memory.
_ROWS = 2048

#: A history, and the place of the item that came next (-1: unknown).
Ask = tuple[LongArray, int]


class Recorder:
    """Asks one target for its best `beams` in every context."""

    def __init__(
        self,
        recommender: Recommender,
        encoder: HistoryEncoder,
        trie: ItemTrie,
        beams: int,
    ) -> None:
        self.model: Any = recommender.model
        self.encoder, self.trie, self.beams = encoder, trie, beams
        self.codes = legal_codes(encoder.item_tokens)

    def record(self, asks: Seq[Ask]) -> list[Context]:
        """One context for each question, in order."""
        prompts = [self.encoder.encode(history) for history, _ in asks]
        best = best_beams(self.model, self.trie, prompts, self.beams, _SLOTS)
        beams = [found.tokens for found in best]
        truths = [self._truth(place) for _, place in asks]
        trees = [context_tree(b, t) for b, t in zip(beams, truths, strict=True)]
        answers = [self._answers(p, asked) for p, (asked, _) in zip(prompts, asks, strict=True)]
        rows = np.array([len(p) + len(t.tokens) for p, t in zip(prompts, trees, strict=True)])
        order = np.argsort(rows, kind="stable")
        found: dict[int, tuple[Any, Any]] = {}
        for first, last in cuts(rows[order], _ROWS):
            chosen = order[first:last].tolist()
            log_probs = self._log_probs(
                [prompts[i] for i in chosen],
                [trees[i] for i in chosen],
                [answers[i] for i in chosen],
            )
            found |= dict(zip(chosen, log_probs, strict=True))
        return [
            Context(prompts[i], answers[i], truths[i], beams[i], *found[i])
            for i in range(len(asks))
        ]

    def check(self, context: Context) -> None:
        """Compute one beam, and the true item, token by token, and compare.

        Raises UnsupportedModelError where the recorded log-probabilities are others.
        """
        tree = context.tree()
        taught = np.flatnonzero(context.answers)
        paths = [context.beams[-1], *([context.truth] if len(context.truth) else [])]
        for path in paths:
            ids = torch.from_numpy(np.concatenate((context.prompt, path[:-1]))).long()[None]
            with torch.inference_mode():
                logits = self.model(input_ids=ids.to(self.model.device), use_cache=False).logits[0]
            plain = logits.float().log_softmax(-1).cpu().numpy()
            for i, place in enumerate(taught.tolist()):
                level = i % self.encoder.levels
                self._compare(context.prompt_log_probs[i], plain[place - 1], level)
            row = 0
            for level, token in enumerate(path.tolist()):
                end = len(context.prompt) - 1
                self._compare(context.log_probs[row], plain[end + level], level)
                child = np.flatnonzero((tree.parents == row - 1) & (tree.tokens == token))
                row = int(child[0]) + 1 if len(child) else row

    def _compare(self, recorded: Any, plain: Any, level: int) -> None:
        codes = self.codes[level][self.codes[level] >= 0]
        expected, found = plain[codes], recorded[: len(codes)].astype(np.float32)
        near = np.maximum(1.0, np.abs(expected)) * _TOLERANCE
        if not (np.abs(found - expected) <= near).all():
            raise UnsupportedModelError(
                f"{type(self.model).__name__} cannot be recorded: at level {level + 1} a beam has "
                "other probabilities in the tree than token by token; it probably uses positions "
                "or masks that draftrec does not know"
            )

    @torch.inference_mode()
    def _log_probs(
        self, prompts: Seq[IntArray], trees: Seq[ContextTree], answers: Seq[Any]
    ) -> list[tuple[Any, Any]]:
        """Of every context, float16 `[rows, A]` and `[answers, A]`."""
        batch = tree_inputs(prompts, trees)
        logits = tree_logits(self.model, batch)
        taught = [np.flatnonzero(a) for a in answers]
        places = [np.stack((np.full(len(t), i), t - 1), axis=1) for i, t in enumerate(taught)]
        levels = [np.arange(len(t)) % self.encoder.levels for t in taught]
        before = at_rows(logits, torch.from_numpy(np.concatenate(places)))
        rows = self._legal(at_rows(logits, batch["rows"]), [tree.next_level for tree in trees])
        return list(zip(rows, self._legal(before, levels), strict=True))

    def _legal(self, logits: torch.Tensor, levels: Seq[Any]) -> list[Any]:
        """Log-probabilities of the legal codes, float16 `[r, A]` for each of `levels` int `[r]`;
        -inf where a level has no such code."""
        codes = torch.from_numpy(self.codes[np.concatenate(levels)]).long().to(logits.device)
        log_probs = logits.gather(1, codes.clamp_min(0)).float() - log_sum_exp(logits)[:, None]
        found = log_probs.masked_fill(codes < 0, -torch.inf).half().cpu().numpy()
        return np.split(found, np.cumsum([len(some) for some in levels])[:-1])

    def _truth(self, place: int) -> IntArray:
        return self.encoder.item_tokens[place] if place >= 0 else np.empty(0, np.int32)

    def _answers(self, prompt: IntArray, history: LongArray) -> Any:
        """Which tokens of a prompt teach: those of its items, where an example has them."""
        answers = np.zeros(len(prompt), np.bool_)
        kept = history[-self.encoder.form.max_items :]
        ids, taught = self.encoder.example(kept) if len(kept) else (prompt[:0], answers[:0])
        if np.array_equal(ids, prompt[: len(ids)]):
            answers[: len(ids)] = taught
        return answers


@dataclass(frozen=True)
class TeachSpec(TeachRun):
    """A recording: `target` is the folder of a recommender, `limit` counts users."""

    target: str
    sequences: str
    sids: str
    output: Path
    settings: TeachSettings = field(default_factory=TeachSettings)
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
    check_apart(spec.output, {"TARGET": spec.target})
    folder = TeacherFolder(spec.output)
    with folder.ledger.held():
        return _teach(spec, folder, watcher or TeachWatcher(), should_stop)


def _teach(
    spec: TeachSpec,
    folder: TeacherFolder,
    watcher: TeachWatcher,
    should_stop: Callable[[], bool] | None,
) -> dict[str, Any]:
    recommender = load_recommender(spec.target, spec.device)
    sids = read_semantic_ids(spec.sids, spec.columns)
    tokens = sids.token_ids(recommender.tokenizer.get_vocab())
    check_ids(recommender.info, recommender.folder, sids, spec.sids)
    encoder = HistoryEncoder(recommender.format, recommender.tokenizer, tokens)
    data = read_training_data(
        spec.sequences, sids, spec.limit, with_valid=False, columns=spec.columns
    )
    asks = contexts_of(data.train, spec.settings)
    manifest = _begun(spec, folder, recommender, asks, sids.fingerprint())
    if not (manifest.finished and folder.has_catalogue()):
        # Items are told apart by number; texts have none but their places.
        numbers = np.arange(len(sids)) if is_text(sids.items) else sids.items
        folder.write_catalogue(ItemRows(numbers, tokens, legal_codes(tokens)), sids)
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
        "unknown_items": data.unknown,
    }


def _record_shard(
    recorder: Recorder, folder: TeacherFolder, manifest: TeacherManifest, asks: Seq[Ask]
) -> None:
    """Record, check and write one shard, and note it in the manifest."""
    started = time.monotonic()
    number = len(manifest.shards)
    contexts = recorder.record(asks)
    recorder.check(max(contexts, key=lambda c: len(c.prompt)))  # windows show in long ones alone
    manifest.sizes.append(folder.write_shard(number, contexts))
    manifest.shards.append(len(contexts))
    manifest.seconds += time.monotonic() - started
    folder.write_manifest(manifest)


def contexts_of(users: Seq[LongArray], settings: TeachSettings) -> list[Ask]:
    """What the target is asked. Raises DraftrecError if that is nothing."""
    found: list[Ask] = []
    rng = np.random.default_rng(settings.seed)
    for items in users:
        places = np.arange(1, len(items))
        chosen = places[-1:]
        if settings.per_user > 1 and len(places) > 1:
            more = min(settings.per_user, len(places)) - 1
            chosen = np.concatenate((chosen, rng.choice(places[:-1], more, replace=False)))
        if settings.per_user:
            found += [(items[:place], int(items[place])) for place in chosen.tolist()]
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
        folder.ledger.clear()
    found = folder.manifest()
    if found is None:
        folder.path.mkdir(parents=True, exist_ok=True)
        folder.ledger.clear()  # what a kill has left of another recording
        return wanted
    otherwise = changes(found.settings, wanted.settings)
    names = ["target", "sids"]
    if not otherwise:  # settings are a part of them
        names.append("contexts")
    before, now = ({name: getattr(it, name) for name in names} for it in (found, wanted))
    folder.ledger.refuse(otherwise + input_changes(before, now))
    for i in range(len(found.sizes), len(found.shards)):  # of an earlier version
        found.sizes.append(folder.shard(i).stat().st_size)
    folder.ledger.check({folder.shard(i): size for i, size in enumerate(found.sizes)})
    return found
