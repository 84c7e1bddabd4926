"""Tune with the model: settings of all acceptance rules, their speed and what their texts lose.

Every setting writes a sample of the records next to plain decoding: the same prompts, in turns, in
one process. Trials are kept as they finish, so that an interrupted study goes on; the frontier, the
choice and the settings file are made of them at the end (`choice`).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from draftrec.config import (
    BatchConfig,
    DraftConfig,
    GenerateConfig,
    ModelConfig,
    RecordsConfig,
)
from draftrec.core import Counts, Generation, Request
from draftrec.data.files.places import Place
from draftrec.data.records import Entity, EntityReader, GroupTable
from draftrec.errors import DraftrecError, needing
from draftrec.evaluate.compare.quality import by_tf_idf, likeness, run_distinct
from draftrec.evaluate.compare.runs import RunTexts, endings
from draftrec.evaluate.replay.job import held_texts
from draftrec.evaluate.settings import QualityRun
from draftrec.evaluate.tune.choice import LossLimits, Row, Space, accept_of, choose, frontier
from draftrec.jobs.knowledge.plan import read_records
from draftrec.jobs.trials import (
    Scalar,
    Settings,
    TrialFunction,
    TrialStore,
    Watch,
    run_trials,
    trial_key,
)
from draftrec.models.prompting import form_of
from draftrec.pool.files import fingerprint

if TYPE_CHECKING:
    from draftrec.jobs.knowledge.generator import Generator
    from draftrec.pool.store import Pool


@dataclass(frozen=True, slots=True)
class Sample:
    """`timed` entities that every setting writes, `others` whose texts make a pool where none is
    given, and a fingerprint of the file that they come from."""

    timed: tuple[Entity, ...]
    others: tuple[Entity, ...]
    fingerprint: str


def draw_sample(
    location: str, records: RecordsConfig, groups: GroupTable | None, size: int, seed: int
) -> Sample:
    """Draw `size` records for timing and as many others, half of the file at most each.

    Both are in file order; records that would be rejected are passed over. Raises DraftrecError
    for input that cannot be read, and with fewer than two usable records.
    """
    reader, _ = read_records(location, records, groups)
    total = reader.check_ids()
    order = np.random.default_rng(seed).permutation(total)
    wanted = set(order[: 2 * size].tolist())
    found = {i: e for i, e in _usable(reader) if i in wanted}
    drawn = [i for i in order[: 2 * size].tolist() if i in found]
    if len(drawn) < 2:
        raise DraftrecError(f"{location} has {len(drawn)} usable records; tuning needs two or more")
    half = min(size, (len(drawn) + 1) // 2)
    timed, others = sorted(drawn[:half]), sorted(drawn[half : 2 * half])
    own, rest = (tuple(found[i] for i in places) for places in (timed, others))
    return Sample(own, rest, reader.source.fingerprint())


def requests_of(generator: Generator, entities: Seq[Entity], *, chat: bool | None) -> list[Request]:
    """The prompts as token ids; those that do not fit into the model's context are left out.

    Raises DraftrecError for a chat template that the tokenizer does not have, and if none fits.
    """
    form = form_of(RecordsConfig(chat=chat), has_template=generator.has_chat_template)
    encoded = generator.encode([e.prompt for e in entities], form=form)
    found = [
        Request(e.entity_id, ids, e.group)
        for e, ids in zip(entities, encoded, strict=True)
        if 0 < len(ids) < generator.context_length
    ]
    if not found:
        raise DraftrecError(
            f"no sampled prompt fits into the model's context of {generator.context_length} tokens"
        )
    return found


def _usable(reader: EntityReader) -> Iterator[tuple[int, Entity]]:
    for place, record in enumerate(reader):
        if isinstance(record, Entity):
            yield place, record


class Race:
    """Times settings over `requests` against plain decoding, `rounds` times each.

    Plain decoding runs next to every setting, before it in even rounds and after it in odd ones:
    whatever else the machine does, it does to both. Called with a trial's settings, it returns the
    trial's figures (see `_figures`).
    """

    def __init__(
        self, generator: Generator, pool: Pool, requests: Seq[Request], rounds: int, depth: int
    ) -> None:
        self.requests, self.rounds, self.depth, self.pool = requests, rounds, depth, pool
        config = generator.config.model_copy(update={"draft": DraftConfig(draft="none")})
        self.plain = generator.with_config(config)
        # Also decides how many texts run together, which all settings take over.
        self.plain_texts = self.plain.run(requests)
        held = held_texts(pool, (text.token_ids for text in self.plain_texts))
        self.in_pool = held / len(requests)

    def __call__(self, settings: Settings) -> dict[str, Scalar]:
        rival = self._rival(settings)
        texts: list[Generation] = []
        spent: dict[bool, list[tuple[float, float]]] = {False: [], True: []}
        for number in range(self.rounds):
            for is_rival in (number % 2 == 1, number % 2 == 0):
                found, times = _timed(rival if is_rival else self.plain, self.requests)
                spent[is_rival].append(times)
                texts = found if is_rival else texts
        return {**_speeds(spent[False], spent[True]), **self._figures(texts)}

    def _rival(self, settings: Settings) -> Generator:
        draft = DraftConfig(draft="pool", budget=int(settings["budget"] or 0), depth=self.depth)
        update = {"accept": accept_of(settings), "draft": draft}
        config = self.plain.config.model_copy(update=update)
        rival = self.plain.with_config(config, pool=self.pool)
        # None of this is timed: what passes cost is measured, caches grow, kernels compile.
        rival.cost_curve(max(len(r.prompt_ids) for r in self.requests), len(self.requests))
        rival.run(self.requests[:1])
        return rival

    def _figures(self, texts: Seq[Generation]) -> dict[str, Scalar]:
        """Counts of the last round, and what became of the texts, the plain ones being the strict
        model's own.

        `loss_per_token`: nats of log-probability given up, over all tokens; `similarity`: mean
        TF-IDF cosine to the plain text; `similarity_kept`: the same on a scale from other entities'
        texts, 0, to the plain text, 1; `length_drift`, `distinct_2_drift`: relative; `in_pool`: the
        share of the plain texts that the pool holds as they are.
        """
        plain, written = self._run_texts("plain", self.plain_texts), self._run_texts("run", texts)
        tokens = int(written.lengths.sum())
        rates = sum((g.counts for g in texts), Counts()).rates(tokens)
        near = by_tf_idf(plain.texts, written.texts)
        cosine, kept = float(near.cosines.mean()), near.kept.value
        own, base = run_distinct(written)["distinct_2"], run_distinct(plain)["distinct_2"]
        figures = {
            **{n: rates[n] for n in ("tokens_per_call", "acceptance_rate", "relaxed_share")},
            "loss_per_token": sum(g.loss for g in texts) / tokens,
            "in_pool": self.in_pool,
            "exact_match": likeness(plain, written)["exact_match"].value,
            "similarity": cosine,
            "similarity_kept": cosine if kept is None else kept,
            "length_drift": tokens / int(plain.lengths.sum()) - 1.0,
            "distinct_2_drift": own / base - 1.0 if own and base else None,
        }
        return {name: None if v is None else round(v, 5) for name, v in figures.items()}

    def _run_texts(self, name: str, texts: Seq[Generation]) -> RunTexts:
        ended, stopped = endings([g.finish_reason for g in texts])
        return RunTexts(
            name,
            tuple(g.entity_id for g in texts),
            tuple(self.plain.decode(g.token_ids) for g in texts),
            tuple(g.token_ids for g in texts),
            ended,
            stopped=stopped,
        )


def _timed(
    generator: Generator, requests: Seq[Request]
) -> tuple[list[Generation], tuple[float, float]]:
    """Texts, and seconds by the clock and of this process's processor time."""
    start, used = time.perf_counter(), time.process_time()
    texts = generator.run(requests)
    return texts, (time.perf_counter() - start, time.process_time() - used)


def _speeds(plain: Seq[tuple[float, float]], rival: Seq[tuple[float, float]]) -> dict[str, Scalar]:
    """Plain decoding's seconds over the rival's, round by round: the median, lowest and highest by
    the clock, and the median of processor time, which other programs disturb less."""
    pairs = list(zip(plain, rival, strict=True))
    clock = [a[0] / b[0] for a, b in pairs]
    processor = [a[1] / b[1] for a, b in pairs]
    found = {
        "speedup": median(clock),
        "speedup_low": min(clock),
        "speedup_high": max(clock),
        "cpu_speedup": median(processor),
    }
    return {name: round(value, 4) for name, value in found.items()}


# A search that proposes known settings again and again has seen what it will see.
_ASKS_PER_TRIAL = 10


@dataclass(frozen=True)
class QualityJob(QualityRun):
    """What to tune. `folder` holds the trials; `pool` None: texts of other records are the pool."""

    records: str
    target: ModelConfig
    folder: Path
    batch: BatchConfig = field(default_factory=BatchConfig)
    layout: RecordsConfig = field(default_factory=RecordsConfig)
    groups: Place | None = None
    pool: Path | None = None
    space: Space = field(default_factory=Space)
    limits: LossLimits = field(default_factory=LossLimits)
    depth: int = DraftConfig.model_fields["depth"].default
    overwrite: bool = False


def run_quality_tune(job: QualityJob, watch: Watch = lambda done, total: None) -> dict[str, Any]:
    """Measure the settings that are not measured yet; trials, frontier and choice as one object.

    Raises DraftrecError for bad input, and for a folder that holds trials of another job.
    """
    from draftrec.jobs.knowledge.generator import Generator

    groups = GroupTable.load(job.groups) if job.groups else None
    sample = draw_sample(job.records, job.layout, groups, job.sample, job.seed)
    pool = _given_pool(job)
    config = GenerateConfig(target=job.target, draft=DraftConfig(draft="none"), batch=job.batch)
    generator = Generator.from_pretrained(config=config)
    timed = requests_of(generator, sample.timed, chat=job.layout.chat)
    store = TrialStore(job.folder, _identity(job, sample, generator, groups), job.overwrite)
    race = _Bench(job, generator, sample, timed, pool)
    rows = _measure(job, race, store, watch)
    return {
        "texts": len(timed),
        "device": generator.device,
        "dtype": generator.dtype,
        "threads": generator.facts.threads,
        "trials": rows,
        "frontier": frontier(rows, lambda r: r["loss_per_token"]),
        "chosen": choose(rows, job.limits),
    }


@dataclass(frozen=True)
class _Bench:
    """Runs trials. Prepared when the first one needs it: a finished study asks for none."""

    job: QualityJob
    generator: Generator
    sample: Sample
    timed: list[Request]
    pool: Pool | None

    def __call__(self, settings: Settings) -> Mapping[str, Scalar]:
        return self._race(settings)

    @cached_property
    def _race(self) -> TrialFunction:
        pool = self.pool
        if pool is None:
            pool = _own_pool(self.generator, self.sample, self.job)
        return Race(self.generator, pool, self.timed, self.job.rounds, self.job.depth)


def _measure(job: QualityJob, race: TrialFunction, store: TrialStore, watch: Watch) -> list[Row]:
    """All trials as rows: strict ones, then the grid or, where that is too large, a search."""
    strict, grid = job.space.strict(), job.space.grid()
    if job.trials is None or len(grid) <= job.trials:
        return _tried(race, [*strict, *grid], store, watch)
    return _search(job, race, store, watch)


def _tried(
    race: TrialFunction,
    settings: Seq[Settings],
    store: TrialStore,
    watch: Watch = lambda done, total: None,
) -> list[Row]:
    """Rows of the trials. `generate` has all threads of this process, so each trial has too: what
    a pass over draft rows costs beside a plain one depends on them."""
    return run_trials(race, settings, store, one_thread=False, watch=watch).to_pylist()


def _search(job: QualityJob, race: TrialFunction, store: TrialStore, watch: Watch) -> list[Row]:
    """`job.trials` different settings, proposed by a tree-structured Parzen estimator that looks
    for speed and for little loss at once (optuna's TPESampler; MOTPE, Ozaki et al. 2022).

    What it proposes depends on the seed and on the figures so far, which a resumed search reads
    from the store: it proposes the same again.
    """
    optuna = _optuna()
    study = optuna.create_study(
        directions=["maximize", "minimize"], sampler=optuna.samplers.TPESampler(seed=job.seed)
    )
    settings, most = job.space.strict(), job.trials or 0
    total = len(settings) + most
    rows = _tried(race, settings, store)
    store = replace(store, overwrite=False)  # what is there now is this search's
    for _ in range(_ASKS_PER_TRIAL * most):
        watch(len(rows), total)
        if len(rows) == total:
            break
        trial = study.ask()
        drawn = job.space.draw(trial.suggest_categorical)
        known = [trial_key(s) for s in settings]
        if trial_key(drawn) not in known:
            settings.append(drawn)
            known.append(trial_key(drawn))
            rows = _tried(race, settings, store)
        row = rows[known.index(trial_key(drawn))]
        study.tell(trial, [row["speedup"], row["loss_per_token"]])
    return rows


def _optuna() -> Any:
    with needing("tune", "--trials below the size of the grid needs optuna"):
        import optuna
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _given_pool(job: QualityJob) -> Pool | None:
    """The pool that was asked for; opened before the model, which may take minutes to load."""
    from draftrec.models import loading
    from draftrec.pool.store import Pool

    if job.pool is None:
        return None
    tokenizer = loading.load_tokenizer_of(job.target)
    return Pool.load(job.pool, loading.tokenizer_fingerprint(tokenizer))


def _own_pool(generator: Generator, sample: Sample, job: QualityJob) -> Pool:
    """A pool of the model's own texts for the other records."""
    from draftrec.pool.store import Pool

    pool = Pool(generator.fingerprint["tokenizer"])
    requests = requests_of(generator, sample.others, chat=job.layout.chat)
    texts = generator.run(requests)
    pool.add((t.token_ids, r.group) for t, r in zip(texts, requests, strict=True))
    return pool


def _identity(
    job: QualityJob, sample: Sample, generator: Generator, groups: GroupTable | None
) -> dict[str, Scalar]:
    """What all trials share. A trial's seconds also depend on the machine, of which only device and
    threads are known."""
    records = job.layout.model_dump(include={"template", "side", "chat", "prompt_column"})
    batch = job.batch.model_dump(include={"batch_size", "max_new_tokens"})
    return {
        **generator.fingerprint,
        # None where there is none, as in studies that were begun before there were any.
        "drafter": generator.fingerprint["drafter"] or None,
        "records": sample.fingerprint,
        "groups": groups.fingerprint if groups else None,
        "pool": fingerprint(job.pool) if job.pool else None,
        "device": generator.device,
        "dtype": generator.dtype,
        "threads": generator.facts.threads,
        "sample": job.sample,
        "rounds": job.rounds,
        "depth": job.depth,
        "seed": job.seed,
        **records,
        **batch,
    }
