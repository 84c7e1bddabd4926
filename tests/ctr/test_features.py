"""Attributes and vectors as arrays: what is a feature, what is unknown, what is standardised."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from draftrec.ctr.features import FeatureSources, Prepared, attributes, prepare, read_rows
from draftrec.data.events import (
    PARTS,
    CutSettings,
    EventColumns,
    Events,
    Samples,
    cut_samples,
    read_events,
)
from draftrec.data.settings import Split
from draftrec.data.vectors import vector_column, vectors_schema
from draftrec.errors import DraftrecError
from tests.ctr.world import ITEMS, World

COLUMNS = ("user_id", "item_id")


@pytest.fixture(scope="module")
def events(world: World) -> Events:
    return read_events(str(world.interactions), EventColumns())


def cut(events: Events, split: Split = "user") -> Samples:
    return cut_samples(events, CutSettings(split=split))


def prepared(events: Events, sources: FeatureSources, split: Split = "user") -> Prepared:
    return prepare(events, cut(events, split), sources, COLUMNS, user_ids=split == "time")


def chosen(rows: dict[str, Any], columns: Any = None) -> dict[str, Any]:
    ids = list(rows)
    found, _ = attributes(rows, columns, ids, np.arange(len(ids)))
    return {a.name: a.codes[1:].tolist() for a in found}


def test_texts_and_lists_of_few_values_are_features() -> None:
    rows = {
        str(i): {"title": f"t{i}", "genres": ["a", "b"] if i % 2 else ["b"], "kind": "x|y", "n": i}
        for i in range(6)
    }
    found = chosen(rows)
    assert found == {"genres": [[1, 0], [2, 1]] * 3, "kind": [[1, 2]] * 6}
    assert list(chosen(rows, ["n", "title"])) == ["n", "title"]
    with pytest.raises(DraftrecError, match="no column 'mood' among title, genres"):
        chosen(rows, ["mood"])


@pytest.mark.parametrize(
    ("cells", "values"),
    [
        ([i % 3 for i in range(12)], 3),
        ([str(i % 3) for i in range(12)], 3),
        ([[i % 3, 7] for i in range(12)], 4),
        ([None, *(float(i % 3) for i in range(12))], 3),
        (["", *(f"{i % 3}.0" for i in range(12))], 3),
        ([i % 2 == 0 for i in range(12)], 2),
        (["18", "PG", "R", "18"] * 3, 3),
        ([f"['a', 'g{i % 2}']" for i in range(12)], 3),
    ],
)
def test_categories_however_they_are_written(cells: list[Any], values: int) -> None:
    rows = {str(i): {"c": cell} for i, cell in enumerate(cells)}
    (found,), use = attributes(rows, None, list(rows), np.arange(len(rows)))
    assert (found.size - 1, use.used, use.left_out) == (values, {"c": values}, {})


@pytest.mark.parametrize(
    ("cells", "reason"),
    [
        ([i / 4 for i in range(12)], "numbers with fractions"),
        ([float(i % 3) for i in range(12)], "numbers with fractions"),
        ([f"{i % 3}.5" for i in range(12)], "numbers with fractions"),
        (list(range(12)), "12 different values in 12 rows"),
        ([f"t{i}" for i in range(12)], "12 different values in 12 rows"),
        ([{"a": 1}] * 12, "dict"),
        ([True, 2] * 6, "bool, int"),
        ([None] * 12, "empty"),
    ],
)
def test_other_columns_are_left_out_for_a_reason(cells: list[Any], reason: str) -> None:
    rows = {str(i): {"c": cell} for i, cell in enumerate(cells)}
    found, use = attributes(rows, None, list(rows), np.arange(len(rows)))
    assert found == ()
    assert reason in use.left_out["c"]


def test_many_categories_of_many_rows_are_used() -> None:
    rows = {str(i): {"many": i % 1500, "more": i % 2500} for i in range(20_000)}
    _, use = attributes(rows, None, list(rows), np.arange(len(rows)))
    assert use.used == {"many": 1500}
    assert use.left_out == {"more": "2,500 different values in 20,000 rows"}


def test_an_integer_category_serves_as_its_text_does(world: World, events: Events) -> None:
    both = [
        {"item_id": f"i{i}", "as_text": f"c{i % 4}", "category_id": i % 4} for i in range(ITEMS)
    ]
    path = world.write("categories.jsonl", both)
    text, number = prepared(events, FeatureSources(items=str(path))).inputs.items.attributes
    assert np.array_equal(text.codes, number.codes)


def test_a_value_that_training_lacks_is_missing() -> None:
    rows = {"a": {"g": "x"}, "b": {"g": "y|x"}, "c": {}}
    (found,), _ = attributes(rows, ["g"], ["a", "b", "c", "gone"], np.array([0]))
    assert found.codes[:, 0].tolist() == [0, 1, 1, 0, 0]
    assert found.size == 2


def test_items_are_found_by_either_name(world: World) -> None:
    for name in ("entity_id", "asin"):
        named = world.write("e.jsonl", [{name: "i1", "genres": "g"}])
        assert read_rows(str(named), "item_id") == {"i1": {"genres": "g"}}
    rows = [{"entity_id": "i1", "genres": "g"}]
    assert read_rows(str(world.write("twice.jsonl", rows * 2)), "item_id") == {
        "i1": {"genres": "g"}
    }
    rows.append({**rows[0], "genres": "h"})
    with pytest.raises(DraftrecError, match=r"line 2: .i1. is listed before, with other values"):
        read_rows(str(world.write("twice.jsonl", rows)), "item_id")
    with pytest.raises(DraftrecError, match="rename the column"):
        read_rows(str(world.write("none.jsonl", [{"name": 1}])), "item_id")


def test_parts_hold_rows_of_both_sides(world: World, events: Events) -> None:
    samples = cut(events, "time")
    inputs = prepared(events, FeatureSources(items=str(world.items)), "time").inputs
    assert [a.name for a in inputs.items.attributes] == ["genres"]
    for number, part in enumerate((inputs.train, inputs.valid, inputs.test)):
        inside = samples.part == number
        assert np.array_equal(part.users, samples.user[inside] + 1)
        assert np.array_equal(part.sequence == 0, samples.sequence[inside] == -1)
        assert np.array_equal(part.labels, samples.label[inside])


def test_strangers_have_no_code(events: Events) -> None:
    samples = cut(events, "time")
    inputs = prepared(events, FeatureSources(), "time").inputs
    known = np.unique(samples.user[samples.part == 0])
    assert inputs.users.ids is not None
    assert (inputs.users.ids[known + 1] > 0).all()
    assert inputs.users.ids.astype(bool).sum() == len(known) == inputs.users.id_count - 1
    assert prepared(events, FeatureSources()).inputs.users.ids is None


def test_vectors_are_standardised_on_training_entities(world: World, events: Events) -> None:
    sources = FeatureSources(
        user_vectors=str(world.user_vectors), item_vectors=str(world.item_vectors)
    )
    found = prepared(events, sources)
    samples = cut(events)
    train = np.unique(samples.user[samples.part == PARTS.index("train")])
    vectors = found.inputs.users.vectors
    assert vectors is not None
    assert np.allclose(vectors[train + 1].mean(axis=0), 0, atol=1e-4)
    assert np.allclose(vectors[train + 1].std(axis=0), 1, atol=1e-3)
    assert not vectors[0].any()
    assert found.without_vectors == {"users": 0, "items": 0}


def test_entities_without_a_vector_are_zeros_and_counted(world: World, events: Events) -> None:
    path = world.vectors("i", world.item_taste, range(ITEMS - 7))
    found = prepared(events, FeatureSources(item_vectors=str(path)))
    vectors = found.inputs.items.vectors
    assert vectors is not None
    places = [events.items.index(f"i{i}") for i in range(ITEMS)]
    empty = ~vectors[np.array(places) + 1].any(axis=1)
    assert empty.tolist() == [False] * (ITEMS - 7) + [True] * 7
    assert found.without_vectors == {"items": 7}


def test_files_that_know_few_entities_are_a_warning(
    world: World, events: Events, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [{"item_id": f"i{i}", "genres": "g"} for i in range(ITEMS // 3)]
    prepared(events, FeatureSources(items=str(world.write("few.jsonl", rows))))
    assert f"{ITEMS - ITEMS // 3} of the {ITEMS} item_id values of the interactions" in caplog.text


@pytest.mark.parametrize("field", ["items", "users", "user_vectors", "item_vectors"])
def test_files_of_other_entities_are_refused(world: World, events: Events, field: str) -> None:
    strangers = world.vectors("x", world.user_taste, range(3))
    path = strangers if "vectors" in field else world.write("x.jsonl", [{"entity_id": "x"}])
    with pytest.raises(DraftrecError, match="check its ids"):
        prepared(events, replace(FeatureSources(), **{field: str(path)}))


def test_a_number_that_never_changes_says_nothing(world: World, events: Events) -> None:
    """Summed in float32, a mean lay beside it; a stranger's number became millions."""
    samples = cut(events)
    known = {events.users[u] for u in samples.user[samples.part == PARTS.index("train")].tolist()}
    rows = [[0.1 if name in known else 0.7, i] for i, name in enumerate(events.users)]
    path = world.folder / "constant.parquet"
    table = [pa.array(events.users, pa.string()), vector_column(np.array(rows, np.float32))]
    pq.write_table(pa.table(table, schema=vectors_schema(2)), path)
    vectors = prepared(events, FeatureSources(user_vectors=str(path))).inputs.users.vectors
    assert vectors is not None
    strangers = np.array([name not in known for name in events.users])
    assert not vectors[1:][~strangers, 0].any()
    assert np.allclose(vectors[1:][strangers, 0], 0.6)
