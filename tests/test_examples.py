"""The examples that tell a story run as they are, and their notebooks are those scripts."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from ast import literal_eval
from pathlib import Path

import pyarrow.parquet as pq
import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


def story(name: str, folder: Path) -> tuple[Path, str]:
    """Run it in a copy; the folder that it wrote to, and what it printed."""
    copy = Path(shutil.copytree(EXAMPLES / name, folder / name, ignore=lambda *_: ["work"]))
    done = subprocess.run(
        [sys.executable, f"{name}.py"], cwd=copy, capture_output=True, text=True, timeout=550
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return copy / "work", done.stdout


@pytest.mark.parametrize("name", ["movielens", "own_catalogue"])
def test_notebook_is_the_script(name: str) -> None:
    jupytext = pytest.importorskip("jupytext")
    script, notebook = (
        jupytext.read(EXAMPLES / name / f"{name}.{kind}") for kind in ("py", "ipynb")
    )
    cells = [[(cell.cell_type, cell.source) for cell in one.cells] for one in (script, notebook)]
    assert cells[0] == cells[1], (
        f"jupytext --set-kernel python3 --to notebook examples/{name}/{name}.py"
    )
    assert not any(cell.get("outputs") for cell in notebook.cells)


@pytest.mark.slow
def test_movielens_ends_in_auc_and_titles(tmp_path: Path) -> None:
    work, said = story("movielens", tmp_path)
    lists = pq.read_table(work / "top5.parquet").to_pylist()
    assert len(lists) > 100
    assert all(len(set(row["items"])) == 5 for row in lists)
    assert "['The " in said.splitlines()[-1]
    without, knowing = re.findall(r"^(none|moe) +AUC (0\.\d{3}) ", said, re.M)
    assert (without[0], knowing[0]) == ("none", "moe")
    assert float(without[1]) > 0.55


@pytest.mark.slow
def test_own_catalogue_ends_in_an_answer(tmp_path: Path) -> None:
    work, said = story("own_catalogue", tmp_path)
    answer = [literal_eval(line) for line in said.splitlines()[-5:]]
    known = set(pq.read_table(work / "sids.parquet")["item"].to_pylist())
    assert {row["item"] for row in answer} <= known
    assert len({row["item"] for row in answer}) == 5
    assert [row["score"] for row in answer] == sorted((r["score"] for r in answer), reverse=True)
