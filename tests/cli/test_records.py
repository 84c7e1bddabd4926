"""`draftrec records`: histories as pandas gathers them, items with their fields, and what leads on
from there."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime, time
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from draftrec.cli.main import run
from draftrec.data.records import Entity, EntityReader, Layout
from draftrec.data.tables.readers import open_records
from draftrec.data.templates import load_template
from tests.cli.test_sequences import interactions

pd = pytest.importorskip("pandas")


def catalogue(*, texts: bool = False) -> Any:
    """Titles of items 0 to 21, of which item 3 has none; items 22 to 24 are not there."""
    rows = [
        {"item_id": i, "title": None if i == 3 else f"Film {i}", "genres": f"Drama|Kind {i % 3}",
         "year": 1990 + i, "overview": f"About {i}."}
        for i in range(22)
    ]  # fmt: skip
    found = pd.DataFrame(rows)
    if texts:
        found["item_id"] = "B0" + found["item_id"].astype(str)
    return found


class Command:
    """Runs the command and reads what it wrote."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self._capsys = folder, capsys
        self.output = folder / "records.parquet"

    def write(self, frame: Any, name: str) -> Path:
        path = self.folder / name
        frame.to_csv(path, index=False) if name.endswith("csv") else frame.to_parquet(path)
        return path

    def __call__(self, *words: Any) -> int:
        code = run(["records", *map(str, words), "--output", str(self.output), "--json"])
        self.out, self.err = self._capsys.readouterr()
        return code

    def tell(self, *words: Any) -> dict[str, Any]:
        assert self(*words, "--overwrite") == 0, self.err
        return json.loads(self.out.splitlines()[-1])

    def rows(self) -> list[dict[str, Any]]:
        if self.output.suffix == ".jsonl":
            return [json.loads(line) for line in self.output.read_text().splitlines()]
        return pq.read_table(self.output).to_pylist()


@pytest.fixture
def command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(tmp_path, capsys)


def gathered(events: Any, items: Any, most: int) -> dict[Any, list[tuple[str, float]]]:
    """Title and rating of each user's latest items, by pandas."""
    found = events.sort_values("timestamp", kind="stable").merge(items, on="item_id", how="left")
    found = found.dropna(subset=["title"])
    return {
        user: list(zip(rows["title"].tail(most), rows["rating"].tail(most), strict=True))
        for user, rows in found.groupby("user_id", sort=False)
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", ["parquet", "csv"])
@pytest.mark.parametrize("texts", [False, True])
def test_histories_are_what_pandas_gathers(command: Command, name: str, *, texts: bool) -> None:
    events, items = interactions(texts=texts), catalogue(texts=texts)
    words = (command.write(events, f"e.{name}"), command.write(items, f"i.{name}"))
    told = command.tell(*words, "--side", "user", "--history", 4)
    wanted = gathered(events, items, 4)
    rows = command.rows()
    found = {r["entity_id"]: [(e["title"], e["rating"]) for e in r["history"]] for r in rows}
    assert found == wanted
    assert list(found) == [user for user in events["user_id"].drop_duplicates() if user in wanted]
    assert told["records"] == len(wanted)
    assert told["items_without_title"] == 1
    assert {r["rating_scale"] for r in rows} == {5}
    one = rows[0]["history"][0]
    place = int(one["title"].split()[1])
    assert one["category"] == f"Drama, Kind {place % 3}"
    assert one["year"] == str(1990 + place)


def test_later_and_lower_interactions_may_stay_out(command: Command) -> None:
    events, items = interactions(1), catalogue()
    words = (command.write(events, "e.parquet"), command.write(items, "i.parquet"))
    command.tell(*words, "--until", 1030, "--min-rating", 3)
    kept = events[(events["timestamp"] < 1030) & (events["rating"] >= 3)]
    found = {
        r["entity_id"]: [(e["title"], e["rating"]) for e in r["history"]] for r in command.rows()
    }
    assert found == gathered(kept, items, 30)


@pytest.mark.parametrize("ending", ["parquet", "jsonl"])
def test_records_of_items_have_their_fields_and_popularity(command: Command, ending: str) -> None:
    events, items = interactions(2), catalogue()
    command.output = command.output.with_suffix(f".{ending}")
    words = (command.write(events, "e.parquet"), command.write(items, "i.parquet"))
    command.tell(*words, "--side", "item")
    found = {row["entity_id"]: row for row in command.rows()}
    assert list(found) == [i for i in range(22) if i != 3]
    grouped = events.groupby("item_id")["rating"]
    for item, row in found.items():
        assert row["title"] == f"Film {item}"
        assert row["description"] == f"About {item}."
        assert row["popularity"] == grouped.count().get(item, 0)
        mean = grouped.mean().get(item)
        assert row["mean_rating"] == (None if mean is None else pytest.approx(mean, abs=1e-4))


@pytest.mark.slow
@pytest.mark.parametrize("side", ["user", "item"])
@pytest.mark.parametrize("framework", ["kar", "trawl", "once", "rlmrec"])
@pytest.mark.parametrize("ending", ["parquet", "jsonl"])
def test_every_template_takes_them(
    command: Command, side: str, framework: str, ending: str
) -> None:
    command.output = command.output.with_suffix(f".{ending}")
    words = (command.write(interactions(), "e.csv"), command.write(catalogue(), "i.csv"))
    told = command.tell(*words, "--side", side)
    template = load_template(framework, side)  # type: ignore[arg-type]
    reader = EntityReader(open_records(command.output), Layout(template))
    reader.check_columns()
    found = list(reader)
    assert len(found) == told["records"]
    assert all(isinstance(one, Entity) and "Film " in one.prompt for one in found), found[0]
    if side == "user" and framework == "kar":
        assert " of 5" in found[0].prompt  # type: ignore[union-attr]


def test_columns_may_be_named_otherwise(command: Command) -> None:
    events, items = interactions(3), catalogue()
    words = (command.write(events, "e.parquet"), command.write(items, "i.parquet"))
    command.tell(*words)
    wanted = command.rows()
    events = events.rename(columns={"user_id": "user", "item_id": "movie", "timestamp": "ts"})
    items = items.rename(columns={"item_id": "movie", "title": "name"})
    words = (command.write(events, "e.parquet"), command.write(items, "i.parquet"))
    command.tell(*words)
    assert command.rows() == wanted
    events = events.rename(columns={"movie": "what"})
    items = items.rename(columns={"movie": "what", "name": "called", "genres": "sort"})
    words = (command.write(events, "e.parquet"), command.write(items, "i.parquet"))
    names = ("--item-column", "what", "--title-column", "called", "--category-column", "sort")
    command.tell(*words, *names)
    assert command.rows() == wanted


@pytest.mark.parametrize(
    ("change", "words", "said"),
    [
        ({"title": "words"}, (), "no column 'title', it has"),
        ({}, ("--title-column", "name"), "no column 'name'"),
        ({}, ("--id-column", "key"), "no column 'key'"),
        ({}, ("--min-rating", "9"), "with --min-rating 9; ratings go from 1 to 5"),
        ({}, ("--until", "0"), "is left with --until 0; ratings go from 1 to 5, times go from 1"),
        ({}, ("--until", "2001-01-01"), "--until is a date, and the times of the interactions are"),
        ({}, ("--until", "then"), "--until must be a number"),
    ],
)
def test_what_cannot_be_is_refused(
    command: Command, change: dict[str, str], words: tuple[str, ...], said: str
) -> None:
    items = catalogue().drop(columns="overview").rename(columns=change)
    files = (command.write(interactions(), "e.parquet"), command.write(items, "i.parquet"))
    assert command(*files, *words) == 2
    assert said in command.err
    assert command.err.count("\n") == 1
    assert not command.output.exists()


def test_an_item_may_be_listed_again_as_it_was(command: Command) -> None:
    """As in the metadata of Amazon and of TMDB."""
    items = catalogue()
    events = command.write(interactions(), "e.parquet")
    command.tell(events, command.write(items, "i.parquet"), "--side", "item")
    once = command.rows()
    again = pd.concat([items, items.iloc[5:9]], ignore_index=True)
    command.tell(events, command.write(again, "i.parquet"), "--side", "item")
    assert command.rows() == once
    again["year"] = range(len(again))
    assert command(events, command.write(again, "i.parquet"), "--overwrite") == 2
    assert "line 23: 5 is listed before, with other values" in command.err


def test_files_that_do_not_meet_are_refused(command: Command) -> None:
    files = (
        command.write(interactions(), "e.parquet"),
        command.write(catalogue(texts=True), "i.parquet"),
    )
    assert command(*files) == 2
    assert "the ids of the two files do not meet" in command.err
    command.output = command.output.with_suffix(".csv")
    assert command(*files) == 2
    assert "cannot be CSV" in command.err


def test_items_that_nobody_took_are_no_silence(command: Command) -> None:
    items = catalogue()
    items["item_id"] = items["item_id"].astype(str) + ".0"
    words = (command.write(interactions(), "e.csv"), command.write(items, "i.csv"))
    assert command(*words, "--side", "item") == 2
    assert "items of" in command.err
    assert "(whole numbers written with .0)" in command.err
    assert not command.output.exists()


#: A value of a column of items, what JSON lines say of it, and what Parquet holds.
ODD: dict[str, tuple[Any, Any, Any]] = {
    "date": (date(2020, 1, 2), "2020-01-02", date(2020, 1, 2)),
    "moment": (datetime(2020, 1, 2, tzinfo=UTC), "2020-01-02T00:00:00+00:00", None),
    "time": (time(1, 2), "01:02:00", time(1, 2)),
    "price": (Decimal("9.90"), 9.9, Decimal("9.90")),
    "count": (Decimal("12"), 12, Decimal("12")),
    "bytes": (b"\xffa", "\\xffa", b"\xffa"),
    "parts": ({"on": date(2020, 1, 2)}, {"on": "2020-01-02"}, {"on": date(2020, 1, 2)}),
    "numbers": ([1.5, float("nan")], [1.5, None], None),
    "much": (float("inf"), None, float("inf")),
    "large": (2**64 - 1, "18446744073709551615", "18446744073709551615"),
}


@pytest.mark.parametrize("ending", ["parquet", "jsonl"])
@pytest.mark.parametrize("name", ODD)
def test_columns_of_any_type_are_told(command: Command, ending: str, name: str) -> None:
    value, line, cell = ODD[name]
    items = command.folder / "i.parquet"
    kind = pa.uint64() if name == "large" else None
    table = {"item_id": [1, 2], "title": ["A", "B"], name: pa.array([value, None], kind)}
    pq.write_table(pa.table(table), items)
    command.output = command.output.with_suffix(f".{ending}")
    command.tell(command.write(interactions(), "e.csv"), items, "--side", "item")
    first, second = (row[name] for row in command.rows())
    if ending == "jsonl":
        assert first == line
        assert "NaN" not in command.output.read_text()
    elif cell is not None:
        assert first == cell
    assert second is None


@pytest.mark.parametrize("ending", ["parquet", "jsonl"])
@pytest.mark.parametrize("details", ["{}", '{"a": {}}', "[{}]", f"{2**70}"])
def test_what_tables_have_no_type_for_is_a_text(
    command: Command, ending: str, details: str
) -> None:
    items = command.folder / "i.jsonl"
    items.write_text(f'{{"item_id": 1, "title": "A", "details": {details}}}\n')
    command.output = command.output.with_suffix(f".{ending}")
    command.tell(command.write(interactions(), "e.csv"), items, "--side", "item")
    assert isinstance(command.rows()[0]["details"], str)


@pytest.mark.parametrize("side", ["user", "item"])
@pytest.mark.parametrize("cell", ['"x\\ud83d"', '["x\\ud83d"]', '{"x\\ud83d": 1}'])
def test_half_a_character_is_refused_by_its_place(command: Command, side: str, cell: str) -> None:
    items = command.folder / "i.jsonl"
    items.write_text(f'{{"item_id": 1, "title": "A"}}\n{{"item_id": 2, "title": "B", "c": {cell}}}')
    assert command(command.write(interactions(), "e.csv"), items, "--side", side) == 3
    assert json.loads(command.out.splitlines()[-1])["rejected"] == 1
    (rejected,) = (command.folder / "records.parquet.rejected.jsonl").read_text().splitlines()
    assert json.loads(rejected) | {"reason": ""} == {
        "entity_id": "2", "line": 2, "reason": "", "file": "i.jsonl"
    }  # fmt: skip
    assert "c holds half of a surrogate pair" in rejected
    assert "B" not in str(command.rows())


@pytest.mark.parametrize("name", ["sequences", "records"])
def test_an_end_before_the_table_is_there_costs_no_list_of_rejected_rows(
    command: Command, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The table was there first, and the next run refused to replace it."""
    events = command.write(interactions(), "e.csv")
    events.write_text(events.read_text() + ",5,3,1001\n")
    line = [name, events, "--output", command.output]
    line += [command.write(catalogue(), "i.csv")] if name == "records" else []

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("draftrec.data.files.writers.write_tables", killed)
        assert run([*map(str, line)]) == 130
    listed = command.folder / "records.parquet.rejected.jsonl"
    assert len(listed.read_text().splitlines()) == 1
    assert not command.output.exists()
    assert run([*map(str, line)]) == 3


#: Genres as files have them, and how prompts name them.
GENRES: list[tuple[Any, str]] = [
    (["Drama", None, "War"], "Drama, War"),
    ([{"id": 18, "name": "Drama"}, {"id": 1, "name": "War"}], "Drama, War"),
    ({"main": "Drama", "of": ["War", None]}, "main: Drama, of: War"),
    ([["Drama"], ["War"]], "Drama, War"),
]


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize(("genres", "told"), GENRES)
def test_lists_and_objects_are_put_into_words(
    command: Command, genres: Any, told: str, ending: str
) -> None:
    """Nulls in them have no word, and CSV has them as they are printed."""
    if isinstance(genres, dict) and ending == "csv":
        pytest.skip("CSV says nothing of objects outside lists")
    items = pd.DataFrame({"item_id": [1, 2], "title": ["A", "B"], "genres": [genres, genres]})
    path = command.folder / f"i.{ending}"
    if ending == "jsonl":
        items.to_json(path, orient="records", lines=True)
    else:
        path = command.write(items, path.name)
    events = command.write(interactions(), "e.csv")
    command.tell(events, path)
    assert command.rows()[0]["history"][-1]["category"] == told
    command.tell(events, path, "--side", "item")
    layout = Layout(load_template("kar", "item"))
    first = next(iter(EntityReader(open_records(command.output), layout)))
    assert isinstance(first, Entity)
    assert f"\nCategory: {told}\n" in first.prompt


@pytest.mark.parametrize("user", ['"x\\ud83d"', '""'])
@pytest.mark.parametrize("made", ["records", "sequences"])
def test_rows_whose_ids_are_none_are_left_out(tmp_path: Path, user: str, made: str) -> None:
    rows = [("1", 1), ("1", 2), ("1", 3), (user, 2)]
    events, items = tmp_path / "e.jsonl", tmp_path / "i.csv"
    events.write_text("".join(f'{{"user_id": {u}, "item_id": {i}}}\n' for u, i in rows))
    items.write_text("item_id,title\n1,A\n2,B\n3,C\n")
    output = tmp_path / "o.jsonl"
    more = [str(items)] if made == "records" else []
    assert run([made, str(events), *more, "--output", str(output)]) == 3
    names = {
        row.get("entity_id", row.get("user"))
        for row in map(json.loads, output.read_text().splitlines())
    }
    assert names == {1}


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("side", ["user", "item"])
def test_what_is_named_goes_before_what_is_called_so(
    command: Command, side: str, *, first: bool
) -> None:
    items = catalogue()
    named = items.rename(columns={"title": "called", "genres": "sort"})
    for name in ("title", "category", "entity_id"):
        named.insert(0 if first else len(named.columns), name, f"another {name}")
    words = (command.write(interactions(), "e.csv"), "--side", side)
    command.tell(*words, command.write(items.rename(columns={"genres": "category"}), "i.csv"))
    wanted = command.rows()
    names = ("--title-column", "called", "--category-column", "sort")
    command.tell(*words, command.write(named, "n.csv"), *names)
    assert command.rows() == wanted


@pytest.mark.parametrize("name", ["parquet", "csv"])
def test_years_beside_missing_ones_are_whole_numbers(command: Command, name: str) -> None:
    items = catalogue()
    items["year"] = items["year"].where(items["item_id"] != 5).astype(float)
    words = (command.write(interactions(), "e.csv"), command.write(items, f"i.{name}"))
    for side in ("user", "item"):
        command.tell(*words, "--side", side)
        reader = EntityReader(open_records(command.output), Layout(load_template("kar", side)))  # type: ignore[arg-type]
        prompts = [one.prompt for one in reader if isinstance(one, Entity)]
        assert any("Film 7 (1997)" in prompt for prompt in prompts)
        assert not any(".0)" in prompt for prompt in prompts)


def test_histories_and_items_hold_what_nobody_rated(command: Command) -> None:
    events, items = interactions(4), catalogue()
    events.loc[events.index % 3 == 0, "rating"] = None
    words = (command.write(events, "e.parquet"), command.write(items, "i.parquet"))
    assert command.tell(*words)["rejected"] == 0
    found = {
        r["entity_id"]: [(e["title"], e["rating"]) for e in r["history"]] for r in command.rows()
    }
    told = gathered(events, items, 30)
    assert found == {
        user: [(title, None if rating != rating else rating) for title, rating in entries]
        for user, entries in told.items()
    }
    command.tell(*words, "--side", "item")
    means = events.groupby("item_id")["rating"].mean()
    for row in command.rows():
        assert row["popularity"] == (events["item_id"] == row["entity_id"]).sum()
        mean = means.get(row["entity_id"])
        assert row["mean_rating"] == (None if mean is None or mean != mean else round(mean, 4))
