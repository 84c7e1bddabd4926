"""Several texts of each record: how they are drawn, written, counted, kept and read again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from draftrec.cli.main import run
from draftrec.cli.progress import progress_of
from draftrec.core import Request
from draftrec.data.records import EntityReader, open_records
from draftrec.errors import DraftrecError, Interrupted
from draftrec.evaluate.compare.runs import read_run
from draftrec.evaluate.replay.recordings import read_recordings
from draftrec.jobs.knowledge.generator import Generator
from draftrec.jobs.knowledge.job import Watcher
from draftrec.jobs.knowledge.prompts import key_of, samples_of
from draftrec.jobs.knowledge.refresh import PreviousRun
from draftrec.serve.dashboard.run_data import RunReader
from tests.fakes import FakeGenerator, FakePool
from tests.jobs.knowledge.test_job import data_of, do, make_spec, refusal, run_killed, write_rows
from tests.jobs.knowledge.test_refresh import Remembering, write
from tests.models import zoo
from tests.models.folders import save, word

WARM: dict[str, Any] = {"temperature": 1.0, "seed": 3}
PROMPTS = {f"u{i}": f"about {i}" for i in range(7)}


def rows_of(folder: Path, kind: str = "part") -> list[dict[str, Any]]:
    tables = [pq.read_table(p) for p in sorted(folder.glob(f"{kind}-*.parquet"))]
    return [row for table in tables for row in table.to_pylist()]


def sampled(folder: Path, output: str, n: int, **options: Any) -> Any:
    return make_spec(folder, output, n=n, **{**WARM, **options})


class Notes(Watcher):
    """What the job had to say."""

    heard = ""

    def note(self, text: str) -> None:
        self.heard += text


# Keys


def test_the_first_text_has_its_records_key_and_no_two_are_alike() -> None:
    first = Request("u1", pa.array([1]).to_numpy(), key=key_of("u1"))
    few, many = samples_of(first, 2), samples_of(first, 50)
    assert few == many[:2]
    assert many[0] == first
    keys = {r.key for e in ("u1", "u2") for r in samples_of(Request(e, first.prompt_ids), 50)}
    assert len(keys) == 50  # of key 0 both
    keys |= {r.key for r in many}
    assert len(keys) == 100
    assert all(0 <= key < 2**63 for key in keys)
    assert [r.sample for r in many] == list(range(50))


# Jobs


def test_rows_of_a_record_lie_together_and_are_numbered(tmp_path: Path) -> None:
    write_rows(tmp_path / "in.jsonl")
    summary = do(sampled(tmp_path, "run", 3)).summary
    once = do(make_spec(tmp_path, "once", **WARM)).summary
    parts, stats = rows_of(tmp_path / "run"), rows_of(tmp_path / "run", "stats")
    names = [row["entity_id"] for row in rows_of(tmp_path / "once")]
    expected = [(name, i) for name in names for i in range(3)]
    for rows in (parts, stats):
        assert [(r["entity_id"], r["sample"]) for r in rows] == expected
    kind = pq.read_schema(tmp_path / "run" / "part-00000.parquet").field("sample").type
    assert kind == pa.int32()
    assert (summary["entities"], summary["texts"], summary["rejected"]) == (18, 54, 5)
    assert (once["entities"], once["texts"], once["rejected"]) == (18, 18, 5)
    assert summary["new_tokens"] == sum(row["new_tokens"] for row in parts)
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert [s["records"] for s in manifest["shards"]] == [5, 5, 5, 5, 3]
    assert [s["rows"] for s in manifest["shards"]] == [15, 12, 9, 15, 3]
    assert json.loads((tmp_path / "run" / "summary.json").read_text()) == summary


def test_one_text_leaves_the_files_as_they_are_without(tmp_path: Path) -> None:
    write_rows(tmp_path / "in.jsonl")
    do(make_spec(tmp_path, "plain", **WARM))
    do(sampled(tmp_path, "one", 1))
    do(sampled(tmp_path, "two", 2, keep_prompts=True))
    assert data_of(tmp_path / "one") == data_of(tmp_path / "plain")
    columns = pq.read_schema(tmp_path / "one" / "part-00000.parquet").names
    assert "sample" not in columns
    both = pq.read_schema(tmp_path / "two" / "part-00000.parquet").names
    assert both == ["entity_id", "sample", *columns[1:], "prompt"]
    prompts = [row["prompt"] for row in rows_of(tmp_path / "two")]
    assert prompts[::2] == prompts[1::2]


def test_a_shard_without_texts_has_the_columns_of_the_others(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"entity_id": 1, "prompt": null}\n')
    assert do(sampled(tmp_path, "run", 3)).summary["rejected"] == 1
    assert "sample" in pq.read_schema(tmp_path / "run" / "part-00000.parquet").names


@pytest.mark.slow
@pytest.mark.parametrize("accept", ["strict", "relaxed"])
@pytest.mark.parametrize("moments", [[7], [40, 2, 19], [0, 55, 55]])
def test_killed_jobs_end_with_the_bytes_of_an_unbroken_one(
    tmp_path: Path, accept: str, moments: list[int]
) -> None:
    write_rows(tmp_path / "in.jsonl")
    whole = do(sampled(tmp_path, "whole", 3, accept=accept)).summary
    broken = run_killed(sampled(tmp_path, "broken", 3, accept=accept), moments, lost=7).summary
    assert data_of(tmp_path / "broken") == data_of(tmp_path / "whole")
    counted = ("entities", "texts", "rejected", "new_tokens", "target_calls", "accepted_by_source")
    assert [broken[name] for name in counted] == [whole[name] for name in counted]


def test_an_interruption_in_the_middle_of_a_record_keeps_its_finished_texts(tmp_path: Path) -> None:
    write_rows(tmp_path / "in.jsonl")
    do(sampled(tmp_path, "whole", 3))
    first, again = FakeGenerator(), FakeGenerator()
    spec = sampled(tmp_path, "run", 3)
    with pytest.raises(Interrupted) as caught:
        do(spec, first, should_stop=lambda: first.decoded >= 19)
    assert (caught.value.progress.records_done, caught.value.kept) == (5, 4)
    assert progress_of(caught.value.progress, 4) == (19, 69, "texts")
    shown = RunReader(tmp_path / "run", "run").read()
    assert shown is not None
    assert (shown.records_done, shown.totals["entities"], shown.totals["texts"]) == (6, 6, 19)
    do(spec, again)
    assert first.decoded + again.decoded == 54
    assert data_of(tmp_path / "run") == data_of(tmp_path / "whole")


def test_another_number_of_texts_does_not_continue_a_run(tmp_path: Path) -> None:
    write_rows(tmp_path / "in.jsonl")
    do(sampled(tmp_path, "run", 3))
    assert "n was 3, now 2" in refusal(lambda: do(sampled(tmp_path, "run", 2)))


def test_all_texts_are_in_a_saved_pool(tmp_path: Path) -> None:
    write_rows(tmp_path / "in.jsonl")
    do(sampled(tmp_path, "run", 3, save_pool=tmp_path / "pool"))
    pool = FakePool.load(tmp_path / "pool")
    assert pool.texts == [(r["token_ids"], r["group"]) for r in rows_of(tmp_path / "run")]


# Refreshing


def test_a_refresh_keeps_all_texts_of_a_record_or_none(tmp_path: Path) -> None:
    write(tmp_path, PROMPTS)
    do(sampled(tmp_path, "old", 3))
    write(tmp_path, {**PROMPTS, "u3": "another story", "new": "about someone new"})
    generator = Remembering()
    summary = do(sampled(tmp_path, "new", 3, previous=tmp_path / "old"), generator).summary
    assert [(r.entity_id, r.sample) for r in generator.asked] == [
        (name, i) for name in ("u3", "new") for i in range(3)
    ]
    before, after = rows_of(tmp_path / "old"), rows_of(tmp_path / "new")
    assert [r for r in after if r["entity_id"] not in ("u3", "new")] == [
        r for r in before if r["entity_id"] != "u3"
    ]
    # Each drafts from the text of its own number.
    earlier = [None if r.previous_ids is None else r.previous_ids.tolist() for r in generator.asked]
    assert earlier == [r["token_ids"] for r in before if r["entity_id"] == "u3"] + [None] * 3
    assert (summary["entities"], summary["texts"], summary["kept"]) == (8, 24, 6)
    do(sampled(tmp_path, "fresh", 3))
    assert after == rows_of(tmp_path / "fresh")


@pytest.mark.slow
def test_a_refresh_with_fewer_texts_keeps_the_first_and_with_more_none(tmp_path: Path) -> None:
    write(tmp_path, PROMPTS)
    do(sampled(tmp_path, "old", 3))
    fewer, more, notes = Remembering(), Remembering(), Notes()
    assert do(sampled(tmp_path, "two", 2, previous=tmp_path / "old"), fewer).summary["kept"] == 7
    assert not fewer.decoded
    old = rows_of(tmp_path / "old")
    assert rows_of(tmp_path / "two") == [row for row in old if row["sample"] < 2]
    do(sampled(tmp_path, "one", 1, previous=tmp_path / "old"))
    do(make_spec(tmp_path, "plain", **WARM))
    assert (
        data_of(tmp_path / "one")["part-00000.parquet"]
        == (data_of(tmp_path / "plain")["part-00000.parquet"])
    )
    grown = sampled(tmp_path, "five", 5, previous=tmp_path / "old")
    assert do(grown, more, watcher=notes).summary["kept"] == 0
    assert "was written with fewer texts of each record: no text is kept" in notes.heard
    assert all(r.previous_ids is not None for r in more.asked)
    assert [row for row in rows_of(tmp_path / "five") if row["sample"] < 3] == old


def test_texts_of_another_run_are_found_by_their_number(tmp_path: Path) -> None:
    write(tmp_path, PROMPTS)
    do(sampled(tmp_path, "old", 2))
    found = PreviousRun(tmp_path / "old").find(["u6", "u0", "zz"])
    by_name = {name: [e.text for e in earlier] for name, earlier in found.items()}
    old = rows_of(tmp_path / "old")
    assert by_name == {
        name: [r["text"] for r in old if r["entity_id"] == name] for name in ("u0", "u6")
    }


# Readers of such a run


def test_readers_know_several_texts_or_say_what_to_do(tmp_path: Path) -> None:
    write(tmp_path, PROMPTS)
    do(sampled(tmp_path, "run", 2))
    words = "several texts of one record (generate --n), numbered in the column sample"
    assert words in refusal(lambda: read_run("run", tmp_path / "run"))
    assert words in refusal(lambda: EntityReader(open_records(tmp_path / "run")).check_ids())
    # One sample by itself is a run like any other.
    part = tmp_path / "run" / "part-00000.parquet"
    (tmp_path / "first").mkdir()
    pq.write_table(pq.read_table(part, filters=[("sample", "=", 0)]), tmp_path / "first/a.parquet")
    assert len(read_run("first", tmp_path / "first")) == 5
    EntityReader(open_records(tmp_path / "first")).check_ids()


# With a model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(zoo.build("llama"), tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="module")
def generator(folder: Path) -> Generator:
    return Generator.from_pretrained(
        folder, device="cpu", max_new_tokens=12, budget=4, batch_size=3, **WARM
    )


ROWS = [{"entity_id": f"u{i}", "prompt": f"{word(5 + i)} {word(9)}", "age": i} for i in range(4)]


@pytest.mark.slow
def test_a_text_depends_on_neither_its_siblings_nor_its_neighbours(generator: Generator) -> None:
    five = generator.generate(ROWS, n=5)
    assert [len(texts) for texts in five] == [5] * 4
    assert all(len(set(texts)) > 1 for texts in five)
    assert generator.generate(ROWS, n=2) == [texts[:2] for texts in five]
    assert generator.generate(ROWS) == [texts[0] for texts in five]
    assert generator.generate(ROWS[2], n=5) == five[2]
    assert generator.generate(ROWS[::-1], n=3) == [texts[:3] for texts in five[::-1]]
    assert generator.generate(ROWS, n=5, draft="none", batch_size=1) == five


@pytest.mark.slow
def test_a_place_is_one_in_the_whole_input(generator: Generator) -> None:
    """Of texts without an id, also where they are read in blocks."""
    prompts = [ROWS[0]["prompt"]] * 140
    found = [text.text for text in generator.stream(prompts, max_new_tokens=6)]
    assert found == generator.generate(prompts, max_new_tokens=6)
    assert found[128:] != found[:12]
    each = generator.generate(prompts[:70], n=2, max_new_tokens=6)
    assert [texts[0] for texts in each] == found[:70]
    streamed = list(generator.stream(prompts[:70], n=2, max_new_tokens=6))
    assert [text.text for text in streamed] == [text for texts in each for text in texts]
    assert [text.sample for text in streamed] == [0, 1] * 70


def test_full_results_have_a_row_per_text(generator: Generator) -> None:
    found = generator.generate(ROWS, n=3, full=True)
    assert [(t.entity_id, t.sample) for t in found] == [(f"u{i // 3}", i % 3) for i in range(12)]
    assert (found.summary["entities"], found.summary["texts"]) == (4, 12)
    assert found.to_arrow()["sample"].to_pylist() == [0, 1, 2] * 4
    assert "sample" not in generator.generate(ROWS, full=True).to_arrow().column_names
    none = generator.generate([], n=3, full=True).to_arrow()
    assert none.num_rows == 0
    assert "sample" in none.column_names


@pytest.mark.slow
def test_frames_get_lists_that_explode(generator: Generator) -> None:
    each = generator.generate(ROWS, n=3)
    added = ["text", "finish_reason", "prompt_tokens", "new_tokens"]
    flat = [text for texts in each for text in texts]
    frame = generator.generate(pd.DataFrame(ROWS), n=3, as_frame=True)
    assert frame["text"].tolist() == each
    assert frame.explode(added)["text"].tolist() == flat
    assert frame.explode(added)["age"].tolist() == [i // 3 for i in range(12)]
    polars = generator.generate(pl.DataFrame(ROWS), n=3, as_frame=True)
    assert polars.explode(added)["text"].to_list() == flat
    arrow = generator.generate(pa.Table.from_pylist(ROWS), n=3, as_frame=True)
    assert arrow["text"].to_pylist() == each
    empty = generator.generate(pd.DataFrame(ROWS)[:0], n=3, as_frame=True)
    assert (len(empty), empty["text"].tolist()) == (0, [])


def test_greedy_texts_would_all_be_the_same(generator: Generator) -> None:
    words = "would all be the same with temperature 0"
    with pytest.raises(DraftrecError, match=words):
        generator.generate("x", n=2, temperature=0)
    with pytest.raises(DraftrecError, match=words):
        generator.with_settings(n=2).generate("x", temperature=0)
    with pytest.raises(DraftrecError, match="n=0 is not allowed"):
        generator.generate("x", n=0)
    assert generator.generate(ROWS[0], n=1, temperature=0) == (
        generator.generate(ROWS[0], temperature=0)
    )


@pytest.mark.slow
def test_the_command_line_writes_what_python_writes(
    folder: Path, generator: Generator, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    line = ["generate", str(source), "--model", str(folder), "--max-new-tokens", "12"]
    line += ["--device", "cpu", "--n", "3", "--output"]
    assert run([*line, str(tmp_path / "greedy")]) == 2
    told = capsys.readouterr().err
    assert "would all be the same with temperature 0" in told
    assert not (tmp_path / "greedy").exists()
    warm = ["--temperature", "1", "--seed", "3", "--json"]
    assert run([*line, str(tmp_path / "run"), *warm]) == 0
    shown = capsys.readouterr()
    assert "12 texts (3 of each of 4 records) in" in shown.err
    assert json.loads(shown.out.splitlines()[-1])["texts"] == 12
    expected = generator.generate(ROWS, n=3)
    assert [r["text"] for r in rows_of(tmp_path / "run")] == [t for e in expected for t in e]
    # Every text is replayed, and encoding says which of them it would take.
    assert len(read_recordings(str(tmp_path / "run"), generator.tokenizer)) == 12
    vectors = ["--encoder", "hashed:16", "--output", str(tmp_path / "v.parquet")]
    assert run(["encode", str(tmp_path / "run"), *vectors]) == 2
    assert "several texts of one record" in capsys.readouterr().err
