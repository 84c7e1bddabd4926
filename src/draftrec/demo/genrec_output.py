"""The folder of the demo of recommendation: report, summary, sequences and semantic ids."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from draftrec.demo.genrec_report import GenrecReport, render
from draftrec.demo.genrec_story import GenrecStory
from draftrec.demo.genrec_summary import make_report, to_json
from draftrec.demo.output import replace, unwritable
from draftrec.demo.shop import sequences


def write(story: GenrecStory, folder: Path) -> tuple[GenrecReport, dict[str, Any]]:
    """Write all files; returns the report and the content of `summary.json`.

    Raises DraftrecError if the folder cannot be written to.
    """
    report = make_report(story, folder)
    summary = to_json(story, report)
    try:
        replace(folder / "report.html", render(report))
        replace(folder / "sequences.jsonl", sequences(story.shipped.readings))
        shutil.copyfile(story.plan.shipped / "sids.parquet", folder / "sids.parquet")
        replace(folder / "summary.json", json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
    except OSError as error:
        raise unwritable(folder, error) from error
    return report, summary
