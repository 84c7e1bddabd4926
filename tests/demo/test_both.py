"""`draftrec demo` shows both jobs: one report, one summary, one folder."""

from __future__ import annotations

import html
import json
from pathlib import Path

import pytest

from draftrec.cli.main import run
from draftrec.demo import items, texts

pytestmark = pytest.mark.slow

TEXTS = texts.Size(warm=12, held_out=3, repeats=2, max_new_tokens=40)
ITEMS = items.Size(users=12, timed=4, rounds=1, crowds=(3,), readers=300)


@pytest.fixture(scope="module")
def told() -> tuple[texts.Story, items.Story]:
    return texts.tell(TEXTS), items.tell(ITEMS)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, told: tuple[texts.Story, items.Story]) -> None:
    written, found = told
    monkeypatch.setattr(texts, "tell", lambda plan, watch: written)
    monkeypatch.setattr(items, "tell", lambda plan, watch: found)


@pytest.mark.usefixtures("quick")
def test_both_jobs_are_shown(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    assert run(["demo", "--output", str(folder), "--json"]) == 0
    captured = capsys.readouterr()
    (line,) = captured.out.splitlines()
    summary = json.loads(line)
    assert summary["arms"].keys() == {"baseline", "strict", "relaxed"}
    assert summary["recommendation"]["arms"].keys() == items.WAYS.keys()
    assert summary == json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    assert sorted(p.name for p in folder.iterdir()) == [
        "pool", "readers.jsonl", "report.html", "sequences.jsonl", "sids.parquet", "summary.json",
    ]  # fmt: skip
    page = html.unescape((folder / "report.html").read_text(encoding="utf-8"))
    said = " ".join(captured.err.split())
    for title in ("The same texts, written three ways", "The same books, recommended six ways"):
        assert f"<h1>{title}</h1>" in page
        assert title in said
    for finding in (*summary["findings"], *summary["recommendation"]["findings"]):
        assert finding in page
        assert finding in said
    assert page.count("<svg") == 11
    assert str(folder / "report.html") in captured.err


@pytest.mark.usefixtures("quick")
def test_the_second_job_alone(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run(["genrec", "demo", "--output", str(tmp_path), "--json"]) == 0
    captured = capsys.readouterr()
    (line,) = captured.out.splitlines()
    assert json.loads(line)["arms"].keys() == items.WAYS.keys()
    assert "Recall" in captured.err
    assert not (tmp_path / "readers.jsonl").exists()


@pytest.mark.parametrize("words", [["demo"], ["genrec", "demo"]])
def test_unwritable_folder_is_refused_before_the_work(
    words: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    def never(plan: object, watch: object) -> None:
        raise AssertionError("the work began")

    monkeypatch.setattr(texts, "tell", never)
    monkeypatch.setattr(items, "tell", never)
    (tmp_path / "file").write_text("in the way")
    assert run([*words, "--output", str(tmp_path / "file" / "sub")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "cannot be written: not a directory" in line
    assert run([*words, "--output", str(tmp_path / "file")]) == 2
