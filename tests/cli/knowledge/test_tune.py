"""`draftrec tune`: the settings it finds on texts whose best settings are known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from draftrec.cli.main import run
from draftrec.demo.shop import demo_model_path


def write(path: Path, texts: list[list[int]]) -> Path:
    rows = [{"entity_id": str(i), "token_ids": t} for i, t in enumerate(texts)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def tune(texts: Any, capsys: pytest.CaptureFixture[str], *more: Any) -> tuple[int, str, str]:
    line = ["tune", texts, "--tokenizer", demo_model_path(), *more]
    code = run([str(x) for x in line])
    out, err = capsys.readouterr()
    return code, out, err


def chosen(texts: Any, capsys: pytest.CaptureFixture[str], *more: Any) -> dict[str, Any]:
    code, out, err = tune(texts, capsys, "--json", *more)
    assert code == 0, err
    return json.loads(out.splitlines()[-1])


def repeated(length: int, count: int) -> list[list[int]]:
    """Texts that are all alike: what is drafted is accepted."""
    return [list(range(10, 10 + length)) for _ in range(count)]


def run_folder(folder: Path, texts: list[list[int]], seconds: list[float]) -> Path:
    """A run's folder with a cost curve at 1, 9 and 65 rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir()
    curve = {"slots": 1, "rows": [1, 9, 65], "seconds": seconds, "draft_seconds": 0.0}
    (folder / "manifest.json").write_text(json.dumps({"cost_state": curve}))
    table = pa.table({"entity_id": [str(i) for i in range(len(texts))], "token_ids": texts})
    pq.write_table(table, folder / "part-00000.parquet")
    return folder


def test_the_smallest_of_equally_good_settings_wins(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = chosen(write(tmp_path / "t.jsonl", repeated(7, 40)), capsys)
    assert found["compared_by"] == "tokens_per_step"
    assert (found["chosen"]["budget"], found["chosen"]["depth"]) == (8, 6)
    assert found["chosen"]["tokens_per_step"] == 7.0
    sizes = [t["pool_tokens"] for t in found["trials"]]
    assert found["chosen"]["pool_tokens"] == min(sizes) < max(sizes) == 32 * 7
    assert found["texts"] == 8


@pytest.mark.slow
def test_costs_of_a_run_limit_the_budget(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = repeated(60, 20)
    free = chosen(run_folder(tmp_path / "free", texts, [1.0, 1.0, 1.0]), capsys)
    dear = chosen(run_folder(tmp_path / "dear", texts, [1.0, 9.0, 65.0]), capsys)
    assert free["compared_by"] == dear["compared_by"] == "speedup"
    assert free["chosen"]["budget"] >= 16
    assert free["chosen"]["speedup"] > 10
    # Five rows at five times the price write five tokens: nothing is gained, so nothing is spent.
    assert (dear["chosen"]["budget"], dear["chosen"]["speedup"]) == (0, 1.0)


def test_what_is_slower_than_plain_is_never_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Plain decoding is a candidate, and wins where every draft is expected to lose."""
    dear = run_folder(tmp_path / "run", repeated(60, 20), [1.0, 90.0, 900.0])
    settings = tmp_path / "settings.yaml"
    code, out, _ = tune(dear, capsys, "--output", settings)
    assert code == 0
    assert "chosen: plain decoding" in out
    assert yaml.safe_load(settings.read_text()) == {"draft": "none"}


@pytest.mark.slow
def test_a_pool_is_tried_in_smaller_sizes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    random = np.random.default_rng(0)
    known = [random.integers(10, 900, 50).tolist() for _ in range(40)]
    line = ["--tokenizer", demo_model_path(), "--output", tmp_path / "pool"]
    texts = write(tmp_path / "known.jsonl", known)
    assert run([str(x) for x in ["pool", "build", texts, *line]]) == 0
    capsys.readouterr()
    # Every text is known, so every text that is left out of the pool costs.
    found = chosen(texts, capsys, "--pool", tmp_path / "pool", "--output", tmp_path / "s.yaml")
    assert found["chosen"]["pool_tokens"] == 2000
    by_size = {
        t["pool_tokens"]: t["tokens_per_step"]
        for t in found["trials"]
        if (t["budget"], t["depth"]) == (found["chosen"]["budget"], found["chosen"]["depth"])
    }
    assert [by_size[s] for s in sorted(by_size)] == sorted(by_size.values())
    settings = yaml.safe_load((tmp_path / "s.yaml").read_text())
    assert settings == {k: found["chosen"][k] for k in ("budget", "depth")}
    assert "with the whole pool of 2000 tokens" in (tmp_path / "s.yaml").read_text()


def pool_of(folder: Path, texts: list[list[int]]) -> Path:
    line = ["pool", "build", write(folder / "known.jsonl", texts), "--tokenizer", demo_model_path()]
    assert run([str(x) for x in [*line, "--output", folder / "pool"]]) == 0
    return folder / "pool"


@pytest.mark.slow
def test_what_is_replayed_does_not_choose_what_a_smaller_pool_holds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The oldest texts, which pruning drops first, are the ones that are replayed: a pool that kept
    them because they were just drafted from would be none that `pool prune` makes."""
    random = np.random.default_rng(0)
    known = [random.integers(10, 900, 50).tolist() for _ in range(40)]
    pool = pool_of(tmp_path, known)
    capsys.readouterr()
    texts = write(tmp_path / "few.jsonl", known[:4])
    code, out, err = tune(texts, capsys, "--json", "--pool", pool)
    assert code == 0, err
    assert "4 of 4 texts are in --pool token for token" in " ".join(err.split())
    found = json.loads(out.splitlines()[-1])
    assert found["chosen"]["pool_tokens"] == 2000
    assert found["chosen"]["max_bytes"] is None
    smaller = [t for t in found["trials"] if t["max_bytes"] is not None]
    assert [t["pool_tokens"] for t in smaller] == [250, 500, 1000]
    assert {t["tokens_per_step"] for t in smaller} != {found["chosen"]["tokens_per_step"]}


@pytest.mark.slow
def test_the_pool_that_it_names_is_the_one_that_it_tried(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pool = pool_of(tmp_path, repeated(40, 40))
    texts = write(tmp_path / "new.jsonl", repeated(40, 9))
    capsys.readouterr()
    settings = tmp_path / "s.yaml"
    found = chosen(texts, capsys, "--pool", pool, "--output", settings)["chosen"]
    line = next(x for x in settings.read_text().splitlines() if "pool prune" in x)
    assert run([*line.removeprefix("#   draftrec ").split(), "--json"]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["tokens"] == found["pool_tokens"] < 1600


def test_the_table_is_for_people(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = tune(write(tmp_path / "t.jsonl", repeated(7, 40)), capsys)
    assert code == 0
    assert "chosen: pool of" in out


@pytest.mark.parametrize(
    ("texts", "more", "words"),
    [
        (repeated(5, 3), (), "needs at least 5"),
        (repeated(5, 9), ("--pool", "missing"), "missing"),
        (repeated(5, 9), ("--output", "no/where.yaml"), "does not exist"),
        (None, (), "does not exist"),
    ],
)
def test_bad_input_is_named(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    texts: list[list[int]] | None,
    more: tuple[str, ...],
    words: str,
) -> None:
    path = write(tmp_path / "t.jsonl", texts) if texts else tmp_path / "none.jsonl"
    code, out, err = tune(path, capsys, *more)
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert words in err
