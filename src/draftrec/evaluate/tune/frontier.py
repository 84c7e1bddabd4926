"""A study as a report: every setting's speed against what its texts lose, and the frontier."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from draftrec.evaluate.tune.choice import (
    LossLimits,
    Row,
    fastest_strict,
    frontier,
    knobs_label,
    label_of,
    unrest,
)
from draftrec.report import blocks, plots
from draftrec.report.blocks import Card, Cards, Cell, Figure, Report, Section, Table, figure, row
from draftrec.report.plots import Labels, Series

_TONES = {"strict": 0, "relaxed": 1, "typical": 3, "entropy": 2}
#: Heading -> how a trial's figure is written.
_COLUMNS: dict[str, Callable[[Row], str]] = {
    "by processor time": lambda r: f"{r['cpu_speedup']:.2f}x",
    "tokens per call": lambda r: f"{r['tokens_per_call']:.2f}",
    "relaxed tokens": lambda r: _percent(r["relaxed_share"]),
    "loss per token, nats": lambda r: f"{r['loss_per_token']:.4f}",
    "similarity kept": lambda r: f"{r['similarity_kept']:.3f}",
    "exact match": lambda r: _percent(r["exact_match"]),
    "length": lambda r: _percent(r["length_drift"], "+"),
    "distinct bigrams": lambda r: _percent(r["distinct_2_drift"], "+"),
}
_SPEED = "times plain decoding"
#: Columns that a terminal has room for.
_KEPT = (_SPEED, "tokens per call", "loss per token, nats", "similarity kept", "exact match")


@dataclass(frozen=True, slots=True)
class Study:
    """A finished study: the trials, the one that was chosen, and why it was allowed to be."""

    rows: tuple[Row, ...]
    chosen: Row
    limits: LossLimits
    facts: Mapping[str, Mapping[str, str]]
    settings_file: str | None = None


def report_of(study: Study, *, short: bool = False) -> Report:
    """What page and terminal show; `short` tables the frontier and the chosen setting alone."""
    best = frontier(study.rows, _loss)
    listed = [r for r in study.rows if not short or r in best or r == study.chosen]
    steps: tuple[tuple[str, str], ...] = ()
    if study.settings_file:
        command = f"draftrec generate INPUT --model MODEL --config {study.settings_file}"
        steps = ((command, "Write texts with the chosen settings"),)
    return Report(
        "Speed against quality",
        "Every setting wrote the same texts next to plain decoding, in turns. Up is faster, left "
        "is nearer to the model's own text.",
        (
            Section("", (_tile(study.chosen),), kept=0),
            blocks.findings(_findings(study, len(best))),
            blocks.gallery((_loss_plot(study), _distance_plot(study))),
            Section(
                "The frontier" if short else "All settings",
                (_table(study, listed, best),),
                "From the fastest on. In bold: no other setting is both faster and loses less. "
                "Changes of length and of distinct bigrams are relative to the model's own texts.",
            ),
            blocks.next_steps(steps),
            blocks.facts(study.facts),
        ),
    )


def _tile(chosen: Row) -> Cards:
    texts = f"{_percent(chosen['exact_match'])} of the texts as the model's own"
    note = f"{knobs_label(chosen)}\nas fast as plain decoding, {texts}"
    name = f"{chosen['rule']}, budget {chosen['budget']}"
    return Cards((Card(name, _TONES[chosen["rule"]], note, f"{chosen['speedup']:.2f}", "x"),))


def _table(study: Study, rows: Seq[Row], best: Seq[Row]) -> Table:
    def line(one: Row) -> tuple[Cell, ...]:
        name = f"{one['rule']}, budget {one['budget']}{' (chosen)' * (one == study.chosen)}"
        outside = "" if study.limits.keeps(one) else "outside the limits"
        knobs = "; ".join(filter(None, (knobs_label(one), outside)))
        spread = f"{one['speedup_low']:.2f} to {one['speedup_high']:.2f}"
        speed = Cell(f"{one['speedup']:.2f}x", spread, strong=one in best)
        rest = (show(one) for show in _COLUMNS.values())
        return row(Cell(name, knobs, tone=_TONES[one["rule"]]), speed, *rest)

    by_speed = sorted(rows, key=lambda r: -r["speedup"])
    return Table(("", _SPEED, *_COLUMNS), tuple(map(line, by_speed)), kept=_KEPT)


def _percent(share: float | None, sign: str = "") -> str:
    return "-" if share is None else f"{100 * share:{sign}.1f} %"


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
    if known := study.rows[0].get("in_pool"):  # studies of earlier versions did not look
        found.append(
            f"{known:.0%} of the model's own texts are in the pool token for token, as those of "
            "records that were written before are; drafts for new records will bring less."
        )
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


def _loss_plot(study: Study) -> Figure:
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
    return figure(labels, caption, svg)


def _distance_plot(study: Study) -> Figure:
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
    return figure(labels, caption, svg)


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
