"""Options without effect are said, once, and only where they were given."""

from __future__ import annotations

import dataclasses
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from draftrec.cli import generate, genrec_recommend
from draftrec.cli.generate_options import GenerateOptions
from draftrec.cli.idle import Idle, say_idle
from draftrec.cli.main import run
from draftrec.cli.messages import messages
from draftrec.knowledge import worker
from tests.fakes import FakeGenerator

TABLES: dict[str, str] = {
    "ctr": "CtrOptions",
    "encode": "EncodeOptions",
    "generate": "GenerateOptions",
    "genrec_recommend": "RecommendOptions",
    "sid": "FitOptions",
    "tune": "TuneOptions",
}


@pytest.mark.parametrize("name", TABLES)
def test_tables_name_options_that_exist(name: str) -> None:
    module: Any = import_module(f"draftrec.cli.{name}")
    known = {it.name for it in dataclasses.fields(getattr(module, TABLES[name]))}
    for rule in module._IDLE:
        assert set(rule.options.split()) <= known


CASES = {
    ("--top-k", "3"): "--top-k has no effect without --accept relaxed",
    ("--min-prob", "0.5"): "--min-prob has no effect without --accept relaxed",
    ("--pool", "POOL", "--draft", "none"): "--pool has no effect with --draft none, the baseline",
    ("--budget", "8", "--draft", "none"): "--budget has no effect with --draft none",
    ("--window", "2", "--accept", "typical"): "--window has no effect without --accept entropy",
    ("--max-loss", "2"): "--max-loss has no effect with --accept strict",
    ("--seed", "3"): "--seed has no effect with --temperature 0",
    ("--top-p", "0.5"): "--top-p has no effect with --temperature 0",
    ("--side", "item"): "--side has no effect without one of the built-in templates",
}


@pytest.mark.parametrize("line", CASES, ids=" ".join)
def test_what_generate_cannot_use_is_said(
    line: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(worker, "load_generator", lambda *_: FakeGenerator())
    (tmp_path / "in.jsonl").write_text('{"entity_id": 1, "prompt": "p"}\n')
    given = [word.replace("POOL", str(tmp_path / "pool")) for word in line]
    base = ["generate", str(tmp_path / "in.jsonl"), "--model", "fake"]
    assert run([*base, "--output", str(tmp_path / "run"), *given, "--quiet"]) == 0
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert CASES[line] in said[0]


def test_what_has_an_effect_is_not_said(capsys: pytest.CaptureFixture[str]) -> None:
    used: list[dict[str, Any]] = [
        {},
        {"accept": "relaxed", "top_k": 3, "max_loss": 1.0, "pool": Path("p"), "budget": "8"},
        {"temperature": 0.5, "seed": 3, "top_p": 0.9},
        {"template": "kar", "side": "item", "limit": 3},
        {"accept": "strict", "top_k": GenerateOptions(input="x").top_k},
    ]
    with messages():
        for values in used:
            say_idle(GenerateOptions(input="x", **values), generate._IDLE)
    assert capsys.readouterr().err == ""


def test_an_option_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    table = (Idle("pool", lambda _: True, "here"), Idle("pool", lambda _: True, "there"))
    with messages():
        say_idle(GenerateOptions(input="x", pool=Path("p")), table)
    assert capsys.readouterr().err == "draftrec: --pool has no effect here\n"


def test_recommending_says_it_too(capsys: pytest.CaptureFixture[str]) -> None:
    made = genrec_recommend.RecommendOptions(
        sequences="s", target=Path("t"), sids="x", output=Path("o"), seed=2, draft="none",
        draft_items=3,
    )  # fmt: skip
    with messages():
        say_idle(made, genrec_recommend._IDLE)
    said = capsys.readouterr().err
    assert "--seed has no effect with --verify strict" in said
    assert "--draft-items has no effect with --draft none" in said
