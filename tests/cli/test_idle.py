"""Options without effect are said, once, and only where they were given."""

from __future__ import annotations

import dataclasses
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from draftrec.cli.knowledge.generate import GenerateOptions
from draftrec.cli.main import run
from draftrec.cli.options import Idle, idle_lines
from draftrec.jobs.knowledge import worker
from tests.fakes import FakeGenerator

TABLES: dict[str, tuple[str, str]] = {
    "drafter": ("DrafterFitOptions", "_IDLE"),
    "knowledge.ctr": ("CtrOptions", "_IDLE"),
    "knowledge.encode": ("EncodeOptions", "_IDLE"),
    "knowledge.generate": ("GenerateOptions", "_IDLE"),
    "genrec.recommend": ("RecommendOptions", "_IDLE"),
    "genrec.train align": ("AlignOptions", "_ALIGN_IDLE"),
    "genrec.train fit": ("FitOptions", "_FIT_IDLE"),
    "genrec.train teach": ("TeachOptions", "_TEACH_IDLE"),
    "knowledge.group": ("CollaborativeOptions", "_IDLE"),
    "knowledge.prompts": ("PromptsOptions", "PROMPTS_IDLE"),
    "knowledge.replay": ("ReplayOptions", "_IDLE"),
    "genrec.sid": ("FitOptions", "_IDLE"),
    "knowledge.tune": ("TuneOptions", "_IDLE"),
}


def told(name: str, **values: Any) -> list[str]:
    """What the command of that name would say of its options; those that it needs are made up."""
    module: Any = import_module(f"draftrec.cli.{name.split()[0]}")
    options, table = (getattr(module, it) for it in TABLES[name])
    needed = {
        it.name: "x" for it in dataclasses.fields(options) if it.default is dataclasses.MISSING
    }
    return idle_lines(options(**needed | values), table)


@pytest.mark.parametrize("name", TABLES)
def test_tables_name_options_that_exist(name: str) -> None:
    module: Any = import_module(f"draftrec.cli.{name.split()[0]}")
    options, table = (getattr(module, it) for it in TABLES[name])
    known = {it.name for it in dataclasses.fields(options)}
    for rule in table:
        assert set(rule.options.split()) <= known


@pytest.mark.parametrize("name", TABLES)
def test_defaults_are_not_complained_about(name: str) -> None:
    assert told(name) == []


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
    ("--accept", "relaxed", "--draft", "none"): "--accept has no effect with --draft none",
    ("--depth", "3", "--budget", "0"): "--depth has no effect with --budget 0",
}


@pytest.mark.slow
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


OTHERS: dict[tuple[str, str], tuple[dict[str, Any], str]] = {
    ("knowledge.ctr", "contrast"): (
        {"contrast": 0.3, "adaptor": ["mlp"]},
        "without --adaptor",
    ),
    ("knowledge.ctr", "fold"): ({"fold": 3, "split": "time"}, "with --split time"),
    ("knowledge.ctr", "sample_seed"): ({"sample_seed": 3}, "without --negatives"),
    ("knowledge.ctr", "item_vectors"): ({"item_vectors": "v"}, "without an --adaptor"),
    ("knowledge.ctr", "user_columns"): ({"user_columns": "a"}, "without --users"),
    ("knowledge.ctr", "epochs"): (
        {"epochs": 3, "save_histories": Path("h")},
        "with --save-histories",
    ),
    ("knowledge.encode", "history_column"): ({"history_column": "titles"}, "without --history"),
    ("knowledge.generate", "forced_bos_token"): (
        {"forced_bos_token": "3", "template": "kar"},
        "after prompts of more than one token",
    ),
    ("genrec.recommend", "draft_items"): ({"draft_items": 3}, "without a draft model"),
    ("genrec.recommend", "temperature"): (
        {"temperature": 0.5, "verify": "relaxed"},
        "with --verify relaxed",
    ),
    ("genrec.train fit", "patience"): ({"patience": 2, "with_valid": True}, "with --with-valid"),
    ("genrec.train teach", "seed"): ({"seed": 2}, "without --per-user above 1"),
    ("genrec.train align", "alpha"): (
        {"alpha": 0.5, "objective": "sft"},
        "with --objective sft",
    ),
    ("genrec.train align", "soft"): ({"soft": 0.5, "alpha": 1.0}, "with --alpha 1"),
    ("genrec.train align", "tau"): ({"tau": 0.5}, "without --objective atspeed-r"),
    ("genrec.train align", "sharpen"): (
        {"sharpen": 0.5, "objective": "wordkd"},
        "without --objective atspeed-s",
    ),
    ("genrec.train align", "patience"): ({"patience": 2, "held_out": 0}, "with --held-out 0"),
    ("knowledge.group", "factors"): ({"factors": 8, "model": Path("m")}, "with --model"),
    ("knowledge.prompts", "prompt_column"): (
        {"prompt_column": "p", "template": "kar"},
        "with --template",
    ),
    ("knowledge.replay", "groups"): (
        {"groups": Path("g"), "drafter": ["all", "trie"]},
        "without a drafter",
    ),
    ("knowledge.replay", "warm"): (
        {"warm": "w", "drafter": ["prompt"]},
        "with --drafter prompt alone",
    ),
    ("knowledge.replay", "depth"): ({"depth": 2, "budget": 0}, "with --budget 0"),
    ("knowledge.tune", "tokenizer"): ({"tokenizer": "t", "model": "m"}, "with --model"),
    ("knowledge.tune", "limit"): ({"limit": 3, "model": "m"}, "--sample says"),
    ("knowledge.tune", "overwrite"): ({"overwrite": True}, "without --model"),
}


@pytest.mark.parametrize("case", OTHERS, ids=" ".join)
def test_what_other_commands_cannot_use_is_said(case: tuple[str, str]) -> None:
    (values, why), (name, option) = OTHERS[case], case
    lines = [line for line in told(name, **values) if line.startswith(f"--{_dashed(option)} ")]
    assert len(lines) == 1
    assert why in lines[0]


def _dashed(option: str) -> str:
    return option.replace("_", "-")


USED: list[tuple[str, dict[str, Any]]] = [
    ("knowledge.generate", {}),
    (
        "knowledge.generate",
        {"accept": "relaxed", "top_k": 3, "max_loss": 1.0, "pool": Path("p"), "budget": 8},
    ),
    ("knowledge.generate", {"temperature": 0.5, "seed": 3, "top_p": 0.9, "forced_bos_token": "5"}),
    ("knowledge.generate", {"template": "kar", "side": "item", "limit": 3}),
    ("knowledge.generate", {"accept": "strict", "top_k": GenerateOptions(input="x").top_k}),
    (
        "knowledge.ctr",
        {"adaptor": ["contrastive"], "contrast": 0.3, "user_vectors": "v", "fold": 2},
    ),
    (
        "knowledge.ctr",
        {"save_histories": Path("h"), "items": "i", "title_column": "t", "history": 3},
    ),
    ("genrec.recommend", {"draft": "folder", "draft_items": 3}),
    ("genrec.recommend", {"verify": "sample", "temperature": 0.5, "seed": 3}),
    ("genrec.train align", {"objective": "tvdkd", "tau": 0.5, "alpha": 0.2, "soft": 0.1}),
    ("genrec.train teach", {"per_user": 3, "seed": 2}),
    (
        "knowledge.replay",
        {"drafter": ["prompt", "group"], "warm": "w", "groups": Path("g"), "order": True},
    ),
    ("knowledge.tune", {"model": "m", "template": "kar", "side": "item", "sample": 3}),
]


@pytest.mark.parametrize(("name", "values"), USED)
def test_what_has_an_effect_is_not_said(name: str, values: dict[str, Any]) -> None:
    assert told(name, **values) == []


def test_an_option_is_said_once() -> None:
    table = (Idle("pool", lambda _: True, "here"), Idle("pool", lambda _: True, "there"))
    lines = idle_lines(GenerateOptions(input="x", pool=Path("p")), table)
    assert lines == ["--pool has no effect here"]


def test_it_is_said_before_the_first_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said: list[str] = []

    def look(_: int) -> None:
        said.append(capsys.readouterr().err)

    monkeypatch.setattr(worker, "load_generator", lambda *_: FakeGenerator(on_request=look))
    (tmp_path / "in.jsonl").write_text('{"entity_id": 1, "prompt": "p"}\n')
    line = ["generate", str(tmp_path / "in.jsonl"), "--model", "fake", "--top-k", "3"]
    assert run([*line, "--output", str(tmp_path / "run")]) == 0
    assert "--top-k has no effect" in said[0]
    assert "--top-k" not in capsys.readouterr().err
    # A finished run is not begun again, and is told of it all the same.
    assert run([*line, "--output", str(tmp_path / "run")]) == 0
    assert "--top-k has no effect" in capsys.readouterr().err


def test_a_refusal_is_one_sentence_all_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["generate", str(tmp_path / "none.jsonl"), "--model", "fake", "--top-k", "3"]
    assert run([*line, "--output", str(tmp_path / "run"), "--template", "rlmrec"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert run(["replay", "--help"]) == 0  # what was held is not said by the next command
    assert "--top-k" not in capsys.readouterr().err
