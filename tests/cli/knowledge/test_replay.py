"""`draftrec replay` on toy texts, and what it says about bad input."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import AutoConfig

from draftrec.cli.main import run
from draftrec.demo.shop import demo_model_path
from draftrec.evaluate.replay import loop
from draftrec.evaluate.replay.loop import NAMES
from draftrec.models.loading import load_tokenizer, tokenizer_fingerprint
from draftrec.pool.store import Pool
from tests.models.folders import save_head

CONTRACT = {
    "texts", "tokens", "steps", "tokens_per_step", "drafted_per_step",
    "lookup_us_p50", "lookup_us_p99", "build_us_per_token", "bytes_per_token",
}  # fmt: skip
PROFILE = "This reader returns again and again to quiet mysteries by the sea."
SILENT = """
from draftrec.core import EMPTY_TREE

class Silent:
    names_sources, nbytes, tokens = False, None, 0

    def __init__(self, tokenizer):
        assert tokenizer.eos_token_id is not None

    def add(self, texts):
        self.tokens += sum(len(ids) for ids, _ in texts)

    def start(self, sequence):
        pass

    def draft(self, batch, limit, depth):
        return [EMPTY_TREE] * len(batch)

    def observe(self, batch, verdicts):
        pass

    def stop(self, sequence):
        pass
"""
TALE = "Children like a tale in which nobody is what they seem to be at first."


class Command:
    """Runs `draftrec replay` on files in a folder and keeps what it said."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self._capsys = folder, capsys
        self.tokenizer = str(demo_model_path())
        self.texts = self.write("texts.jsonl", {"entity_id": "a", "text": PROFILE, "group": "x"})
        self.warm = self.write(
            "warm.jsonl",
            {"entity_id": "b", "text": PROFILE, "group": "x"},
            {"entity_id": "c", "text": TALE, "group": "y"},
        )

    def write(self, name: str, *rows: dict[str, Any]) -> Path:
        path = self.folder / name
        path.write_text("\n".join(map(json.dumps, rows)))
        return path

    def __call__(self, *more: Any, texts: Any = None) -> int:
        line = ["replay", str(texts or self.texts), "--tokenizer", self.tokenizer]
        self.code = run([*line, *map(str, more)])
        self.out, self.err = self._capsys.readouterr()
        return self.code

    def engines(self, *more: Any, texts: Any = None) -> dict[str, dict[str, Any]]:
        assert self("--json", *more, texts=texts) == 0, self.err
        return json.loads(self.out.splitlines()[-1])["engines"]

    def refuses(self, words: str, *more: Any, texts: Any = None) -> None:
        """Exit code 2, exactly one line, with these words in it."""
        assert self(*more, texts=texts) == 2, self.err
        assert self.err.count("\n") == 1, self.err
        assert words in self.err
        assert not self.out


@pytest.fixture
def command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(tmp_path, capsys)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer(demo_model_path())


class TestFigures:
    def test_every_drafter_has_the_contract_s_keys(self, command: Command) -> None:
        names = [option for name in NAMES for option in ("--drafter", name)]
        found = command.engines("--warm", command.warm, "--depth", 4, *names)
        assert list(found) == list(NAMES)
        for figures in found.values():
            assert figures.keys() >= CONTRACT
            assert figures["texts"] == 1
        tokens = found["pool"]["tokens"]
        assert found["pool"]["steps"] == -(-tokens // 5)
        assert found["trie"]["steps"] < tokens

    def test_without_a_pool_only_the_prompt_helps(self, command: Command, tokenizer: Any) -> None:
        tokens = len(tokenizer(PROFILE, add_special_tokens=False).input_ids) + 1
        figures = command.engines()["pool"]
        assert figures["tokens"] == tokens >= figures["steps"] > 0.9 * tokens
        assert figures["bytes_per_token"] == figures["build_us_per_token"] == 0
        command.write("texts.jsonl", {"entity_id": "a", "text": PROFILE, "prompt": PROFILE})
        assert command.engines()["pool"]["steps"] < tokens

    def test_a_drafter_of_the_user_s_own(
        self, command: Command, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It lies in the folder that the command is run in, and is told the tokenizer."""
        (command.folder / "silent_drafter.py").write_text(SILENT)
        monkeypatch.chdir(command.folder)
        monkeypatch.setattr(sys, "path", [*sys.path])
        names = ("--drafter", "silent_drafter:Silent", "--drafter", "all")
        figures, ours = command.engines("--warm", command.warm, *names).values()
        assert figures["steps"] == figures["tokens"] == ours["tokens"] > ours["steps"]
        assert figures["pool_tokens"] == ours["pool_tokens"] > 0
        assert figures["drafted_per_step"] == 0

    def test_a_pool_s_folder_is_worth_its_texts(self, command: Command, tokenizer: Any) -> None:
        pool = Pool(tokenizer_fingerprint(tokenizer))
        for text in (PROFILE, TALE):
            ids = tokenizer(text, add_special_tokens=False).input_ids
            pool.add([(np.array([*ids, tokenizer.eos_token_id], np.int32), None)])
        pool.save(command.folder / "pool")
        figures = command.engines("--pool", command.folder / "pool", "--budget", 8)["pool"]
        warm = command.engines("--warm", command.warm, "--budget", 8)["pool"]
        assert figures["steps"] == warm["steps"]
        assert figures["pool_tokens"] == warm["pool_tokens"] == pool.tokens
        assert figures["build_us_per_token"] > 0
        saved = sorted(p.name for p in (command.folder / "pool").iterdir())
        assert command("--pool", command.folder / "pool", "--order") == 0
        assert sorted(p.name for p in (command.folder / "pool").iterdir()) == saved

    def test_a_run_folder_is_replayed_from_its_token_ids(self, command: Command) -> None:
        run_folder = command.folder / "run"
        run_folder.mkdir()
        rows = [{"entity_id": "a", "text": "not looked at", "token_ids": [5, 6, 7, 8]}]
        pq.write_table(pa.Table.from_pylist(rows), run_folder / "part-00000.parquet")
        assert command.engines(texts=run_folder)["pool"]["tokens"] == 4

    def test_groups_file(self, command: Command) -> None:
        groups = command.write(
            "groups.jsonl", *({"entity_id": e, "group": g} for e, g in ("ay", "bx", "cy"))
        )
        options = ("--warm", command.warm, "--drafter", "group")
        apart = command.engines(*options, "--groups", groups)["group"]
        together = command.engines(*options)["group"]
        assert apart["steps"] > together["steps"]

    def test_order_grows_the_pool(self, command: Command) -> None:
        rows = [{"entity_id": i, "text": PROFILE, "timestamp": -i} for i in range(3)]
        command.write("texts.jsonl", *rows)
        still, grown = command.engines()["pool"], command.engines("--order")["pool"]
        assert still["steps"] > 0.9 * still["tokens"], "only repeated letters were drafted"
        assert grown["steps"] < still["steps"] / 2
        assert grown["pool_tokens"] == grown["tokens"]

    def test_refresh_drafts_from_the_step_before(self, command: Command) -> None:
        rows = [
            {"entity_id": e, "text": PROFILE, "step": s} for e, s in (("a", 1), ("a", 2), ("b", 1))
        ]
        command.write("texts.jsonl", *rows)
        figures = command.engines("--refresh")["pool"]
        assert figures["texts"] == 1
        assert figures["accepted_by_source"]["previous"] > figures["steps"]

    def test_limit(self, command: Command) -> None:
        assert command.engines("--limit", 1, texts=command.warm)["pool"]["texts"] == 1


class TestOutput:
    def test_a_table_on_standard_output(self, command: Command) -> None:
        assert command("--drafter", "pool", "--drafter", "ngram") == 0
        assert "1 texts" in command.out
        assert {"pool", "ngram"} <= set(command.out.split())
        assert "now" not in command.err
        assert max(map(len, command.out.splitlines())) <= 80

    def test_the_former_name_of_the_option_is_read(self, command: Command) -> None:
        assert list(command.engines("--engine", "ngram", "--drafter", "all")) == ["all", "ngram"]
        assert "--engine is called --drafter now" in command.err

    def test_json_leaves_standard_output_to_programs(self, command: Command) -> None:
        assert command("--json") == 0
        assert len(command.out.splitlines()) == 1
        assert "per step" in command.err

    def test_a_pool_that_knows_the_entities_is_warned_of(self, command: Command) -> None:
        assert command("--warm", command.texts) == 0
        assert "1 of 1 texts are of entities that --warm holds as well" in command.err
        assert command("--warm", command.warm) == 0
        assert "holds as well" not in command.err

    def test_a_pool_that_holds_the_very_texts_is_warned_of(self, command: Command) -> None:
        pool = ("pool", "build", str(command.warm), "--tokenizer", command.tokenizer)
        assert run([*pool, "--output", str(command.folder / "pool")]) == 0
        assert command("--pool", command.folder / "pool") == 0
        assert "1 of 1 texts are in --pool token for token" in " ".join(command.err.split())
        other = command.write("other.jsonl", {"entity_id": "d", "text": "Nothing alike."})
        assert command("--pool", command.folder / "pool", texts=other) == 0
        assert "token for token" not in command.err


class TestBadInput:
    def test_missing_files(self, command: Command) -> None:
        nope = command.folder / "nope"
        command.refuses("does not exist", texts=nope)
        command.refuses("does not exist", "--warm", nope)
        command.refuses("does not exist", "--groups", nope)
        command.refuses("nope is not a pool", "--pool", nope)

    def test_missing_tokenizer(self, command: Command) -> None:
        command.tokenizer = str(command.folder / "nope")
        command.refuses("does not exist")
        assert run(["replay", str(command.texts)]) == 2

    def test_no_tokenizer_in_the_folder(self, command: Command) -> None:
        copy = shutil.copytree(demo_model_path(), command.folder / "model")
        for path in copy.glob("token*"):
            path.unlink()
        command.tokenizer = str(copy)
        command.refuses("tokenizer")

    def test_missing_columns(self, command: Command) -> None:
        command.refuses("no column 'text'", texts=command.write("x.jsonl", {"entity_id": "a"}))
        command.refuses("no column 'entity_id'", texts=command.write("x.jsonl", {"text": "a"}))
        command.refuses("no column 'text'", "--warm", command.write("x.jsonl", {"entity_id": 1}))
        command.refuses("no column 'group'", "--groups", command.write("x.jsonl", {"entity_id": 1}))

    def test_empty_and_broken_files(self, command: Command) -> None:
        command.refuses("is empty", texts=command.write("x.jsonl"))
        (command.folder / "x.parquet").write_bytes(b"PAR1")
        command.refuses("may be truncated", texts=command.folder / "x.parquet")
        null = command.write("x.jsonl", {"entity_id": 1, "text": None})
        command.refuses("line 1: text is null", texts=null)

    def test_unknown_drafter(self, command: Command) -> None:
        command.refuses("no drafter 'suffix'; choose from pool, all", "--drafter", "suffix")

    def test_drafters_that_cannot_be_imported(self, command: Command) -> None:
        wrong = (("nowhere:Drafter", "No module"), ("json:Drafter", "'Drafter'"), (":D", "Empty"))
        for name, why in wrong:
            command.refuses(f"--drafter {name} cannot be imported", "--drafter", name)
            assert why in command.err
        command.refuses("functools:partial has no start", "--drafter", "functools:partial")

    def test_rivals_outside_a_checkout(
        self, command: Command, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(loop, "_BENCHMARKS", command.folder)
        command.refuses("it lies in benchmarks/rivals of its source", "--drafter", "trie")

    def test_pool_of_another_tokenizer(self, command: Command) -> None:
        Pool("another").save(command.folder / "pool")
        command.refuses("another tokenizer", "--pool", command.folder / "pool")

    def test_pool_and_warm_together(self, command: Command) -> None:
        command.refuses("exclude each other", "--pool", "p", "--warm", command.warm)

    def test_drafters_that_need_texts(self, command: Command) -> None:
        command.refuses("--drafter trie cannot draft", "--pool", "p", "--drafter", "trie")

    def test_refresh_without_steps(self, command: Command) -> None:
        command.refuses("needs the column step", "--refresh")
        rows = [{"entity_id": e, "text": "t", "step": 1} for e in "ab"]
        command.refuses("texts of two steps", "--refresh", texts=command.write("x.jsonl", *rows))
        rows = [{"entity_id": "a", "text": "t", "step": 1}] * 2
        command.refuses("with step 1; keep one", "--refresh", texts=command.write("x.jsonl", *rows))

    @pytest.mark.parametrize(
        ("option", "value"),
        [("--budget", -1), ("--budget", 5000), ("--depth", 0), ("--limit", 0), ("--depth", "x")],
    )
    def test_numbers_out_of_range(self, command: Command, option: str, value: Any) -> None:
        command.refuses(option, option, value)

    def test_token_ids_of_another_tokenizer(self, command: Command) -> None:
        rows = {"entity_id": "a", "text": "t", "token_ids": [10**6]}
        command.refuses("outside the tokenizer's", texts=command.write("x.jsonl", rows))


def test_a_learned_drafter_is_refused_with_what_measures_it(
    command: Command, tmp_path: Path
) -> None:
    config = AutoConfig.from_pretrained(demo_model_path())
    head = save_head(tmp_path / "head", config, {"model": "m", "tokenizer": "t"})
    command.refuses(f"`draftrec tune RECORDS --model MODEL --drafter {head}`", "--drafter", head)
