"""What a draft model is taught, as pure functions of logits.

All come from AtSpeed (arXiv 2410.05165) and the distillation that it compares itself with, written
anew from their formulas. A *row* is a context after which one code has to be chosen: `z_q` are the
draft's logits there, `z_p` the target's, `[R, A]` both, over the legal codes of the row's level,
which `legal`, bool `[R, A]`, marks (levels have different numbers of codes; the rest is padding).
`weights` `[R]` say how often a row counts, and means are taken with them; q and p are the softmax
of the logits over the legal codes. The target is constant: no gradient flows into `z_p`.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from draftrec.train.settings import ObjectiveSettings


def token_loss(logits: Tensor, tokens: Tensor, weights: Tensor) -> Tensor:
    """Mean of -log q(token), `logits` `[R, V]` over the whole vocabulary and `tokens` int64 `[R]`.

    On what users took it is SFT, the loss L_CE of the total; on the target's beams it is SeqKD
    (Kim and Rush 2016).
    """
    return mean(cross_entropy(_precise(logits), tokens, reduction="none"), weights)


def soft_token_loss(logits: Tensor, codes: Tensor, log_p: Tensor, weights: Tensor) -> Tensor:
    """Mean of sum over the legal codes of p (log p - log q): KL(p || q) over the whole vocabulary,
    of which p has next to nothing elsewhere, so that q learns which codes are legal as well.

    `logits` `[R, V]`, `codes` int64 `[R, A]` (-1: none), `log_p` `[R, A]` as the target has them.
    """
    legal = codes >= 0
    log_q = _precise(logits).log_softmax(-1).gather(1, codes.clamp_min(0))
    log_p = _precise(log_p.detach()).masked_fill(~legal, 0.0)
    return mean((log_p.exp() * (log_p - log_q)).masked_fill(~legal, 0.0).sum(-1), weights)


def word_kd(z_q: Tensor, z_p: Tensor, legal: Tensor, weights: Tensor) -> Tensor:
    """WordKD (Kim and Rush 2016): the forward divergence KL(p || q), on the path that users took,
    and BeamKD: the same on the target's beams.

    Over the legal codes; what a trained model gives to all others is next to nothing.
    """
    log_q, log_p = log_probs(z_q, legal), log_probs(z_p.detach(), legal)
    return mean((log_p.exp() * (log_p - log_q)).sum(-1), weights)


def total_variation(
    z_q: Tensor, z_p: Tensor, legal: Tensor, weights: Tensor, tau: float = 1.0
) -> Tensor:
    """Half of sum |softmax(z_q / tau) - softmax(z_p / tau)|.

    On the path that users took it is TVDKD, on the target's beams it is AtSpeed-R: a token drawn
    from q is accepted with probability 1 - TVD(p, q).
    """
    q = log_probs(z_q / tau, legal).exp()
    p = log_probs(z_p.detach() / tau, legal).exp()
    return mean(0.5 * (q - p).abs().sum(-1), weights)


def atspeed_s(
    z_q: Tensor, z_p: Tensor, legal: Tensor, weights: Tensor, settings: ObjectiveSettings
) -> Tensor:
    """AtSpeed-S, for strict verification. I are the draft's own `top_k` codes, q~ and p~ are q and
    p restricted to I and made to sum to one:

    mean of sum over I of q~ (log q~ - log p~), the reverse divergence there, plus
    `beta` * mean of p~(K) H(q~): the entropy of q~, weighed by p~ of the draft's K-th code, which
    draws probability together where the target still needs the last of the draft's codes.

    With `sharpen`, q~ and p~ are softmax(q / sharpen) and softmax(p / sharpen) over I instead, as
    in the later versions of the published code.
    """
    log_q, log_p = log_probs(z_q, legal), log_probs(z_p.detach(), legal)
    chosen = log_q.detach().topk(min(settings.top_k, log_q.shape[-1]), dim=-1).indices
    inside = legal.gather(-1, chosen)
    top_q = _renormalised(log_q.gather(-1, chosen), inside, settings.sharpen)
    top_p = _renormalised(log_p.gather(-1, chosen), inside, settings.sharpen)
    divergence = (top_q.exp() * (top_q - top_p)).sum(-1)
    entropy = -(top_q.exp() * top_q).sum(-1)
    density = top_p[..., -1].exp() * entropy
    return mean(divergence, weights) + settings.beta * mean(density, weights)


def log_probs(logits: Tensor, legal: Tensor) -> Tensor:
    """Log-softmax over the legal codes; the others get a number so low that nothing is left of it,
    but no infinity, whose gradient would be none."""
    logits = _precise(logits)
    return logits.masked_fill(~legal, torch.finfo(logits.dtype).min / 4).log_softmax(-1)


def mean(values: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean over rows, zero where nothing has weight."""
    return (values * weights).sum() / weights.sum().clamp_min(torch.finfo(values.dtype).tiny)


def _precise(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()


def _renormalised(log_p: Tensor, legal: Tensor, sharpen: float | None) -> Tensor:
    if sharpen is not None:
        return log_probs(log_p.exp() / sharpen, legal)
    return log_p - log_p.logsumexp(-1, keepdim=True)
