"""`draftrec encode`: the file it writes, its summary, and what it says about bad input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from draftrec.cli.main import run
from draftrec.data.sequences import read_semantic_ids
from draftrec.data.vectors import read_vectors
from tests.models import encoder_folders as folders
from tests.models.encoder_folders import words


class Command:
    """Runs `draftrec encode` on a small BERT and keeps what it said."""

    def __init__(self, folder: Path, bert: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self.bert, self._capsys = folder, bert, capsys
        self.output = folder / "deep" / "vectors.parquet"
        self.rows = [{"entity_id": i, "text": words(*range(5 + i, 6 + 2 * i))} for i in range(12)]
        self.texts = self.write("texts.jsonl", *self.rows)

    def write(self, name: str, *rows: dict[str, Any]) -> Path:
        path = self.folder / name
        path.write_text("\n".join(map(json.dumps, rows)))
        return path

    def __call__(self, *line: Any, encoder: Any = None, code: int = 0) -> str:
        command = ["encode", *line, "--encoder", encoder or self.bert, "--output", self.output]
        found = run([*map(str, command), "--device", "cpu"])
        self.out, self.err = self._capsys.readouterr()
        assert found == code, self.err
        return self.err

    def tell(self, *line: Any, encoder: Any = None, code: int = 0) -> dict[str, Any]:
        self(*line, "--json", encoder=encoder, code=code)
        return json.loads(self.out.splitlines()[-1])

    def refuses(self, words: str, *line: Any, encoder: Any = None) -> None:
        """Exit code 2, exactly one line, with these words in it; nothing written."""
        said = self(*line, encoder=encoder, code=2)
        assert said.count("\n") == 1, said
        assert words in said
        assert not self.output.parent.exists() or not list(self.output.parent.iterdir())


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folders.bert(tmp_path_factory.mktemp("models") / "bert")


@pytest.fixture
def command(tmp_path: Path, bert: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(tmp_path, bert, capsys)


@pytest.mark.slow
def test_a_vector_per_text(command: Command) -> None:
    found = command.tell(command.texts)
    assert (found["texts"], found["encoded"], found["dim"]) == (12, 12, 16)
    assert found["tokens"] == sum(1 + i for i in range(12))
    assert (found["encoder"], found["pooling"]) == (str(command.bert), "mean")
    assert (found["tokens_lost"], found["rejected"]) == (0, 0)
    vectors = read_vectors(command.output)
    assert vectors.ids == [str(i) for i in range(12)]
    assert vectors.vectors.shape == (12, 16)
    assert "12 texts (12 different ones) as vectors of 16 numbers" in command.err
    again = command.tell(command.texts)
    assert again == found
    assert "already finished; nothing was changed" in command.err


@pytest.mark.slow
def test_semantic_ids_are_fitted_to_its_file(command: Command) -> None:
    command(command.texts)
    sids = command.folder / "sids.parquet"
    line = ["sid", "fit", command.output, "--output", sids, "--item-column", "entity_id"]
    assert run([*map(str, line), "--levels", "2", "--codes", "4"]) == 0
    assert read_semantic_ids(sids).items.tolist() == list(range(12))


def test_items_without_texts_are_put_into_words(command: Command) -> None:
    films = [
        {"movie": 7, "title": "Heat", "year": 1995, "genres": "Action|Crime", "popularity": 3},
        {"movie": 8, "title": "Up (2009)", "genres": None, "popularity": 5},
        {"movie": 9, "title": "Ran (1985)", "genres": "War", "popularity": 5},
    ]
    words = [
        {"entity_id": 7, "text": "Heat (1995)\nAction, Crime"},
        {"entity_id": 8, "text": "Up (2009)"},
        {"entity_id": 9, "text": "Ran (1985)\nWar"},
    ]
    said = command(command.write("films.jsonl", *films), encoder="hashed:2")
    assert "films.jsonl has no texts: what it says of each item is encoded" in said
    found, same = read_vectors(command.output), command.folder / "same.parquet"
    command.output = same
    command(command.write("words.jsonl", *words), encoder="hashed:2")
    assert found.ids == read_vectors(same).ids == ["7", "8", "9"]
    assert found.vectors.tolist() == read_vectors(same).vectors.tolist()
    command.output = command.folder / "other" / "vectors.parquet"
    users = command.write("users.jsonl", {"entity_id": 1, "title": "Dr", "history": ["Up"]})
    for line in ((users,), (command.folder / "films.jsonl", "--text-column", "text2")):
        command.refuses(
            "or give records with a title, as draftrec records", *line, encoder="hashed:2"
        )


@pytest.mark.slow
def test_what_is_cut_is_said(command: Command) -> None:
    records = command.write("records.jsonl", {"entity_id": 3, "prompt": words(*range(5, 40))})
    long = command.write("long.jsonl", *command.rows, {"entity_id": 99, "text": words(*range(60))})
    line = (long, "--history", records)
    found = command.tell(*line, "--on-overflow", "truncate")
    assert (found["knowledge_truncated"], found["history_truncated"]) == (1, 1)
    assert found["tokens_lost"] == 60 - 22 + 35 + 4 - 22
    assert "55 tokens were not read: 1 texts lost knowledge, 1 lost history" in command.err
    assert "12 texts have no history in --history" in command.err
    windowed = command.tell(*line, "--overwrite")
    assert (windowed["windowed"], windowed["tokens_lost"]) == (2, 0)
    assert "each is the mean of its windows" in command.err
    refused = command.tell(*line, "--on-overflow", "refuse", "--overwrite", code=3)
    assert (refused["texts"], refused["rejected"]) == (11, 2)
    assert f"2 records were rejected, see {command.output}.rejected.jsonl" in command.err


def test_options_reach_the_encoder(command: Command) -> None:
    found = command.tell(command.texts, "--pooling", "cls", "--normalise", "--max-tokens", 8)
    assert (found["pooling"], found["windowed"]) == ("cls", 6)
    lengths = np.linalg.norm(read_vectors(command.output).vectors, axis=1)
    np.testing.assert_allclose(lengths, 1, atol=1e-6)


@pytest.mark.slow
def test_hashed_vectors_of_two_runs_compare(command: Command) -> None:
    line = (command.texts, "--fit-on", command.texts)
    found = command.tell(*line, encoder="hashed:8")
    assert (found["dim"], found["encoder"], found["pooling"]) == (8, "hashed:8", "tf-idf")
    first = read_vectors(command.output).vectors
    assert first.any(axis=1).all()
    few = command.write("few.jsonl", *command.rows[4:7])
    command.tell(few, "--fit-on", command.texts, "--overwrite", encoder="hashed:8")
    np.testing.assert_allclose(read_vectors(command.output).vectors, first[4:7], atol=1e-6)


class TestBadInput:
    @pytest.mark.slow
    def test_unusable_encoders_are_refused(self, command: Command) -> None:
        command.refuses("does not exist", command.texts, encoder=command.folder / "no" / "model")
        command.refuses("at most 24", command.texts, "--max-tokens", 99)
        command.refuses("size from 1 to 4096", command.texts, encoder="hashed:x")
        command.refuses("--fit-on fits", command.texts, "--fit-on", command.texts)
        command.refuses("--batch-size", command.texts, "--batch-size", 0)

    def test_unusable_texts_are_refused(self, command: Command) -> None:
        command.refuses("does not exist", "nowhere.jsonl")
        command.refuses("no column 'answer'", command.texts, "--text-column", "answer")

    def test_other_settings_are_refused_by_name(self, command: Command) -> None:
        command(command.texts)
        said = command(command.texts, "--batch-size", 5, code=2)
        assert "batch_size was 32, now 5" in said
        assert said.count("\n") == 1
