"""`draftrec generate` as a child process, on records of the fictional bookshop.

Nothing here imports PyTorch: a large parent would show in its children's peak memory.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from common import ROOT, note
from shop import stream_records

from draftrec.data.templates import load_template
from draftrec.demo.shop import demo_model_path

_MAIN = "from draftrec.cli.main import main; main()"


def model_folder(given: Path | None, scratch: Path) -> Path:
    """The model asked for, else the embedded one, else a tiny random one made in `scratch`."""
    if given:
        return given
    if (demo_model_path() / "model.safetensors").is_file():
        return demo_model_path()
    note("the embedded model is not there; a tiny random one takes its place")
    folder = scratch / "tiny-model"
    script = ROOT / "benchmarks" / "stand_in.py"
    subprocess.run([sys.executable, str(script), str(folder)], check=True, env=environment())
    return folder


def write_records(path: Path, count: int, *, side: Any = "user", reject_every: int = 0) -> Path:
    """`count` prompts of the bookshop as JSON lines; every `reject_every`-th has no prompt."""
    template = load_template("kar", side)
    with path.open("w", encoding="utf-8") as file:
        for number, record in enumerate(islice(stream_records(side), count)):
            bad = reject_every and number % reject_every == reject_every - 1
            row = {
                "entity_id": record["entity_id"],
                "group": record["group"],
                "prompt": None if bad else template.render(record),
            }
            file.write(json.dumps(row) + "\n")
    return path


def command(records: Path, model: Path, output: Path, options: Mapping[str, Any]) -> list[str]:
    """The command line of a job; `options` by the names of the long options."""
    flags = [f"--{name}={value}" for name, value in options.items()]
    job = ["generate", str(records), "--model", str(model), "--output", str(output)]
    return program(*job, "--device=cpu", *flags)


def program(*words: str) -> list[str]:
    """The command line of `draftrec` with these words."""
    return [sys.executable, "-c", _MAIN, *words]


def environment(sources: Path | None = None) -> dict[str, str]:
    """This process's environment, in which the package of this repository is found first, or that
    in the folder `sources`."""
    paths = [str(sources or ROOT / "src"), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in paths if p)}


def start(arguments: list[str], log: Path) -> subprocess.Popen[bytes]:
    """Start a job; what it says is added to `log`."""
    with log.open("ab") as file:
        return subprocess.Popen(arguments, stdout=file, stderr=file, env=environment())


def manifest_of(output: Path) -> dict[str, Any] | None:
    """A run's manifest, None before there is one."""
    try:
        return json.loads((output / "manifest.json").read_text())
    except FileNotFoundError:
        return None


def token_ids_of(output: Path) -> list[list[int]]:
    """The texts of a finished run, in the order of its records."""
    import pyarrow.parquet as pq

    parts = sorted(output.glob("part-*.parquet"))
    return [ids for p in parts for ids in pq.read_table(p, columns=["token_ids"])[0].to_pylist()]
