"""`draftrec table`: text files of any layout become the CSV that was meant."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from draftrec.cli.main import run
from draftrec.data.tables.readers import open_records

NAMES = ["user_id", "item_id", "title"]
ROWS = [["1", "007", "Caf\u00e9, The (1999)"], ["2", "b", '"Ran" again'], ["2", "", "A|B; c"]]


class Command:
    """Runs the command and reads what it wrote."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self._capsys = folder, capsys
        self.output = folder / "out.csv"

    def __call__(self, path: Path, *words: Any) -> int:
        line = ["table", path, "--output", self.output, "--json", *words]
        code = run([str(word) for word in line])
        self.out, self.err = self._capsys.readouterr()
        return code

    def rows(self) -> list[list[str]]:
        with self.output.open(newline="", encoding="utf-8") as file:
            return list(csv.reader(file))


@pytest.fixture
def command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(tmp_path, capsys)


def laid_out(separator: str, *rows: list[str]) -> str:
    return "".join(separator.join(row) + "\n" for row in rows)


@pytest.mark.parametrize("separator", ["::", "\t", "~", "||"])
@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "utf-16"])
@pytest.mark.parametrize("header", [True, False])
@pytest.mark.parametrize("name", ["movies.dat", "u.item", "x.txt.gz"])
def test_cells_stay_as_they_are(
    command: Command, separator: str, encoding: str, name: str, *, header: bool
) -> None:
    text = laid_out(separator, *([NAMES] if header else []), *ROWS).encode(encoding)
    path = command.folder / name
    path.write_bytes(gzip.compress(text) if name.endswith("gz") else text)
    words = [] if header else ["--columns", ",".join(NAMES)]
    words += ["--separator", separator.replace("\t", "\\t")] if separator in ("~", "||") else []
    assert command(path, "--encoding", encoding, *words) == 0, command.err
    assert command.rows() == [NAMES, *ROWS]
    assert json.loads(command.out) == {
        "rows": 3, "columns": NAMES, "output": str(command.output),
    }  # fmt: skip
    assert "3 rows are in" in command.err
    assert "item_id '007'" in command.err
    assert [row.values["item_id"] for row in open_records(command.output).rows()] == [
        "007", "b", None,
    ]  # fmt: skip


def test_a_folder_of_parts_without_headers_is_one_table(command: Command) -> None:
    for i, row in enumerate(ROWS):
        (command.folder / f"part-0000{i}.csv").write_text(f'{row[0]},{i},"a ""b"" {i}"\n')
    assert command(command.folder, "--columns", ",".join(NAMES)) == 0, command.err
    assert command.rows() == [NAMES, *([r[0], str(i), f'a "b" {i}'] for i, r in enumerate(ROWS))]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--columns", "user_id,item_id"), "line 1 has 3 cells where there are 2 columns"),
        (("--columns", "a,b,a"), "--columns must be names, each another"),
        (("--columns", "a,,b"), "--columns must be names, each another"),
        (("--encoding", "latin-99"), "--encoding latin-99 is none that is known"),
        (("--encoding", "ascii"), "is not ASCII text"),
        (("--encoding", "utf-16"), "is not UTF-16"),
        (("--separator", '"'), "--separator must be one or several marks"),
    ],
)
def test_what_cannot_be_is_refused(command: Command, words: tuple[str, ...], said: str) -> None:
    path = command.folder / "x.txt"
    path.write_text(laid_out("::", *ROWS), encoding="utf-8")
    assert command(path, *words) == 2
    assert said in command.err
    assert command.err.count("\n") == 1
    assert not command.output.exists()


def test_what_is_there_stays(command: Command) -> None:
    path = command.folder / "x.txt"
    path.write_text(laid_out("::", NAMES, *ROWS), encoding="utf-8")
    command.output.write_text("mine")
    assert command(path) == 2
    assert "replace it with --overwrite" in command.err
    assert command(path, "--overwrite") == 0
    command.output = command.folder / "out.parquet"
    assert command(path) == 2
    assert "must end in .csv" in command.err
    path.write_text("")
    command.output = command.folder / "new.csv"
    assert command(path) == 2
    assert "x.txt is empty" in command.err
    for name in ("a", "b"):
        (command.folder / f"{name}.csv").write_text(f"id,{name}\n1,2\n")
    assert command(command.folder / "[ab].csv") == 2
    assert "b.csv has other columns than a.csv" in command.err
