"""What a head is taught, against the same said plainly: scores after penalties, losses, and calls
that drafting would have saved."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import linear
from transformers import RepetitionPenaltyLogitsProcessor

from draftrec.engine.learned.head import DraftHead, HeadShape
from draftrec.engine.learned.rules import ScoreRules
from draftrec.models.drafters import OutputRows
from draftrec.train.drafter.task import (
    HeadModel,
    HeadTask,
    Seen,
    draft_vocabulary,
    target_calls,
)
from draftrec.train.drafter.texts import TrainingText
from draftrec.train.settings import HeadSettings

WORDS, WIDTH, DRAFTS, LEVELS = 60, 16, 25, 3
RULES = [
    ScoreRules(),
    ScoreRules(repetition=1.7),
    ScoreRules(presence=0.8, frequency=0.3, temperature=0.6),
    ScoreRules(1.3, 0.2, 0.5, 1.4),
]


def texts(rules: list[ScoreRules]) -> list[TrainingText]:
    """Texts that repeat some of their prompts' and their own tokens."""
    rng = np.random.default_rng(1)
    found: list[TrainingText] = []
    for i, rule in enumerate(rules):
        ids = rng.integers(0, 30, 14 + 3 * i).astype(np.int32)
        found.append(TrainingText(f"e{i}", ids, 4 + i, rule))
    return found


def task(rules: list[ScoreRules], **settings: Any) -> tuple[HeadTask, HeadModel]:
    torch.manual_seed(3)
    shape = HeadShape(hidden=WIDTH, heads=2, kv_heads=1, head_dim=8, inner=24)
    head, embedding = DraftHead(shape), torch.nn.Embedding(WORDS, WIDTH)
    for weight in head.parameters():
        torch.nn.init.normal_(weight, std=0.4)
    taught = texts(rules)
    tokens = torch.from_numpy(draft_vocabulary(taught, [2], DRAFTS)).long()
    index = torch.full((WORDS,), len(tokens))
    index[tokens] = torch.arange(len(tokens))
    output = OutputRows(partial(linear, weight=torch.randn(len(tokens), WIDTH)))
    features: Any = [torch.randn(len(it.ids) - 1, WIDTH).half() for it in taught]
    numbers = list(range(len(taught)))
    given = HeadSettings(vocabulary=DRAFTS, levels=LEVELS, **settings)
    made = HeadTask(taught, features, numbers, numbers, index, len(tokens), given, 60, 0)
    return made, HeadModel(head, embedding, output)


def scored(logits: torch.Tensor, text: TrainingText, row: int, tokens: list[int]) -> torch.Tensor:
    """Scores `[V]` after the tokens up to the one that row `row` of the text foretells."""
    rules, before = text.rules, text.ids[: text.first + row].tolist()
    written = before[text.first :]
    spread = torch.zeros(1, WORDS)
    spread[0, tokens] = logits
    if rules.repetition != 1:
        process = RepetitionPenaltyLogitsProcessor(rules.repetition)
        spread = process(torch.tensor([before]), spread)
    for token in set(written):
        spread[0, token] -= rules.presence + rules.frequency * written.count(token)
    return spread[0, tokens] / rules.temperature


def tokens_of(made: HeadTask) -> list[int]:
    order = torch.argsort(made.index)
    return order[: made.draft_tokens].tolist()


def rows_of(made: HeadTask) -> list[tuple[TrainingText, int]]:
    """Text and row of everything in the batch of all texts, in order."""
    return [(it, row) for it in made.texts for row in range(len(it.ids) - it.first)]


@pytest.mark.parametrize("rules", [RULES, RULES[:1], RULES[1:2], RULES[2:3]])
def test_scores_are_those_that_tokens_were_chosen_by(rules: list[ScoreRules]) -> None:
    made, _ = task(rules)
    batch = made.batch(range(len(rules)))
    rows, tokens = rows_of(made), tokens_of(made)
    logits = torch.randn(len(rows), made.draft_tokens)
    found = Seen.of(batch, made.index, made.draft_tokens)(logits)
    for i, (text, row) in enumerate(rows):
        torch.testing.assert_close(found[i], scored(logits[i], text, row, tokens))


def drafted(model: HeadModel, made: HeadTask, number: int, row: int) -> torch.Tensor:
    """Scores `[levels, V]` along the text's own tokens, where the target was last asked for the
    token before row `row`: row by row, each attending to all before it."""
    text, tokens = made.texts[number], tokens_of(made)
    known, head = made.features[number].float(), model.head
    embedded = model._borrowed[0](torch.from_numpy(text.ids).long())
    last = text.first - 1 + row
    feature, keys, values, found = torch.zeros(WIDTH), [], [], []
    for t in range(min(last + LEVELS, len(text.ids) - 1)):
        if 0 < t <= last:
            feature = known[t - 1]
        stream = head.joined(embedded[t][None], feature[None])
        query, key, value = head.attended(stream, torch.tensor([t]))
        keys.append(key)
        values.append(value)
        k, v = (torch.cat(it)[None].transpose(1, 2) for it in (keys, values))
        mixed = torch.nn.functional.scaled_dot_product_attention(
            query[None].transpose(1, 2), k, v, enable_gqa=True
        )
        feature = head.foretold(stream, mixed[0].transpose(0, 1))[0]
        if t >= last:
            found.append(scored(model.output(feature), text, t + 1 - text.first, tokens))
    return torch.stack(found)


def calls_of(model: HeadModel, made: HeadTask, number: int) -> int:
    """Calls for a text, drafting and looking what is right."""
    text, tokens = made.texts[number], tokens_of(made)
    n = len(text.ids) - text.first
    calls, at = 1, 1
    while at < n:
        best = [tokens[i] for i in drafted(model, made, number, at).argmax(-1).tolist()]
        wanted = text.ids[text.first + at :].tolist()
        right = [a == b for a, b in zip(best, wanted, strict=False)]
        taken = right.index(False) if False in right else len(right)
        calls, at = calls + 1, at + taken + 1
    return calls


@torch.no_grad()
def test_calls_are_those_of_drafting_step_by_step() -> None:
    made, model = task(RULES)
    with torch.no_grad():  # let some drafts be right
        model.head.down.weight *= 0.1
    expected = [calls_of(model, made, i) for i in range(len(RULES))]
    found = made.validate(model)
    assert found is not None
    tokens = len(rows_of(made))
    assert sum(expected) < tokens, "nothing was right"
    assert found.metrics["valid_tokens_per_call"] == pytest.approx(tokens / sum(expected))
    assert found.score == found.metrics["valid_tokens_per_call"]


@pytest.mark.parametrize(
    ("right", "calls"),
    [
        ([[1, 1, 1, 1, 1], [1, 1, 1, 1, 1]], 3),
        ([[0, 0, 0, 0, 0], [1, 1, 1, 1, 1]], 5),
        ([[1, 1, 0, 1, 1], [1, 1, 1, 0, 1]], 3),
        ([[1, 1, 1, 1, 1], [0, 0, 0, 1, 1]], 3),
        ([[1], [1]], 1),
    ],
)
def test_calls_of_the_target(right: list[list[int]], calls: int) -> None:
    assert target_calls(np.array(right, np.bool_)) == calls


@torch.no_grad()
@pytest.mark.parametrize("loss", ["kl", "ce"])
def test_the_loss_is_the_mean_over_rows_weighted_over_levels(loss: str) -> None:
    made, model = task(RULES, loss=loss, decay=0.5)
    tokens = tokens_of(made)
    batch = made.batch(range(len(RULES)))
    lost: list[list[torch.Tensor]] = [[] for _ in range(LEVELS)]
    for number, text in enumerate(made.texts):
        own = model.output(made.features[number].float())
        for row in range(len(text.ids) - text.first):
            right = scored(own[text.first - 1 + row], text, row, tokens).log_softmax(-1)
            token = int(text.ids[text.first + row])
            for level in range(min(LEVELS, row + 1)):
                guess = drafted(model, made, number, row - level)[level].log_softmax(-1)
                if loss == "kl":
                    lost[level].append((right.exp() * (right - guess)).sum())
                elif token in tokens:
                    lost[level].append(-guess[tokens.index(token)])
    expected = sum(0.5**i * torch.stack(it).mean() for i, it in enumerate(lost)) / 1.75
    torch.testing.assert_close(made.loss(model, batch), expected, rtol=1e-4, atol=1e-5)


def test_a_batch_has_all_texts_once_and_not_too_many_tokens() -> None:
    made, _ = task(RULES * 5)
    made = replace(made, batch_tokens=140)
    seen: list[tuple[int, ...]] = []
    for batch in made.batches(0):
        rows = len(batch["ids"]) * (batch["ids"].shape[1] + 1)
        assert rows <= made.batch_tokens or len(batch["ids"]) == 1
        for ids, text, lead in zip(batch["ids"], batch["text"], batch["lead"], strict=True):
            own = text[text >= 0].tolist()
            prompt = ids[lead : len(ids) - len(text) + 1].tolist()
            assert ids[len(ids) - len(text) + 1 :][: len(own) - 1].tolist() == own[:-1]
            seen.append((*prompt, *own))
    assert len(list(made.batches(0))) == made.steps() > 1
    assert sorted(seen) == sorted(tuple(it.ids.tolist()) for it in made.texts)
    first, again, second = (
        [batch["ids"].tolist() for batch in made.batches(epoch)] for epoch in (0, 0, 1)
    )
    assert first == again != second


def test_draft_tokens_are_those_that_texts_use_most() -> None:
    one = TrainingText("a", np.array([9, 9, 9, 8, 5, 5, 4, 4, 6], np.int32), 4, ScoreRules())
    # 7 ends texts; 4 and 5 are used twice, 6 once; 9 and 8 by the prompt alone.
    assert draft_vocabulary([one], [7], 99).tolist() == [7, 4, 5, 6, 9, 8]
    assert draft_vocabulary([one], [7], 3).tolist() == [7, 4, 5]
