"""Tune with the model: settings of all acceptance rules, their speed and what their texts lose.

Every setting writes the sampled texts next to plain decoding (`tune_race`). Trials are kept as they
finish, so that an interrupted study goes on; the frontier, the choice and the settings file are
made of them at the end (`tune_choice`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from draftrec.config import (
    BatchConfig,
    DraftConfig,
    GenerateConfig,
    ModelConfig,
    RecordsConfig,
)
from draftrec.core import Request
from draftrec.data.files.places import Place
from draftrec.data.records import GroupTable
from draftrec.errors import DraftrecError
from draftrec.evaluate.tune.choice import Limits, Row, choose, frontier
from draftrec.evaluate.tune.sample import Sample, draw_sample, requests_of
from draftrec.evaluate.tune.space import Space
from draftrec.jobs.trials import (
    Scalar,
    Settings,
    TrialFunction,
    TrialStore,
    Watch,
    run_trials,
    trial_key,
)

if TYPE_CHECKING:
    from draftrec.jobs.knowledge.generator import Generator
    from draftrec.pool.store import Pool

# A search that proposes known settings again and again has seen what it will see.
_ASKS_PER_TRIAL = 10


@dataclass(frozen=True, slots=True)
class QualityJob:
    """What to tune. `folder` holds the trials; `sample` records are timed; `trials` searches the
    space with optuna where its grid is larger; `pool` None: texts of other records are the pool."""

    records: str
    target: ModelConfig
    folder: Path
    batch: BatchConfig = field(default_factory=BatchConfig)
    layout: RecordsConfig = field(default_factory=RecordsConfig)
    groups: Place | None = None
    pool: Path | None = None
    space: Space = field(default_factory=Space)
    limits: Limits = field(default_factory=Limits)
    sample: int = 64
    rounds: int = 3
    trials: int | None = None
    depth: int = DraftConfig.model_fields["depth"].default
    seed: int = 0
    overwrite: bool = False


def run_quality_tune(job: QualityJob, watch: Watch = lambda done, total: None) -> dict[str, Any]:
    """Measure the settings that are not measured yet; trials, frontier and choice as one object.

    Raises DraftrecError for bad input, and for a folder that holds trials of another job.
    """
    from draftrec.jobs.knowledge.generator import Generator

    groups = GroupTable.load(job.groups) if job.groups else None
    sample = draw_sample(job.records, job.layout, groups, job.sample, job.seed)
    pool = _given_pool(job)
    config = GenerateConfig(
        target=job.target, draft=DraftConfig(draft="none"), batch=job.batch
    )  # fmt: skip
    generator = Generator.from_pretrained(config=config)
    timed = requests_of(generator, sample.timed, chat=job.layout.chat)
    store = TrialStore(job.folder, _identity(job, sample, generator, groups), job.overwrite)
    race = _Bench(job, generator, sample, timed, pool)
    rows = _measure(job, race, store, watch)
    return {
        "texts": len(timed),
        "device": generator.device,
        "dtype": generator.dtype,
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
        from draftrec.evaluate.tune.race import Race

        pool = self.pool
        if pool is None:
            pool = _own_pool(self.generator, self.sample, self.job)
        return Race(self.generator, pool, self.timed, self.job.rounds, self.job.depth)


def _measure(job: QualityJob, race: TrialFunction, store: TrialStore, watch: Watch) -> list[Row]:
    """All trials as rows: strict ones, then the grid or, where that is too large, a search."""
    strict, grid = job.space.strict(), job.space.grid()
    if job.trials is None or len(grid) <= job.trials:
        return run_trials(race, [*strict, *grid], store, watch=watch).to_pylist()
    return _search(job, race, store, watch)


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
    rows = run_trials(race, settings, store).to_pylist()
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
            rows = run_trials(race, settings, store).to_pylist()
        row = rows[known.index(trial_key(drawn))]
        study.tell(trial, [row["speedup"], row["loss_per_token"]])
    return rows


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise DraftrecError(
            '--trials below the size of the grid needs optuna; pip install "draftrec[tune]"'
        ) from error
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
    """What all trials share. A trial's seconds also depend on the machine, of which only the device
    is known."""
    records = job.layout.model_dump(include={"template", "side", "chat", "prompt_column"})
    batch = job.batch.model_dump(include={"batch_size", "max_new_tokens"})
    return {
        **generator.fingerprint,
        "records": sample.fingerprint,
        "groups": groups.fingerprint if groups else None,
        "pool": _pool_fingerprint(job.pool) if job.pool else None,
        "device": generator.device,
        "dtype": generator.dtype,
        "sample": job.sample,
        "rounds": job.rounds,
        "depth": job.depth,
        "seed": job.seed,
        **records,
        **batch,
    }


def _pool_fingerprint(folder: Path) -> str:
    """Of the pool's manifest, which holds the checksums of its files."""
    return hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()
