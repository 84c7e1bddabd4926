"""`draftrec sequences`: what pandas would make of the same interactions, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from draftrec.cli.main import run
from draftrec.data.sequences import read_histories

pd = pytest.importorskip("pandas")


def interactions(seed: int = 0, *, texts: bool = False) -> Any:
    """Users with 1 to 12 interactions in no order, some at one moment, some repeated."""
    random = np.random.default_rng(seed)
    rows = []
    for user in range(40):
        for _ in range(int(random.integers(1, 13))):
            item, time = int(random.integers(0, 25)), int(random.integers(0, 60))
            rows.append((user, item, int(random.integers(1, 6)), 1000 + time))
    found = pd.DataFrame(rows, columns=["user_id", "item_id", "rating", "timestamp"])
    found = found.sample(frac=1, random_state=seed).reset_index(drop=True)
    if texts:
        found["user_id"] = "u" + found["user_id"].astype(str)
        found["item_id"] = "B0" + found["item_id"].astype(str)
    return found


class Command:
    """Runs the command, and says what it wrote as user -> part -> items."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self._capsys = folder, capsys
        self.output = folder / "deep" / "sequences.parquet"

    def write(self, frame: Any, name: str = "x.parquet") -> Path:
        path = self.folder / name
        frame.to_csv(path, index=False) if name.endswith("csv") else frame.to_parquet(path)
        return path

    def __call__(self, path: Path, *words: Any) -> int:
        line = ["sequences", path, "--output", self.output, "--json", *words]
        code = run([str(word) for word in line])
        self.out, self.err = self._capsys.readouterr()
        return code

    def tell(self, path: Path, *words: Any) -> dict[str, Any]:
        assert self(path, "--overwrite", *words) == 0, self.err
        return json.loads(self.out.splitlines()[-1])

    def parts(self) -> dict[Any, dict[str, list[Any]]]:
        found: dict[Any, dict[str, list[Any]]] = {}
        for row in pq.read_table(self.output).to_pylist():
            assert row["part"] not in found.setdefault(row["user"], {})
            assert row["items"]
            found[row["user"]][row["part"]] = row["items"]
        return found


@pytest.fixture
def command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(tmp_path, capsys)


def left_out(frame: Any, fewest: int) -> dict[Any, dict[str, list[Any]]]:
    """Leave-one-out, by pandas."""
    found = {}
    frame = frame.sort_values("timestamp", kind="stable")
    for user, rows in frame.groupby("user_id", sort=False):
        items = rows["item_id"].tolist()
        if len(items) >= fewest:
            parts = {"train": items[:-2], "valid": items[-2:-1], "test": items[-1:]}
            found[user] = parts if len(items) > 2 else {"train": items}
    return found


@pytest.mark.slow
@pytest.mark.parametrize("texts", [False, True])
@pytest.mark.parametrize("name", ["x.parquet", "x.csv"])
def test_the_last_items_are_left_out(command: Command, name: str, *, texts: bool) -> None:
    frame = interactions(texts=texts)
    told = command.tell(command.write(frame, name))
    wanted = left_out(frame, 3)
    assert command.parts() == wanted
    order = frame["user_id"].drop_duplicates().tolist()
    assert list(command.parts()) == [user for user in order if user in wanted]
    assert told["users"] == len(wanted) == told["test"]["users"] == told["valid"]["items"]
    assert told["users_left_out"] == frame["user_id"].nunique() - len(wanted)
    assert told["interactions"] == sum(told[part]["items"] for part in ("train", "valid", "test"))
    assert len(read_histories(command.output, "test", None)) == len(wanted)


def test_users_with_few_items_only_train_if_they_are_kept(command: Command) -> None:
    frame = interactions(1)
    command.tell(command.write(frame), "--min-interactions", 1)
    assert command.parts() == left_out(frame, 1)


@pytest.mark.parametrize("repeats", ["first", "last"])
def test_repeats_and_low_ratings_and_rare_items_go(command: Command, repeats: str) -> None:
    frame = interactions(2)
    words = ("--repeats", repeats, "--min-rating", 2, "--min-interactions", 3)
    told = command.tell(command.write(frame), *words, "--min-item-interactions", 4)
    good = frame[frame["rating"] >= 2].sort_values("timestamp", kind="stable")
    once = good.drop_duplicates(["user_id", "item_id"], keep=repeats)
    kept = once
    while True:
        users, items = kept["user_id"].value_counts(), kept["item_id"].value_counts()
        enough = kept["user_id"].map(users) >= 3
        enough &= kept["item_id"].map(items) >= 4
        if enough.all():
            break
        kept = kept[enough]
    assert command.parts() == left_out(kept, 3)
    assert told["low_ratings"] == len(frame) - len(good)
    assert told["repeats_left_out"] == len(good) - len(once)
    assert told["items_left_out"] == once["item_id"].nunique() - kept["item_id"].nunique()


def by_time(frame: Any, valid: float, test: float) -> dict[Any, dict[str, list[Any]]]:
    frame = frame.sort_values("timestamp", kind="stable")
    part = np.where(
        frame["timestamp"] >= test, "test", np.where(frame["timestamp"] >= valid, "valid", "train")
    )
    found: dict[Any, dict[str, list[Any]]] = {}
    for (user, name), rows in frame.groupby(["user_id", part], sort=False):
        found.setdefault(user, {})[name] = rows["item_id"].tolist()
    return found


def test_a_split_by_time_is_that_of_quantiles(command: Command) -> None:
    frame = interactions(3)
    told = command.tell(command.write(frame), "--split", "time", "--test-share", 0.2)
    ends = frame["timestamp"].quantile([0.7, 0.8], interpolation="higher").tolist()
    assert [told["valid_from"], told["test_from"]] == ends
    assert command.parts() == by_time(frame, *ends)
    tested = {u for u, parts in command.parts().items() if "test" in parts}
    fresh = {u for u in tested if len(command.parts()[u]) == 1}
    assert told["test_users_without_history"] == len(fresh)


@pytest.mark.slow
def test_a_split_by_time_takes_dates(command: Command) -> None:
    frame = interactions(4)
    days = frame["timestamp"] - 1000
    valid, test = by_time(frame, 1020, 1040), by_time(frame, 1040, 1040)
    words = ("--split", "time", "--valid-from", "2011-01-21", "--test-from", "2011-02-10")
    begin = pd.Timestamp("2011-01-01")
    for unit in (1, 10**3, 10**6, 10**9):
        frame["timestamp"] = (int(begin.timestamp()) + days * 86400) * unit
        command.tell(command.write(frame), *words)
        assert command.parts() == valid
    command.tell(command.write(frame), *words[:2], *words[4:])
    assert command.parts() == test
    stamps = begin + pd.to_timedelta(days, unit="D")
    command.tell(command.write(frame.assign(timestamp=stamps)), *words)
    assert command.parts() == valid
    for form in ("%a %b %d %H:%M:%S +0000 %Y", "%Y/%m/%d %H:%M", "%Y-%m-%d %H:%M:%S +0000",
                 "%m %d, %Y", "%d-%b-%Y", "%d %b %Y, %H:%M", "%Y.%m.%d"):  # fmt: skip
        command.tell(
            command.write(frame.assign(timestamp=stamps.dt.strftime(form)), "x.csv"), *words
        )
        assert command.parts() == valid, form


@pytest.mark.parametrize("form", ["%Y%m%d", "%Y%m%d%H%M", "%Y%m%d%H%M%S", "%j"])
@pytest.mark.parametrize("made", ["records", "sequences"])
def test_a_date_is_held_against_no_other_numbers(command: Command, form: str, made: str) -> None:
    """Every 20240531 is before 2001-01-01 where that is taken for seconds."""
    frame = interactions(4)
    stamps = pd.Timestamp("2024-05-31") + pd.to_timedelta(frame["timestamp"] - 1000, unit="D")
    path = command.write(frame.assign(timestamp=stamps.dt.strftime(form).astype(int)))
    if made == "records":
        films = command.write(pd.DataFrame({"item_id": range(25), "title": "Ran"}), "films.csv")
        words = ["records", path, films, "--until", "2001-01-01", "--output", command.output]
        assert run([str(word) for word in words]) == 2
    else:
        assert command(path, "--split", "time", "--test-from", "2001-01-01") == 2
        assert "--test-from is a date, and the times of the interactions are numbers" in command.err
    assert not command.output.exists()


def test_dates_among_numbers_are_refused(command: Command) -> None:
    frame = interactions(4)
    times = frame["timestamp"].astype(str).where(frame.index % 3 > 0, "2024-05-31")
    assert command(command.write(frame.assign(timestamp=times), "x.csv")) == 2
    assert "timestamp holds 9" in command.err
    assert "dates among numbers" in command.err


@pytest.mark.parametrize("name", ["nan", "None", "NA", "NULL"])
def test_who_is_called_as_nobody_is_said(command: Command, name: str) -> None:
    frame = interactions(4)
    nobody = frame["user_id"] % 10 == 3
    frame["user_id"] = frame["user_id"].astype(str).mask(nobody, name)
    command.tell(command.write(frame))
    assert f"{nobody.sum()} interactions are of the user '{name}', as programs print" in command.err
    assert command.err.count("as programs print") == 1


def test_whole_numbers_that_pandas_made_floats_are_named(command: Command) -> None:
    assert command(command.write(interactions(4).astype({"item_id": float}))) == 2
    assert "item_id is float, not a string or an integer (pandas turns" in command.err


def test_without_times_the_order_is_that_of_the_file(command: Command) -> None:
    frame = interactions(5).drop(columns=["timestamp", "rating"])
    command.tell(command.write(frame))
    assert "no times" in command.err
    assert command.parts() == left_out(frame.assign(timestamp=0), 3)


def test_columns_may_be_named_otherwise(command: Command) -> None:
    frame = interactions(6)
    names = {"user_id": "userId", "item_id": "movieId", "timestamp": "ts"}
    command.tell(command.write(frame.rename(columns=names)))
    assert command.parts() == left_out(frame, 3)
    names = {"user_id": "who", "item_id": "what", "timestamp": "when"}
    words = ("--user-column", "who", "--item-column", "what", "--time-column", "when")
    command.tell(command.write(frame.rename(columns=names)), *words)
    assert command.parts() == left_out(frame, 3)


@pytest.mark.parametrize("ending", ["jsonl", "csv"])
def test_other_kinds_of_files_say_the_same(command: Command, ending: str) -> None:
    frame = interactions(7, texts=True)
    command.output = command.output.with_suffix(f".{ending}")
    command.tell(command.write(frame))
    wanted = {user: parts["test"] for user, parts in left_out(frame, 3).items()}
    found = read_histories(command.output, "test", None)
    assert {h.user: h.targets.tolist() for h in found} == wanted


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--user-column", "who"), "no column 'who'"),
        (("--min-interactions", 100), "no user is left"),
        (("--valid-from", "5"), "--valid-from belongs to --split time"),
        (("--split", "time", "--valid-from", "5"), "--valid-from needs --test-from"),
        (("--split", "time", "--test-from", "noon"), "--test-from must be a number as in the file"),
        (("--split", "time", "--test-from", "9000"), "no interaction falls into the part 'test'"),
        (("--split", "time", "--valid-from", "9", "--test-from", "8"), "must lie before"),
        (("--split", "time", "--valid-share", "0.5", "--test-share", "0.5"), "below 1 together"),
    ],
)
def test_what_cannot_be_is_refused(command: Command, words: tuple[str, ...], said: str) -> None:
    assert command(command.write(interactions()), *words) == 2
    assert said in command.err
    assert command.err.count("\n") == 1
    assert not command.output.exists()


def test_ratings_and_times_must_be_there_where_they_are_asked_for(command: Command) -> None:
    bare = command.write(interactions().drop(columns=["rating", "timestamp"]))
    assert command(bare, "--min-rating", 3) == 2
    assert "--rating-column" in command.err
    assert command(bare, "--split", "time") == 2
    assert "--time-column" in command.err
    command.tell(bare)
    assert command(bare) == 2
    assert "exists; name another output" in command.err
    command.output = command.output.with_suffix(".txt")
    assert command(bare) == 2
    assert "ends in .parquet, .jsonl, .csv" in command.err


def test_ties_are_said_and_may_be_drawn(command: Command) -> None:
    """A file sorted by item within each moment says which one comes last; a drawn order does not,
    and leaves everything of other moments where it is."""
    rows = [(user, item, 10 * (item // 5)) for user in range(200) for item in range(10)]
    path = command.write(pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp"]))
    assert command.tell(path)["targets_tied"] == 400
    assert "400 of 400 valid and test items have the time of the item before" in command.err
    assert {tuple(parts["test"]) for parts in command.parts().values()} == {(9,)}
    told = command.tell(path, "--ties", "random")
    assert told["targets_tied"] == 400
    assert "--ties random" not in command.err
    drawn = command.parts()
    last = [parts["test"][0] for parts in drawn.values()]
    assert set(last) == {5, 6, 7, 8, 9}
    assert max(last.count(item) for item in set(last)) < 70
    for parts in drawn.values():
        items = [*parts["train"], *parts["valid"], *parts["test"]]
        assert (set(items[:5]), set(items[5:])) == ({0, 1, 2, 3, 4}, {5, 6, 7, 8, 9})
    command.tell(path, "--ties", "random")
    assert command.parts() == drawn
    command.tell(path, "--ties", "random", "--seed", 1)
    assert command.parts() != drawn
    apart = pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp"])
    apart["timestamp"] = apart["item_id"]
    assert command.tell(command.write(apart))["targets_tied"] == 0
    assert "have the time of the item before" not in command.err


def test_what_nobody_rated_counts_unless_ratings_are_asked_for(command: Command) -> None:
    frame = interactions(5)
    frame.loc[frame.index % 3 == 0, "rating"] = None
    path = command.write(frame)
    command.tell(path)
    assert command.parts() == left_out(frame, 3)
    told = command.tell(path, "--min-rating", 2)
    good = frame[frame["rating"] >= 2]
    assert command.parts() == left_out(good, 3)
    assert told["low_ratings"] == len(frame) - len(good)
    assert "rated below 2.0, or not at all" in command.err


@pytest.mark.parametrize("name", ["x.parquet", "x.csv"])
def test_rows_that_were_logged_twice_are_told_of_and_may_go(command: Command, name: str) -> None:
    frame = pd.DataFrame(
        [("a", "i", 1), ("a", "j", 2), ("a", "j", 2), ("a", "i", 3), ("b", "j", 2), ("b", "k", 3),
         ("b", "l", 4), ("a", "j", 2)],
        columns=["user_id", "item_id", "timestamp"],
    )  # fmt: skip
    path = command.write(frame, name)
    assert command.tell(path)["repeats_of_a_moment"] == 2
    assert "2 interactions are of the same user, item and moment as another one" in command.err
    told = command.tell(path, "--repeats", "moment")
    assert (told["repeats_of_a_moment"], told["repeats_left_out"]) == (0, 2)
    assert command.parts() == left_out(frame.drop_duplicates(), 3)
    frame.drop(columns="timestamp").to_parquet(path.with_name("untimed.parquet"))
    assert command(path.with_name("untimed.parquet"), "--overwrite", "--repeats", "moment") == 2
    assert "the interactions have no times" in command.err


@pytest.mark.parametrize("unit", [None, 1, 1000])
def test_what_lies_in_the_future_is_warned_of(command: Command, unit: int | None) -> None:
    frame = interactions(6)
    times = 1.7e9 + frame["timestamp"]
    times[frame.index % 50 == 7] += 40 * 365 * 86_400
    later = int((times > 2e9).sum())
    frame["timestamp"] = pd.to_datetime(times, unit="s") if unit is None else times * unit
    path = command.write(frame)
    command.tell(path)
    assert f"{later} interactions lie in the future, up to 2063-11-" in command.err
    told = command.tell(path, "--until", "2026-01-01")
    assert told["late"] == later
    assert "in the future" not in command.err
    assert command.parts() == left_out(frame[times < 2e9], 3)
