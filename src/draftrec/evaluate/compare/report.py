"""A comparison as a report with its plots, and its files: `compare.json`, `report.md`,
`report.html`. Plots show how much of each limit a run uses, and figures side by side.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Set
from collections.abc import Sequence as Seq
from dataclasses import asdict
from typing import Any

from draftrec.data.files.places import Place
from draftrec.data.files.writers import replace_file
from draftrec.errors import DraftrecError
from draftrec.evaluate.compare.comparison import Comparison, RunResult
from draftrec.evaluate.compare.ctr import CellChange
from draftrec.evaluate.compare.limits import METRICS, Measured, Metric, Outcome, Verdict
from draftrec.evaluate.compare.quality import Estimate
from draftrec.report import blocks, plots
from draftrec.report.blocks import Card, Cards, Cell, Figure, Report, Section, Table, figure, row
from draftrec.report.plots import Bar, Labels
from draftrec.report.show import render

#: Worst first: what is said of a run is the worst that is said of any of its limits.
_WORST: tuple[Outcome, ...] = ("broken", "undecided", "kept")


def outcome_of(verdicts: Seq[Verdict]) -> Outcome:
    """The worst outcome; "not measured" where there is no other."""
    outcomes = {v.outcome for v in verdicts}
    for outcome in _WORST:
        if outcome in outcomes:
            return outcome
    return "not measured"


def bound_words(verdict: Verdict) -> str:
    """A limit: "relaxed tokens at most 15.0 %", "change of EOS rate at least -5.0 pp"."""
    word = "at least" if verdict.key.startswith("min") else "at most"
    subject = f"{_kind(verdict)}{METRICS[verdict.metric].label}"
    return f"{subject} {word} {_shown(verdict, verdict.bound)}"


def found_words(verdict: Verdict) -> str:
    """What was found of a limit: "19.2 % (18.0 % to 20.5 %)"."""
    found = verdict.found
    if found is None:
        return "-"
    words = _shown(verdict, found.value)
    if found.low is not None and found.high is not None and found.low < found.high:
        words += f" ({_shown(verdict, found.low)} to {_shown(verdict, found.high)})"
    return words


def findings(comparison: Comparison) -> list[str]:
    """Plain sentences, most important first."""
    found = [sentence for run in comparison.runs for sentence in _run_sentences(run, comparison)]
    unmeasured = {
        METRICS[v.metric].label for v in comparison.verdicts if v.outcome == "not measured"
    }
    if unmeasured:
        labels = [m.label for m in METRICS.values() if m.label in unmeasured]
        found.append(f"Not measured, so that nothing is said of it: {', '.join(labels)}.")
    return found


def cell_words(cell: CellChange) -> tuple[str, str, str]:
    """A click model's value, its change, and the change's interval."""
    change = cell.change
    low, high = change.low, change.high
    span = "-" if low is None or high is None else f"{low:+.4f} to {high:+.4f}"
    return f"{cell.value.mean:.4f}", f"{change.mean:+.4f}", span


def range_words(metric: Metric, measured: Measured) -> str:
    """The interval of the change where there is one, else of the value."""
    if measured.change is not None:
        return _span(measured.change, metric.show_change)
    return _span(measured.value, metric.show) if measured.value is not None else ""


def _run_sentences(run: RunResult, comparison: Comparison) -> list[str]:
    by_outcome = {o: [v for v in run.verdicts if v.outcome == o] for o in _WORST}
    judged = sum(map(len, by_outcome.values()))
    found: list[str] = []
    for outcome in ("broken", "undecided"):
        verdicts = by_outcome[outcome]
        if verdicts:
            listed = "; ".join(_verdict_words(v) for v in verdicts)
            noun = "limit" if len(verdicts) == 1 else "limits"
            verb = "breaks" if outcome == "broken" else "cannot decide"
            found.append(f"{run.name} {verb} {len(verdicts)} {noun} of {judged}: {listed}.")
    if not found:
        found.append(f"{run.name} keeps all {judged} limits that could be measured.")
    exact = run.measured["exact_match"].value
    if run.must_equal and exact is not None and exact.value == 1.0:
        found.append(
            f"{run.name} must equal {comparison.baseline.name}, and does, token for token, in all "
            f"{comparison.entities:,} texts."
        )
    if run.rounding and exact is not None and exact.value < 1.0:
        other = round((1.0 - exact.value) * comparison.entities)
        found.append(
            f"Precision is a likely cause of the {other:,} texts in which {run.name} differs from "
            f"{comparison.baseline.name}: {run.rounding}."
        )
    if run.faults:
        listed = ", ".join(f"{fault} ({n:,})" for fault, n in run.faults.items())
        found.append(f"{run.name} has texts of another form than asked for: {listed}.")
    return found


def _verdict_words(verdict: Verdict) -> str:
    words = f"{bound_words(verdict)}, found {found_words(verdict)}"
    return f"{words}, {verdict.reason}" if verdict.reason else words


def _kind(verdict: Verdict) -> str:
    if verdict.key.endswith("change"):
        return "change of "
    return "relative change of " if verdict.key.endswith("relative") else ""


def _shown(verdict: Verdict, value: float) -> str:
    metric = METRICS[verdict.metric]
    if verdict.key.endswith("relative"):
        return f"{100 * value:+.1f} %"
    if verdict.key.endswith("change"):
        return metric.show_change(value)
    return metric.show(value)


def _span(found: Estimate, show: Callable[[float | None], str]) -> str:
    if found.low is None or found.high is None or found.low == found.high:
        return ""
    return f"{show(found.low)} to {show(found.high)}"


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
