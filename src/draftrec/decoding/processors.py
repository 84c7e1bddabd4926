"""A caller's own logits processors, shown every path as if it were a text of its own."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from typing import Protocol

import numpy as np
import torch

from draftrec.core import DraftTree
from draftrec.decoding.batch import RunningSequence
from draftrec.decoding.controls import rows_of
from draftrec.decoding.phrases import Before, nothing_before
from draftrec.errors import DraftrecError


class LogitsProcessor(Protocol):
    """Prefixes in, scores out: what transformers calls a `LogitsProcessor`.

    It must depend on its arguments alone, row by row: rows are nodes of draft trees, so that it is
    asked about texts that are never written, and about one text several times.
    """

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, /) -> torch.Tensor:
        """`input_ids` int64 `[n, length]`, prompt and text of each row; `scores` float32 `[n, V]`,
        the next token's. Returns the new scores, of the same shape."""
        ...


class OwnProcessors:
    """Applies `processors` in order, once per length among the rows of a pass.

    What it costs: as many calls as there are different lengths, and the processors' own time for
    one row per draft node beside that of the text; prefixes are copied for every row.
    """

    def __init__(self, processors: Seq[LogitsProcessor], before: Before = nothing_before) -> None:
        self.processors, self.before = processors, before

    def apply(
        self, batch: Seq[RunningSequence], trees: Seq[DraftTree], logits: torch.Tensor
    ) -> torch.Tensor:
        """Raises DraftrecError for a processor that returns scores of another shape."""
        rows = rows_of(batch, trees)
        texts = [np.concatenate([self.before(s), s.context]) for s in batch]
        lengths = np.array([len(text) for text in texts])[rows.owner] + rows.depth
        for length in np.unique(lengths).tolist():
            places = np.flatnonzero(lengths == length)
            ids = np.empty((len(places), length), np.int64)
            for prefix, row in zip(ids, places.tolist(), strict=True):
                text = texts[int(rows.owner[row])]
                prefix[: len(text)] = text
                prefix[len(text) :] = rows.path[row, : int(rows.depth[row])]
            at, prefixes = (torch.as_tensor(a, device=logits.device) for a in (places, ids))
            logits[at] = self._processed(prefixes, logits[at])
        return logits

    def _processed(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        shape = scores.shape
        for process in self.processors:
            scores = process(ids, scores)
            if getattr(scores, "shape", None) != shape:
                found = list(getattr(scores, "shape", [])) or type(scores).__name__
                raise DraftrecError(
                    f"The logits processor {type(process).__name__} was given scores of shape "
                    f"{list(shape)} and returned {found}; it must return new scores of that shape."
                )
        return scores.to(torch.float32)
