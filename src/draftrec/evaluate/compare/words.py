"""A comparison in words: what terminal, Markdown and page have in common."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Seq

from draftrec.evaluate.compare.comparison import Comparison, RunResult
from draftrec.evaluate.compare.ctr import CellChange
from draftrec.evaluate.compare.limits import METRICS, Measured, Metric, Outcome, Verdict
from draftrec.evaluate.compare.quality import Estimate

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
