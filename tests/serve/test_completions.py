"""OpenAI's routes, asked by OpenAI's own client and by curl over a real connection."""

from __future__ import annotations

import json
import math
import re
import shutil
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import openai
import pytest
import torch
from starlette.testclient import TestClient
from transformers import AutoModelForCausalLM, AutoTokenizer

from draftrec.demo.shop import demo_model_path
from draftrec.engine.text.grammar import GrammarLostError
from draftrec.jobs.knowledge.generator import Generator
from draftrec.serve.http.app import make_server
from draftrec.serve.http.completion_answers import Reader, TokenTexts
from draftrec.serve.logs import RequestLog
from draftrec.serve.service import Service, sources_of
from draftrec.serve.settings import KnowledgeSettings
from draftrec.serve.work import KnowledgeWork
from tests.serve.services import (
    KEY,
    KEYS,
    counted,
    error_of,
    knowledge_settings,
    running,
    settings,
    slow_passes,
)
from tests.waiting import until

PROMPTS = ["hello reader", "a story of ships", "the sea"]
SCHEMA = {
    "type": "object",
    "properties": {"mood": {"enum": ["calm", "tense"]}, "loud": {"type": "boolean"}},
    "required": ["mood", "loud"],
    "additionalProperties": False,
}
FORMAT: Any = {"type": "json_schema", "json_schema": {"name": "taste", "schema": SCHEMA}}


class Live:
    """A service on a port of its own, and OpenAI's client for it."""

    def __init__(self, service: Service, port: int) -> None:
        self.service, self.url = service, f"http://127.0.0.1:{port}/v1"
        self.client = openai.OpenAI(base_url=self.url, api_key=KEY, max_retries=0)

    def complete(self, prompt: Any = PROMPTS[0], **more: Any) -> Any:
        more = {"max_tokens": 40, **more}
        return self.client.completions.create(model="demo-lm", prompt=prompt, **more)

    def chat(self, *contents: str, **more: Any) -> Any:
        turns: Any = [{"role": "user", "content": content} for content in contents]
        return self.client.chat.completions.create(model="demo-lm", messages=turns, **more)


@pytest.fixture(scope="module")
def live() -> Iterator[Live]:
    chosen = settings(
        None, knowledge_settings(), keys=KEYS, limits={"records": 8, "prompt_tokens": 64}
    )
    with Path("/dev/null").open("w") as nowhere, socket.create_server(("127.0.0.1", 0)) as port:
        service = Service(chosen, sources_of(chosen), RequestLog(nowhere))
        server = make_server(service)
        server.startup = super(type(server), server).startup  # signals are the main thread's
        thread = threading.Thread(target=server.run, args=([port],))
        thread.start()
        try:
            assert service.knowledge
            while not service.knowledge.ready.wait(0.1):
                assert thread.is_alive()
            yield Live(service, port.getsockname()[1])
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture(scope="module")
def writer() -> Generator:
    return Generator.from_pretrained(config=knowledge_settings().generate)


@pytest.fixture(scope="module")
def greedy() -> list[str]:
    """What transformers writes of the prompts, 40 tokens each."""
    tokenizer = AutoTokenizer.from_pretrained(demo_model_path())
    model: Any = AutoModelForCausalLM.from_pretrained(demo_model_path(), dtype=torch.float32)
    texts = []
    for prompt in PROMPTS:
        given = tokenizer(prompt, return_tensors="pt")
        out = model.generate(**given, do_sample=False, max_new_tokens=40)
        texts.append(tokenizer.decode(out[0, given.input_ids.shape[1] :], skip_special_tokens=True))
    return texts


@pytest.mark.slow
def test_their_fields_are_documented(live: Live) -> None:
    with urllib.request.urlopen(live.url.removesuffix("/v1") + "/docs", timeout=30) as answer:
        page = answer.read().decode()
    assert "/v1/chat/completions" in page
    assert "max_completion_tokens" in page


@pytest.mark.slow
def test_models_are_listed(live: Live) -> None:
    assert [model.id for model in live.client.models.list()] == ["demo-lm"]
    assert live.client.models.retrieve("demo-lm").owned_by == "draftrec"
    with pytest.raises(openai.NotFoundError, match="'demo-lm' is"):
        live.client.models.retrieve("other/model")


@pytest.mark.slow
def test_greedy_texts_are_transformers_own_whatever_runs_beside_them(
    live: Live, greedy: list[str]
) -> None:
    """A drawn text, one of a form, one with penalties and one without drafts share the batch."""
    beside = [
        {"temperature": 0.9, "seed": 1},
        {"response_format": FORMAT, "temperature": 0.5},
        {"frequency_penalty": 1.5, "stop": ["zzz"]},
        {"logprobs": True, "top_logprobs": 2},
        {"extra_body": {"draftrec": {"draft": False, "acceptance": "relaxed"}}},
    ]
    threads = [threading.Thread(target=live.chat, args=("the sea",), kwargs=b) for b in beside]
    for thread in threads:
        thread.start()
    answer = live.complete(PROMPTS, temperature=0, logprobs=1)
    for thread in threads:
        thread.join()
    assert [choice.text for choice in answer.choices] == greedy
    new = answer.usage.completion_tokens
    assert 80 < new <= 120
    assert answer.usage.total_tokens == new + answer.usage.prompt_tokens
    facts = answer.draftrec
    assert sum(text["accepted_tokens"] for text in facts["texts"]) > 0
    plain = live.complete(PROMPTS, extra_body={"draftrec": {"draft": False}})
    assert [choice.text for choice in plain.choices] == greedy
    assert all(text["drafted_tokens"] == 0 for text in plain.draftrec["texts"])
    assert sum(text["target_calls"] for text in plain.draftrec["texts"]) == new


@pytest.mark.slow
def test_token_ids_are_prompts_too(live: Live, greedy: list[str], writer: Generator) -> None:
    ids = [given.tolist() for given in writer.encode(PROMPTS)]
    assert [c.text for c in live.complete(ids).choices] == greedy
    assert live.complete(ids[0]).choices[0].text == greedy[0]


@pytest.mark.slow
def test_drawn_texts_are_those_of_the_seed(live: Live, writer: Generator) -> None:
    asked: Any = {"temperature": 0.9, "seed": 7, "n": 3, "top_p": 0.95, "max_tokens": 12}
    texts = [choice.text for choice in live.complete(PROMPTS[:2], **asked).choices]
    expected = writer.generate(
        PROMPTS[:2], chat=False, temperature=0.9, seed=7, n=3, top_p=0.95, max_new_tokens=12
    )
    assert texts == [text for record in expected for text in record]
    assert len(set(texts)) > 2
    unsaid = live.complete(temperature=0.9, n=2)
    again = live.complete(temperature=0.9, n=2, seed=unsaid.draftrec["seed"])
    assert [c.text for c in again.choices] == [c.text for c in unsaid.choices]
    named = {"draftrec": {"entity_id": "reader-7"}}
    own = live.complete(temperature=0.9, seed=7, max_tokens=12, extra_body=named).choices[0].text
    record = {"entity_id": "reader-7", "prompt": PROMPTS[0]}
    assert own == writer.generate(record, chat=False, temperature=0.9, seed=7, max_new_tokens=12)


@pytest.mark.slow
@pytest.mark.parametrize("given", ["presence_penalty", "frequency_penalty", "repetition_penalty"])
def test_penalties_are_the_engines(live: Live, writer: Generator, given: str) -> None:
    more = {given: 1.5} if given != "repetition_penalty" else {"extra_body": {given: 1.5}}
    expected = writer.generate(PROMPTS, chat=False, **{given: 1.5})
    texts = [choice.text for choice in live.complete(PROMPTS, **more).choices]
    assert texts == expected != [c.text for c in live.complete(PROMPTS).choices]


@pytest.mark.slow
def test_a_biased_token_is_written(live: Live, writer: Generator) -> None:
    token = int(writer.encode(["the"])[0][-1])
    text = live.complete(logit_bias={str(token): 100}, max_tokens=3).choices[0].text
    assert text == writer.tokenizer.decode([token] * 3)


@pytest.mark.slow
@pytest.mark.parametrize("stop", ["cing Da", [" Scar", "ancing Dancing D"], "nowhere at all"])
def test_stop_strings_cut_exactly_whole_and_streamed(
    live: Live, greedy: list[str], stop: str | list[str]
) -> None:
    strings = [stop] if isinstance(stop, str) else stop
    ends = [greedy[0].find(s) for s in strings if s in greedy[0]]
    expected = greedy[0][: min(ends)] if ends else greedy[0]
    choice = live.complete(stop=stop).choices[0]
    assert (choice.text, choice.finish_reason) == (expected, "stop" if ends else "length")
    pieces = [event.choices[0].text for event in live.complete(stop=stop, stream=True)]
    assert "".join(pieces) == expected
    assert len(pieces) > 2


@pytest.mark.slow
def test_conversations_are_streamed_as_they_are_answered(live: Live) -> None:
    whole = live.chat("a story", "of ships", n=2, temperature=0.9, seed=3)
    events = list(
        live.chat(
            "a story", "of ships", n=2, temperature=0.9, seed=3, stream=True,
            stream_options={"include_usage": True}, logprobs=True, top_logprobs=1,
        )
    )  # fmt: skip
    last, usage = events[:-1], events[-1]
    assert (usage.choices, usage.usage) == ([], whole.usage)
    assert all(event.usage is None for event in last)
    for index, choice in enumerate(whole.choices):
        mine = [c for event in last for c in event.choices if c.index == index]
        assert mine[0].delta.role == "assistant"
        assert "".join(c.delta.content or "" for c in mine) == choice.message.content
        assert [c.finish_reason for c in mine if c.finish_reason] == [choice.finish_reason]
        tokens = [t for c in mine if c.logprobs for t in c.logprobs.content]
        assert "".join(t.token for t in tokens) == choice.message.content
        assert len(mine) > 3


@pytest.mark.slow
def test_log_probabilities_are_the_models_own(live: Live, writer: Generator) -> None:
    found = live.complete(logprobs=3, max_tokens=10, temperature=0.8, seed=5).choices[0]
    told = found.logprobs
    assert "".join(told.tokens) == found.text
    assert told.text_offset == [len("".join(told.tokens[:i])) for i in range(10)]
    prompt = writer.encode([PROMPTS[0]])[0].tolist()
    text = writer.tokenizer(found.text, add_special_tokens=False).input_ids
    model: Any = AutoModelForCausalLM.from_pretrained(demo_model_path(), dtype=torch.float32)
    with torch.inference_mode():
        scores = model(torch.tensor([prompt + text])).logits[0, len(prompt) - 1 : -1]
    truth = scores.log_softmax(-1)
    own = truth.gather(1, torch.tensor(text)[:, None])[:, 0].tolist()
    assert told.token_logprobs == pytest.approx(own, abs=1e-4)
    for row, likeliest in zip(truth, told.top_logprobs, strict=True):
        assert list(likeliest.values()) == pytest.approx(row.topk(3).values.tolist(), abs=1e-4)


def test_tokens_that_are_no_whole_character_are_told_apart_by_their_bytes() -> None:
    tokenizer = AutoTokenizer.from_pretrained(demo_model_path())
    whole, lead, rest = tokenizer(" n\u00e9", add_special_tokens=False).input_ids
    texts = TokenTexts(tokenizer)
    assert [texts.name(i) for i in (whole, lead, rest)] == [" n", r"bytes:\xc3", r"bytes:\xa9"]
    told = texts.by_name([(lead, -0.1), (whole, -2.5), (rest, -3.0), (lead, -float("inf"))])
    assert told == {r"bytes:\xc3": -0.1, " n": -2.5, r"bytes:\xa9": -3.0}


@pytest.mark.slow
def test_answers_keep_to_a_schema(live: Live, writer: Generator) -> None:
    text = live.chat("the sea", response_format=FORMAT).choices[0].message.content
    jsonschema.validate(json.loads(text), SCHEMA)
    assert text == writer.generate("the sea", chat=False, json_schema=SCHEMA)
    pieces = live.chat("the sea", response_format=FORMAT, stream=True)
    assert "".join(e.choices[0].delta.content or "" for e in pieces) == text
    started = live.chat("the sea", response_format={"type": "json_object"}, max_tokens=8)
    assert started.choices[0].message.content.startswith("{")


@pytest.mark.slow
def test_a_grammar_that_is_lost_costs_nobody_else(
    live: Live, greedy: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from draftrec.engine.text.grammar import GrammarStates

    real = GrammarStates.at

    def lost(states: GrammarStates, sequence: Any) -> Any:
        if sequence.new_tokens > 3:
            raise GrammarLostError(sequence, "the grammar is lost")
        return real(states, sequence)

    monkeypatch.setattr(GrammarStates, "at", lost)
    failed: list[Exception] = []

    def ask() -> None:
        try:
            live.chat("the sea", response_format=FORMAT)
        except openai.BadRequestError as error:
            failed.append(error)

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    assert [c.text for c in live.complete(PROMPTS).choices] == greedy
    for thread in threads:
        thread.join()
    assert len(failed) == 2


def fails(live: Live, kind: str, status: int) -> Any:
    """How many failures of the kind were counted, and answers of the status."""
    value = live.service.metrics.registry.get_sample_value
    asked = {"route": "/v1/completions", "status": str(status)}
    return value("draftrec_errors_total", {"kind": kind}), value("draftrec_requests_total", asked)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "status", "broken"),
    [("engine_failed", 503, (KnowledgeWork, "turn")), ("internal", 500, (Reader, "add"))],
)
def test_a_stream_that_fails_does_not_look_whole_and_is_counted(
    live: Live, monkeypatch: pytest.MonkeyPatch, kind: str, status: int, broken: tuple[Any, str]
) -> None:
    """It fails with the second pass, or the second piece of text."""
    real, began, calls = getattr(*broken), threading.Event(), list[Any]()

    def fail_later(*given: Any) -> Any:
        calls.append(given)
        if len(calls) == 1:
            return real(*given)
        if broken[0] is KnowledgeWork:  # a reader runs where events are sent
            began.wait(60)
        raise RuntimeError("a bug")

    before = fails(live, kind, status)
    monkeypatch.setattr(*broken, fail_later)
    events = live.complete(stream=True)
    next(iter(events))
    began.set()
    with pytest.raises((openai.APIError, httpx.RemoteProtocolError)):
        list(events)
    until(lambda: fails(live, kind, status) != before)
    assert fails(live, kind, status) == tuple(count + 1 for count in before)


@pytest.mark.slow
def test_hanging_up_ends_the_text(live: Live) -> None:
    before = counted(live).get("texts_total")
    with slow_passes(live.service.writing, 0.5) as work:
        events = live.complete(stream=True)
        next(iter(events))
        assert work._texts
        events.close()
        until(lambda: not work._texts)
        with pytest.raises(openai.APITimeoutError):
            live.complete(timeout=0.2)
        until(lambda: not work._texts)
    assert counted(live).get("texts_total") == before, "none was written to its end"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"max_tokens": 41}, "max_tokens: at most 40 here"),
        ({"n": 2}, "temperature 0"),
        ({"n": 9, "temperature": 1}, "at most 8 texts"),
        ({"temperature": -1}, "temperature: "),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop: List should have at most 4"),
        ({"prompt": ["a", ""]}, "prompt.1: "),
        ({"prompt": [1, -5]}, "prompt.1: "),
        ({"stop": ""}, "stop"),
        ({"echo": True}, "echo: there is no such thing here"),
        ({"best_of": 3}, "best_of"),
        ({"logit_bias": {"99999999": 1}}, "99999999"),
        ({"logit_bias": {"the sea": 1}}, "token"),
        ({"extra_body": {"mirostat": 2}}, "unknown field mirostat"),
        ({"extra_body": {"draftrec": {"acceptance": "loose"}}}, "draftrec.acceptance"),
        ({"prompt": "far too long " * 60}, "64 are possible"),
        ({"prompt": [99_999_999]}, "token 99999999, which the model does not know"),
        ({"extra_body": {"response_format": {"type": "json_schema"}}}, "json_schema"),
        (
            {"extra_body": {"response_format": {"type": "json_schema", "json_schema": {
                "name": "a", "schema": {"type": "strin"}}}}},
            "strin",
        ),
        (
            {"extra_body": {"response_format": {"type": "json_schema", "json_schema": {
                "name": "a", "schema": {"maximum": 10**400}}}}},
            "number out of range",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_is_said_in_their_form(live: Live, more: Any, words: str) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        live.complete(**more)
    told = refused.value.body
    assert isinstance(told, dict)
    assert told.keys() == {"message", "type", "param", "code"}
    assert words in told["message"]
    assert "[" not in told["message"], "a name of pydantic's"
    assert not told["message"].startswith("body")
    # What the engine refuses knows no fields.
    assert told["param"] or words in ("99999999", "token", "strin", "number out of range")
    assert told["type"] == "invalid_request_error"


@pytest.mark.slow
def test_keys_and_models_are_looked_at(live: Live) -> None:
    stranger = openai.OpenAI(base_url=live.url, api_key="wrong", max_retries=0)
    with pytest.raises(openai.AuthenticationError, match="API key"):
        stranger.models.list()
    with pytest.raises(openai.NotFoundError) as refused:
        live.client.completions.create(model="gpt-5", prompt="a")
    assert refused.value.code == "model_not_found"


@pytest.mark.slow
def test_harmless_fields_are_taken(live: Live) -> None:
    live.complete(user="somebody", max_tokens=1)
    live.chat("a", metadata={"a": "b"}, store=False, max_completion_tokens=1, tools=[])
    turns: Any = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": t} for t in ("the", " sea")]},
        {"role": "assistant", "content": "is calm"},
        {"role": "user", "content": "why?", "name": "ann"},
    ]  # fmt: skip
    answer = live.client.chat.completions.create(model="demo-lm", messages=turns, max_tokens=4)
    joined = live.complete("be brief\n\nthe sea\n\nis calm\n\nwhy?", max_tokens=4)
    assert answer.choices[0].message.content == joined.choices[0].text
    # An answer sent back as the client writes it down, with what it has no words about.
    turns[2] = answer.choices[0].message.model_dump() | {"content": "is calm", "annotations": []}
    assert turns[2].keys() >= {"tool_calls", "function_call", "audio"}
    again = live.client.chat.completions.create(model="demo-lm", messages=turns, max_tokens=4)
    assert again.choices[0].message.content == answer.choices[0].message.content


@pytest.mark.slow
@pytest.mark.parametrize(
    ("turn", "words"),
    [
        ({"tool_calls": [{"id": "a"}]}, "tool_calls: there is no such"),
        ({"audi": None}, "audi"),
        (
            {"content": [{"type": "image_url", "image_url": {"url": "data:"}}]},
            "messages.0.content.0.type: Input should be 'text'",
        ),
    ],
)
def test_what_turns_do_not_have_is_refused(live: Live, turn: Any, words: str) -> None:
    turns: Any = [{"role": "assistant", "content": "a", **turn}, {"role": "user", "content": "b"}]
    with pytest.raises(openai.BadRequestError, match=words):
        live.client.chat.completions.create(model="demo-lm", messages=turns, max_tokens=1)


def _half_a_character(field: str) -> tuple[str, dict[str, Any]]:
    half, turn = "a\ud800", {"role": "user", "content": "a"}
    schema = {"name": "a", "schema": {"enum": [half]}}
    chats: dict[str, Any] = {
        "content": {"messages": [turn | {"content": half}]},
        "text": {"messages": [turn | {"content": [{"type": "text", "text": half}]}]},
        "kwargs": {"messages": [turn], "chat_template_kwargs": {"tools": [{"name": half}]}},
    }
    if field in chats:
        return "/chat/completions", chats[field]
    texts: dict[str, Any] = {
        "prompt": {"prompt": half},
        "prompts": {"prompt": ["a", half]},
        "stop": {"stop": half},
        "bias": {"logit_bias": {half: 1}},
        "schema": {"response_format": {"type": "json_schema", "json_schema": schema}},
        "group": {"draftrec": {"group": half}},
    }
    return "/completions", {"prompt": "a"} | texts[field]


@pytest.mark.slow
@pytest.mark.parametrize(
    "field",
    ["content", "text", "kwargs", "prompt", "prompts", "stop", "bias", "schema", "group"],
)
def test_half_a_character_is_refused(live: Live, field: str) -> None:
    """A lone surrogate is JSON, but no text that a tokenizer reads."""
    route, body = _half_a_character(field)
    asked = urllib.request.Request(
        live.url + route,
        json.dumps(body).encode(),
        {"content-type": "application/json", "authorization": f"Bearer {KEY}"},
    )
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(asked)
    told = json.load(refused.value)["error"]
    assert refused.value.code == 400, told
    assert "unicode" in told["message"].lower() or "valid string" in told["message"]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_curl_reads_events(live: Live, greedy: list[str]) -> None:
    body = {"prompt": PROMPTS[0], "stream": True, "max_tokens": 40, "draftrec": {"draft": False}}
    words = ["curl", "-sN", f"{live.url}/completions", "-H", f"Authorization: Bearer {KEY}",
             "-H", "content-type: application/json", "-d", json.dumps(body)]  # fmt: skip
    lines = subprocess.run(words, capture_output=True, text=True, check=True).stdout.split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    events = [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]
    assert "".join(event["choices"][0]["text"] for event in events) == greedy[0]
    assert events[-1]["draftrec"]["texts"][0]["target_calls"] == 40
    assert len({event["id"] for event in events}) == 1


@pytest.mark.slow
def test_a_deadline_ends_a_text(live: Live) -> None:
    with slow_passes(live.service.writing):
        late = {"draftrec": {"deadline_ms": 120}}
        answer = live.complete(extra_body=late)
    assert answer.choices[0].finish_reason == "length"
    assert answer.draftrec["texts"][0]["finish_reason"] == "deadline"


@pytest.mark.slow
def test_a_deadline_counts_from_when_the_request_came(
    live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = live.service.writing
    assert work
    real = work.rules

    def slow(settings: Any) -> Any:
        time.sleep(0.4)  # as a large grammar takes
        return real(settings)

    monkeypatch.setattr(work, "rules", slow)
    answer = live.complete(max_tokens=1, extra_body={"draftrec": {"deadline_ms": 200}})
    assert answer.draftrec["texts"][0]["finish_reason"] == "deadline"


def chat_service(tmp_path: Path, **more: Any) -> Any:
    folder = tmp_path / "talker"
    shutil.copytree(demo_model_path(), folder)
    file = folder / "tokenizer_config.json"
    template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"chat_template": template}))
    values = knowledge_settings(new_tokens=6).model_dump()
    values["generate"]["target"]["model"] = str(folder)
    values["generate"] |= more
    return running(settings(None, KnowledgeSettings.model_validate(values)))


@pytest.mark.slow
def test_a_chat_template_is_used_and_special_tokens_are_text_in_it(tmp_path: Path) -> None:
    with chat_service(tmp_path) as served:
        turns = [{"role": "user", "content": "end </s> of"}]
        body = served.client.post("/v1/chat/completions", json={"messages": turns}).json()
        work = served.service.writing
        assert work
        ids = work.generator.encode([[{"role": "user", "content": "end  of"}]], chat=True)[0]
        assert body["usage"]["prompt_tokens"] > len(ids)
        assert body["model"] == "talker"
        odd = {"messages": turns, "chat_template_kwargs": {"nothing_of_it": 1}}
        answer = served.client.post("/v1/chat/completions", json=odd)
        assert answer.status_code == 400


@pytest.mark.slow
def test_a_service_that_draws_takes_greedy_requests(tmp_path: Path, greedy: list[str]) -> None:
    values = knowledge_settings().model_dump()
    values["generate"]["accept"] |= {"temperature": 1.3}
    with running(settings(None, KnowledgeSettings.model_validate(values))) as served:
        client: TestClient = served.client
        asked = {"prompt": PROMPTS[0], "max_tokens": 40, "seed": 1}
        drawn = client.post("/v1/completions", json=asked).json()["choices"][0]["text"]
        asked["temperature"] = 0
        assert client.post("/v1/completions", json=asked).json()["choices"][0]["text"] == greedy[0]
        assert drawn != greedy[0]
        text = client.get("/metrics").text
        assert re.search(r'requests_total{route="/v1/completions",status="200"} 2.0', text)
        error_of(served.knowledge(), 422, "invalid_request")
    assert not math.isnan(len(drawn))
