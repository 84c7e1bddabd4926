"""What evaluations found: gates of `compare`, click models of `ctr`, rankings of `genrec`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of words under a caption; the first column names the row."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One finished evaluation, or recommendations under way. `verdict`: a gate's, None where
    nothing was at stake; `findings`: sentences."""

    name: str
    kind: Literal["comparison", "click models", "ranking", "recommendations"]
    verdict: Literal["passed", "closed"] | None
    findings: tuple[str, ...]
    tables: tuple[Table, ...]


def read_evaluations(folder: Path, name: str) -> list[Evaluation]:
    """All that a folder holds: `compare.json`, the `summary.json` of `draftrec ctr`, and JSON files
    with what `genrec evaluate --json` or `genrec recommend --json` printed. Files of other content
    are passed over."""
    found: list[Evaluation] = []
    for path in sorted(p for p in folder.glob("*.json") if p.name != "manifest.json"):
        content = _load(path)
        title = name if path.stem in ("compare", "summary") else f"{name}/{path.stem}"
        for fits, make in _KINDS:
            if content is not None and fits(content):
                found += _made(make, title, content)
                break
    for parts in sorted(folder.glob(".*.parts")):
        facts = [f for path in sorted(parts.glob("facts-*.json")) if (f := _load(path))]
        if facts:
            found += _made(_under_way, f"{name}/{parts.name[1:].removesuffix('.parts')}", facts)
    return found


def _made(make: Callable[[str, Any], Evaluation], name: str, content: Any) -> list[Evaluation]:
    """The evaluation, or nothing for a file that only looked like one."""
    try:
        return [make(name, content)]
    except (KeyError, TypeError, ValueError, AttributeError):
        return []


def _comparison(name: str, content: Json) -> Evaluation:
    runs: Mapping[str, Json] = content["runs"]
    judged = {n: r for n, r in runs.items() if n != content["baseline"]}
    limits = [row for run, found in judged.items() for row in _limit_rows(run, found["limits"])]
    clicks = [row for run, found in judged.items() for row in _click_rows(run, found)]
    tables = [Table("Limits", ("run", "limit", "found", "verdict"), tuple(limits))]
    if clicks:
        columns = ("run", "model", "adaptor", "figure", "mean", "change", "95 % interval")
        tables.append(Table("Click models", columns, tuple(clicks)))
    verdict = "passed" if content["passed"] else "closed"
    return Evaluation(name, "comparison", verdict, tuple(content["findings"]), tuple(tables))


def _limit_rows(run: str, limits: Seq[Json]) -> list[tuple[str, ...]]:
    """Broken limits first, those that could not be measured not at all."""
    from draftrec.evaluate.compare.limits import Verdict
    from draftrec.evaluate.compare.quality import Estimate
    from draftrec.evaluate.compare.report import bound_words, found_words

    order = {"broken": 0, "undecided": 1, "kept": 2}
    shown = sorted((v for v in limits if v["outcome"] in order), key=lambda v: order[v["outcome"]])
    rows: list[tuple[str, ...]] = []
    for limit in shown:
        found = Estimate(**limit["found"]) if limit["found"] else None
        verdict = Verdict(**{**limit, "found": found})
        rows.append((run, bound_words(verdict), found_words(verdict), verdict.outcome))
    return rows


def _click_rows(run: str, found: Json) -> list[tuple[str, ...]]:
    from draftrec.evaluate.compare.limits import METRICS

    return [
        (
            run,
            cell["model"],
            cell["adaptor"],
            METRICS[cell["metric"]].label,
            f"{cell['value']['mean']:.4f}",
            f"{cell['change']['mean']:+.4f}",
            _range(cell["change"], "+.4f"),
        )
        for cell in found["click_models"]
    ]


def _click_study(name: str, content: Json) -> Evaluation:
    rows = tuple(
        (
            f"{r['model']}, {r['adaptor']}",
            str(r["seeds"]),
            f"{r['auc']['mean']:.4f}",
            _range(r["auc"], ".4f"),
            f"{r['logloss']['mean']:.4f}",
            f"{r['over_none']['auc']['mean']:+.4f}" if "over_none" in r else "-",
        )
        for r in content["results"]
    )
    columns = ("model, adaptor", "seeds", "AUC", "95 % interval", "LogLoss", "AUC over none")
    best = max(content["results"], key=lambda r: r["auc"]["mean"])
    finding = (
        f"Best AUC: {best['auc']['mean']:.4f}, {best['model']} with adaptor {best['adaptor']}."
    )
    return Evaluation(name, "click models", None, (finding,), (Table("AUC", columns, rows),))


def _ranking(name: str, content: Json) -> Evaluation:
    lengths = sorted(int(k.partition("@")[2]) for k in content if k.startswith("recall@"))
    rows = tuple(
        (f"{k}", f"{content[f'recall@{k}']:.4f}", f"{content[f'ndcg@{k}']:.4f}") for k in lengths
    )
    finding = f"{content['users']:,} users were scored."
    table = Table("Recall and NDCG", ("K", "Recall@K", "NDCG@K"), rows)
    return Evaluation(name, "ranking", None, (finding,), (table,))


def _under_way(name: str, facts: Seq[Json]) -> Evaluation:
    from draftrec.jobs.recommend.job import summary_of

    return _recommended(name, summary_of(facts, shadow=False), " so far")


def _recommended(name: str, content: Json, so_far: str = "") -> Evaluation:
    figures = {
        "users": f"{content['users']:,}",
        "ms per user, median": f"{content['ms_per_user_p50']:.1f}",
        "ms per user, 99 %": f"{content['ms_per_user_p99']:.1f}",
        "target calls per user": f"{content['mean_target_calls']:.2f}",
        "accepted steps per user": f"{content['mean_accepted_steps']:.2f}",
        "answers that are no item": f"{100 * content['invalid_rate']:.2f} %",
    }
    seconds = content["walltime_seconds"]
    finding = f"{content['users']:,} users in {seconds:,.1f} s{so_far}."
    table = Table("Recommendations", ("figure", "value"), tuple(figures.items()))
    return Evaluation(name, "recommendations", None, (finding,), (table,))


#: What a file must hold to be read as what.
_KINDS: tuple[tuple[Callable[[Json], bool], Callable[[str, Json], Evaluation]], ...] = (
    (lambda c: "baseline" in c and "runs" in c and "passed" in c, _comparison),
    (lambda c: isinstance(c.get("results"), list) and "without_vectors" in c, _click_study),
    (lambda c: any(k.startswith("recall@") for k in c), _ranking),
    (lambda c: "ms_per_user_p50" in c, _recommended),
)


def _range(found: Mapping[str, Any], form: str) -> str:
    low, high = found.get("low"), found.get("high")
    return "-" if low is None or high is None else f"{low:{form}} to {high:{form}}"


def _load(path: Path) -> Json | None:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None
