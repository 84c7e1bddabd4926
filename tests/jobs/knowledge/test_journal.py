"""The journal: every whole text of it comes back, whatever a crash did to its end."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from draftrec.core import ALL, OWN, PROMPT, Counts, Generation, IntArray, Request
from draftrec.data.files import writers as module
from draftrec.engine.text.stats import Spent
from draftrec.jobs.knowledge.shards import Clock, Entry, Journal, pieces_of, texts_in


def entry(i: int) -> Entry:
    counts = Counts(i, 2, 3, 4, 0, [1, 0, 2, 1])
    ids = np.arange(i + 1, dtype=np.int32)
    text = Generation(f"ü{i}", ids, "length", 7, counts, loss=0.1 * i)
    return Entry(i, -(2**62) - i, text, Clock(0.3 * i, Spent(0.1, 0.2 * i, 0.3, 0.4, 0.5)))


def request(i: int) -> Request:
    return Request(f"ü{i}", np.ones(3, np.int32), key=i)


def same(a: Entry, b: Entry) -> bool:
    return a.line() == b.line() and a.generation.token_ids.dtype == b.generation.token_ids.dtype


def test_texts_come_back_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    with Journal(path) as journal:
        assert journal.entries == []
        assert journal.clock == Clock()
        for i in range(3):
            journal.add(entry(i))
    with Journal(path) as again:
        assert all(same(a, entry(i)) for i, a in enumerate(again.entries))
        assert again.clock == entry(2).clock
        hashes = [entry(0).prompt_hash, 5, entry(2).prompt_hash]
        found = again.found([request(0), request(1), request(2)], hashes)
        assert list(found) == [0, 2]  # the prompt of the second one is another one now
        assert found[2].counts == entry(2).generation.counts
        assert found[2].loss == entry(2).generation.loss
    assert texts_in(path) == 3
    assert texts_in(tmp_path / "none") == 0


@pytest.mark.slow
def test_a_torn_end_is_cut_wherever_it_was_torn(tmp_path: Path) -> None:
    whole = b"".join(entry(i).line() for i in range(3))
    ends = np.cumsum([len(entry(i).line()) for i in range(3)])
    path = tmp_path / "journal"
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        kept = int((ends <= cut).sum())
        assert texts_in(path) == kept
        if cut % 50 == 0:
            with Journal(path) as journal:
                assert len(journal.entries) == kept
                journal.add(entry(9))
            assert texts_in(path) == kept + 1


@pytest.mark.parametrize("middle", [b"\0" * 80 + b"\n", b"{}\n", b"[1]\n", b"7\n"])
def test_nothing_after_a_spoilt_place_is_believed(tmp_path: Path, middle: bytes) -> None:
    path = tmp_path / "journal"
    path.write_bytes(entry(0).line() + middle + entry(1).line())
    assert texts_in(path) == 1
    with Journal(path):
        pass
    assert path.read_bytes() == entry(0).line()


def test_what_waits_reaches_the_disk_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, synced = [0.0], []
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(module.os, "fsync", lambda _: synced.append(now[0]))
    with Journal(tmp_path / "journal") as journal:
        journal.add(entry(0))
        journal.tick()
        assert not synced
        now[0] = 31.0
        journal.tick()
        journal.tick()
        now[0] = 70.0
        journal.tick()  # nothing new
        assert synced == [31.0]
        journal.add(entry(1))
    assert synced == [31.0, 70.0]


def test_where_words_came_from_is_kept_through_the_journal_and_halves_of_characters() -> None:
    content = "Sea é tales".encode()  # a token is a byte here
    sources = np.full(len(content), OWN, np.uint8)
    sources[4:5], sources[5:] = PROMPT, ALL  # é's first byte, and what follows
    made = Generation(
        "e", np.frombuffer(content, np.uint8).astype(np.int32), "eos", 1, Counts(), 0.0, sources
    )
    read = Entry.of(Entry(1, 2, made, Clock()).line()).generation
    assert read.sources is not None
    assert read.sources.tolist() == sources.tolist()

    def decode(ids: IntArray) -> str:
        return bytes(ids.tolist()).decode(errors="replace")

    assert pieces_of(read, "Sea é tales", decode) == (("model", 4), ("all", 7))
    assert pieces_of(replace(read, sources=None), "Sea é tales", decode) is None
