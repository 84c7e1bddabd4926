"""Relaxed acceptance over whole texts: every deviation is counted, and caps and guards hold."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from draftrec.config import AcceptConfig
from draftrec.core import Generation
from draftrec.engine.text.loop import generate
from draftrec.engine.text.stats import StepStats
from draftrec.engine.text.stop_strings import StopStrings
from tests.engine.text.toy import EOS, BushyDrafter, toy_engine, toy_requests

VOCABULARY = 7
TABLE = np.random.default_rng(28).normal(0, 1.0, (VOCABULARY, VOCABULARY))


def recount(text: Generation, first: int = 1) -> tuple[int, float]:
    """Deviations from the argmax and nats given up, from the text alone."""
    deviations, loss, last = 0, 0.0, first
    for token in text.token_ids.tolist():
        deviations += token != int(TABLE[last].argmax())
        loss += float(TABLE[last].max() - TABLE[last, token])
        last = token
    return deviations, loss


def relaxed_texts(seed: int = 0, **changes: Any) -> list[Generation]:
    config = AcceptConfig.model_validate({"accept": "relaxed", "min_prob": 0.05, **changes})
    drafter = BushyDrafter(VOCABULARY, seed)
    return generate(toy_engine(TABLE, config, drafter, most=30), toy_requests(40))


@pytest.mark.slow
def test_relaxed_tokens_are_counted_as_they_are_written() -> None:
    for text in relaxed_texts():
        assert text.counts.relaxed_tokens == recount(text)[0] > 0


@pytest.mark.slow
@pytest.mark.parametrize("stop", ["bd", "deb", "d"])
def test_what_a_stop_string_cuts_off_is_not_counted(stop: str) -> None:
    """A drafted path may go on past the stop string with deviations that no text shows."""
    config = AcceptConfig(accept="relaxed", min_prob=0.05)
    engine = toy_engine(TABLE, config, BushyDrafter(VOCABULARY, 3), most=30)
    engine.stops = StopStrings([stop], letters, anchor=1)
    steps: list[StepStats] = []
    texts = generate(engine, toy_requests(200), steps.append)
    ended = [text for text in texts if text.finish_reason == "stop"]
    assert len(ended) > 10
    assert any(text.counts.drafted_tokens for text in ended)
    for text in texts:
        deviations, loss = recount(text)
        assert text.counts.relaxed_tokens == deviations
        assert text.loss == pytest.approx(loss, abs=1e-4)
    assert sum(step.relaxed_tokens for step in steps) == sum(recount(t)[0] for t in texts)


def letters(token_ids: Any) -> str:
    return "".join("abcdefg"[token] for token in token_ids.tolist())


@pytest.mark.slow
@pytest.mark.parametrize("most", [0, 1, 4])
def test_a_text_never_deviates_more_often_than_allowed(most: int) -> None:
    texts = relaxed_texts(max_deviations=most)
    assert max(recount(t)[0] for t in texts) == most


@pytest.mark.slow
@pytest.mark.parametrize("most", [0.0, 0.5, 2.0])
def test_a_text_never_gives_up_more_than_allowed(most: float) -> None:
    losses = [recount(t)[1] for t in relaxed_texts(max_loss=most)]
    assert max(losses) <= most + 1e-6
    assert max(losses) > 0.4 * most or most == 0


@pytest.mark.slow
def test_both_caps_hold_together() -> None:
    for text in relaxed_texts(max_loss=1.0, max_deviations=2):
        deviations, loss = recount(text)
        assert deviations <= 2
        assert loss <= 1.0 + 1e-6


def passes_eos(text: Generation) -> bool:
    """Did the text go on where the model would have ended it?"""
    before = [1, *text.token_ids.tolist()[:-1]]
    return any(
        int(TABLE[last].argmax()) == EOS and token != EOS
        for last, token in zip(before, text.token_ids.tolist(), strict=True)
    )


@pytest.mark.slow
def test_whole_texts_end_where_the_model_would_end_them() -> None:
    assert any(int(row.argmax()) == EOS for row in TABLE[1:])
    assert not any(passes_eos(t) for t in relaxed_texts())
    assert any(passes_eos(t) for t in relaxed_texts(eos_guard=False))
