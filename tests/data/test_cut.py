"""The cut, against samples counted by hand and against its one rule: nothing from later."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from draftrec.data.events import (
    FOLDS,
    PARTS,
    CutSettings,
    EventColumns,
    Events,
    cut_points,
    cut_samples,
    histories,
    read_events,
)
from draftrec.data.records import Rejects
from draftrec.data.settings import Split
from draftrec.errors import DraftrecError


def written(path: Path, rows: list[dict[str, Any]]) -> Events:
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return read_events(str(path), EventColumns())


def row(user: str, item: str, rating: float, timestamp: float) -> dict[str, Any]:
    return {"user_id": user, "item_id": item, "rating": rating, "timestamp": timestamp}


def drawn(users: int, events: int, seed: int = 0, *, rated: bool = True) -> list[dict[str, Any]]:
    """Users with up to twice `events` events, many at one moment."""
    random = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    for user in range(users):
        for item in random.choice(200, random.integers(1, 2 * events), replace=False).tolist():
            rows.append(row(f"u{user}", f"i{item}", *random.integers(1, [6, 60]).tolist()))
            if not rated:
                del rows[-1]["rating"]
    random.shuffle(rows)  # type: ignore[arg-type]
    return rows


def test_events_are_ordered_by_time_and_ties_by_file(tmp_path: Path) -> None:
    rows = [row("a", "late", 5, 9), row("b", "x", 1, 1), row("a", "one", 4, 2)]
    events = written(tmp_path / "e.jsonl", [*rows, row("a", "two", 3, 2)])
    assert events.users == ("a", "b")
    assert [events.items[i] for i in events.item] == ["one", "two", "late", "x"]
    assert events.starts.tolist() == [0, 3, 4]
    assert events.rating is not None
    assert events.rating.tolist() == [4, 3, 5, 1]


@pytest.mark.parametrize(
    "times",
    [
        [1_700_000_000_000_000_002, 1_700_000_000_000_000_001],
        ["1700000000.000000002", "1700000000.000000001"],
        ["2024-01-01T00:00:00.000000002", "2024-01-01T00:00:00.000000001Z"],
        ["2024-01-01 00:00:00.000000002+01:00", "2024-01-01 00:00:00.000000001+01:00"],
    ],
)
def test_times_a_nanosecond_apart_are_in_order(tmp_path: Path, times: list[Any]) -> None:
    rows = [{"user_id": 1, "item_id": i, "timestamp": t} for i, t in enumerate(times)]
    events = written(tmp_path / "e.jsonl", rows)
    assert [events.items[i] for i in events.item] == ["1", "0"]
    assert events.time is not None
    assert events.time.tolist() == [0.0, 1.0]


def test_parquet_times_keep_their_nanoseconds(tmp_path: Path) -> None:
    times = pa.array([1_700_000_000_000_000_002, 1_700_000_000_000_000_001], pa.timestamp("ns"))
    table = pa.table({"user_id": [1, 1], "item_id": [0, 1], "timestamp": times})
    pq.write_table(table, tmp_path / "e.parquet")
    events = read_events(str(tmp_path / "e.parquet"), EventColumns())
    assert [events.items[i] for i in events.item] == ["1", "0"]


@pytest.mark.parametrize(
    "labels", [[True, False], ["True", "False"], ["yes", "no"], [1, 0], [1, -1]]
)
def test_labels_are_clicks(tmp_path: Path, labels: list[Any]) -> None:
    rows = [row(f"u{u}", f"i{i}", labels[i % 2], i) for u in range(60) for i in range(6)]
    events = written(tmp_path / "e.jsonl", rows)
    assert events.labelled
    samples = cut_samples(events, CutSettings())
    clicked = [int(events.items[i][1:]) % 2 == 0 for i in samples.item]
    assert samples.label.tolist() == [float(c) for c in clicked]
    record = next(histories(events, CutSettings()))
    assert record["history"] == [{"title": "i0"}, {"title": "i2"}]


def test_unusable_events_are_left_out_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "e.jsonl"
    bad: list[dict[str, Any]] = [
        {"user_id": None, "item_id": 1, "rating": 5, "timestamp": 1},
        {"user_id": "a", "item_id": 1, "rating": "4,5", "timestamp": 1},
        {"user_id": "a", "item_id": 1, "rating": float("nan"), "timestamp": 1},
        {"user_id": "a", "item_id": 1, "rating": 5, "timestamp": "noon"},
    ]
    path.write_text("\n".join(map(json.dumps, [row("a", "x", 5, 1), *bad, row("a", "y", 2, 2)])))
    rejects = Rejects("user_id")
    events = read_events(str(path), EventColumns(), rejects)
    assert [events.items[i] for i in events.item] == ["x", "y"]
    assert [(r.entity_id, r.line) for r in rejects.rows] == [
        (None, 2),
        ("a", 3),
        ("a", 4),
        ("a", 5),
    ]
    assert rejects.rows[1].reason == "rating is '4,5', not a number; write a decimal point"
    with pytest.raises(DraftrecError, match="line 2: user_id is null"):
        read_events(str(path), EventColumns())
    path.write_text(json.dumps(bad[0]))
    with pytest.raises(DraftrecError, match=r"no row can be used; .* line 1: user_id is null"):
        read_events(str(path), EventColumns(), Rejects())


def test_events_take_few_bytes_each(tmp_path: Path) -> None:
    """A file of 25 million ratings is read in the memory of a small machine."""
    count, path = 20_000, tmp_path / "e.csv"
    lines = [f"{i % 7},{i % 11},{i % 5},{1_300_000_000 + i}\n" for i in range(count)]
    path.write_text("user_id,item_id,rating,timestamp\n" + "".join(lines))
    tracemalloc.start()
    try:
        events = read_events(str(path), EventColumns())
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(events.user) == count
    assert peak < 150 * count + 1_500_000  # and what reads them


def test_without_times_the_file_is_the_order(tmp_path: Path) -> None:
    rows = [{"user_id": 1, "item_id": i} for i in (5, 3, 4)]
    events = written(tmp_path / "e.jsonl", rows)
    assert [events.items[i] for i in events.item] == ["5", "3", "4"]
    assert (events.rating, events.time) == (None, None)


def test_dates_are_times(tmp_path: Path) -> None:
    days = ["1970-01-02", "1970-01-01T00:00:10+00:00"]
    rows = [{"user_id": 1, "item_id": d, "timestamp": d} for d in days]
    events = written(tmp_path / "e.jsonl", rows)
    assert events.time is not None
    assert events.time.tolist() == [10.0, 86400.0]


@pytest.mark.parametrize("zone", [" UTC", "UTC", " GMT", "Z", "+0000"])
def test_dates_may_name_their_zone(tmp_path: Path, zone: str) -> None:
    rows = [
        {"user_id": 1, "item_id": 1, "timestamp": f"1970-01-01 00:01:00.25{zone}"},
        {"user_id": 1, "item_id": 2, "timestamp": f"1970-01-01 00:00:10{zone}"},
    ]
    events = written(tmp_path / "e.jsonl", rows)
    assert events.time is not None
    assert events.time.tolist() == [10.0, 60.25]


@pytest.mark.parametrize(("events", "history", "cut"), [(1, 9, 1), (5, 9, 3), (6, 9, 3), (9, 2, 2)])
def test_the_cut_is_at_half_or_at_the_longest_history(
    tmp_path: Path, events: int, history: int, cut: int
) -> None:
    found = written(tmp_path / "e.jsonl", [row("u", str(i), 5, i) for i in range(events)])
    assert cut_points(found, history).tolist() == [cut]


def test_samples_of_one_user_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("draftrec.data.events._check_parts", lambda *_: None)
    ratings = [5, 1, 4, 2, 5, 3, 4]
    events = written(tmp_path / "e.jsonl", [row("u", f"i{n}", r, n) for n, r in enumerate(ratings)])
    found = cut_samples(events, CutSettings(sequence=2))
    assert [events.items[i] for i in found.item] == ["i4", "i5", "i6"]
    assert found.label.tolist() == [1, 0, 1]
    names = [[events.items[i] if i >= 0 else None for i in line] for line in found.sequence]
    assert names == [["i0", "i2"], ["i2", "i4"], ["i2", "i4"]]
    assert cut_samples(events, CutSettings(sequence=4)).sequence[0].tolist()[2:] == [-1, -1]


@pytest.mark.parametrize("split", ["user", "time"])
@pytest.mark.parametrize("negatives", [0, 2])
def test_nothing_comes_from_the_prompt_or_from_later(
    tmp_path: Path, split: Split, negatives: int
) -> None:
    events = written(tmp_path / "e.jsonl", drawn(60, 20))
    settings = CutSettings(history=7, negatives=negatives, split=split)
    found = cut_samples(events, settings)
    cuts = cut_points(events, 7)
    assert (found.event >= cuts[found.user]).all()
    assert (events.user[found.event] == found.user).all()
    assert events.rating is not None
    assert events.time is not None
    times = events.time
    for user, event, line in zip(found.user, found.event, found.sequence, strict=True):
        places = np.arange(events.starts[user], event)
        places = places[times[places] < times[event]]  # in one moment, nothing is earlier
        earlier = events.item[places][events.rating[places] >= 4][-5:]
        assert line[: len(earlier)].tolist() == earlier.tolist()
        assert (line[len(earlier) :] == -1).all()


def test_a_list_shown_at_once_does_not_tell_its_own_click(tmp_path: Path) -> None:
    """Of every five items shown one is clicked, and the file has it first."""
    rows = [
        row(f"u{u}", f"i{u}-{time}-{place}", 5 * (place == 0), time)
        for u in range(60)
        for time in range(6)
        for place in range(5)
    ]
    events = written(tmp_path / "e.jsonl", rows)
    found = cut_samples(events, CutSettings(sequence=3))
    moments = [events.items[item].split("-")[1] for item in found.item]
    seen = [[events.items[i].split("-")[1] for i in line if i >= 0] for line in found.sequence]
    assert all(moment not in line for moment, line in zip(moments, seen, strict=True))
    assert {len(line) for line in seen} == {3}


def test_drawn_items_are_unseen_and_the_same_again(tmp_path: Path) -> None:
    events = written(tmp_path / "e.jsonl", drawn(40, 20, rated=False))
    found = cut_samples(events, CutSettings(negatives=3))
    again = cut_samples(events, CutSettings(negatives=3))
    other = cut_samples(events, CutSettings(negatives=3, seed=1))
    taken = set(zip(events.user.tolist(), events.item.tolist(), strict=True))
    pairs = zip(found.user.tolist(), found.item.tolist(), found.label.tolist(), strict=True)
    assert all(((user, item) in taken) == bool(label) for user, item, label in pairs)
    assert (found.label == 0).sum() == 3 * (found.label == 1).sum()
    assert np.array_equal(found.item, again.item)
    assert not np.array_equal(found.item, other.item)


def test_a_split_by_user_shares_no_user_and_needs_no_seed(tmp_path: Path) -> None:
    events = written(tmp_path / "e.jsonl", drawn(400, 8))
    found = cut_samples(events, CutSettings())
    users = [set(found.user[found.part == n].tolist()) for n in range(len(PARTS))]
    assert sum(map(len, users)) == len(set.union(*users))
    assert 0.72 < len(users[0]) / len(set.union(*users)) < 0.88
    parts = {events.users[u]: int(p) for u, p in zip(found.user, found.part, strict=True)}
    fewer = written(tmp_path / "f.jsonl", drawn(400, 8)[:2000])
    some = cut_samples(fewer, CutSettings(history=3))
    pairs = zip(some.user, some.part, strict=True)
    assert all(parts.get(fewer.users[u], int(p)) == int(p) for u, p in pairs)


def test_over_all_folds_every_user_is_tested_once(tmp_path: Path) -> None:
    rows = [row(f"u{u}", f"i{i}", 1 + 4 * (i % 2), i) for u in range(200) for i in range(6)]
    events = written(tmp_path / "e.jsonl", rows)
    tested: list[int] = []
    for fold in range(FOLDS):
        found = cut_samples(events, CutSettings(fold=fold))
        parts = [set(found.user[found.part == part].tolist()) for part in range(len(PARTS))]
        assert sum(map(len, parts)) == 200
        tested += parts[2]
    assert sorted(tested) == list(range(200))


def test_a_split_by_time_is_one(tmp_path: Path) -> None:
    rows = drawn(80, 20)
    for number, entry in enumerate(rows):
        entry["timestamp"] = number
    events = written(tmp_path / "e.jsonl", rows)
    found = cut_samples(events, CutSettings(split="time"))
    assert events.time is not None
    times = [events.time[found.event[found.part == n]] for n in range(3)]
    assert times[0].max() < times[1].min() <= times[1].max() < times[2].min()
    assert len(times[0]) / len(found.event) == pytest.approx(0.8, abs=0.01)
    assert len(times[2]) / len(found.event) == pytest.approx(0.1, abs=0.01)


def test_histories_are_what_the_samples_are_not(tmp_path: Path) -> None:
    rows = [row("u", "a", 4.5, 1), row("u", "b", 3, 2), row("u", "c", 5, 3)]
    events = written(tmp_path / "e.jsonl", rows)
    items = {"a": {"title": "Alien", "category": "Horror"}}
    alien = {"title": "Alien", "category": "Horror", "rating": 4.5}
    assert list(histories(events, CutSettings(), items)) == [
        {"entity_id": "u", "history": [alien]}  # nobody can say a title of b
    ]
    (named,) = histories(events, CutSettings())
    assert named["history"] == [{"title": "a", "rating": 4.5}, {"title": "b", "rating": 3}]


@pytest.mark.parametrize(
    ("rows", "settings", "words"),
    [
        (drawn(9, 9, rated=False), CutSettings(), "--negatives N"),
        (drawn(9, 9), CutSettings(positive=6), "0 clicks among"),
        (drawn(1, 9), CutSettings(), "part has 0 clicks among 0 samples"),
        ([{"user_id": 1, "item_id": 2}], CutSettings(negatives=1), "took every item"),
        ([{"user_id": 1, "item_id": 2, "rating": 3}], CutSettings(split="time"), "needs times"),
    ],
)
def test_cuts_that_cannot_be(
    tmp_path: Path, rows: list[dict[str, Any]], settings: CutSettings, words: str
) -> None:
    with pytest.raises(DraftrecError, match=words):
        cut_samples(written(tmp_path / "e.jsonl", rows), settings)


@pytest.mark.parametrize(
    ("rows", "columns", "words"),
    [
        ([{"who": 1, "item_id": 2}], EventColumns(), "no column 'user_id', it has who, item_id"),
        ([{"uid": 1, "user": 1, "item_id": 2}], EventColumns(), "'uid' and 'user' could both be"),
        ([{"user_id": None, "item_id": 2}], EventColumns(), "user_id is null"),
        ([{"user_id": 1, "item_id": 2, "rating": "good"}], EventColumns(), "'good', not a number"),
        ([{"user_id": 1, "item_id": 2, "rating": [5]}], EventColumns(), "5., not a number"),
        (
            [{"user_id": 1, "item_id": 2, "rating": r} for r in (True, 4)],
            EventColumns(),
            "1 boolean",
        ),
        ([{"user_id": 1, "item_id": 2, "timestamp": True}], EventColumns(), "or a date"),
        ([{"user_id": 1, "item_id": 2, "timestamp": "noon"}], EventColumns(), "or a date"),
        ([{"user_id": 1, "item_id": 2, "timestamp": "31.05.2024"}], EventColumns(), "year first"),
        (
            [{"user_id": 1, "item_id": 2, "timestamp": "5/3/2024 9:05"}],
            EventColumns(),
            "year first",
        ),
        ([{"who": 1, "what": 2}], EventColumns(), "no columns 'user_id' and 'item_id', it has who"),
        ([{"user_id": 1, "item_id": 2}], EventColumns(rating="stars"), "'stars'"),
    ],
)
def test_unusable_events_are_named(
    tmp_path: Path, rows: list[dict[str, Any]], columns: EventColumns, words: str
) -> None:
    path = tmp_path / "e.jsonl"
    path.write_text("\n".join(json.dumps(r) for r in rows))
    with pytest.raises(DraftrecError, match=words):
        read_events(str(path), columns)
