"""The page about the demo of recommendation: what it shows, as values, and its plots."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from markupsafe import Markup

from draftrec.evaluate import plots
from draftrec.evaluate.beam_speed import BeamFigures, Spread
from draftrec.evaluate.plots import Bar, Labels, Series, Stack
from draftrec.evaluate.report import Curve, render_page


@dataclass(frozen=True, slots=True)
class BeamArm:
    """One way of recommending. `figures` are of all users, `timed` of those against the clock,
    `speedup` over plain search (None for itself). `identical` of `users` lists are those of
    `same_as`; None where they are not meant to be. `calls[i]` counts users with i + 1 target calls.
    """

    name: str
    label: str
    drafts: str
    users: int
    figures: BeamFigures
    timed: BeamFigures
    speedup: Spread | None
    identical: int | None
    same_as: str
    calls: tuple[int, ...]
    recall: float
    ndcg: float
    tone: int


@dataclass(frozen=True, slots=True)
class Quality:
    """A recommender's Recall@K and NDCG@K on the users of the demo."""

    label: str
    recall: float
    ndcg: float
    tone: int = 0


@dataclass(frozen=True, slots=True)
class Book:
    """A title in a list; `hit`: the user did read it next."""

    title: str
    hit: bool = False


@dataclass(frozen=True, slots=True)
class Reader:
    """What a user read, oldest first, what came next, and lists by label, with their tones."""

    title: str
    before: tuple[str, ...]
    following: str
    lists: tuple[tuple[str, tuple[Book, ...], int], ...]


@dataclass(frozen=True, slots=True)
class GenrecReport:
    """All that the page shows, in the terms of `evaluate.report.Report`. `k`: items per list;
    `alone`: users that were timed one at a time; `rounds` of them."""

    title: str
    lead: str
    k: int
    alone: int
    rounds: int
    findings: tuple[str, ...]
    arms: tuple[BeamArm, ...]
    quality: tuple[Quality, ...]
    readers: tuple[Reader, ...]
    crowds: tuple[Curve, ...] = ()
    costs: tuple[Curve, ...] = ()
    next_steps: tuple[tuple[str, str], ...] = ()
    facts: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    @property
    def tiles(self) -> list[BeamArm]:
        """The strict ways that draft."""
        return [arm for arm in self.arms if arm.speedup and arm.same_as == "plain search"]


def render(report: GenrecReport) -> str:
    """The page as one HTML string: no script, no font, no image from elsewhere."""
    drawn = [_speedup(report), _calls(report), _crowds(report), _costs(report), _quality(report)]
    return render_page("draftrec.demo", "genrec_report.html.j2", report, drawn)


def _speedup(report: GenrecReport) -> tuple[str, str, Markup]:
    data = [
        Bar(arm.label, s.median, s.low, s.high, arm.tone, f"{s.median:.2f}x")
        for arm in report.arms
        if (s := arm.speedup)
    ]
    words = ", ".join(f"{bar.label} {bar.note}" for bar in data)
    labels = Labels("Walltime speedup", f"Median speedup over plain search: {words}.", "times")
    caption = (
        "One user at a time: plain search's seconds divided by ours, drafting included. Dashed: "
        "plain search. Whiskers: lowest and highest round."
    )
    return "Walltime speedup", caption, plots.bars(data, labels, reference=1.0)


def _calls(report: GenrecReport) -> tuple[str, str, Markup]:
    most = max(len(arm.calls) for arm in report.arms)
    names = ["1 call", *(f"{i} calls" for i in range(2, most + 1))]
    data = [
        Stack(arm.label, list(zip(names, [*arm.calls, *[0] * most], strict=False)))
        for arm in report.arms
    ]
    means = ", ".join(f"{arm.label} {arm.figures.target_calls:.2f}" for arm in report.arms)
    labels = Labels("Target calls per user", f"Means: {means}.", "share of users")
    caption = "How many forward passes of the target a user takes. Plain search takes one a level."
    return "Target calls per user", caption, plots.shares(data, labels, first_tone=1)


def _crowds(report: GenrecReport) -> tuple[str, str, Markup]:
    words = "; ".join(f"{c.label}: {c.y[0]:.2f} to {c.y[-1]:.2f}" for c in report.crowds)
    labels = Labels(
        "Speedup against users at once", f"{words}.", "users at once", "times as fast as plain"
    )
    caption = (
        "Drafts add rows to a pass. With one user they are nearly free; with many, a CPU is busy "
        "anyway, and below 1 drafting costs more than it saves."
    )
    series = [Series(c.label, c.x, c.y, c.tone) for c in report.crowds]
    drawn = plots.lines(series, labels, doubling=True)
    return "Speedup against users at once", caption, drawn


def _costs(report: GenrecReport) -> tuple[str, str, Markup]:
    words = "; ".join(f"{c.label}: {c.y[0]:.2f} to {c.y[-1]:.2f} ms" for c in report.costs)
    labels = Labels("Cost of a forward pass", f"{words}.", "rows in one pass", "milliseconds")
    caption = "Where the curve is flat, scoring drafted beams as well is nearly free."
    series = [Series(c.label, c.x, c.y, c.tone) for c in report.costs]
    return "Cost of a forward pass", caption, plots.lines(series, labels, doubling=True)


def _quality(report: GenrecReport) -> tuple[str, str, Markup]:
    k = report.k
    data = [Bar(q.label, q.recall, tone=q.tone, note=f"{q.recall:.3f}") for q in report.quality]
    words = ", ".join(f"{bar.label} {bar.note}" for bar in data)
    labels = Labels(f"Recall@{k}", f"{words}.", "share of users")
    caption = f"How often the book that was read next is among the {k} recommended ones."
    return f"Recall@{k}", caption, plots.bars(data, labels)
