"""The random numbers of sampled texts, and what they tell a drafter.

A sampled token is the one whose exponential variable over its probability is smallest (the
Gumbel-max trick). Each variable is a hash of the text's noise, the token's place in the text and
its id, so that the target and whoever drafts see the same ones, in any order: of several likely
tokens a drafter can tell which one the target is about to choose, and what the target chooses does
not depend on the draft (arXiv 2408.07978; arXiv 2506.05632). `sampling` has the same hash in torch.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from draftrec.core import DoubleArray, FloatArray, IntArray, LongArray

#: splitmix64 (Steele, Lea and Flood, OOPSLA 2014): what the state goes up by, and the multipliers.
GOLDEN, FIRST, SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
#: The id of what is no token: all tokens but the most probable ones together.
REST = -1
#: How far the noise is believed where probabilities are a pool's: wholly (1) would be right if they
#: were the target's own. Chosen by the likelihood of recorded sampled texts, of other entities than
#: those of any reported figure; it is the same for likely and unlikely tokens.
BELIEF = 0.6

_inlined: Any = njit(cache=True, nogil=True, inline="always")


def noise_of(seed: int, key: int) -> int:
    """The noise of one text, 0 to 2**64 - 1, from (seed, key) alone."""
    return int(_noise_of(np.uint64(seed % 2**64), np.uint64(key % 2**64)))


@_inlined
def mixed(state):
    """uint64: splitmix64's output for a state."""
    state = (state ^ (state >> np.uint64(30))) * np.uint64(FIRST)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(SECOND)
    return state ^ (state >> np.uint64(31))


@njit(cache=True, nogil=True)
def _noise_of(seed, key):
    start = mixed(seed + np.uint64(GOLDEN))
    return mixed(start + np.uint64(GOLDEN) * (key + np.uint64(1)))


@_inlined
def place_of(noise, position):
    """uint64: what all variables of one place in the text are made of."""
    return mixed(noise + np.uint64(GOLDEN) * np.uint64(position + 1))


@_inlined
def uniform(place, token):
    """float64 in (0, 1), 52 bits and never an end: the variable of a token, or of `REST`."""
    bits = mixed(place + np.uint64(GOLDEN) * np.uint64(token + 3))
    return (np.float64(bits >> np.uint64(12)) + 0.5) * 2.0**-52


@_inlined
def weigh(probs, tokens, rest, place, belief, sharpness):
    """`foreseen` in place, for whoever has `place_of` a position; negative ids keep nothing."""
    most = max(rest, 0.0)
    for i in range(len(probs)):
        if tokens[i] >= 0:
            probs[i] /= (-np.log(uniform(place, np.int64(tokens[i])))) ** belief
            most = max(most, probs[i])
        else:
            probs[i] = 0.0
    if most > 0.0:
        total = (max(rest, 0.0) / most) ** sharpness
        for i in range(len(probs)):
            probs[i] = (probs[i] / most) ** sharpness
            total += probs[i]
        for i in range(len(probs)):
            probs[i] /= total


@njit(cache=True, nogil=True)
def _foreseen(probs, tokens, rest, noise, position, belief, sharpness):  # noqa: PLR0913
    weigh(probs, tokens, rest, place_of(noise, position), belief, sharpness)


def foreseen(  # noqa: PLR0913
    probs: FloatArray | DoubleArray,
    token_ids: IntArray | LongArray,
    rest: float,
    noise: int,
    position: int,
    belief: float = BELIEF,
    sharpness: float = 1.0,
) -> DoubleArray:
    """float64 `[n]`: how probable each candidate is to be what the target draws, noise considered.

    `probs` `[n]`: their estimated probabilities after sampling's temperature and cuts, which leave
    `rest` to all other tokens; `token_ids` `[n]`, ids of the target's vocabulary. `noise` is
    `SequenceView.noise`; `position` the token's place in the text, 0 for the first one after the
    prompt. A candidate's share is `(prob / E ** belief) ** sharpness`, E its exponential variable,
    that of the rest `rest ** sharpness`. The better the estimates, the higher both may be: were
    they the target's own, belief 1 and a large sharpness would leave the token that is drawn alone.
    """
    found = np.array(probs, np.float64)
    tokens = np.ascontiguousarray(token_ids, np.int64)
    _foreseen(found, tokens, float(rest), np.uint64(noise), position, belief, sharpness)
    return found
