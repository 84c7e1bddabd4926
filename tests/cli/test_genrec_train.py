"""`draftrec genrec fit`, `teach` and `align`: from sequences to a draft, and what is refused."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from draftrec.alignment.train import Trainer
from draftrec.cli.main import run
from draftrec.models.recommender import load_recommender
from tests.alignment.small import write_all

FEW = ("--epochs", 2, "--batch-tokens", 400, "--device", "cpu")


class Command:
    """Runs `draftrec genrec` and keeps what it said."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self._capsys = folder, capsys
        self.sequences, self.sids = write_all(folder)
        self.data = (self.sequences, "--sids", self.sids)

    def __call__(self, *words: Any) -> int:
        code = run(["genrec", *map(str, words)])
        self.out, self.err = self._capsys.readouterr()
        return code

    def tell(self, *words: Any) -> dict[str, Any]:
        assert self(*words, "--json") == 0, self.err
        return json.loads(self.out.splitlines()[-1])

    def refuses(self, words: str, *line: Any) -> None:
        """Exit code 2, exactly one line, with these words in it."""
        assert self(*line) == 2, self.err
        assert self.err.count("\n") == 1, self.err
        assert words in self.err


@pytest.fixture
def command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(tmp_path, capsys)


def test_a_target_its_teacher_data_and_a_draft(command: Command, tmp_path: Path):
    target, teacher, draft = (tmp_path / name for name in ("target", "teacher", "draft"))
    found = command.tell(
        "fit", *command.data, "--preset", "tiny", "--output", target, "--max-items", 6, *FEW
    )
    assert (found["kind"], found["epochs"]) == ("target", 2)
    assert "valid_recall@10" in found
    assert "epoch 2: train loss" in command.err
    assert load_recommender(target, "cpu").format.max_items == 6
    found = command.tell("teach", target, *command.data, "--output", teacher, "--beams", 3)
    assert found["beams"] == 3
    assert found["bytes"] > 0
    config = tmp_path / "config.json"
    config.write_text(
        json.dumps(
            {
                "model_type": "llama", "hidden_size": 16, "intermediate_size": 16,
                "num_hidden_layers": 1, "num_attention_heads": 1,
            }
        )
    )  # fmt: skip
    words = ("align", teacher, "--target", target, "--objective", "atspeed-r", "--output", draft)
    found = command.tell(*words, "--config", config, *FEW)
    assert (found["kind"], found["objective"]) == ("draft", "atspeed-r")
    assert 1 <= found["valid_target_calls"] <= 3
    assert load_recommender(draft, "cpu").model.config.hidden_size == 16
    again = command.tell(*words, "--config", config, *FEW)
    assert again == found
    assert "already trained" in command.err


def test_a_signal_ends_with_130_and_the_same_command_continues(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    words = ("fit", *command.data, "--preset", "tiny", "--output", tmp_path / "target", *FEW)
    step, count = Trainer._step, iter(range(100))

    def interrupted(self: Trainer, batch: Any) -> float:
        if next(count) == 1:
            signal.raise_signal(signal.SIGTERM)
        return step(self, batch)

    monkeypatch.setattr(Trainer, "_step", interrupted)
    assert command(*words) == 130
    assert "interrupted in epoch 1 after 2 steps" in command.err
    assert command(*words) == 0
    assert "continuing after 0 epochs and 2 steps" in command.err


def test_bad_input_is_one_sentence(command: Command, tmp_path: Path):
    output = ("--output", tmp_path / "out")
    fit = ("fit", *command.data, *output)
    command.refuses("--preset", *fit, "--preset", "enormous")
    command.refuses("not several", *fit, "--preset", "tiny", "--config", "config.json")
    command.refuses("--epochs must be at least 1, not 0", *fit, "--epochs", 0)
    command.refuses("--device must be auto, cpu or cuda", *fit, "--device", "tpu")
    command.refuses("give one with --from", *fit, "--lora", 4)
    command.refuses("does not exist", *fit, "--from", tmp_path / "nothing")
    command.refuses("has no genrec.json", "teach", tmp_path, *command.data, *output)
    command.refuses("has no genrec.json", "align", tmp_path, "--target", tmp_path, *output)
    short = tmp_path / "short.jsonl"
    lines = Path(command.sids).read_text().splitlines()
    short.write_text("\n".join(lines[:5]))
    command.refuses("has no semantic id", "fit", command.sequences, "--sids", short, *output)
    row = json.loads(lines[3])
    ragged = tmp_path / "ragged.jsonl"
    ragged.write_text("\n".join([*lines[:3], json.dumps(row | {"sid": row["sid"][:2]})]))
    command.refuses("has 2 tokens", "fit", command.sequences, "--sids", ragged, *output)
    assert not (tmp_path / "out").exists()


def test_a_target_does_not_take_ids_with_unknown_tokens(command: Command, tmp_path: Path):
    target = tmp_path / "target"
    command.tell("fit", *command.data, "--preset", "tiny", "--output", target, *FEW)
    rows = [json.loads(line) for line in Path(command.sids).read_text().splitlines()]
    rows[0]["sid"][1] = "<b_77>"
    strange = tmp_path / "strange.jsonl"
    strange.write_text("\n".join(map(json.dumps, rows)))
    words = ("teach", target, command.sequences, "--sids", strange, "--output", tmp_path / "out")
    command.refuses("no token '<b_77>'", *words)
