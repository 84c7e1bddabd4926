"""Every shell block of the documents is run as it stands there, document by document, or a comment
above it says why not: `<!-- not run: needs a cluster -->`. What is not run is parsed all the same.

A document has one folder, so that a block finds what those before it wrote. Models, and files that
no block has written, are small ones of the invented bookshop.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import tomllib
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer
from bookshop.world import World, make_world

from draftrec.cli.main import _app, run
from draftrec.data.vectors import vector_column
from draftrec.demo.shop import demo_model_path, readings, sequences, shipped_path

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", "CONTRIBUTING.md", "deploy/README.md",
         *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]  # fmt: skip
FENCE = re.compile(
    r"^(?:<!-- not run: (?P<why>[^>]+) -->\n+)?```(?P<kind>\w*)\n(?P<lines>.*?)^```", re.M | re.S
)
MODEL = str(demo_model_path())
#: Words of the documents that stand for something of the reader's own.
PLACEHOLDERS = {"MODEL": MODEL, "path/or/hub-id": MODEL, "minilm": "hashed:16"}
#: Options that make a command small; the last of two equal ones counts.
SMALL = {
    "generate": "--max-new-tokens 24",
    "genrec fit": "--preset tiny --epochs 1 --recall-users 5",
    "genrec demo": "--users 8",
    "sid fit rq-vae": "--epochs 5",
    "genrec teach": "--limit 20 --beams 5",
    "genrec align": "--preset tiny --epochs 1",
    "drafter fit": "--epochs 1 --held-out 2",
    "tune --model": "--max-new-tokens 16 --sample 4 --rounds 1 --budgets 8",
    "ctr --output": "--epochs 1 --seeds 1 --lr 0.001 --batch-size 512 --workers 1",
}
GROUPS = ("drafter", "genrec", "group", "pool", "sid")
WRITES = ("--output", "--save-pool", "--save-histories", "--report")


@dataclass(frozen=True)
class Block:
    """Commands of one fence, a string each, and why they are not run, if they are not."""

    lines: list[str]
    why: str | None


def blocks_of(page: str) -> list[Block]:
    found: list[Block] = []
    text = (ROOT / page).read_text(encoding="utf-8")
    assert not re.search(r"^ +```bash", text, re.M), f"{page}: blocks begin at the margin"
    for match in FENCE.finditer(text):
        lines = [line for line in match["lines"].replace("\\\n", " ").splitlines() if line.strip()]
        if match["kind"] == "bash":
            found.append(Block(lines, match["why"]))
            continue
        assert match["kind"] not in ("sh", "shell", "console"), f"{page}: call it bash: {lines}"
        assert not any(line.startswith("draftrec ") for line in lines), f"{page}: bash? {lines}"
    return found


def words_of(line: str) -> list[str]:
    words = [PLACEHOLDERS.get(word, word) for word in shlex.split(line, comments=True)]
    return [re.sub("^(s3|gs)://", "memory://", word) for word in words]  # whose packages come along


def parse(words: list[str]) -> None:
    """Hold a command line against its parser, which says what it does not know."""
    command: Any = typer.main.get_command(_app(words))
    context, rest = None, words
    while True:
        context = command.make_context(command.name, list(rest), parent=context)
        if not hasattr(command, "resolve_command"):
            return
        _, command, rest = command.resolve_command(context, context._protected_args + context.args)


@pytest.mark.parametrize("page", PAGES)
def test_every_line_has_options_that_exist(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for block in blocks_of(page):
        for line in block.lines:
            words = words_of(line)
            for before, word in pairwise(words):
                if before == "--config":  # is read while options are
                    Path(word).touch()
            if words[0] == "draftrec":
                parse(words[1:])
            for named in re.findall(r"pip install \S*\[([\w,]+)\]", line):
                assert set(named.split(",")) <= project["optional-dependencies"].keys()


@pytest.mark.parametrize("page", PAGES)
def test_commands_in_sentences_have_their_options(page: str) -> None:
    text = FENCE.sub("", (ROOT / page).read_text(encoding="utf-8"))
    for told in re.findall(r"`draftrec\s+([^`]+)`", text):
        words = told.split()
        command: Any = typer.main.get_command(_app(words))
        while hasattr(command, "commands") and words and words[0] in command.commands:
            command = command.commands[words.pop(0)]
        known = {name for one in command.params for name in (*one.opts, *one.secondary_opts)}
        for option in re.findall(r"(?<!\S)--[a-z][a-z-]*", " ".join(words)):
            assert option in known | {"--help"}, told


RUN = [page for page in PAGES if any(not block.why for block in blocks_of(page))]


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in RUN if page != "docs/data.md"])  # test_data_page
def test_blocks_run(page: str, tmp_path: Path) -> None:
    type_blocks(page, tmp_path)


def type_blocks(page: str, folder: Path) -> None:
    """Run what the page says in the folder, with the small files that it shows."""
    text = (ROOT / page).read_text(encoding="utf-8")
    for name, content in re.findall(
        r"^`(\S+\.(?:csv|yaml))`\n\n```(?:csv|yaml)\n(.*?)^```", text, re.M | re.S
    ):
        (folder / name).write_text(content.replace("path/or/hub-id", MODEL))
    with pytest.MonkeyPatch.context() as patch, ExitStack() as services:
        patch.chdir(folder)
        desk = Desk(folder, services)
        for block in blocks_of(page):
            for line in block.lines if not block.why else []:
                desk.type(line)


@dataclass
class Desk:
    """A folder in which lines of a document are typed, and the services that run meanwhile."""

    folder: Path
    services: ExitStack
    ports: dict[str, str] = field(default_factory=dict)
    supplied: set[str] = field(default_factory=set)

    def type(self, line: str) -> None:
        words = words_of(line)
        self.supply(words[3 if words[1] in GROUPS else 2 :])
        if words[0] != "draftrec":
            for port, other in self.ports.items():
                line = line.replace(f":{port}/", f":{other}/")
            if not shutil.which(words[0]):
                pytest.skip(f"{words[0]} is not installed here")
            said = subprocess.run(["bash", "-ec", line], check=True, capture_output=True, text=True)
            assert '"error"' not in said.stdout, said.stdout  # curl itself is content
        elif words[1] in ("serve", "dashboard") and "--json" not in words:
            if "--config" in words:
                recommender(self)
            port = words[words.index("--port") + 1] if "--port" in words else "8080"
            if port in self.ports:  # who types on has ended the one before
                self.services.close()
            self.ports[port] = free_port()
            self.services.enter_context(served([*words, "--port", self.ports[port]]))
        else:
            code = run([*words[1:], *smaller(words)])
            assert code == 0 or (words[1], code) == ("compare", 1), line  # limits of a few texts

    def supply(self, words: list[str]) -> None:
        """Lay down what the line reads and nothing has written; make room for what it writes."""
        for before, word in pairwise(["", *words]):
            name = word.rpartition("=")[2].rstrip("/")
            if before in WRITES:
                if name in self.supplied:
                    self.supplied.remove(name)
                    clear(self.folder / name)
            elif name in SUPPLIES and not (self.folder / name).exists():
                SUPPLIES[name](self, name)
                self.supplied.add(name)

    def have(self, name: str) -> None:
        self.supply([name])


def clear(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def smaller(words: list[str]) -> list[str]:
    fits = (k for k in SMALL if set(k.split()) <= set(words))
    return [word for key in fits for word in SMALL[key].split()]


def free_port() -> str:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return str(one.getsockname()[1])


@contextmanager
def served(words: list[str]) -> Iterator[None]:
    """A service that answers, until it is asked to end and does."""
    program = subprocess.Popen([sys.executable, "-m", *words])
    sign = "readyz" if words[1] == "serve" else "dashboard"
    try:
        for _ in range(600):
            assert program.poll() is None, words
            if answers(f"http://127.0.0.1:{words[-1]}/{sign}"):
                break
            time.sleep(0.5)
        else:
            raise AssertionError(f"does not answer: {words}")
        yield
        program.send_signal(signal.SIGTERM)
        assert program.wait(300) in (0, -signal.SIGTERM), words
    finally:
        program.kill()
        program.wait()


def answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False


# What documents take for granted: a small shop of invented books and readers.


def shop() -> World:
    return make_world(0, users=120, items=80)


def write_rows(rows: list[dict[str, Any]]) -> Callable[[Desk, str], None]:
    def write(desk: Desk, name: str) -> None:
        path = desk.folder / name
        if path.suffix == ".parquet":
            pq.write_table(pa.Table.from_pylist(rows), path)
        else:
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    return write


def users(desk: Desk, name: str) -> None:
    """A few readers, with a region."""
    rows = list(shop().records("user"))[: 40 if name.endswith("parquet") else 12]
    write_rows([{**row, "region": f"r{i % 3}"} for i, row in enumerate(rows)])(desk, name)


def items(desk: Desk, name: str) -> None:
    write_rows(list(shop().records("item"))[:12])(desk, name)


def catalogue(desk: Desk, name: str) -> None:
    rows = [{"item_id": row.pop("entity_id"), **row} for row in shop().records("item")]
    write_rows(rows)(desk, name)


def events(desk: Desk, name: str) -> None:
    rows = [
        {"user_id": one.user_id, "item_id": one.item_id, "rating": one.rating,
         "timestamp": one.timestamp}
        for one in shop().interactions
    ]  # fmt: skip
    write_rows(rows)(desk, name)


def movies(desk: Desk, name: str) -> None:
    genres = ["noir", "crime", "space", "comedy"]
    lines = [f"m{i},{genres[i % 4]}\n" for i in range(20)]
    (desk.folder / name).write_text("entity_id,genre\n" + "".join(lines))


def genres(desk: Desk, name: str) -> None:
    (desk.folder / name).write_text('dark: [noir, crime]\n"*": other\n')


def texts(desk: Desk, name: str) -> None:
    write_rows(list(shop().texts("user"))[:12])(desk, name)


def read(desk: Desk, name: str) -> None:
    (desk.folder / name).write_text(sequences(readings(60)))
    rows = [json.loads(line) for line in (desk.folder / name).read_text().splitlines()]
    write_rows(rows)(desk, name)


def shipped_sids(desk: Desk, name: str) -> None:
    shutil.copy(shipped_path() / "sids.parquet", desk.folder / name)


def vectors(desk: Desk, name: str) -> None:
    """Of the books that are read in sequences."""
    values = np.random.default_rng(0).normal(size=(600, 8)).astype(np.float32)
    ids = pa.array(range(600), pa.int64())
    column = "entity_id" if name == "vectors.parquet" else "item"
    table = pa.table({column: ids, "vector": vector_column(values)})
    pq.write_table(table, desk.folder / name)


def written(*lines: str) -> Callable[[Desk, str], None]:
    """By commands, as a reader would have."""

    def write(desk: Desk, name: str) -> None:
        for line in lines:
            desk.type(line.format(name=name))

    return write


def recommender(desk: Desk) -> None:
    """What settings of a service name."""
    for name in ("target", "draft"):
        shutil.copytree(shipped_path() / name, desk.folder / name)
    desk.have("sids.parquet")
    desk.have("sequences.parquet")


def runs(desk: Desk, name: str) -> None:
    desk.have("run")
    shutil.copytree(desk.folder / "run", desk.folder / name / "monday")


SUPPLIES: dict[str, Callable[[Desk, str], None]] = {
    "users.jsonl": users, "more.jsonl": users, "users.parquet": users, "items.jsonl": items,
    "items.parquet": catalogue, "ratings.parquet": events, "clicks.parquet": events,
    "new.parquet": events, "movies.csv": movies, "genres.yaml": genres, "texts.parquet": texts,
    "sequences.parquet": read, "sids.parquet": shipped_sids, "item_vectors.parquet": vectors,
    "vectors.parquet": vectors, "all_item_vectors.parquet": vectors, "runs": runs,
    "run": written("draftrec generate users.jsonl --template kar --model MODEL --output {name}"),
    "base": written("draftrec generate users.jsonl --template kar --model MODEL --output {name}"),
    "pool": written("draftrec pool build texts.parquet --tokenizer MODEL --output {name}"),
    "pool-a": written("draftrec pool build texts.parquet --tokenizer MODEL --output {name}"),
    "pool-b": written("draftrec pool build texts.parquet --tokenizer MODEL --output {name}"),
    "target": written(
        "draftrec genrec fit sequences.parquet --sids sids.parquet --preset small --output {name}"
    ),
    "draft": written(
        "draftrec genrec teach target sequences.parquet --sids sids.parquet --output taught",
        "draftrec genrec align taught --target target --output {name}",
    ),
    "top20.parquet": written(
        "draftrec genrec recommend sequences.parquet --target target --sids sids.parquet -k 20 "
        "--output {name}"
    ),
}  # fmt: skip
