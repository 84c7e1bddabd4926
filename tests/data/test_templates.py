"""Templates: what they need, what they write, and what they say when something is wrong."""

from __future__ import annotations

import pickle
from datetime import date
from decimal import Decimal
from pathlib import Path

import pytest

from draftrec.data.templates import FRAMEWORKS, load_template
from draftrec.errors import DraftrecError

USER = {
    "history": [
        {"title": "The Salt Lantern", "rating": 5.0, "category": "sea tales"},
        {"title": "A Crooked Ledger", "rating": 2, "category": None},
    ]
}
ITEM = {"title": "The Salt Lantern", "category": "sea tales", "description": "a slow voyage"}


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_user_side_shows_the_history(framework: str) -> None:
    template = load_template(framework, "user")
    prompt = template.render(USER)
    assert template.required_fields == ("history",)
    assert "The Salt Lantern" in prompt
    assert "A Crooked Ledger" in prompt
    assert "None" not in prompt
    assert "5.0" not in prompt


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_item_side_shows_title_and_what_else_is_known(framework: str) -> None:
    template = load_template(framework, "item")
    prompt = template.render(ITEM)
    assert template.required_fields == ("title",)
    assert "The Salt Lantern" in prompt
    assert "a slow voyage" in prompt
    assert "Brand" not in prompt
    assert "Tidewrack Press" in template.render({**ITEM, "brand": "Tidewrack Press"})
    assert "{" not in load_template("kar", "item").render({"title": "Only a title"})


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_history_of_plain_titles_is_enough(framework: str) -> None:
    prompt = load_template(framework, "user").render({"history": ["First", "Second"]})
    assert "First" in prompt
    assert "Second" in prompt


def test_lines_are_kept_apart() -> None:
    lines = load_template("kar", "user").render(USER).splitlines()
    assert lines[1:3] == ["- The Salt Lantern (sea tales): 5 of 5", "- A Crooked Ledger: 2 of 5"]
    assert len(lines) == 4


def test_json_is_not_escaped_for_html() -> None:
    prompt = load_template("rlmrec", "user").render({"history": ["The Keeper's <Ördeal>"]})
    assert '{"title": "The Keeper\'s <Ördeal>"}' in prompt


def test_templates_differ_and_are_reproducible() -> None:
    loaded = [load_template(name, side) for name in FRAMEWORKS for side in ("user", "item")]
    assert len({template.fingerprint for template in loaded}) == 8
    assert loaded == [load_template(name, side) for name in FRAMEWORKS for side in ("user", "item")]
    assert pickle.loads(pickle.dumps(loaded[0])).render(USER) == loaded[0].render(USER)


def write(folder: Path, source: str) -> str:
    path = folder / "mine.j2"
    path.write_text(source, encoding="utf-8")
    return str(path)


def test_own_file_with_optional_fields(tmp_path: Path) -> None:
    source = (
        "{# optional: tag #}{{ title }}{% if tag is defined %} {{ tag }}{% endif %}"
        "{% if year is defined %} {{ year }}{% endif %}{{ note | default('!') }}"
    )
    template = load_template(write(tmp_path, source), "item")
    assert template.required_fields == ("title",)
    assert template.render({"title": "T"}) == "T!"
    assert template.render({"title": "T", "tag": "x", "year": 1980}) == "T x 1980!"


@pytest.mark.parametrize("record", [{}, {"history": None}])
def test_missing_or_null_field_is_named(record: dict[str, object]) -> None:
    with pytest.raises(DraftrecError, match="needs the field 'history'"):
        load_template("kar", "user").render(record)


def test_history_must_be_a_list() -> None:
    with pytest.raises(DraftrecError, match="as a list"):
        load_template("kar", "user").render({"history": "The Salt Lantern"})


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("one\n{% if %}", "line 2"),
        ("{{ title | nosuchfilter }}", "nosuchfilter"),
    ],
)
def test_syntax_errors_name_the_line(tmp_path: Path, source: str, message: str) -> None:
    with pytest.raises(DraftrecError, match=message):
        load_template(write(tmp_path, source), "item")


@pytest.mark.parametrize(
    "source",
    [
        "{{ title.missing }}",
        "{{ title + 1 }}",
        "{{ title.__class__.__mro__ }}",
        "{% for i in range(10**9) %}x{% endfor %}",
        "{% include 'other.j2' %}{{ title }}",
    ],
)
def test_what_cannot_be_filled_in_is_one_sentence(tmp_path: Path, source: str) -> None:
    template = load_template(write(tmp_path, source), "item")
    with pytest.raises(DraftrecError, match=r"mine\.j2"):
        template.render({"title": "T"})


def test_missing_and_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(DraftrecError, match="neither one of kar, trawl, once, rlmrec"):
        load_template("karr", "user")
    with pytest.raises(DraftrecError, match="cannot be read"):
        load_template(str(tmp_path), "user")
    (tmp_path / "latin.j2").write_bytes(b"caf\xe9 {{ title }}")
    with pytest.raises(DraftrecError, match="UTF-8"):
        load_template(str(tmp_path / "latin.j2"), "user")


def test_a_schema_lies_beside_its_template(tmp_path: Path) -> None:
    path = write(tmp_path, "{{ title }}")
    assert load_template(path, "item").schema is None
    (tmp_path / "mine.schema.json").write_text('{"type": "string"}')
    assert load_template(path, "item").schema == '{"type": "string"}'


def test_decimals_are_numbers_and_dates_are_told(tmp_path: Path) -> None:
    entry = {"title": "Ran", "rating": Decimal("4.50"), "year": Decimal("1985")}
    prompt = load_template("kar", "user").render({"history": [entry]})
    assert "Ran (1985): 4.5 of 5" in prompt
    own = tmp_path / "own.j2"
    own.write_text("{{ row | tojson }}")
    found = load_template(str(own), "item").render(
        {"row": {"on": date(2020, 1, 2), "price": Decimal("9.90")}}
    )
    assert found == '{"on": "2020-01-02", "price": 9.9}'


def test_a_byte_order_mark_is_not_sent(tmp_path: Path) -> None:
    own = tmp_path / "own.j2"
    own.write_text("\ufeffAbout {{ title }}", encoding="utf-8")
    (tmp_path / "own.schema.json").write_text('\ufeff{"type": "object"}', encoding="utf-8")
    template = load_template(str(own), "item")
    assert template.render({"title": "Ran"}) == "About Ran"
    assert template.schema == '{"type": "object"}'
