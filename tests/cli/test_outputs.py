"""Two processes do not write one output: every command that writes holds what it names."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Any

import pytest

from draftrec.cli import main
from draftrec.cli.genrec import SUBCOMMANDS as GENREC
from tests.locks import held_elsewhere

# Options that name what a command writes.
_WRITTEN = ("output", "report", "save_pool", "save_histories")
# These see to it in the middle of their work: tests/conformance/test_jobs.py, or below.
_BY_THEMSELVES = {
    "demo": ("output",),
    "drafter fit": ("output",),
    "encode": ("output",),
    "generate": ("output",),
    "genrec align": ("output",),
    "genrec demo": ("output",),
    "genrec fit": ("output",),
    "genrec recommend": ("output",),
    "genrec teach": ("output",),
    "tune": ("output", "report"),
}
# The rest of a command line that gets as far as its lock; no file of it exists.
_LINES = {
    "compare": "a b --output {}",
    "ctr": "a --output {}",
    "demo": "--output {}",
    "genrec demo": "--output {}",
    "generate": "a --model m --output o --save-pool {}",
    "genrec tune": "a --target t --sids s --output {}",
    "group attribute": "a --column c --output {}",
    "group collaborative": "a --clusters 2 --output {}",
    "group random": "a --clusters 2 --output {}",
    "pool add": "{} a --tokenizer t",
    "pool build": "a --tokenizer t --output {}",
    "pool merge": "a b --output {}",
    "pool prune": "{} --max-bytes 9",
    "records": "a b --output {}",
    "sequences": "a --output {}",
    "sid fit": "a --output {}",
    "sid join": "a b --output {}",
    "sid vectors": "a --output {}",
    "table": "a --output {}",
    "tune": "a --tokenizer t --output {}",
}
_FOLDERS = ("compare", "ctr", "demo", "genrec demo")


def commands() -> Iterator[tuple[str, Callable[..., int]]]:
    for name, module in main._COMMANDS.items():
        found = import_module(module)
        if name == "genrec":
            yield from ((f"genrec {word}", it) for word, it in GENREC.items())
        elif hasattr(found, "SUBCOMMANDS"):
            yield from ((f"{name} {word}", it) for word, it in found.SUBCOMMANDS.items())
        else:
            yield name, getattr(found, name)


def test_no_command_forgets_what_it_writes() -> None:
    for name, function in commands():
        written = {n for n in _WRITTEN if n in signature(function).parameters}
        held: tuple[str, ...] = getattr(function, "outputs", ())
        assert written <= {*held, *_BY_THEMSELVES.get(name, ())}, name
        if held:
            assert name in _LINES


def refused(capsys: pytest.CaptureFixture[str], *words: Any) -> None:
    assert main.run([str(word) for word in words]) == 2
    assert "another process is writing to" in capsys.readouterr().err


@pytest.mark.parametrize("name", _LINES)
def test_a_second_process_is_refused(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out.parquet"
    with held_elsewhere(output, inside=name in _FOLDERS):
        before = sorted(tmp_path.rglob("*"))
        refused(capsys, *name.split(), *_LINES[name].format(output).split())
        assert sorted(tmp_path.rglob("*")) == before


def test_so_is_one_that_saves_histories_or_trials(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    histories = tmp_path / "histories.jsonl"
    with held_elsewhere(histories):
        refused(capsys, "ctr", "a", "--save-histories", histories)
    with held_elsewhere(tmp_path / "trials", inside=True):
        refused(capsys, "tune", "a", "--model", "m", "--report", tmp_path / "trials")


@pytest.mark.slow
def test_what_was_made_for_the_lock_alone_goes_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, line in _LINES.items():
        if "demo" not in name and name != "tune":
            output = tmp_path / "new" / "deep" / "out.parquet"
            assert main.run([*name.split(), *line.format(output).split()]) == 2
            assert not list(tmp_path.iterdir()), name
    capsys.readouterr()


_FILES = [name for name in _LINES if name not in (*_FOLDERS, "generate") and "pool" not in name]


@pytest.mark.parametrize("name", _FILES)
def test_a_file_to_write_is_no_folder_and_none_that_is_read(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It was found out when the work was done; and vectors, say, were replaced by ids of them."""
    assert main.run([*name.split(), *_LINES[name].format(tmp_path).split()]) == 2
    assert f"--output {tmp_path} is a folder; name a file in it" in capsys.readouterr().err
    output = tmp_path / "out.parquet"
    output.write_text("precious")
    line = _LINES[name].format(output).split()
    line[1 if name == "sid join" else 0] = str(output)
    assert main.run([*name.split(), *line]) == 2
    assert f"--output {output} is a file that is read" in capsys.readouterr().err
    assert output.read_text() == "precious"


def test_ids_may_be_joined_in_their_place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is lost: the new ones have all of the old."""
    sids = tmp_path / "sids.jsonl"
    sids.write_text('{"item": 1, "sid": ["<a_0>"]}\n')
    assert main.run(["sid", "join", str(sids), "none.parquet", "--output", str(sids)]) == 2
    assert "none.parquet" in capsys.readouterr().err
