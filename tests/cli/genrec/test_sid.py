"""`draftrec sid fit`: the file it writes, its summary, and what it says about bad input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from draftrec.cli.main import run
from draftrec.data.sequences import read_semantic_ids
from draftrec.data.vectors import read_item_vectors


class Command:
    """Runs `draftrec sid fit` and keeps what it said."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self._capsys = folder, capsys
        vectors = np.random.default_rng(0).normal(size=(60, 8)).astype(np.float32)
        self.rows = vectors.tolist()
        self.vectors = self.write("vectors.parquet", range(100, 160), self.rows)
        self.output = folder / "deep" / "sids.parquet"

    def write(self, name: str, items: Any, vectors: Any, item: str = "item") -> Path:
        table = pa.table({item: list(items), "vector": list(vectors)})
        pq.write_table(table, self.folder / name)
        return self.folder / name

    def __call__(self, *words: Any) -> int:
        code = run(["sid", "fit", *map(str, words)])
        self.out, self.err = self._capsys.readouterr()
        return code

    def tell(self, *words: Any) -> dict[str, Any]:
        assert self(*words, "--output", self.output, "--json") == 0, self.err
        return json.loads(self.out.splitlines()[-1])

    def refuses(self, words: str, *line: Any, output: Path | None = None) -> None:
        """Exit code 2, exactly one line, with these words in it; nothing written."""
        assert self(*line, "--output", output or self.output) == 2, self.err
        assert self.err.count("\n") == 1, self.err
        assert words in self.err
        assert not self.output.exists()


@pytest.fixture
def command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(tmp_path, capsys)


@pytest.mark.slow
def test_every_item_gets_its_own_id(command: Command) -> None:
    found = command.tell(command.vectors, "--levels", 3, "--codes", 8)
    assert (found["items"], found["levels"], found["codes"]) == (60, 3, 8)
    assert (found["unique"], found["collisions"], found["largest_collision"]) == (60, 0, 1)
    assert len(found["codes_used"]) == 3
    assert max(found["codes_used"]) <= 8
    assert 0 < found["reconstruction_error"] < 1
    assert found["seconds"] > 0
    sids = read_semantic_ids(command.output)
    assert sids.items.tolist() == list(range(100, 160))
    assert sids.sids_of([100])[0][0].startswith("<a_")
    first = command.output.read_bytes()
    command.tell(command.vectors, "--levels", 3, "--codes", 8)
    assert command.output.read_bytes() == first


@pytest.mark.slow
@pytest.mark.parametrize("method", ["rq-kmeans", "rq-vae"])
@pytest.mark.parametrize(("scale", "offset"), [(2.0**100, 0.0), (2.0**-100, 0.0), (1.0, 1e4)])
def test_neither_size_nor_a_common_offset_of_vectors_matters(
    command: Command, method: str, scale: float, offset: float
) -> None:
    """Numbers of 1e30 looped for ever, and distances beside 1e4 lost all their digits."""
    words = ("--levels", 3, "--codes", 8, "--method", method)
    if method == "rq-vae":
        pytest.importorskip("vector_quantize_pytorch")
        words += ("--epochs", 2)
    # Multiples of 1/64 survive the offset in float32, so that these are the same vectors.
    rows = np.round(np.array(command.rows) * 64) / 64
    command.tell(command.write("v.parquet", range(60), rows), *words)
    known = read_semantic_ids(command.output).codes
    command.output.unlink()
    moved = (rows * scale + offset).astype(np.float32)
    command.tell(command.write("v.parquet", range(60), moved), *words)
    assert (read_semantic_ids(command.output).codes == known).mean() > 0.95


def test_what_cannot_be_told_apart_is_reported(command: Command) -> None:
    same = command.write("same.parquet", range(10), [[1.0, 2.0]] * 10)
    found = command.tell(same, "--levels", 2, "--codes", 2)
    assert found["unique"] == 4
    assert 7 <= found["collisions"] <= 10
    assert found["largest_collision"] >= 3
    assert f"{found['collisions']} share theirs" in command.err


def test_ids_that_mean_little_are_said_with_the_figure(command: Command) -> None:
    words = ("--levels", 2, "--codes", 8)
    found = command.tell(command.vectors, *words)
    assert found["moved"] <= 30
    assert "mean little" not in command.err
    same = command.write("same.parquet", range(60), [[1.0, 2.0]] * 60)
    found = command.tell(same, *words)
    assert found["moved"] > 30
    assert f"codes changed {found['moved']} times to keep 60 items apart" in command.err
    assert "rounding of float32" not in command.err
    near = 1 + 1e-7 * np.random.default_rng(0).normal(size=(60, 4))
    command.output.unlink()
    command.tell(command.write("near.parquet", range(60), near.astype(np.float32)), *words)
    assert "of their variance may be the rounding of float32" in command.err


def test_other_columns_and_an_autoencoder_give_ids_too(command: Command) -> None:
    pytest.importorskip("vector_quantize_pytorch")
    names = command.write("named.parquet", map(str, range(60)), command.rows, "entity_id")
    line = ("--item-column", "entity_id", "--levels", 2, "--codes", 8)
    found = command.tell(names, *line, "--method", "rq-vae", "--epochs", 2, "--dim", 4)
    assert (found["method"], found["items"], found["unique"]) == ("rq-vae", 60, 60)
    assert len(read_semantic_ids(command.output)) == 60


class TestBadInput:
    def test_unusable_vectors_are_refused(self, command: Command) -> None:
        command.refuses("does not exist", "missing.parquet")
        line = (command.vectors, "--vector-column", "embedding")
        command.refuses("no column 'embedding'", *line)
        uneven = command.write("uneven.parquet", [1, 2], [[1.0, 2.0], [1.0]])
        command.refuses("item 2 has 1 numbers", uneven, "--codes", 2)
        nan = command.write("nan.parquet", [1, 2], [[1.0], [float("nan")]])
        command.refuses("item 2 holds", nan, "--codes", 2)

    @pytest.mark.parametrize("method", ["rq-kmeans", "rq-vae"])
    def test_fewer_items_than_codes_are_refused(self, command: Command, method: str) -> None:
        command.refuses("60 items are too few for 256 codes", command.vectors, "--method", method)

    def test_unwritable_outputs_are_refused_before_any_work(self, command: Command) -> None:
        command.refuses("must end in", "missing.parquet", output=command.folder / "sids.csv")
        (command.folder / "file").write_text("")
        inside = command.folder / "file" / "sids.parquet"
        command.refuses("file", "missing.parquet", output=inside)

    def test_impossible_sizes_are_refused(self, command: Command) -> None:
        for line in (("--levels", 27), ("--codes", 1), ("--max-load", 0.5)):
            assert command(command.vectors, *line, "--output", command.output) == 2
        line = (command.vectors, "--method", "rq-vae", "--device", "abacus", "--codes", 8)
        command.refuses("abacus", *line)


def test_new_items_join_with_the_codes_there_are(
    command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    command.tell(command.vectors, "--levels", 3, "--codes", 8)
    before = read_semantic_ids(command.output)
    more = np.array(command.rows[:3], np.float32) + 0.01
    every = command.write("more.parquet", range(100, 163), [*command.rows, *more.tolist()])
    output = command.folder / "after.parquet"
    code = run(["sid", "join", *map(str, (command.output, every, "--output", output, "--json"))])
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (code, found["items"], found["joined"], found["unique"]) == (0, 63, 3, 63)
    assert found["without_vectors"] == 0
    after = read_semantic_ids(output)
    assert after.sids_of(before.items) == before.sids_of(before.items)
    assert [s[:2] for s in after.sids_of([160, 161, 162])] == [
        s[:2] for s in before.sids_of([100, 101, 102])
    ]
    strangers = command.write("strangers.parquet", range(3), more.tolist())
    code = run(["sid", "join", *map(str, (command.output, strangers, "--output", output))])
    assert code == 2
    assert "none of the items with vectors" in capsys.readouterr().err


def test_vectors_are_near_where_the_same_users_took_items(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two kinds of users; what only valid and test items say is not looked at."""
    rows = []
    for user in range(40):
        kind = 5 * (user % 2)
        items = [f"sku-{kind + (user + step) % 5}" for step in range(3)]
        rows.append({"user": user, "items": items, "part": "train"})
        rows.append({"user": user, "items": [f"sku-{5 - kind}"], "part": "valid"})
        rows.append({"user": user, "items": ["sku-new"], "part": "test"})
    sequences, output = tmp_path / "sequences.parquet", tmp_path / "deep" / "vectors.parquet"
    pq.write_table(pa.Table.from_pylist(rows), sequences)
    line = ["sid", "vectors", str(sequences), "--output", str(output)]
    assert run([*line, "--factors", "2", "--json"]) == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (summary["items"], summary["users"], summary["dim"]) == (10, 40, 2)
    found = read_item_vectors(output)
    assert sorted(found.items.tolist()) == [f"sku-{item}" for item in range(10)]
    kinds = np.array([int(name[-1]) // 5 for name in found.items.tolist()])
    near = found.vectors @ found.vectors.T
    same = kinds[:, None] == kinds
    assert near[same].min() > 0.99
    assert np.abs(near[~same]).max() < 0.01
    first = output.read_bytes()
    assert run([*line, "--factors", "2"]) == 0
    assert output.read_bytes() == first
    assert run(["sid", "fit", str(output), "--codes", "2", "--levels", "4", "--output",
                str(tmp_path / "sids.parquet")]) == 0  # fmt: skip
    codes = read_semantic_ids(tmp_path / "sids.parquet").codes[:, 0]
    assert len(set(zip(codes.tolist(), kinds.tolist(), strict=True))) == 2
    capsys.readouterr()
    pq.write_table(pa.Table.from_pylist(rows[2:3]), sequences)
    for words, message in ((line, "no items of part 'train'"), ([*line[:-1], "x.csv"], ".parquet")):
        assert run(words) == 2
        assert message in capsys.readouterr().err
