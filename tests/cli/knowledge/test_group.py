"""`draftrec group`: the files it writes, and what it says about bad input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from draftrec.cli.main import run
from draftrec.data.records import GroupTable


class Command:
    """Runs `draftrec group` and keeps what it said."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self._capsys = folder, capsys
        self.entities = self.write(
            "entities.jsonl",
            *({"entity_id": f"u{i}", "genre": ["noir", "war", "love"][i % 3]} for i in range(30)),
        )
        self.interactions = self.write(
            "interactions.jsonl",
            *(
                {"user_id": f"u{u}", "item_id": f"i{(u % 2) * 10 + k}"}
                for u in range(30)
                for k in range(1 if u == 29 else 8)
            ),
        )
        self.groups = folder / "groups.csv"

    def write(self, name: str, *rows: dict[str, Any]) -> Path:
        path = self.folder / name
        path.write_text("\n".join(map(json.dumps, rows)))
        return path

    def __call__(self, *words: Any) -> int:
        self.code = run(["group", *map(str, words)])
        self.out, self.err = self._capsys.readouterr()
        return self.code

    def tell(self, *words: Any, output: Path | None = None) -> dict[str, Any]:
        assert self(*words, "--output", output or self.groups, "--json") == 0, self.err
        return json.loads(self.out.splitlines()[-1])

    def refuses(self, words: str, *line: Any, output: Path | None = None) -> None:
        """Exit code 2, exactly one line, with these words in it; nothing written."""
        assert self(*line, "--output", output or self.groups) == 2, self.err
        assert self.err.count("\n") == 1, self.err
        assert words in self.err
        assert not self.groups.exists()


@pytest.fixture
def command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(tmp_path, capsys)


@pytest.mark.parametrize("ending", ["csv", "parquet", "jsonl"])
def test_attributes_become_groups(command: Command, ending: str) -> None:
    output = command.folder / "deep" / f"groups.{ending}"
    found = command.tell("attribute", command.entities, "--column", "genre", output=output)
    assert (found["entities"], found["groups"], found["largest"]) == (30, 3, 10)
    table = GroupTable.load(output)
    assert [table.get(f"u{i}") for i in range(3)] == ["noir", "war", "love"]


@pytest.mark.parametrize(
    "content", ["noir: dark\nwar: dark\n'*': light", "dark: [noir, war]\nlight: ['*']"]
)
def test_a_map_makes_few_groups_of_many_values(command: Command, content: str) -> None:
    (command.folder / "map.yaml").write_text(content)
    line = ("attribute", command.entities, "--column", "genre")
    found = command.tell(*line, "--map", command.folder / "map.yaml")
    assert found["groups"] == 2
    table = GroupTable.load(command.groups)
    assert [table.get(f"u{i}") for i in range(3)] == ["dark", "dark", "light"]


def test_keys_of_a_map_are_what_was_written(command: Command) -> None:
    values = ["NO", "ON", "01234", "1234", "12:30", "2024-01-05"]
    rows = [{"entity_id": str(i), "v": value} for i, value in enumerate(values)]
    path = command.write("v.jsonl", *rows)
    (command.folder / "map.yaml").write_text("".join(f"{v}: g{v}\n" for v in values))
    found = command.tell("attribute", path, "--column", "v", "--map", command.folder / "map.yaml")
    assert (found["grouped"], found["groups"]) == (6, 6)
    table = GroupTable.load(command.groups)
    assert [table.get(str(i)) for i in range(6)] == [f"g{v}" for v in values]


def test_whole_numbers_match_however_they_are_written(command: Command) -> None:
    """As pandas writes whole numbers beside a missing one, in Parquet and in CSV."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    (command.folder / "map.yaml").write_text("25: young\n34.0: mid\n'*': rest\n")
    table = pa.table({"entity_id": ["a", "b", "c", "d"], "age": [25.0, None, 34.0, 7.5]})
    pq.write_table(table, command.folder / "x.parquet")
    (command.folder / "x.csv").write_text("entity_id,age\na,25.0\nb,\nc,34\nd,7.5\n")
    (command.folder / "x.jsonl").write_text(
        "".join(f'{{"entity_id": "{e}", "age": {a}}}\n'
                for e, a in zip("abcd", ("25", "NaN", "34.0", "7.5"), strict=True))
    )  # fmt: skip
    for name in ("x.parquet", "x.csv", "x.jsonl"):
        line = ("attribute", command.folder / name, "--column", "age")
        found = command.tell(*line, "--map", command.folder / "map.yaml")
        assert found["without_group"] == 1
        groups = GroupTable.load(command.groups)
        assert [groups.get(e) for e in "abcd"] == ["young", None, "mid", "rest"]
    for name in ("x.parquet", "x.csv", "x.jsonl"):
        command.tell("attribute", command.folder / name, "--column", "age")
        groups = GroupTable.load(command.groups)
        assert [groups.get(e) for e in "abcd"] == ["25", None, "34", "7.5"]


@pytest.mark.parametrize("genres", [["Action", "Crime"], "['Action', 'Crime']", '["Action"]'])
def test_a_list_is_no_group_unless_its_first_is_meant(command: Command, genres: Any) -> None:
    path = command.write("v.jsonl", {"entity_id": "a", "g": genres}, {"entity_id": "b", "g": []})
    line = ("attribute", path, "--column", "g")
    command.refuses("the value of 'a' is a list", *line)
    command.tell(*line, "--first-of-list")
    assert GroupTable.load(command.groups).get("a") == "Action"
    (command.folder / "map.yaml").write_text("Crime: dark\n'*': light\n")
    command.tell(*line, "--first-of-list", "--map", command.folder / "map.yaml")
    group = GroupTable.load(command.groups).get("a")
    assert group == ("dark" if "Crime" in genres else "light")


def test_missing_values_may_have_a_group(command: Command) -> None:
    path = command.write("v.jsonl", {"entity_id": "a", "g": None}, {"entity_id": "b", "g": "x"})
    (command.folder / "map.yaml").write_text("null: unknown\n'*': known\n")
    command.tell("attribute", path, "--column", "g", "--map", command.folder / "map.yaml")
    table = GroupTable.load(command.groups)
    assert (table.get("a"), table.get("b")) == ("unknown", "known")


def test_unusable_rows_are_left_out_and_listed(command: Command) -> None:
    path = command.write(
        "v.jsonl", {"entity_id": "a", "g": "x"}, {"g": "x"}, {"entity_id": 1.5, "g": "x"}
    )
    line = ("attribute", path, "--column", "g", "--output", command.groups, "--json")
    assert command(*line) == 3
    assert json.loads(command.out.splitlines()[-1])["rejected"] == 2
    listed = command.folder / "groups.csv.rejected.jsonl"
    reasons = [json.loads(text) for text in listed.read_text().splitlines()]
    assert [(r["line"], r["reason"]) for r in reasons] == [
        (2, "entity_id is null, not a string or an integer"),
        (3, "entity_id is float, not a string or an integer"),
    ]
    command.write("v.jsonl", {"entity_id": "a", "g": "x"})
    command.tell("attribute", path, "--column", "g")
    assert not listed.exists()


def test_tastes_become_groups_and_the_router_serves_the_rest(command: Command) -> None:
    command.tell("attribute", command.entities, "--column", "genre")
    fallback = command.groups.rename(command.folder / "fallback.csv")
    line = ("collaborative", command.interactions, "--clusters", 2, "--factors", 4)
    found = command.tell(*line, "--fallback", fallback)
    assert (found["by_taste"], found["grouped"], found["groups"]) == (29, 30, 3)
    table = GroupTable.load(command.groups)
    assert table.get("u0") == table.get("u2") != table.get("u1")
    assert table.get("u29") == "love"
    again = command.folder / "again.csv"
    command.tell(*line, "--fallback", fallback, output=again)
    assert again.read_bytes() == command.groups.read_bytes()
    # One who comes later joins the group of the same taste, without another fit.
    new = command.write(
        "new.jsonl", *({"user_id": "new", "item_id": f"i{k}"} for k in (10, 12, 14, 16, 17))
    )
    model = command.folder / "groups.csv.model.npz"
    command.tell("collaborative", new, "--model", model, output=again)
    assert GroupTable.load(again).get("new") == table.get("u1")


def test_items_are_grouped_as_well(command: Command) -> None:
    command.tell(
        "collaborative", command.interactions, "--clusters", 2, "--factors", 4, "--side", "item",
    )  # fmt: skip
    table = GroupTable.load(command.groups)
    assert table.get("i1") == table.get("i2") != table.get("i11")


def test_random_groups_are_a_control(command: Command) -> None:
    found = command.tell("random", command.entities, "--clusters", 4)
    assert (found["entities"], found["groups"]) == (30, 4)


class TestBadInput:
    def test_what_is_missing_is_named(self, command: Command) -> None:
        command.refuses("does not exist", "attribute", "missing.csv", "--column", "genre")
        command.refuses("no column 'mood'", "attribute", command.entities, "--column", "mood")
        command.refuses("no column 'movie'", "collaborative", command.interactions, "--clusters",
                        2, "--item-column", "movie")  # fmt: skip
        line = ("attribute", command.entities, "--column", "genre", "--map")
        command.refuses("cannot be read", *line, "missing.yaml")
        line = ("collaborative", command.interactions)
        command.refuses("either --clusters", *line)
        command.refuses("either --clusters", *line, "--clusters", 2, "--model", "m.npz")
        command.refuses("no model", *line, "--model", "missing.npz")
        command.refuses("only 29 entities", *line, "--clusters", 30)

    def test_files_that_say_two_things_are_refused(self, command: Command) -> None:
        twice = command.write("twice.jsonl", *[{"entity_id": "a", "genre": "x"}] * 2)
        command.refuses("line 2", "attribute", twice, "--column", "genre")
        (command.folder / "map.yaml").write_text("dark: [noir]\nlight: [noir]")
        line = ("attribute", command.entities, "--column", "genre", "--map")
        command.refuses("'dark' and into 'light'", *line, command.folder / "map.yaml")
        (command.folder / "map.yaml").write_text("- noir")
        command.refuses("must hold", *line, command.folder / "map.yaml")

    def test_unusable_values_and_names_are_refused(self, command: Command) -> None:
        null = command.write("null.jsonl", {"entity_id": None, "genre": "x"})
        command.refuses("entity_id is null", "attribute", null, "--column", "genre")
        none = command.write("none.jsonl", {"entity_id": "a", "genre": None})
        command.refuses("no entity has a group", "attribute", none, "--column", "genre")
        other = command.folder / "groups.txt"
        command.refuses("name ends in", "random", command.entities, "--clusters", 2, output=other)


def test_the_median_of_two_sizes_lies_between_them(command: Command) -> None:
    rows = [{"entity_id": f"u{i}", "genre": "war" if i < 2 else "love"} for i in range(7)]
    found = command.tell("attribute", command.write("two.jsonl", *rows), "--column", "genre")
    assert (found["smallest"], found["median"], found["largest"]) == (2, 3.5, 5)
