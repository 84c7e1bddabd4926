"""The log of requests, whose reader may be slow, stalled or gone."""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import pytest

from draftrec.serve.logs import RequestLog


class Stalled(io.StringIO):
    """Writes nothing until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.go = threading.Event()

    def write(self, text: str) -> int:
        self.go.wait(60)
        return super().write(text)


def test_a_stalled_reader_costs_lines_and_no_time() -> None:
    stream, lost = Stalled(), []
    log = RequestLog(stream, most=4)
    log.on_drop = lambda: lost.append(1)
    for i in range(50):
        log.write("request", number=i)
    assert not log.flush(0.05)
    assert 45 <= len(lost) == log.dropped <= 46
    stream.go.set()
    assert log.flush(10)
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line["lines"] for line in lines if line["event"] == "lines_dropped"] == [len(lost)]
    assert [n["number"] for n in lines if n["event"] == "request"][:4] == [0, 1, 2, 3]


@pytest.mark.slow
def test_a_service_whose_log_nobody_reads_answers_and_ends(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "draftrec", "serve", "--demo", "--port", str(port)]
    with (
        (tmp_path / "said").open("wb") as said,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=said, env=os.environ, pipesize=4096
        ) as process,
    ):
        try:
            base = f"http://127.0.0.1:{port}"
            _get_until(f"{base}/readyz", 120)
            # Some 200 bytes each: more than a pipe holds, whose size Linux alone is told.
            for _ in range(80 if sys.platform == "linux" else 900):
                _get(f"{base}/docs")
            assert _get(f"{base}/healthz") == 200
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0, (tmp_path / "said").read_text()
        finally:
            process.kill()


def _get(url: str) -> int:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return answer.status


def _get_until(url: str, seconds: float) -> None:
    end = time.monotonic() + seconds
    while True:
        try:
            assert _get(url) == 200
        except OSError:
            assert time.monotonic() < end
            time.sleep(0.2)
        else:
            return
