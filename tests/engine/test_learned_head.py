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


@pytest.mark.parametrize("first", [1, 4])
def test_unrolled_rows_are_those_of_drafting_step_by_step(first: int) -> None:
    torch.manual_seed(0)
    head, n = DraftHead(SHAPE), 9
    for p in head.parameters():
        torch.nn.init.normal_(p, std=0.5)
    embedded, features = torch.randn(n, 16), torch.randn(n, 16)
    items = unrolled(head, embedded, features, first, 4)
    for step, item in enumerate(items):
        for t in range(first + step, n):
            expected = path(head, embedded[: t + 1], features, t - step)[t]
            torch.testing.assert_close(item[t - first], expected, rtol=1e-4, atol=1e-5)


def test_a_row_is_turned_by_its_position() -> None:
    torch.manual_seed(1)
    head = DraftHead(SHAPE)
    stream = torch.randn(2, 16)
    here, there = (head.attended(stream, torch.tensor([p, p + 3])) for p in (0, 7))
    scores = [(q[0] * k[1].repeat_interleave(2, 0)).sum(-1) for q, k, _ in (here, there)]
    torch.testing.assert_close(*scores)
    assert not torch.allclose(here[1], there[1])
