"""The benchmark of id schemes on tiny models: ids are made, compared, and the table is made."""

from __future__ import annotations

import json
from pathlib import Path

import genrec_tables
import id_schemes
import numpy as np
import pyarrow.parquet as pq
import pytest

from draftrec.data.sequences import read_semantic_ids
from draftrec.data.vectors import item_vectors_table, read_item_vectors
from draftrec.items.semantic_ids import SemanticIds
from tests.jobs.recommend.worlds import make_world, save_model, write_habits


def write_vectors(path: Path, items: range, dim: int, seed: int) -> Path:
    vectors = np.random.default_rng(seed).normal(size=(len(items), dim)).astype(np.float32)
    pq.write_table(item_vectors_table(np.array(items), vectors), path)
    return path


def test_schemes_are_made_of_what_both_files_know(tmp_path: Path) -> None:
    texts = write_vectors(tmp_path / "t.parquet", range(10, 70), 6, 0)
    taken = write_vectors(tmp_path / "c.parquet", range(12, 75), 3, 1)
    line = ["--prepare", str(tmp_path / "ids"), "--vectors", f"texts={texts}", f"taken={taken}"]
    id_schemes.main([*line, "--codes", "4"])
    names = ("texts", "taken", "both", "random")
    sids = {name: read_semantic_ids(tmp_path / "ids" / f"sids-{name}.parquet") for name in names}
    for found in sids.values():
        assert found.items.tolist() == list(range(12, 70))
        assert id_schemes.look(found)["distinct"] == 58
    assert read_item_vectors(tmp_path / "ids" / "texts.parquet").vectors.shape == (58, 6)
    dealt = sids["random"].codes
    assert not np.array_equal(dealt, sids["taken"].codes)
    assert sorted(map(tuple, dealt.tolist())) == sorted(map(tuple, sids["taken"].codes.tolist()))
    assert len({found.fingerprint() for found in sids.values()}) == 4


def test_ids_are_described() -> None:
    sids = SemanticIds.of([1, 2, 3], [["<a_1>", "<b_1>"], ["<a_1>", "<b_1>"], ["<a_2>", "<b_1>"]])
    assert id_schemes.look(sids) == {
        "items": 3, "distinct": 2, "codes_used": [2, 1], "distinct_beginnings": 2,
        "largest_first": 2,
    }  # fmt: skip


@pytest.mark.slow
def test_schemes_are_compared_user_by_user(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    write_habits(world)
    sids = read_semantic_ids(world.sids)
    save_model(tmp_path / "other", sids, 9, 2, "target")
    line = ["--sequences", str(world.sequences), "--catalogue", "ml100k", "--results",
            str(tmp_path / "results")]  # fmt: skip
    for name, targets in (("one", ["target"]), ("two", ["target", "other"]), ("other", ["other"])):
        folders = ":".join(str(tmp_path / target) for target in targets)
        line += ["--scheme", f"{name}={world.sids}:{folders}"]
    id_schemes.main(line)
    found = json.loads((tmp_path / "results" / "id-schemes-ml100k.json").read_text())
    ways, gains, schemes = found["ways"], found["gains"], found["schemes"]
    assert (found["users"], list(ways)) == (30, ["one", "two", "other"])
    assert list(gains) == ["two over one", "other over one"]
    recalls = [ways[name]["recall@20"] for name in ways]
    assert recalls[0] != recalls[2]
    assert recalls[1] == pytest.approx((recalls[0] + recalls[2]) / 2, abs=1e-5)
    assert schemes["two"]["recall_by_seed"] == [recalls[0], recalls[2]]
    gain = gains["other over one"]
    assert gain["recall@20"] == pytest.approx(recalls[2] - recalls[0], abs=1e-5)
    assert 0 < gains["two over one"]["recall@20_error"] < gain["recall@20_error"]
    assert schemes["one"]["targets_with_id"] == 1
    table = genrec_tables.id_schemes(found)
    assert f"{recalls[1]:.4f}" in table
    assert "on MovieLens-100K" in table


def test_a_scheme_without_a_target_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        id_schemes.main(["--scheme", "a=b"])
    assert "'a=b' is no NAME=SIDS:TARGET" in capsys.readouterr().err
