"""The job: read a shard, decode it, write it, say so in the manifest, let the pool grow.

The shard is the unit of work and of resume. A shard's drafts depend only on the pool as it was
given and on the shards before it, so an interrupted job that goes on writes the same bytes as one
that was never interrupted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol, cast

from draftrec.core import Generation, IntArray, Request
from draftrec.data.records import Entity, Rejected
from draftrec.errors import DraftrecError
from draftrec.knowledge.manifest import Manifest, differences
from draftrec.knowledge.metrics import Metrics
from draftrec.knowledge.plan import JobSpec, Plan, continued, refuse_different
from draftrec.knowledge.refresh import unchanged
from draftrec.knowledge.shards import RunFolder, Written, prompt_hash

if TYPE_CHECKING:
    from draftrec.decoding.stats import StepStats, Timing


class TextGenerator(Protocol):
    """What the job needs of a generator; `draftrec.Generator` is one."""

    @property
    def fingerprint(self) -> dict[str, str]: ...
    @property
    def context_length(self) -> int: ...
    @property
    def device(self) -> str: ...
    @property
    def dtype(self) -> str: ...
    @property
    def pool(self) -> Any: ...
    @property
    def timing(self) -> Timing: ...
    @property
    def cost_state(self) -> dict[str, Any] | None: ...
    @property
    def has_chat_template(self) -> bool: ...
    def encode(self, prompts: list[str], *, chat: bool) -> list[IntArray]: ...
    def decode(self, token_ids: IntArray) -> str: ...
    def run(
        self,
        requests: Seq[Request],
        *,
        on_step: Callable[[StepStats], None] | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> list[Generation]: ...
    def commit(self, texts: Seq[tuple[IntArray, str | None]]) -> None: ...


class Watcher:
    """Is told how the job gets on. This one does not care; the command line draws a bar."""

    def note(self, text: str) -> None:
        """Something that the user should know."""

    def begin(self, manifest: Manifest) -> None:
        """The generator is ready; `manifest` says what earlier runs of the job have done."""

    def step(self, step: StepStats) -> None:
        """One decoding step of the whole batch is over."""

    def shard(self, manifest: Manifest) -> None:
        """One more shard is finished."""


Loader = Callable[[JobSpec, dict[str, Any] | None], TextGenerator]


@dataclass(frozen=True, slots=True)
class JobResult:
    """The summary of a finished job. `fresh` is false if there was nothing left to do."""

    summary: dict[str, Any]
    fresh: bool


class JobInterrupted(Exception):
    """The job stopped on request; its manifest says how far it came."""

    def __init__(self, manifest: Manifest) -> None:
        super().__init__("interrupted")
        self.manifest = manifest


def run_job(
    spec: JobSpec,
    load: Loader,
    watcher: Watcher | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> JobResult:
    """Run a job, or what is left of it. `load` makes the generator, if one is needed at all."""
    plan = Plan(spec)
    folder = RunFolder(spec.output)
    if folder.manifest() is None:
        plan.check()  # before a folder is created for it
    with folder.locked():
        manifest = continued(plan, folder)
        if manifest is None:
            plan.check()
        if manifest and manifest.finished:
            return JobResult(manifest.summary(), fresh=False)
        if manifest and manifest.shards_complete and not spec.save_pool:
            return _finish(manifest, folder)
        generator = load(spec, manifest.cost_state if manifest else None)
        chat = _uses_chat(spec, generator)
        if manifest is None:
            manifest = _started(plan, folder, generator)
        else:
            _catch_up(plan, folder, manifest, generator)
        run = _Run(plan, folder, manifest, generator, watcher or Watcher(), chat)
        run.shards(should_stop)
        already_saved = manifest.fingerprints["pool"] != plan.fingerprints["pool"]
        if spec.save_pool and not already_saved:
            generator.pool.save(spec.save_pool)
        return _finish(manifest, folder)


def load_generator(spec: JobSpec, cost_state: dict[str, Any] | None) -> TextGenerator:
    """The generator that a job asks for, its pool opened. Takes seconds: it imports PyTorch."""
    from draftrec.knowledge.generator import Generator
    from draftrec.models import loading
    from draftrec.pool.store import Pool

    config, pool = spec.config.generate, None
    if spec.pool and config.draft.draft == "pool":
        # Before the model, which may take minutes to load only to find that the pool is not its.
        tokenizer = loading.load_tokenizer(config.target.model)
        pool = Pool.load(spec.pool, loading.tokenizer_fingerprint(tokenizer))
    made = Generator.from_pretrained(
        config.target.model, config=config, pool=pool, cost_state=cost_state
    )
    return cast(TextGenerator, made)  # pyright does not see that a cached property is one


def _uses_chat(spec: JobSpec, generator: TextGenerator) -> bool:
    wanted = spec.config.records.chat
    if wanted and not generator.has_chat_template:
        raise DraftrecError("the model's tokenizer has no chat template; use --no-chat")
    return generator.has_chat_template if wanted is None else wanted


def _started(plan: Plan, folder: RunFolder, generator: TextGenerator) -> Manifest:
    """A new run, in place of what --overwrite gives up."""
    manifest = plan.manifest(generator)
    folder.clear()
    folder.write_manifest(manifest)
    return manifest


def _catch_up(plan: Plan, folder: RunFolder, manifest: Manifest, generator: TextGenerator) -> None:
    """Bring folder and pool to where they were after the last finished shard."""
    refuse_different(folder, differences(manifest, manifest.settings, generator.fingerprint))
    folder.drop_unfinished(manifest)
    if plan.settings["draft"] == "pool":
        for index in range(len(manifest.shards)):
            generator.commit(folder.texts(index))


def _finish(manifest: Manifest, folder: RunFolder) -> JobResult:
    summary = manifest.summary()
    folder.write_summary(summary)
    manifest.finished = True
    folder.write_manifest(manifest)
    return JobResult(summary, fresh=True)


@dataclass
class _Run:
    """The shards of one job, from the first unfinished one on."""

    plan: Plan
    folder: RunFolder
    manifest: Manifest
    generator: TextGenerator
    watcher: Watcher
    chat: bool
    keeps: bool = False  # texts of the previous run may stay

    def shards(self, should_stop: Callable[[], bool] | None) -> None:
        """Do all that are left. Raises JobInterrupted once `should_stop()` is true."""
        self.should_stop = should_stop
        self.metrics = Metrics(self.folder, self.generator, self.manifest)
        self.keeps = self._may_keep()
        self.watcher.begin(self.manifest)
        reader = replace(self.plan.reader, skip=self.manifest.records_done)
        records = iter(reader)
        while block := list(islice(records, self.plan.spec.config.shard_size)):
            self._shard(block)

    def _shard(self, block: Seq[Entity | Rejected]) -> None:
        requests, rejected = self._requests(block)
        requests, kept = self._refresh(requests)
        written = self._decode([r for r in requests if r.entity_id not in kept])
        texts = self._texts(requests, written, kept)
        manifest = self.manifest
        entry, size = self.folder.write_shard(
            len(manifest.shards), texts, rejected, manifest.rejected_size
        )
        manifest.shards.append(entry)
        manifest.rejected_size = size
        manifest.totals.add(written, rejected=len(rejected), kept=len(kept))
        manifest.cost_state = self.generator.cost_state
        self.metrics.shard()
        self.folder.write_manifest(manifest)
        self.generator.commit([(t.generation.token_ids, t.group) for t in texts])
        self.watcher.shard(manifest)

    def _requests(self, block: Seq[Entity | Rejected]) -> tuple[list[Request], list[Rejected]]:
        """Prompts as token ids; those that do not fit join the rejected, in input order."""
        entities = [record for record in block if isinstance(record, Entity)]
        encoded = iter(self.generator.encode([e.prompt for e in entities], chat=self.chat))
        requests: list[Request] = []
        rejected: list[Rejected] = []
        for record in block:
            if isinstance(record, Rejected):
                rejected.append(record)
                continue
            ids = next(encoded)
            if reason := self._unfit(len(ids)):
                rejected.append(Rejected(record.entity_id, record.file, record.line, reason))
            else:
                key = key_of(record.entity_id)
                requests.append(Request(record.entity_id, ids, record.group, key=key))
        return requests, rejected

    def _may_keep(self) -> bool:
        """Whether texts of the previous run may stay where the prompt is unchanged."""
        if self.plan.previous is None:
            return False
        fingerprints = self.generator.fingerprint
        reason = self.plan.previous.why_not_kept(self.plan.settings, fingerprints)
        if reason:
            self.watcher.note(
                f"{self.plan.previous.path} was written with {reason}: no text is kept, all are "
                f"drafted from"
            )
        return reason is None

    def _refresh(self, requests: Seq[Request]) -> tuple[list[Request], dict[str, Written]]:
        """Requests with their entities' earlier texts, and the texts that stay, by entity."""
        if self.plan.previous is None:
            return list(requests), {}
        found = self.plan.previous.find([r.entity_id for r in requests])
        kept: dict[str, Written] = {}
        for request in requests:
            earlier = found.get(request.entity_id)
            if self.keeps and earlier and unchanged(earlier, request.prompt_ids):
                generation = earlier.kept(request.entity_id, len(request.prompt_ids))
                kept[request.entity_id] = Written(
                    generation, request.group, earlier.text, earlier.prompt_hash
                )
        told = [
            replace(r, previous_ids=found[r.entity_id].token_ids) if r.entity_id in found else r
            for r in requests
        ]
        return told, kept

    def _texts(
        self, requests: Seq[Request], written: Seq[Generation], kept: dict[str, Written]
    ) -> list[Written]:
        """Kept and new texts in the order of the requests."""
        new = iter(written)
        texts: list[Written] = []
        for request in requests:
            if (text := kept.get(request.entity_id)) is None:
                generation = next(new)
                decoded = self.generator.decode(generation.token_ids)
                hashed = prompt_hash(request.prompt_ids)
                text = Written(generation, request.group, decoded, hashed)
            texts.append(text)
        return texts

    def _unfit(self, tokens: int) -> str | None:
        longest = self.generator.context_length - 1
        if tokens > longest:
            return f"the prompt has {tokens} tokens, the model's context takes at most {longest}"
        return None if tokens else "the prompt is empty"

    def _decode(self, requests: Seq[Request]) -> list[Generation]:
        # The decoding floor needs PyTorch, which reading and checking must not wait for.
        from draftrec.decoding.generate import Interrupted

        if self.should_stop and self.should_stop():
            raise JobInterrupted(self.manifest)
        if not requests:
            return []
        try:
            return self.generator.run(requests, on_step=self._step, should_stop=self.should_stop)
        except Interrupted:
            raise JobInterrupted(self.manifest) from None

    def _step(self, step: StepStats) -> None:
        self.metrics.step(step)
        self.watcher.step(step)


def key_of(entity_id: str) -> int:
    """Seeds one entity's sampling, wherever it stands in the input and whoever asks."""
    digest = hashlib.blake2b(entity_id.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
