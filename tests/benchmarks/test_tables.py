"""docs/benchmarks.md and tables.md say what the committed results say, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import questions
import tables


def test_the_page_is_made_from_the_committed_results() -> None:
    assert tables.PAGE.read_text() == tables.render(), "run python benchmarks/tables.py"


def test_a_page_without_results_has_no_tables(tmp_path) -> None:
    assert "|" not in tables.render(tmp_path)


def test_the_questions_and_their_plots_are_made_from_the_committed_results() -> None:
    results = questions.read_results()
    assert questions.PAGE.read_text() == questions.render(results), "run benchmarks/questions.py"
    plots = {path.name: path.read_text() for path in questions.ASSETS.glob("*-*.svg")}
    assert plots == questions.drawings(results), "run python benchmarks/questions.py"


def test_no_two_sections_share_a_title() -> None:
    for page in (tables.PAGE, questions.PAGE):
        titles = re.findall(r"^#+ (.*)", page.read_text(), re.MULTILINE)
        assert len(titles) == len(set(titles))


@pytest.mark.parametrize(
    ("row", "names"),
    [
        ("A real instruct model", ("live-smollm2-item", "live-smollm2-user")),
        ("A small real model", ("knowledge-live",)),
        ("A plain step", ("steps", "steps-900")),
    ],
)
def test_readme_names_the_machine_of_its_times(row: str, names: tuple[str, ...]) -> None:
    """Times of an AMD EPYC are what it says they are unless a row names the other machine."""
    results = questions.read_results()
    lines = (Path(__file__).parents[2] / "README.md").read_text().splitlines()
    [told] = [line for line in lines if line.startswith(f"| **{row}")]
    measured_on = {"Intel" in results[name]["machine"]["cpu"] for name in names}
    assert measured_on == {"Intel Xeon" in told}
