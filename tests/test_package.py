"""What installing and importing the package promises."""

from __future__ import annotations

import fnmatch
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

import pytest

import draftrec
from draftrec import kernel_cache

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


def started(package: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter without a usual place for kernels, after it has run one."""
    code = (
        "import os, draftrec, draftrec.engine.noise as n\n"
        "n.noise_of(1, 2)\n"
        "print(os.environ['NUMBA_CACHE_DIR'], sum(n._noise_of.stats.cache_misses.values()))\n"
    )
    usual = {"PATH": os.environ["PATH"], "HOME": "/dev/null", "PYTHONPATH": str(package)}
    return subprocess.run(
        [sys.executable, "-B", "-c", code],
        capture_output=True, text=True, check=False, env={**usual, **environment},
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="where homes lie is the system's business")
def test_kernels_of_a_read_only_install_have_a_place(tmp_path: Path) -> None:
    package, temporary = tmp_path / "site", tmp_path / "tmp"
    temporary.mkdir()
    shutil.copytree(
        SOURCE, package / "draftrec", ignore=shutil.ignore_patterns("__pycache__", "assets")
    )
    for folder in [package / "draftrec", *(package / "draftrec").rglob("*")]:
        if folder.is_dir():
            (folder / "__pycache__").touch()  # a file where a folder should be: nobody can write
    done = started(package, TMPDIR=str(temporary))
    assert done.returncode == 0, done.stderr
    place, compiled = done.stdout.split()
    assert int(compiled) > 0
    place = Path(place)
    assert place.parent == temporary
    assert place.stat().st_mode & 0o077 == 0
    again = started(package, TMPDIR=str(temporary))
    assert again.stdout.split() == [str(place), "0"], "nothing is compiled at the next start"
    place.chmod(0o777)
    other = started(package, TMPDIR=str(temporary))
    assert other.stdout.split()[0] != str(place), "others may have put code there"


def test_kernels_of_a_folder_that_can_only_be_read_are_taken_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = tmp_path / "given"
    given.mkdir()
    (given / "kernel.nbi").write_text("compiled")
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(given))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert kernel_cache.find_place(SOURCE) is None, "it can be written to"
    monkeypatch.setattr(kernel_cache, "_writable", lambda folder: False)
    place = kernel_cache.find_place(SOURCE)
    assert place
    assert (place / "kernel.nbi").read_text() == "compiled"
    assert os.environ["NUMBA_CACHE_DIR"] == str(place)
