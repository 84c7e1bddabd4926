"""Options that say what may be written, as a user meets them, with the shipped model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer

from draftrec.cli.main import run
from draftrec.demo.shop import demo_model_path
from draftrec.jobs.knowledge import worker

PROMPTS = ("This reader likes", "A story of the sea")
NEW = 24
Rows = list[dict[str, Any]]
Write = Callable[..., Rows]


@pytest.fixture(scope="module")
def vocabulary() -> Tokenizer:
    return Tokenizer.from_file(str(demo_model_path() / "tokenizer.json"))


@pytest.fixture
def line(tmp_path: Path) -> Callable[..., list[str]]:
    path = tmp_path / "in.jsonl"
    rows = [{"entity_id": i, "prompt": prompt} for i, prompt in enumerate(PROMPTS)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    fixed = ("--max-new-tokens", NEW, "--budget", 4, "--batch-size", 2, "--quiet", "--overwrite")
    words = ("generate", path, "--model", demo_model_path(), "--output", tmp_path / "run", *fixed)
    return lambda *more: [str(word) for word in (*words, *more)]


@pytest.fixture
def write(line: Callable[..., list[str]], tmp_path: Path) -> Write:
    def rows(*more: object) -> Rows:
        assert run(line(*more)) == 0
        return pq.read_table(tmp_path / "run" / "part-00000.parquet").to_pylist()

    return rows


@pytest.fixture
def refusal(
    line: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    def sentence(*more: object) -> str:
        assert run(line(*more)) == 2
        said = capsys.readouterr().err.strip()
        assert len(said.splitlines()) == 1, said
        return said

    return sentence


@pytest.mark.slow
def test_bad_words_are_not_written(write: Write, tmp_path: Path) -> None:
    before = write()
    words = [row["text"].split()[3].strip(".") for row in before]
    file = tmp_path / "words.txt"
    # With the mark that some editors write in front, which is no part of the first word.
    file.write_text("\n".join([*words, "", "  "]) + "\n", encoding="utf-8-sig")
    after = write("--bad-words", file)
    assert all(any(f" {word}" in row["text"] for row in before) for word in words)
    assert not any(f" {word}" in row["text"] for row in after for word in words)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot be read (.*No such file.*name a UTF-8 text file"),
        (b"caf\xe9\n", "cannot be read (.*utf-8.*name a UTF-8 text file"),
        (b"\n  \n", "has no words; write one on each line"),
    ],
    ids=["missing", "latin-1", "blank"],
)
def test_a_file_of_bad_words_that_is_none(
    content: bytes | None,
    words: str,
    refusal: Callable[..., str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def load(*_: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(worker, "load_generator", load)
    file = tmp_path / "words.txt"
    if content is not None:
        file.write_bytes(content)
    said = refusal("--bad-words", file)
    for part in words.split(".*"):
        assert part in said
    assert str(file) in said


def test_a_folder_of_bad_words(refusal: Callable[..., str], tmp_path: Path) -> None:
    assert "cannot be read" in refusal("--bad-words", tmp_path)


@pytest.mark.slow
def test_a_bias_by_id_and_by_text(write: Write, vocabulary: Tokenizer) -> None:
    """By its id, by its text, by its entry; whatever comes after the last `=` is the number."""
    the = vocabulary.encode("x the").ids[-1]
    entry = vocabulary.id_to_token(the)
    plain = write()
    assert any(the in row["token_ids"] for row in plain)
    forms = [write("--logit-bias", f"{token}=-inf") for token in (the, " the", entry)]
    assert forms[0] == forms[1] == forms[2] != plain
    assert not any(the in row["token_ids"] for row in forms[0])
    for row in write("--logit-bias", f"{the}=1e4"):
        assert row["token_ids"] == [the] * NEW
    equals = vocabulary.encode("=", add_special_tokens=False).ids
    assert len(equals) == 1
    for row in write("--logit-bias", "==1e4"):
        assert row["token_ids"] == equals * NEW


@pytest.mark.slow
def test_biases_repeat(write: Write, vocabulary: Tokenizer) -> None:
    the, a = (vocabulary.encode(f"x {word}").ids[-1] for word in ("the", "a"))
    found = write("--logit-bias", " the=-inf", "--logit-bias", f"{a}=-inf")
    assert not any({the, a} & set(row["token_ids"]) for row in found)


@pytest.mark.slow
@pytest.mark.parametrize("value", ["x", "=3", "a=", "a=b", "a=nan"])
def test_a_bias_that_is_none(value: str, refusal: Callable[..., str]) -> None:
    assert f"{value!r} is not TOKEN=BIAS" in refusal("--logit-bias", value)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("token", "words"),
    [
        (
            "99999",
            "Token 99999 is forced, biased or forbidden, and the model's vocabulary has 2,048",
        ),
        ("the sea", "'the sea' is not one token of the model's vocabulary but 3"),
        ("", "'' is no token of the model's vocabulary"),
    ],
)
@pytest.mark.parametrize(
    "option", ["suppress-tokens", "begin-suppress-tokens", "forced-eos-token", "forced-bos-token"]
)
def test_a_token_that_is_none(
    option: str, token: str, words: str, refusal: Callable[..., str]
) -> None:
    assert words in refusal(f"--{option}", token)


@pytest.mark.slow
def test_suppressed_tokens_are_never_written_or_never_first(write: Write) -> None:
    plain = write()
    first = [row["token_ids"][0] for row in plain]
    again = write("--begin-suppress-tokens", first[0], "--begin-suppress-tokens", first[1])
    assert not {row["token_ids"][0] for row in again} & set(first)
    often = max(set(plain[0]["token_ids"]), key=plain[0]["token_ids"].count)
    never = write("--suppress-tokens", often)
    assert not any(often in row["token_ids"] for row in never)


@pytest.mark.slow
def test_texts_do_not_end_before_their_least_length(write: Write) -> None:
    ends = ("--logit-bias", "2=1e4")  # the end of text, as soon as it may be
    assert [row["token_ids"] for row in write(*ends)] == [[2], [2]]
    for row in write(*ends, "--min-new-tokens", 5):
        assert (row["token_ids"].index(2), row["new_tokens"]) == (5, 6)
        assert row["finish_reason"] == "eos"


@pytest.mark.slow
def test_a_stop_string_ends_texts_and_is_cut_off(write: Write) -> None:
    plain = {row["entity_id"]: row for row in write()}
    found = write("--stop", "above", "--stop", ". ", "--stop", "never written")
    assert {row["finish_reason"] for row in found} == {"stop"}
    for row in found:
        whole = plain[row["entity_id"]]
        cut = min(at for s in ("above", ". ") if (at := whole["text"].find(s)) >= 0)
        assert row["text"] == whole["text"][:cut]
        assert row["token_ids"] == whole["token_ids"][: row["new_tokens"]]
        assert len(row["token_ids"]) < NEW


def test_an_empty_stop_string(refusal: Callable[..., str]) -> None:
    assert "--stop needs texts of at least one character" in refusal("--stop", "")


@pytest.mark.parametrize(
    "option",
    [
        "--stop", "--system", "--logit-bias", "--suppress-tokens", "--begin-suppress-tokens",
        "--forced-bos-token", "--forced-eos-token",
    ],
)  # fmt: skip
def test_half_a_character(option: str, refusal: Callable[..., str]) -> None:
    """What a shell makes of bytes that are not UTF-8."""
    said = refusal(option, "a\udcff=1")
    assert f"{option} holds half of a surrogate pair, which is not valid Unicode" in said
