"""Every option that names a file is served at an address, or refuses it before any work."""

from __future__ import annotations

import dataclasses
import pkgutil
import re
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, get_args

import pytest

import draftrec.cli
from draftrec.cli.knobs import HERE, READ, WRITTEN, hints_of, marked
from draftrec.cli.main import run

#: Options whose help speaks of files, but which are none, or NAME=DIR (`named_paths` reads those).
_NO_FILES = {"side", "engine", "runs", "ctr", "vectors"}
_SPEAKS_OF_FILES = re.compile(
    r"\bDIR\b|FILE|\bfolder\b|\bfile\b|Parquet|Hub id|\.jsonl|RECORDS|TEXTS"
)


def _options() -> Iterator[tuple[str, str, Any, str]]:
    """Class, option, type and help of every option of every command."""
    for module in pkgutil.walk_packages(draftrec.cli.__path__, "draftrec.cli."):
        for kind in vars(import_module(module.name)).values():
            if not (isinstance(kind, type) and dataclasses.is_dataclass(kind)):
                continue
            for name, hint in hints_of(kind).items():
                infos = [note for note in get_args(hint)[1:] if hasattr(note, "help")]
                if infos:
                    words = f"{infos[0].help} {infos[0].metavar or ''}"
                    yield f"{kind.__module__}.{kind.__name__}", name, hint, words


def test_every_option_that_names_a_file_says_where_it_may_be() -> None:
    found = list(_options())
    assert len(found) > 200
    unmarked = {
        (kind, name)
        for kind, name, hint, words in found
        if marked(hint) is None
        and _SPEAKS_OF_FILES.search(words)
        and "str" in str(hint)
        and name not in _NO_FILES
        and not name.endswith(("column", "columns"))
    }
    assert not unmarked


#: Commands with addresses, and what the refusal says.
REFUSED = {
    "generate in.jsonl --model m --output out --pool s3://b/pool": "--pool",
    "generate in.jsonl --model m --output out --save-pool s3://b/pool": "--save-pool",
    "generate in.jsonl --model s3://b/model --output out": "--model",
    "generate in.jsonl --model https://huggingface.co/Qwen/Qwen3-0.6B --output out": "Qwen/Qwen3-0",
    "generate in.jsonl --model m --output https://h/run": "--output",
    "generate memory://nowhere.jsonl --model m --output out": "does not exist",
    "generate s3:/b/in.jsonl --model m --output out": "s3://b/in.jsonl",
    "generate in.jsonl --model m --output s3:/b/out": "s3://b/out",
    "generate in.jsonl --model m --output nosuch://b/out": "nosuch://",
    "generate in.jsonl --model m --output out --config memory://none.yaml": "none.yaml",
    "generate in.jsonl --model m --output out --template memory://none.j2": "none.j2",
    "generate in.jsonl --model m --output out --groups memory://none.csv": "none.csv",
    "generate in.jsonl --model m --output out --json-schema memory://none.json": "none.json",
    "generate in.jsonl --model m --output out --grammar memory://none.lark": "none.lark",
    "encode in.jsonl --encoder s3://b/model --output v.parquet": "--encoder",
    "ctr memory://none.csv --output out": "none.csv",
    "ctr in.jsonl --output s3://b/out": "--output",
    "compare memory://none memory://other": "none",
    "compare a=s3:/b/run b=memory://other": "s3://b/run",
    "tune in.jsonl --tokenizer s3://b/model": "--tokenizer",
    "tune in.jsonl --model m --report s3://b/out": "--report",
    "replay in.jsonl --tokenizer m --pool s3://b/pool": "--pool",
    "pool info s3://b/pool": "s3://b/pool",
    "pool merge a s3://b/pool --output c": "s3://b/pool",
    "pool build in.jsonl --tokenizer m --output s3://b/pool": "--output",
    "group attribute in.jsonl --column prompt --output https://h/g.csv": "--output",
    "group attribute in.jsonl --column prompt --output g.csv --map memory://no.yaml": "no.yaml",
    "sid fit memory://none.parquet --output out.parquet": "none.parquet",
    "genrec fit in.jsonl --sids s.jsonl --output s3://b/model": "--output",
    "genrec fit in.jsonl --sids s.jsonl --from s3://b/model --output out": "--from",
    "genrec recommend in.jsonl --target s3://b/m --sids s.jsonl --output r.parquet": "--target",
    "genrec demo --output s3://b/out": "--output",
    "demo --output s3://b/out": "--output",
    "dashboard s3://b/run": "s3://b/run",
    "serve --config memory://none.yaml": "none.yaml",
}


@pytest.mark.slow
@pytest.mark.parametrize("line", REFUSED)
def test_an_address_that_is_not_served_is_refused_before_any_work(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for package in ("s3fs", "aiohttp"):  # to install one would not help
        monkeypatch.setitem(sys.modules, package, None)
    Path("in.jsonl").write_text('{"entity_id": "a", "prompt": "p"}\n')
    assert run(line.split()) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert REFUSED[line] in said
    assert [p.name for p in tmp_path.iterdir()] == ["in.jsonl"]


def test_models_lie_in_home_folders_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "in.jsonl").write_text('{"entity_id": 1, "prompt": "a"}\n')
    assert run(["prompts", "~/in.jsonl", "--model", "~/absent"]) == 2
    assert f"{tmp_path}/absent" in capsys.readouterr().err


def test_marks_are_those_that_the_help_promises() -> None:
    marks = {(kind.rpartition(".")[2], name): marked(hint) for kind, name, hint, _ in _options()}
    assert marks["GenerateOptions", "pool"] is HERE
    assert marks["GenerateOptions", "input"] is READ
    assert marks["AttributeOptions", "output"] is WRITTEN
    assert marks["GenerateOptions", "device"] is None
