"""The job: read a shard, have it done, write it, say so in the manifest, let the pool grow.

The shard is the unit of writing. What a text says depends on no draft (strict), or on the pool as
it was given and on the shards before its own (other rules), so an interrupted job that goes on
writes the same bytes as one that was never interrupted. Of a shard that is not finished, a journal
keeps the texts that are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from draftrec.errors import Interrupted
from draftrec.jobs.executor import Executor, LocalExecutor, Start
from draftrec.jobs.knowledge import worker
from draftrec.jobs.knowledge.account import Endings
from draftrec.jobs.knowledge.manifest import Facts, Manifest, differences
from draftrec.jobs.knowledge.metrics import Metrics
from draftrec.jobs.knowledge.plan import JobSpec, Plan, as_begun, continued
from draftrec.jobs.knowledge.shards import RunFolder
from draftrec.jobs.knowledge.worker import (
    Given,
    Loader,
    ShardResult,
    ShardTask,
    ShardWork,
    given_pool,
)
from draftrec.jobs.ledger import JobResult
from draftrec.models.prompting import PromptForm, form_of

if TYPE_CHECKING:
    from draftrec.engine.text.stats import StepStats


# Texts after which it can be said how most of them end.
_ENOUGH = 16


class Watcher:
    """Is told how the job gets on. This one does not care; the command line draws a bar."""

    def note(self, text: str) -> None:
        """Something that the user should know."""

    def warn(self, text: str) -> None:
        """Something that is probably not as the user wants it."""

    def begin(self, manifest: Manifest, kept: int) -> None:
        """The model is ready; `manifest` says what earlier runs of the job have done, and `kept`
        how many texts they left of shards that are not finished."""

    def step(self, step: StepStats) -> None:
        """One decoding step of the whole batch is over; on a cluster, all steps of a shard."""

    def shard(self, manifest: Manifest) -> None:
        """One more shard is finished."""


def run_job(
    spec: JobSpec,
    watcher: Watcher | None = None,
    should_stop: Callable[[], bool] | None = None,
    *,
    start: Start = LocalExecutor,
    load: Loader | None = None,
    given: Given = given_pool,
) -> JobResult:
    """Run a job, or what is left of it. `start` finds who does its shards, if any are left."""
    plan = Plan(spec)
    folder = spec.run_folder()
    if folder.manifest() is None:
        plan.check()  # before a folder is created for it
    with folder.locked():
        manifest = continued(plan, folder)
        if manifest is None:
            plan.check()
        if manifest and manifest.finished:
            return JobResult(manifest.summary(), fresh=False)
        if manifest:
            manifest.paths = plan.paths  # where things lie now
        if manifest and manifest.shards_complete and not spec.save_pool:
            folder.drop_unfinished(manifest)
            return _finish(manifest, folder)
        state = manifest.cost_state if manifest else None
        load = load or worker.load_generator
        work = ShardWork(as_begun(plan, manifest), load, given, state, plan.previous)
        with closing(start(work)) as executor:
            facts = executor.facts
            form = _form(spec, facts, manifest)
            if manifest is None:
                manifest = _started(plan, folder, facts, form)
            else:
                _continue(folder, manifest, facts, form)
            run = _Run(plan, folder, manifest, executor, watcher or Watcher(), form)
            run.shards(should_stop)
            already_saved = manifest.fingerprints["pool"] != plan.fingerprints["pool"]
            if spec.save_pool and not already_saved:
                _save_pool(spec.save_pool, work, executor, folder, len(manifest.shards))
        return _finish(manifest, folder)


def _started(plan: Plan, folder: RunFolder, facts: Facts, form: PromptForm) -> Manifest:
    """A new run, in place of what --overwrite gives up."""
    manifest = plan.manifest(facts)
    manifest.chat = form.chat
    manifest.fingerprints |= _chat_fingerprint(facts, form)
    if form.chat and facts.chat_template and facts.chat_template.dated:
        manifest.chat_date = form.now
    folder.clear()
    folder.write_manifest(manifest)
    return manifest


def _continue(folder: RunFolder, manifest: Manifest, facts: Facts, form: PromptForm) -> None:
    """Bring the folder to where it was after the last finished shard."""
    now = {**facts.fingerprint, **_chat_fingerprint(facts, form)}
    folder.ledger.refuse(differences(manifest, manifest.settings, now))
    folder.drop_unfinished(manifest)


def _chat_fingerprint(facts: Facts, form: PromptForm) -> dict[str, str | None]:
    template = facts.chat_template if form.chat else None
    return {"chat_template": template.fingerprint if template else None}


def _form(spec: JobSpec, facts: Facts, begun: Manifest | None) -> PromptForm:
    """How prompts are sent; on the date of the job's start, whenever it goes on."""
    began = begun.chat_date if begun else None
    return form_of(
        spec.config.records, has_template=facts.has_chat_template, began=began or datetime.now()
    )


def _save_pool(
    path: Path, work: ShardWork, executor: Executor, folder: RunFolder, shards: int
) -> None:
    """Keep the pool as it is after the last shard."""
    if executor.worker is not None:
        executor.worker.learn(shards, folder.texts)
        pool = executor.worker.generator.pool
    else:  # as a local job would: the same texts in the same order
        pool = given_pool(work.spec, executor.facts.fingerprint["tokenizer"])
        for index in range(shards):
            pool.add(folder.texts(index))
    pool.save(path)


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
    executor: Executor
    watcher: Watcher
    form: PromptForm
    _seen: Endings = field(default_factory=Endings)
    _warned: bool = False

    def shards(self, should_stop: Callable[[], bool] | None) -> None:
        """Do all that are left. Raises Interrupted once `should_stop()` is true."""
        tasks = self._tasks()
        self.watcher.begin(self.manifest, self._kept())
        self.metrics = Metrics(self.folder, self.manifest)
        try:
            for result in self.executor.results(tasks, self._step, should_stop):
                self._commit(result)
            self._tell_kept()
        except Interrupted:
            self.metrics.flush()
            raise Interrupted(self.manifest, self._kept()) from None

    def _kept(self) -> int:
        return self.folder.journaled(len(self.manifest.shards))

    def _tasks(self) -> Iterator[ShardTask]:
        """What is left to do, read as it is asked for."""
        keep = self._keep = self._may_keep()
        samples = self.manifest.samples
        reader = replace(self.plan.reader, skip=self.manifest.records_done)
        total, done = self.manifest.input.records, len(self.manifest.shards)
        blocks = reader.blocks(total, done, self.plan.spec.config.records_of_shard)
        return (
            ShardTask(i, block, self._known(i), self.form, keep, samples) for i, block in blocks
        )

    def _known(self, index: int) -> int:
        """How many of the first shards a shard may draft from."""
        lag = self.plan.spec.config.pool_lag
        return len(self.manifest.shards) if lag == "auto" else max(0, index - lag)

    def _may_keep(self) -> bool:
        """Whether texts of the previous run may stay where the prompt is unchanged."""
        previous = self.plan.previous
        if previous is None:
            return False
        reason = previous.why_not_kept(self.plan.settings, self.executor.facts.fingerprint)
        if reason:
            self.watcher.note(
                f"{previous.path} was written with {reason}: no text is kept, all are drafted from"
            )
        elif changed := previous.prompts_changed(self.manifest):
            self.watcher.note(
                f"few texts of {previous.path} will be kept, if any, since prompts are other "
                f"now: {', '.join(changed)}"
            )
        return reason is None

    def _tell_kept(self) -> None:
        """Say why a refreshed run kept nothing."""
        previous, totals = self.plan.previous, self.manifest.totals
        if previous is None or totals.kept or not totals.entities:
            return
        if not totals.earlier:
            why = f"it has none of these {totals.entities:,} entities; are the ids the same?"
        elif self._keep:
            why = f"the prompts of all {totals.earlier:,} entities that it has are other now"
        else:
            return  # said before the work began
        self.watcher.note(f"no text of {previous.path} was kept: {why}")

    def _commit(self, result: ShardResult) -> None:
        """Write the next shard; the manifest last, which makes it count."""
        manifest = self.manifest
        entry, size = self.folder.write_shard(
            len(manifest.shards), result.texts, result.rejected, manifest.rejected_size
        )
        manifest.shards.append(entry)
        manifest.rejected_size = size
        manifest.totals.add(
            result.new,
            rejected=len(result.rejected),
            kept=result.kept,
            samples=manifest.samples,
        )
        manifest.totals.earlier += result.earlier
        manifest.totals.end(result.endings)
        manifest.cost_state = result.cost_state
        self.metrics.shard(result.cost)
        self.folder.write_manifest(manifest)
        self.folder.journal(len(manifest.shards) - 1).unlink(missing_ok=True)
        self.watcher.shard(manifest)

    def _step(self, step: StepStats) -> None:
        self.metrics.step(step)
        self.watcher.step(step)
        if step.finished and not self._warned:
            self._look_at_texts(step)

    def _look_at_texts(self, step: StepStats) -> None:
        """Warn once, while there is time to stop, if most texts are not what anybody wants."""
        seen = self._seen
        seen.texts += step.finished
        seen.cut, seen.empty = seen.cut + step.cut, seen.empty + step.empty
        seen.looping += step.looping
        if seen.texts < _ENOUGH:
            return
        if warning := seen.warning(self.plan.spec.config.generate.batch.max_new_tokens):
            self._warned = True
            self.watcher.warn(f"so far, {warning}")
