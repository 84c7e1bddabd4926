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


def test_vectors_of_one_item_or_one_user(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One item ended in a traceback."""
    sequences, output = tmp_path / "sequences.parquet", tmp_path / "vectors.parquet"
    line = ["sid", "vectors", str(sequences), "--output", str(output)]
    for items, code in (([7], 2), ([7, 7], 2), ([7, 8, 9], 0)):
        rows = [{"user": 1, "items": items, "part": "train"}]
        pq.write_table(pa.Table.from_pylist(rows), sequences)
        assert run(line) == code
        assert ("holds one item in part 'train', 7" in capsys.readouterr().err) == (code == 2)
    assert read_item_vectors(output).items.tolist() == [7, 8, 9]


class TestSeveralKinds:
    """`sid fit A B`: texts beside who took what, and `sid join` of the same."""

    LINE = ("--levels", 3, "--codes", 8)

    def kinds(self, command: Command, *, b_items: Any = range(100, 160)) -> tuple[Path, Path]:
        """`vectors.parquet` of 8 numbers, and others of 3, much larger and off the middle."""
        random = np.random.default_rng(1)
        rows = (1e3 * random.normal(size=(len(b_items), 3)) + 5e3).astype(np.float32)
        return command.vectors, command.write("b.parquet", b_items, rows.tolist())

    def together(self, command: Command, a: Path, b: Path, *weights: float) -> Path:
        """The two in one file, scaled by hand."""
        blocks = []
        for path, weight in zip((a, b), weights or (1.0, 1.0), strict=True):
            vectors = read_item_vectors(path).vectors.astype(np.float64)
            moved = vectors - vectors.mean(axis=0)
            blocks.append(moved * np.sqrt(weight / (moved**2).sum(axis=1).mean()))
        rows = np.concatenate(blocks, axis=1).astype(np.float32)
        return command.write("together.parquet", range(100, 160), rows.tolist())

    @pytest.mark.parametrize("weights", [(), (3.0, 1.0)])
    def test_two_files_are_one_of_both_scaled(
        self, command: Command, weights: tuple[float, ...]
    ) -> None:
        a, b = self.kinds(command)
        given = ("--weights", ",".join(map(str, weights))) if weights else ()
        found = command.tell(a, b, *self.LINE, *given)
        assert found["kinds"] == [
            {"vectors": str(a), "dim": 8, "weight": weights[0] if weights else 1.0, "missing": 0},
            {"vectors": str(b), "dim": 3, "weight": 1.0, "missing": 0},
        ]
        codes = read_semantic_ids(command.output).codes
        one = command.tell(self.together(command, a, b, *weights), *self.LINE)
        assert "kinds" not in one
        same = (read_semantic_ids(command.output).codes == codes).mean()
        assert same > 0.99
        assert found["reconstruction_error"] == pytest.approx(one["reconstruction_error"], rel=0.01)
        command.tell(a, *self.LINE)
        assert (read_semantic_ids(command.output).codes == codes).mean() < 0.9

    def test_a_single_file_writes_what_it_always_did(self, command: Command) -> None:
        command.tell(command.vectors, *self.LINE)
        assert pq.read_schema(command.output).metadata is None
        assert command(command.vectors, *self.LINE, "--weights", 2, "--output", command.output) == 0
        assert "--weights has no effect with one file of vectors" in command.err

    def test_items_that_one_file_lacks_are_counted(self, command: Command) -> None:
        a, b = self.kinds(command, b_items=range(110, 162))
        found = command.tell(a, b, *self.LINE)
        assert (found["items"], [kind["missing"] for kind in found["kinds"]]) == (62, [2, 10])
        assert f"{a} has no vectors of 2 of 62 items, such as 160" in command.err
        assert f"{b} has no vectors of 10 of 62 items, such as 100" in command.err
        assert read_semantic_ids(command.output).items.tolist() == list(range(100, 162))

    def test_ids_of_one_type_are_needed_unless_numbers_came_as_texts(
        self, command: Command
    ) -> None:
        a, _ = self.kinds(command)
        names = [*map(str, range(100, 159)), "sku-9"]
        b = command.write("b.parquet", names, command.rows)
        words = f"items are numbers in {a} and texts, such as '100', in {b}"
        command.refuses(words, a, b, *self.LINE)
        spelt = command.write("spelt.parquet", map(str, range(100, 160)), command.rows)
        found = command.tell(spelt, b, *self.LINE)
        assert [kind["missing"] for kind in found["kinds"]] == [1, 1]
        assert "sku-9" in read_semantic_ids(command.output).items.tolist()

    def test_files_that_do_not_go_together_are_refused(self, command: Command) -> None:
        a, b = self.kinds(command)
        part = command.write("part.parquet", range(160, 180), command.rows[:20])
        command.refuses("if these are parts of one set of vectors", a, part, *self.LINE)
        twice = command.write("twice.parquet", [100, 100], command.rows[:2])
        command.refuses(f"{twice}: item 100 is listed twice", a, twice, *self.LINE)
        flat = command.write("flat.parquet", range(100, 160), [[1.0, 2.0]] * 60)
        command.refuses(f"{flat} has the same vector for all items", a, flat, *self.LINE)
        for weights in ("1", "1,0", "1,x", "1,2,3", "1,inf", "1,nan"):
            words = "--weights must be as many numbers above 0 as there are files of vectors (2)"
            command.refuses(words, a, b, *self.LINE, "--weights", weights)
        command.refuses("files of vectors (1)", a, *self.LINE, "--weights", "1,2")

    def join(self, command: Command, *words: Any) -> dict[str, Any]:
        output = command.folder / "after.parquet"
        line = ["sid", "join", command.output, *words, "--output", output, "--json"]
        code = run([str(word) for word in line])
        out, command.err = command._capsys.readouterr()
        assert (code == 0) == output.exists()
        return json.loads(out.splitlines()[-1]) if code == 0 else {"code": code}

    def more(self, command: Command, a: Path, b: Path) -> tuple[Path, Path]:
        """The same with neighbours of the first three items, one of them in `a` alone."""
        rows = [read_item_vectors(path).vectors for path in (a, b)]
        grown = [np.concatenate((it, it[:3] + 1e-3 * it.std())) for it in rows]
        return (
            command.write("a2.parquet", range(100, 163), grown[0].tolist()),
            command.write("b2.parquet", range(100, 162), grown[1][:62].tolist()),
        )

    def test_new_items_join_by_the_same_kinds(self, command: Command) -> None:
        a, b = self.kinds(command)
        command.tell(a, b, *self.LINE, "--weights", "1,20")
        before = read_semantic_ids(command.output)
        a2, b2 = self.more(command, a, b)
        found = self.join(command, a2, b2)
        assert (found["joined"], found["unique"], found["without_vectors"]) == (3, 63, 0)
        assert [kind["weight"] for kind in found["kinds"]] == [1.0, 20.0]
        assert [kind["missing"] for kind in found["kinds"]] == [0, 1]
        assert f"{b2} has no vectors of 1 of 63 items, such as 162" in command.err
        output = command.folder / "after.parquet"
        after = read_semantic_ids(output)
        assert after.sids_of(before.items) == before.sids_of(before.items)
        assert [s[:2] for s in after.sids_of([160, 161])] == [
            s[:2] for s in before.sids_of([100, 101])
        ]
        assert pq.read_schema(output).metadata == pq.read_schema(command.output).metadata
        # One far from all others in one kind does not change what that kind counts.
        far = read_item_vectors(b2).vectors
        far = np.concatenate((far, far[:1] + 1e7))
        b3 = command.write("b3.parquet", [*range(100, 162), 170], far.tolist())
        output.unlink()
        assert self.join(command, a2, b3)["joined"] == 4
        assert read_semantic_ids(output).sids_of([160, 161]) == after.sids_of([160, 161])

    def test_other_kinds_than_the_ids_were_made_of_are_refused(self, command: Command) -> None:
        a, b = self.kinds(command)
        command.tell(a, b, *self.LINE, "--weights", "1,20")
        swapped = f"{b} has vectors of 3 numbers where {command.output} was made of 8 (file 1 of 2)"
        number = f"{command.output} was made of 2 kinds of vectors, of 8 and 3 numbers, and not of"
        for line, words in (
            ((a,), f"{number} 1;"),
            ((a, b, b), f"{number} 3;"),
            ((b, a), swapped),
            ((a, b, "--weights", "1,1"), "was made with --weights 1,20; leave --weights out"),
        ):
            assert self.join(command, *line)["code"] == 2
            assert command.err.count("\n") == 1
            assert words in command.err

    def test_ids_of_which_nothing_is_known_take_what_is_given(self, command: Command) -> None:
        a, b = self.kinds(command)
        command.output = command.folder / "sids.jsonl"
        command.tell(a, b, *self.LINE)
        a2, b2 = self.more(command, a, b)
        found = self.join(command, a2, b2, "--weights", "1,2")
        assert (found["joined"], [kind["weight"] for kind in found["kinds"]]) == (3, [1.0, 2.0])

    def test_a_damaged_note_is_refused(self, command: Command) -> None:
        a, b = self.kinds(command)
        command.tell(a, b, *self.LINE)
        table = pq.read_table(command.output)
        for note in (b"{", b"3", b'[{"dim": "x"}]'):
            kept = table.replace_schema_metadata({b"draftrec.vectors": note})
            pq.write_table(kept, command.output)
            assert self.join(command, a, b)["code"] == 2
            assert "is damaged; make the ids anew" in command.err
