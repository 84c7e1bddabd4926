"""The `draftrec` command itself: help, completion, how loud it is, how it is called."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any

import pytest
import typer

from draftrec import __version__
from draftrec.cli.knobs import PANELS
from draftrec.cli.main import _COMMANDS, _explain, run
from draftrec.cli.messages import StopSignal, messages, say, set_loudness, warn
from draftrec.data.files import writers

SOURCE = Path(__file__).parents[2] / "src"


def all_commands() -> dict[tuple[str, ...], Any]:
    """Words of the command line -> the function that Typer was given."""
    found: dict[tuple[str, ...], Any] = {}
    for name, place in _COMMANDS.items():
        module = import_module(place)
        if hasattr(module, "SUBCOMMANDS"):
            found |= {(name, word): made for word, made in module.SUBCOMMANDS.items()}
        else:
            found[name,] = getattr(module, name)
    return found


COMMANDS = all_commands()
GROUPS = sorted({words[0] for words in COMMANDS if len(words) == 2})


def written_helps(function: Any) -> list[str]:
    """The help of each of a command's options that are not hidden, as it stands in the source."""
    hints = [p.annotation for p in function.__signature__.parameters.values()]
    infos = [extra for hint in hints for extra in getattr(hint, "__metadata__", ())]
    return [info.help.replace("\\[", "[") for info in infos if info.help and not info.hidden]


@pytest.mark.slow
@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_help_is_printed_as_it_is_written(
    words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "2000")
    monkeypatch.setenv("TERMINAL_WIDTH", "2000")
    assert run([*words, "--help"]) == 0
    printed = capsys.readouterr().out
    helps = written_helps(COMMANDS[words])
    assert len(helps) > 4
    for help_ in helps:
        assert " ".join(help_.split()) in printed, help_
    assert run([*words, "-h"]) == 0
    assert capsys.readouterr().out == printed


@pytest.mark.slow
@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_help_begins_with_what_everybody_needs(
    words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No panel of a long command is longer than a screen, and all commands have them in one order;
    what is required comes first."""
    monkeypatch.setenv("COLUMNS", "2000")
    monkeypatch.setenv("TERMINAL_WIDTH", "2000")
    assert run([*words, "--help"]) == 0
    panels = [panel.splitlines() for panel in capsys.readouterr().out.split("╭─ ")[1:]]
    headings = [lines[0].split(" ─")[0] for lines in panels]
    assert headings == [name for name in ("Arguments", "Options", *PANELS) if name in headings]
    rows = [[line for line in lines if " --" in line or line[:1] == "│"] for lines in panels]
    assert max(map(len, rows)) <= 20
    for lines in rows:
        required = ["[required]" in line for line in lines]
        assert required == sorted(required, reverse=True)


def test_help_says_where_to_begin(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    begin = capsys.readouterr().out.partition("New here?")[2].partition("─")[0]
    lists = [line.split(": ")[1].split(".")[0] for line in begin.splitlines() if ": " in line]
    steps = ", ".join(lists).split(", ")
    assert (steps[0], steps[-1]) == ("records", "genrec")
    assert set(steps) <= set(_COMMANDS)


def test_brackets_in_help_are_no_styles(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "2000")
    assert run(["sid", "fit", "--help"]) == 0
    assert "(extra [sid])" in capsys.readouterr().out


@pytest.mark.parametrize("group", GROUPS)
def test_a_group_alone_lists_its_commands(group: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([group]) == 0
    out, err = capsys.readouterr()
    for words in COMMANDS:
        if words[0] == group:
            assert f"│ {words[1]} " in out
    assert not err


def test_an_unknown_command_of_a_group_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["pool", "nope"]) == 2
    assert "No such command 'nope'" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("draftrec ge", {"generate", "genrec"}),
        ("draftrec pool ", {"build", "add", "merge", "prune", "info", "check"}),
        ("draftrec pool bu", {"build"}),
        ("draftrec generate --acc", {"--accept"}),
        ("draftrec generate x --accept re", {"relaxed"}),
    ],
)
def test_a_shell_completes(line: str, expected: set[str]) -> None:
    words = line.split(" ")
    environment = {
        **os.environ,
        "PYTHONPATH": str(SOURCE),
        "_DRAFTREC_COMPLETE": "complete_bash",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(words) - 1),
    }
    done = subprocess.run(
        [sys.executable, "-m", "draftrec"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert set(done.stdout.split()) == expected
    assert not done.stderr


def test_completion_can_be_shown(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # No shell need stand above a test.
    monkeypatch.setattr("shellingham.detect_shell", lambda *_: ("bash", "/bin/bash"))
    with pytest.raises(SystemExit) as end:
        run(["--show-completion", "bash"])
    assert end.value.code == 0
    assert "_DRAFTREC_COMPLETE=complete_bash" in capsys.readouterr().out


@pytest.mark.slow
def test_it_is_a_module_too() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "draftrec", "--version"],
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"{__version__}\n"


class TestLoudness:
    def test_three_of_them(self, capsys: pytest.CaptureFixture[str]) -> None:
        log = logging.getLogger("draftrec.pool")
        heard: list[list[str]] = []
        for how in ("quiet", "", "verbose"):
            with messages():
                set_loudness(quiet=how == "quiet", verbose=how == "verbose")
                log.debug("detail")
                say("news")
                warn("oh")
            heard.append(capsys.readouterr().err.splitlines())
        assert heard == [
            ["draftrec: oh"],
            ["draftrec: news", "draftrec: oh"],
            ["draftrec.pool: detail", "draftrec: news", "draftrec: oh"],
        ]

    def test_an_option_of_every_command(self) -> None:
        for words, function in COMMANDS.items():
            assert {"quiet", "verbose"} <= set(function.__signature__.parameters), words

    def test_quiet_says_errors(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert run(["pool", "info", "nowhere", "--quiet"]) == 2
        assert "draftrec: nowhere" in capsys.readouterr().err

    def test_not_both(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert run(["pool", "info", "nowhere", "-q", "-v"]) == 2
        assert "contradict" in capsys.readouterr().err

    def test_messages_hold_no_markup(self, capsys: pytest.CaptureFixture[str]) -> None:
        with messages():
            say("100 % of [bold]s in %s")
        assert capsys.readouterr().err == "draftrec: 100 % of [bold]s in %s\n"

    def test_the_library_alone_is_silent(self, capsys: pytest.CaptureFixture[str]) -> None:
        logging.getLogger("draftrec.pool").warning("for who listens")
        assert capsys.readouterr().err == ""


def test_options_are_not_shared_between_commands() -> None:
    """Escaping help may not happen twice to an option that many commands have."""
    for function in COMMANDS.values():
        for parameter in function.__signature__.parameters.values():
            for extra in parameter.annotation.__metadata__:
                assert "\\\\[" not in (extra.help or "")
                assert isinstance(extra, typer.models.ParameterInfo)


@contextmanager
def handled(number: int, handler: Any) -> Iterator[None]:
    """What a process begins with; those who run the tests may have another."""
    before = signal.signal(number, handler)
    try:
        yield
        assert signal.getsignal(number) == handler
    finally:
        signal.signal(number, before)


SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_interrupts_any_command_which_leaves_nothing_half_written(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: int,
) -> None:
    (tmp_path / "in.txt").write_text("a,b\n1,2\n")
    monkeypatch.setattr(writers, "_sync_file", lambda _: os.kill(os.getpid(), number))
    with handled(number, signal.SIG_DFL):
        line = ["table", tmp_path / "in.txt", "--output", tmp_path / "new" / "out.csv"]
        assert run([*map(str, line)]) == 130
    assert "interrupted" in capsys.readouterr().err
    assert [path.name for path in tmp_path.rglob("*.*")] == ["in.txt"]


@pytest.mark.parametrize("number", [signal.SIGINT, *SIGNALS])
def test_an_interruption_of_which_a_library_makes_an_error_is_one(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: int,
) -> None:
    """Extensions that are interrupted while they load cannot be imported, as they say."""

    def load(_: object) -> None:
        try:
            os.kill(os.getpid(), number)
        except KeyboardInterrupt as event:
            raise ImportError("half of it is there") from event

    (tmp_path / "in.txt").write_text("a,b\n1,2\n")
    line = ["table", str(tmp_path / "in.txt"), "--output", str(tmp_path / "out.csv")]
    usual = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
    with handled(number, usual), monkeypatch.context() as patch:
        patch.setattr(writers, "_sync_file", load)
        assert run(line) == 130
        assert "interrupted" in capsys.readouterr().err
        assert run(["pool", "info", "nowhere"]) == 2  # and what comes after it is none


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_comes_while_python_ends_ends_it(number: int) -> None:
    """What was to be done is done, and there is nobody left who hears it."""
    code = (
        "import atexit, os, signal\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"atexit.register(lambda: os.kill(os.getpid(), {int(number)}))\n"
        "from draftrec.cli.main import main\n"
        "main(['pool', 'info', 'nowhere'])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("draftrec: nowhere")
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no full device")
@pytest.mark.parametrize(
    ("out", "code", "said"),
    [
        ("pipe", 130, "draftrec: nobody reads standard output any more, so this ended there\n"),
        ("full", 2, "draftrec: no space left on device; mend that and run the same command again"),
    ],
)
def test_an_output_that_takes_no_more_is_a_sentence(out: str, code: int, said: str) -> None:
    """`| head` ended with 1, as `compare` does where a limit is broken."""
    reads, stdout = os.pipe()
    os.close(reads)
    if out == "full":
        os.close(stdout)
        stdout = os.open("/dev/full", os.O_WRONLY)
    done = subprocess.run(
        [sys.executable, "-m", "draftrec", "--version"],
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(stdout)
    assert (done.returncode, done.stderr.count("\n")) == (code, 1)
    assert done.stderr.startswith(said)


def test_whoever_interrupts_while_the_command_loads_gets_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Interrupts(MetaPathFinder):
        def find_spec(self, name: str, *_: Any) -> None:
            if name == "draftrec.cli.main":
                raise KeyboardInterrupt

    scripts = tomllib.loads((SOURCE.parent / "pyproject.toml").read_text())["project"]["scripts"]
    module, _, name = scripts["draftrec"].partition(":")
    command = getattr(import_module(module), name)
    monkeypatch.delitem(sys.modules, "draftrec.cli.main")
    monkeypatch.setattr(sys, "meta_path", [Interrupts(), *sys.meta_path])
    with pytest.raises(SystemExit) as left:
        command()
    assert left.value.code == 130
    assert capsys.readouterr().err == "draftrec: interrupted\n"


@pytest.mark.parametrize("number", SIGNALS)
def test_it_asks_a_job_to_stop(number: int) -> None:
    with handled(number, signal.SIG_DFL), StopSignal() as stop:
        stop.arm()
        os.kill(os.getpid(), number)
        assert stop()


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="there is no such signal")
def test_nohup_is_heeded() -> None:
    with handled(signal.SIGHUP, signal.SIG_IGN), StopSignal() as stop:
        os.kill(os.getpid(), signal.SIGHUP)
        assert not stop()
        assert run(["--version"]) == 0


@pytest.mark.parametrize(
    "said",
    [
        "Error while serializing: I/O error: No space left on device (os error 28)",
        'Error while serializing: IoError(Os { code: 28, kind: StorageFull, message: "No space" })',
    ],
)
def test_a_full_disk_is_one_whoever_writes(said: str) -> None:
    """safetensors and tokenizers have exceptions of their own."""
    told, code = _explain(Exception(said))
    assert (told.partition(";")[0], code) == ("no space left on device", 2)
    told, code = _explain(Exception("No such file or directory (os error 2)"))
    assert ("unexpected Exception" in told, code) == (True, 1)
