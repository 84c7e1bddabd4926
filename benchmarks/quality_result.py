"""What the quality study found, as one result: figures only, no texts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from collections.abc import Sequence as Seq
from pathlib import Path
from statistics import fmean
from typing import Any

import pyarrow.parquet as pq
from common import write_result

from draftrec.evaluate.compare.ctr import Cell, Trials, read_trials
from draftrec.jobs.trials import interval, paired

#: Text measures that the result keeps, of all that a comparison has.
_TEXT = (
    "new_tokens", "eos_rate", "exact_match", "relaxed_share", "distinct_2", "self_bleu",
    "repetition", "copied_texts", "similarity_kept", "titles_named", "titles_grounded",
    "titles_leaked",
)  # fmt: skip


SIDES = ("users", "movies")


def write_quality(
    folder: Path, clicks: Seq[Path], folds: Mapping[str, Seq[Path]], seeds: int
) -> None:
    """Sum up the study of the small target and write the result. `folds`: those of all splits by
    run."""
    names = [c.name for c in clicks]
    trials = {c.name: read_trials([c]) for c in clicks}
    payload = {
        "settings": {"seeds": seeds, "runs": names},
        "samples": json.loads((clicks[0] / "summary.json").read_text())["samples"],
        "vectors_identical": {s: _same_vectors(folder, "baseline", "strict", s) for s in SIDES},
        "clicks": [_cell(trials, model, adaptor) for model, adaptor in trials["baseline"].cells],
        "overall": {n: _overall(trials["baseline"], trials[n]) for n in names[1:]},
        "knowledge": _knowledge(trials["baseline"]),
        "folds": _folds({name: [read_trials([f]) for f in found] for name, found in folds.items()}),
        "texts": {side: _texts(folder / "reports" / side / "compare.json") for side in SIDES},
        "tune": _tune(folder),
    }
    write_result("quality-ml100k", payload, seed=0)


def write_real(
    folder: Path, folds: Mapping[str, Seq[Path]], settings: dict[str, dict[str, Any]]
) -> None:
    """Sum up the study of the real target: `settings` of each run, the baseline first."""
    timed = folder / "speed.json"
    runs = {
        side: {name: _cost(folder / "runs" / name / side) for name in settings} for side in SIDES
    }
    payload = {
        "settings": {"runs": settings},
        "folds": _folds({name: [read_trials([f]) for f in found] for name, found in folds.items()}),
        "texts": {side: _texts(folder / "reports" / side / "compare.json") for side in SIDES},
        "runs": runs,
        "speed": json.loads(timed.read_text()) if timed.is_file() else None,
    }
    write_result("quality-smollm2", payload, seed=0)


def _cost(run: Path) -> dict[str, Any]:
    """What drafts did in a run: counts, which no clock has a part in."""
    summary = json.loads((run / "summary.json").read_text())
    kept = "entities", "new_tokens", "tokens_per_call", "relaxed_share", "dtype", "exact"
    return {name: summary.get(name) for name in kept}


def _values(trials: Trials, cell: Cell, metric: str) -> list[float]:
    """One value per seed."""
    seeds = trials.cells[cell]
    return [seeds[seed][metric] for seed in sorted(seeds)]


def _cell(trials: dict[str, Trials], model: str, adaptor: str) -> dict[str, Any]:
    """One model and adaptor: AUC and LogLoss of every run, and its difference, paired by seed."""
    cell = (model, adaptor)
    found: dict[str, Any] = {"model": model, "adaptor": adaptor}
    base = trials["baseline"]
    for name, mine in trials.items():
        if cell not in mine.cells:
            continue
        figures: dict[str, Any] = {}
        for metric in ("auc", "logloss"):
            values = _values(mine, cell, metric)
            figures[metric] = interval(values).as_dict()
            if name != "baseline":
                change = paired(_values(base, cell, metric), values)
                figures[f"{metric}_change"] = change.as_dict()
        found[name] = figures
    return found


def _overall(base: Trials, run: Trials) -> dict[str, Any]:
    """Differences from the baseline, the mean over models and adaptors of each seed."""
    return {
        m: _over(base, run, [c for c in run.cells if c in base.cells], m)
        for m in ("auc", "logloss")
    }


def _over(base: Trials, run: Trials, cells: Seq[Cell], metric: str) -> dict[str, Any]:
    def means(trials: Trials) -> list[float]:
        rows = zip(*(_values(trials, cell, metric) for cell in cells), strict=True)
        return [sum(row) / len(row) for row in rows]

    return paired(means(base), means(run)).as_dict()


def _knowledge(base: Trials) -> list[dict[str, Any]]:
    """What the baseline's vectors are worth: every adaptor over no knowledge, paired by seed."""
    found: list[dict[str, Any]] = []
    for model, adaptor in base.cells:
        if adaptor != "none":
            gains = {
                m: paired(
                    _values(base, (model, "none"), m), _values(base, (model, adaptor), m)
                ).as_dict()
                for m in ("auc", "logloss")
            }
            found.append({"model": model, "adaptor": adaptor, **gains})
    return found


def _folds(trials: Mapping[str, Seq[Trials]]) -> dict[str, Any]:
    """Differences over splits that together test every user: the mean over models and adaptors of
    each split, then mean and interval over splits, which speak of users as well."""
    baseline = next(iter(trials))
    base = trials[baseline]
    cells = [cell for cell in base[0].cells if cell[1] != "none"]
    found: dict[str, Any] = {
        "splits": len(base),
        "models": sorted({m for m, _ in cells}),
        "adaptors": sorted({a for _, a in cells}),
    }
    for metric in ("auc", "logloss"):
        before = [_mean(split, cells, metric) for split in base]
        nothing = [_mean(split, [(m, "none") for m, _ in cells], metric) for split in base]
        found[metric] = {f"{baseline} over no knowledge": paired(nothing, before).as_dict()}
        for name in trials.keys() - {baseline}:
            after = [_mean(split, cells, metric) for split in trials[name]]
            found[metric][f"{name} over {baseline}"] = paired(before, after).as_dict()
        found[metric] = dict(sorted(found[metric].items()))
    return found


def _mean(trials: Trials, cells: Seq[Cell], metric: str) -> float:
    return fmean(_values(trials, cell, metric)[0] for cell in cells)


def _same_vectors(folder: Path, a: str, b: str, side: str) -> bool:
    one, two = (folder / "vectors" / f"{name}-{side}.parquet" for name in (a, b))
    return pq.read_table(one).equals(pq.read_table(two))


def _texts(path: Path) -> dict[str, Any]:
    """Measures and verdicts of every run of a side."""
    report = json.loads(path.read_text())
    runs = {
        name: {
            "outcome": run["outcome"],
            "broken": [v["metric"] for v in run["limits"] if v["outcome"] == "broken"],
            "undecided": [v["metric"] for v in run["limits"] if v["outcome"] == "undecided"],
            **{m: run["metrics"][m]["value"] for m in _TEXT if m in run["metrics"]},
        }
        for name, run in report["runs"].items()
    }
    return {"entities": report["entities"], "passed": report["passed"], "runs": runs}


def _tune(folder: Path) -> list[dict[str, Any]] | None:
    """All settings that were tried, where the frontier was measured."""
    path = folder / "tune" / "trials.parquet"
    return pq.read_table(path).to_pylist() if path.is_file() else None
