"""A comparison as a report with its plots, and its files: `compare.json`, `report.md`,
`report.html`. Plots show how much of each limit a run uses, and figures side by side.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Set
from dataclasses import asdict
from typing import Any

from draftrec.data.files.places import Place
from draftrec.data.files.writers import replace_file
from draftrec.errors import DraftrecError
from draftrec.evaluate.compare.comparison import Comparison, RunResult
from draftrec.evaluate.compare.limits import METRICS, Measured, Metric, Verdict
from draftrec.evaluate.compare.quality import Estimate
from draftrec.evaluate.compare.words import (
    bound_words,
    cell_words,
    findings,
    found_words,
    outcome_of,
    range_words,
)
from draftrec.report import blocks, plots
from draftrec.report.blocks import Card, Cards, Cell, Figure, Report, Section, Table, figure, row
from draftrec.report.plots import Bar, Labels
from draftrec.report.show import render

_DIGITS = 6
_CLICKS = (
    "run",
    "model",
    "adaptor",
    "metric",
    "seeds or splits",
    "value",
    "change",
    "95 % interval",
)


def write_report(comparison: Comparison, folder: Place) -> None:
    """Write the three files, each complete or not at all. Raises DraftrecError where the folder
    cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DraftrecError(f"{folder} cannot be made ({error.strerror}); name another") from error
    content = json.dumps(to_json(comparison), indent=1, ensure_ascii=False) + "\n"
    replace_file(folder / "compare.json", content.encode())
    replace_file(folder / "report.md", to_markdown(comparison).encode())
    replace_file(folder / "report.html", render(report_of(comparison)).encode())


def to_json(comparison: Comparison) -> dict[str, Any]:
    """Everything as plain values, rounded to six digits."""
    return {
        "passed": comparison.passed,
        "baseline": comparison.baseline.name,
        "entities": comparison.entities,
        "runs": {r.name: _run_json(r) for r in (comparison.baseline, *comparison.runs)},
        "findings": findings(comparison),
        "limits": comparison.limits.model_dump(mode="json", exclude_none=True),
        "facts": dict(comparison.facts),
    }


def report_of(comparison: Comparison) -> Report:
    """What page and terminal show."""
    tiles = Cards(tuple(_tile(run) for run in comparison.runs))
    clicks = _click_models(comparison)
    meanings = {metric.label: metric.meaning for metric in _metrics(comparison)}
    return Report(
        *_opening(comparison),
        (
            Section("", (tiles,), kept=0),
            blocks.findings(findings(comparison)),
            Section("Side by side", (_figures(comparison),)),
            Section("Limits", (_limits(comparison),), kept=0),
            Section("Click models", (clicks,) if clicks.rows else (), kept=0),
            blocks.gallery(draw(comparison)),
            blocks.facts({"Method": comparison.facts, "What the figures mean": meanings}, kept=1),
        ),
    )


def to_markdown(comparison: Comparison) -> str:
    """The same as a Markdown file: findings, figures, limits, click models, method."""
    title, lead = _opening(comparison)
    lines = [f"# {title}", "", lead, "", *(f"- {finding}" for finding in findings(comparison))]
    lines += ["", "## Figures", "", *_markdown(_figures(comparison))]
    lines += ["", "## Limits", "", *_markdown(_limits(comparison), "limit")]
    if (clicks := _click_models(comparison)).rows:
        lines += ["", "## Click models", "", *_markdown(clicks)]
    lines += ["", "## How it was measured", ""]
    lines += [f"- {name}: {value}" for name, value in comparison.facts.items()]
    lines += ["", *(f"- *{m.label}*: {m.meaning}" for m in _metrics(comparison))]
    return "\n".join(lines) + "\n"


def _opening(comparison: Comparison) -> tuple[str, str]:
    """Title and introduction."""
    names = ", ".join(run.name for run in comparison.runs)
    gate = (
        "All runs pass."
        if comparison.passed
        else "The gate is closed: a limit is broken, or cannot be decided."
    )
    return (
        f"{names} against {comparison.baseline.name}",
        f"{gate} {comparison.entities:,} entities, the same of every run, text by text.",
    )


def _metrics(comparison: Comparison) -> list[Metric]:
    """Those to show, in the catalogue's order, or those that the limits file names."""
    results = (comparison.baseline, *comparison.runs)
    names = comparison.limits.columns or tuple(METRICS)
    return [METRICS[n] for n in names if any(n in r.measured for r in results)]


def _tile(run: RunResult) -> Card:
    """A run in one look: limits kept of those that could be judged, and which were not."""
    judged = [v for v in run.verdicts if v.outcome != "not measured"]
    stopped = [
        f"{outcome}: {', '.join(dict.fromkeys(labels))}"
        for outcome in ("broken", "undecided")
        if (labels := [METRICS[v.metric].label for v in judged if v.outcome == outcome])
    ]
    kept = sum(v.outcome == "kept" for v in judged)
    note = "; ".join(["limits kept", *stopped])
    return Card(run.name, TONES[outcome_of(run.verdicts)], note, str(kept), f" of {len(judged)}")


def _figures(comparison: Comparison) -> Table:
    """The figures of all runs, the baseline first, with intervals in small."""
    results = (comparison.baseline, *comparison.runs)
    return Table(
        ("", *(run.name for run in results)),
        tuple(
            row(metric.label, *(_figure(metric, run) for run in results))
            for metric in _metrics(comparison)
        ),
        page_note=(
            "Small: the 95 % interval, with a sign of the difference from "
            f"{comparison.baseline.name} (pp: percentage points), without one of the value itself. "
            "Bold: a limit is broken; dots as in the table of limits."
        ),
    )


def _figure(metric: Metric, run: RunResult) -> Cell:
    measured = run.measured.get(metric.name)
    if measured is None or measured.value is None:
        return Cell("-")
    outcome = outcome_of([v for v in run.verdicts if v.metric == metric.name])
    return Cell(
        metric.show(measured.value.value),
        range_words(metric, measured),
        strong=outcome == "broken",
        tone=None if outcome == "not measured" else TONES[outcome],
    )


def _limits(comparison: Comparison) -> Table:
    """A row for every limit that some run was judged by, in the order of the limits file."""
    by_run = [{bound_words(v): v for v in run.verdicts} for run in comparison.runs]
    limits = dict.fromkeys(limit for verdicts in by_run for limit in verdicts)
    return Table(
        ("", *(run.name for run in comparison.runs)),
        tuple(row(limit, *(_limit(found.get(limit)) for found in by_run)) for limit in limits),
        note=(
            "Kept: the whole interval keeps the limit. Broken: the value itself breaks it. "
            "Undecided: in between, or too little data; that does not pass unless the limits file "
            "lets it."
        ),
        roomy=True,
    )


def _limit(verdict: Verdict | None) -> Cell:
    if verdict is None:
        return Cell("-")
    words = f"{verdict.outcome}: {verdict.reason}" if verdict.reason else verdict.outcome
    return Cell(found_words(verdict), words, tone=TONES[verdict.outcome])


def _click_models(comparison: Comparison) -> Table:
    return Table(
        _CLICKS,
        tuple(
            row(run.name, c.model, c.adaptor, METRICS[c.metric].label, str(c.seeds), *cell_words(c))
            for run in comparison.runs
            for c in run.cells
        ),
        note=(
            "Paired over seeds: a run's model and the baseline's start from the same seed; or over "
            "splits of the users, where several were given. Student's t."
        ),
    )


def _markdown(table: Table, corner: str = "") -> list[str]:
    """A Markdown table; bars within cells would end them."""
    rows = [[f"{c.value}<br>{c.small}" if c.small else c.value for c in r] for r in table.rows]
    head = [table.columns[0] or corner, *table.columns[1:]]
    cells = [[cell.replace("|", "\\|") for cell in one] for one in (head, *rows)]
    written = [f"| {' | '.join(one)} |" for one in cells]
    return [written[0], f"|{'---|' * len(head)}", *written[1:]]


def _run_json(run: RunResult) -> dict[str, Any]:
    return {
        "outcome": outcome_of(run.verdicts),
        "must_equal_baseline": run.must_equal,
        "rounding": run.rounding,
        "metrics": {name: _measured_json(m) for name, m in run.measured.items()},
        "limits": [{**asdict(v), "found": _estimate_json(v.found)} for v in run.verdicts],
        "faults": dict(run.faults),
        "click_models": [
            {
                "model": c.model,
                "adaptor": c.adaptor,
                "metric": c.metric,
                "seeds": c.seeds,
                "over": c.over,
                "value": c.value.as_dict(_DIGITS),
                "change": c.change.as_dict(_DIGITS),
            }
            for c in run.cells
        ],
    }


def _measured_json(measured: Measured) -> dict[str, Any]:
    scales = {name: getattr(measured, name) for name in ("value", "change", "relative")}
    found: dict[str, Any] = {n: _estimate_json(e) for n, e in scales.items() if e is not None}
    return found if measured.samples is None else {**found, "samples": measured.samples}


def _estimate_json(found: Estimate | None) -> dict[str, float | None] | None:
    if found is None:
        return None
    return {n: None if v is None else round(v, _DIGITS) for n, v in asdict(found).items()}


#: Green, red and orange of the style sheet.
TONES = {"kept": 3, "broken": 5, "undecided": 2, "not measured": 0}
#: Longer bars would press all others flat; their notes say how long they are.
_LONGEST = 3.0
#: Figures that are worth a look whatever the limits.
_SHOWN = ("similarity_kept", "copied_texts", "self_bleu", "distinct_2", "titles_leaked")


def draw(comparison: Comparison) -> list[Figure]:
    """Each plot that the figures allow."""
    by_run = [plot for run in comparison.runs if (plot := _used_plot(run))]
    results = (comparison.baseline, *comparison.runs)
    return by_run + [plot for name in _SHOWN if (plot := _figure_plot(name, results))]


def used(verdict: Verdict, value: float) -> float | None:
    """The part of a limit's room that `value` uses up: 1 at the bound, more beyond it. Room begins
    at the baseline for changes, at zero for `max`, at equality for `min` of what compares a run
    with the baseline. None for other bounds, and for those that leave no room."""
    if verdict.key in ("max_change", "max_relative", "max"):
        return max(0.0, value / verdict.bound) if verdict.bound > 0 else None
    if verdict.key in ("min_change", "min_relative"):
        return max(0.0, value / verdict.bound) if verdict.bound < 0 else None
    best = METRICS[verdict.metric].paired and verdict.bound < 1
    return max(0.0, (1 - value) / (1 - verdict.bound)) if best else None


def _used_plot(run: RunResult) -> Figure | None:
    counts = Counter(verdict.metric for verdict in run.verdicts)
    twice = {metric for metric, n in counts.items() if n > 1}
    data = [bar for verdict in run.verdicts if (bar := _used_bar(verdict, twice))]
    if not any(bar.value or bar.high for bar in data):
        return None  # equal to the baseline: a plot of zeros
    words = "; ".join(f"{b.label} {b.note}" for b in data)
    labels = Labels(
        f"{run.name}: use of the limits", f"Parts of the limits used: {words}.", "part of the limit"
    )
    caption = (
        "How much of the room that a limit leaves is used up. Dashed: the limit. Whiskers: 95 % "
        "interval, of which the end counts. "
        "Green: kept, red: broken, orange: undecided."
    )
    return figure(labels, caption, plots.bars(data, labels, reference=1.0))


def _used_bar(verdict: Verdict, twice: Set[str]) -> Bar | None:
    """One bar; metrics bounded `twice` say in which direction it is."""
    found = verdict.found
    part = None if found is None else used(verdict, found.value)
    if found is None or part is None:
        return None
    ends = [used(verdict, end) for end in (found.low, found.high) if end is not None]
    shown = sorted(min(e, _LONGEST) for e in ends if e is not None)
    label = METRICS[verdict.metric].label
    if verdict.metric in twice:
        label = f"{label} {'down' if verdict.key.startswith('min') else 'up'}"
    return Bar(
        label,
        min(part, _LONGEST),
        shown[0] if len(shown) == 2 else None,
        shown[1] if len(shown) == 2 else None,
        TONES[verdict.outcome],
        f"{100 * part:.0f} %",
    )


def _figure_plot(name: str, results: tuple[RunResult, ...]) -> Figure | None:
    metric = METRICS[name]
    data: list[Bar] = []
    for tone, run in enumerate(results):
        measured = run.measured.get(name)
        if measured is None or measured.value is None:
            continue
        found = measured.value
        low, high = (None if e is None else max(0.0, e) for e in (found.low, found.high))
        data.append(
            Bar(run.name, max(0.0, found.value), low, high, tone % 6, metric.show(found.value))
        )
    if not data:
        return None
    words = ", ".join(f"{b.label} {b.note}" for b in data)
    heading = metric.label[0].upper() + metric.label[1:]
    labels = Labels(heading, f"{metric.label}, {metric.meaning}: {words}.", "")
    caption = f"{metric.meaning[0].upper()}{metric.meaning[1:]}."
    if any(b.low is not None for b in data):
        caption += " Whiskers: 95 % interval over entities."
    return figure(labels, caption, plots.bars(data, labels))
