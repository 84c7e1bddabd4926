"""`POST /v1/knowledge` of a service whose texts have a form."""

from __future__ import annotations

import json

import pytest

from draftrec.serve.settings import KnowledgeSettings
from tests.serve.services import knowledge_settings, running, settings

SCHEMA = {
    "type": "object",
    "properties": {"mood": {"enum": ["calm", "tense"]}, "loud": {"type": "boolean"}},
    "required": ["mood", "loud"],
    "additionalProperties": False,
}


@pytest.mark.slow
def test_all_texts_of_a_service_keep_to_its_schema() -> None:
    values = knowledge_settings().model_dump()
    values["generate"]["structure"] = {"json_schema": SCHEMA}  # as a YAML file holds it
    chosen = settings(None, KnowledgeSettings.model_validate(values))
    with running(chosen) as service:
        texts = service.knowledge("hello reader", "a story of ships", "the sea", "x").json()[
            "texts"
        ]
        counts = service.client.get("/metrics").text
    assert [text["finish_reason"] for text in texts] == ["eos"] * 4
    assert all(json.loads(text["text"]).keys() == {"mood", "loud"} for text in texts)
    forced = next(line for line in counts.splitlines() if 'source="grammar"' in line)
    assert float(forced.split()[-1]) >= 4 * 6
