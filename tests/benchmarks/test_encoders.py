"""The encoder benchmark: a dry run to its result."""

from __future__ import annotations

import json
from pathlib import Path

import encoders
import numpy as np
import pytest

from tests.models import encoder_folders


def test_made_up_texts_have_the_length_asked_for() -> None:
    made = encoders.texts(400, 40, 0)
    lengths = [len(text.split()) for text in made]
    assert made == encoders.texts(400, 40, 0)
    assert 37 < np.mean(lengths) < 43
    assert (min(lengths) >= 4, max(lengths) <= 76) == (True, True)


def test_distance_is_relative_to_the_vector() -> None:
    one = np.array([[3.0, 4.0], [1.0, 0.0]])
    assert encoders.distance(one, one + np.array([[0.0, 1.0], [0.0, 0.1]])) == 0.2


@pytest.mark.slow
def test_a_small_encoder_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = encoder_folders.bert(tmp_path / "bert")
    line = ["--encoder", str(folder), "--texts", "10", "--words", "12", "--rounds", "2"]
    encoders.main([*line, "--results", str(tmp_path)])
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    kept = json.loads((tmp_path / "encoders.json").read_text())
    assert last["speed"] == kept["speed"]
    assert set(kept["speed"]) == {"float32", "bfloat16", "hashed"}
    for found in kept["speed"].values():
        assert found["texts_per_second"]["n"] == 2
        assert found["texts_per_cpu_second"]["median"] > 0
    assert 0 < kept["distance_of_bfloat16"] < 0.2
    assert max(kept["distance_of_batch_sizes"]["float32"].values()) < 1e-4
