"""Runs read back, and what their manifests promise."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from draftrec.errors import DraftrecError
from draftrec.evaluate.compare.runs import must_be_equal, other_prompts, pair, read_run, rounding
from tests.evaluate.run_folders import EOS, tokens_of, write_run

TEXTS = {"a": "one two", "bb": "three", "c": ""}


def test_a_run_is_read_as_it_was_written(tmp_path: Path) -> None:
    run = read_run("r", write_run(tmp_path / "r", TEXTS, cut=["bb"], relaxed=2))
    assert run.entity_ids == ("a", "bb", "c")
    assert run.texts == ("one two", "three", "")
    assert run.token_ids[0].tolist() == tokens_of("one two")
    assert run.token_ids[0][-1] == EOS
    assert run.lengths.tolist() == [3, 1, 1]
    assert [len(b) for b in run.bodies] == [2, 1, 0]
    assert run.ended.tolist() == [True, False, True]
    assert run.relaxed_tokens is not None
    assert run.relaxed_tokens.tolist() == [2, 2, 2]


def test_runs_are_paired_by_entity_whatever_their_order(tmp_path: Path) -> None:
    base = read_run("base", write_run(tmp_path / "a", TEXTS))
    other = {"extra": "x", "c": "see", "a": "one"}
    found = pair(base, [read_run("run", write_run(tmp_path / "b", other))])
    assert found.baseline.entity_ids == found.runs[0].entity_ids == ("a", "c")
    assert found.runs[0].texts == ("one", "see")
    assert (found.missing, found.total) == ({"run": 1}, 3)
    with pytest.raises(DraftrecError, match="share no entity"):
        pair(base, [read_run("run", write_run(tmp_path / "c", {"z": "x"}))])


def test_equality_is_promised_by_greedy_strict_runs_of_one_model(tmp_path: Path) -> None:
    base = read_run("base", write_run(tmp_path / "a", TEXTS, draft="none", accept="relaxed"))
    promises = {
        name: must_be_equal(base, read_run(name, write_run(tmp_path / name, TEXTS, **settings)))
        for name, settings in {
            "strict": {},
            "relaxed": {"accept": "relaxed"},
            "sampled": {"temperature": 0.7},
            "longer": {"max_new_tokens": 9},
            "penalised": {"repetition_penalty": 1.3},
            "stopped": {"stop": ["."]},
            "formed": {"regex": "[a-z]+"},
            "small cache": {"kv_dtype": "bfloat16"},
        }.items()
    }
    assert [name for name, promised in promises.items() if promised] == ["strict"]
    own = write_run(tmp_path / "own", TEXTS)
    path = own / "manifest.json"
    old, new = '"tokenizer":"t"', '"tokenizer":"t","generation_config":"x"'
    path.write_text(path.read_text().replace(old, new))
    assert not must_be_equal(base, read_run("own", own))


@pytest.mark.parametrize(
    ("of_base", "of_run", "said"),
    [
        (("bfloat16", True), ("bfloat16", True), None),
        (("float32", False), ("bfloat16", True), "base is in float32, run in bfloat16"),
        (("bfloat16", True), ("bfloat16", False), "run, in bfloat16, is not bit for bit"),
        (
            ("bfloat16", False),
            ("bfloat16", False),
            "base and run, in bfloat16, are not bit",
        ),
        (("float32", False), ("float32", True), "near-ties are rare, is not bit for bit"),
    ],
)
def test_why_equal_texts_may_differ_by_rounding(
    tmp_path: Path, of_base: tuple[str, bool], of_run: tuple[str, bool], said: str | None
) -> None:
    base, run = (
        read_run(name, write_run(tmp_path / name, TEXTS, dtype=dtype, exact=exact))
        for name, (dtype, exact) in (("base", of_base), ("run", of_run))
    )
    found = rounding(base, run)
    assert found is None if said is None else found is not None and said in found


def test_texts_that_differ_anyway_are_not_put_down_to_rounding(tmp_path: Path) -> None:
    base = read_run("base", write_run(tmp_path / "a", TEXTS, dtype="bfloat16"))
    for name, settings in {"b": {"accept": "relaxed"}, "c": {"max_new_tokens": 9}}.items():
        run = write_run(tmp_path / name, TEXTS, dtype="bfloat16", **settings)
        assert rounding(base, read_run(name, run)) is None


def test_other_prompts_promise_nothing(tmp_path: Path) -> None:
    base = read_run("base", write_run(tmp_path / "a", {"a": "x"}))
    folder = write_run(tmp_path / "b", {"a": "x"})
    stats = {"entity_id": ["a"], "prompt_hash": pa.array([99], pa.int64())}
    pq.write_table(pa.table(stats), folder / "stats-00000.parquet")
    run = read_run("run", folder)
    assert other_prompts(base, run).tolist() == [True]
    assert not must_be_equal(base, run)
    assert run.relaxed_tokens is None
    for path in folder.glob("stats-*"):
        path.unlink()
    assert other_prompts(base, read_run("run", folder)).tolist() == [False]


def test_other_tokenizers_are_refused(tmp_path: Path) -> None:
    base = read_run("base", write_run(tmp_path / "a", TEXTS))
    folder = write_run(tmp_path / "b", TEXTS)
    manifest = folder / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"tokenizer":"t"', '"tokenizer":"u"'))
    with pytest.raises(DraftrecError, match="another tokenizer"):
        pair(base, [read_run("run", folder)])


def test_folders_of_something_else_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DraftrecError, match="not a folder"):
        read_run("r", tmp_path / "absent")
    pq.write_table(pa.table({"entity_id": ["a"], "text": ["b"]}), tmp_path / "part-0.parquet")
    with pytest.raises(DraftrecError, match="no columns 'token_ids' and"):
        read_run("r", tmp_path)
    folder = write_run(tmp_path / "r", TEXTS)
    (folder / "part-00001.parquet").write_bytes((folder / "part-00000.parquet").read_bytes())
    with pytest.raises(DraftrecError, match="has two texts of 'a'"):
        read_run("r", folder)
    (folder / "part-00001.parquet").unlink()
    pq.write_table(pa.table({"entity_id": ["a"]}), folder / "stats-00000.parquet")
    with pytest.raises(DraftrecError, match="do not fit"):
        read_run("r", folder)


def test_shards_are_read_by_number(tmp_path: Path) -> None:
    """By name, stats-100000 came before stats-99999, whose parts are read the other way round."""
    folder = write_run(tmp_path / "run", {"a": "x"}, relaxed=1)
    more = write_run(tmp_path / "more", {"b": "x y"}, relaxed=2)
    for kind in ("part", "stats"):
        (folder / f"{kind}-00000.parquet").rename(folder / f"{kind}-99999.parquet")
        (more / f"{kind}-00000.parquet").rename(folder / f"{kind}-100000.parquet")
    run = read_run("run", folder)
    assert run.entity_ids == ("a", "b")
    assert run.relaxed_tokens is not None
    assert run.relaxed_tokens.tolist() == [1, 2]
