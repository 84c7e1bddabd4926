"""The draft head: what training unrolls is what drafting computes, row by row."""

from __future__ import annotations

import pytest
import torch

from draftrec.engine.learned.head import DraftHead, HeadShape, unrolled

SHAPE = HeadShape(hidden=16, heads=4, kv_heads=2, head_dim=8, inner=24)


def path(head: DraftHead, embedded: torch.Tensor, features: torch.Tensor, asked: int) -> list:
    """Features foretold along a text whose own features are known up to row `asked` - 1, each row
    attending to all before it, one at a time."""
    keys, values, found = [], [], []
    for t in range(len(embedded)):
        feature = features[t] if t <= asked else found[-1]
        stream = head.joined(embedded[t : t + 1], feature[None])
        q, k, v = head.attended(stream, torch.tensor([t]))
        keys.append(k)
        values.append(v)
        k, v = torch.cat(keys)[None].transpose(1, 2), torch.cat(values)[None].transpose(1, 2)
        mixed = torch.nn.functional.scaled_dot_product_attention(
            q[None].transpose(1, 2), k, v, enable_gqa=True
        )
        found.append(head.foretold(stream, mixed[0].transpose(0, 1))[0])
    return found


def drawn() -> DraftHead:
    torch.manual_seed(0)
    head = DraftHead(SHAPE)
    for p in head.parameters():
        torch.nn.init.normal_(p, std=0.5)
    return head


@pytest.mark.parametrize("first", [1, 4])
def test_unrolled_rows_are_those_of_drafting_step_by_step(first: int) -> None:
    head, n = drawn(), 9
    embedded, features = torch.randn(n, 16), torch.randn(n, 16)
    items = unrolled(head, embedded[None], features[None], first, 4)
    for step, item in enumerate(items):
        for t in range(first + step, n):
            expected = path(head, embedded[: t + 1], features, t - step)[t]
            torch.testing.assert_close(item[0, t - first], expected, rtol=1e-4, atol=1e-5)


def test_texts_unrolled_together_are_those_unrolled_alone() -> None:
    head = drawn()
    sizes = [(3, 6), (5, 4), (1, 5)]  # rows of context, and of the text
    first, most = max(c for c, _ in sizes), max(n for _, n in sizes)
    both = torch.full((2, len(sizes), first + most, 16), 7.0)  # padding is not zero
    lead = torch.tensor([first - c for c, _ in sizes])
    alone = []
    for i, (context, n) in enumerate(sizes):
        inputs = torch.randn(2, 1, context + n, 16)
        both[:, i, first - context : first + n] = inputs[:, 0]
        alone.append(unrolled(head, *inputs, context, 3))
    together = unrolled(head, *both, first, 3, lead)
    for i, (_, n) in enumerate(sizes):
        for step in range(3):
            found, expected = together[step][i, step:n], alone[i][step][0, step:]
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_row_is_turned_by_its_position() -> None:
    torch.manual_seed(1)
    head = DraftHead(SHAPE)
    stream = torch.randn(2, 16)
    here, there = (head.attended(stream, torch.tensor([p, p + 3])) for p in (0, 7))
    scores = [(q[0] * k[1].repeat_interleave(2, 0)).sum(-1) for q, k, _ in (here, there)]
    torch.testing.assert_close(*scores)
    assert not torch.allclose(here[1], there[1])
