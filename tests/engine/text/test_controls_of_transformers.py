"""Every control against transformers' own processors, row by row on explicit prefixes."""

from __future__ import annotations

import types
from collections.abc import Sequence as Seq
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GenerationConfig

from draftrec.config import AcceptConfig, ControlsConfig
from draftrec.core import DraftTree
from draftrec.engine.text.batch import RunningSequence
from draftrec.engine.text.controls import Processors
from draftrec.engine.text.penalties import (
    OwnProcessors,
    PresenceAndFrequency,
    SeenTokens,
    text_alone,
)
from draftrec.engine.text.settings import make_controls, resolve
from tests.engine.text.test_controls import paths, running
from tests.models import zoo
from tests.strategies import token_lists
from tests.strategies import trees as any_tree

VOCABULARY = 13
EOS = (2, 5)

#: One generation_config each; ids are few, so that they meet often.
CASES: dict[str, dict[str, Any]] = {
    "repetition": {"repetition_penalty": 1.3},
    "reward": {"repetition_penalty": 0.8},
    "prompt's tokens": {"encoder_repetition_penalty": 1.4},
    "no token twice": {"no_repeat_ngram_size": 1},
    "bigrams": {"no_repeat_ngram_size": 2},
    "trigrams": {"no_repeat_ngram_size": 3},
    "prompt's bigrams": {"encoder_no_repeat_ngram_size": 2},
    "bad words": {"bad_words_ids": [[3], [2], [4, 5], [4, 6], [1, 1, 7], [0, 1, 2, 3]]},
    "bias": {"sequence_bias": [[[3], 1.5], [[4, 3], -2.25], [[1, 1], 0.7], [[2, 4, 3], 0.1]]},
    "least length": {"min_length": 9},
    "least new tokens": {"min_new_tokens": 4},
    "forced first": {"forced_bos_token_id": 7},
    "forced end": {"forced_eos_token_id": [2, 5]},
    "growing end": {"exponential_decay_length_penalty": (2, 1.3)},
    "suppressed": {"suppress_tokens": [1, 4, 99]},
    "suppressed at the start": {"begin_suppress_tokens": [0, 6]},
    "forced, then suppressed": {"forced_bos_token_id": 7, "begin_suppress_tokens": [0, 6]},
    "finite": {"remove_invalid_values": True, "suppress_tokens": [3]},
    "many at once": {
        "repetition_penalty": 1.2, "encoder_repetition_penalty": 0.9, "no_repeat_ngram_size": 3,
        "bad_words_ids": [[3, 4]], "sequence_bias": [[[6], 2.0]], "min_new_tokens": 3,
        "exponential_decay_length_penalty": (3, 1.1), "suppress_tokens": [8],
        "begin_suppress_tokens": [9], "forced_eos_token_id": 2, "remove_invalid_values": True,
    },
}  # fmt: skip

texts = st.tuples(token_lists(VOCABULARY, 1, 6), token_lists(VOCABULARY, 0, 8))


def ours(wanted: dict[str, Any]) -> Any:
    """Our controls for a model with that generation_config."""
    model = types.SimpleNamespace(
        generation_config=GenerationConfig(**wanted), config=zoo.plain("llama").config
    )
    found = resolve(ControlsConfig(), AcceptConfig(), model, None)
    return make_controls(found.settings, frozenset(EOS))


def theirs(wanted: dict[str, Any], sequence: RunningSequence, path: Seq[int]) -> Any:
    """transformers' processors, for one prompt alone."""
    config = GenerationConfig(**wanted, num_beams=1)
    config._eos_token_tensor = torch.tensor(EOS)
    config.max_length = sequence.prompt_tokens + sequence.new_tokens + sequence.room
    prompt = torch.tensor(sequence.request.prompt_ids.tolist())[None]
    return zoo.plain("llama")._get_logits_processor(
        config,
        input_ids_seq_length=sequence.prompt_tokens,
        encoder_input_ids=prompt,
        device="cpu",
        model_kwargs={"attention_mask": torch.ones_like(prompt)},
    )


def rows_of_scores(seed: int, count: int) -> torch.Tensor:
    return 3 * torch.randn(count, VOCABULARY, generator=torch.Generator().manual_seed(seed))


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
@settings(max_examples=20, deadline=None)
@given(
    written=st.lists(texts, min_size=1, max_size=3),
    trees=st.lists(any_tree(VOCABULARY), min_size=3, max_size=3),
    seed=st.integers(0, 999),
)
def test_rows_are_scored_as_texts(
    name: str, written: list[Any], trees: list[DraftTree], seed: int
) -> None:
    controls = ours(CASES[name])
    batch = [running(prompt, [], i, most=24) for i, (prompt, _) in enumerate(written)]
    for step in range(2):  # state is built once and then grows
        here = trees[: len(batch)]
        scores = rows_of_scores(seed + step, sum(1 + len(t) for t in here))
        found = scores.clone()
        for control in controls:
            found = control.apply(batch, here, found)
        row = 0
        for sequence, tree in zip(batch, here, strict=True):
            for path in paths(tree):
                ids = torch.tensor([[*sequence.context.tolist(), *path]])
                expected = theirs(CASES[name], sequence, path)(ids, scores[row : row + 1].clone())
                assert torch.equal(found[row : row + 1], expected), (sequence.context, path)
                row += 1
        for sequence, (_, text) in zip(batch, written, strict=True):
            extend(sequence, text)


def extend(sequence: RunningSequence, tokens: Seq[int]) -> None:
    sequence._tokens[sequence.length : sequence.length + len(tokens)] = tokens
    sequence.length += len(tokens)


@settings(max_examples=30, deadline=None)
@given(written=texts, tree=any_tree(VOCABULARY), seed=st.integers(0, 999))
def test_presence_and_frequency_count_new_tokens_alone(
    written: Any, tree: DraftTree, seed: int
) -> None:
    sequence = running(*written)
    scores = rows_of_scores(seed, 1 + len(tree))
    expected = scores.clone()
    for row, path in enumerate(paths(tree)):
        new = [*written[1], *path]
        for token in set(new):
            expected[row, token] -= 0.25 * new.count(token) + 0.5
    control = Processors([SeenTokens(PresenceAndFrequency(0.5, 0.25), text_alone)])
    torch.testing.assert_close(control.apply([sequence], [tree], scores), expected)


class Spy:
    """Adds to a token's score how long the prefix is, and takes note of the prefixes."""

    def __init__(self) -> None:
        self.seen: list[list[int]] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        assert input_ids.dtype == torch.int64
        assert len(input_ids) == len(scores)
        self.seen += input_ids.tolist()
        return scores + input_ids.sum(1, keepdim=True)


@settings(max_examples=30, deadline=None)
@given(one=texts, other=texts, tree=any_tree(VOCABULARY))
def test_processors_of_ones_own_see_each_path_as_a_text(
    one: Any, other: Any, tree: DraftTree
) -> None:
    batch, trees = [running(*one), running(*other)], [tree, tree]
    spy = Spy()
    zeros = torch.zeros(2 + 2 * len(tree), VOCABULARY)
    found = OwnProcessors([spy, spy]).apply(batch, trees, zeros)
    prefixes = [[*s.context.tolist(), *path] for s in batch for path in paths(tree)]
    assert found[:, 0].tolist() == [2 * sum(p) for p in prefixes]
    assert sorted(spy.seen) == sorted(prefixes * 2)
