"""No drafts."""

from __future__ import annotations

from collections.abc import Sequence as Seq

from draftrec.core import EMPTY_TREE, DraftTree, SequenceView, Verdict


class NoDrafter:
    """Proposes nothing: plain decoding."""

    def start(self, sequence: SequenceView) -> None:
        """Nothing to prepare."""

    def draft(self, batch: Seq[SequenceView], limit: int, depth: int) -> list[DraftTree]:
        """Empty trees."""
        return [EMPTY_TREE] * len(batch)

    def observe(self, batch: Seq[SequenceView], verdicts: Seq[Verdict]) -> None:
        """Nothing to learn."""

    def stop(self, sequence: SequenceView) -> None:
        """Nothing to forget."""
