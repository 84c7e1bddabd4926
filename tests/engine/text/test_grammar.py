"""Texts of a given form: what plain decoding under the same masks writes, whatever is drafted."""

from __future__ import annotations

import gc
import json
import math
import re
import sys
from collections.abc import Sequence as Seq
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given

from draftrec.config import AcceptConfig, StructureConfig, make_config
from draftrec.core import GRAMMAR, HEAD, Drafter, DraftTree, Generation, Request, SequenceView
from draftrec.engine.learned.drafter import HeadDrafter
from draftrec.engine.learned.head import DraftHead, HeadPasses, HeadShape
from draftrec.engine.noise import noise_of
from draftrec.engine.text import loop
from draftrec.engine.text.accept import make_rule
from draftrec.engine.text.budget import FixedBudget
from draftrec.engine.text.grammar import Grammar, GrammarControl, GrammarDrafter, GrammarStates
from draftrec.engine.text.grammar_text import check_structure, compile_grammar
from draftrec.engine.text.loop import Engine, NoDrafter
from draftrec.engine.tree import check_tree, depths, make_tree
from draftrec.errors import DraftrecError
from draftrec.pool.drafter import PoolDrafter
from tests.engine.text import forms
from tests.engine.text.helpers import GuessingDrafter
from tests.models import folders, zoo
from tests.strategies import trees as any_tree

PROMPTS = tuple(
    tuple(np.random.default_rng(7 + i).integers(4, 300, 3 + 8 * i).tolist()) for i in range(5)
)
MOST = 48


@cache
def compiled(form: str) -> Grammar:
    made = compile_grammar(forms.FORMS[form], forms.tokenizer(), forms.VOCABULARY, forms.EOS)
    assert made is not None
    return made


def engine_for(
    name: str, form: str, drafter: Drafter | None = None, **settings: Any
) -> tuple[Engine, GrammarStates]:
    states = GrammarStates(compiled(form))
    wrapped = GrammarDrafter(drafter, states) if drafter else None
    accept = settings.pop("accept", AcceptConfig())
    defaults: dict[str, Any] = {"slots": 4, "max_new_tokens": MOST, "budget": FixedBudget(8)}
    engine = Engine(
        target=forms.target(name),
        drafter=wrapped or NoDrafter(),
        rule=make_rule(accept, forms.EOS),
        accept=accept,
        eos_ids=forms.EOS,
        context_length=zoo.CONTEXT,
        prefill_chunk=16,
        controls=[GrammarControl(states)],
        certain=wrapped.certain if wrapped else None,
        **(defaults | settings),
    )
    return engine, states


def requests(prompts: Seq[Seq[int]] = PROMPTS) -> list[Request]:
    return [Request(str(i), np.array(p, np.int32), key=i) for i, p in enumerate(prompts)]


def texts_of(done: Seq[Generation]) -> list[list[int]]:
    return [g.token_ids.tolist() for g in done]


def expected(name: str, form: str, most: int = MOST) -> list[list[int]]:
    return [forms.step_by_step(name, form, prompt, most) for prompt in PROMPTS]


def truth(name: str, form: str) -> dict[str, Seq[int]]:
    return {str(i): text for i, text in enumerate(expected(name, form))}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "form"),
    [*((name, "json") for name in zoo.NAMES), ("llama", "regex"), ("gemma2", "grammar")],
)
def test_texts_are_those_of_plain_decoding_under_the_masks(name: str, form: str) -> None:
    right, wrong = GuessingDrafter(truth(name, form), 1.0), GuessingDrafter({}, 0.0)
    pool = PoolDrafter()
    alone = ((None, 1), (right, 1), (wrong, 1))
    for drafter, slots in (*alone, (right, 4), (wrong, 4), (pool, 4)):
        engine, _ = engine_for(name, form, drafter, slots=slots)
        assert texts_of(loop.generate(engine, requests())) == expected(name, form)


@pytest.mark.slow
def test_a_head_drafts_between_what_is_forced() -> None:
    target = forms.target("llama")
    target.keep_features()
    torch.manual_seed(0)
    head = DraftHead(HeadShape.of(target.model.config)).requires_grad_(False)
    embed: Any = target.model.get_input_embeddings()
    passes = HeadPasses(head, embed, lambda h: h @ embed.weight.T)
    drafter = HeadDrafter(NoDrafter(), passes, target, np.arange(forms.VOCABULARY), levels=3)
    done = loop.generate(engine_for("llama", "json", drafter)[0], requests())
    assert texts_of(done) == expected("llama", "json")
    assert any(g.counts.accepted_by_source[HEAD] for g in done)


@pytest.mark.slow
def test_texts_that_end_have_the_form() -> None:
    done = loop.generate(engine_for("llama", "json", PoolDrafter())[0], requests())
    ended = [g for g in done if g.finish_reason == "eos"]
    assert ended
    for generation in ended:
        value = json.loads(forms.tokenizer().decode(generation.token_ids, skip_special_tokens=True))
        assert list(value) == ["summary", "mood", "scores"]
        assert 1 <= len(value["summary"]) <= 7
        assert value["mood"] in ("calm", "cheerful", "cool")


@pytest.mark.slow
def test_forced_tokens_are_drafted_with_certainty_and_counted() -> None:
    done = loop.generate(engine_for("llama", "json", PoolDrafter())[0], requests())
    assert all(g.counts.accepted_by_source[GRAMMAR] >= 8 for g in done)
    plain = loop.generate(engine_for("llama", "json")[0], requests())
    assert [g.counts.target_calls for g in plain] > [g.counts.target_calls for g in done]
    assert all(g.counts.drafted_tokens == 0 for g in plain)


def test_behind_forced_tokens_drafters_look_at_later_numbers() -> None:
    """What follows the head that is forced has the noise of its own place in the text."""
    told: list[tuple[int | None, int]] = []

    class Listening(NoDrafter):
        def draft(self, batch: Seq[SequenceView], limit: int, depth: int) -> list[DraftTree]:
            told.extend((s.noise, len(s.context) - len(s.request.prompt_ids)) for s in batch)
            return super().draft(batch, limit, depth)

    sampled = AcceptConfig(temperature=1.0, seed=2)
    engine, states = engine_for("llama", "json", Listening(), accept=sampled)
    batch = loop.start(engine, requests()[:1])
    loop.admit(engine, batch)
    [text] = batch.running
    forced = len(states.at(text).compute_ff_tokens())
    assert forced > 0
    engine.drafter.draft([text], 64, 24)
    assert told == [(noise_of(2, 0), forced)]


class Resting(FixedBudget):
    """Has room for drafts, and never wants any."""

    def limit(self) -> int:
        return 0


@pytest.mark.slow
def test_forced_tokens_are_drafted_while_drafting_rests() -> None:
    for budget, accepted in ((Resting(8), True), (FixedBudget(0), False)):
        engine, _ = engine_for("llama", "json", PoolDrafter(), budget=budget)
        done = loop.generate(engine, requests())
        assert texts_of(done) == expected("llama", "json")
        assert any(g.counts.accepted_tokens for g in done) == accepted
        assert all(sum(g.counts.accepted_by_source[:GRAMMAR]) == 0 for g in done)


class Kept:
    """The trees that a drafter hands out, checked."""

    def __init__(self, inner: GrammarDrafter) -> None:
        self.inner = inner
        self.trees: list[DraftTree] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def draft(self, batch: Any, limit: int, depth: int) -> list[DraftTree]:
        found = self.inner.draft(batch, limit, depth)
        for sequence, tree in zip(batch, found, strict=True):
            check_tree(tree)
            assert len(tree) <= limit
            assert len(tree) == 0 or depths(tree).max() < depth
            self._is_legal(sequence, tree)
        self.trees += found
        return found

    def _is_legal(self, sequence: Any, tree: DraftTree) -> None:
        """Every path from the root is one that a fresh matcher takes."""
        for node in range(len(tree)):
            path, at = [], node
            while at >= 0:
                path.append(int(tree.token_ids[at]))
                at = int(tree.parents[at])
            matcher = self.inner.states.grammar.start.deep_copy()
            *text, last = sequence.context[len(sequence.request.prompt_ids) :].tolist() + path[::-1]
            assert matcher.try_consume_tokens(text) == len(text)
            assert matcher.is_accepting() if last in forms.EOS else matcher.consume_token(last)


@pytest.mark.slow
@pytest.mark.parametrize(("limit", "depth"), [(1, 8), (3, 8), (8, 2), (12, 24)])
def test_drafts_are_legal_and_no_larger_than_asked(limit: int, depth: int) -> None:
    engine, states = engine_for("llama", "json", budget=FixedBudget(limit), depth=depth)
    drafter = GrammarDrafter(GuessingDrafter(truth("llama", "json"), 0.7), states)
    kept = Kept(drafter)
    engine.drafter = kept  # type: ignore[assignment]
    assert texts_of(loop.generate(engine, requests())) == expected("llama", "json")
    assert any(len(tree) for tree in kept.trees)


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["relaxed", "typical", "entropy"])
def test_relaxed_texts_have_the_form_too(rule: str) -> None:
    accept = AcceptConfig(accept=rule, top_k=40, min_prob=0.0, epsilon=0.0, window=0)  # type: ignore[arg-type]
    drafter = GuessingDrafter({}, 0.0, seed=3)
    done = loop.generate(engine_for("llama", "regex", drafter, accept=accept)[0], requests())
    for generation in done:
        matcher = compiled("regex").start.deep_copy()
        *ids, last = generation.token_ids.tolist()
        assert matcher.try_consume_tokens(ids) == len(ids)
        assert matcher.is_accepting() if last in forms.EOS else matcher.consume_token(last)


@pytest.mark.slow
def test_sampled_texts_depend_on_no_draft() -> None:
    accept = AcceptConfig(temperature=1.0, seed=5)
    plain = loop.generate(engine_for("llama", "json", accept=accept)[0], requests())
    drafter = GuessingDrafter({str(i): g.token_ids.tolist() for i, g in enumerate(plain)}, 0.8)
    fast = loop.generate(engine_for("llama", "json", drafter, accept=accept)[0], requests())
    assert texts_of(fast) == texts_of(plain)
    assert sum(g.counts.accepted_tokens for g in fast) > 20
    assert texts_of(plain) != expected("llama", "json")


@pytest.mark.slow
def test_states_go_with_their_texts() -> None:
    engine, states = engine_for("llama", "json", PoolDrafter(), slots=2)
    seen: list[int] = []
    loop.generate(engine, requests(PROMPTS * 3), on_step=lambda _: seen.append(len(states)))
    gc.collect()
    assert 1 <= max(seen) <= 4  # two running, and perhaps two that have just retired
    assert len(states) == 0


def masks_by_brute_force(control: GrammarControl, tree: DraftTree) -> list[set[int] | None]:
    """What may follow each row, by a fresh matcher per row; None where the path is refused."""
    found: list[set[int] | None] = []
    for node in range(-1, len(tree)):
        path, at = [], node
        while at >= 0:
            path.append(int(tree.token_ids[at]))
            at = int(tree.parents[at])
        matcher = control.states.grammar.start.deep_copy()
        refused = set(path) & forms.EOS or matcher.try_consume_tokens(path[::-1]) < len(path)
        bits = np.frombuffer(matcher.compute_bitmask(), np.uint8)
        allowed = set(np.flatnonzero(np.unpackbits(bits, bitorder="little")).tolist())
        found.append(None if refused else allowed)
    return found


@pytest.mark.slow
@given(any_tree(forms.VOCABULARY))
def test_every_reachable_row_is_masked_after_its_own_path(tree: DraftTree) -> None:
    # `<`, a letter and `>` are frequent, so that paths go deep into the grammar.
    ids = np.array([forms.tokenizer()(c).input_ids[0] for c in "<ab,>"], np.int32)
    tree = _distinct(ids[tree.token_ids % 5], tree)
    _, states = engine_for("llama", "grammar")
    control = GrammarControl(states)
    sequence: Any = loop.RunningSequence(0, 0, requests()[0], MOST)
    logits = control.apply([sequence], [tree], torch.zeros(1 + len(tree), forms.VOCABULARY))
    for row, allowed in enumerate(masks_by_brute_force(control, tree)):
        if allowed is not None:
            assert set(torch.isfinite(logits[row]).nonzero()[:, 0].tolist()) == allowed
    again = control.apply([sequence], [tree], torch.zeros(1 + len(tree), forms.VOCABULARY))
    assert torch.equal(again, logits)  # the walk has put everything back


def _distinct(tokens: Any, tree: DraftTree) -> DraftTree:
    """The tree with other tokens, without siblings that have become the same."""
    place: dict[int, int] = {-1: -1}
    kept: list[tuple[int, int]] = []
    pairs = zip(tokens.tolist(), tree.parents.tolist(), strict=True)
    for node, (token, parent) in enumerate(pairs):
        if parent in place and (token, place[parent]) not in kept:
            place[node] = len(kept)
            kept.append((token, place[parent]))
    return make_tree([t for t, _ in kept], [p for _, p in kept])


def test_eos_is_allowed_where_the_text_may_end_and_alone_where_it_must() -> None:
    _, states = engine_for("llama", "regex")
    control = GrammarControl(states)

    def allowed_after(text: str) -> set[int]:
        request = Request("x", np.array([5], np.int32))
        sequence: Any = loop.RunningSequence(0, 0, request, MOST)
        ids = forms.tokenizer()(text).input_ids
        sequence._tokens[1 : 1 + len(ids)] = ids
        sequence.length += len(ids)
        row = control.apply([sequence], [make_tree([], [])], torch.zeros(1, forms.VOCABULARY))
        return set(torch.isfinite(row[0]).nonzero()[:, 0].tolist())

    assert allowed_after("They prefer sea.") == set(forms.EOS)
    assert not allowed_after("They prefer sea") & forms.EOS


def test_the_grammar_wins_where_others_forbid_all_that_it_allows() -> None:
    _, states = engine_for("llama", "grammar")
    control = GrammarControl(states)
    sequence: Any = loop.RunningSequence(0, 0, requests()[0], MOST)
    first = forms.tokenizer()("<").input_ids[0]
    logits = torch.zeros(1, forms.VOCABULARY)
    logits[0, first] = -torch.inf
    assert int(control.apply([sequence], [make_tree([], [])], logits).argmax()) == first


def _nested(depth: int) -> list[Any]:
    """Lists in lists."""
    found: list[Any] = []
    for _ in range(depth):
        found = [found]
    return found


def refusal(**form: Any) -> str:
    with pytest.raises(DraftrecError) as error:
        check_structure(StructureConfig(**form))
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ('{"type": "object",}', "json_schema is not JSON: .*line 1 column 19"),
        ("[1, 2]", r"json_schema is no JSON schema, which is an object, but \[1, 2\]"),
        ({"type": "strin"}, "json_schema, at its root: Invalid type: strin"),
        (
            {"properties": {"a": {"type": "array", "items": {"type": "strin"}}}},
            "at /properties/a/items: Invalid type: strin",
        ),
        (
            {"properties": {"a": {"anyOf": [{"type": "null"}, {"pattern": "("}]}}},
            "at /properties/a/anyOf/1: unclosed group",
        ),
        (
            {"properties": {"a": {"$ref": "#/$defs/b"}}, "$defs": {"b": {"type": "x"}}},
            "at /properties/a.*: Invalid type: x",
        ),
        (
            {"properties": {"a": {"type": "array", "uniqueItems": True}}},
            "at /properties/a: Unimplemented keys.*lenient",
        ),
        ({"type": "string", "x-guidance": {"foo": 1}}, "at x-guidance: unknown field"),
        ({"enum": []}, "at its root: Unsatisfiable"),
        ({"maximum": 10**400}, "json_schema cannot be read by llguidance: number out of range; "),
        ({"enum": [_nested(200)]}, "cannot be read by llguidance: recursion limit exceeded; "),
    ],
)
def test_wrong_schemas_are_refused_with_their_place(schema: Any, said: str) -> None:
    assert re.search(said, refusal(json_schema=schema))


@pytest.mark.parametrize(
    ("form", "said"),
    [
        ({"regex": "[a-z"}, "regex: unclosed character class"),
        ({"regex": "a(?=b)"}, "regex: look-around"),
        ({"regex": r"a[^\s\S]"}, "regex: no text has this form; mend it there"),
        ({"grammar": "start: /[^\\s\\S]/"}, "grammar: no text has this form; mend it there"),
        ({"grammar": 'start: "a" b'}, 'grammar, line 1 column 8: unknown name: "b"'),
        ({"grammar": 'start: "a"\nb: "c" "'}, "grammar, line 2 column 9: lexer error"),
        ({"grammar": "root ::= ("}, "grammar: Failed to convert the grammar from GBNF"),
    ],
)
def test_wrong_expressions_and_grammars_are_refused(form: Any, said: str) -> None:
    assert said in refusal(**form)


@pytest.mark.parametrize(
    ("form", "said"),
    [
        ({"json_schema": {"enum": ["a\ud800"]}}, "half of a surrogate pair"),
        ({"json_schema": '{"enum": ["a\\ud800"]}'}, "half of a surrogate pair"),
        ({"regex": "a\ud800"}, "half of a surrogate pair"),
        ({"grammar": 'start: "a\ud800"'}, "half of a surrogate pair"),
        ({"json_schema": {"maximum": math.nan}}, "cannot be written as JSON: Out of range"),
        ({"json_schema": {"enum": {"a"}}}, "cannot be written as JSON: Object of type set"),
        ({"json_schema": {"enum": [_nested(5000)]}}, "json_schema is not allowed: cannot be"),
    ],
)
def test_what_is_no_text_of_a_form_is_no_setting(form: Any, said: str) -> None:
    with pytest.raises(DraftrecError, match=said):
        make_config("model", **form)


def test_a_form_is_one() -> None:
    with pytest.raises(ValueError, match="json_schema and regex are two forms"):
        StructureConfig(json_schema="{}", regex="a")


def test_tokenizers_that_cannot_be_read_are_refused() -> None:
    form = forms.FORMS["regex"]
    with pytest.raises(DraftrecError, match="not available for the model's tokenizer") as error:
        compile_grammar(form, folders.make_tokenizer(), zoo.VOCABULARY, forms.EOS)
    assert "\n" not in str(error.value)
    with pytest.raises(DraftrecError, match="names none"):
        compile_grammar(form, forms.tokenizer(), forms.VOCABULARY, frozenset())


def test_a_missing_library_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    assert 'pip install "draftrec[grammar]"' in refusal(regex="a")
    assert check_structure(StructureConfig()) is None
