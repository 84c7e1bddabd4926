"""A tokenizer that knows more than the model: the record that shows it is rejected, alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from draftrec import Generator
from draftrec.cli.main import run as draftrec
from draftrec.errors import DraftrecError
from tests.models import zoo
from tests.models.folders import make_tokenizer, save, word


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model whose tokenizer got a token that its embedding did not."""
    folder = save(zoo.build("llama"), tmp_path / "model")
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["extra"])
    tokenizer.save_pretrained(folder)
    return folder


def test_from_python_it_is_a_sentence(folder: Path) -> None:
    generator = Generator.from_pretrained(folder, device="cpu", max_new_tokens=3, draft="none")
    assert generator.vocabulary == zoo.VOCABULARY
    assert len(generator.generate([word(5)])) == 1
    with pytest.raises(DraftrecError, match=r"has token 97, .* embedding has 97 rows"):
        generator.generate([f"{word(5)} extra"])


def test_in_a_job_that_record_is_rejected(folder: Path, tmp_path: Path) -> None:
    records = tmp_path / "records.jsonl"
    prompts = [word(5), f"{word(6)} extra", word(7)]
    records.write_text(
        "\n".join(f'{{"entity_id": {i}, "prompt": "{p}"}}' for i, p in enumerate(prompts))
    )
    run = tmp_path / "run"
    code = draftrec(
        ["generate", str(records), "--model", str(folder), "--output", str(run),
         "--max-new-tokens", "3", "--draft", "none", "--device", "cpu"],
    )  # fmt: skip
    assert code == 3
    rejected = (run / "rejected.jsonl").read_text()
    assert rejected.count("\n") == 1
    assert "token 97" in rejected
