"""Which tokens pass beside the target's own choice: three published rules. Device code.

`P` rows of logits over `V` tokens, those of places that have children; `N` nodes, whose tokens are
asked about.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch

from draftrec.config import AcceptConfig
from draftrec.models import sampling

# Stands for log 0 where a threshold of probability is 0.
_LEAST = 1e-300


@dataclass(frozen=True, slots=True)
class Queries:
    """Whether `tokens[i]` may follow the place `at[i]`.

    `logits` float32 `[P, V]` and `totals` `[P]`, their log-sum-exp; `at`, `tokens` int64 `[N]`;
    `log_probs` float32 `[N]`, the log-probability of each token at its place.
    """

    logits: torch.Tensor
    totals: torch.Tensor
    at: torch.Tensor
    tokens: torch.Tensor
    log_probs: torch.Tensor


class Tolerance(Protocol):
    """A rule for tokens that are not the target's own choice."""

    @property
    def window(self) -> int:
        """How many of the target's own choices must follow such a token in the draft."""
        ...

    def allows(self, queries: Queries) -> torch.Tensor:
        """bool `[N]`: may the token stand at its place?"""
        ...


@dataclass(frozen=True, slots=True)
class TopK:
    """Among the `top_k` most probable tokens and more probable than `min_prob`.

    The relaxed verification of DARE (arXiv 2408.05676); `min_prob` is a probability, not a share.
    """

    top_k: int
    min_prob: float
    window: int = 0

    def allows(self, queries: Queries) -> torch.Tensor:
        ids = sampling.most_probable_ids(queries.logits, self.top_k)
        among = (ids[queries.at] == queries.tokens[:, None]).any(-1)
        return among & (queries.log_probs.double() > math.log(max(self.min_prob, _LEAST)))


@dataclass(frozen=True, slots=True)
class Typical:
    """More probable than `min(epsilon, delta * exp(-H))`, H the entropy of the place in nats.

    Typical acceptance of Medusa (arXiv 2401.10774, section 2.3.1): the flatter the distribution,
    the less a token needs. H and the probability are the model's own, at temperature 1.
    """

    epsilon: float
    delta: float
    window: int = 0

    def allows(self, queries: Queries) -> torch.Tensor:
        least = math.log(max(self.delta, _LEAST)) - entropy(queries).double()
        least = least.clamp(max=math.log(max(self.epsilon, _LEAST)))
        return queries.log_probs.double() > least[queries.at]


@dataclass(frozen=True, slots=True)
class EntropyGate:
    """Any token, where the entropy is at least `gate` of the highest possible, log V, if the
    draft goes on with `window` of the target's own choices.

    FLy (arXiv 2511.22972), its entropy-level gate and its token-level deferred window: if the
    target agrees with what follows, it was another wording and no error. Its authors' code and
    vLLM measure the entropy of the three likeliest tokens in nats instead, so that their 0.3 is a
    far lower gate than 0.3 of log V.
    """

    gate: float
    window: int

    def allows(self, queries: Queries) -> torch.Tensor:
        share = entropy(queries).double() / math.log(max(queries.logits.shape[-1], 2))
        return share[queries.at] >= self.gate


def make_tolerance(config: AcceptConfig) -> Tolerance:
    """The rule that `config` describes. Raises ValueError for strict, which tolerates nothing."""
    if config.accept == "relaxed":
        return TopK(config.top_k, config.min_prob)
    if config.accept == "typical":
        return Typical(config.epsilon, config.delta)
    if config.accept == "entropy":
        return EntropyGate(config.entropy_gate, config.window)
    raise ValueError(f"{config.accept} acceptance tolerates no other token")


def entropy(queries: Queries) -> torch.Tensor:
    """float32 `[P]`: the entropy of each place's distribution in nats, `total - sum(p * logit)`."""
    probs = torch.exp(queries.logits - queries.totals[:, None])
    # An impossible token adds nothing, but 0 times minus infinity would be no number.
    return queries.totals - (probs * queries.logits.clamp(min=-1e30)).sum(-1)
