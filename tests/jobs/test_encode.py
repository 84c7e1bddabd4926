"""The encoding job: what it writes, and that no interruption changes a byte of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from draftrec.config import EncodeConfig, EncoderConfig
from draftrec.data.files.writers import TEMPORARY
from draftrec.data.vectors import read_vectors, vectors_schema
from draftrec.errors import DraftrecError
from draftrec.jobs.encode.inputs import EncodeSpec
from draftrec.jobs.encode.job import run_encode
from draftrec.jobs.ledger import JobResult
from draftrec.models.encoders import Document, Encoded, cut
from tests.fakes import Killed

ROOM, DIM = 6, 4


@dataclass
class FakeEncoder:
    """A vector per text that depends on the words which it reads, and on nothing else."""

    overflow: str = "truncate"
    fingerprint: str = "fake"
    on_document: Callable[[int], None] | None = None
    seen: list[Document] = field(default_factory=list)
    fitted: list[str] = field(default_factory=list)
    name, dim, pooling, max_tokens = "fake", DIM, "words", ROOM + 2

    def encode(self, texts: Seq[str]) -> Any:
        raise AssertionError("jobs encode documents")

    def encode_documents(self, documents: Seq[Document], watch: Any = None) -> Encoded:
        rows = []
        for i, document in enumerate(documents):
            if self.on_document:
                self.on_document(len(self.seen))
            self.seen.append(document)
            first, second = document.knowledge.split(), document.history.split()
            kept = cut(len(first), len(second), ROOM, self.overflow)  # type: ignore[arg-type]
            read = (first + second)[: sum(kept.windows)]
            vector = np.frombuffer(hashlib.sha256(" ".join(read).encode()).digest()[:DIM], np.uint8)
            counts = (len(read), kept.knowledge_lost, kept.history_lost, len(kept.windows))
            rows.append((vector.astype(np.float32) * bool(read), counts))
            if watch:
                watch(i + 1, len(documents))
        counts = np.array([row[1] for row in rows], np.int64).reshape(-1, 4).T
        return Encoded(np.array([row[0] for row in rows], np.float32).reshape(-1, DIM), *counts)


def write(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def texts(count: int = 23) -> list[dict[str, Any]]:
    """Every fifth text occurred before, every seventh is missing, some are too long."""
    made = []
    for i in range(count):
        text = None if i % 7 == 6 else " ".join([f"w{i - (i % 5 == 1)}"] * (1 + i % 9))
        made.append({"entity_id": f"u{i}", "text": "again" if i % 5 == 4 and text else text})
    return made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "texts.jsonl", texts())
    return tmp_path


def make_spec(folder: Path, output: str = "v.parquet", **options: Any) -> EncodeSpec:
    values = {"encoder": "fake", "shard_size": 5, **options.pop("config", {})}
    settings = EncoderConfig(**options.pop("settings", {}))
    config = EncodeConfig(settings=settings, **values)
    source = options.pop("input", folder / "texts.jsonl")
    return EncodeSpec(config, str(source), folder / output, **options)


def do(spec: EncodeSpec, encoder: FakeEncoder | None = None, watch: Any = None) -> JobResult:
    made = encoder or FakeEncoder()

    def load(config: EncodeConfig, fit_on: Iterable[str]) -> FakeEncoder:
        if config.encoder.startswith("hashed"):
            made.fitted = list(fit_on)
        return made

    return run_encode(spec, watch, load=load)


def refuses(words: str, spec: EncodeSpec, encoder: FakeEncoder | None = None) -> None:
    with pytest.raises(DraftrecError, match=words) as error:
        do(spec, encoder)
    assert "\n" not in str(error.value)


def bytes_of(folder: Path, output: str = "v.parquet") -> tuple[bytes, bytes]:
    rejected = folder / f"{output}.rejected.jsonl"
    return (folder / output).read_bytes(), rejected.read_bytes() if rejected.exists() else b""


def test_a_row_per_text_in_their_order(folder: Path) -> None:
    encoder = FakeEncoder()
    found = do(make_spec(folder), encoder).summary
    rows = [row for row in texts() if row["text"]]
    vectors = read_vectors(folder / "v.parquet")
    assert vectors.ids == [row["entity_id"] for row in rows]
    assert pq.read_schema(folder / "v.parquet").equals(vectors_schema(DIM))
    wanted = FakeEncoder().encode_documents([Document(row["text"]) for row in rows])
    np.testing.assert_array_equal(vectors.vectors, wanted.vectors)
    lost = int(wanted.knowledge_lost.sum())
    assert lost > 0
    assert (found["texts"], found["rejected"], found["dim"]) == (20, 3, DIM)
    assert (found["tokens"], found["tokens_lost"]) == (int(wanted.tokens.sum()), lost)
    assert found["knowledge_truncated"] == int((wanted.knowledge_lost > 0).sum())
    assert (found["encoder"], found["pooling"]) == ("fake", "words")
    assert found["texts_per_second"] > 0
    assert not (folder / "v.parquet.parts").exists()


def test_equal_texts_are_encoded_once(folder: Path) -> None:
    encoder = FakeEncoder()
    found = do(make_spec(folder), encoder).summary
    different = {row["text"] for row in texts() if row["text"]}
    assert len(different) < 20
    assert len(encoder.seen) == found["encoded"] == len(different)
    assert {d.knowledge for d in encoder.seen} == different


def test_missing_texts_are_rejected_with_a_reason(folder: Path) -> None:
    rows = [*texts(6), {"entity_id": "e", "text": ""}, {"entity_id": "s", "text": "  "},
            {"entity_id": "n", "text": 5}, {"entity_id": None, "text": "w"}]  # fmt: skip
    write(folder / "texts.jsonl", rows)
    found = do(make_spec(folder)).summary
    lines = (folder / "v.parquet.rejected.jsonl").read_text().splitlines()
    reasons = {row["entity_id"]: row["reason"] for row in map(json.loads, lines)}
    assert reasons == {
        "e": "the text is empty",
        "s": "the text holds no token that the encoder knows",
        "n": "text is int, not text",
        None: "entity_id is null",
    }
    assert (found["texts"], found["rejected"]) == (6, 4)


def test_texts_that_are_refused_are_rejected_with_their_size(folder: Path) -> None:
    rows = [{"entity_id": "a", "text": "w " * 9}, {"entity_id": "b", "text": "w"}]
    write(folder / "texts.jsonl", rows)
    found = do(make_spec(folder), FakeEncoder("refuse")).summary
    assert (found["texts"], found["rejected"], found["tokens_lost"]) == (1, 1, 0)
    [line] = (folder / "v.parquet.rejected.jsonl").read_text().splitlines()
    assert json.loads(line)["reason"] == (
        "the text has 9 tokens, the encoder takes 8 with its special ones"
    )


class TestHistory:
    def test_it_comes_behind_the_knowledge_and_is_cut_first(self, folder: Path) -> None:
        write(
            folder / "records.jsonl",
            [
                {"entity_id": "u1", "prompt": "h1 h2 h3 h4 h5 h6"},
                {"entity_id": "u2", "prompt": None},
            ],
        )
        rows = [{"entity_id": f"u{i}", "text": f"k{i} k k"} for i in range(4)]
        write(folder / "texts.jsonl", rows)
        encoder = FakeEncoder()
        spec = make_spec(folder, history=str(folder / "records.jsonl"))
        found = do(spec, encoder).summary
        assert encoder.seen[1] == Document("k1 k k", "h1 h2 h3 h4 h5 h6")
        assert (found["history_truncated"], found["knowledge_truncated"]) == (1, 0)
        assert (found["tokens_lost"], found["without_history"]) == (3, 3)
        refuses("history left out", make_spec(folder))

    def test_equal_texts_with_other_histories_differ(self, folder: Path) -> None:
        write(folder / "texts.jsonl", [{"entity_id": i, "text": "k"} for i in range(3)])
        records = [{"entity_id": i, "prompt": f"h{i % 2}"} for i in range(3)]
        write(folder / "records.jsonl", records)
        do(make_spec(folder, history=str(folder / "records.jsonl")))
        found = read_vectors(folder / "v.parquet").vectors
        assert (found[0] == found[2]).all()
        assert (found[0] != found[1]).any()

    @pytest.mark.parametrize(
        "history", [["h1", "h2"], [{"title": "h1", "rating": 5}, {"title": "h2"}]]
    )
    def test_of_a_list_the_titles_are_read(self, folder: Path, history: Any) -> None:
        write(folder / "records.jsonl", [{"entity_id": "u1", "prompt": history}])
        encoder = FakeEncoder()
        do(make_spec(folder, history=str(folder / "records.jsonl")), encoder)
        assert [d.history for d in encoder.seen if d.history] == ["h1\nh2"]

    @pytest.mark.parametrize(
        ("rows", "words"),
        [
            ([{"entity_id": "a", "history": "h"}], r"no column 'prompt'.*--history-column"),
            ([{"entity_id": "a", "prompt": [1]}], r"line 1: prompt is neither text nor a list"),
            ([{"entity_id": "a", "prompt": [{"name": "t"}]}], "objects with a title"),
            ([{"entity_id": "a", "prompt": 7}], "neither text"),
            ([{"entity_id": "a", "prompt": "h"}] * 2, "'a' is repeated"),
        ],
    )
    def test_unusable_ones_are_refused(self, folder: Path, rows: Any, words: str) -> None:
        write(folder / "records.jsonl", rows)
        refuses(words, make_spec(folder, history=str(folder / "records.jsonl")))


def test_what_a_hashed_encoder_is_fitted_on(folder: Path) -> None:
    write(folder / "records.jsonl", [{"entity_id": "u0", "prompt": "h"}])
    write(folder / "other.jsonl", [{"entity_id": "x", "text": "other"}])
    encoder, config = FakeEncoder(), {"encoder": "hashed:4"}
    do(make_spec(folder, config=config, history=str(folder / "records.jsonl")), encoder)
    assert encoder.fitted[:2] == [f"{texts()[0]['text']}\nh", texts()[1]["text"]]
    fit_on = (str(folder / "other.jsonl"),)
    do(make_spec(folder, "other.parquet", config=config, fit_on=fit_on), encoder)
    assert encoder.fitted == ["other"]
    refuses("fit_on left out", make_spec(folder, "other.parquet", config=config))
    refuses("--fit-on fits the hashed encoder", make_spec(folder, "third.parquet", fit_on=fit_on))


class TestRunFolders:
    def make(self, folder: Path) -> Path:
        run = folder / "run"
        run.mkdir()
        for part in range(2):
            table = pa.table({"entity_id": [f"a{part}"], "text": [f"w{part}"]})
            pq.write_table(table, run / f"part-0000{part}.parquet")
            pq.write_table(table.select(["entity_id"]), run / f"stats-0000{part}.parquet")
        return run

    @pytest.mark.parametrize("pattern", ["", "/*.parquet"])
    def test_statistics_are_no_texts(self, folder: Path, pattern: str) -> None:
        do(make_spec(folder, input=f"{self.make(folder)}{pattern}"))
        assert read_vectors(folder / "v.parquet").ids == ["a0", "a1"]

    def test_a_run_that_is_not_finished_is_refused(self, folder: Path) -> None:
        run = self.make(folder)
        manifest = {"format": "draftrec-run", "finished": False}
        (run / "manifest.json").write_text(json.dumps(manifest))
        refuses("the run in .* is not finished", make_spec(folder, input=run))
        (run / "manifest.json").write_text(json.dumps({**manifest, "finished": True}))
        assert do(make_spec(folder, input=run)).summary["texts"] == 2


class TestInterruption:
    def whole(self, folder: Path) -> tuple[bytes, bytes]:
        do(make_spec(folder, "whole.parquet"))
        return bytes_of(folder, "whole.parquet")

    @pytest.mark.slow
    @pytest.mark.parametrize("at", range(0, 14, 3))
    def test_a_killed_job_goes_on_to_the_same_bytes(self, folder: Path, at: int) -> None:
        def kill(seen: int) -> None:
            if seen == at:
                raise Killed

        with pytest.raises(Killed):
            do(make_spec(folder), FakeEncoder(on_document=kill))
        assert not (folder / "v.parquet").exists()
        encoder = FakeEncoder()
        found = do(make_spec(folder), encoder).summary
        assert bytes_of(folder) == self.whole(folder)
        assert len(encoder.seen) <= found["encoded"] - at + 5
        manifest = json.loads((folder / "whole.parquet.manifest.json").read_text())
        again = json.loads((folder / "v.parquet.manifest.json").read_text())
        for one in (manifest, again):
            del one["totals"]["seconds"]
        assert manifest == again

    @pytest.mark.slow
    @pytest.mark.parametrize("step", ["stream_parquet", "_json", "clear"])
    def test_a_job_killed_at_its_end_ends_again(
        self, folder: Path, step: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from draftrec.jobs.encode import files as module

        def kill(*_: Any) -> None:
            raise Killed

        place: Any = module.Ledger if step == "clear" else module
        real, calls = getattr(place, step), []

        def maybe(*args: Any) -> Any:
            calls.append(args)
            finishing = step == "stream_parquet" or len(calls) > (1 if step == "clear" else 6)
            return kill() if finishing else real(*args)

        with monkeypatch.context() as patch:
            patch.setattr(place, step, maybe)
            with pytest.raises(Killed):
                do(make_spec(folder))
        encoder = FakeEncoder()
        do(make_spec(folder), encoder)
        assert encoder.seen == []
        assert bytes_of(folder) == self.whole(folder)
        assert not (folder / "v.parquet.parts").exists()

    def test_parts_that_a_kill_left_of_a_finished_job_go_with_the_next_command(
        self, folder: Path
    ) -> None:
        do(make_spec(folder))
        parts = folder / "v.parquet.parts"
        parts.mkdir()
        (parts / "part-00001.parquet").write_bytes(b"joined already")
        assert not do(make_spec(folder)).fresh
        assert not parts.exists()

    def test_what_a_crash_left_is_not_taken_for_finished(self, folder: Path) -> None:
        with pytest.raises(Killed):
            do(make_spec(folder), FakeEncoder(on_document=_kill_at(9)))
        parts = folder / "v.parquet.parts"
        (parts / "part-00002.parquet").write_bytes(b"half")
        (parts / f"part-00002.jsonl{TEMPORARY}").write_bytes(b"half")
        (parts / "notes.txt").write_text("mine")
        do(make_spec(folder))
        assert bytes_of(folder) == self.whole(folder)
        assert [path.name for path in parts.iterdir()] == ["notes.txt"]

    def test_a_changed_part_is_noticed(self, folder: Path) -> None:
        with pytest.raises(Killed):
            do(make_spec(folder), FakeEncoder(on_document=_kill_at(9)))
        (folder / "v.parquet.parts" / "part-00000.parquet").write_bytes(b"other")
        refuses("part-00000.parquet is missing or was changed", make_spec(folder))


def _kill_at(at: int) -> Callable[[int], None]:
    def kill(seen: int) -> None:
        if seen == at:
            raise Killed

    return kill


class TestSecondRun:
    def test_the_same_again_does_nothing(self, folder: Path) -> None:
        first = do(make_spec(folder))
        encoder = FakeEncoder()
        again = do(make_spec(folder), encoder)
        assert (first.fresh, again.fresh, encoder.seen) == (True, False, [])
        assert again.summary == first.summary

    def test_another_process_may_have_finished_first(self, folder: Path) -> None:
        def load(*_: Any) -> FakeEncoder:
            do(make_spec(folder))
            return FakeEncoder()

        assert run_encode(make_spec(folder), load=load).fresh is False
        assert not (folder / "v.parquet.parts").exists()

    def test_another_is_refused_by_name(self, folder: Path) -> None:
        do(make_spec(folder))
        refuses("batch_size was 32, now 8", make_spec(folder, settings={"batch_size": 8}))
        refuses("max_tokens was unset, now 8", make_spec(folder, settings={"max_tokens": 8}))
        refuses("encoder was fake, now other", make_spec(folder, config={"encoder": "other"}))
        write(folder / "texts.jsonl", texts(22))
        refuses("input changed.*--overwrite", make_spec(folder))

    def test_other_weights_do_not_continue_a_job(self, folder: Path) -> None:
        with pytest.raises(Killed):
            do(make_spec(folder), FakeEncoder(on_document=_kill_at(9)))
        refuses("encoder changed", make_spec(folder), FakeEncoder(fingerprint="trained on"))

    def test_overwriting_starts_again(self, folder: Path) -> None:
        do(make_spec(folder))
        settings = {"batch_size": 8}
        spec = make_spec(folder, settings=settings, overwrite=True)
        with pytest.raises(Killed):
            do(spec, FakeEncoder(on_document=_kill_at(9)))
        assert len(read_vectors(folder / "v.parquet").ids) == 20  # the old ones, until then
        write(folder / "texts.jsonl", texts(5))
        do(make_spec(folder, overwrite=True))
        assert len(read_vectors(folder / "v.parquet").ids) == 5
        assert not (folder / "v.parquet.rejected.jsonl").exists()

    @pytest.mark.slow
    def test_a_removed_or_changed_file(self, folder: Path) -> None:
        do(make_spec(folder))
        whole = bytes_of(folder)
        (folder / "v.parquet").unlink()
        do(make_spec(folder))
        assert bytes_of(folder) == whole
        (folder / "v.parquet").write_bytes(b"other")
        refuses("v.parquet is missing or was changed", make_spec(folder))
        (folder / "v.parquet.manifest.json").unlink()
        refuses("exists and has no manifest beside it", make_spec(folder))
        do(make_spec(folder, overwrite=True))
        assert bytes_of(folder) == whole


class TestBadInput:
    def test_unusable_texts_are_refused(self, folder: Path) -> None:
        refuses("does not exist", make_spec(folder, input=folder / "nowhere"))
        refuses("--text-column", make_spec(folder, config={"text_column": "answer"}))
        write(folder / "texts.jsonl", [{"entity_id": "a", "text": "w"}] * 2)
        refuses("'a' is repeated", make_spec(folder))
        assert {p.name for p in folder.iterdir()} == {"texts.jsonl"}

    def test_unusable_outputs_are_refused(self, folder: Path) -> None:
        refuses(r"must end in \.parquet", make_spec(folder, "v.npy"))
        (folder / "f.parquet").mkdir()
        refuses("is a folder", make_spec(folder, "f.parquet"))
        pq.write_table(pa.table({"entity_id": ["a"], "text": ["w"]}), folder / "t.parquet")
        refuses("is the input", make_spec(folder, "t.parquet", input=folder / "t.parquet"))


def test_texts_that_come_while_a_job_runs_are_not_its(folder: Path) -> None:
    do(make_spec(folder, "whole.parquet"))

    def more(done: int, _: int) -> None:
        with (folder / "texts.jsonl").open("a") as file:
            file.write('{"entity_id": "late", "text": "new"}\n' * (done < 6))

    do(make_spec(folder), watch=more)
    assert bytes_of(folder)[0] == bytes_of(folder, "whole.parquet")[0]


def test_progress_covers_all_records(folder: Path) -> None:
    seen: list[tuple[int, int]] = []
    do(make_spec(folder), watch=lambda *at: seen.append(at))
    assert seen[0] == (0, 23)
    assert seen[-1] == (23, 23)
    assert [at for at, _ in seen] == sorted(at for at, _ in seen)
    assert len(seen) > 10
