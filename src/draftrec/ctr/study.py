"""The study: click models x adaptors x seeds on one cut of the data, and what it found."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Seq
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from draftrec.ctr.features import FeatureSources, Inputs, Prepared, prepare
from draftrec.ctr.settings import FitSettings, StudyRun
from draftrec.data.clock import say_untimed
from draftrec.data.events import (
    PARTS,
    CutSettings,
    EventColumns,
    Events,
    Samples,
    cut_samples,
    positive_of,
    read_events,
)
from draftrec.data.files.writers import replace_file
from draftrec.data.records import Rejects
from draftrec.data.tables.readers import open_records
from draftrec.errors import DraftrecError, not_installed
from draftrec.jobs.trials import (
    Scalar,
    Settings,
    TrialStore,
    interval,
    paired,
    run_trials,
)
from draftrec.models.cpu import usable_cores

#: In the output folder: the rows that could not be used.
REJECTED = "rejected.jsonl"
#: Figures of the test that summaries show.
_FIGURES = ("auc", "logloss")
#: What sources hold besides files.
_COLUMNS = ("item_columns", "user_columns")


@dataclass(frozen=True)
class StudyJob(StudyRun):
    """Inputs and settings of `draftrec ctr`; results go into the folder `output`."""

    interactions: str
    output: Path
    columns: EventColumns = field(default_factory=EventColumns)
    sources: FeatureSources = field(default_factory=FeatureSources)
    cut: CutSettings = field(default_factory=CutSettings)
    fit: FitSettings = field(default_factory=FitSettings)
    overwrite: bool = False

    @property
    def trials(self) -> list[Settings]:
        """One for each model, adaptor and seed."""
        return [
            {"model": model, "adaptor": adaptor, "seed": seed}
            for model in dict.fromkeys(self.models)
            for adaptor in dict.fromkeys(self.adaptors)
            for seed in range(self.seeds)
        ]


def run_study(
    job: StudyJob, workers: int | None, watch: Callable[[int, int], None] | None = None
) -> dict[str, Any]:
    """Run what is left of the study, write `trials.parquet` and `summary.json`, return the latter.

    `workers`: processes; None for as many as there are cores. The same job gives the same bytes.
    Raises DraftrecError for unusable inputs, and for an output folder begun with others.
    """
    _require_library()
    rejects = Rejects(job.columns.user)
    # Before they are read: of files that change in between, a study that goes on knows.
    prints = _fingerprints(job)
    events = read_events(job.interactions, job.columns, rejects)
    say_untimed(events, job.interactions)
    job = replace(job, cut=replace(job.cut, positive=positive_of(events, job.cut.positive)))
    samples = cut_samples(events, job.cut)
    prepared = prepare(
        events,
        samples,
        job.sources,
        (job.columns.user, job.columns.item),
        rejects,
        user_ids=job.cut.split == "time",
    )
    _check_adaptors(job.adaptors, prepared.inputs, job.fit.size)
    store = TrialStore(job.output, _identity(job, prints), job.overwrite)
    table = run_trials(
        partial(_trial, prepared.inputs, job.fit),
        job.trials,
        store,
        workers=usable_cores() if workers is None else workers,
        watch=watch,
    )
    summary = _summary(table, events, samples, prepared)
    summary |= {"positive": job.cut.positive, "rejected": len(rejects)}
    rejects.write(job.output / REJECTED)
    replace_file(job.output / "summary.json", (json.dumps(summary, indent=1) + "\n").encode())
    return summary


def summarise(table: pa.Table) -> list[dict[str, Any]]:
    """A row for each model and adaptor: mean, standard deviation and 95 % interval over seeds of
    AUC and LogLoss; `over_none`: the same of the differences to the model without knowledge, seed
    by seed, where that was run too."""
    found: dict[tuple[str, str], dict[str, list[float]]] = {}
    for row in table.to_pylist():
        figures = found.setdefault((row["model"], row["adaptor"]), {name: [] for name in _FIGURES})
        for name in _FIGURES:
            figures[name].append(row[name])
    results: list[dict[str, Any]] = []
    for (model, adaptor), figures in found.items():
        result: dict[str, Any] = {"model": model, "adaptor": adaptor, "seeds": len(figures["auc"])}
        result |= {name: interval(values).as_dict() for name, values in figures.items()}
        plain = found.get((model, "none"))
        if plain is not None and adaptor != "none":
            result["over_none"] = {
                name: paired(plain[name], values).as_dict() for name, values in figures.items()
            }
        results.append(result)
    return results


def _trial(inputs: Inputs, fit: FitSettings, settings: Settings) -> Mapping[str, Scalar]:
    from draftrec.ctr.model import train_and_test

    model, adaptor, seed = (settings[name] for name in ("model", "adaptor", "seed"))
    return train_and_test(inputs, str(model), str(adaptor), int(seed or 0), fit)


def _summary(
    table: pa.Table, events: Events, samples: Samples, prepared: Prepared
) -> dict[str, Any]:
    return {
        "results": summarise(table),
        "samples": {name: _counts(samples, number) for number, name in enumerate(PARTS)},
        "users": len(events.users),
        "items": len(events.items),
        "interactions": len(events.user),
        "attributes": [a.name for a in prepared.inputs.items.attributes],
        "columns": {
            side: {"used": dict(use.used), "left_out": dict(use.left_out)}
            for side, use in prepared.columns.items()
        },
        "without_vectors": prepared.without_vectors,
    }


def _counts(samples: Samples, number: int) -> dict[str, int]:
    inside = samples.part == number
    return {
        "samples": int(inside.sum()),
        "clicks": int(samples.label[inside].sum()),
        "users": len(np.unique(samples.user[inside])),
    }


def _fingerprints(job: StudyJob) -> dict[str, Scalar]:
    """Of the contents of the inputs, None for those that there are not."""
    given = {**asdict(job.sources), "interactions": job.interactions}
    return {
        name: open_records(place).fingerprint()[:16] if place else None
        for name, place in given.items()
        if name not in _COLUMNS
    }


def _identity(job: StudyJob, prints: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """What all trials share, flat: contents of the inputs, not their names."""
    shared = {**asdict(job.columns), **asdict(job.cut), **asdict(job.fit)}
    shared |= {name: getattr(job.sources, name) for name in _COLUMNS}
    flat: dict[str, Scalar] = {
        name: ", ".join(map(str, value)) if isinstance(value, tuple) else value
        for name, value in shared.items()
    }
    return {**prints, **flat}


def _check_adaptors(names: Seq[str], inputs: Inputs, size: int) -> None:
    """Before hours of training, raise for an adaptor that the vectors do not suit."""
    from draftrec.ctr.model import make_adaptor

    sides = {"user": inputs.users.vectors, "item": inputs.items.vectors}
    widths = {name: vectors.shape[1] for name, vectors in sides.items() if vectors is not None}
    for name in names:
        make_adaptor(name, widths, size)
    if "contrastive" in names and inputs.users.ids is None and "item" not in widths:
        raise DraftrecError(
            "adaptor contrastive aligns vectors with embeddings of ids, which users do not have in "
            "a split by user; give --item-vectors too, or use --split time"
        )


def _require_library() -> None:
    if find_spec("torch_rechub") is None:
        raise not_installed("ctr", "click models need torch-rechub")
