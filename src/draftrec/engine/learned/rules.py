"""What is done to a head's scores as it is done to the target's, so that both mean the same."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np
import torch

from draftrec.core import IntArray, SequenceView
from draftrec.engine.learned.growth import Growth


@dataclass(frozen=True, slots=True)
class ScoreRules:
    """What is done to scores before a token is chosen: penalties of tokens seen before (repetition
    in prompt and text, the others in the text), then the temperature, 1 where texts are greedy."""

    repetition: float = 1.0
    presence: float = 0.0
    frequency: float = 0.0
    temperature: float = 1.0

    @property
    def penalises(self) -> bool:
        return (self.repetition, self.presence, self.frequency) != (1.0, 0.0, 0.0)

    def __call__(
        self, scores: torch.Tensor, seen: torch.Tensor | None, counts: torch.Tensor | None
    ) -> torch.Tensor:
        """Scores `[R, V]` as tokens are chosen by; `seen` bool, `counts` `[R, V]`: what the path of
        each row has of every draft token, None where nothing is penalised."""
        if seen is not None and counts is not None:
            scores = penalised(scores, seen, counts, self.repetition, self.presence, self.frequency)
        return scores if self.temperature == 1.0 else scores / self.temperature


def penalised(
    scores: torch.Tensor,
    seen: torch.Tensor,
    counts: torch.Tensor,
    repetition: float | torch.Tensor,
    presence: float | torch.Tensor,
    frequency: float | torch.Tensor,
) -> torch.Tensor:
    """Scores `[R, V]` after penalties, one for all rows or columns `[R, 1]`, of tokens `seen` in
    prompt or text, bool `[R, V]`, and of those that the text has, by their `counts` `[R, V]` (arXiv
    1909.05858, then OpenAI's)."""
    lowered = torch.where(scores < 0, scores * repetition, scores / repetition)
    scores = torch.where(seen, lowered, scores)
    return scores - frequency * counts - presence * (counts > 0)


class SeenTokens:
    """Which draft tokens running texts have had. `known` int32 `[vocabulary]`: the number of a
    token among the `size` draft tokens, -1 for others."""

    def __init__(self, known: IntArray, size: int) -> None:
        self._known, self._size = known, size
        self._texts: dict[int, _Text] = {}

    def stop(self, sequence: SequenceView) -> None:
        """Forget the sequence."""
        self._texts.pop(id(sequence), None)

    def rows(
        self, batch: Seq[SequenceView], grown: Growth, rows: np.ndarray
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`seen` bool and `counts` int16 `[n, V]` of nodes `rows` int64 `[n, 2]` as in `growth`,
        their own tokens and those above them included."""
        seen = np.empty((len(rows), self._size), np.bool_)
        counts = np.empty((len(rows), self._size), np.int16)
        texts = {b: self._text(batch[b]) for b in set(rows[:, 0].tolist())}
        known = {b: text.in_prompt | (text.counts > 0) for b, text in texts.items()}
        for row, (b, node) in enumerate(rows.tolist()):
            seen[row], counts[row] = known[b], texts[b].counts
            above = node
            while above >= 0:
                number = self._known[grown.tokens[b, above]]
                if number >= 0:
                    seen[row, number] = True
                    counts[row, number] += 1
                above = int(grown.parents[b, above])
        return torch.from_numpy(seen), torch.from_numpy(counts)

    def _text(self, sequence: SequenceView) -> _Text:
        prompt = len(sequence.request.prompt_ids)
        text = self._texts.get(id(sequence))
        if text is None:
            text = _Text(np.zeros(self._size, np.bool_), np.zeros(self._size, np.int16), prompt)
            text.in_prompt[self._numbers(sequence.request.prompt_ids)] = True
            self._texts[id(sequence)] = text
        np.add.at(text.counts, self._numbers(sequence.context[text.read :]), 1)
        text.read = len(sequence.context)
        return text

    def _numbers(self, token_ids: IntArray) -> IntArray:
        numbers = self._known[token_ids]
        return numbers[numbers >= 0]


@dataclass(slots=True)
class _Text:
    """Draft tokens of a prompt, bool `[V]`, how often the text has had each, int16 `[V]`, and how
    many tokens of its context were read."""

    in_prompt: np.ndarray
    counts: np.ndarray
    read: int
