"""The demo of recommendation, small: strict keeps every list, and files and page agree."""

from __future__ import annotations

import html
import io
import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from draftrec.cli.main import run
from draftrec.data.sequences import read_histories, read_semantic_ids
from draftrec.demo import items, output
from draftrec.demo.items import PLAIN, UNDRAFTED, WAYS, Size, Story
from draftrec.demo.items_findings import findings, make_arms
from draftrec.demo.items_report import make_report, next_steps
from draftrec.demo.shop import histories, shipped_path
from draftrec.errors import DraftrecError
from draftrec.models.recommender import load_recommender
from draftrec.report.blocks import Cards, Report
from draftrec.report.show import show

pytestmark = pytest.mark.slow

PLAN = Size(users=24, timed=6, rounds=3, crowds=(3,), readers=300)
STRICT = ("draft", "items", "auto")
ASSETS = Path(items.__file__).parents[1]


@pytest.fixture(scope="module")
def told() -> Story:
    seen: list[tuple[str, int, int]] = []
    result = items.tell(PLAN, lambda *event: seen.append(event))
    assert list(dict.fromkeys(s for s, _, _ in seen)) == [
        items.RECOMMENDING, items.TIMING, items.CROWDING,
    ]  # fmt: skip
    assert all(0 <= done <= total for _, done, total in seen)
    return result


@pytest.fixture(scope="module")
def report(told: Story) -> Report:
    return make_report(told, Path("out"))


def test_strict_equals_plain(told: Story) -> None:
    for name in STRICT:
        for found, plain in zip(told.answers[name], told.answers[PLAIN], strict=True):
            assert found.items.tolist() == plain.items.tolist()
            assert found.scores == pytest.approx(plain.scores, abs=1e-4)
        alone = told.timed[name].users
        for found, plain in zip(alone, told.timed[PLAIN].users, strict=True):
            assert found.items.tolist() == plain.items.tolist()


def test_drafts_save_target_calls(told: Story) -> None:
    calls = {name: sum(a.target_calls for a in found) for name, found in told.answers.items()}
    assert calls[PLAIN] == 24 * told.shipped.catalogue.trie.levels
    assert calls["draft"] < 0.6 * calls[PLAIN]
    assert calls["items"] < calls[PLAIN]
    assert calls["sample"] < calls[PLAIN]


def test_drafted_samples_are_the_target_s_own(told: Story) -> None:
    pairs = zip(told.answers["sample"], told.answers[UNDRAFTED], strict=True)
    assert all(a.items.tolist() == b.items.tolist() for a, b in pairs)
    assert told.answers["sample"][0].items.tolist() != told.answers[PLAIN][0].items.tolist()


def test_nothing_read_before_is_recommended(told: Story) -> None:
    for name in WAYS:
        for asked, found in zip(told.asked, told.answers[name], strict=True):
            assert len(found.items) == 10
            assert not np.isin(found.items, asked.items).any()


def test_target_beats_popularity(told: Story) -> None:
    assert told.quality["target"].recall[10] > 2 * told.quality["popularity"].recall[10]
    assert told.quality["target"].recall[10] > 0.4


def test_report_says_what_happened(report: Report, told: Story) -> None:
    arms = make_arms(told)
    assert list(arms) == list(WAYS)
    assert "returned plain search's own list" in findings(told, arms)[0]
    assert [arms[name].identical for name in STRICT] == [24, 24, 24]
    assert all(sum(arm.calls) == 24 for arm in arms.values())
    (tiles,) = report.sections[0].blocks
    assert isinstance(tiles, Cards)
    assert ["every list identical" in card.note for card in tiles.cards] == [True] * 3
    (readers,) = (one.blocks for one in report.sections if one.title == "Readers")
    assert len(readers) == 4
    assert isinstance(readers[0], Cards)
    titles = told.shipped.titles
    assert [piece.text for piece in readers[0].cards[1].items] == [
        titles[i] for i in told.answers[PLAIN][0].items[:6].tolist()
    ]


def test_terminal_shows_the_numbers(report: Report, told: Story) -> None:
    out = io.StringIO()
    show(report, Console(file=out, width=80))
    lines = out.getvalue().splitlines()
    assert max(len(line) for line in lines if "draftrec genrec" not in line) <= 80
    for arm in make_arms(told).values():
        assert any(arm.label in line and f"{arm.recall:.3f}" in line for line in lines)
    assert "24/24" in out.getvalue()


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        assert not [name for name, _ in attrs if name in ("src", "href")]
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_files(told: Story, tmp_path: Path) -> None:
    _, numbers = output.write(tmp_path, found=told)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "report.html", "sequences.jsonl", "sids.parquet", "summary.json",
    ]  # fmt: skip
    written = json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))
    assert written == json.loads(json.dumps(numbers))
    draft = written["arms"]["draft"]
    assert draft["identical"] == 24
    assert draft["greatest_score_difference"] < 1e-4
    assert draft["accepted_steps"] == pytest.approx(4 - draft["target_calls"])
    assert [crowd["users"] for crowd in written["users_at_once"]] == [1, 3]
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert all(finding in html.unescape(page) for finding in numbers["findings"])
    tags = _Tags()
    tags.feed(page)
    assert not tags.open
    assert "script" not in tags.seen
    assert tags.seen.count("svg") == 5
    test = read_histories(tmp_path / "sequences.jsonl", "test", None)[:24]
    for row, asked in zip(test, told.asked, strict=True):
        assert row.items.tolist() == asked.items.tolist()
        assert row.targets.tolist() == asked.targets.tolist()


def test_commands_of_the_report_run(told: Story, tmp_path: Path) -> None:
    import shlex

    output.write(tmp_path, found=told)
    for command, _ in next_steps(told, tmp_path)[:2]:
        assert (
            run([*shlex.split(command)[1:], *(["--limit", "20"] * ("recommend" in command))]) == 0
        )


def test_missing_models_are_said(tmp_path: Path) -> None:
    with pytest.raises(DraftrecError, match="install draftrec again"):
        items.tell(Size(shipped=tmp_path / "absent"))


def test_shipped_weights_are_small() -> None:
    sizes = {path: path.stat().st_size for path in ASSETS.rglob("*.safetensors")}
    assert sum(sizes.values()) <= 8_000_000
    mine = [path for path in shipped_path().rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in mine) <= 2_500_000
    assert {path.suffix for path in mine} == {".json", ".safetensors", ".parquet"}


def test_shipped_models_fit_each_other() -> None:
    folder = shipped_path()
    sids = read_semantic_ids(folder / "sids.parquet")
    target, draft = (load_recommender(folder / n, "cpu", "float32") for n in ("target", "draft"))
    assert target.info.sids == draft.info.sids == sids.fingerprint()
    assert draft.info.target == target.fingerprint
    assert (target.info.kind, draft.info.kind) == ("target", "draft")
    assert target.model.config.model_type == "llama"
    assert target.model.num_parameters() >= 10 * draft.model.num_parameters()
    card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    assert card["target"]["parameters"] == target.model.num_parameters()
    assert card["draft"]["parameters"] == draft.model.num_parameters()
    assert card["semantic_ids"] == sids.fingerprint()


def test_histories_part_the_last_books(told: Story) -> None:
    reading = told.shipped.readings[3]
    (test,) = histories([reading], "test")
    (valid,) = histories([reading], "valid")
    books = tuple(reading.tolist())
    assert (*test.items.tolist(), *test.targets.tolist()) == books
    assert (*valid.items.tolist(), *valid.targets.tolist()) == books[:-1]


class _Counting:
    """Stands in for a recommender, and notes when it was asked."""

    def __init__(self, name: str, log: list[str]) -> None:
        self.name, self.log = name, log

    def recommend(self, queries: object) -> list[object]:
        self.log.append(self.name)
        return []


def test_each_goes_first_in_turn_after_an_uncounted_round() -> None:
    log: list[str] = []
    runs = items.race({n: _Counting(n, log) for n in "abc"}, [], 3)  # type: ignore[arg-type]
    assert "".join(log) == "abcabcbcacab"
    assert [len(run.seconds) for run in runs.values()] == [3, 3, 3]
    log.clear()
    runs = items.race({n: _Counting(n, log) for n in "abc"}, [], 9, 0.0)  # type: ignore[arg-type]
    assert [len(run.seconds) for run in runs.values()] == [3, 3, 3]
