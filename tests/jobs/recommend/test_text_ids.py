"""Catalogues and users with texts for ids: the same answers as with numbers, under their names."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from draftrec.cli.main import run
from draftrec.config import RecommendConfig
from draftrec.data.sequences import read_semantic_ids, write_semantic_ids
from draftrec.items.ids import ids_array
from draftrec.items.semantic_ids import SemanticIds
from draftrec.jobs.recommend.catalogue import Query
from draftrec.jobs.recommend.setup import TaskSettings, load
from tests.jobs.recommend.worlds import World, make_world, named, with_texts


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> tuple[World, World]:
    """One with numbers, and the same one with texts."""
    numbers = make_world(tmp_path_factory.mktemp("worlds"))
    return numbers, with_texts(numbers)


def recommended(world: World, output: Path, *more: str) -> list[dict[str, Any]]:
    words = ["genrec", "recommend", str(world.sequences), "--target", str(world.target)]
    words += [
        "--sids",
        str(world.sids),
        "--output",
        str(output),
        "-k",
        "6",
        *(more or ("--draft", "none")),
    ]
    assert run(words) == 0
    return pq.read_table(output).to_pylist()


@pytest.mark.slow
@pytest.mark.parametrize(
    "more", [("--draft", "items", "--exclude-seen"), ("--draft", "none"), ("--draft", "model")]
)
def test_answers_are_those_of_numbers_by_name(
    worlds: tuple[World, World], tmp_path: Path, more: tuple[str, ...]
) -> None:
    numbers, texts = worlds
    words = [str(numbers.draft) if word == "model" else word for word in more]
    plain = recommended(numbers, tmp_path / "n.parquet", *words)
    found = recommended(texts, tmp_path / "t.parquet", *words)
    schema = pq.read_schema(tmp_path / "t.parquet")
    assert [str(schema.field(name).type) for name in ("user", "items")] == [
        "string",
        "list<element: string>",
    ]
    # How much is drafted follows measured times, and rounding follows that.
    assert [(r["user"], r["items"], r["sids"]) for r in found] == [
        (f"u-{r['user']}", list(map(named, r["items"])), r["sids"]) for r in plain
    ]
    for one, other in zip(found, plain, strict=True):
        assert one["scores"] == pytest.approx(other["scores"], abs=1e-4)


@pytest.mark.slow
def test_figures_are_those_of_numbers(
    worlds: tuple[World, World], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = []
    for world in worlds:
        output = tmp_path / f"{world.sids.stem}.csv"
        words = ["genrec", "recommend", str(world.sequences), "--target", str(world.target)]
        assert run([*words, "--sids", str(world.sids), "--output", str(output), "-k", "6"]) == 0
        words = ["genrec", "evaluate", str(output), str(world.sequences), "-k", "1", "6", "--json"]
        capsys.readouterr()
        assert run(words) == 0
        told.append(json.loads(capsys.readouterr().out.splitlines()[-1]))
    assert told[0] == told[1]
    assert told[0]["users"] > 0


@pytest.mark.slow
def test_filters_take_texts(worlds: tuple[World, World]) -> None:
    numbers, texts = worlds
    answers = []
    for world, name in ((numbers, int), (texts, named)):
        settings = TaskSettings(
            sequences=str(world.sequences), sids=world.sids, target=world.target, draft="none",
            output=Path("unused"),
            device="cpu", config=RecommendConfig(k=5, exclude_seen=True),
        )  # fmt: skip
        recommender = load(settings, read_semantic_ids(world.sids)).recommender
        known = ids_array([name(i) for i in (10, 11, 12)])
        deny = ids_array([name(i) for i in (13, 14, 15, 999)])
        allow = ids_array([name(i) for i in range(14, 30)])
        found = recommender.recommend(
            [Query(1, known), Query(1, known, deny), Query(1, known, deny, allow, 3)]
        )
        answers.append([[str(i) for i in a.items.tolist()] for a in found])
    assert [[named(int(i)) for i in items] for items in answers[0]] == answers[1]
    assert all(answers[1])


@pytest.mark.slow
def test_answers_have_the_type_of_the_sequences(
    worlds: tuple[World, World], tmp_path: Path
) -> None:
    numbers, _ = worlds
    plain = recommended(numbers, tmp_path / "n.parquet")
    rows = pq.read_table(numbers.sequences).to_pylist()
    spelt = [{**r, "user": str(r["user"]), "items": list(map(str, r["items"]))} for r in rows]
    pq.write_table(pa.Table.from_pylist(spelt), tmp_path / "s.parquet")
    world = replace(numbers, sequences=tmp_path / "s.parquet")
    found = recommended(world, tmp_path / "t.parquet")
    assert found == [
        {**r, "user": str(r["user"]), "items": list(map(str, r["items"]))} for r in plain
    ]
    sids = read_semantic_ids(numbers.sids)
    texts = SemanticIds.of(list(map(str, sids.items.tolist())), sids.sids_of(sids.items))
    write_semantic_ids(tmp_path / "sids.jsonl", texts)
    world = replace(numbers, sids=tmp_path / "sids.jsonl")
    assert recommended(world, tmp_path / "m.parquet") == plain


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["jsonl", "csv"])
def test_the_output_is_the_kind_of_file_that_its_name_says(
    worlds: tuple[World, World], tmp_path: Path, ending: str
) -> None:
    pandas = pytest.importorskip("pandas")
    numbers, texts = worlds
    for world in (numbers, texts):
        wanted = recommended(world, tmp_path / f"{world.sids.stem}.parquet")
        output = tmp_path / f"{world.sids.stem}.{ending}"
        words = ["genrec", "recommend", str(world.sequences), "--target", str(world.target)]
        words += ["--draft", "none", "-k", "6", "--sids", str(world.sids)]
        assert run([*words, "--output", str(output)]) == 0
        if ending == "jsonl":
            found = [json.loads(line) for line in output.read_text().splitlines()]
        else:
            lists = dict.fromkeys(("items", "scores", "sids"), json.loads)
            found = pandas.read_csv(output, converters=lists).to_dict("records")
        assert found == wanted


@pytest.mark.parametrize("name", [".", "x", "x.txt", "x.json", "x.csv.gz"])
def test_other_names_are_refused_before_any_work(
    worlds: tuple[World, World], tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    world = worlds[0]
    words = ["genrec", "recommend", str(world.sequences), "--target", "absent"]
    words += ["--sids", str(world.sids), "--output", name if name == "." else str(tmp_path / name)]
    assert run(words) == 2
    said = "is a folder; name a file" if name == "." else "ends in .parquet, .jsonl, .csv"
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_catalogue_of_numbers_keeps_its_fingerprint() -> None:
    sids = SemanticIds.of(np.arange(3), [["<a_0>"], ["<a_1>"], ["<a_2>"]])
    assert (
        sids.fingerprint() == SemanticIds.of(["0", "1", "2"], sids.sids_of([0, 1, 2])).fingerprint()
    )
    assert sids.fingerprint() == "6ba2f9de38718dbb56c282b4b91268eaeb4f27225da6f8bd6636676948bd73ea"


@pytest.mark.slow
def test_all_recommends_after_everything_that_is_known(
    worlds: tuple[World, World], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    numbers, texts = worlds
    for world in (numbers, texts):
        rows = pq.read_table(world.sequences).to_pylist()
        known: dict[Any, list[Any]] = {}
        for row in rows:
            known.setdefault(row["user"], []).extend(row["items"])
        parts = [(user, items, "train") for user, items in known.items()]
        some = rows[0]["items"][:1] or rows[1]["items"][:1]
        parts += [(user, some, "test") for user in known]
        table = pa.Table.from_pylist([{"user": u, "items": i, "part": p} for u, i, p in parts])
        pq.write_table(table, path := tmp_path / f"{world.sids.stem}-known.parquet")
        wanted = recommended(replace(world, sequences=path), tmp_path / f"{path.stem}-w.parquet")
        found = recommended(
            world, tmp_path / f"{path.stem}-f.parquet", "--part", "all", "--draft", "none"
        )
        assert [(r["user"], r["items"]) for r in found] == [(r["user"], r["items"]) for r in wanted]
        pq.write_table(table.slice(0, len(known)), path)
        capsys.readouterr()
        found = recommended(replace(world, sequences=path), tmp_path / f"{path.stem}-t.parquet")
        assert "recommending for now" in capsys.readouterr().err
        assert [(r["user"], r["items"]) for r in found] == [(r["user"], r["items"]) for r in wanted]
