"""From logits to the target's own next tokens. Device code; `R` rows, `V` vocabulary."""

from __future__ import annotations

import torch


def greedy(logits: torch.Tensor) -> torch.Tensor:
    """int64 `[R]`: the most probable token of each row, the smallest id among equals."""
    return logits.argmax(-1)


def sample(
    logits: torch.Tensor, uniforms: torch.Tensor, temperature: float, top_p: float
) -> torch.Tensor:
    """int64 `[R]`: one draw per row by inverting the cumulative distribution at `uniforms`.

    `uniforms` float64 `[R]` in [0, 1). A row's draw depends on its logits and its uniform only, so
    a text is the same whatever was drafted. `top_p` < 1 keeps the smallest set of most probable
    tokens whose mass reaches it (nucleus sampling, arXiv 1904.09751).
    """
    probs = torch.softmax(logits.double() / temperature, -1)
    if top_p >= 1.0:
        return _invert(probs, uniforms)
    ordered, ids = probs.sort(-1, descending=True, stable=True)
    before = ordered.cumsum(-1) - ordered
    ordered = ordered.masked_fill(before >= top_p, 0.0)
    return ids.gather(-1, _invert(ordered, uniforms)[:, None])[:, 0]


def _invert(weights: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """First column whose cumulative weight exceeds the row's uniform share of the total."""
    total = weights.cumsum(-1)
    wanted = uniforms[:, None].to(total) * total[:, -1:]
    found = torch.searchsorted(total, wanted, right=True)[:, 0]
    # Rounding can carry the share past the last token that has any weight at all.
    last = weights.shape[-1] - 1 - (weights > 0).flip(-1).int().argmax(-1)
    return torch.minimum(found, last)


def most_probable(logits: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The `k` most probable tokens of each row: log-probabilities `[R, k]`, ids int64 `[R, k]`."""
    values, ids = logits.float().topk(min(k, logits.shape[-1]), -1)
    return values - logits.float().logsumexp(-1, keepdim=True), ids
