"""Records at addresses read as the same files do on this machine."""

from __future__ import annotations

import gzip
import json
import threading
import uuid
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from draftrec.data.files.places import RemotePath, place
from draftrec.data.files.texts import read_yaml
from draftrec.data.files.writers import replace_file
from draftrec.data.tables.readers import open_records
from draftrec.data.templates import load_template
from draftrec.errors import DraftrecError

ROWS = [{"entity_id": f"e{i}", "title": f"Title {i}"} for i in range(2000)]


def _fill(folder: Path) -> None:
    """The same rows in every form."""
    lines = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
    table = pa.Table.from_pylist(ROWS)
    (folder / "x.jsonl").write_bytes(lines)
    (folder / "x.jsonl.gz").write_bytes(gzip.compress(lines))
    with pa.output_stream(folder / "x.csv.zst", compression="zstd") as file:
        file.write(b"entity_id,title\n")
        file.write("".join(f"{r['entity_id']},{r['title']}\n" for r in ROWS).encode())
    pq.write_table(table, folder / "x.parquet", row_group_size=100)
    for name, part in (("run/part-2.parquet", table[:900]), ("run/part-10.parquet", table[900:])):
        (folder / name).parent.mkdir(exist_ok=True)
        pq.write_table(part, folder / name)
    (folder / "run/manifest.json").write_text("{}")
    for group in ("g1", "g2"):
        (folder / f"hive/group={group}").mkdir(parents=True)
        pq.write_table(table[:3], folder / f"hive/group={group}/a.parquet")


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    _fill(folder)
    return folder


@pytest.fixture(scope="module")
def there(here: Path) -> RemotePath:
    """A copy of the folder in memory."""
    root = RemotePath(f"memory://{uuid.uuid4().hex}")
    for file in here.rglob("*"):
        if file.is_file():
            replace_file(root / str(file.relative_to(here)), file.read_bytes())
    return root


@pytest.fixture(scope="module")
def web(here: Path) -> Iterator[str]:
    """The folder behind a server of this machine."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=here)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


ALL = ("x.jsonl", "x.jsonl.gz", "x.csv.zst", "x.parquet", "run", "run/*.parquet", "hive")


@pytest.mark.parametrize("name", ALL)
def test_a_store_holds_what_a_folder_does(here: Path, there: RemotePath, name: str) -> None:
    own, other = open_records(here / name), open_records(there / name)
    rows = [row.values for row in other.rows()]
    assert rows == [row.values for row in own.rows()]
    assert len(rows) == (6 if name == "hive" else len(ROWS))
    assert [f.name for f in other.files] == [f.name for f in own.files]
    assert other.fingerprint() == own.fingerprint()
    assert open_records(str(there / name)).has("title")
    assert [row.values for row in open_records(f"file://{here / name}").rows()] == rows


@pytest.mark.slow
@pytest.mark.parametrize("name", ["x.jsonl", "x.jsonl.gz", "x.csv.zst", "x.parquet"])
@pytest.mark.parametrize("query", ["", "?X-Signature=a.b*c[d]"])
def test_the_web_is_read_file_by_file(web: str, here: Path, name: str, query: str) -> None:
    source = open_records(f"{web}/{name}{query}")
    assert [r.values for r in source.rows()] == [r.values for r in open_records(here / name).rows()]
    assert source.fingerprint() == open_records(here / name).fingerprint()


@pytest.mark.parametrize("name", ["none.csv", "run/none.parquet", "none-*.csv", "none"])
def test_what_is_not_there_is_said_in_one_sentence(web: str, there: RemotePath, name: str) -> None:
    for location in (f"{web}/{name}", str(there / name)):
        with pytest.raises(DraftrecError, match=r"does not exist|no file matches") as caught:
            open_records(location)
        assert location in str(caught.value)


def test_a_server_that_cannot_be_reached_is_named() -> None:
    with pytest.raises(DraftrecError, match=r"cannot read http://127.0.0.1:1/x.csv: ") as caught:
        open_records("http://127.0.0.1:1/x.csv?X-Signature=s3cret")
    assert "s3cret" not in str(caught.value)


def test_archives_are_read_through(here: Path) -> None:
    with zipfile.ZipFile(here / "x.zip", "w") as archive:
        archive.write(here / "x.jsonl", "deep/x.jsonl")
    source = open_records(f"zip://deep/x.jsonl::file://{here / 'x.zip'}")
    assert [row.values for row in source.rows()] == ROWS


def test_a_damaged_file_elsewhere_is_named(there: RemotePath) -> None:
    replace_file(there / "bad.parquet", b"PAR1 no")
    with pytest.raises(DraftrecError, match=r"memory://.*bad.parquet cannot be read"):
        open_records(there / "bad.parquet")


@pytest.mark.slow
def test_templates_and_settings_lie_elsewhere_too(there: RemotePath, web: str, here: Path) -> None:
    for name, content in (("t.j2", "Name: {{ title }}"), ("s.yaml", "a: x")):
        replace_file(there / name, content.encode())
        replace_file(here / name, content.encode())
    replace_file(there / "t.schema.json", b'{"type": "string"}')
    template = load_template(str(there / "t.j2"), "item")
    assert template.render({"title": "x"}) == "Name: x"
    assert template.schema == '{"type": "string"}'
    again = load_template(f"{web}/t.j2?X-Signature=s3cret", "item")
    assert again.render({"title": "x"}) == "Name: x"
    assert "s3cret" not in again.name
    assert read_yaml(place(f"{web}/s.yaml"), "settings") == {"a": "x"}
