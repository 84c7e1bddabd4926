"""`draftrec pool`: what the commands make, keep and say."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from draftrec.cli.main import run
from draftrec.demo.shop import demo_model_path
from draftrec.evaluate.replay.job import add_to_pool, prune_pool
from draftrec.models.loading import load_tokenizer, tokenizer_fingerprint
from draftrec.pool.store import Pool

CONTRACT = {
    "tokens", "texts", "groups", "bytes", "bytes_per_token", "tokenizer", "format_version",
    "created",
}  # fmt: skip
TEXTS = [
    {"entity_id": "a", "text": "This reader returns to quiet mysteries by the sea.", "group": "x"},
    {"entity_id": "b", "text": "Children like a tale in which nobody is safe.", "group": "y"},
    {"entity_id": "c", "text": "This reader returns to loud comedies.", "group": None},
]


class Command:
    """Runs `draftrec pool` and keeps what it said."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self._capsys = folder, capsys
        self.tokenizer = str(demo_model_path())
        self.texts = self.write("texts.jsonl", *TEXTS)
        self.pool = folder / "pool"

    def write(self, name: str, *rows: dict[str, Any]) -> Path:
        path = self.folder / name
        path.write_text("\n".join(map(json.dumps, rows)))
        return path

    def __call__(self, *words: Any) -> int:
        self.code = run(["pool", *map(str, words)])
        self.out, self.err = self._capsys.readouterr()
        return self.code

    def tell(self, *words: Any) -> dict[str, Any]:
        assert self(*words, "--json") == 0, self.err
        return json.loads(self.out.splitlines()[-1])

    def build(self, *more: Any, output: Path | None = None, texts: Any = None) -> dict[str, Any]:
        where = ("--output", output or self.pool)
        return self.tell("build", texts or self.texts, "--tokenizer", self.tokenizer, *where, *more)

    def refuses(self, words: str, *line: Any) -> None:
        """Exit code 2, exactly one line, with these words in it."""
        assert self(*line) == 2, self.err
        assert self.err.count("\n") == 1, self.err
        assert words in self.err
        assert not self.out


@pytest.fixture
def command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(tmp_path, capsys)


def test_a_pool_of_texts_is_described_as_in_the_contract(command: Command) -> None:
    built = command.build()
    assert built.keys() >= CONTRACT
    assert (built["texts"], built["groups"]) == (3, 2)
    tokenizer = load_tokenizer(demo_model_path())
    assert built["tokenizer"] == tokenizer_fingerprint(tokenizer)
    ids = [tokenizer(t["text"], add_special_tokens=False).input_ids for t in TEXTS]
    assert built["tokens"] == sum(len(i) + 1 for i in ids)
    assert built["bytes"] == sum(
        f.stat().st_size for f in command.pool.iterdir() if f.name != "manifest.json"
    )
    assert command.tell("info", command.pool) == built
    pool = Pool.load(command.pool)
    assert [list(x) for x, _ in pool] == [[*i, tokenizer.eos_token_id] for i in ids]
    assert [group for _, group in pool] == ["x", "y", None]
    assert command("info", command.pool) == 0
    assert "bytes per token" in command.out


def test_groups_come_from_a_file_and_levels_are_chosen(command: Command) -> None:
    groups = command.write(
        "groups.jsonl",
        *({"entity_id": e, "group": g} for e, g in [("a", "1"), ("b", "1"), ("c", "2")]),
    )
    csv = groups.with_suffix(".csv")
    csv.write_text("entity_id,group\na,1\nb,1\nc,2\n")
    built = command.build("--groups", csv, "--levels", "group")
    assert (built["groups"], built["levels"]) == (2, ["group"])
    assert Pool.load(command.pool).groups.keys() == {"1", "2"}
    assert command.build("--levels", "all", output=command.folder / "b")["levels"] == ["all"]


@pytest.mark.slow
def test_texts_are_added_and_pools_merged(command: Command) -> None:
    command.build()
    more = command.write("more.jsonl", {"entity_id": "d", "text": "Late trains.", "group": "x"})
    line = ("add", command.pool, more, "--tokenizer", command.tokenizer)
    assert command.tell(*line)["texts"] == 4
    other = command.folder / "other"
    command.build(output=other)
    merged = command.tell("merge", other, command.pool, "--output", command.folder / "both")
    assert merged["texts"] == 4
    assert command.tell("info", command.pool)["texts"] == 4


def test_texts_that_a_killed_add_has_added_are_not_added_again(command: Command) -> None:
    command.build()
    more = command.write("more.jsonl", {"entity_id": "d", "text": "Late trains.", "group": "x"})
    line = ("add", command.pool, more, "--tokenizer", command.tokenizer)
    assert [command.tell(*line)["texts"] for _ in range(2)] == [4, 4]
    assert "these texts already" in command.err
    command.write("more.jsonl", {"entity_id": "d", "text": "Late trains.", "group": "y"})
    assert command.tell(*line, "--max-bytes", 1 << 20)["texts"] == 5
    assert command.tell(*line)["texts"] == 5
    command.tell("prune", command.pool, "--max-bytes", 1 << 20)
    assert command.tell(*line)["texts"] == 6


@pytest.mark.parametrize("second", ["add", "prune"])
@pytest.mark.parametrize("begun", ["add", "prune"])
def test_two_that_change_a_pool_at_once_are_one_too_many(
    command: Command, monkeypatch: pytest.MonkeyPatch, begun: str, second: str
) -> None:
    """The second one would read the pool before the first has written it, and lose its texts."""
    command.build()
    early = command.write("early.jsonl", {"entity_id": "c", "text": "Early.", "group": "x"})
    work: dict[str, Callable[[], Any]] = {
        "add": lambda: add_to_pool(command.pool, str(early), command.tokenizer),
        "prune": lambda: prune_pool(command.pool, 1 << 30),
    }
    taking, end = threading.Event(), threading.Event()
    real = Pool.load

    def slow(*given: Any, **options: Any) -> Pool:
        found = real(*given, **options)
        if threading.current_thread() is first:
            taking.set()
            assert end.wait(60)
        return found

    monkeypatch.setattr(Pool, "load", slow)
    first = threading.Thread(target=work[begun])
    first.start()
    assert taking.wait(60)
    try:
        given = command.write("more.jsonl", {"entity_id": "d", "text": "Late.", "group": "x"})
        rest = (given, "--tokenizer", command.tokenizer)
        line = rest if second == "add" else ("--max-bytes", 1 << 30)
        command.refuses("another process is writing", second, command.pool, *line)
    finally:
        end.set()
        first.join()
    assert len(real(command.pool)) == (4 if begun == "add" else 3)


def test_pruning_keeps_what_was_used(command: Command) -> None:
    command.build("--levels", "all")
    pool = Pool.load(command.pool)
    pool.rows["accepted"] = [0, 40, 0]
    pool.usage.count("y", 10, [40])
    pool.save(command.pool)
    described = command.tell("prune", command.pool, "--max-bytes", 30 * 25)
    assert described["texts"] < 3
    assert 1 in [int(a == 40) for a in Pool.load(command.pool).rows["accepted"]]
    assert described["by_group"] == {"y": {"drafts": 10, "hits": 1, "accepted_tokens": 40}}
    assert described["accepted_per_draft"] == 4.0
    assert command.build("--max-bytes", 30 * 25, output=command.folder / "b")["texts"] < 3


def test_a_changed_byte_is_found(command: Command) -> None:
    command.build()
    assert command.tell("check", command.pool)["ok"]
    for file in sorted(command.pool.glob("*.*")):
        content = file.read_bytes()
        if file.name == "manifest.json":
            continue
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        command.refuses(file.name, "check", command.pool)
        file.write_bytes(content)
    assert command("check", command.pool) == 0


def test_an_index_of_other_texts_is_found(command: Command) -> None:
    """The checksums are right, but somebody mixed the files of two pools."""
    from draftrec.pool import files

    command.build()
    fewer = command.write("fewer.jsonl", TEXTS[0])
    command.build(output=command.folder / "b", texts=fewer)
    name = "all.safetensors"
    (command.pool / name).write_bytes((command.folder / "b" / name).read_bytes())
    manifest = json.loads((command.pool / "manifest.json").read_text())
    path = command.pool / name
    manifest["files"][name] = {"bytes": path.stat().st_size, "sha256": files.checksum(path)}
    (command.pool / "manifest.json").write_text(json.dumps(manifest))
    command.refuses("holds 1 texts instead of 3", "check", command.pool)


class TestBadInput:
    def test_commands_name_what_is_wrong(self, command: Command) -> None:
        command.build()
        tokenizer = ("--tokenizer", command.tokenizer)
        missing = command.folder / "missing"
        command.refuses("missing", "info", missing)
        command.refuses("missing", "check", missing)
        command.refuses("missing", "prune", missing, "--max-bytes", 1000)
        command.refuses("missing", "merge", command.pool, missing, "--output", missing)
        command.refuses("exists already", "merge", command.pool, command.pool, "--output",
                        command.pool)  # fmt: skip
        command.refuses("exists already", "build", command.texts, *tokenizer, "--output",
                        command.pool)  # fmt: skip
        command.refuses("missing", "build", missing, *tokenizer, "--output", missing)
        command.refuses("no room", "prune", command.pool, "--max-bytes", 1)
        assert command.tell("info", command.pool)["texts"] == 3

    def test_texts_need_their_columns(self, command: Command) -> None:
        texts = command.write("bad.jsonl", {"entity_id": "a", "words": "x"})
        line = ("--tokenizer", command.tokenizer, "--output", command.pool)
        command.refuses("entity_id and text", "build", texts, *line)
        assert not command.pool.exists()

    def test_another_tokenizer_is_refused(self, command: Command) -> None:
        command.build()
        path = command.pool / "manifest.json"
        manifest = json.loads(path.read_text())
        path.write_text(json.dumps({**manifest, "tokenizer": "f" * 64}))
        line = ("add", command.pool, command.texts, "--tokenizer", command.tokenizer)
        command.refuses("another tokenizer", *line)

    def test_unknown_commands_are_refused(self, command: Command) -> None:
        assert command("paint") == 2
        assert command("--help") == 0
        for word in ("build", "add", "merge", "prune", "info", "check"):
            assert word in command.out
