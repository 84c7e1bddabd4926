"""The demo's folder: one report and one summary of the stories told, and files to go on with."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from draftrec.data.files.writers import replace_file
from draftrec.demo import items, items_report, texts, texts_report
from draftrec.demo.shop import sequences
from draftrec.errors import DraftrecError
from draftrec.report.blocks import Report, joined
from draftrec.report.show import render


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
        raise _unwritable(folder, error) from error


def report_of(folder: Path, written: texts.Story | None, found: items.Story | None) -> Report:
    """One story alone, or both as parts of one report, whose files lie in `folder`."""
    parts: list[Report] = []
    if written:
        parts.append(texts_report.make_report(written, folder))
    if found:
        parts.append(items_report.make_report(found, folder))
    if len(parts) == 1:
        return parts[0]
    return joined(
        "Two jobs, drafted and verified",
        "A language model writes what a recommender should know of a reader, and it names the "
        "books that come next. Both are slow token by token; both are drafted cheaply and checked "
        "in few passes of the model, which has the last word.",
        parts,
    )


def write(
    folder: Path, written: texts.Story | None = None, found: items.Story | None = None
) -> tuple[Report, dict[str, Any]]:
    """Write all files; returns the report and the content of `summary.json`: that of the texts,
    with the items' under `recommendation`, or that of the items alone.

    Raises DraftrecError if the folder cannot be written to.
    """
    report = report_of(folder, written, found)
    summary = texts_report.to_json(written) if written else {}
    if found:
        mine = items_report.to_json(found)
        summary = {**summary, "recommendation": mine} if written else mine
    try:
        replace_file(folder / "report.html", render(report).encode())
        if written:
            replace_file(folder / "readers.jsonl", _readers(written).encode())
            written.pool.save(folder / "pool")
        if found:
            table = sequences(found.shipped.readings)
            replace_file(folder / "sequences.jsonl", table.encode())
            shutil.copyfile(found.plan.shipped / "sids.parquet", folder / "sids.parquet")
        content = json.dumps(summary, indent=2, ensure_ascii=False) + "\n"
        replace_file(folder / "summary.json", content.encode())
    except OSError as error:
        raise _unwritable(folder, error) from error
    return report, summary


def _readers(story: texts.Story) -> str:
    """The held-out prompts as records that `draftrec generate` reads."""
    rows = (
        {"entity_id": request.entity_id, "prompt": prompt, "group": request.group}
        for request, prompt in zip(story.requests, story.prompts, strict=True)
    )
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _unwritable(folder: Path, error: OSError) -> DraftrecError:
    reason = (error.strerror or str(error)).lower()
    return DraftrecError(
        f"The demo's folder {folder} cannot be written: {reason}; name another one with --output."
    )
