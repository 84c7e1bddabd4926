"""What installing and importing the package promises."""

from __future__ import annotations

import fnmatch
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import draftrec

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "draftrec"
SLOW_TO_IMPORT = ("torch", "transformers", "numba", "sklearn", "pyarrow")


def loaded_by(code: str) -> set[str]:
    """Which of the slow packages a fresh interpreter has loaded after running `code`."""
    ask = f"import sys\n{code}\nprint(*[m for m in {SLOW_TO_IMPORT!r} if m in sys.modules])"
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(
        [sys.executable, "-c", ask], capture_output=True, text=True, env=environment, check=True
    )
    return set(done.stdout.splitlines()[-1].split())


def test_import_is_light() -> None:
    assert loaded_by("import draftrec") == set()


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["demo", "--help"],
        ["generate", "--help"],
        ["replay", "--help"],
        ["genrec", "demo", "--help"],
    ],
)
def test_help_is_light(arguments: list[str]) -> None:
    assert loaded_by(f"from draftrec.cli.main import run\nassert run({arguments!r}) == 0") == set()


def test_all_names_can_be_had() -> None:
    for name in draftrec.__all__:
        assert getattr(draftrec, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Generater'"):
        _ = draftrec.Generater  # type: ignore[attr-defined]


def test_all_is_complete() -> None:
    public = {n for n, v in vars(draftrec).items() if not n.startswith("_") and n != "annotations"}
    submodules = {p.stem for p in SOURCE.iterdir()}
    not_ours = {"TYPE_CHECKING", "Any"}
    assert public - submodules - not_ours <= set(draftrec.__all__)
    assert "__version__" in draftrec.__all__


def test_every_folder_with_code_is_a_package() -> None:
    missing = {p.parent for p in SOURCE.rglob("*.py") if not (p.parent / "__init__.py").exists()}
    assert not missing


def test_every_file_is_shipped() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    globs = settings["tool"]["setuptools"]["package-data"]["draftrec"]
    globs = [glob.removeprefix("**/") for glob in globs]
    left = [
        path
        for path in SOURCE.rglob("*")
        if path.is_file()
        and path.suffix not in {".py", ".pyc", ".nbi", ".nbc"}
        and not any(fnmatch.fnmatch(path.name, glob) for glob in globs)
    ]
    assert not left


def test_the_floors_of_the_document_are_those_of_the_contract() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    told: list[set[str]] = []
    for line in page.split("## Floors", 1)[1].split("```")[1].strip().splitlines():
        names = set(line[:32].split())
        if line.startswith(" "):  # more of the same floor
            told[-1] |= names
        else:
            told.append(names)
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    layers = settings["tool"]["importlinter"]["contracts"][0]["layers"]
    held = [set(re.findall(r"\w+", layer)) for layer in layers]
    assert told == [floor for floor in held if floor != {"__main__"}]
    folders = {p.name for p in SOURCE.iterdir() if (p / "__init__.py").exists()}
    assert folders <= set().union(*told)
