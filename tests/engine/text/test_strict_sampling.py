"""Strict sampling: texts keep the target's distribution, and do not depend on drafts at all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence as Seq
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats as scipy_stats

from draftrec.config import AcceptConfig
from draftrec.core import DraftTree, Verdict
from draftrec.engine.text.accept import AcceptanceRule, Strict, make_rule, uniforms_for
from draftrec.engine.text.batch import RunningSequence
from draftrec.engine.text.budget import FixedBudget
from draftrec.engine.text.loop import generate
from tests.engine.text.helpers import PROMPTS, GuessingDrafter, make_engine, plain_text, requests
from tests.engine.text.toy import EOS, BushyDrafter, toy_engine, toy_requests

VOCABULARY, LENGTH, TEXTS = 5, 3, 4_000
TABLE = np.random.default_rng(8).normal(0, 1.2, (VOCABULARY, VOCABULARY))
THRESHOLD = 1e-4


def next_probs(token: int, temperature: float, top_p: float) -> list[float]:
    """The definition, written out: softmax, then the smallest most probable set reaching top_p."""
    weights = np.exp(TABLE[token] / temperature)
    probs = weights / weights.sum()
    mass, kept = 0.0, np.zeros(VOCABULARY)
    for i in sorted(range(VOCABULARY), key=lambda i: -probs[i]):
        if mass < top_p:
            kept[i] = probs[i]
            mass += probs[i]
    return (kept / kept.sum()).tolist()


def text_probs(
    temperature: float, top_p: float, prefix: tuple[int, ...] = (), last: int = 1
) -> dict[tuple[int, ...], float]:
    """Probability of every text of at most `LENGTH` tokens after the prompt [1]."""
    if len(prefix) == LENGTH or (prefix and last == EOS):
        return {prefix: 1.0}
    found: dict[tuple[int, ...], float] = {}
    for token, p in enumerate(next_probs(last, temperature, top_p)):
        if p > 0:
            below = text_probs(temperature, top_p, (*prefix, token), token)
            found |= {text: p * q for text, q in below.items()}
    return found


def p_value(config: AcceptConfig, rule: AcceptanceRule | None = None, *, drafted: bool) -> float:
    """Chi-square of `TEXTS` sampled texts against the target's distribution over whole texts."""
    drafter = BushyDrafter(VOCABULARY, seed=3) if drafted else None
    engine = toy_engine(TABLE, config, drafter, most=LENGTH, rule=rule)
    done = generate(engine, toy_requests(TEXTS))
    accepted = sum(g.counts.accepted_tokens for g in done)
    assert accepted > TEXTS / 2 if drafted else not accepted
    seen = Counter(tuple(g.token_ids.tolist()) for g in done)
    expected = text_probs(config.temperature, config.top_p or 1.0)
    if set(seen) - set(expected):
        return 0.0
    rare = [t for t, p in expected.items() if p * TEXTS < 5]
    common = [t for t in expected if t not in rare]
    observed = [seen[t] for t in common]
    wanted = [expected[t] * TEXTS for t in common]
    if rare:
        observed.append(sum(seen[t] for t in rare))
        wanted.append(sum(expected[t] for t in rare) * TEXTS)
    return float(scipy_stats.chisquare(observed, wanted).pvalue)


@pytest.mark.slow
@pytest.mark.parametrize("drafted", [False, True])
@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.7, 1.0), (1.3, 0.8)])
def test_texts_follow_the_targets_distribution(
    temperature: float, top_p: float, *, drafted: bool
) -> None:
    config = AcceptConfig(temperature=temperature, top_p=top_p, seed=11)
    assert p_value(config, drafted=drafted) > THRESHOLD


class DrawsAgain(Strict):
    """A plausible mistake: when no child matches the draw, the bonus token is drawn once more."""

    again = np.random.default_rng(0)

    def accept(
        self, batch: Seq[RunningSequence], trees: Seq[DraftTree], logits: torch.Tensor
    ) -> list[Verdict]:
        verdicts = super().accept(batch, trees, logits)
        row, changed = 0, []
        for tree, verdict in zip(trees, verdicts, strict=True):
            last = int(verdict.path[-1]) if len(verdict.path) else -1
            tokens = verdict.token_ids.copy()
            if len(tokens) > len(verdict.path) and last in tree.parents:
                probs = torch.softmax(logits[row + last + 1] / self.config.temperature, -1)
                tokens[-1] = self.again.choice(VOCABULARY, p=probs.numpy())
            changed.append(Verdict(verdict.path, tokens))
            row += 1 + len(tree)
        return changed


@pytest.mark.slow
@pytest.mark.parametrize("biased", ["relaxed", "draws again"])
def test_the_check_notices_biased_rules(biased: str) -> None:
    config = AcceptConfig(temperature=1.0, seed=11)
    relaxed = config.model_copy(update={"accept": "relaxed", "top_k": 2, "min_prob": 0.2})
    eos = frozenset([EOS])
    rule = make_rule(relaxed, eos) if biased == "relaxed" else DrawsAgain(config, eos)
    assert p_value(config, rule, drafted=True) < THRESHOLD


@pytest.mark.slow
@pytest.mark.parametrize("top_p", [1.0, 0.7])
def test_a_sampled_text_is_the_same_whatever_is_drafted(top_p: float) -> None:
    config = AcceptConfig(temperature=0.9, top_p=top_p, seed=5)
    plain = generate(toy_engine(TABLE, config, most=12), toy_requests(50))
    for seed in range(3):
        drafter = BushyDrafter(VOCABULARY, seed)
        done = generate(toy_engine(TABLE, config, drafter, most=12), toy_requests(50))
        assert [g.token_ids.tolist() for g in done] == [g.token_ids.tolist() for g in plain]
    assert len({tuple(g.token_ids.tolist()) for g in plain}) > 25


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "gemma2", "falcon"])
def test_sampled_text_of_a_model_depends_on_seed_and_key_only(name: str) -> None:
    """Not on drafts, slots, prompt chunks or the other requests."""

    def texts(config: AcceptConfig, picked: Seq[int], **settings: Any) -> list[list[int]]:
        engine = make_engine(name, accept=config, **settings)
        return [g.token_ids.tolist() for g in generate(engine, [requests()[i] for i in picked])]

    config = AcceptConfig(temperature=0.8, top_p=0.9, seed=1)
    plain = texts(config, range(6), slots=1)
    truth = {str(i): t for i, t in enumerate(plain)}
    drafted = texts(
        config, range(6), drafter=GuessingDrafter(truth, 0.8), budget=FixedBudget(12), slots=6,
        prefill_chunk=5,
    )  # fmt: skip
    assert drafted == plain
    assert texts(config, [4, 1]) == [plain[4], plain[1]]
    assert plain != [plain_text(name, p) for p in PROMPTS]
    assert texts(config.model_copy(update={"seed": 2}), range(6)) != plain


def test_uniforms_come_from_seed_and_key_alone() -> None:
    first = uniforms_for(1, 2, 10)
    assert (uniforms_for(1, 2, 20)[:10] == first).all()
    for seed, key in [(1, 3), (2, 2), (2, 1), (-1, 2)]:
        assert not (uniforms_for(seed, key, 10) == first).any()
    assert ((first >= 0) & (first < 1)).all()
