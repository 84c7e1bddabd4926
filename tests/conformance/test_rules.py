"""What the loop relies on, of every acceptance rule: a way down the tree and a token of the
target's own after it, whatever the neighbours."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from draftrec.config import AcceptConfig
from draftrec.core import EMPTY_TREE, DraftTree, Request, Verdict
from draftrec.engine.noise import noise_of
from draftrec.engine.text.accept import AcceptanceRule, make_rule
from draftrec.engine.text.batch import RunningSequence
from draftrec.engine.tree import chain, depths
from tests.engine.text.toy import EOS, BushyDrafter

VOCABULARY, ROOM = 6, 4
RULES: dict[str, dict[str, Any]] = {
    "strict": {},
    "strict, sampled": {"temperature": 0.9, "top_p": 0.9, "sample_top_k": 5},
    "relaxed": {"accept": "relaxed", "top_k": 3, "min_prob": 0.05},
    "relaxed, first": {"accept": "relaxed", "top_k": 3, "min_prob": 0.0, "tie_break": "first"},
    "relaxed, limited": {"accept": "relaxed", "top_k": 3, "min_prob": 0.0, "max_deviations": 1},
    "relaxed, known": {"accept": "relaxed", "top_k": 3, "min_prob": 0.0, "deviate_to": "known"},
    "relaxed, sampled": {"accept": "relaxed", "top_k": 3, "min_prob": 0.05, "temperature": 0.8},
    "typical": {"accept": "typical"},
    "typical, no guard": {"accept": "typical", "epsilon": 0.0, "eos_guard": False},
    "entropy": {"accept": "entropy", "window": 1},
}


@pytest.fixture(params=RULES)
def config(request: pytest.FixtureRequest) -> AcceptConfig:
    return AcceptConfig(**RULES[request.param])


@pytest.fixture
def rule(config: AcceptConfig) -> AcceptanceRule:
    return make_rule(config, frozenset([EOS]))


def sequence(number: int, room: int = ROOM) -> RunningSequence:
    made = RunningSequence(number, number, Request(str(number), np.array([1], np.int32)), room)
    made.noise = noise_of(0, number)
    return made


def drafts(count: int, seed: int) -> list[DraftTree]:
    """Trees as the loop hands them over: no deeper than a text has room for besides the bonus."""
    drafter = BushyDrafter(VOCABULARY, seed)
    return [*drafter.draft([None] * (count - 1), 14, ROOM - 1), EMPTY_TREE]  # type: ignore[list-item]


def scores(trees: list[DraftTree], seed: int) -> torch.Tensor:
    rows = sum(1 + len(t) for t in trees)
    random = np.random.default_rng(seed)
    return torch.from_numpy(2 * random.normal(size=(rows, VOCABULARY))).float()


def told(verdicts: list[Verdict]) -> list[Any]:
    return [(v.path.tolist(), v.token_ids.tolist(), v.deviations) for v in verdicts]


@pytest.mark.parametrize("seed", range(8))
def test_a_verdict_is_a_way_down_the_tree(
    rule: AcceptanceRule, config: AcceptConfig, seed: int
) -> None:
    trees = drafts(6, seed)
    verdicts = rule.accept([sequence(i) for i in range(6)], trees, scores(trees, seed))
    for tree, verdict in zip(trees, verdicts, strict=True):
        path, tokens = verdict.path.tolist(), verdict.token_ids.tolist()
        assert [tree.parents[i] for i in path] == [-1, *path][: len(path)]
        assert depths(tree)[verdict.path].tolist() == [*range(len(path))]
        assert tokens[: len(path)] == tree.token_ids[verdict.path].tolist()
        assert 1 <= len(tokens) <= ROOM
        assert EOS not in tokens[:-1]
        # A bonus token follows the path, unless the text is over.
        assert len(tokens) - len(path) == (0 if path and tokens[len(path) - 1] == EOS else 1)
        # Beside a draw that was less probable, nothing is given up.
        least = 0.0 if config.temperature == 0 else -np.inf
        assert all(p < len(path) and least < nats < np.inf for p, nats in verdict.deviations)


@pytest.mark.parametrize("seed", range(4))
def test_a_verdict_does_not_depend_on_the_neighbours(rule: AcceptanceRule, seed: int) -> None:
    trees = drafts(5, seed)
    logits = scores(trees, seed)
    together = told(rule.accept([sequence(i) for i in range(5)], trees, logits))
    parts = logits.split([1 + len(t) for t in trees])
    alone = [told(rule.accept([sequence(i)], [trees[i]], parts[i]))[0] for i in range(len(trees))]
    assert alone == together
    backwards = told(
        rule.accept([sequence(i) for i in range(5)][::-1], trees[::-1], torch.cat(parts[::-1]))
    )
    assert backwards == together[::-1]


def test_without_a_draft_the_token_is_the_targets_own(
    rule: AcceptanceRule, config: AcceptConfig
) -> None:
    trees = [EMPTY_TREE] * 40
    logits = scores(trees, 1)
    batch = [sequence(i) for i in range(40)]
    found = [v.token_ids.tolist() for v in rule.accept(batch, trees, logits)]
    if config.temperature == 0:
        assert found == [[token] for token in logits.argmax(-1).tolist()]
    else:
        strict = make_rule(config.model_copy(update={"accept": "strict"}), frozenset([EOS]))
        own = strict.accept(batch, trees, logits)
        assert found == [v.token_ids.tolist() for v in own]


def test_what_the_target_would_write_is_accepted_whole(
    rule: AcceptanceRule, config: AcceptConfig
) -> None:
    """A draft of the target's own choices costs nothing, by any rule."""
    logits = torch.full((4, VOCABULARY), -10.0)
    for row, token in enumerate((2, 4, 3, 5)):
        logits[row, token] = 10.0
    [verdict] = rule.accept([sequence(0)], [chain([2, 4, 3])], logits)
    assert verdict.token_ids.tolist() == [2, 4, 3, 5]
    assert verdict.deviations == ()


def test_an_end_that_the_target_chose_is_not_passed(rule: AcceptanceRule) -> None:
    logits = torch.full((3, VOCABULARY), -10.0)
    logits[0, 2], logits[1, EOS], logits[2, 3] = 10.0, 10.0, 10.0
    [verdict] = rule.accept([sequence(0)], [chain([2, EOS])], logits)
    assert verdict.token_ids.tolist() == [2, EOS]
