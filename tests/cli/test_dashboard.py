"""`draftrec dashboard` as a user or a program meets it."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from draftrec.cli import serve
from draftrec.cli.main import run
from tests.serve.run_folders import RunWriter


def test_json_is_the_pages_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    RunWriter(tmp_path / "run").finish()
    assert run(["dashboard", str(tmp_path), "--price-per-hour", "2", "--json"]) == 0
    data = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [found["name"] for found in data["runs"]] == ["run"]
    assert data["price_per_hour"] == 2.0


def test_bad_input_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["dashboard", str(tmp_path / "nothing")]) == 2
    assert "nothing is no folder" in capsys.readouterr().err
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert run(["dashboard", str(tmp_path), "--port", port]) == 2
    assert f"port {port} of 127.0.0.1 cannot be had" in capsys.readouterr().err
    assert run(["dashboard"]) == 2


def test_it_listens_at_an_address_of_ipv6(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("there is no IPv6 here")
    monkeypatch.setattr(serve, "_serve", lambda _, listening: listening.close())
    assert run(["dashboard", str(tmp_path), "--host", "::1", "--port", "0"]) == 0
    told = capsys.readouterr().err
    assert re.search(r"at http://\[::1\]:\d+/dashboard;", told)
    assert "whoever" not in told


def test_a_missing_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(serve, "find_spec", lambda _: None)
    assert run(["dashboard", str(tmp_path)]) == 2
    assert 'pip install "draftrec[serve]"' in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_until_a_signal_even_with_an_open_stream(tmp_path: Path, number: int) -> None:
    RunWriter(tmp_path / "run").finish()
    code = "from draftrec.cli.main import main; main()"
    line = [sys.executable, "-c", code, "dashboard", str(tmp_path), "--port", "0"]
    with subprocess.Popen(line, stderr=subprocess.PIPE, text=True, env=dict(os.environ)) as process:
        assert process.stderr is not None
        told = process.stderr.readline()
        address = next(word for word in told.split() if word.startswith("http://"))
        address = address.rstrip(";")
        with urllib.request.urlopen(f"{address}/events", timeout=20) as stream:
            assert stream.readline() == b"retry: 2000\n"
            process.send_signal(number)
            assert process.wait(timeout=20) == 0
        assert process.stderr.read() == ""
