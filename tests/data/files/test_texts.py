"""YAML as people write it: a text is a text."""

from __future__ import annotations

from pathlib import Path

import pytest

from draftrec.data.files.texts import read_yaml
from draftrec.errors import DraftrecError


@pytest.mark.parametrize(
    "text",
    ["NO", "on", "Yes", "true", "01234", "0o17", "1_000", "12:30", "2024-01-05", "1.10", "1e3"],
)  # fmt: skip
def test_scalars_are_what_was_written(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(f"{text}: {text}\nmany: [{text}]\n")
    assert read_yaml(path, "the map") == {text: text, "many": [text]}


def test_nothing_is_null_and_quotes_make_it_a_text(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("\ufeffa: null\nb: ~\nc:\nd: 'null'\ne: ''\nnone: nothing\n", "utf-8")
    assert read_yaml(path, "it") == {
        "a": None, "b": None, "c": None, "d": "null", "e": "", "none": "nothing"
    }  # fmt: skip
    path.write_text("")
    assert read_yaml(path, "it") is None


def test_anchors_and_merges_work(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("a: &a {x: 1, y: 2}\nb:\n  <<: *a\n  y: 3\n")
    assert read_yaml(path, "it")["b"] == {"x": "1", "y": "3"}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("a: 1\nb: 2\na: 3\n", "the key 'a' is repeated.*line 3"),
        ("a: [", "cannot be read"),
        ("a: !!python/object:os.system x", "cannot be read"),
    ],
)
def test_what_cannot_be_meant_is_refused(tmp_path: Path, content: str, words: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(content)
    with pytest.raises(DraftrecError, match=words):
        read_yaml(path, "the map")
