"""`draftrec generate` as a user or a program meets it: output, exit codes, signals, settings."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from draftrec import __version__
from draftrec.cli.main import run
from draftrec.config import AcceptConfig, BatchConfig, DraftConfig, RecordsConfig
from draftrec.demo.shop import demo_model_path
from draftrec.jobs.knowledge import worker
from tests.fakes import FakeGenerator

Load = Callable[..., FakeGenerator]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Replaces the model; its settings are read when the job loads it."""
    settings: dict[str, Any] = {}
    monkeypatch.setattr(worker, "load_generator", lambda *_: FakeGenerator(**settings))
    return settings


@pytest.fixture
def records(tmp_path: Path) -> Path:
    path = tmp_path / "in.jsonl"
    rows = [{"entity_id": f"u{i}", "prompt": f"about {i}"} for i in range(12)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def arguments(records: Path, *more: str) -> list[str]:
    output = str(records.parent / "run")
    line = ["generate", str(records), "--model", "fake", "--output", output, "--shard-size", "5"]
    return [*line, *more]


@pytest.mark.slow
@pytest.mark.usefixtures("fake")
def test_json_is_the_last_line_of_standard_output(
    records: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments(records, "--json")) == 0
    out, err = capsys.readouterr()
    summary = json.loads(out.splitlines()[-1])
    assert summary["entities"] == 12
    assert summary == json.loads((records.parent / "run" / "summary.json").read_text())
    assert "12 texts" in err
    assert run(arguments(records)) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert "already finished" in err


@pytest.mark.slow
@pytest.mark.usefixtures("fake")
def test_rejected_records_give_exit_code_3_each_time(
    records: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with records.open("a") as file:
        file.write('{"entity_id": "x", "prompt": null}\n')
    assert run(arguments(records)) == 3
    assert run(arguments(records)) == 3
    assert "1 records were rejected" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_finish_the_step_and_the_same_command_goes_on(
    records: Path, fake: dict[str, Any], capsys: pytest.CaptureFixture[str], number: int
) -> None:
    def interrupt(decoded: int) -> None:
        if decoded == 7:
            os.kill(os.getpid(), number)

    fake["on_request"] = interrupt
    before = signal.getsignal(number)
    assert run(arguments(records)) == 130
    assert signal.getsignal(number) is before
    err = capsys.readouterr().err
    assert "interrupted after 8 of 12 records, which are kept; run the same command again" in err
    assert "Traceback" not in err
    fake.clear()
    assert run(arguments(records)) == 0
    assert "continuing after 8 of 12 records" in capsys.readouterr().err


def test_the_second_signal_stops_at_once(
    records: Path, fake: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(decoded: int) -> None:
        if decoded == 7:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    fake["on_request"] = interrupt
    assert run(arguments(records)) == 130
    assert "run the same command again" in capsys.readouterr().err


def test_a_signal_while_the_model_loads_stops_at_once(
    records: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def load(*_: Any) -> FakeGenerator:
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("not reached")

    monkeypatch.setattr(worker, "load_generator", load)
    assert run(arguments(records)) == 130
    assert "interrupted" in capsys.readouterr().err


def test_settings_files_give_defaults_that_the_command_line_overrides(
    records: Path, fake: dict[str, Any]
) -> None:
    settings = records.parent / "settings.yaml"
    settings.write_text("accept: relaxed\ntop-k: 5\nbudget: 16\nmin_prob: 0.25\nlimit: 3\n")
    assert run(arguments(records, "--config", str(settings), "--top-k", "7")) == 0
    manifest = json.loads((records.parent / "run" / "manifest.json").read_text())
    found = {k: manifest["settings"][k] for k in ("accept", "top_k", "budget", "min_prob", "limit")}
    assert found == {"accept": "relaxed", "top_k": 7, "budget": 16, "min_prob": 0.25, "limit": 3}


def test_settings_files_can_name_everything_but_the_input(records: Path, fake: Any) -> None:
    settings = records.parent / "settings.yaml"
    settings.write_text(f"model: fake\noutput: {records.parent / 'run'}\n")
    assert run(["generate", str(records), "--config", str(settings)]) == 0


def test_defaults_are_those_of_the_configuration(records: Path, fake: Any) -> None:
    assert run(arguments(records)) == 0
    settings = json.loads((records.parent / "run" / "manifest.json").read_text())["settings"]
    groups = (AcceptConfig(), DraftConfig(), BatchConfig(), RecordsConfig())
    for name, value in {k: v for g in groups for k, v in g.model_dump().items()}.items():
        assert name == "template" or settings[name] == value


def test_unexpected_errors_show_a_traceback_only_on_request(
    records: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def load(*_: Any) -> FakeGenerator:
        raise ZeroDivisionError("oh\nno")

    monkeypatch.setattr(worker, "load_generator", load)
    assert run(arguments(records)) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "unexpected ZeroDivisionError: oh; run again with --debug" in err
    assert run(arguments(records, "--debug")) == 1
    assert "Traceback" in capsys.readouterr().err


CONTRACT = """--model --output --template --side --chat --no-chat --draft --pool --groups
--save-pool --previous --budget --depth --accept --top-k --min-prob --temperature --top-p --seed
--engine --workers --max-new-tokens --batch-size --device --dtype --pass --limit
--shard-size --overwrite --json --debug --config --eos-guard --tie-break --max-deviations
--max-loss --threads --keep-prompts"""


@pytest.mark.slow
def test_help_explains_every_option_of_the_contract(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert run(["generate", "--help"]) == 0
    text = capsys.readouterr().out
    missing = [o for o in CONTRACT.split() if not re.search(rf"{o}\b", text)]
    assert not missing


@pytest.mark.slow
def test_to_show_a_job_no_model_library_is_loaded() -> None:
    code = (
        "import sys; import draftrec.cli.progress, draftrec.jobs.knowledge.job; "
        "sys.exit(','.join({'torch', 'transformers'} & sys.modules.keys()) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr


@pytest.mark.slow
def test_help_and_version_load_no_heavy_module() -> None:
    code = (
        "import sys; from draftrec.cli.main import run; "
        "assert run([]) == run(['--version']) == run(['generate', '--help']) == 0; "
        "heavy = {'torch', 'transformers', 'pyarrow', 'numba', 'sklearn'} & sys.modules.keys(); "
        "sys.exit(','.join(heavy) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "generate" in done.stdout
    assert __version__ in done.stdout


@pytest.fixture(scope="module")
def demo_model() -> Path:
    path = demo_model_path()
    if not (path / "config.json").exists():
        pytest.skip("the demo's model is not there")
    return path


@pytest.mark.slow
def test_the_shipped_model_writes_the_same_texts_with_and_without_drafts(
    records: Path, demo_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = {}
    for draft in ("none", "prompt", "pool"):
        output = records.parent / draft
        line = ["generate", str(records), "--model", str(demo_model), "--output", str(output)]
        more = ["--draft", draft, "--dtype", "float32", "--max-new-tokens", "24", "--json"]
        assert run([*line, *more, "--shard-size", "6", "--budget", "8"]) == 0
        summary = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert summary["entities"] == 12
        assert summary["wall_seconds"] > 0
        texts[draft] = [p.read_bytes() for p in sorted(output.glob("part-*.parquet"))]
    assert texts["none"] == texts["prompt"] == texts["pool"]


@pytest.mark.slow
def test_the_shipped_model_grows_saves_and_reopens_a_pool(records: Path, demo_model: Path) -> None:
    pool = records.parent / "pool"
    line = ["generate", str(records), "--model", str(demo_model), "--max-new-tokens", "24"]
    line += ["--budget", "8"]  # a busy machine would choose others for either
    first, second = (str(records.parent / name) for name in ("first", "second"))
    assert run([*line, "--output", first, "--save-pool", str(pool)]) == 0
    assert run([*line, "--output", second, "--pool", str(pool)]) == 0
    calls = [
        sum(pq.read_table(Path(f) / "stats-00000.parquet")["target_calls"].to_pylist())
        for f in (first, second)
    ]
    assert calls[1] < calls[0]
