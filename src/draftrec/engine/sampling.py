"""From logits to the target's own next tokens. Device code; `R` rows, `V` vocabulary."""

from __future__ import annotations

import numpy as np
import torch

from draftrec.core import FloatArray, IntArray, LongArray, TokenScore
from draftrec.engine.noise import FIRST, GOLDEN, REST, SECOND
from draftrec.engine.passes import row_attention

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

    The first is the row's greedy token: `topk` alone picks any among exact ties.
    """
    values, ids = _highest(logits, k)
    return values - log_sum_exp(logits)[:, None], ids


def log_sum_exp(logits: torch.Tensor) -> torch.Tensor:
    """float32 `[R]`. On CPU a row's does not depend on how many rows there are, as PyTorch's does,
    so that scores of beams have the same bits whatever was drafted."""
    if logits.device.type == "cpu":
        return row_attention.log_sum_exp(logits)
    return logits.float().logsumexp(-1)


def most_probable_ids(logits: torch.Tensor, k: int) -> torch.Tensor:
    """int64 `[R, k]`: the ids alone."""
    return _highest(logits, k)[1]


def _highest(logits: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    values, ids = logits.float().topk(min(k, logits.shape[-1]), -1)
    first = greedy(logits)[:, None]
    return values, torch.cat([first, torch.where(ids == first, ids[:, :1], ids)[:, 1:]], -1)


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
