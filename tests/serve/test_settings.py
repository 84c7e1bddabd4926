"""Settings files: what they may hold, and what is said of the rest."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from draftrec.errors import DraftrecError
from draftrec.serve.settings import demo_settings, load_settings, shown_settings

GOOD = """
port: 0
recommend: {target: t, sids: s.parquet, sequences: q.parquet, draft: items, settings: {k: 7}}
knowledge: {generate: {target: {model: m}, accept: {accept: relaxed}}}
limits: {queue: 64, records: 8}
keys: [{name: shop, sha256: %s, admin: true}]
rate: {per_second: 2.5}
""" % ("aB" * 32)


def test_a_settings_file_is_read_with_its_defaults(tmp_path: Path) -> None:
    path = tmp_path / "serve.yaml"
    path.write_text(GOOD)
    found = load_settings(path)
    assert found.recommend
    assert found.recommend.settings.k == 7
    assert found.recommend.settings.item_item.last == 3
    assert found.knowledge
    assert found.knowledge.generate.accept.accept == "relaxed"
    assert found.keys[0].sha256 == "ab" * 32
    assert (found.host, found.rate and found.rate.burst) == ("127.0.0.1", 20)
    assert demo_settings().host == "127.0.0.1"


def test_the_example_is_a_settings_file(tmp_path: Path) -> None:
    """But for its key, which must be changed."""
    text = (Path(__file__).parents[2] / "deploy" / "serve.example.yaml").read_text()
    path = tmp_path / "serve.yaml"
    path.write_text(text)
    with pytest.raises(DraftrecError, match="change-me"):
        load_settings(path)
    path.write_text(text.replace(hashlib.sha256(b"change-me").hexdigest(), "ab" * 32))
    found = load_settings(path)
    assert found.recommend
    assert found.knowledge
    assert found.keys


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("port: 1", "there is nothing to serve"),
        ("", "must hold `name: value` lines"),
        ("[1, 2]", "must hold `name: value` lines"),
        (GOOD + "prot: 1", "unknown name prot"),
        (GOOD.replace("k: 7", "kk: 7"), "unknown name recommend.settings.kk"),
        (GOOD.replace("k: 7", "k: 0"), "recommend.settings.k: Input should be"),
        (
            GOOD.replace("k: 7", "k: 7, item_item: {lst: 2}"),
            "unknown name recommend.settings.item_item.lst",
        ),
        (
            GOOD.replace("k: 7", "k: 7, item_item: {last: 0}"),
            "recommend.settings.item_item.last: Input should be",
        ),
        (
            GOOD.replace("draft: items", "draft: items, columns: {usr: u}"),
            "unknown name recommend.columns.usr",
        ),
        (GOOD.replace("sequences: q.parquet, ", ""), "draft: items needs sequences"),
        (
            GOOD.replace("sequences: q.parquet, ", "")
            .replace("draft: items", "draft: none")
            .replace("k: 7", "k: 7, blend: 0.1"),
            "blend needs sequences",
        ),
        (GOOD.replace("k: 7", "k: 7, blend_item_model: 0.1"), "belong together"),
        (GOOD.replace("records: 8", "records: 80"), "records must not be more than queue"),
        (GOOD.replace("aB" * 32, "secret"), "64 hexadecimal digits"),
        (GOOD.replace("2.5", "0"), "rate.per_second"),
        (GOOD + "keys: {", "cannot be read"),
        (GOOD.replace("accept: relaxed", "temperature: 1, n: 2"), "accept: n must be 1"),
        (GOOD.replace("accept: relaxed", "n: 2"), "would all be the same with temperature 0"),
    ],
)
def test_other_files_are_refused_with_a_sentence(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "serve.yaml"
    path.write_text(text)
    with pytest.raises(DraftrecError) as caught:
        load_settings(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert "secret" not in str(caught.value), "a key given by mistake must not reach a log"


def test_two_keys_have_two_names(tmp_path: Path) -> None:
    path = tmp_path / "serve.yaml"
    key = "{name: shop, sha256: %s}" % ("ab" * 32)
    path.write_text(f"recommend: {{target: t, sids: s}}\nkeys: [{key}, {key}]")
    with pytest.raises(DraftrecError, match="same name"):
        load_settings(path)
    with pytest.raises(DraftrecError, match="cannot be read"):
        load_settings(tmp_path / "nowhere.yaml")


def test_settings_are_shown_with_names_where_anybody_may_look(tmp_path: Path) -> None:
    path = tmp_path / "serve.yaml"
    path.write_text(f"""
recommend: {{target: {tmp_path}/secret/target, draft: {tmp_path}/secret/draft, sids: "memory://inner/sids.parquet",
  sequences: {tmp_path}/secret/sequences.parquet}}
knowledge:
  pool: {tmp_path}/secret/pool
  generate: {{target: {{model: owner/model, drafter: "{tmp_path}/secret/head"}}}}
runs: [{tmp_path}/secret/run]
cors_origins: ["https://shop.example"]
keys: [{{name: shop, sha256: {hashlib.sha256(b"a long one").hexdigest()}}}]
""")
    settings = load_settings(path)
    shown = shown_settings(settings, paths=False)
    text = json.dumps(shown)
    assert "secret" not in text
    assert "inner" not in text
    recommend, knowledge = shown["recommend"], shown["knowledge"]
    names = [recommend[name] for name in ("target", "draft", "sids", "sequences")]
    assert names == ["target", "draft", "sids.parquet", "sequences.parquet"]
    assert (knowledge["pool"], shown["runs"]) == ("pool", ["run"])
    model = knowledge["generate"]["target"]
    assert (model["model"], model["drafter"]) == ("owner/model", "head")
    assert shown["cors_origins"] == ["https://shop.example"]
    whole = shown_settings(settings, paths=True)
    assert whole["recommend"]["target"] == f"{tmp_path}/secret/target"
    assert whole["recommend"]["sids"] == "memory://inner/sids.parquet"
    assert json.dumps(whole)
    assert "keys" not in whole
    assert "keys" not in shown


def test_pages_that_need_a_key_need_keys(tmp_path: Path) -> None:
    path = tmp_path / "serve.yaml"
    path.write_text(GOOD + "monitoring: key\n")
    assert load_settings(path).monitoring == "key"
    path.write_text("knowledge: {generate: {target: {model: m}}}\nmonitoring: key\n")
    with pytest.raises(DraftrecError, match="monitoring: key needs keys"):
        load_settings(path)
