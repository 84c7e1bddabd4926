"""The site's pages: links as the site has them, references made of the parser."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import docs_site
import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("where", "source", "text", "expected"),
    [
        ("README.md", "index.md", "[a](docs/data.md#ids)", "[a](data.md#ids)"),
        ("docs/ray.md", "ray.md", "[a](../README.md)", "[a](index.md)"),
        ("docs/ray.md", "ray.md", "[a](../src/draftrec/core.py)", "a"),
        ("docs/reports/r.md", "reports/r.md", "[a](../quality.md)", "[a](../quality.md)"),
        ("docs/ray.md", "ray.md", "[a](https://b.org) [c](#d)", "[a](https://b.org) [c](#d)"),
        ("docs/ray.md", "ray.md", "```\n[a](../x)\n```", "```\n[a](../x)\n```"),
        ("docs/ray.md", "ray.md", "| `a \\| b` | c \\| d |", "| `a | b` | c \\| d |"),
        ("README.md", "index.md", '<img src="docs/assets/a.svg">', '<img src="assets/a.svg">'),
    ],
)
def test_links_are_those_of_the_site(where: str, source: str, text: str, expected: str) -> None:
    assert docs_site.relinked(text, where, source) == expected


def test_long_commands_are_continued_and_stay_the_same() -> None:
    steps = " && ".join(["draftrec encode texts --encoder minilm --output vectors.parquet"] * 3)
    comment = "draftrec pool info pool  # " + "bytes, groups --and more " * 5
    page = docs_site.relinked(f"```bash\n{steps}\n{comment}\n```", "docs/a.md", "a.md")
    lines = page.split("\n")[1:-1]
    assert max(map(len, lines[:-1])) <= 80
    whole = "\n".join(lines[:-1]).replace("\\\n", "")  # as a shell reads it
    assert shlex.split(whole) == shlex.split(steps)
    assert lines[-1] == comment


def test_every_command_and_its_options_are_told() -> None:
    page = docs_site.commands()
    for told in ("## draftrec generate", "### draftrec pool build", "## draftrec serve"):
        assert told in page
    (generate,) = (part for part in page.split("\n## ") if part.startswith("draftrec generate\n"))
    assert "| `--accept` | `strict\\|relaxed" in generate
    assert "`INPUT` |  | required |" in generate


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    assert "from_pretrained" in (tmp_path / "api.html").read_text()
    assert 'srcset="assets/' in (tmp_path / "benchmarks.html").read_text()
