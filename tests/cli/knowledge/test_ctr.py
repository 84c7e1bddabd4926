"""`draftrec ctr`: from files to a summary, and histories that `generate` reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import pytest

from draftrec.cli.main import run
from draftrec.ctr.backbones import BACKBONES
from draftrec.ctr.model import ADAPTORS
from draftrec.ctr.settings import Adaptor, Backbone
from draftrec.data.records import Entity, EntityReader, Layout
from draftrec.data.tables.readers import open_records
from draftrec.data.templates import load_template
from tests.ctr.world import USERS, World

QUICK = ("--epochs", "1", "--embedding", "4", "--seeds", "2", "--workers", "1")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


def ctr(world: World, capsys: pytest.CaptureFixture[str], *more: Any) -> tuple[int, str, str]:
    code = run([str(word) for word in ["ctr", world.interactions, *more]])
    out, err = capsys.readouterr()
    return code, out, err


@pytest.mark.slow
def test_from_files_to_a_summary(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = [
        "--items", world.items, "--user-vectors", world.user_vectors, "--item-vectors",
        world.item_vectors, "--model", "deepfm", "--model", "dcn", "--adaptor", "none",
        "--adaptor", "moe", *QUICK, "--output", tmp_path / "study",
    ]  # fmt: skip
    code, out, err = ctr(world, capsys, *line, "--json")
    assert code == 0, err
    summary = json.loads(out.splitlines()[-1])
    assert summary == json.loads((tmp_path / "study" / "summary.json").read_text())
    assert [(r["model"], r["adaptor"], r["seeds"]) for r in summary["results"]] == [
        ("deepfm", "none", 2), ("deepfm", "moe", 2), ("dcn", "none", 2), ("dcn", "moe", 2),
    ]  # fmt: skip
    assert all(0 < r["auc"]["mean"] < 1 for r in summary["results"])
    assert "over none" in err
    times = (tmp_path / "study" / "times.jsonl").read_bytes()
    assert ctr(world, capsys, *line)[0] == 0
    assert (tmp_path / "study" / "times.jsonl").read_bytes() == times  # nothing was run again


@pytest.mark.slow
def test_bad_rows_are_rejected_and_columns_named(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Labels in place of ratings, a row without a rating, an item without an id."""
    rows = [json.loads(line) for line in world.interactions.read_text().splitlines()]
    labelled = [{**row, "rating": row["rating"] > 3} for row in rows]
    path = world.write("labels.jsonl", [*labelled, {**labelled[0], "rating": None}])
    items = [json.loads(line) for line in world.items.read_text().splitlines()]
    items = [{**item, "category_id": i % 4, "price": i / 3} for i, item in enumerate(items)]
    items_path = world.write("more-items.jsonl", [*items, {"title": "nobody"}])
    more = ["--items", items_path, "--model", "dcn", *QUICK]
    line = [str(w) for w in ("ctr", path, *more, "--output", tmp_path / "a", "--json")]
    assert run(line) == 3
    out, err = capsys.readouterr()
    found = json.loads(out.splitlines()[-1])
    listed = (tmp_path / "a" / "rejected.jsonl").read_text().splitlines()
    assert [(json.loads(r)["file"], json.loads(r)["reason"]) for r in listed] == [
        ("labels.jsonl", "rating is null, not a number"),
        ("more-items.jsonl", "item_id is null, not a string or an integer"),
    ]
    assert found["rejected"] == 2
    assert found["positive"] == 1
    assert found["columns"]["items"] == {
        "used": {"genres": 5, "category_id": 4},
        "left_out": {"title": "60 different values in 60 rows", "price": "numbers with fractions"},
    }
    assert "genres (5 values), category_id (4 values); left out: title (60 different" in " ".join(
        err.split()
    )
    # The same clicks as ratings give the same models.
    code, out, _ = ctr(world, capsys, *more, "--output", tmp_path / "b", "--json")
    assert code == 3
    assert json.loads(out.splitlines()[-1])["results"] == found["results"]


@pytest.mark.slow
def test_histories_are_what_generate_reads(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "histories.jsonl"
    items = [json.loads(line) for line in world.items.read_text().splitlines()]
    events = [json.loads(line) for line in world.interactions.read_text().splitlines()]
    gone = next(e["item_id"] for e in events if e["user_id"] == events[0]["user_id"])
    titled = world.write("titled.jsonl", [item for item in items if item["item_id"] != gone])
    more = ("--items", titled, "--category-column", "genres", "--history", 5)
    code, out, err = ctr(world, capsys, "--save-histories", path, *more, "--json")
    assert code == 0, err
    told = json.loads(out)
    untitled = told["untitled"]
    assert untitled > 0
    assert told == {
        "users": USERS,
        "untitled": untitled,
        "rejected": 0,
        "output": str(path),
    }
    assert f"{untitled} interactions with items that have no title" in err
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert sum(len(record["history"]) for record in records) == 5 * USERS - untitled
    assert {record["rating_scale"] for record in records} == {5}
    reader = EntityReader(open_records(path), Layout(load_template("kar", "user")))
    reader.check_columns()
    first = next(iter(reader))
    assert isinstance(first, Entity)
    for item in records[0]["history"]:
        assert f"- {item['title']} ({item['category']}): {item['rating']} of 5" in first.prompt
        assert item["title"].startswith("Title ")
        assert item["category"].startswith("g")
    plain = ("--items", titled, "--history", 5)
    assert ctr(world, capsys, "--save-histories", path, *plain)[0] == 0
    entries = [e for line in path.read_text().splitlines() for e in json.loads(line)["history"]]
    assert entries
    assert not any("category" in entry for entry in entries), "longer prompts are asked for"


def test_the_names_on_the_command_line_are_those_of_the_library() -> None:
    assert get_args(Backbone) == tuple(BACKBONES)
    assert get_args(Adaptor) == ("none", *ADAPTORS)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "words"),
    [
        ((), "--output DIR"),
        (("--output", "o", "--adaptor", "moe"), "needs vectors"),
        (("--output", "o", "--embedding", "5"), "must be even"),
        (("--output", "o", "--workers", "many"), "--workers must be auto"),
        (("--output", "o", "--workers", "0"), "--workers must be auto"),
        (("--output", "o", "--positive", "9"), "0 clicks among"),
        (("--output", "o", "--rating-column", "stars"), "'stars'"),
        (("--output", "o", "--items", "none.jsonl"), "does not exist"),
        (("--save-histories", "h.csv"), "end in .jsonl"),
    ],
)
def test_bad_input_is_one_sentence(
    world: World,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    more: tuple[str, ...],
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = ctr(world, capsys, *more)
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert words in err
    assert not (tmp_path / "o").exists()


def test_columns_of_histories_are_checked(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ("--save-histories", tmp_path / "h.jsonl", "--items", world.items)
    code, _, err = ctr(world, capsys, *more, "--title-column", "name")
    assert code == 2
    assert "no column 'name'" in err
