"""`draftrec tune --model`: one small study from the command line, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from bookshop.world import stream_records

from draftrec.cli.main import run
from draftrec.demo.shop import demo_model_path
from draftrec.engine.learned.drafter import HeadDrafter
from draftrec.evaluate.tune import choice as tune_space
from draftrec.jobs.knowledge.generator import Generator
from tests.models.folders import save_head

SMALL = ("--budgets", "8", "--sample", "2", "--rounds", "1", "--max-new-tokens", "12")


@pytest.fixture
def records(tmp_path: Path) -> Path:
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in stream_records("user", count=5)))
    return path


def tune(records: Any, *more: Any) -> int:
    line = ["tune", records, "--model", demo_model_path(), "--template", "kar", *SMALL, *more]
    return run([str(x) for x in line])


@pytest.mark.slow
def test_a_study_leaves_settings_that_generate_takes_a_page_and_a_table(
    records: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(tune_space.KNOBS, "typical", {"epsilon": (0.5,), "delta": (0.2,)})
    settings = tmp_path / "chosen.yaml"
    more = ("--rules", "typical", "--batch-size", "2", "--output", settings, "--json")
    assert tune(records, *more) == 0
    out, err = capsys.readouterr()
    summary = json.loads(out.splitlines()[-1])
    assert [r["rule"] for r in summary["trials"]] == ["strict", "typical"]
    assert f"settings written to {settings}" in err
    folder = tmp_path / "chosen.trials"
    assert "Speed against loss" in (folder / "frontier.html").read_text()
    assert pq.read_table(folder / "trials.parquet").to_pylist() == summary["trials"]

    line = ["generate", records, "--model", demo_model_path(), "--template", "kar", "--limit", "2"]
    line += ["--max-new-tokens", "8", "--config", settings, "--output", tmp_path / "run", "--json"]
    assert run([str(x) for x in line]) == 0
    done = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert done["accept"] == yaml.safe_load(settings.read_text()).get("accept", "strict")


def test_a_learned_drafter_drafts_in_every_setting(
    records: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(tune_space.KNOBS, "typical", {"epsilon": (0.5,), "delta": (0.2,)})
    made = Generator.from_pretrained(demo_model_path(), device="cpu", draft="none")
    drafter = save_head(tmp_path / "head", made.target.model.config, made.fingerprint)
    looks: list[float] = []
    real = HeadDrafter._look

    def look(self: HeadDrafter, *rest: Any) -> None:
        looks.append(self.target.model.config.vocab_size)
        real(self, *rest)

    monkeypatch.setattr(HeadDrafter, "_look", look)
    more = ("--rules", "typical", "--report", tmp_path / "study", "--json")
    assert tune(records, *more) == 0
    assert not looks
    journal = tmp_path / "study" / "trials.jsonl"
    first, *rest = journal.read_text().splitlines(keepends=True)
    begun = json.loads(first)["identity"]
    # As a study that was begun before there were drafters.
    before = {name: value for name, value in begun.items() if name != "drafter"}
    journal.write_text("".join([json.dumps({"identity": before}) + "\n", *rest]))
    assert tune(records, *more) == 0
    assert tune(records, *more, "--drafter", drafter) == 2
    assert "drafter added" in capsys.readouterr().err
    assert tune(records, *more, "--drafter", drafter, "--overwrite") == 0
    assert looks
    with_it = json.loads(journal.read_text().splitlines()[0])["identity"]
    assert begun["drafter"] is None
    assert with_it == begun | {"drafter": with_it["drafter"]}
    assert str(drafter) in (tmp_path / "study" / "frontier.html").read_text()


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--rules", "medusa", "--output", "x.yaml"), "known are relaxed, typical, entropy"),
        (("--budgets", "a,b", "--output", "x.yaml"), "--budgets must be whole numbers"),
        (("--batch-size", "0", "--output", "x.yaml"), "--batch-size"),
        ((), "give --output or --report"),
        (("--output", "no/where.yaml"), "does not exist"),
        (("--pool", "missing", "--report", "study"), "missing"),
    ],
)
def test_bad_options_are_named_in_one_sentence(
    records: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    more: tuple[str, ...],
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert tune(records, *more) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1, err
    assert words in err


def test_without_a_model_a_tokenizer_is_asked_for(
    records: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["tune", str(records)]) == 2
    assert "--tokenizer to replay recorded texts, or --model" in capsys.readouterr().err


def test_a_missing_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tune(tmp_path / "none.jsonl", "--report", tmp_path / "study") == 2
    assert "does not exist" in capsys.readouterr().err
    assert not (tmp_path / "study").exists()
