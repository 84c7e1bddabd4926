"""`draftrec genrec fit`, `teach` and `align`: from sequences to a draft, and what is refused."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from draftrec.cli.main import run
from draftrec.items.prompts import TEXT_FORMAT
from draftrec.items.settings import PromptFormat
from draftrec.models.recommender import RecommenderInfo, load_recommender
from draftrec.train.fit import FitSpec
from draftrec.train.loop import Trainer
from draftrec.train.settings import ITEM_DEFAULTS, TARGET_PRESET, TrainSettings
from tests.train.small import write_all

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


@pytest.mark.slow
def test_a_target_its_teacher_data_and_a_draft(command: Command, tmp_path: Path):
    target, teacher, draft = (tmp_path / name for name in ("target", "teacher", "draft"))
    found = command.tell(
        "fit", *command.data, "--preset", "tiny", "--output", target, "--max-items", 6, *FEW
    )
    assert (found["kind"], found["epochs"]) == ("target", 2)
    assert "valid_recall@10" in found
    assert "epoch 2: train loss" in command.err
    assert f"best of 2 epochs: {found['best_epoch']}" in command.err
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


def test_an_item_model_has_defaults_of_its_own_and_options_win(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    specs: list[FitSpec] = []

    def told(spec: FitSpec, *_: Any) -> dict[str, Any]:
        specs.append(spec)
        return {"kind": "items", "weights": 1, "output": "x", "epochs": 1, "best_epoch": 1}

    def of(*words: Any) -> dict[str, Any]:
        assert command("fit", *command.data, "--output", tmp_path / "out", *words) == 0, command.err
        spec = specs.pop()
        form = spec.form or PromptFormat()
        found = {"max_items": form.max_items, "preset": spec.source.name}
        found |= spec.settings.deciding()
        return {name: found[name] for name in ITEM_DEFAULTS}

    monkeypatch.setattr("draftrec.train.fit.fit", told)
    usual = {**TrainSettings().deciding(), "max_items": 20, "preset": TARGET_PRESET}
    assert of() == {name: usual[name] for name in ITEM_DEFAULTS}
    assert of("--whole-items") == ITEM_DEFAULTS
    assert all(ITEM_DEFAULTS[name] != usual[name] for name in ITEM_DEFAULTS)
    given = {
        "preset": "base", "max_items": 20, "batch_tokens": 2048, "weight_decay": 0.1,
        "dropout": 0.2, "drop_items": 0.1,
    }  # fmt: skip
    assert given.keys() == ITEM_DEFAULTS.keys()
    for name, value in given.items():  # a target's defaults among them
        found = of("--whole-items", f"--{name.replace('_', '-')}", value)
        assert found == ITEM_DEFAULTS | {name: value}
    config = tmp_path / "config.json"
    config.write_text("{}")
    assert of("--whole-items", "--config", config)["preset"] == str(config)


def test_a_recommender_trained_further_keeps_what_is_not_asked_anew_of_its_prompt(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """`--max-items` alone gave it the words of a language model's prompts."""
    specs: list[FitSpec] = []

    def told(spec: FitSpec, *_: Any) -> dict[str, Any]:
        specs.append(spec)
        return {"kind": "target", "weights": 1, "output": "x", "epochs": 1, "best_epoch": 1}

    def form_of(*words: Any) -> PromptFormat | None:
        assert command("fit", *command.data, "--output", tmp_path / "out", *words) == 0, command.err
        return specs.pop().form

    monkeypatch.setattr("draftrec.train.fit.fit", told)
    own = PromptFormat("Read: ", "; ", "; ", 7)
    info = RecommenderInfo(levels=3, sids="x", prompt=own.as_dict())
    (tmp_path / "before").mkdir()
    (tmp_path / "before" / "genrec.json").write_text(info.model_dump_json())
    words = ("--from", tmp_path / "before")
    assert form_of(*words) is None
    assert form_of(*words, "--max-items", 9) == replace(own, max_items=9)
    assert form_of(*words, "--prefix", "Seen: ") == replace(own, prefix="Seen: ")
    assert form_of("--from", tmp_path, "--max-items", 9) == replace(TEXT_FORMAT, max_items=9)
    assert form_of("--max-items", 9) == PromptFormat(max_items=9)


@pytest.mark.slow
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
    assert "interrupted in epoch 1 after 2 steps; run the same command again to" in command.err
    assert command(*words) == 0
    assert "continuing after 0 epochs and 2 steps" in command.err
    count = iter(range(100))
    assert command(*words, "--overwrite") == 130
    # It was told that the same command continues, which gave up what was finished.
    assert "run the same command again, without --overwrite, to continue" in command.err
    assert command(*words) == 0
    assert "continuing after 0 epochs and 2 steps" in command.err


@pytest.mark.slow
def test_bad_input_is_one_sentence(command: Command, tmp_path: Path):
    output = ("--output", tmp_path / "out")
    fit = ("fit", *command.data, *output)
    command.refuses("--preset", *fit, "--preset", "enormous")
    command.refuses("not several", *fit, "--preset", "tiny", "--config", "config.json")
    command.refuses("'--epochs': Input should be greater than or equal to 1", *fit, "--epochs", 0)
    command.refuses("--device must be auto, cpu or cuda", *fit, "--device", "tpu")
    command.refuses("give one with --from", *fit, "--lora", 4)
    command.refuses("does not exist", *fit, "--from", tmp_path / "nothing")
    command.refuses("has no genrec.json", "teach", tmp_path, *command.data, *output)
    command.refuses("has no genrec.json", "align", tmp_path, "--target", tmp_path, *output)
    lines = Path(command.sids).read_text().splitlines()
    others = tmp_path / "others.jsonl"  # of no item that anybody has
    rows = [json.loads(line) | {"item": 10**6 + i} for i, line in enumerate(lines)]
    others.write_text("\n".join(map(json.dumps, rows)))
    command.refuses("no item of any history", "fit", command.sequences, "--sids", others, *output)
    row = json.loads(lines[3])
    ragged = tmp_path / "ragged.jsonl"
    ragged.write_text("\n".join([*lines[:3], json.dumps(row | {"sid": row["sid"][:2]})]))
    command.refuses("has 2 tokens", "fit", command.sequences, "--sids", ragged, *output)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_target_does_not_take_ids_with_unknown_tokens(command: Command, tmp_path: Path):
    target = tmp_path / "target"
    command.tell("fit", *command.data, "--preset", "tiny", "--output", target, *FEW)
    rows = [json.loads(line) for line in Path(command.sids).read_text().splitlines()]
    rows[0]["sid"][1] = "<b_77>"
    strange = tmp_path / "strange.jsonl"
    strange.write_text("\n".join(map(json.dumps, rows)))
    words = ("teach", target, command.sequences, "--sids", strange, "--output", tmp_path / "out")
    command.refuses("no token '<b_77>'", *words)


@pytest.mark.slow
def test_items_and_users_may_be_texts(command: Command, tmp_path: Path):
    """The same training as with numbers, and one after the other from text to recommendation."""
    words = ("--preset", "tiny", *FEW)
    numbers = command.tell("fit", *command.data, "--output", tmp_path / "n", *words)
    rows = [json.loads(line) for line in Path(command.sequences).read_text().splitlines()]
    renamed = [
        {"user_id": f"u{r['user']}", "asins": [f"B{i}" for i in r["items"]], "part": r["part"]}
        for r in rows
    ]
    sequences = tmp_path / "texts.jsonl"
    sequences.write_text("".join(json.dumps(row) + "\n" for row in renamed))
    sids = tmp_path / "games.index.json"
    known = [json.loads(line) for line in Path(command.sids).read_text().splitlines()]
    sids.write_text(json.dumps({f"B{row['item']}": row["sid"] for row in known}))
    data = (sequences, "--sids", sids, "--items-column", "asins")
    target, teacher, draft = (tmp_path / name for name in ("target", "teacher", "draft"))
    texts = command.tell("fit", *data, "--output", target, *words)
    same = ("epochs", "best_epoch", "valid_loss", "valid_recall@10")
    assert {name: texts[name] for name in same} == {name: numbers[name] for name in same}
    command.tell("teach", target, *data, "--output", teacher, "--beams", 3)
    command.tell("align", teacher, "--target", target, "--output", draft, *words)
    output = tmp_path / "lists.jsonl"
    line = ("recommend", *data, "--target", target, "--draft", draft, "--output", output)
    found = command.tell(*line, "-k", 5)
    lists = [json.loads(text) for text in output.read_text().splitlines()]
    assert found["users"] == len(lists) == 40
    assert all(row["user"][0] == "u" and row["items"][0][0] == "B" for row in lists)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["fit", "teach", "align", "recommend"])
def test_a_second_process_on_one_output_is_refused(command: Command, tmp_path: Path, what: str):
    target, teacher = tmp_path / "target", tmp_path / "teacher"
    fit = ("fit", *command.data, "--preset", "tiny", "--output", target, *FEW)
    teach = ("teach", target, *command.data, "--output", teacher, "--beams", 2)
    align = ("align", teacher, "--target", target, "--output", tmp_path / "draft", *FEW)
    recommend = ("recommend", *command.data, "--target", target, "--draft", "none", "-k", 2)
    recommend += ("--output", tmp_path / "lists.parquet")
    lines = {"fit": fit, "teach": teach, "align": align, "recommend": recommend}
    for before in ("fit", "teach"):
        if before == what:
            break
        command.tell(*lines[before])
    output = lines[what][lines[what].index("--output") + 1]
    held = (
        "from pathlib import Path\nfrom draftrec.data.files.locks import sole_writer\nimport sys\n"
    )
    held += "with sole_writer(Path(sys.argv[1])):\n    print('held', flush=True)\n    input()\n"
    holder = subprocess.Popen(
        [sys.executable, "-c", held, output], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        command.refuses("another process is writing to", *lines[what])
        assert not Path(output).exists()
    finally:
        holder.communicate(b"\n")
    command.tell(*lines[what])
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".lock")]
