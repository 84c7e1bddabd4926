"""`draftrec genrec recommend` as a user runs it, and what it says of bad input."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from draftrec.cli.main import run
from draftrec.data.sequences import read_semantic_ids
from draftrec.items.semantic_ids import SemanticIds
from tests.jobs.recommend.worlds import World, make_world, save_model


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


def line(world: World, output: Path, *more: str, sequences: Path | None = None) -> list[str]:
    return [
        "genrec", "recommend", str(sequences or world.sequences), "--target", str(world.target),
        "--sids", str(world.sids), "--output", str(output), "-k", "5", "--draft-beams", "8",
        "--batch-size", "4", *more,
    ]  # fmt: skip


@pytest.mark.slow
def test_rows_and_summary_are_the_contracts(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drafts = {"none": "none", "items": "items", "model": str(world.draft)}
    tables = {}
    for name, draft in drafts.items():
        output = tmp_path / f"{name}.parquet"
        assert run(line(world, output, "--draft", draft, "--json", "--shadow", "1")) == 0
        summary = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert {
            "users", "walltime_seconds", "ms_per_user_p50", "ms_per_user_p99",
            "mean_target_calls", "mean_accepted_steps", "invalid_rate",
        } <= summary.keys()  # fmt: skip
        assert summary["users"] == 12
        assert summary["shadow_exact_rate"] == 1.0
        tables[name] = pq.read_table(output)
    plain = tables["none"]
    assert plain.schema.names == [
        "user", "items", "scores", "sids", "target_calls", "accepted_steps",
    ]  # fmt: skip
    assert plain.schema.field("target_calls").type == pa.int32()
    sids = read_semantic_ids(world.sids)
    for row in plain.to_pylist():
        assert sids.sids_of(row["items"]) == row["sids"]
    for name in ("items", "model"):
        assert tables[name]["items"] == plain["items"]
    assert run(["genrec", "evaluate", str(output), str(world.sequences), "-k", "1", "5"]) == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("draft", "more"),
    [
        ("model", ("--verify", "relaxed")),
        ("model", ("--verify", "sample")),
        ("items", ("--verify", "sample")),
        ("none", ("--verify", "sample")),
        ("model", ("--constraint", "none")),
        ("none", ("--constraint", "none")),
        ("model", ("--renormalise",)),
    ],
)
@pytest.mark.parametrize("shadow", ["0", "1"])
def test_every_way_of_verifying_runs_from_files(
    world: World,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    draft: str,
    more: tuple[str, ...],
    shadow: str,
) -> None:
    output = tmp_path / "out.parquet"
    folder = str(world.draft) if draft == "model" else draft
    words = line(world, output, "--draft", folder, "--shadow", shadow, "--json", *more)
    assert run(words) == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert summary["users"] == 12
    if shadow == "1" and "relaxed" not in more:
        assert summary["shadow_exact_rate"] == 1.0
    known = set(read_semantic_ids(world.sids).items.tolist())
    assert all(set(row) <= known for row in pq.read_table(output)["items"].to_pylist())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "exact"),
    [
        (("--dtype", "bfloat16", "--exact"), "bit for bit"),
        # As the check at load finds that this processor's products keep a row's bits.
        (("--dtype", "bfloat16"), "bit for bit, or up to rounding"),
        ((), "bit for bit"),
        (("--verify", "relaxed"), "no"),
    ],
)
def test_how_equal_answers_are_to_plain_searchs_is_said(
    world: World,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    more: tuple[str, ...],
    exact: str,
) -> None:
    output = tmp_path / "out.parquet"
    words = line(world, output, "--draft", str(world.draft), "--json", "--shard-size", "5", *more)
    assert run(words) == 0
    out, err = capsys.readouterr()
    found = json.loads(out.splitlines()[-1])["exact"]
    assert found in exact.split(", or ")
    assert (f"plain beam search, {found}" in err) == (found != "no")


@pytest.mark.slow
def test_exact_answers_have_the_bits_of_plain_ones_whatever_is_drafted(
    world: World, tmp_path: Path
) -> None:
    tables = []
    for number, (draft, batch) in enumerate(
        (("none", "1"), ("none", "7"), ("items", "4"), (str(world.draft), "12"))
    ):
        output = tmp_path / f"{number}.parquet"
        more = ("--draft", draft, "--dtype", "bfloat16", "--exact", "--draft-steps", "2")
        assert run([*line(world, output, *more), "--batch-size", batch]) == 0
        table = pq.read_table(output, columns=["user", "items", "scores"])
        tables.append(table.to_pydict())
    assert all(table == tables[0] for table in tables)


@pytest.mark.slow
def test_a_blend_is_the_same_whoever_drafts_and_another_one_than_the_models(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tables = []
    for number, more in enumerate(
        (["--draft", "none"], ["--draft", "items", "--shadow", "1"], ["--draft", str(world.draft)])
    ):
        output = tmp_path / f"{number}.parquet"
        assert run(line(world, output, "--blend", "0.5", "--json", *more)) == 0
        tables.append(pq.read_table(output, columns=["user", "items"]).to_pylist())
        summary = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert summary.get("shadow_exact_rate", 1.0) == 1.0
    assert tables[1:] == tables[:1] * 2
    assert run(line(world, tmp_path / "plain.parquet", "--blend-candidates", "9")) == 0
    assert "--blend-candidates has no effect without --blend" in capsys.readouterr().err
    plain = pq.read_table(tmp_path / "plain.parquet", columns=["user", "items"]).to_pylist()
    assert plain != tables[0]
    assert run(line(world, output, "--blend", "0.6", "--overwrite")) == 0


def refused(
    words: list[str], capsys: pytest.CaptureFixture[str], message: str, output: Path
) -> None:
    assert run(words) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1, said
    assert message in said[0]
    assert "Traceback" not in said[0]
    assert not output.exists()


@pytest.mark.slow
def test_impossible_settings_are_refused(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out.parquet"
    for more, message in (
        (("-k", "61", "--draft-beams", "80"), "the catalogue has 60"),
        (("--draft-beams", "4"), "let --draft-beams be at least -k"),
        (("--verify", "relaxed"), "give --draft a model"),
        (("--draft-steps", "some"), "auto or a whole number"),
        (("--draft-steps", "-1"), "--draft-steps"),
        (("--temperature", "0"), "--temperature"),
        (("--blend", "0.1", "--verify", "sample"), "--blend needs --verify strict"),
        (("--blend", "0.1", "--constraint", "none"), "--blend needs --verify strict"),
        (("--blend", "-0.1"), "--blend"),
        (("--blend", "some"), "--blend"),
        (("--blend", "0.1", "--blend-candidates", "0"), "--blend-candidates"),
        (("--draft", str(tmp_path / "nowhere")), "nowhere"),
        (("--device", "tpu"), "tpu"),
    ):
        refused(line(world, output, *more), capsys, message, output)


@pytest.mark.slow
def test_unusable_files_are_refused(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out.parquet"
    rows = [
        {"user": 1, "items": [4712, 4711], "part": "train"},
        {"user": 1, "items": [11], "part": "test"},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "unknown.parquet")
    words = line(world, output, sequences=tmp_path / "unknown.parquet")
    refused(words, capsys, "no item of any history has a semantic id", output)
    missing = tmp_path / "missing.parquet"
    refused(line(world, output, sequences=missing), capsys, "missing.parquet", output)

    def with_sids(name: str, tokens: list[list[str]]) -> list[str]:
        lines = [json.dumps({"item": 10 + i, "sid": sid}) for i, sid in enumerate(tokens)]
        path = tmp_path / f"{name}.jsonl"
        path.write_text("\n".join(lines))
        words = line(world, output, "-k", "1")
        words[words.index("--sids") + 1] = str(path)
        return words

    known = read_semantic_ids(world.sids)
    own = known.sids_of(known.items)
    refused(with_sids("short", [s[:2] for s in own]), capsys, "the model writes 3", output)
    refused(with_sids("odd", [*own[:5], own[5][:2]]), capsys, "2 tokens", output)
    other = [*own[:-1], ["<a_0>", "<b_0>", "<c_99>"]]
    refused(with_sids("unknown", other), capsys, "no token '<c_99>'", output)


@pytest.mark.slow
def test_models_that_do_not_fit_are_refused(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out.parquet"
    sids = read_semantic_ids(world.sids)
    turned = SemanticIds(sids.items, sids.codes, sids.tokens[::-1])
    save_model(tmp_path / "other", turned, 1, 1, "draft")
    words = line(world, output, "--draft", str(tmp_path / "other"))
    refused(words, capsys, "was trained on other semantic ids", output)
    (tmp_path / "empty").mkdir()
    words = line(world, output)
    words[words.index("--target") + 1] = str(tmp_path / "empty")
    refused(words, capsys, "no genrec.json", output)


@pytest.mark.slow
def test_an_output_is_replaced_only_on_request(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out.parquet"
    assert run(line(world, output, "--limit", "3")) == 0
    first = output.read_bytes()
    assert run(line(world, output)) == 2
    assert "exists" in capsys.readouterr().err
    assert output.read_bytes() == first
    assert run(line(world, output, "--overwrite", "--draft-beams", "2")) == 2
    assert output.read_bytes() == first, "bad settings must not cost the old file"
    assert run(line(world, output, "--overwrite")) == 0
    assert pq.read_table(output).num_rows == 12


@pytest.mark.slow
def test_an_item_without_an_id_costs_its_user_nothing_but_that_item(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tables = []
    for name, items in (("odd", [10, 4711, 12]), ("whole", [10, 12])):
        rows = [
            {"user": 1, "items": items, "part": "train"},
            {"user": 2, "items": [11, 13], "part": "train"},
        ]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"{name}-in.parquet")
        output = tmp_path / f"{name}.parquet"
        words = line(world, output, "--json", sequences=tmp_path / f"{name}-in.parquet")
        assert run(words) == 0
        said = capsys.readouterr()
        tables.append(pq.read_table(output, columns=["user", "items"]))
        summary = json.loads(said.out.splitlines()[-1])
        assert summary["unknown_items"] == (1 if name == "odd" else 0)
        assert ("item 4711 of user 1" in said.err) == (name == "odd")
    assert tables[0] == tables[1]


@pytest.mark.slow
def test_unconstrained_search_needs_no_other_option(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out.parquet"
    assert run(line(world, output, "--constraint", "none", "--json")) == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert summary["invalid_rate"] > 0


def test_lists_of_what_is_in_stock_and_what_is_not_hold_for_everybody(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With histories of all items, which only the files' own ones narrow."""
    items = read_semantic_ids(world.sids).items.tolist()
    allow, deny = tmp_path / "stock.csv", tmp_path / "gone.jsonl"
    allow.write_text("sku\n" + "".join(f"{it}\n" for it in [*items[:8], 999_999]))
    deny.write_text("".join(json.dumps({"name": "x", "item_id": it}) + "\n" for it in items[:2]))
    told = {}
    for draft in ("none", "items"):
        output = tmp_path / f"{draft}.parquet"
        lists = ("--allow", str(allow), "--deny", str(deny))
        assert run(line(world, output, "--draft", draft, *lists)) == 0
        assert "1 of 9 items of" in capsys.readouterr().err
        told[draft] = pq.read_table(output)["items"].to_pylist()
        assert all(len(row) == 5 and set(row) <= set(items[2:8]) for row in told[draft])
    assert told["items"] == told["none"]
    allow.write_text("sku\n" + "".join(f"{it}\n" for it in items[:9]))
    assert run(line(world, output, "--draft", "items", "--allow", str(allow))) == 2
    assert "--overwrite" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        ("item\n", "is empty"),
        ("item\n999999\nx1\n", "none of the 2 items"),
        ("one,two\n1,2\n", "one column, or one called item"),
        ("item\n1.5\n\n", "has a semantic id"),
    ],
)
def test_a_list_of_items_that_says_nothing_is_refused(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, wanted: str
) -> None:
    (tmp_path / "list.csv").write_text(content)
    words = line(world, tmp_path / "out.parquet", "--deny", str(tmp_path / "list.csv"))
    assert run(words) == 2
    told = capsys.readouterr().err
    assert wanted in told
    assert "list.csv" in told
    assert not (tmp_path / "out.parquet").exists()
