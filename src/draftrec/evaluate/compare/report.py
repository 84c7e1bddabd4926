"""The files of a comparison: `compare.json`, `report.md`, `report.html`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from draftrec.data.files.places import Place
from draftrec.data.files.writers import replace_file
from draftrec.errors import DraftrecError
from draftrec.evaluate.compare.comparison import Comparison, RunResult
from draftrec.evaluate.compare.limits import METRICS, Measured, Verdict
from draftrec.evaluate.compare.plots import TONES, draw
from draftrec.evaluate.compare.words import (
    FigureRow,
    bound_words,
    cell_words,
    figure_rows,
    findings,
    found_words,
    outcome_of,
)
from draftrec.evaluate.report import render_page
from draftrec.evaluate.texts.quality import Estimate

_DIGITS = 6


@dataclass(frozen=True, slots=True)
class Tile:
    """A run in one look: limits kept of those that could be judged, and which were not."""

    name: str
    kept: int
    judged: int
    note: str
    tone: int


@dataclass(frozen=True, slots=True)
class LimitCell:
    """What one run made of a limit; empty where the limit is not its."""

    found: str = ""
    verdict: str = ""
    tone: int = 0


@dataclass(frozen=True, slots=True)
class LimitRow:
    """One limit and every run's cell."""

    limit: str
    cells: tuple[LimitCell, ...]


@dataclass(frozen=True, slots=True)
class ComparePage:
    """All that the page shows, in the terms of `evaluate.report.Report`. `runs`: their names, the
    baseline first; `clicks`: rows of words."""

    title: str
    lead: str
    findings: tuple[str, ...]
    tiles: tuple[Tile, ...]
    runs: tuple[str, ...]
    rows: tuple[FigureRow, ...]
    limits: tuple[LimitRow, ...]
    clicks: tuple[tuple[str, ...], ...]
    facts: Mapping[str, Mapping[str, str]]
    next_steps: tuple[tuple[str, str], ...] = ()


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
    replace_file(folder / "report.html", to_html(comparison).encode())


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


def to_html(comparison: Comparison) -> str:
    """The page as one string."""
    page = _page(comparison)
    return render_page(
        "draftrec.evaluate.compare", "compare_report.html.j2", page, draw(comparison)
    )


def to_markdown(comparison: Comparison) -> str:
    """The same as a Markdown file: findings, figures, limits, click models, method."""
    page = _page(comparison)
    lines = [f"# {page.title}", "", page.lead, ""]
    lines += [f"- {finding}" for finding in page.findings]
    rows = [
        (row.metric.label, *(f"{c.value}<br>{c.range}" if c.range else c.value for c in row.cells))
        for row in page.rows
    ]
    lines += ["", "## Figures", "", *_table(("", *page.runs), rows)]
    limits = [(row.limit, *(_limit_words(c) for c in row.cells)) for row in page.limits]
    lines += ["", "## Limits", "", *_table(("limit", *page.runs[1:]), limits)]
    if page.clicks:
        head = ("run", "model", "adaptor", "metric", "seeds", "value", "change", "95 % interval")
        lines += ["", "## Click models", "", *_table(head, page.clicks)]
    lines += ["", "## How it was measured", ""]
    lines += [f"- {name}: {value}" for name, value in comparison.facts.items()]
    meanings = (row.metric for row in page.rows)
    lines += ["", *(f"- *{m.label}*: {m.meaning}" for m in meanings)]
    return "\n".join(lines) + "\n"


def _page(comparison: Comparison) -> ComparePage:
    names = tuple(r.name for r in comparison.runs)
    gate = "All runs pass." if comparison.passed else "The gate is closed."
    return ComparePage(
        title=f"{', '.join(names)} against {comparison.baseline.name}",
        lead=f"{gate} {comparison.entities:,} entities, the same of every run, text by text.",
        findings=tuple(findings(comparison)),
        tiles=tuple(_tile(run) for run in comparison.runs),
        runs=(comparison.baseline.name, *names),
        rows=tuple(figure_rows(comparison)),
        limits=tuple(_limit_rows(comparison)),
        clicks=tuple(row for run in comparison.runs for row in _click_rows(run)),
        facts={"Method": comparison.facts, "What the figures mean": _meanings(comparison)},
    )


def _tile(run: RunResult) -> Tile:
    judged = [v for v in run.verdicts if v.outcome != "not measured"]
    stopped = [
        f"{outcome}: {', '.join(dict.fromkeys(labels))}"
        for outcome in ("broken", "undecided")
        if (labels := [METRICS[v.metric].label for v in judged if v.outcome == outcome])
    ]
    kept = sum(v.outcome == "kept" for v in judged)
    note = "; ".join(["limits kept", *stopped])
    return Tile(run.name, kept, len(judged), note, TONES[outcome_of(run.verdicts)])


def _limit_rows(comparison: Comparison) -> list[LimitRow]:
    """A row for every limit that some run was judged by, in the order of the limits file."""
    by_run = [{bound_words(v): v for v in run.verdicts} for run in comparison.runs]
    limits = dict.fromkeys(limit for verdicts in by_run for limit in verdicts)
    return [
        LimitRow(limit, tuple(_limit_cell(verdicts.get(limit)) for verdicts in by_run))
        for limit in limits
    ]


def _limit_cell(verdict: Verdict | None) -> LimitCell:
    if verdict is None:
        return LimitCell()
    words = f"{verdict.outcome}: {verdict.reason}" if verdict.reason else verdict.outcome
    return LimitCell(found_words(verdict), words, TONES[verdict.outcome])


def _limit_words(cell: LimitCell) -> str:
    return f"{cell.found}<br>{cell.verdict}" if cell.verdict else "-"


def _click_rows(run: RunResult) -> list[tuple[str, ...]]:
    return [
        (run.name, c.model, c.adaptor, METRICS[c.metric].label, str(c.seeds), *cell_words(c))
        for c in run.cells
    ]


def _meanings(comparison: Comparison) -> dict[str, str]:
    return {row.metric.label: row.metric.meaning for row in figure_rows(comparison)}


def _table(head: tuple[str, ...], rows: Any) -> list[str]:
    """A Markdown table; bars within cells would end them."""
    cells = [[str(c).replace("|", "\\|") for c in row] for row in (head, *rows)]
    written = [f"| {' | '.join(row)} |" for row in cells]
    rule = f"|{'---|' * len(head)}"
    return [written[0], rule, *written[1:]]


def _run_json(run: RunResult) -> dict[str, Any]:
    return {
        "outcome": outcome_of(run.verdicts),
        "must_equal_baseline": run.must_equal,
        "metrics": {name: _measured_json(m) for name, m in run.measured.items()},
        "limits": [{**asdict(v), "found": _estimate_json(v.found)} for v in run.verdicts],
        "faults": dict(run.faults),
        "click_models": [
            {
                "model": c.model,
                "adaptor": c.adaptor,
                "metric": c.metric,
                "seeds": c.seeds,
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
