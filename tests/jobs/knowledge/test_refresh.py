"""Refreshing a run: unchanged prompts keep their text, the others draft from their own."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from draftrec.config import AcceptConfig
from draftrec.core import Generation, Request
from draftrec.errors import DraftrecError, Interrupted
from draftrec.jobs.knowledge import refresh
from draftrec.jobs.knowledge.job import Watcher
from draftrec.jobs.knowledge.refresh import PreviousRun
from draftrec.models.prompting import ChatTemplate
from tests.fakes import FakeGenerator
from tests.jobs.knowledge.test_job import data_of, do, make_spec, refusal, run_killed


class Remembering(FakeGenerator):
    """Notes what it was asked to write."""

    asked: list[Request]

    def _write(self, request: Request) -> Generation:
        self.asked = [*getattr(self, "asked", []), request]
        return super()._write(request)


def write(folder: Path, prompts: dict[str, str]) -> None:
    lines = [json.dumps({"entity_id": i, "prompt": p}) for i, p in prompts.items()]
    (folder / "in.jsonl").write_text("\n".join(lines) + "\n")


def rows(run: Path) -> dict[str, dict[str, Any]]:
    tables = [pq.read_table(p) for p in sorted(run.glob("part-*.parquet"))]
    return {row["entity_id"]: row for table in tables for row in table.to_pylist()}


PROMPTS = {f"u{i}": f"about {i}" for i in range(13)}


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A finished run over PROMPTS in shards of five."""
    write(tmp_path, PROMPTS)
    do(make_spec(tmp_path, "old"))
    return tmp_path / "old"


def test_unchanged_prompts_keep_their_text_and_the_others_draft_from_it(
    old: Path, tmp_path: Path
) -> None:
    changed = {"u3": "another story", "u11": "news of 11"}
    write(tmp_path, {**PROMPTS, **changed, "new": "about someone new"})
    generator = Remembering()
    result = do(make_spec(tmp_path, "new", previous=old), generator)
    before, after = rows(old), rows(tmp_path / "new")
    assert [r.entity_id for r in generator.asked] == ["u3", "u11", "new"]
    earlier = [r.previous_ids for r in generator.asked]
    assert [None if e is None else e.tolist() for e in earlier] == [
        before["u3"]["token_ids"],
        before["u11"]["token_ids"],
        None,
    ]
    for name in PROMPTS:
        assert (after[name] == before[name]) == (name not in changed)
    assert list(after) == [*PROMPTS, "new"]
    assert result.summary["kept"] == 11
    assert result.summary["entities"] == 14
    new = sum(after[i]["new_tokens"] for i in ("u3", "u11", "new"))
    assert result.summary["new_tokens"] == new


def test_a_refresh_finds_entities_in_any_order(old: Path, tmp_path: Path) -> None:
    write(tmp_path, dict(reversed(PROMPTS.items())))
    generator = Remembering()
    do(make_spec(tmp_path, "new", previous=old), generator)
    assert not generator.decoded
    assert rows(tmp_path / "new") == rows(old)


def test_a_refresh_can_be_refreshed(old: Path, tmp_path: Path) -> None:
    write(tmp_path, {**PROMPTS, "u0": "changed"})
    do(make_spec(tmp_path, "second", previous=old))
    generator = Remembering()
    do(make_spec(tmp_path, "third", previous=tmp_path / "second"), generator)
    assert not generator.decoded
    assert rows(tmp_path / "third") == rows(tmp_path / "second")


def test_entities_of_one_hash_are_told_apart(
    old: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refresh, "_hash", lambda entity_id: len(entity_id))
    found = PreviousRun(old).find(["u3", "u11", "zz"])
    assert {name: [e.text for e in texts] for name, texts in found.items()} == {
        name: [rows(old)[name]["text"]] for name in ("u3", "u11")
    }


def test_another_model_keeps_nothing_and_says_so(old: Path, tmp_path: Path) -> None:
    class Notes(Watcher):
        heard = ""

        def note(self, text: str) -> None:
            self.heard += text

    generator = Remembering(fingerprint={"model": "other", "tokenizer": "bytes"})
    watcher = Notes()
    do(make_spec(tmp_path, "new", previous=old), generator, watcher=watcher)
    assert generator.decoded == 13
    assert all(r.previous_ids is not None for r in generator.asked)
    assert "written with other model" in watcher.heard


def test_other_acceptance_settings_keep_nothing(old: Path, tmp_path: Path) -> None:
    spec = make_spec(tmp_path, "new", previous=old)
    generate = replace_accept(spec.config.generate)
    spec = replace(spec, config=spec.config.model_copy(update={"generate": generate}))
    generator = Remembering()
    do(spec, generator)
    assert generator.decoded == 13


def replace_accept(generate: Any) -> Any:
    return generate.model_copy(update={"accept": AcceptConfig(temperature=0.7)})


def test_another_tokenizer_is_refused(old: Path, tmp_path: Path) -> None:
    generator = FakeGenerator(fingerprint={"model": "fake", "tokenizer": "words"})
    with pytest.raises(DraftrecError, match="another tokenizer"):
        do(make_spec(tmp_path, "new", previous=old), generator)


def test_folders_that_cannot_be_refreshed_are_refused(old: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "nowhere", tmp_path / "empty"):
        message = refusal(lambda path=path: do(make_spec(tmp_path, "new", previous=path)))
        assert "no finished part of a run" in message
    assert "one folder" in refusal(lambda: do(make_spec(tmp_path, "old", previous=old)))
    (old / "part-00001.parquet").write_bytes(b"short")
    message = refusal(lambda: do(make_spec(tmp_path, "new", previous=old)))
    assert "changed since" in message
    assert "--overwrite" not in message, "it would give up what is written, not mend what is read"


@pytest.mark.slow
def test_a_killed_refresh_resumes_to_the_same_bytes(old: Path, tmp_path: Path) -> None:
    write(tmp_path, {**PROMPTS, **{f"u{i}": f"new {i}" for i in range(0, 13, 2)}})
    do(make_spec(tmp_path, "whole", previous=old))
    run_killed(make_spec(tmp_path, "killed", previous=old), [0, 2, 5])
    assert data_of(tmp_path / "killed") == data_of(tmp_path / "whole")


def test_a_refresh_is_not_continued_from_another_run(old: Path, tmp_path: Path) -> None:
    do(make_spec(tmp_path, "other", limit=7))
    write(tmp_path, {name: f"{p}!" for name, p in PROMPTS.items()})
    spec = make_spec(tmp_path, "new", previous=old)
    generator = FakeGenerator()
    with pytest.raises(Interrupted):
        do(spec, generator, should_stop=lambda: generator.decoded >= 5)
    message = refusal(lambda: do(replace(spec, previous=tmp_path / "other")))
    assert "previous changed" in message


class TestWhyNothingWasKept:
    def refresh(self, old: Path, generator: FakeGenerator | None = None, **spec: Any) -> list[str]:
        notes: list[str] = []

        class Notes(Watcher):
            def note(self, text: str) -> None:
                notes.append(text)

        made = make_spec(old.parent, "new", previous=old, **spec)
        result = do(made, generator or FakeGenerator(), watcher=Notes())
        assert result.summary["kept"] == 0
        return notes

    def test_other_prompts(self, old: Path, tmp_path: Path) -> None:
        write(tmp_path, {name: f"{prompt}!" for name, prompt in PROMPTS.items()})
        [note] = self.refresh(old)
        assert f"no text of {old} was kept: the prompts of all 13 entities" in note

    def test_other_ids(self, old: Path, tmp_path: Path) -> None:
        write(tmp_path, {f"x{name}": prompt for name, prompt in PROMPTS.items()})
        [note] = self.refresh(old)
        assert "it has none of these 13 entities; are the ids the same?" in note

    def test_another_form_of_all_prompts_is_said_before_the_work(self, old: Path) -> None:
        first, last = self.refresh(old, FakeGenerator(has_chat_template=True), chat=True)
        assert "since prompts are other now: other chat" in first
        assert "the prompts of all 13" in last

    def test_another_date(self, tmp_path: Path) -> None:
        write(tmp_path, PROMPTS)
        dated = {"has_chat_template": True, "chat_template": ChatTemplate("a", dated=True)}
        then, now = date(2026, 1, 2), date(2026, 1, 3)
        do(make_spec(tmp_path, "old", chat_date=then), FakeGenerator(**dated))
        old = tmp_path / "old"
        first, _ = self.refresh(old, FakeGenerator(**dated), chat_date=now)
        assert "writes the date, which was 2026-01-02 (--chat-date 2026-01-02 keeps it)" in first
        spec = make_spec(tmp_path, "same", previous=old, chat_date=then)
        assert do(spec, FakeGenerator(**dated)).summary["kept"] == 13

    def test_other_settings(self, old: Path) -> None:
        [note] = self.refresh(old, seed=1)
        assert "was written with other seed: no text is kept" in note
