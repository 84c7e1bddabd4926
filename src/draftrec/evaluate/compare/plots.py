"""Plots of a comparison: how much of each limit a run uses, and figures side by side."""

from __future__ import annotations

from collections import Counter
from collections.abc import Set

from draftrec.evaluate.compare.comparison import Comparison, RunResult
from draftrec.evaluate.compare.limits import METRICS, Verdict
from draftrec.report import plots
from draftrec.report.blocks import Figure, figure
from draftrec.report.plots import Bar, Labels

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
