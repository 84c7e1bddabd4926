"""The demo's folder: report, summary, prompts and pool."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from draftrec.demo.story import Story
from draftrec.demo.summary import make_report, to_json
from draftrec.errors import DraftrecError
from draftrec.evaluate import report as reports
from draftrec.evaluate.report import Report


def prepare(folder: Path) -> None:
    """Make the folder and see that it can be written to, before the work rather than after it.

    Raises DraftrecError if it cannot.
    """
    trial = folder / ".draftrec-trial"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        trial.write_bytes(b"")
        trial.unlink()
    except OSError as error:
        raise unwritable(folder, error) from error


def write(story: Story, folder: Path) -> tuple[Report, dict[str, Any]]:
    """Write all files; returns the report and the content of `summary.json`."""
    report = make_report(story, folder)
    summary = to_json(story, report)
    try:
        replace(folder / "report.html", reports.render(report))
        replace(folder / "readers.jsonl", _readers(story))
        story.pool.save(folder / "pool")
        replace(folder / "summary.json", json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
    except OSError as error:
        raise unwritable(folder, error) from error
    return report, summary


def _readers(story: Story) -> str:
    """The held-out prompts as records that `draftrec generate` reads."""
    rows = (
        {"entity_id": request.entity_id, "prompt": prompt, "group": request.group}
        for request, prompt in zip(story.requests, story.prompts, strict=True)
    )
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def replace(path: Path, text: str) -> None:
    """Write under a temporary name and rename, so that no half-written file is ever read."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def unwritable(folder: Path, error: OSError) -> DraftrecError:
    """The error for a folder that cannot be written to."""
    reason = (error.strerror or str(error)).lower()
    return DraftrecError(
        f"The demo's folder {folder} cannot be written: {reason}; name another one with --output."
    )
