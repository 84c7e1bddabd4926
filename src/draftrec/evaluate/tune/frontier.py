"""The page of a study: every setting's speed against what its texts lose, and the frontier."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from typing import Any

from markupsafe import Markup

from draftrec.evaluate import plots
from draftrec.evaluate.plots import Labels, Series
from draftrec.evaluate.report import render_page
from draftrec.evaluate.tune.choice import (
    Limits,
    Row,
    fastest_strict,
    frontier,
    knobs_label,
    label_of,
    unrest,
)

_TONES = {"strict": 0, "relaxed": 1, "typical": 3, "entropy": 2}


@dataclass(frozen=True, slots=True)
class Entry:
    """One trial as a line of the table: `best` on the frontier, `within` the limits."""

    knobs: str
    row: Row
    tone: int
    best: bool
    within: bool
    chosen: bool


@dataclass(frozen=True, slots=True)
class FrontierReport:
    """What the page shows; `entries` from the fastest on."""

    title: str
    lead: str
    findings: tuple[str, ...]
    entries: tuple[Entry, ...]
    next_steps: tuple[tuple[str, str], ...] = ()
    facts: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Study:
    """A finished study: the trials, the one that was chosen, and why it was allowed to be."""

    rows: tuple[Row, ...]
    chosen: Row
    limits: Limits
    facts: Mapping[str, Mapping[str, str]]
    settings_file: str | None = None


def render_frontier(study: Study) -> str:
    """The page as one HTML string that needs no other file."""
    drawn = [_loss_plot(study), _distance_plot(study)]
    return render_page("draftrec.evaluate.tune", "frontier.html.j2", _report(study), drawn)


def _report(study: Study) -> FrontierReport:
    best = frontier(study.rows, _loss)
    entries = [
        Entry(
            knobs_label(row),
            row,
            _TONES[row["rule"]],
            best=row in best,
            within=study.limits.keeps(row),
            chosen=row == study.chosen,
        )
        for row in sorted(study.rows, key=lambda r: -r["speedup"])
    ]
    steps: tuple[tuple[str, str], ...] = ()
    if study.settings_file:
        command = f"draftrec generate INPUT --model MODEL --config {study.settings_file}"
        steps = ((command, "Write texts with the chosen settings"),)
    return FrontierReport(
        "Speed against quality",
        "Every setting wrote the same texts next to plain decoding, in turns. Up is faster, left "
        "is nearer to the model's own text.",
        _findings(study, len(best)),
        tuple(entries),
        steps,
        study.facts,
    )


def _findings(study: Study, on_frontier: int) -> tuple[str, ...]:
    chosen, limits = study.chosen, study.limits
    strict = fastest_strict(study.rows)
    relaxed = [r for r in study.rows if r["rule"] != "strict"]
    within = sum(limits.keeps(r) for r in relaxed)
    found = [
        f"Chosen: {label_of(chosen)}: {chosen['speedup']:.2f} times plain decoding, "
        f"{chosen['exact_match']:.0%} of the texts as the model's own.",
        f"Strict, which changes no text, reaches {strict['speedup']:.2f} times plain decoding.",
        f"{within} of {len(relaxed)} other settings stay within the limits; {on_frontier} of all "
        "are beaten by none in both speed and loss.",
    ]
    if busy := unrest(study.rows):
        found.append(busy)
    if chosen["rule"] == "strict":
        found.append(
            "No other setting within the limits was faster than strict in all of its rounds and by "
            "processor time."
        )
    return tuple(found)


def _loss(row: Row) -> float:
    return row["loss_per_token"]


def _distance(row: Row) -> float:
    return 1.0 - row["similarity_kept"]


def _loss_plot(study: Study) -> tuple[str, str, Markup]:
    labels = Labels(
        "Speed against loss",
        _words(study, _loss, "nats lost per token"),
        "log-probability given up, nats per token",
        "times plain decoding",
    )
    caption = (
        "The line joins the settings that no other beats in both. Dashed: the limit. A nat is "
        "what the model itself thinks of a deviation: 0.7 halves the probability of a token."
    )
    svg = _cloud(study.rows, _loss, labels, study.limits.max_loss_per_token)
    return "Speed against loss", caption, svg


def _distance_plot(study: Study) -> tuple[str, str, Markup]:
    labels = Labels(
        "Speed against distance",
        _words(study, _distance, "distance"),
        "distance by TF-IDF",
        "times plain decoding",
    )
    caption = (
        "The same settings by how far their words are from the model's own text: 0 is that text, "
        "1 another entity's. A paraphrase counts as a change. Dashed: the limit."
    )
    svg = _cloud(study.rows, _distance, labels, 1.0 - study.limits.min_similarity)
    return "Speed against distance", caption, svg


def _cloud(rows: Seq[Row], cost: Callable[[Row], float], labels: Labels, limit: float) -> Markup:
    series = [
        Series(rule, [cost(r) for r in own], [r["speedup"] for r in own], tone)
        for rule, tone in _TONES.items()
        if (own := [r for r in rows if r["rule"] == rule])
    ]
    best = frontier(rows, cost)
    edge = Series("frontier", [cost(r) for r in best], [r["speedup"] for r in best], 5)
    return plots.scatter(series, labels, edge, limit)


def _words(study: Study, cost: Callable[[Row], float], unit: str) -> str:
    best = frontier(study.rows, cost)
    points = "; ".join(f"{label_of(r)}: {r['speedup']:.2f} at {cost(r):.3f} {unit}" for r in best)
    return f"{len(study.rows)} settings. The frontier: {points}."


def facts_of(summary: Mapping[str, Any], job: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Tables of what was measured, from a study's summary and the settings of its job."""
    measured = {"texts": str(summary["texts"]), "settings": str(len(summary["trials"]))}
    return {"Study": measured | {name: str(value) for name, value in job.items()}}
