"""`--json-schema`, `--regex` and `--grammar` as a user meets them, with the shipped model."""

from __future__ import annotations

import json
import re
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from bookshop.world import stream_records

from draftrec.cli.main import run
from draftrec.demo.shop import demo_model_path

SCHEMA = {
    "type": "object",
    "properties": {"taste": {"type": "string", "minLength": 1, "maxLength": 40}},
    "required": ["taste"],
    "additionalProperties": False,
}


@pytest.fixture
def records(tmp_path: Path) -> Path:
    path = tmp_path / "users.jsonl"
    rows = islice(stream_records("user", seed=5), 4)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def line(records: Path, *more: object, output: str = "run") -> list[str]:
    folder = records.parent / output
    settings = ["--max-new-tokens", "160", "--budget", "8", "--batch-size", "4", "--json"]
    words = [
        "generate",
        records,
        "--model",
        demo_model_path(),
        "--output",
        folder,
        *settings,
        *more,
    ]
    return [str(word) for word in words]


def texts(records: Path, output: str = "run") -> list[dict[str, Any]]:
    return pq.read_table(records.parent / output / "part-00000.parquet").to_pylist()


def refusal(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert run(words) == 2
    error = capsys.readouterr().err.strip()
    assert len(error.splitlines()) == 1
    return error


@pytest.mark.slow
def test_a_template_brings_its_schema(records: Path, capsys: pytest.CaptureFixture[str]) -> None:
    form = ("--template", "rlmrec", "--json-schema", "template")
    assert run(line(records, *form)) == 0
    ended = [row for row in texts(records) if row["finish_reason"] == "eos"]
    assert ended
    for row in ended:
        value = json.loads(row["text"])
        assert list(value) == ["summarization", "reasoning"]
        assert all(isinstance(part, str) and part for part in value.values())
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert summary["accepted_by_source"]["grammar"] >= 6 * len(ended)
    # The baseline writes the same, one token a call.
    assert run(line(records, *form, "--draft", "none", output="plain")) == 0
    plain = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert plain["accepted_tokens"] == 0
    assert texts(records, "plain") == texts(records)


@pytest.mark.slow
def test_a_schema_that_is_not_used_is_mentioned(
    records: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ("--limit", "1", "--max-new-tokens", "2")
    assert run(line(records, "--template", "rlmrec", *more)) == 0
    assert "--json-schema template" in capsys.readouterr().err
    assert run(line(records, "--template", "kar", *more, output="kar")) == 0
    assert "--json-schema" not in capsys.readouterr().err


@pytest.mark.slow
def test_schema_files_and_what_a_run_remembers_of_them(
    records: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = records.parent / "taste.json"
    path.write_text(json.dumps(SCHEMA, indent=2))
    form = ("--template", "kar", "--json-schema", path)
    assert run(line(records, *form)) == 0
    for row in texts(records):
        assert row["finish_reason"] == "eos"
        assert 1 <= len(json.loads(row["text"])["taste"]) <= 40
    path.write_text(json.dumps(SCHEMA))  # other blanks are no difference
    assert run(line(records, *form)) == 0
    path.write_text(json.dumps({**SCHEMA, "required": []}))
    capsys.readouterr()
    assert "begun otherwise (json_schema was {" in refusal(line(records, *form), capsys)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("option", "text", "pattern"),
    [
        ("--regex", "(likes|avoids) [a-z]{3,12}", r"(likes|avoids) [a-z]{3,12}"),
        ("--grammar", 'start: "<" /[a-z]{2,9}/ ">"', r"<[a-z]{2,9}>"),
        ("--grammar", 'root ::= "yes" | "no"', r"yes|no"),
    ],
)
def test_expressions_and_grammars(records: Path, option: str, text: str, pattern: str) -> None:
    value: object = text
    if option == "--grammar":
        value = records.parent / "grammar.txt"
        (records.parent / "grammar.txt").write_text(text)
    assert run(line(records, "--template", "kar", option, value)) == 0
    assert all(re.fullmatch(pattern, row["text"]) for row in texts(records))


@pytest.mark.slow
def test_wrong_forms_are_refused_before_the_model_is_loaded(
    records: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("draftrec.jobs.knowledge.worker.load_generator", lambda *_: 1 / 0)
    path = records.parent / "taste.json"

    def said(*form: object) -> str:
        return refusal(line(records, *form), capsys)

    kar = ("--template", "kar")
    assert "taste.json does not exist" in said(*kar, "--json-schema", path)
    path.write_text('{\n "type": "object",\n}')
    assert "taste.json is not JSON" in said(*kar, "--json-schema", path)
    assert "line 3 column 1" in said(*kar, "--json-schema", path)
    path.write_text(json.dumps({"properties": {"taste": {"type": "strin"}}}))
    reason = said(*kar, "--json-schema", path)
    assert "taste.json, at /properties/taste: Invalid type: strin" in reason
    assert "are two forms" in said(*kar, "--json-schema", path, "--regex", "a")
    path.write_text(json.dumps({"maximum": 10**400}))
    assert "taste.json cannot be read by llguidance" in said(*kar, "--json-schema", path)
    path.write_text('{"maximum": NaN}')
    assert "taste.json cannot be written as JSON" in said(*kar, "--json-schema", path)
    assert "--regex: unclosed" in said(*kar, "--regex", "[a")
    assert "--regex holds half of a surrogate pair" in said(*kar, "--regex", "a\udcff")
    assert "'kar_user' comes with no JSON schema" in said(*kar, "--json-schema", "template")
    assert "there is no template" in said("--json-schema", "template")
    assert not (records.parent / "run").exists()
