"""Texts of a given form from Python, with the shipped model."""

from __future__ import annotations

import json
import re
from itertools import islice
from typing import Any

import pytest
from bookshop.world import stream_records

from draftrec.demo.shop import demo_model_path
from draftrec.errors import DraftrecError
from draftrec.jobs.knowledge.generator import Generator

SCHEMA = {
    "type": "object",
    "properties": {"mood": {"enum": ["calm", "tense"]}, "stars": {"type": "integer", "maximum": 5}},
    "required": ["mood", "stars"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def generator() -> Generator:
    return Generator.from_pretrained(
        demo_model_path(), dtype="float32", budget=8, batch_size=2, max_new_tokens=160
    )


def users(count: int) -> list[dict[str, Any]]:
    return list(islice(stream_records("user", seed=9), count))


@pytest.mark.slow
def test_a_schema_for_one_call(generator: Generator) -> None:
    text = generator.generate("A quiet sea tale:", json_schema=SCHEMA)
    value = json.loads(text)
    assert value["mood"] in ("calm", "tense")
    assert value["stars"] <= 5
    assert generator.generate("A quiet sea tale:", json_schema=json.dumps(SCHEMA)) == text
    with pytest.raises(ValueError, match="Expecting value"):
        json.loads(generator.generate("A quiet sea tale:", max_new_tokens=4))
    assert re.fullmatch("(yes|no)!", generator.generate("Is it good?", regex="(yes|no)!"))


@pytest.mark.slow
def test_the_schema_of_the_template(generator: Generator) -> None:
    texts = generator.generate(users(3), template="rlmrec", json_schema="template", full=True)
    for text in texts:
        if text.finish_reason == "eos":
            assert list(json.loads(text.text)) == ["summarization", "reasoning"]
    assert any(text.finish_reason == "eos" for text in texts)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"json_schema": "schema.json"}, "json_schema is not JSON: .* give a dict"),
        ({"json_schema": [1]}, "no JSON schema, which is an object"),
        ({"json_schema": "template", "template": "kar"}, "'kar_user' comes with no JSON schema"),
        ({"json_schema": SCHEMA, "regex": "a"}, "json_schema and regex are two forms"),
        ({"regex": 3}, "regex=3 is not allowed"),
        ({"regex": "("}, "regex: unclosed group"),
    ],
)
def test_refusals_are_draftrec_errors(generator: Generator, settings: Any, said: str) -> None:
    with pytest.raises(DraftrecError, match=said):
        generator.generate(users(1), **{"template": "kar", **settings})
