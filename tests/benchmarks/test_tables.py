"""docs/benchmarks.md says what the committed results say, and nothing else."""

from __future__ import annotations

import tables


def test_the_page_is_made_from_the_committed_results() -> None:
    assert tables.PAGE.read_text() == tables.render(), "run python benchmarks/tables.py"


def test_a_page_without_results_has_no_tables(tmp_path) -> None:
    assert "|" not in tables.render(tmp_path)
