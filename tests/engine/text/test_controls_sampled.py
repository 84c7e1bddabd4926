"""Sampled texts under controls follow the target's distribution after them, drafted or not."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
import transformers as tf
from scipy import stats as scipy_stats

from draftrec.config import AcceptConfig
from draftrec.engine.text.loop import generate
from draftrec.engine.text.settings import GenerationSettings, make_controls
from tests.engine.text.test_strict_sampling import LENGTH, TABLE, THRESHOLD, VOCABULARY
from tests.engine.text.toy import EOS, BushyDrafter, toy_engine, toy_requests

TEXTS = 2500
CONTROLS = GenerationSettings(
    repetition_penalty=1.6, no_repeat_ngram_size=2, min_new_tokens=2, sequence_bias=(((3,), 0.7),)
)
CONFIG = AcceptConfig(temperature=1.2, sample_top_k=4, min_p=0.05, seed=11)


def processors() -> tf.LogitsProcessorList:
    """transformers' own, for a prompt of one token."""
    return tf.LogitsProcessorList(
        [
            tf.SequenceBiasLogitsProcessor([[[3], 0.7]]),
            tf.RepetitionPenaltyLogitsProcessor(1.6),
            tf.NoRepeatNGramLogitsProcessor(2),
            tf.MinNewTokensLengthLogitsProcessor(1, 2, EOS),
            tf.TemperatureLogitsWarper(1.2),
            tf.TopKLogitsWarper(4),
            tf.MinPLogitsWarper(0.05),
        ]
    )


def text_probs(prefix: tuple[int, ...] = ()) -> dict[tuple[int, ...], float]:
    """Probability of every text of at most `LENGTH` tokens after the prompt [1]."""
    if len(prefix) == LENGTH or (prefix and prefix[-1] == EOS):
        return {prefix: 1.0}
    ids: Any = torch.tensor([[1, *prefix]])
    scores: Any = torch.tensor(TABLE[int(ids[0, -1])], dtype=torch.float32)[None]
    probs = processors()(ids, scores).softmax(-1)[0].tolist()
    found: dict[tuple[int, ...], float] = {}
    for token in (t for t in range(VOCABULARY) if probs[t] > 0):
        below = text_probs((*prefix, token))
        found |= {text: probs[token] * q for text, q in below.items()}
    return found


def p_value(settings: GenerationSettings, *, drafted: bool) -> float:
    """Chi-square of sampled texts against the distribution; 0 for an impossible text."""
    drafter = BushyDrafter(VOCABULARY, seed=3) if drafted else None
    engine = toy_engine(TABLE, CONFIG, drafter, most=LENGTH)
    engine.controls = make_controls(settings, frozenset([EOS]))
    done = generate(engine, toy_requests(TEXTS))
    assert bool(sum(g.counts.accepted_tokens for g in done)) == drafted
    seen = Counter(tuple(g.token_ids.tolist()) for g in done)
    expected = text_probs()
    if set(seen) - set(expected):
        return 0.0
    common = [t for t, p in expected.items() if p * TEXTS >= 5]
    rest = [t for t in expected if t not in common]
    observed, wanted = [seen[t] for t in common], [expected[t] * TEXTS for t in common]
    if rest:
        observed.append(sum(seen[t] for t in rest))
        wanted.append(sum(expected[t] for t in rest) * TEXTS)
    return float(scipy_stats.chisquare(observed, wanted, sum_check=False).pvalue)


@pytest.mark.slow
@pytest.mark.parametrize("drafted", [False, True])
def test_texts_follow_the_controlled_distribution(*, drafted: bool) -> None:
    assert p_value(CONTROLS, drafted=drafted) > THRESHOLD


@pytest.mark.slow
def test_the_check_notices_a_control_that_is_missing() -> None:
    assert p_value(GenerationSettings(no_repeat_ngram_size=2), drafted=True) < THRESHOLD
