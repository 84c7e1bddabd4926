"""A self-contained HTML report about several ways ("arms") of writing the same texts.

Plain dataclasses in, one HTML string out: no script, no font, no image from elsewhere. Nothing here
knows how the numbers came about.
"""

from __future__ import annotations

import difflib
import os
import platform
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from draftrec.core import SOURCES
from draftrec.evaluate import plots
from draftrec.evaluate.plots import Bar, Labels, Series, Stack

_SOURCE_NAMES = {
    "prompt": "own prompt and text",
    "previous": "previous text",
    "group": "group pool",
    "all": "pool of all",
    "grammar": "forced by the grammar",
}


@dataclass(frozen=True, slots=True)
class Spread:
    """A median and the lowest and highest of the repeats it comes from."""

    median: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Arm:
    """One way of writing the texts and what it cost. `tone` is its colour in plots.

    `speedup` is the baseline's seconds over this arm's, repeat by repeat; None for the baseline.
    `identical` of `texts` texts equal the baseline's. `accepted_per_call[i]` counts verifications
    of a draft that kept `i` draft tokens; `accepted_by_source` follows `core.SOURCES`.
    """

    name: str
    label: str
    texts: int
    identical: int
    new_tokens: int
    tokens_per_call: float
    mean_accepted_tokens: float
    acceptance_rate: float
    relaxed_share: float
    seconds: Spread
    tokens_per_second: float
    draft_share: float
    speedup: Spread | None = None
    accepted_per_call: tuple[int, ...] = ()
    accepted_by_source: tuple[int, ...] = ()
    tone: int = 1


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of text; `changed` where it differs from the baseline's."""

    text: str
    changed: bool = False


@dataclass(frozen=True, slots=True)
class Version:
    """One arm's version of a text, and a few words about it."""

    label: str
    pieces: tuple[Piece, ...]
    note: str = ""
    tone: int = 1


@dataclass(frozen=True, slots=True)
class Example:
    """The same text by several arms, the baseline first."""

    title: str
    prompt: str
    versions: tuple[Version, ...]


@dataclass(frozen=True, slots=True)
class Curve:
    """A measured curve: milliseconds against rows, or speedup against pool size."""

    label: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    tone: int = 1


@dataclass(frozen=True, slots=True)
class Report:
    """All that the page shows. Empty parts are left out of it.

    `findings` are plain sentences, most important first; `next_steps` pairs a command with what it
    is for; `facts` tables of settings and machine by heading.
    """

    title: str
    lead: str
    findings: tuple[str, ...]
    arms: tuple[Arm, ...]
    examples: tuple[Example, ...] = ()
    cost: Curve | None = None
    pool_growth: tuple[Curve, ...] = ()
    pool_growth_note: str = ""
    next_steps: tuple[tuple[str, str], ...] = ()
    facts: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


def render(report: Report) -> str:
    """The page as one HTML string."""
    return render_page("draftrec.evaluate", "report.html.j2", report, draw(report))


def render_page(
    package: str, template: str, report: Any, plots: Seq[tuple[str, str, Markup]]
) -> str:
    """A page by a template of `package` that extends `page.html.j2`, which says what of `report` it
    shows; `plots` as `draw` returns them."""
    loaders = [jinja2.PackageLoader(name, ".") for name in (package, "draftrec.evaluate")]
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader(loaders),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = lambda share: f"{100 * share:.1f} %"
    style = (Path(__file__).parent / "report.css").read_text(encoding="utf-8")
    values = {"report": report, "plots": plots, "style": Markup(style)}
    return environment.get_template(template).render(values)


def draw(report: Report) -> list[tuple[str, str, Markup]]:
    """Plots that the report's numbers allow: heading, caption, SVG."""
    makers: list[Callable[[Report], tuple[str, str, Markup] | None]] = [
        _speedup, _tokens_per_call, _accepted, _sources, _cost, _pool_growth
    ]  # fmt: skip
    return [plot for make in makers if (plot := make(report))]


def differing(
    base: Seq[int], other: Seq[int], decode: Callable[[Seq[int]], str]
) -> tuple[Piece, ...]:
    """`other` as pieces, marked where its tokens differ from `base`'s."""
    pieces: list[Piece] = []
    matcher = difflib.SequenceMatcher(None, list(base), list(other), autojunk=False)
    for kind, _, _, start, end in matcher.get_opcodes():
        if start == end:
            continue
        # Tokens are cut out of the decoded whole: alone, some decode without their leading space.
        text = decode(other[:end])[len(decode(other[:start])) :]
        if kind == "equal":
            pieces.append(Piece(text))
        elif text:
            pieces += _marked(text)
    return tuple(pieces)


def _marked(text: str) -> list[Piece]:
    """A changed stretch; the white space around it stays unmarked."""
    body = text.strip()
    before, _, after = text.partition(body) if body else (text, "", "")
    found = (Piece(before), Piece(body, changed=True), Piece(after))
    return [piece for piece in found if piece.text]


def machine_facts() -> dict[str, str]:
    """What this machine is, as far as Python can tell."""
    facts = {
        "processor": _processor(),
        "cores": str(_cores()),
        "system": f"{platform.system()} {platform.machine()}",
        "Python": platform.python_version(),
    }
    for name in ("draftrec", "torch", "transformers"):
        try:
            facts[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return facts


def _speedup(report: Report) -> tuple[str, str, Markup] | None:
    arms = [a for a in report.arms if a.speedup]
    if not arms:
        return None
    data = [
        Bar(a.label, s.median, s.low, s.high, a.tone, f"{s.median:.2f}x")
        for a in arms
        if (s := a.speedup)
    ]
    words = ", ".join(f"{b.label} {b.note}" for b in data)
    labels = Labels("Walltime speedup", f"Median speedup over the baseline: {words}.", "times")
    caption = "Baseline seconds divided by ours, drafting included. Dashed: the baseline."
    if any(s.high > s.low for a in arms if (s := a.speedup)):
        caption += " Whiskers: lowest and highest repeat."
    return "Walltime speedup", caption, plots.bars(data, labels, reference=1.0)


def _tokens_per_call(report: Report) -> tuple[str, str, Markup] | None:
    data = [
        Bar(a.label, a.tokens_per_call, tone=a.tone, note=f"{a.tokens_per_call:.2f}")
        for a in report.arms
    ]
    words = ", ".join(f"{b.label} {b.note}" for b in data)
    labels = Labels("Tokens per call", f"New tokens per forward pass: {words}.", "tokens")
    return "Tokens per call", "New tokens per forward pass of the target.", plots.bars(data, labels)


def _accepted(report: Report) -> tuple[str, str, Markup] | None:
    arms = [a for a in report.arms if sum(a.accepted_per_call)]
    if not arms:
        return None
    data = [
        Series(a.label, range(len(a.accepted_per_call)), a.accepted_per_call, a.tone) for a in arms
    ]
    means = ", ".join(f"{a.label} {a.mean_accepted_tokens:.2f} on average" for a in arms)
    labels = Labels(
        "Accepted tokens per call",
        f"How many draft tokens a verification keeps: {means}.",
        "draft tokens kept",
        "share of verifications, %",
    )
    caption = "How many draft tokens one verification keeps, the bonus token not counted."
    return "Accepted tokens per call", caption, plots.histogram(data, labels)


def _sources(report: Report) -> tuple[str, str, Markup] | None:
    arms = [a for a in report.arms if sum(a.accepted_by_source)]
    if not arms:
        return None
    names = [_SOURCE_NAMES[source] for source in SOURCES]
    data = [Stack(a.label, list(zip(names, a.accepted_by_source, strict=True))) for a in arms]
    parts = {s.label: ", ".join(f"{n} {v:g}" for n, v in s.parts if v) for s in data}
    words = "; ".join(f"{label}: {counts}" for label, counts in parts.items())
    labels = Labels("Acceptance by source", f"Accepted draft tokens by source. {words}.")
    caption = "Where accepted draft tokens came from."
    return "Acceptance by source", caption, plots.shares(data, labels)


def _cost(report: Report) -> tuple[str, str, Markup] | None:
    if not (cost := report.cost) or len(cost.x) < 2:
        return None
    labels = Labels(
        "Cost of a forward pass",
        f"From {cost.y[0]:.2f} ms for {cost.x[0]:g} rows to {cost.y[-1]:.2f} for {cost.x[-1]:g}.",
        "rows in one forward pass",
        "milliseconds",
    )
    caption = "Measured at start-up. Where the curve is flat, checking a draft is nearly free."
    series = [Series(cost.label, cost.x, cost.y, cost.tone)]
    return "Cost of a forward pass", caption, plots.lines(series, labels, doubling=True)


def _pool_growth(report: Report) -> tuple[str, str, Markup] | None:
    curves = [c for c in report.pool_growth if len(c.x) > 1]
    if not curves:
        return None
    words = "; ".join(f"{c.label}: {c.y[0]:.2f} to {c.y[-1]:.2f}" for c in curves)
    labels = Labels(
        "Tokens per call against pool size",
        f"From {curves[0].x[0]:g} to {curves[0].x[-1]:g} texts. {words}.",
        "texts in the pool",
        "tokens per call",
    )
    series = [Series(c.label, c.x, c.y, c.tone) for c in curves]
    caption = f"The more texts were written before, the better. {report.pool_growth_note}"
    return "Tokens per call against pool size", caption, plots.lines(series, labels)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine() or "unknown")


def _cores() -> int:
    affinity = getattr(os, "sched_getaffinity", None)  # not on every system
    return len(affinity(0)) if affinity else os.cpu_count() or 1
