"""Make a release and try it; hand over the commands that would publish it, and run none of them.

    python scripts/release.py        # extra `dev`, a package index, some ten minutes

1. The tree is clean; version, changelog and CITATION.cff agree; the tag is free.
2. Wheel and source distribution are built of what is committed, and of nothing else. `twine check
   --strict` passes; the source distribution holds the repository and builds the same wheel; the
   wheel holds the package.
3. In a fresh environment, from the wheel and away from the checkout, both demos run to their end.
4. Both files lie in `dist`, and the commands that upload and tag are printed.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Sequence as Seq
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
#: As in README.md: torch by itself and first, or pip may trade it for another build.
TORCH = "torch==2.13.0"
#: Far more than package and tests take today, far less than recorded measurements would.
MOST_BYTES = 15_000_000


class Unready(Exception):
    """Why this is no release yet: one sentence."""


def main(arguments: Seq[str] | None = None) -> int:
    """0 when both files are ready, 2 when something is missing that a person has to mend."""
    parser = argparse.ArgumentParser(description="Make a release and try it; publish nothing.")
    parser.add_argument("--output", type=Path, default=ROOT / "dist", help="where both files go")
    chosen = parser.parse_args(arguments)
    try:
        version = agreed_version(ROOT)
        see_clean(ROOT, f"v{version}")
        with tempfile.TemporaryDirectory() as scratch:
            files = made_and_tried(ROOT, version, Path(scratch))
            chosen.output.mkdir(parents=True, exist_ok=True)
            ready = [shutil.copy2(file, chosen.output) for file in files]
    except Unready as error:
        print(f"release: {error}", file=sys.stderr)
        return 2
    print(f"\ndraftrec {version} is ready. To publish it:\n")
    print(shlex.join(["twine", "upload", *(os.path.relpath(file) for file in ready)]))
    print(f"git tag -a v{version} -m 'draftrec {version}' && git push origin v{version}")
    return 0


def made_and_tried(root: Path, version: str, work: Path) -> list[Path]:
    """Source distribution and wheel, after all checks. Raises Unready where one fails."""
    committed = export(root, work / "source")
    files = build(work / "source", work / "dist")
    run([sys.executable, "-m", "twine", "check", "--strict", *map(str, files)], work)
    see_content(committed, *files)
    (direct,) = build(work / "source", work / "direct", "--wheel")
    if members(files[1]) != members(direct):
        raise Unready(f"{files[0].name} builds another wheel than the repository does.")
    try_out(files[1], version, work / "fresh")
    return files


def agreed_version(root: Path) -> str:
    """The version of the package, of CHANGELOG.md's newest part and of CITATION.cff.

    Raises Unready where they differ, or where the changelog holds changes for a later one.
    """
    code = (root / "src" / "draftrec" / "__init__.py").read_text("utf-8")
    (version,) = re.findall(r'^__version__ = "(.+)"$', code, re.MULTILINE)
    waiting, newest, *_ = [*(root / "CHANGELOG.md").read_text("utf-8").split("\n## ")[1:], ""]
    if not newest.startswith(f"{version} - "):
        told = newest.split(maxsplit=1)[0] if newest else "missing"
        raise Unready(f"the package is {version}; CHANGELOG.md's newest part is {told}.")
    if waiting.split() != ["Unreleased"]:
        raise Unready(
            f"CHANGELOG.md names changes under Unreleased, which {version} would hide; move "
            "them to its part."
        )
    day = newest.split("\n", 1)[0].removeprefix(f"{version} - ")
    cited = yaml.safe_load((root / "CITATION.cff").read_text("utf-8"))
    told = f"{cited['version']} - {cited['date-released']}"
    if told != f"{version} - {day}":
        raise Unready(f"CITATION.cff says {told}, CHANGELOG.md {version} - {day}.")
    return version


def see_clean(root: Path, tag: str) -> None:
    """Raises Unready if there are changes that no commit holds, or if `tag` is taken."""
    if changed := _git(root, "status", "--porcelain").splitlines():
        raise Unready(f"{len(changed)} files differ from the commit, {changed[0][3:]} among them.")
    if _git(root, "tag", "--list", tag):
        raise Unready(f"{tag} is tagged already; raise __version__ and add to CHANGELOG.md.")


def export(root: Path, folder: Path) -> set[str]:
    """Copy the files that git follows to `folder`, so that nothing else can get into a release.

    Returns their names, relative to either.
    """
    followed = set(_git(root, "ls-files", "-z").split("\0"))
    names = {name for name in followed if name and (root / name).is_file()}
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(root / name, folder / name)
    return names


def build(source: Path, folder: Path, *options: str) -> list[Path]:
    """Build `source` into `folder`: source distribution, then the wheel made of it."""
    run([sys.executable, "-m", "build", "--outdir", str(folder), *options, str(source)], source)
    return sorted(folder.iterdir(), key=lambda path: path.suffix)


def see_content(committed: set[str], sdist: Path, wheel: Path) -> None:
    """Raises Unready if a file is missing, does not belong, or if there is too much of it."""
    shipped = {f"src/{name}" for name in members(wheel) if ".dist-info/" not in name}
    with tarfile.open(sdist) as archive:
        held = {member.name.split("/", 1)[1] for member in archive if member.isfile()}
    held = {name for name in held if ".egg-info/" not in name} - {"PKG-INFO", "setup.cfg"}
    packaged = {name for name in committed if name.startswith("src/")}
    for file, here, wanted in ((wheel, shipped, packaged), (sdist, held, committed)):
        if wrong := sorted(here ^ wanted):
            lack = "lacks" if wrong[0] in wanted else "should not hold"
            raise Unready(f"{file.name} {lack} {wrong[0]} ({len(wrong)} such files).")
        if (size := file.stat().st_size) > MOST_BYTES:
            raise Unready(f"{file.name} has {size:,} bytes, more than {MOST_BYTES:,}.")


def members(wheel: Path) -> dict[str, bytes]:
    """The files of a wheel by name."""
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def try_out(wheel: Path, version: str, folder: Path) -> None:
    """Install the wheel into an environment of its own and run both demos from an empty folder."""
    empty = folder / "empty"
    empty.mkdir(parents=True)
    run([sys.executable, "-m", "venv", str(folder / "venv")], folder)
    python, command = (str(folder / "venv" / "bin" / name) for name in ("python", "draftrec"))
    for what in (TORCH, str(wheel)):
        run([python, "-m", "pip", "install", "--quiet", what], folder)
    run([python, "-m", "pip", "check"], folder)
    if (told := run([command, "--version"], empty).strip()) != version:
        raise Unready(f"the installed wheel says that it is {told}, not {version}.")
    for words in (["demo"], ["genrec", "demo"]):
        run([command, *words], empty)
    if len(reports := list(empty.glob("*/report.html"))) != 2:
        raise Unready(f"the demos left {len(reports)} reports, not one each.")


def run(command: Seq[str], folder: Path) -> str:
    """What the command prints, which knows nothing of the checkout. Raises Unready if it fails."""
    print(f"$ {shlex.join(command)}", file=sys.stderr, flush=True)
    alone = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    done = subprocess.run(
        command, cwd=folder, env=alone, text=True, check=False,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    if done.returncode:
        raise Unready(f"`{shlex.join(command)}` failed:\n{done.stdout[-4000:]}")
    return done.stdout


def _git(root: Path, *words: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(root), *words], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise Unready(f"git {words[0]} failed in {root}: {done.stderr.strip()}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
