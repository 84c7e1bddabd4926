"""The OpenAPI document as a source of requests: whatever they are, none may end in a 5xx."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from draftrec.serve.http.app import operations, render_docs
from tests.jobs.recommend.worlds import make_world
from tests.serve.services import (
    Running,
    knowledge_settings,
    recommend_settings,
    running,
)
from tests.serve.services import settings as serve_settings

QUIET = settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
MODES = [schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    world = make_world(tmp_path_factory.mktemp("world"))
    chosen = serve_settings(recommend_settings(world), knowledge_settings(new_tokens=4))
    with running(chosen) as found:
        yield found


@pytest.fixture(scope="module")
def schema(served: Running) -> schemathesis.BaseSchema:
    return schemathesis.openapi.from_dict(served.client.get("/openapi.json").json())


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.value)
def test_no_request_breaks_the_service(
    served: Running, schema: schemathesis.BaseSchema, mode: schemathesis.GenerationMode
) -> None:
    seen: dict[str, set[int]] = {}
    for result in schema.get_all_operations():
        operation = result.ok()
        if mode is MODES[1] and not operation.body:
            continue  # nothing that could be wrong

        @QUIET
        @given(case=operation.as_strategy(generation_mode=mode))
        def asked(case: schemathesis.Case) -> None:
            arguments = case.as_transport_kwargs(base_url="http://testserver")
            arguments.pop("cookies", None)
            if isinstance(arguments.get("data"), bytes | str):
                arguments["content"] = arguments.pop("data")
            answer = served.client.request(**arguments)
            seen.setdefault(case.path, set()).add(answer.status_code)
            assert answer.status_code < 500, answer.text
            if answer.status_code >= 400:
                assert answer.request.method == "HEAD" or answer.json().keys() == {"error"}

        asked()
    if mode is MODES[0]:
        assert 200 in seen["/v1/knowledge"], "some of it reached the engine"
        assert {"/admin/reload", "/healthz", "/readyz", "/metrics"} <= seen.keys()
    assert {"/v1/recommend", "/v1/knowledge"} <= seen.keys()


@pytest.mark.slow
@QUIET
@given(
    history=st.lists(st.integers(10, 69), max_size=30),
    k=st.integers(1, 5),
    deny=st.none() | st.lists(st.integers(), max_size=5),
)
def test_sensible_questions_are_answered(
    served: Running, history: list[int], k: int, deny: list[int] | None
) -> None:
    body = {"history": history, "k": k, "deny": deny}
    if deny is not None:
        body["deny"] = [i for i in deny if -(2**63) <= i < 2**63]
    answer = served.client.post("/v1/recommend", json=body)
    assert answer.status_code == 200, answer.text
    assert len(answer.json()["items"]) == k
    users = served.client.post("/v1/recommend", json={"users": [body, {"history": history}]})
    assert users.status_code == 200, users.text
    ours = users.json()["users"][0]
    assert [i["item"] for i in ours["items"]] == [i["item"] for i in answer.json()["items"]]


def test_the_document_and_the_page_have_both_forms_of_a_recommendation(served: Running) -> None:
    document = served.client.get("/openapi.json").json()
    [found] = [o for o in operations(document, "http://h:1") if o.path == "/v1/recommend"]
    needed = {name: must for name, _, _, must in found.fields}
    assert {"history", "k", "users", "users[].history", "users[].k"} <= needed.keys()
    assert not any(needed.values()), "each form has its own"
    asked = document["paths"]["/v1/recommend"]["post"]["requestBody"]["content"]
    assert len(asked["application/json"]["schema"]["oneOf"]) == 2


def test_the_page_tells_fields_within_fields_and_quotes_for_a_shell() -> None:
    inner = {"properties": {"prompt": {"type": "string", "description": "what to say"}}}
    record = {"properties": {"a": {"$ref": "#/components/schemas/Inner"}}, "required": ["a"]}
    body = {
        "properties": {
            "records": {"type": "array", "items": {"$ref": "#/components/schemas/Record"}},
            "self": {"anyOf": [{"$ref": "#/components/schemas/Body"}, {"type": "null"}]},
        },
        "examples": [{"records": "it's"}],
    }
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/Body"}}}
    document = {
        "info": {"title": "t", "version": "1", "description": "d"},
        "paths": {"/x": {"post": {"requestBody": {"content": content}, "responses": {}}}},
        "components": {"schemas": {"Inner": inner, "Record": record, "Body": body}},
    }
    [operation] = operations(document, "http://h:1")
    names = [name for name, *_ in operation.fields]
    assert names[:3] == ["records", "records[].a", "records[].a.prompt"]
    assert "self.records" in names
    assert len(names) < 50, "what holds itself ends"
    words = shlex.split(operation.curl)
    assert words[:4] == ["curl", "-X", "POST", "http://h:1/x"]
    assert json.loads(words[-1]) == {"records": "it's"}


def test_the_page_tells_every_kind_of_a_field_and_what_is_code(served: Running) -> None:
    """Ids were said to be whole numbers alone, and to be quoted by backticks."""
    document = served.client.get("/openapi.json").json()
    fields = {o.path: {f[0]: f[1] for f in o.fields} for o in operations(document, "http://h:1")}
    assert fields["/v1/recommend"]["history"] == "list of integer or string"
    assert fields["/v1/recommend"]["users[].user"] == "integer or string"
    assert fields["/v1/completions"]["stop"] == "string or list of string"
    assert fields["/v1/knowledge"]["records[].group"] == "string"  # or nothing at all
    page = render_docs(document)
    assert "`" not in page
    assert "<code>draftrec genrec recommend -k K</code>" in page
    recommend, knowledge = page.split("<h2>")[1:3]
    assert "must be given" not in recommend  # each of its two forms has its own
    assert "must be given" in knowledge
