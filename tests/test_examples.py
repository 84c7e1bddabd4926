"""The examples that tell a story run as they are, and their notebooks are those scripts."""

from __future__ import annotations

import re
import runpy
import shutil
import subprocess
from ast import literal_eval
from contextlib import chdir
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from draftrec.cli import main

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def commands_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands that a story waits for run in this process, where what each of them would load
    for seconds is loaded; other programs, and services, have their own."""
    elsewhere = subprocess.run

    def run(command: list[Any], *, cwd: Any = ".", **options: Any) -> Any:
        if command[1:3] != ["-m", "draftrec"]:
            return elsewhere(command, cwd=cwd, **options)
        with chdir(cwd):
            return subprocess.CompletedProcess(command, main.run(command[3:]))

    monkeypatch.setattr(subprocess, "run", run)


def story(name: str, folder: Path) -> Path:
    """Run it in a copy; the folder that it wrote to."""
    copy = Path(shutil.copytree(EXAMPLES / name, folder / name, ignore=lambda *_: ["work"]))
    with chdir(copy):
        runpy.run_path(f"{name}.py")
    return copy / "work"


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
@pytest.mark.usefixtures("commands_here")
def test_movielens_ends_in_auc_and_titles(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work, said = story("movielens", tmp_path), capsys.readouterr().out
    lists = pq.read_table(work / "top5.parquet").to_pylist()
    assert len(lists) > 100
    assert all(len(set(row["items"])) == 5 for row in lists)
    assert "['The " in said.splitlines()[-1]
    without, knowing = re.findall(r"^(none|moe) +AUC (0\.\d{3}) ", said, re.M)
    assert (without[0], knowing[0]) == ("none", "moe")
    assert float(without[1]) > 0.55


@pytest.mark.slow
@pytest.mark.usefixtures("commands_here")
def test_own_catalogue_ends_in_an_answer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work, said = story("own_catalogue", tmp_path), capsys.readouterr().out
    answer = [literal_eval(line) for line in said.splitlines()[-5:]]
    known = set(pq.read_table(work / "sids.parquet")["item"].to_pylist())
    assert {row["item"] for row in answer} <= known
    assert len({row["item"] for row in answer}) == 5
    assert [row["score"] for row in answer] == sorted((r["score"] for r in answer), reverse=True)
