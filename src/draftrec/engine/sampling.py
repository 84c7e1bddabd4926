"""From logits to the target's own next tokens. Device code; `R` rows, `V` vocabulary.

What is left of a distribution to draw from (temperature, top-k, top-p and their kin) is as in
transformers: in its order and with its rules; rows on their own, so that draft nodes are warped as
texts are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from draftrec.core import FloatArray, IntArray, LongArray, TokenScore
from draftrec.engine.noise import FIRST, GOLDEN, REST, SECOND
from draftrec.engine.passes import exponentials

#: Tokens of a row that compete by themselves when one is drawn. Of 64, the others have a few
#: percent at temperature 1, and finding them is quick.
HEAD = 64
# Rows whose whole vocabulary is hashed at once: 16 of 262,144 tokens are 34 MB at every step of it.
_ROWS = 16
_GOLDEN, _FIRST, _SECOND = (it - 2**64 if it >= 2**63 else it for it in (GOLDEN, FIRST, SECOND))


def greedy(logits: torch.Tensor) -> torch.Tensor:
    """int64 `[R]`: the most probable token of each row, the smallest id among equals."""
    if logits.device.type == "cpu":
        # PyTorch's argmax takes 1.8 ms for 16 x 32,000 bfloat16 on a CPU core, NumPy's 0.05 ms.
        return torch.from_numpy(logits.float().numpy().argmax(-1))
    return logits.argmax(-1)


def draw(scores: torch.Tensor, noise: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """int64 `[R]`: one draw per row from the softmax of its `scores` `[R, V]`, by Gumbel-max.

    `noise` int64 `[R]`, the bits of each row's `noise.noise_of`; `positions` int64 `[R]`, where in
    its text the token will stand. Both and the row's scores alone decide its draw, so a text is the
    same whatever was drafted. Hashing a large vocabulary for every row would be slow: all but the
    `HEAD` most probable tokens compete as one event with a variable of its own, and only where that
    wins among themselves. That is a draw from the softmax however tokens are parted; those that tie
    where the head ends are all left out of it, so that no order counts. (To invert a cumulative
    distribution would be as exact, but where sums are rounded otherwise, as in passes of other
    shapes, it may give quite another token.)
    """
    scores, places = scores.float(), _places(noise, positions)
    logs, ids = scores.topk(min(HEAD + 1, scores.shape[-1]), -1)
    if scores.shape[-1] <= HEAD:
        return ids.gather(-1, _race(logs, places, ids).argmin(-1, True))[:, 0]
    ids, border, logs = ids[:, :-1], logs[:, -1:], logs[:, :-1]
    outside = logs <= border
    others = scores.scatter(-1, ids, logs.masked_fill(~outside, -torch.inf))
    logs = torch.cat([logs.masked_fill(outside, -torch.inf), log_sum_exp(others)[:, None]], -1)
    ids = torch.cat([ids, torch.full_like(ids[:, :1], REST)], -1)
    chosen = ids.gather(-1, _race(logs, places, ids).argmin(-1, True))[:, 0]
    every = torch.arange(scores.shape[-1], device=scores.device)
    for rows in (chosen == REST).nonzero()[:, 0].split(_ROWS):
        race = _race(others[rows], places[rows], every.expand(len(rows), -1))
        chosen[rows] = race.argmin(-1)
    return chosen


def log_variables(noise: torch.Tensor, positions: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """float64 `[R, n]`: logs of the exponential variables of tokens `ids` int64 `[R, n]`, `noise`
    and `positions` as `draw` takes them. The less they are, the sooner a token is drawn."""
    return torch.log(-torch.log(_uniforms(_places(noise, positions), ids)))


def _race(logs: torch.Tensor, places: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """float64 `[R, n]`: the log of each event's exponential variable over its weight."""
    return torch.log(-torch.log(_uniforms(places, ids))) - logs.double()


def _places(noise: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """int64 `[R]`, the bits of `noise.place_of`."""
    return _mixed(noise + _GOLDEN * (positions + 1))


def _uniforms(places: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """float64 `[R, n]`, as `noise.uniform`."""
    bits = _shifted(_mixed(places[:, None] + _GOLDEN * (ids + 3)), 12)
    return (bits.double() + 0.5) * 2.0**-52


def _mixed(state: torch.Tensor) -> torch.Tensor:
    """int64, as `noise.mixed`: products wrap around."""
    state = (state ^ _shifted(state, 30)) * _FIRST
    state = (state ^ _shifted(state, 27)) * _SECOND
    return state ^ _shifted(state, 31)


def _shifted(bits: torch.Tensor, by: int) -> torch.Tensor:
    """To the right; zeros come in, as they would with unsigned numbers."""
    return (bits >> by) & ((1 << (64 - by)) - 1)


def most_probable(logits: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The `k` most probable tokens of each row: log-probabilities `[R, k]`, ids int64 `[R, k]`.

    Of equal ones those of the smallest ids, so that the first is the row's greedy token.
    """
    values, ids = _highest(logits, k)
    return values - log_sum_exp(logits)[:, None], ids


def log_sum_exp(logits: torch.Tensor) -> torch.Tensor:
    """float32 `[R]`. On CPU a row's does not depend on how many rows there are, as PyTorch's does,
    so that scores of beams have the same bits whatever was drafted."""
    if logits.device.type == "cpu":
        return exponentials.log_sum_exp(logits)
    return logits.float().logsumexp(-1)


def most_probable_ids(logits: torch.Tensor, k: int) -> torch.Tensor:
    """int64 `[R, k]`: the ids alone."""
    return _highest(logits, k)[1]


def _highest(logits: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The `k` highest of each row, of equal ones the smallest ids, which also come first."""
    scores, k = logits.float(), min(k, logits.shape[-1])
    values, ids = scores.topk(k, -1)
    least = values[:, -1:]
    rows = ((scores >= least).sum(-1) > k).nonzero()[:, 0]
    if len(rows):
        ids[rows] = _foremost(scores[rows], least[rows], k).nonzero()[:, 1].view(-1, k)
    ids = ids.sort(-1).values
    values, order = scores.gather(-1, ids).sort(dim=-1, descending=True, stable=True)
    return values, ids.gather(-1, order)


def log_probs_of(logits: torch.Tensor, rows: LongArray, tokens: IntArray) -> FloatArray:
    """float32 `[c]`: the log-probability of `tokens[i]` after row `rows[i]`, over the whole
    vocabulary, on the host: one gather and one transfer for a ragged list of legal tokens."""
    device = logits.device
    at = torch.as_tensor(rows, device=device), torch.as_tensor(tokens, device=device).long()
    total = log_sum_exp(logits)
    return (logits[at].float() - total[at[0]]).cpu().numpy()


def token_scores(logits: torch.Tensor, tokens: IntArray, k: int) -> list[TokenScore]:
    """Of `tokens` int32 `[n]`, each after its row of `logits` `[n, V]`; with the `k` likeliest."""
    own = log_probs_of(logits, np.arange(len(tokens)), tokens).tolist()
    if not k:
        return [TokenScore(t, p) for t, p in zip(tokens.tolist(), own, strict=True)]
    values, ids = (found.cpu().tolist() for found in most_probable(logits, k))
    return [
        TokenScore(t, p, tuple(zip(i, v, strict=True)))
        for t, p, i, v in zip(tokens.tolist(), own, ids, values, strict=True)
    ]


# Sorting 32,000 columns costs twenty times as much as finding the first 256 of them.
_MOST_FOUND = 256
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

        A row always keeps its most probable token. What it keeps is up to its own scores alone.
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
    """The smallest set of most probable tokens whose mass reaches `share` (arXiv 1904.09751); of
    equally probable ones at its border those of the smallest ids."""
    probs = scores.softmax(-1)
    ordered = probs.topk(min(_MOST_FOUND, probs.shape[-1]), -1).values
    if bool((ordered.cumsum(-1)[:, -1] < share).any()):
        ordered = probs.sort(-1, descending=True).values
    beyond = ordered.cumsum(-1) - ordered >= share
    beyond[:, 0] = False  # a share of 0 is the first token's
    least = ordered.masked_fill(beyond, torch.inf).amin(-1, True)
    kept = _foremost(probs, least, (~beyond).sum(-1, keepdim=True))
    return scores.masked_fill(~kept, -torch.inf)


def _foremost(
    scores: torch.Tensor, least: torch.Tensor, counts: torch.Tensor | int
) -> torch.Tensor:
    """bool `[R, V]`: the `counts` highest of each row, the lowest of which are `least` `[R, 1]`; of
    equal ones those of the smallest ids.

    Which of equal ones a sort puts first is up to how many are sorted, and so to other rows and
    settings; in half precision many are equal. So they are found by their scores.
    """
    kept = scores >= least
    over = kept.sum(-1, keepdim=True) - counts
    rows = (over > 0).nonzero()[:, 0]
    if len(rows):
        ties = scores[rows] == least[rows]
        room = ties.sum(-1, keepdim=True) - over[rows]
        kept[rows] &= ~ties | (ties.cumsum(-1) <= room)
    return kept


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
    """`[R, 1]`, in nats. Summed in float64: in float32 several threads round the sum of a row that
    is alone otherwise than those of many."""
    parts = log_probs * log_probs.exp()
    return -parts.nansum(-1, keepdim=True, dtype=torch.float64).to(log_probs.dtype)
