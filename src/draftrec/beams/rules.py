"""Who decides which beams are kept: the strict check."""

from __future__ import annotations

from typing import Protocol

from draftrec.beams.model import BeamModel
from draftrec.beams.state import Spread, UserSearch, pick, plain


class BeamRule(Protocol):
    """Decides one level or more of a search that the target has just rated."""

    def decide(self, model: BeamModel, search: UserSearch, width: int) -> None: ...

    def stop(self, search: UserSearch) -> None:
        """Forget a search that ends before it is done."""
        ...


class StrictRule:
    """The target's own beams, level by level, as long as it has rated all that it kept.

    `spread` says by what beams are chosen: summed log-probabilities, or perturbed ones (see
    `sampled`), where the beams are a sample.
    """

    def __init__(self, spread: Spread = plain) -> None:
        self.spread = spread

    def decide(self, model: BeamModel, search: UserSearch, width: int) -> None:
        while not search.done and model.knows(search.target, search.kept.nodes):
            search.settle(pick(self.spread, search.target, search.kept, width))

    def stop(self, search: UserSearch) -> None:
        """Nothing to forget."""
