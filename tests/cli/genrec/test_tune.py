"""`draftrec genrec tune` as a user runs it: a weight chosen on the valid part, and used."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from draftrec.cli.genrec.tune import _show
from draftrec.cli.main import run
from draftrec.config import RetrieverSettings
from draftrec.data.sequences import read_histories, read_semantic_ids
from draftrec.evaluate import item_item
from draftrec.evaluate.blend import (
    ITEM_MODEL,
    ITEMS,
    MODEL,
    PAIRS,
    WEIGHTS,
    Way,
    best_way,
    blend_yaml,
    name_of,
)
from draftrec.items.hits import find_hits
from draftrec.jobs.recommend.loading import known_places
from tests.jobs.recommend.worlds import World, make_world, save_item_model


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """One whose users go through the items in order, which item-item sees and a random model does
    not."""
    found = make_world(tmp_path_factory.mktemp("world"))
    rows = []
    for user in range(40):
        start = 10 + int(np.random.default_rng(user).integers(0, 50))
        rows.append({"user": user, "items": list(range(start, start + 6)), "part": "train"})
        rows.append({"user": user, "items": [start + 6], "part": "valid"})
        rows.append({"user": user, "items": [start + 7], "part": "test"})
    rows.append({"user": 99, "items": [12], "part": "valid"})  # no history: not counted
    pq.write_table(pa.Table.from_pylist(rows), found.sequences)
    return found


def words(world: World, command: str, *more: str) -> list[str]:
    return [
        "genrec", command, str(world.sequences), "--target", str(world.target), "--sids",
        str(world.sids), *more,
    ]  # fmt: skip


@pytest.mark.slow
def test_the_weight_that_is_chosen_makes_lists_better(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen, recalls = tmp_path / "blend.yaml", []
    assert run(words(world, "tune", "-k", "3", "--output", str(chosen), "--json")) == 0
    out, err = capsys.readouterr()
    summary = json.loads(out.splitlines()[-1])
    assert summary["users"] == 40
    assert list(summary["ways"]) == [MODEL, ITEMS, *map(name_of, WEIGHTS)]
    best = max(way["recall@3"] for name, way in summary["ways"].items() if name != ITEMS)
    assert summary["ways"][f"{summary['blend']:g}"]["recall@3"] == best
    assert summary["gain"] > 0.3
    assert f"best: --blend {summary['blend']:g}" in err
    over = best - summary["ways"][ITEMS]["recall@3"]
    assert summary["over_item_item"] == pytest.approx(over, abs=1e-5)
    settings = yaml.safe_load(chosen.read_text())
    assert settings == {"blend": summary["blend"], "blend_candidates": 50, "k": 3}
    for name, more in (("plain", ["-k", "3"]), ("blend", ["--config", str(chosen)])):
        output = tmp_path / f"{name}.parquet"
        assert (
            run(words(world, "recommend", "--part", "valid", "--output", str(output), *more)) == 0
        )
        line = [
            "genrec",
            "evaluate",
            str(output),
            str(world.sequences),
            "--part",
            "valid",
            "-k",
            "3",
        ]
        assert run([*line, "--json"]) == 0
        recalls.append(json.loads(capsys.readouterr().out.splitlines()[-1])["recall@3"])
    # Whoever has no history is in these means too.
    assert recalls[1] - recalls[0] == pytest.approx(summary["gain"] * 40 / 41, abs=1e-4)


def test_shares_are_chosen_for_an_item_model_too(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, chosen = save_item_model(world, tmp_path / "items"), tmp_path / "blend.yaml"
    line = words(world, "tune", "-k", "3", "--item-model", str(folder), "--limit", "20")
    assert run([*line, "--output", str(chosen), "--json"]) == 0
    out, err = capsys.readouterr()
    summary = json.loads(out.splitlines()[-1])
    ways = summary["ways"]
    assert list(ways) == [MODEL, ITEMS, ITEM_MODEL, *map(name_of, PAIRS)]
    shares = summary["blend"], summary["blend_item_model"]
    best = ways[name_of(shares)]["recall@3"]
    assert best == max(way["recall@3"] for name, way in ways.items() if "alone" not in name)
    over = best - ways[ITEM_MODEL]["recall@3"]
    assert summary["over_item_model"] == pytest.approx(over, abs=1e-5)
    assert f"--blend {shares[0]:g} --blend-item-model {shares[1]:g}" in err
    assert ("the model has no say in it" in err) == (sum(shares) > 1 - 1e-9)
    settings = yaml.safe_load(chosen.read_text())
    assert (settings["blend"], settings["blend_item_model"]) == shares
    output = str(tmp_path / "blended.parquet")
    line = words(world, "recommend", "--config", str(chosen), "--output", output)
    assert run(line) == 2
    assert "give --item-model" in capsys.readouterr().err
    assert run([*line, "--item-model", str(folder)]) == 0


@pytest.mark.slow
def test_item_item_is_tuned_and_its_settings_are_used(
    world: World,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The blend that recommends has the settings that the weight was chosen with."""
    short = {name: options[:2] for name, options in item_item.SPACE.items()}
    monkeypatch.setattr(item_item, "SPACE", short)
    chosen, output = tmp_path / "blend.yaml", tmp_path / "blended.parquet"
    line = words(world, "tune", "-k", "3", "--exclude-seen", "--item-item-draws", "2")
    assert run([*line, "--output", str(chosen), "--json"]) == 0
    out, err = capsys.readouterr()
    summary = json.loads(out.splitlines()[-1])
    assert "item-item tuned: recall@3 " in err
    assert ("the model has no say in it" in err) == (summary["blend"] == 1)
    tuned = RetrieverSettings(**summary["item_item"])
    sids = read_semantic_ids(world.sids)
    known = list(known_places(str(world.sequences), sids, part="valid"))
    histories = [h for h in read_histories(world.sequences, "valid", None) if len(h.items)]
    rated = item_item.rate_settings(known, sids, histories, 3, exclude_seen=True)
    reached = rated(tuned).values("recall", 3).mean()
    assert reached >= rated(RetrieverSettings()).values("recall", 3).mean()
    assert summary["ways"][ITEMS]["recall@3"] == pytest.approx(reached, abs=1e-6)
    settings = yaml.safe_load(chosen.read_text())
    other = {f"item_item_{name}": value for name, value in summary["item_item"].items()
             if value != getattr(RetrieverSettings(), name)}  # fmt: skip
    assert other
    assert {n: v for n, v in settings.items() if n.startswith("item_item_")} == other
    line = words(world, "recommend", "--part", "valid", "--output", str(output))
    assert run([*line, "--config", str(chosen)]) == 0
    assert run(["genrec", "evaluate", str(output), str(world.sequences), "--part", "valid",
                "-k", "3", "--json"]) == 0  # fmt: skip
    found = json.loads(capsys.readouterr().out.splitlines()[-1])["recall@3"]
    blend = summary["ways"][f"{summary['blend']:g}"]["recall@3"]
    assert found == pytest.approx(40 / 41 * blend, abs=0.025)  # one has no history


@pytest.mark.slow
def test_bad_input_gets_one_sentence(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"user": 1, "items": [10, 11], "part": "train"}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "train.parquet")
    nobody = words(world, "tune")
    nobody[2] = str(tmp_path / "train.parquet")
    for line, message in (
        (nobody, "no items of part 'valid'"),
        (words(world, "tune", "--metric", "hits"), "--metric"),
        (words(world, "tune", "-k", "61"), "the catalogue has 60"),
    ):
        assert run(line) == 2
        said = capsys.readouterr().err.strip().splitlines()
        assert len(said) == 1, said
        assert message in said[0]


@pytest.mark.parametrize("shares", [(0.7, 0.3), (0.7, 0.2), (1.0, None), (0.9, None)])
def test_shares_that_leave_the_model_none_are_told(
    shares: tuple[float, float | None], caplog: pytest.LogCaptureFixture
) -> None:
    of_two, of_three = shares
    summary = {"users": 2, "metric": "recall@3", "ways": {}, "blend": of_two}
    if of_three is not None:
        summary["blend_item_model"] = of_three
    with caplog.at_level("INFO", "draftrec"):
        _show(summary, as_json=True)
    said = "the model has no say in it" in caplog.text
    assert said == (shares in {(0.7, 0.3), (1.0, None)})


def test_the_model_alone_stays_where_no_blend_is_better() -> None:
    targets = [np.array([1]), np.array([2])]
    good, bad = find_hits(targets, targets), find_hits([t + 5 for t in targets], targets)
    ways = [
        Way(MODEL, None, good),
        Way(ITEMS, None, good),
        Way("0", (0.0,), good),
        Way("1", (1.0,), bad),
    ]
    assert best_way(ways, "recall", 1) is ways[0]
    worse = [Way(MODEL, None, bad), *ways[1:]]
    assert best_way(worse, "ndcg", 1) is worse[2]
    # Equal by recall, so the one that names the wanted item first.
    late = find_hits([np.array([9, t[0]]) for t in targets], targets)
    ways = [Way(MODEL, None, bad), Way("0", (0.0,), late), Way("1", (1.0,), good)]
    assert best_way(ways, "recall", 2) is ways[2]
    figures = {name: {"recall@1": 0.5, "recall@1_error": 0.1} for name in (MODEL, ITEMS)}
    text = blend_yaml({"metric": "recall@1", "ways": figures, "blend": None}, {})
    assert yaml.safe_load(text) is None
    assert "No blend" in text
