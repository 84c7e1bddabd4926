"""Whether a head's looks bring more tokens than their time is worth."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Seq

import numpy as np

from draftrec.core import IntArray

# What one observation of a level keeps of those before, and what the first estimate counts for:
# half of what a level could bring.
_KEPT, _PRIOR = 0.98, 4.0
# What is kept of both when a rest is over.
_DOUBT = 0.1
# A look is dearer than usual where the head has yet to read a prompt, or all that was written while
# it rested. A step pays this share of what was spent so: a text has about so many steps.
_SHARE = 1 / 64
# Texts times steps after which a trial is judged, and for which the head rests then at first and at
# most: each trial that did not pay doubles the rest.
_TRIAL, _REST, _LONGEST_REST = 192, 192, 12_288
# The first look at so many compiles what it runs, and the next ones lay out memory: the least of so
# many is believed.
_LEAST = 3
# Looks at 2^n to 2^(n + 1) - 1 sequences at once are timed apart.
_SIZES = 16


class Worth:
    """Counts, level by level, what a head brings and takes; `rate(n)`: tokens per second of `n`
    sequences lately, at which its time is counted.

    Of each level: `mass`, the probability that texts would come by the nodes that it looked at,
    summed; `brought`, the tokens accepted that it alone proposed. A level is looked at while it
    pays by itself. The head as a whole is judged by trials, long enough for what it reads once per
    text to be spread over the text; it rests between those that do not pay.
    """

    def __init__(self, levels: int, rate: Callable[[int], float]) -> None:
        self.rate = rate
        self.mass, self.brought = np.zeros(levels), np.zeros(levels)
        self._seconds = np.zeros((levels, _SIZES))
        self._seen = np.zeros((levels, _SIZES), np.int64)
        self._debt = self._spent = self._balance = 0.0
        self._trial, self._rested, self._rest = 0, 0, _REST
        self.resting = self._looked = False

    def rests(self, sequences: int) -> bool:
        """Is the head left out of this step of so many sequences, since it did not pay?"""
        if self.resting:
            self._rested += sequences
            if self._rested > self._rest:
                self._wake()
        return self.resting

    def pays(self, level: int, mass: float, sequences: int) -> bool:
        """Is a look at nodes of so much probability worth its time?"""
        share = (self.brought[level] + 0.5 * _PRIOR) / (self.mass[level] + _PRIOR)
        return mass * share >= self.rate(sequences) * self.seconds(level, sequences)

    def seconds(self, level: int, sequences: int) -> float:
        """What a look usually takes; 0 as long as few have been seen."""
        known = np.flatnonzero(self._seen[level] >= _LEAST)
        if not len(known):
            return 0.0
        nearest = known[np.abs(known - _size(sequences)).argmin()]
        return float(self._seconds[level, nearest])

    def looked(
        self, level: int, mass: float, seconds: float, sequences: int, *, behind: bool = False
    ) -> None:
        """Note what a look took; `behind`: it was at more than the tokens of one step as well.
        Undisturbed looks count: others last as long as it pleases the machine."""
        usual = self.seconds(level, sequences)
        if behind:
            self._debt += max(0.0, seconds - usual)
        else:
            size = _size(sequences)
            known, seen = self._seconds[level, size], self._seen[level, size]
            most = seconds if not seen else known if seen < _LEAST else 1.05 * known
            self._seconds[level, size] = min(seconds, most)
            self._seen[level, size] += 1
        self._spent += min(seconds, usual)
        self._looked = True
        self.mass[level] = _KEPT * self.mass[level] + mass
        self.brought[level] *= _KEPT

    def settle(self, accepted: Seq[IntArray], sequences: int) -> None:
        """Count the accepted nodes by level (-1: not the head's), of so many sequences that were
        drafted for, and judge a trial that is over."""
        levels = np.concatenate([*accepted, np.empty(0, np.int32)])
        counts = np.bincount(levels[levels >= 0], minlength=len(self.brought))
        self.brought += counts
        paid = _SHARE * self._debt
        self._debt -= paid
        self._balance += counts.sum() - self.rate(sequences) * (self._spent + paid)
        self._trial += sequences
        if self._trial >= _TRIAL or not self._looked:
            self._judge()
        self._spent, self._looked = 0.0, False

    def _judge(self) -> None:
        self.resting = self._balance < 0 or not self._looked
        self._rest = min(2 * self._rest, _LONGEST_REST) if self.resting else _REST
        self._balance = max(0.5 * self._balance, 0.0)
        self._rested = self._trial = 0

    def _wake(self) -> None:
        """Begin a trial, in doubt of what was learnt before."""
        self.resting, self._debt = False, 0.0
        self.mass *= _DOUBT
        self.brought *= _DOUBT


def _size(sequences: int) -> int:
    return min(max(sequences, 1).bit_length() - 1, _SIZES - 1)
