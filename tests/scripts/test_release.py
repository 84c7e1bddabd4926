"""A release holds what is committed, says one version everywhere, and is refused otherwise."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import release
import yaml

import draftrec

ROOT = Path(__file__).parents[2]
#: A program of a user's: where the package lies, and a few words by the model that it brings.
#: transformers writes them, for which no kernel has to be compiled at a new place.
SAMPLE = """
from pathlib import Path
import draftrec
from draftrec.config import ModelConfig
from draftrec.data.templates import load_template
from draftrec.demo.shop import demo_model_path, readers
from draftrec.models.loading import load_model, load_tokenizer
print(Path(draftrec.__file__).parent)
folder = demo_model_path()
model, tokenizer = load_model(ModelConfig(model=str(folder))), load_tokenizer(folder)
prompt = load_template("kar", "user").render(readers()[0])
told = tokenizer(prompt, return_tensors="pt")
written = model.generate(**told, max_new_tokens=8)
print(tokenizer.decode(written[0, told.input_ids.shape[1] :]))
"""
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))


def git(folder: Path, *words: str) -> None:
    who = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
    subprocess.run(["git", *who, "-C", str(folder), *words], check=True, capture_output=True)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A repository with the little that a release asks of one."""
    root = tmp_path / "small"
    (root / "src" / "draftrec").mkdir(parents=True)
    (root / "src" / "draftrec" / "__init__.py").write_text('__version__ = "1.2.3"\n')
    (root / "CHANGELOG.md").write_text("# C\n\n## Unreleased\n\n## 1.2.3 - 2030-01-02\n\n- a\n")
    (root / "CITATION.cff").write_text("version: 1.2.3\ndate-released: 2030-01-02\n")
    (root / ".gitignore").write_text("left/\n")
    git(root.parent, "init", "-q", str(root))
    git(root, "add", "-A")
    git(root, "commit", "-q", "-m", "a")
    return root


def test_the_version_stands_once_and_is_repeated_truly() -> None:
    assert CITATION["version"] == draftrec.__version__
    changes = (ROOT / "CHANGELOG.md").read_text("utf-8")
    headings = [line[3:] for line in changes.splitlines() if line.startswith("## ")]
    assert headings[0] == "Unreleased"
    if len(headings) > 1:
        assert headings[1] == f"{draftrec.__version__} - {CITATION['date-released']}"


def test_the_citation_has_what_its_format_asks_for() -> None:
    assert CITATION["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= CITATION.keys()
    cited = [reference["identifiers"][0]["value"] for reference in CITATION["references"]]
    assert cited == ["arXiv:2408.05676", "arXiv:2410.05165"]
    for reference in CITATION["references"]:
        assert {"type", "title", "authors"} <= reference.keys()
        assert reference["url"].endswith(reference["identifiers"][0]["value"][6:])
        assert all({"given-names", "family-names"} == a.keys() for a in reference["authors"])


@pytest.mark.parametrize(
    ("name", "old", "new", "said"),
    [
        ("src/draftrec/__init__.py", "1.2.3", "1.2.4", "newest part is 1.2.3"),
        ("CHANGELOG.md", "Unreleased\n", "Unreleased\n- b\n", "changes under Unreleased"),
        ("CHANGELOG.md", "\n## 1.2.3 - 2030-01-02", "", "newest part is missing"),
        ("CITATION.cff", "01-02", "01-03", "CITATION.cff says 1.2.3 - 2030-01-03"),
    ],
)
def test_versions_that_differ_are_refused(
    small: Path, name: str, old: str, new: str, said: str
) -> None:
    assert release.agreed_version(small) == "1.2.3"
    (small / name).write_text((small / name).read_text().replace(old, new))
    with pytest.raises(release.Unready, match=said):
        release.agreed_version(small)


def test_local_changes_and_a_taken_tag_are_refused(
    small: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    release.see_clean(small, "v1.2.3")
    git(small, "tag", "v1.2.3")
    with pytest.raises(release.Unready, match=r"v1\.2\.3 is tagged already"):
        release.see_clean(small, "v1.2.3")
    (small / "new.txt").write_text("")
    monkeypatch.setattr(release, "ROOT", small)
    assert release.main([]) == 2
    assert capsys.readouterr().err.startswith("release: 1 files differ from the commit, new.txt")


def test_only_what_git_follows_is_taken_along(small: Path, tmp_path: Path) -> None:
    (small / "left").mkdir()
    (small / "left" / "measured.json").write_text("{}")
    names = release.export(small, tmp_path / "copy")
    assert names == {".gitignore", "CHANGELOG.md", "CITATION.cff", "src/draftrec/__init__.py"}
    held = {str(p.relative_to(tmp_path / "copy")) for p in (tmp_path / "copy").rglob("*.*")}
    assert held == names


@pytest.mark.slow
@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="a copy without history")
def test_wheel_and_source_distribution_hold_the_repository(tmp_path: Path) -> None:
    committed = release.export(ROOT, tmp_path / "source")
    sdist, wheel = release.build(tmp_path / "source", tmp_path / "dist", "--no-isolation")
    release.run([sys.executable, "-m", "twine", "check", "--strict", str(sdist), str(wheel)], ROOT)
    release.see_content(committed, sdist, wheel)
    (direct,) = release.build(tmp_path / "source", tmp_path / "direct", "--no-isolation", "--wheel")
    assert release.members(direct) == release.members(wheel)
    assert f"draftrec-{draftrec.__version__}.dist-info/METADATA" in release.members(wheel)
    # What is in the wheel, and nothing of the checkout, reads the shop and writes with its model.
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    told = subprocess.run(
        [sys.executable, "-c", SAMPLE], cwd=tmp_path, text=True, capture_output=True, check=False,
        env=os.environ | {"PYTHONPATH": str(tmp_path / "site"), "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert told.returncode == 0, told.stderr
    assert told.stdout.split()[0] == str(tmp_path / "site" / "draftrec")
    assert told.stdout.split()[1:]

    more = Path(shutil.copy2(wheel, tmp_path / "more.whl"))
    with zipfile.ZipFile(more, "a") as archive:
        archive.writestr("draftrec/left_over.json", "{}")
    with pytest.raises(release.Unready, match=r"should not hold src/draftrec/left_over\.json"):
        release.see_content(committed, sdist, more)
    fewer = tmp_path / "fewer.tar.gz"
    with tarfile.open(sdist) as held, tarfile.open(fewer, "w:gz") as archive:
        for member in held:
            if not member.name.endswith("/README.md"):
                archive.addfile(member, held.extractfile(member))
    with pytest.raises(release.Unready, match=r"fewer\.tar\.gz lacks README\.md"):
        release.see_content(committed, fewer, wheel)
