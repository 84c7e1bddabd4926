"""`draftrec prompts`: what it prints is what `draftrec generate` sends."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from draftrec.cli.main import run
from draftrec.demo.shop import demo_model_path
from draftrec.models import loading

ROWS = [
    {"entity_id": 1, "title": "Heat", "year": 1995},
    {"entity_id": 2, "title": None},
    {"entity_id": 3, "title": "The Sea, the Sea"},
    {"entity_id": 4, "title": "long " * 4000},
]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    copy = shutil.copytree(demo_model_path(), tmp_path / "model")
    (copy / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m.role }} said: {{ m.content }}\n{% endfor %}Answer:"
    )
    return copy


@pytest.fixture
def records(tmp_path: Path) -> Path:
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def told(capsys: pytest.CaptureFixture[str]) -> tuple[str, dict[str, Any], str]:
    """Prompts, summary and messages."""
    out, err = capsys.readouterr()
    *lines, last = out.splitlines()
    return "\n".join(lines), json.loads(last), err


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["--no-chat"], ["--system", "Be brief."]], ids=str)
def test_generate_sends_what_was_shown(
    more: list[str],
    model: Path,
    records: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    line = [str(records), "--template", "kar", "--side", "item", "--model", str(model), *more]
    with monkeypatch.context() as patch:
        patch.setattr(loading, "load_model", None)
        assert run(["prompts", *line, "--json"]) == 3
    shown, summary, _ = told(capsys)
    output = records.parent / "run"
    rest = ["--output", str(output), "--max-new-tokens", "1", "--draft", "none"]
    assert run(["generate", *line, *rest]) == 3
    part = pq.read_table(output / "part-00000.parquet").to_pylist()
    for row in part:
        assert f"── {row['entity_id']}, {row['prompt_tokens']:,} tokens\n" in shown
    sizes = [row["prompt_tokens"] for row in part]
    assert summary["tokens"] == {
        "min": min(sizes),
        "median": sum(sizes) / 2,
        "max": max(sizes),
        "total": sum(sizes),
    }
    rejected = [json.loads(x) for x in (output / "rejected.jsonl").read_text().splitlines()]
    assert (summary["records"], summary["prompts"], summary["rejected"]) == (4, 2, len(rejected))
    assert 0 < summary["shared_tokens"] < min(sizes)
    for row in rejected:
        assert f"line {row['line']} ({row['entity_id']}): rejected, {row['reason']}" in shown
    assert sum(summary["reasons"].values()) == 2
    assert summary["chat"] == (more != ["--no-chat"])
    assert ("user said: " in shown) == summary["chat"]
    assert ("system said: Be brief.\nuser said: " in shown) == ("--system" in more)


def test_without_a_model_it_shows_the_template_alone(
    records: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["prompts", str(records), "--template", "kar", "--side", "item", "--limit", "1"]
    assert run([*line, "--json"]) == 0
    shown, summary, said = told(capsys)
    assert shown.startswith("── 1\n")
    assert "Heat" in shown
    text = shown.removeprefix("── 1\n").rstrip("\n")
    assert summary["characters"]["max"] == len(text)
    assert "tokens" not in summary
    assert "give --model" in said


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--system", "x"], "--system needs --model"),
        (["--chat"], "--chat needs --model"),
        (["--model", "nowhere/at/all"], "does not exist"),
        (["--template", "karr"], "kar, trawl, once, rlmrec"),
    ],
)
def test_what_it_cannot_show_is_refused(
    more: list[str], words: str, records: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["prompts", str(records), "--prompt-column", "title", *more]) == 2
    assert words in capsys.readouterr().err


def test_special_tokens_are_said(
    model: Path, records: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    end = loading.load_tokenizer(model).eos_token
    records.write_text(json.dumps({"entity_id": 1, "prompt": f"a {end} b"}) + "\n")
    assert run(["prompts", str(records), "--model", str(model), "--json"]) == 0
    _, split, said = told(capsys)
    assert split["special_tokens"] == [end]
    assert "--special-tokens obey lets them act" in said
    more = ["--special-tokens", "obey", "--json"]
    assert run(["prompts", str(records), "--model", str(model), *more]) == 0
    _, obeyed, _ = told(capsys)
    assert obeyed["special_tokens"] == []
    assert obeyed["tokens"]["max"] < split["tokens"]["max"]
