"""`draftrec serve` as a process: start, answer, drain, end; and what it says of bad input."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from draftrec.cli import serve
from draftrec.cli.main import run
from draftrec.serve.http import app
from draftrec.serve.http.app import exposure
from draftrec.serve.settings import ServeSettings
from tests.jobs.recommend.worlds import World, make_world
from tests.waiting import until

WAIT = 60
KEY = {"name": "a", "sha256": "ab" * 32}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture
def config(world: World, tmp_path: Path) -> Path:
    recommend = {
        "target": str(world.target), "sids": str(world.sids), "draft": str(world.draft),
        "sequences": str(world.sequences), "dtype": "float32",
        "settings": {"k": 5, "draft_beams": 8, "draft_steps": 2},
    }  # fmt: skip
    path = tmp_path / "serve.yaml"
    path.write_text(json.dumps({"recommend": recommend, "threads": 1, "port": 0}))  # YAML as well
    return path


class Served:
    """A process and its address."""

    def __init__(self, process: subprocess.Popen[str], url: str) -> None:
        self.process, self.url = process, url

    def ask(self, path: str, body: Any = None) -> tuple[int, Any]:
        data = None if body is None else json.dumps(body).encode()
        headers = {"content-type": "application/json"}
        try:
            with urlopen(Request(self.url + path, data, headers), timeout=WAIT) as answer:
                return answer.status, json.loads(answer.read())
        except HTTPError as error:
            with error:
                return error.code, json.loads(error.read())

    def until_ready(self) -> None:
        until(lambda: self.ask("/readyz")[0] == 200)


@contextmanager
def started(*words: str, cwd: Path) -> Iterator[Served]:
    program = "from draftrec.cli.main import main; main()"
    command = [sys.executable, "-c", program, "serve", *words]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    try:
        assert process.stderr
        said: list[str] = []
        for line in process.stderr:
            said.append(line)
            if found := re.search(r"serving on (http://\S+),", line):
                yield Served(process, found[1])
                return
        raise AssertionError("".join(said))
    finally:
        process.kill()
        process.communicate()


@pytest.mark.slow
def test_it_starts_answers_reloads_drains_and_ends_with_0(config: Path, tmp_path: Path) -> None:
    with started("--config", str(config), cwd=tmp_path) as served:
        served.until_ready()
        status, body = served.ask("/v1/recommend", {"history": [12, 30], "k": 3})
        assert status == 200
        assert len(body["items"]) == 3
        served.process.send_signal(signal.SIGHUP)
        answers: list[int] = []

        def client() -> None:
            for _ in range(100):
                try:
                    answers.append(served.ask("/v1/recommend", {"history": [12, 30]})[0])
                except OSError:
                    return  # the port has closed

        clients = [threading.Thread(target=client) for _ in range(3)]
        for one in clients:
            one.start()
        time.sleep(0.3)
        served.process.send_signal(signal.SIGTERM)
        out, err = served.process.communicate(timeout=WAIT)
        for one in clients:
            one.join()
    assert served.process.returncode == 0, err
    assert "everything accepted was answered" in err
    lines = [json.loads(line) for line in out.splitlines()]
    assert any(line["event"] == "reloaded" and line["items"] == 60 for line in lines)
    assert set(answers) <= {200, 503}
    assert answers.count(200) > 0
    asked = [line for line in lines if line.get("route") == "/v1/recommend"]
    assert sum(line["status"] == 200 for line in asked) == answers.count(200) + 1


@pytest.mark.slow
def test_interruptions_in_a_row_end_it_at_once_with_a_sentence(
    config: Path, tmp_path: Path
) -> None:
    with started("--config", str(config), cwd=tmp_path) as served:
        served.until_ready()
        for _ in range(60):
            served.process.send_signal(signal.SIGINT)
            time.sleep(0.02)
        _, err = served.process.communicate(timeout=WAIT)
    assert served.process.returncode == 0, err
    assert err == "draftrec: everything accepted was answered\n"


@pytest.mark.parametrize("moment", [(app, "Service"), (serve, "_what")], ids=["load", "read"])
def test_a_signal_while_models_load_or_before_ends_it_with_0(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], moment: Any
) -> None:
    before = {n: signal.getsignal(n) for n in (signal.SIGHUP, signal.SIGTERM)}
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # Ray's tests leave a handler of its own
    monkeypatch.setattr(*moment, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    try:
        assert run(["serve", "--demo", "--port", "0"]) == 0
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert "ended before anything was served" in capsys.readouterr().err


@pytest.mark.slow
def test_what_cannot_be_served_is_one_sentence(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = config.read_text()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        cases: list[tuple[list[str], str]] = [
            ([], "give --config a YAML file, or --demo"),
            (["--demo", "--config", str(config)], "give --config a YAML file, or --demo"),
            (["--config", "nowhere.yaml"], "nowhere.yaml cannot be read"),
            (["--config", str(config), "--port", port], f"port {port} of 127.0.0.1"),
            (["--config", str(config), "--host", "no such host"], "choose another --port or"),
        ]
        broken = {
            "k": ('"k": 5', '"k": 61', "the catalogue has 60"),
            "sids": ("sids.parquet", "none.parquet", "none.parquet"),
            "draft": ('"draft_beams": 8', '"draft_beams": 2', "at least -k"),
            "name": ('"threads"', '"treads"', "unknown name treads"),
        }
        for name, (old, new, message) in broken.items():
            path = tmp_path / f"{name}.yaml"
            path.write_text(good.replace(old, new))
            cases.append((["--config", str(path)], message))
        for words, message in cases:
            assert run(["serve", *words]) == 2, words
            lines = capsys.readouterr().err.splitlines()
            said = [line for line in lines if line != "draftrec: loading models"]
            assert len(said) == 1, said
            assert message in said[0]


def test_a_missing_extra_is_named(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("draftrec.cli.serve.find_spec", lambda name: None)
    assert run(["serve", "--config", str(config)]) == 2
    assert 'pip install "draftrec[serve]"' in capsys.readouterr().err


@pytest.mark.parametrize(
    ("host", "keys", "warned"),
    [
        ("127.0.0.1", (), False),
        ("127.8.8.8", (), False),
        ("::1", (), False),
        ("localhost", (), False),
        ("0.0.0.0", (), True),
        ("example.org", (), True),
        ("::", (), True),
        ("0.0.0.0", (KEY,), False),
    ],
)
def test_whoever_can_be_reached_without_keys_is_warned(
    host: str, keys: tuple[dict[str, str], ...], *, warned: bool
) -> None:
    # Open pages are warned of as well.
    values = {"host": host, "keys": keys, "monitoring": "key" if keys else "open"}
    found = exposure(ServeSettings.model_validate(values))
    assert (found is not None) == warned
