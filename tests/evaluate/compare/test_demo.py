"""The default limits on texts that the embedded model wrote: good relaxed texts pass, loose ones
do not, strict ones equal the baseline's."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pytest
from bookshop.world import is_held_out, knowledge_text, stream_records

from draftrec.cli.main import run
from draftrec.demo.shop import demo_model_path
from draftrec.evaluate.compare.comparison import CompareJob, run_compare
from draftrec.evaluate.compare.limits import default_limits

pytest.importorskip("sacrebleu")
MODEL = str(demo_model_path())
ENTITIES = 32


@pytest.fixture
def generate(tmp_path: Path) -> Callable[..., Path]:
    """Writes the held-out users' texts; a pool of other users' texts is there to draft from."""
    records = list(islice(stream_records("user"), 300))
    held_out = [r for r in records if is_held_out(r["entity_id"])][:ENTITIES]
    others = [r for r in records if not is_held_out(r["entity_id"])]
    warm = [{"entity_id": r["entity_id"], "text": knowledge_text(r)} for r in others]
    for name, rows in (("in", held_out), ("warm", warm)):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    pool = str(tmp_path / "pool")
    build = ["pool", "build", str(tmp_path / "warm.jsonl"), "--tokenizer", MODEL, "--output", pool]
    assert run(build) == 0

    def write(name: str, *words: str) -> Path:
        line = ["generate", str(tmp_path / "in.jsonl"), "--model", MODEL, "--template", "kar"]
        line += ["--max-new-tokens", "160", "--budget", "32", "--batch-size", "8"]
        drafts = [] if "none" in words else ["--pool", pool]
        assert run([*line, *drafts, *words, "--output", str(tmp_path / name)]) == 0
        return tmp_path / name

    return write


@pytest.mark.slow
def test_default_limits_part_good_texts_from_bad(generate: Callable[..., Path]) -> None:
    relaxed = ("--accept", "relaxed")
    runs = {
        "base": generate("base", "--draft", "none"),
        "strict": generate("strict"),
        "relaxed": generate("relaxed", *relaxed),
        "loose": generate("loose", *relaxed, "--top-k", "50", "--min-prob", "0"),
    }
    limits = default_limits().model_copy(update={"undecided": "pass"})
    found = run_compare(CompareJob(runs, limits))
    assert not found.passed
    outcomes = {r.name: {v.metric for v in r.verdicts if v.outcome == "broken"} for r in found.runs}
    assert outcomes["strict"] == outcomes["relaxed"] == set()
    assert outcomes["loose"] >= {"similarity_kept", "distinct_2"}
    assert [r.must_equal for r in found.runs] == [True, False, False]
    kept = {r.name: r.measured["similarity_kept"].value for r in found.runs}
    assert kept["strict"] is not None
    assert kept["strict"].value == 1.0
