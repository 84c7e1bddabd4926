"""`draftrec genrec evaluate`: the contract's command line, its output, and bad input."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from draftrec.cli import main
from draftrec.cli.command import _repeated

Evaluate = Callable[..., tuple[int, str, str]]


@pytest.fixture
def evaluate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Evaluate:
    """Runs the command; @LISTS and @SEQUENCES stand for the two files."""
    lists, sequences = tmp_path / "lists.parquet", tmp_path / "sequences.jsonl"
    table = {"user": [1, 2], "items": [list(range(20)), list(range(20, 40))]}
    pq.write_table(pa.table(table), lists)
    rows: list[dict[str, Any]] = [
        {"user": 1, "items": [2, 50], "part": "test"},
        {"user": 2, "items": [20], "part": "test"},
        {"user": 2, "items": [21], "part": "valid"},
    ]
    sequences.write_text("\n".join(map(json.dumps, rows)))
    places = {"@LISTS": str(lists), "@SEQUENCES": str(sequences)}

    def run(line: str) -> tuple[int, str, str]:
        words = [places.get(word, word) for word in line.split()]
        code = main.run(["genrec", "evaluate", *words])
        return code, *capsys.readouterr()

    return run


@pytest.mark.slow
@pytest.mark.parametrize(
    "line",
    [
        "@LISTS @SEQUENCES -k 1 3 5 10 20 --json",
        "-k 1 3 5 10 20 @LISTS @SEQUENCES --json",
        "@LISTS -k 1 3 -k 5 @SEQUENCES -k 10 20 --json",
        "--json -k 1 -k 3 -k 5 -k 10 -k 20 -- @LISTS @SEQUENCES",
        "@LISTS @SEQUENCES --json",
    ],
)
def test_several_values_may_follow_one_k(evaluate: Evaluate, line: str) -> None:
    code, out, err = evaluate(line)
    assert code == 0, err
    found = json.loads(out.splitlines()[-1])
    assert [key for key in found if key.startswith("recall")] == [
        f"recall@{k}" for k in (1, 3, 5, 10, 20)
    ]
    assert (found["recall@1"], found["recall@3"]) == (0.5, 0.75)
    assert (found["ndcg@1"], found["users"]) == (0.5, 2)


def test_figures_are_shown_without_json_too(evaluate: Evaluate) -> None:
    code, out, err = evaluate("@LISTS @SEQUENCES -k 3 1 --definition single --part valid")
    assert code == 0, err
    assert "1 users; targets: the first item of part valid" in out
    # 21 is on place 2.
    assert "0.6309" in out
    assert "1 users without items of part 'valid' are left out" in err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("@LISTS @SEQUENCES -k 1 30", "at most 20 items for a user, too few for k = 30"),
        ("@SEQUENCES @LISTS", "user 2 has a list before"),
        ("@LISTS @LISTS", "no column 'part'"),
        ("@LISTS @SEQUENCES -k 0", "Invalid value for '-k'"),
        ("@LISTS @SEQUENCES -k", "requires an argument"),
        ("@LISTS @SEQUENCES -k some", "Invalid value for '-k'"),
        ("@LISTS missing.parquet", "does not exist"),
        ("@LISTS @SEQUENCES --part train", "no items of part 'train'"),
    ],
)
def test_bad_input_gets_a_sentence(evaluate: Evaluate, line: str, words: str) -> None:
    code, _, err = evaluate(line)
    assert code == 2
    assert words in err
    assert err.count("\n") == 1


def test_only_numbers_after_a_value_are_values() -> None:
    assert _repeated(["-k", "1", "3", "f", "4"], {"-k"}) == ["-k", "1", "-k", "3", "f", "4"]
    assert _repeated(["3", "-k", "1", "--", "5"], {"-k"}) == ["3", "-k", "1", "--", "5"]
    assert _repeated(["-k"], {"-k"}) == ["-k"]
    assert _repeated(["--limit", "1", "2"], {"-k"}) == ["--limit", "1", "2"]
