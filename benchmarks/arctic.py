"""Arctic's suffix tree behind replay's drafter protocol. The package is optional."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np

from draftrec.core import EMPTY_TREE, DraftTree, IntArray, SequenceView, Verdict

MISSING = (
    "arctic-inference is not installed; with nanobind, grpcio-tools, protobuf, cmake and ninja in "
    "place: pip install --no-deps --no-build-isolation arctic-inference==0.3.0"
)


def installed() -> bool:
    """Whether the suffix tree can be imported."""
    return find_spec("arctic_inference") is not None


@dataclass(frozen=True)
class ArcticSettings:
    """Depth of the trees, and the arguments of `speculate`.

    These are tuned: the limit by match length switched off, children below 1 % left out (with 0
    every child is looked at). The library's own are a factor of 1 and 10 %.
    """

    depth: int = 24
    factor: float = 1000.0
    min_prob: float = 0.01


TUNED, DEFAULT = ArcticSettings(), ArcticSettings(factor=1.0, min_prob=0.1)


class ArcticDrafter:
    """One cache: finished texts in its global tree, prompt and running text in a local one."""

    names_sources = False
    nbytes = None

    def __init__(self, settings: ArcticSettings = TUNED) -> None:
        from arctic_inference.suffix_decoding import SuffixDecodingCache

        self.settings = settings
        self.tokens = 0
        self._cache: Any = SuffixDecodingCache(max_tree_depth=settings.depth)
        self._texts = 0

    def add(self, texts: Iterable[tuple[IntArray, str | None]]) -> None:
        """Enter finished texts in the global tree."""
        for ids, _ in texts:
            name = ("text", self._texts)
            self._cache.start_request(name, np.empty(0, np.int32))
            self._cache.add_active_response(name, np.ascontiguousarray(ids, np.int32))
            self._cache.stop_request(name)
            self._texts += 1
            self.tokens += len(ids)

    def start(self, sequence: SequenceView) -> None:
        """Index the prompt, and the previous text as if it stood before it."""
        request = sequence.request
        known = [ids for ids in (request.previous_ids, request.prompt_ids) if ids is not None]
        self._cache.start_request(id(sequence), np.concatenate(known).astype(np.int32))

    def draft(self, batch: Seq[SequenceView], limit: int, depth: int) -> list[DraftTree]:
        """One tree per sequence; its levels are limited by the depth of the suffix trees."""
        return [self._tree(s, limit) for s in batch]

    def observe(self, batch: Seq[SequenceView], verdicts: Seq[Verdict]) -> None:
        """Enter what was just written in both trees."""
        for sequence, verdict in zip(batch, verdicts, strict=True):
            ids = np.ascontiguousarray(verdict.token_ids, np.int32)
            self._cache.add_active_response(id(sequence), ids)

    def stop(self, sequence: SequenceView) -> None:
        """Forget the sequence; whether its text stays is up to `add`."""
        self._cache.stop_request(id(sequence))
        self._cache.evict_cached_response(id(sequence))

    def _tree(self, sequence: SequenceView, limit: int) -> DraftTree:
        if limit <= 0:
            return EMPTY_TREE
        settings = self.settings
        drawn = self._cache.speculate(
            id(sequence),
            np.ascontiguousarray(sequence.context[-settings.depth :]),
            max_spec_tokens=limit,
            max_spec_factor=settings.factor,
            min_token_prob=settings.min_prob,
            use_tree_spec=True,
        )
        return DraftTree(
            np.array(drawn.token_ids, np.int32),
            np.array(drawn.parents, np.int32),
            np.array(drawn.probs, np.float32),
            np.zeros(len(drawn.token_ids), np.uint8),
        )
