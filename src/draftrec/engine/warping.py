"""What sampling leaves of a distribution: temperature, top-k, top-p and their kin.

In transformers' order and with transformers' rules; rows on their own, so that draft nodes are
warped as texts are. Device code; `R` rows, `V` vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

# Sorting 32,000 columns costs twenty times as much as finding the first 256 of them.
_FIRST = 256
# top-h looks at no more tokens than that (arXiv 2509.02510).
_TOP_H = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Warping:
    """Which tokens a draw may take, and how sharply. None: that one is off."""

    temperature: float = 1.0
    top_h: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    typical_p: float | None = None
    epsilon_cutoff: float | None = None
    eta_cutoff: float | None = None

    @property
    def cuts(self) -> bool:
        """Whether any token can become impossible."""
        kinds = (self.top_h, self.top_k, self.min_p, self.epsilon_cutoff, self.eta_cutoff)
        shares = (self.top_p, self.typical_p)
        return any(kinds) or any(s is not None and s < 1.0 for s in shares)

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        """float32 `[R, V]`: scores over the temperature, minus infinity where a cut removed them.

        A row always keeps its most probable token. Among exactly equal scores at the border of
        top-p, which ones stay is not fixed.
        """
        scores = logits.float() / self.temperature
        if self.top_h:
            scores = _top_h(scores, self.top_h)
        if self.top_k:
            kth = scores.topk(min(self.top_k, scores.shape[-1]), -1).values[:, -1:]
            scores = scores.masked_fill(scores < kth, -torch.inf)
        if self.top_p is not None and self.top_p < 1.0:
            scores = _top_p(scores, self.top_p)
        if self.min_p:
            probs = scores.softmax(-1)
            scores = scores.masked_fill(probs < self.min_p * probs.amax(-1, True), -torch.inf)
        if self.typical_p is not None and self.typical_p < 1.0:
            scores = _typical(scores, self.typical_p)
        if self.epsilon_cutoff:
            scores = _above(scores, torch.tensor(self.epsilon_cutoff, device=scores.device))
        if self.eta_cutoff:
            epsilon = torch.tensor(self.eta_cutoff, device=scores.device)
            flat = epsilon.sqrt() * torch.exp(-_entropy(scores.log_softmax(-1)))
            scores = _above(scores, torch.minimum(epsilon, flat))
        return scores


def _top_p(scores: torch.Tensor, share: float) -> torch.Tensor:
    """The smallest set of most probable tokens whose mass reaches `share` (arXiv 1904.09751)."""
    probs = scores.softmax(-1)
    ordered, ids = probs.topk(min(_FIRST, probs.shape[-1]), -1)
    if bool((ordered.sum(-1) < share).any()):
        ordered, ids = torch.sort(probs, dim=-1, descending=True, stable=True)
    before = ordered.cumsum(-1) - ordered
    inside = torch.full_like(scores, -torch.inf)
    kept = scores.gather(-1, ids).masked_fill(before >= share, -torch.inf)
    return inside.scatter_(-1, ids, kept)


def _typical(scores: torch.Tensor, share: float) -> torch.Tensor:
    """The tokens whose surprise is nearest to the entropy, up to a mass of `share` (arXiv
    2202.00666)."""
    log_probs = scores.log_softmax(-1)
    distance = (-log_probs - _entropy(log_probs)).abs()
    ordered, ids = distance.sort(-1)
    mass = scores.gather(-1, ids).softmax(-1).cumsum(-1)
    last = (mass < share).sum(-1, keepdim=True).clamp(max=scores.shape[-1] - 1)
    removed = ordered > ordered.gather(-1, last)
    removed[:, 0] = False
    return scores.masked_fill(removed.scatter(-1, ids, removed), -torch.inf)


def _top_h(scores: torch.Tensor, share: float) -> torch.Tensor:
    """The most probable tokens, as long as their part of the entropy is within `share` of it."""
    values, ids = scores.topk(min(_TOP_H, scores.shape[-1]), -1)
    log_probs = values.log_softmax(-1)
    parts = -log_probs.exp() * log_probs.clamp(min=torch.finfo(log_probs.dtype).min)
    kept = parts.cumsum(-1) <= share * parts.sum(-1, keepdim=True)
    kept[:, 0] = True
    out = torch.full_like(scores, -torch.inf)
    return out.scatter_(-1, ids, values.masked_fill(~kept, -torch.inf))


def _above(scores: torch.Tensor, least: torch.Tensor) -> torch.Tensor:
    """Tokens at least as probable as `least` (one number or `[R, 1]`), and the first one."""
    few = scores.softmax(-1) < least
    return scores.masked_fill(few & (scores < scores.amax(-1, True)), -torch.inf)


def _entropy(log_probs: torch.Tensor) -> torch.Tensor:
    """`[R, 1]`, in nats."""
    return -(log_probs * log_probs.exp()).nansum(-1, keepdim=True)
