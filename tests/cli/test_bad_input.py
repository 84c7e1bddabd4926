"""Bad input ends in one sentence and an exit code, never in a traceback or a lost shard."""

from __future__ import annotations

import json
import os
import resource
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from draftrec.cli.main import run
from draftrec.demo.shop import demo_model_path
from draftrec.jobs.knowledge import worker
from draftrec.pool.store import Pool
from tests.fakes import FakeGenerator

_PHASES = tuple(
    f"draftrec: {what}"
    for what in (
        "loading the model",
        "checking that",
        "computing in bfloat16",
        "strict texts are",
        "preparing the",
        "measuring",
    )
)
GOOD = '{"entity_id": "a", "prompt": "p", "title": "t"}\n'


class Command:
    """Runs `draftrec generate` and keeps what it said."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self._capsys = folder, capsys
        self.input, self.output = folder / "in.jsonl", folder / "run"
        self.input.write_text(GOOD)

    def __call__(self, *more: str, model: str = "fake", input: Any = None) -> int:  # noqa: A002
        line = ["generate", str(input or self.input), "--output", str(self.output)]
        self.code = run([*line, "--model", model, *more])
        self.said = self._capsys.readouterr().err
        return self.code

    def refuses(self, words: str, *more: str, **options: Any) -> None:
        """Exit code 2, exactly one line, with these words in it, after the names of what took time
        until then."""
        assert self(*more, **options) == 2, self.said
        said = [line for line in self.said.splitlines() if not line.startswith(_PHASES)]
        assert len(said) == 1, self.said
        assert words in self.said
        assert "Traceback" not in self.said


@pytest.fixture
def command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(tmp_path, capsys)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Replaces the model; its settings are read when the job loads it."""
    settings: dict[str, Any] = {}
    monkeypatch.setattr(worker, "load_generator", lambda *_: FakeGenerator(**settings))
    return settings


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails the test if a model is loaded: these inputs must be refused before that."""

    def load(*_: Any) -> FakeGenerator:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(worker, "load_generator", load)


@pytest.mark.usefixtures("no_model")
class TestInputsRefusedBeforeAModelIsLoaded:
    @pytest.fixture(autouse=True)
    def nothing_is_created(self, command: Command) -> Any:
        yield
        assert not command.output.exists()

    def test_missing_file(self, command: Command) -> None:
        command.refuses("does not exist", input=command.folder / "nope.parquet")

    @pytest.mark.parametrize("name", ["x.parquet", "x.jsonl", "x.csv"])
    def test_empty_file(self, command: Command, name: str) -> None:
        (command.folder / name).touch()
        command.refuses(f"{name} is empty", input=command.folder / name)

    def test_folder_with_no_readable_part(self, command: Command) -> None:
        (command.folder / "parts").mkdir()
        (command.folder / "parts" / "notes.txt").write_text("x")
        command.refuses("holds no readable part", input=command.folder / "parts")

    def test_unknown_column(self, command: Command) -> None:
        command.refuses("has no column 'user', it has entity_id", "--id-column", "user")
        command.input.write_text('{"entity_id": "a", "text": "p"}\n')
        command.refuses("has no column 'prompt', it has entity_id, text")

    @pytest.mark.slow
    def test_missing_template_field(self, command: Command) -> None:
        template = command.folder / "t.j2"
        template.write_text("{{ title }} by {{ director }}")
        command.refuses("no column 'director'", "--template", str(template))
        users = command.folder / "users.jsonl"
        users.write_text('{"entity_id": "a", "history": ["x"]}\n')
        words = ("--template", "kar", "--side", "item")
        command.refuses("of users; leave --side item out", *words, input=users)
        command.input.write_text('{"entity_id": "a", "name": "x"}\n')
        command.refuses("no column 'history'", "--template", "kar")

    def test_unknown_template(self, command: Command) -> None:
        command.refuses("kar, trawl, once, rlmrec", "--template", "karr")

    def test_duplicate_ids(self, command: Command) -> None:
        command.input.write_text(GOOD + GOOD.replace("a", "b", 1) + GOOD)
        command.refuses("'a' is repeated in in.jsonl line 1 and in.jsonl line 3")

    def test_malformed_line(self, command: Command) -> None:
        command.input.write_text(GOOD + '{"entity_id": "b", "pro')
        command.refuses("line 2 is not JSON")

    def test_parquet_file_truncated_in_the_middle(self, command: Command) -> None:
        path = command.folder / "x.parquet"
        rows = [{"entity_id": i, "prompt": str(i * 7919)} for i in range(5000)]
        pq.write_table(pa.Table.from_pylist(rows), path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        command.refuses("may be truncated", input=path)

    def test_missing_groups_file(self, command: Command) -> None:
        command.refuses("does not exist", "--groups", str(command.folder / "g.csv"))

    def test_missing_pool(self, command: Command) -> None:
        command.refuses("is not a pool", "--pool", str(command.folder / "pool"))

    @pytest.mark.parametrize(
        ("words", "more"),
        [
            ("'int3' is not one of", ["--dtype", "int3"]),
            ("'--top-k': Input should be greater than or equal to 1", ["--top-k", "0"]),
            ("--batch-size must be auto or a whole number", ["--batch-size", "many"]),
            ("--shard-size should be greater", ["--shard-size", "0"]),
            ("--budget", ["--budget", "-1"]),
            ("--presence-penalty must be a finite number", ["--presence-penalty", "nan"]),
            ("--temperature must be a finite number, not inf", ["--temperature", "inf"]),
            ("No such option: --nope", ["--nope"]),
            ("--workers needs --engine ray", ["--workers", "2"]),
            ("holds no finished part of a run", ["--previous", "nowhere"]),
            ("cannot be read", ["--config", "nope.yaml"]),
        ],
    )
    def test_options_out_of_range(self, command: Command, words: str, more: list[str]) -> None:
        command.refuses(words, *more)

    @pytest.mark.parametrize(
        ("words", "text"),
        [
            ("unknown key 'depht'", "depht: 3"),
            ("must hold `option: value` lines", "- depth"),
            ("cannot be read", "a: [b"),
            ("Invalid value for '--depth'", "depth: deep"),
            ("Invalid value for '--accept'", "accept: sometimes"),
        ],
    )
    def test_settings_files(self, command: Command, words: str, text: str) -> None:
        path = command.folder / "settings.yaml"
        path.write_text(text)
        command.refuses(words, "--config", str(path))


def test_missing_options_are_named(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    for line, words in (
        (["generate"], "INPUT"),
        (["generate", "x"], "--model is required"),
        (["generate", "x", "--model", "m"], "--output is required"),
        (["nonsense"], "No such command"),
    ):
        assert run(line) == 2
        err = capsys.readouterr().err
        assert words in err
        assert err.count("\n") == 1


@pytest.mark.usefixtures("fake")
def test_null_prompts_are_rejected_and_the_job_goes_on(command: Command) -> None:
    command.input.write_text('{"entity_id": "n", "prompt": null}\n' + GOOD)
    assert command() == 3
    rejected = (command.output / "rejected.jsonl").read_text()
    assert json.loads(rejected)["entity_id"] == "n"
    assert pq.read_table(command.output / "part-00000.parquet").num_rows == 1


@pytest.mark.usefixtures("fake")
def test_prompts_longer_than_the_context_are_rejected(command: Command) -> None:
    command.input.write_text(GOOD + json.dumps({"entity_id": "l", "prompt": "x" * 500}) + "\n")
    assert command() == 3
    reason = json.loads((command.output / "rejected.jsonl").read_text())["reason"]
    assert "500 tokens" in reason


@pytest.mark.usefixtures("fake")
def test_output_folder_of_another_run(command: Command) -> None:
    assert command() == 0
    before = (command.output / "part-00000.parquet").read_bytes()
    command.refuses("accept was strict, now relaxed", "--accept", "relaxed")
    assert (command.output / "part-00000.parquet").read_bytes() == before
    assert command("--accept", "relaxed", "--overwrite") == 0


def write_many(path: Path) -> None:
    rows = [{"entity_id": f"u{i}", "prompt": f"about {i}"} for i in range(12)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_full_disk_keeps_finished_shards(command: Command, fake: dict[str, Any]) -> None:
    write_many(command.input)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(decoded: int) -> None:
        if decoded == 7:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))

    fake["on_request"] = fill
    try:
        assert command("--shard-size", "5") == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert command.said.count("\n") == 1
    assert ".journal-00001.jsonl" in command.said  # the first file that every text is written to
    assert not list(command.output.glob("*.tmp"))
    first = (command.output / "part-00000.parquet").read_bytes()
    fake.clear()
    assert command("--shard-size", "5") == 0
    assert "continuing after 7 of 12" in command.said
    assert (command.output / "part-00000.parquet").read_bytes() == first


@pytest.mark.usefixtures("no_model")
def test_unwritable_output(command: Command) -> None:
    (command.folder / "file").touch()
    command.output = command.folder / "file"
    command.refuses(str(command.output))
    command.output = command.folder / "file" / "run"
    command.refuses("not a directory")
    if os.geteuid() != 0:  # root may write anywhere
        locked = command.folder / "locked"
        locked.mkdir(mode=0o500)
        command.output = locked / "run"
        command.refuses("permission denied")


@pytest.mark.slow
@pytest.mark.usefixtures("fake")
def test_input_that_breaks_off_later_keeps_finished_shards(command: Command) -> None:
    path = command.folder / "x.parquet"
    rows = [{"entity_id": i, "prompt": f"about {i}"} for i in range(600)]
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=300, compression="zstd")
    prompts = pq.read_metadata(path).row_group(1).column(1)
    content = bytearray(path.read_bytes())
    start = prompts.dictionary_page_offset or prompts.data_page_offset
    content[start : start + prompts.total_compressed_size] = b"\xff" * prompts.total_compressed_size
    path.write_bytes(content)
    command.refuses("x.parquet cannot be read", "--shard-size", "50", input=path)
    shards = json.loads((command.output / "manifest.json").read_text())["shards"]
    assert len(list(command.output.glob("part-*.parquet"))) == len(shards) >= 5


@pytest.fixture(scope="module")
def demo_model() -> Path:
    path = demo_model_path()
    if not (path / "config.json").exists():
        pytest.skip("the demo's model is not there")
    return path


def test_model_folder_that_is_not_there(command: Command) -> None:
    command.refuses("does not exist", model=str(command.folder / "nope"))


@pytest.mark.slow
def test_a_chat_template_that_refuses(command: Command, demo_model: Path) -> None:
    copy = shutil.copytree(demo_model, command.folder / "model")
    (copy / "chat_template.jinja").write_text("{{ raise_exception('Only pairs, please!') }}")
    command.refuses("chat template refuses: Only pairs, please!", model=str(copy))
    assert command("--no-chat", "--max-new-tokens", "2", model=str(copy)) == 0


@pytest.mark.slow
def test_values_that_no_chat_template_reads(command: Command, demo_model: Path) -> None:
    values = ("--chat-template-kwargs", '{"enable_thinking": false}')
    command.refuses("--chat-template-kwargs needs a chat template", *values, model=str(demo_model))
    copy = shutil.copytree(demo_model, command.folder / "model")
    (copy / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    command.refuses("'enable_thinking', which the model's chat", *values, model=str(copy))
    command.refuses(
        "'--chat-template-kwargs': a JSON object", "--chat-template-kwargs", "[1]", model=str(copy)
    )
    command.refuses("--chat-date", "--chat-date", "tomorrow", model=str(copy))


def test_model_folder_without_weights(command: Command, demo_model: Path) -> None:
    copy = shutil.copytree(demo_model, command.folder / "model")
    for path in copy.glob("*.safetensors"):
        path.unlink()
    command.refuses("no weights", model=str(copy))
    assert not list(command.output.glob("*.json"))


def test_model_folder_without_tokenizer(command: Command, demo_model: Path) -> None:
    copy = shutil.copytree(demo_model, command.folder / "model")
    for path in copy.glob("token*"):
        path.unlink()
    command.refuses("tokenizer", model=str(copy))


@pytest.mark.parametrize("device", ["abacus", "cuda:99", "meta"])
def test_unknown_device(command: Command, demo_model: Path, device: str) -> None:
    command.refuses(repr(device), "--device", device, model=str(demo_model))


def test_pool_made_with_another_tokenizer(command: Command, demo_model: Path) -> None:
    Pool("another").save(command.folder / "pool")
    pool = str(command.folder / "pool")
    command.refuses("another tokenizer", "--pool", pool, model=str(demo_model))
