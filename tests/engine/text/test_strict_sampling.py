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
from draftrec.core import DraftTree, SequenceView, Verdict
from draftrec.engine import sampling
from draftrec.engine.noise import foreseen, noise_of
from draftrec.engine.text.accept import AcceptanceRule, Strict, make_rule
from draftrec.engine.text.batch import RunningSequence
from draftrec.engine.text.budget import FixedBudget
from draftrec.engine.text.loop import generate
from draftrec.engine.tree import chain
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
@pytest.mark.parametrize("head", [64, 2, 1])
@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.7, 1.0), (1.3, 0.8)])
def test_texts_follow_the_targets_distribution(
    temperature: float, top_p: float, head: int, monkeypatch: pytest.MonkeyPatch, *, drafted: bool
) -> None:
    """Whole texts, that is tokens jointly, however many of them compete by themselves."""
    monkeypatch.setattr(sampling, "HEAD", head)
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


class Knowing(BushyDrafter):
    """Knows the target's probabilities, and how far to believe the noise then."""

    def draft(self, batch: Seq[SequenceView], limit: int, depth: int) -> list[DraftTree]:
        return [self._chain(s, depth) for s in batch]

    def _chain(self, sequence: SequenceView, depth: int) -> DraftTree:
        assert sequence.noise is not None
        written = len(sequence.context) - len(sequence.request.prompt_ids)
        tokens = [int(sequence.context[-1])]
        for level in range(depth):
            probs = np.array(next_probs(tokens[-1], 1.0, 1.0))
            likely = foreseen(
                probs, np.arange(VOCABULARY), 0.0, sequence.noise, written + level,
                belief=1.0, sharpness=30.0,
            )  # fmt: skip
            tokens.append(int(likely.argmax()))
        return chain(tokens[1:])


def test_who_knows_the_distribution_drafts_what_will_be_drawn() -> None:
    config = AcceptConfig(temperature=1.0, seed=4)
    engine = toy_engine(TABLE, config, Knowing(VOCABULARY), most=40)
    engine.depth = 8
    done = generate(engine, toy_requests(200))
    plain = generate(toy_engine(TABLE, config, most=40), toy_requests(200))
    assert [g.token_ids.tolist() for g in done] == [g.token_ids.tolist() for g in plain]
    for text in done:  # not one draft was refused
        assert text.counts.target_calls == -(-len(text.token_ids) // 9)


def test_noise_comes_from_seed_and_key_alone() -> None:
    first = noise_of(1, 2)
    assert noise_of(1, 2) == first
    others = [noise_of(*it) for it in [(1, 3), (2, 2), (2, 1), (-1, 2), (1, 2**63), (0, 0)]]
    assert len({first, *others}) == 7
    assert all(0 <= it < 2**64 for it in (first, *others))


@pytest.mark.parametrize("accept", ["strict", "relaxed"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_drafters_are_told_what_tokens_are_drawn_by(accept: Any, temperature: float) -> None:
    told: list[int | None] = []

    class Listening(BushyDrafter):
        def start(self, sequence: SequenceView) -> None:
            told.append(sequence.noise)

    config = AcceptConfig(accept=accept, temperature=temperature, seed=6)
    generate(toy_engine(TABLE, config, Listening(VOCABULARY)), toy_requests(2))
    known = [noise_of(6, 0), noise_of(6, 1)]
    assert told == (known if temperature else [None, None])
