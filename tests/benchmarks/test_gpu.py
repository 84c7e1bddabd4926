"""The accelerator's benchmark, dry: tiny shapes on the CPU, the embedded model's texts."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import gpu
import gpu_sections
import gpu_texts
import numpy as np
import pytest
from gpu_replay import longest_for
from gpu_steps import segments_for
from recorded import make_trace, pick_tokenizer, read_rows
from stand_in import train_tokenizer, world_texts

from draftrec.core import Request


@pytest.mark.slow
def test_dry_run_writes_every_part(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["--dry", "--results", str(tmp_path), "--texts", str(tmp_path / "none")]) == 0
    result = json.loads((tmp_path / "gpu-cpu-dry.json").read_text())
    assert result == json.loads(capsys.readouterr().out.splitlines()[-1])
    sections = result["sections"]
    found = {name.split()[0]: s["result"] for name, s in sections.items() if "result" in s}
    assert found.keys() | {"vllm", "sglang"} == set(gpu_sections.KINDS)
    for section in sections.values():
        if "result" in section:
            assert section["where"]["torch"]
            assert section["seed"] == 0
        else:
            assert "is not installed" in section["skipped"]
    assert found["texts"]["embedded_kar_user"]["source"] == "written by the embedded model"
    plain = found["steps"]["ways"]["eager"]["batch_2"]
    assert plain["step_ms"]["median"] > 0
    assert {k: s["n"] for k, s in plain["first_sight_ms"].items()} == {"plain": 12, "drafted": 12}
    assert len(found["rows"]["ways"]["eager"]["batch_1"]["ms"]) == 3
    cell = found["replay"]["eager"]["embedded_kar_user"]["batch_2"]
    assert cell["plain"]["tokens"] == cell["strict"]["tokens"]
    assert cell["relaxed"]["tokens_per_call"] >= cell["strict"]["tokens_per_call"] >= 1
    assert cell["hf_generate"]["tokens_per_second"] > 0
    assert found["steps"]["ways"].keys() == found["beams"].keys() == {"eager", "frozen"}
    for way in ("eager", "frozen"):
        exact = found["exact"][f"{way}, --exact"]
        assert exact["promised"]
        assert {run["equal"] for run in exact["equal"].values()} == {exact["texts"]}
    beams = found["beams"]["eager"]["k_3_users_2"]
    assert [beams[name]["target_calls"] for name in ("plain", "always")] == [4, 1]
    assert {search["same_items"] for search in beams.values()} == {2}
    page = (tmp_path / "gpu-cpu-dry.html").read_text()
    assert "tiny-untied, batch 2, eager" in page
    assert "vllm is not installed" in page


#: Does what its section is called, as a child of gpu.py would.
_CHILD = """
import pathlib, sys, time
folder = pathlib.Path(sys.argv[1])
for name in sys.argv[sys.argv.index("--child") + 1:]:
    (folder / f"{name}.began").touch()
    if name == "dies":
        sys.exit("out of luck")
    if name == "hangs":
        time.sleep(60)
    (folder / f"{name}.new").write_text('{"result": {}, "seconds": 0.1}')
    (folder / f"{name}.began").unlink()
    (folder / f"{name}.new").replace(folder / f"{name}.json")
"""


@pytest.fixture
def book(tmp_path: Path) -> gpu.Book:
    facts = {"where": {"card": "none"}, "dry_run": True, "seed": 0}
    return gpu.Book(tmp_path / "results" / "gpu.json", tmp_path, facts)


@pytest.mark.slow
def test_sections_that_die_or_hang_cost_the_others_nothing(book: gpu.Book) -> None:
    names = ("first", "dies", "second", "hangs", "third")
    sections = [gpu.Section(name, limit=2.0) for name in names]
    gpu.run(sections, book, [sys.executable, "-c", _CHILD, str(book.scratch)], 60.0)
    assert list(book.sections) == list(names)
    assert book.sections["dies"]["failed"] == "its process ended with 1: out of luck"
    assert book.sections["hangs"]["failed"] == "took longer than 2 s"
    assert all("result" in book.sections[name] for name in ("first", "second", "third"))
    assert json.loads(book.file.read_text())["sections"] == book.sections


@pytest.mark.slow
def test_a_child_that_never_begins_is_asked_for_each_section_once(book: gpu.Book) -> None:
    sections = [gpu.Section("one"), gpu.Section("two")]
    gpu.run(sections, book, [sys.executable, "-c", "raise SystemExit('no')"], 60.0)
    assert [found["failed"] for found in book.sections.values()] == ["no", "no"]


def test_what_has_no_time_left_is_named(book: gpu.Book) -> None:
    gpu.run([gpu.Section("late")], book, [], 0.0)
    assert book.sections == {"late": {"skipped": "no time left of 0 s"}}
    assert "late: no time left" in book.file.with_suffix(".html").read_text()


@pytest.mark.slow
def test_texts_come_back_as_they_were_saved(tmp_path: Path) -> None:
    ids = np.array([5, 6, 2], np.int32)
    one = gpu_texts.Replayed(
        "x", "a test", 2, [Request("u", ids, "g")], {"u": ids}, {"u": ids[1:]}, [(ids, None)]
    )
    gpu_texts.save(tmp_path / "texts", [one])
    (back,) = gpu_texts.load(tmp_path / "texts")
    assert back.requests[0].group == "g"
    assert back.texts["u"].tolist() == [5, 6, 2]
    assert back.relaxed is not None
    assert back.relaxed["u"].dtype == np.int32
    assert len(back.pool()) == 1
    assert gpu_texts.summary([back])["x"]["relaxed_texts_differ"] == 1


def test_replayed_texts_stay_out_of_the_pool() -> None:
    sources = read_rows(None, 24, seed=0)
    words = train_tokenizer(world_texts(20), 400)
    trace = make_trace("x", sources["fictional_kar_user"], words, 4)
    assert len(trace.requests) == 4
    assert len(trace.pool) == 20
    assert all(t[-1] == words.eos_token_id for t in trace.texts.values())
    assert set(trace.texts) == {r.entity_id for r in trace.requests}


def test_a_tokenizer_is_trained_where_none_is_given() -> None:
    rows = {"other": [{"text": text} for text in world_texts(8)]}
    words = pick_tokenizer(None, rows, 300)
    assert len(words) <= 300
    assert words.eos_token_id == 2


def test_rows_are_spread_over_the_sequences() -> None:
    segments = segments_for(slots=4, rows=10, context=7, vocabulary=50)
    assert [s.rows for s in segments] == [3, 3, 2, 2]
    assert sum(s.rows for s in segments_for(4, 3, 7, 50)) == 3
    assert all(np.all(s.pending < 50) for s in segments)


def test_a_cell_keeps_to_its_time() -> None:
    assert longest_for(seconds=6.0, step=0.02, batch=1) == 100
    assert longest_for(seconds=3.0, step=0.02, batch=8) == 150
    assert longest_for(seconds=60.0, step=0.001, batch=8) == 192
