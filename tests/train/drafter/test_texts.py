"""Texts of runs with the prompts that they answer: made again as the job made them, or refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from draftrec.engine.learned.rules import ScoreRules
from draftrec.errors import DraftrecError
from draftrec.models.loading import load_tokenizer
from draftrec.train.drafter.texts import WrittenRun, open_runs
from tests.models import zoo
from tests.models.folders import make_tokenizer
from tests.train.drafter.worlds import make_target, write_records, write_run

MODEL: Any = zoo.plain("llama")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A target, records, a plain run, and one of two samples each that kept its prompts."""
    folder = tmp_path_factory.mktemp("world")
    make_target(folder / "target")
    records = write_records(folder / "records.jsonl", 10)
    write_run(folder / "run", folder / "target", records)
    write_run(
        folder / "sampled", folder / "target", records, keep_prompts=True, n=2, temperature=0.7,
        repetition_penalty=1.1, presence_penalty=0.5, frequency_penalty=0.25,
    )  # fmt: skip
    return folder


def prompts(path: Path) -> dict[str, list[int]]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return {row["entity_id"]: make_tokenizer()(row["prompt"]).input_ids for row in rows}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "each"), [("run", 1), ("sampled", 2)])
def test_prompts_are_those_of_the_job(world: Path, name: str, each: int) -> None:
    run = WrittenRun(world / name, None, None)
    found = run.training_texts(MODEL, load_tokenizer(world / "target"))
    known = prompts(world / "records.jsonl")
    assert len(found) == each * len(known)
    for text, written in zip(found, run.texts, strict=True):
        assert text.ids[: text.first].tolist() == known[text.entity_id]
        assert text.ids[text.first :].tolist() == written.token_ids.tolist()


@pytest.mark.slow
def test_what_the_run_did_to_scores_is_known(world: Path) -> None:
    tokenizer = load_tokenizer(world / "target")
    plain, sampled = (WrittenRun(world / name, None, 3) for name in ("run", "sampled"))
    assert plain.rules(MODEL, tokenizer) == ScoreRules()
    assert sampled.rules(MODEL, tokenizer) == ScoreRules(1.1, 0.5, 0.25, 0.7)
    assert len(sampled.texts) == 3
    changed: Any = zoo.build("llama")
    changed.generation_config.repetition_penalty = 1.3
    with pytest.raises(DraftrecError, match="another generation_config"):
        plain.rules(changed, tokenizer)


@pytest.mark.slow
def test_records_may_have_moved_but_not_changed(world: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(world / "target")
    shutil.copytree(world / "run", tmp_path / "run")
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    manifest["paths"]["input"] = str(tmp_path / "gone.jsonl")
    (tmp_path / "run" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DraftrecError, match=r"cannot be made again .*gone.*--records"):
        WrittenRun(tmp_path / "run", None, None).training_texts(MODEL, tokenizer)
    moved = str(world / "records.jsonl")
    assert WrittenRun(tmp_path / "run", moved, None).training_texts(MODEL, tokenizer)
    other = str(write_records(tmp_path / "other.jsonl", 10, seed=1))
    with pytest.raises(DraftrecError, match=r"10 of 10 prompts .*are not those of its records"):
        WrittenRun(tmp_path / "run", other, None).training_texts(MODEL, tokenizer)
    manifest["paths"]["template"] = "gone.j2"
    (tmp_path / "run" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DraftrecError, match=r"run this where its template gone.j2 was named from"):
        WrittenRun(tmp_path / "run", moved, None).training_texts(MODEL, tokenizer)


@pytest.mark.slow
def test_what_cannot_be_learnt_from_is_refused(world: Path, tmp_path: Path) -> None:
    run = WrittenRun(world / "run", None, None)
    prints = {what: str(run.manifest.fingerprints[what]) for what in ("model", "tokenizer")}
    run.check(prints)
    for what in prints:
        with pytest.raises(DraftrecError, match=f"written with another {what} than"):
            run.check({**prints, what: "other"})
    with pytest.raises(DraftrecError, match="is no run"):
        open_runs([tmp_path], [], None)
    with pytest.raises(DraftrecError, match="run is named twice"):
        open_runs([world / "run", world / "sampled", world / "run"], [], None)
    with pytest.raises(DraftrecError, match="names 1 files of records and there are 2 runs"):
        open_runs([world / "run", world / "sampled"], ["a"], None)
    shutil.copytree(world / "run", tmp_path / "empty")
    manifest = json.loads((tmp_path / "empty" / "manifest.json").read_text())
    (tmp_path / "empty" / "manifest.json").write_text(json.dumps({**manifest, "shards": []}))
    with pytest.raises(DraftrecError, match="holds no texts yet"):
        open_runs([tmp_path / "empty"], [], None)
    for name, content in (("part-00000.parquet", b"cut"), ("manifest.json", b"{}")):
        shutil.copytree(world / "run", tmp_path / name)
        (tmp_path / name / name).write_bytes(content)
        with pytest.raises(DraftrecError, match="give another run, or write this one") as error:
            open_runs([tmp_path / name], [], None)
        assert "--o" not in str(error.value), "that is read, not written"


@pytest.mark.slow
def test_a_fingerprint_tells_texts_apart(world: Path) -> None:
    def print_of(*names: str, limit: int | None = None) -> str:
        return open_runs([world / name for name in names], [], limit)[1]

    both = print_of("run", "sampled")
    assert both == print_of("run", "sampled")
    others = {print_of("run"), print_of("sampled", "run"), print_of("run", "sampled", limit=3)}
    assert len({both, *others}) == 4
