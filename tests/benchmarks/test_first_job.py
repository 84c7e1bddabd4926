"""The benchmark of first jobs, dry: few records, commands in this process."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
from collections.abc import Sequence as Seq
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import first_job
import job_tables
import pytest
from bookshop.world import stream_records

from draftrec import config
from draftrec.cli.main import run
from draftrec.config import make_config
from draftrec.core import Request
from draftrec.data.templates import load_template
from draftrec.demo.shop import demo_model_path
from draftrec.jobs.knowledge.generator import Generator


def _here(arguments: Seq[str]) -> dict[str, Any]:
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        assert run([*arguments, "--json"]) == 0
    return json.loads(said.getvalue().splitlines()[-1])


@pytest.mark.slow
def test_the_command_of_the_readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(first_job, "run_command", lambda a: _here([*a, "--max-new-tokens", "16"]))
    result = first_job.bookshop(argparse.Namespace(records=8, rounds=1), tmp_path, 1.1)
    assert result["identical_texts"]
    assert result["drafted"]["new_tokens"] > 0
    assert result["wall_speedup"]["n"] == result["times_plain_said"]["n"] == 1
    table = job_tables.bookshop({"bookshop": result})
    assert "`--repetition-penalty 1.1`" in table
    assert "| yes |" in table


def _readers(generator: Generator, users: int) -> list[Request]:
    template = load_template("kar", "user")
    prompts = [template.render(r) for r in islice(stream_records("user"), users)]
    ids = generator.encode(prompts, chat=False)
    return [Request(str(i), x, None, key=i) for i, x in enumerate(ids)]


@pytest.mark.slow
def test_a_real_model_with_plain_chunks_in_between(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(first_job, "_requests", _readers)
    usual = first_job.movielens.__globals__
    monkeypatch.setitem(usual, "note", lambda _: None)
    # By its own measurements a busy machine might draft nothing.
    monkeypatch.setattr(config, "make_config", partial(make_config, budget=8))
    model = demo_model_path()
    args = argparse.Namespace(model=model, users=10, chunk=4, plain_every=2)
    result = first_job.movielens(args, Generator.from_pretrained(model), 1.0)
    assert result["users"] == 10
    assert result["compared_texts"] == result["identical_texts"] == 4 + 2
    assert 0 < result["pool_share"] < 1
    assert sum(result["share_of_tokens"].values()) == pytest.approx(
        1 - result["target_calls"] / result["new_tokens"], abs=0.2
    )
    whole = {"benchmark": "x-tiles", "movielens": result, "settings": {"model": "demo"}}
    table = job_tables.movielens(whole)
    assert "by matrix tiles" in table
    assert "| 6 of 6 |" in table
