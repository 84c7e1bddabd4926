"""What the documents tell a newcomer to type is right."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from draftrec.cli.main import run
from draftrec.data.sequences import read_semantic_ids, write_semantic_ids
from draftrec.demo.shop import demo_model_path
from tests.jobs.recommend.worlds import make_world

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def test_first_screen_holds_the_two_commands() -> None:
    screen = "\n".join(README.splitlines()[:40])
    demo, tests = blocks("bash", screen)
    for command in (demo, tests):
        assert command.count("\n") == 1
        steps = [step.strip() for step in command.split("&&")]
        assert steps[:2] == ["python3 -m venv .venv", ".venv/bin/pip install torch==2.13.0"]
    assert demo.rstrip().endswith(".venv/bin/pip install -e . && .venv/bin/draftrec demo")
    assert tests.rstrip().endswith('install -e ".[dev]" && .venv/bin/python -m pytest -n 2')


def test_ci_runs_the_readme_s_steps() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    for step in blocks("bash")[1].split("&&")[1:]:
        words = shlex.split(step.replace(".venv/bin/", ""))
        pattern = r"\s+".join(re.escape(word) for word in words if word != "install")
        pattern = pattern.replace(r"pip\s+", r"pip install (?:--quiet )?").replace(
            re.escape(".[dev]"), r'"\.\[dev\]"'
        )
        assert re.search(pattern, script), step
    assert script.rstrip().endswith("python -m pytest -n 2 --durations=20")


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        if not target.startswith("https://"):
            assert (path.parent / target).exists(), target


def test_options_of_generate_are_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    """Those in the table are what `draftrec generate` is told to be given."""
    table = "\n".join(line for line in README.splitlines() if line.startswith("|"))
    assert run(["generate", "--help"]) == 0
    known = capsys.readouterr().out
    options = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", table))
    assert len(options) > 5
    assert not [option for option in options if not re.search(rf"{option}\b", known)]


@pytest.mark.slow
def test_python_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    example, _ = blocks("python")
    example = example.replace("path/or/hub-id", str(demo_model_path()))
    exec(compile(example, "README.md", "exec"), {"__name__": "readme"})
    assert capsys.readouterr().out.strip()


@pytest.mark.slow
def test_recommending_from_python_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    world = make_world(tmp_path)
    write_semantic_ids(world.target / "sids.parquet", read_semantic_ids(world.sids))
    monkeypatch.chdir(tmp_path)
    _, example = blocks("python")
    exec(compile(example, "README.md", "exec"), {"__name__": "readme"})
    assert len(capsys.readouterr().out.split()) >= 20
