"""An item model beside the target: every item is one token, so that one pass over a history rates
all of them, before the target is asked.

Semantic ids let a model say much of items that few took, and little that one item alone is known
for. A model with a vector for each item is the other way round (LIGER, arXiv 2411.18814): SASRec
(arXiv 1808.09781) with a language model's layers. It is trained as targets are, on ids of one
token.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from dataclasses import dataclass, field

import numpy as np

from draftrec.core import EMPTY_TREE, DoubleArray, FloatArray, LongArray
from draftrec.data.sequences import read_semantic_ids
from draftrec.engine.packing import Segment
from draftrec.engine.passes.prepacked import prepack
from draftrec.engine.selfcheck import checked_target
from draftrec.engine.target import Target
from draftrec.errors import DraftrecError
from draftrec.items.prompts import HistoryEncoder
from draftrec.items.retriever import best_of
from draftrec.items.semantic_ids import SemanticIds
from draftrec.models.recommender import IDS_FILE, Recommender

_LOG = logging.getLogger("draftrec")
#: Bytes of ratings that are kept, so that those of a batch's users are there from when candidates
#: are proposed until the answers are ranked: of 64 users and a million items.
_KEPT = 256 << 20


@dataclass(frozen=True, eq=False, slots=True)
class ItemModel:
    """`model` rates the catalogue's items, given histories of places in it. `own`: the items that
    it was trained on; `tokens` int64 `[items]`: each item of the catalogue in its vocabulary, -1
    for those that it does not know. What it says of the histories that it was asked about last is
    kept, in `_ratings`, by their bytes."""

    model: Target
    source: Recommender
    own: SemanticIds
    tokens: LongArray
    encoder: HistoryEncoder
    _ratings: OrderedDict[bytes, tuple[FloatArray, float]] = field(default_factory=OrderedDict)

    @classmethod
    def of(cls, source: Recommender, sids: SemanticIds) -> ItemModel:
        """A loaded item model over a catalogue. It serves this only from here on.

        Raises DraftrecError for a recommender that is none, and where it knows no item; warns of
        items that it does not know.
        """
        if source.info.kind != "items":
            raise DraftrecError(
                f"{source.folder} is no item model but a {source.info.kind}; give a folder that "
                "`draftrec genrec fit --whole-items` wrote"
            )
        own = read_semantic_ids(source.folder / IDS_FILE)
        prepack(source.model)
        return _over(sids, checked_target(source.model, way="auto"), source, own)

    def over(self, sids: SemanticIds) -> ItemModel:
        """The same model over another catalogue. Raises and warns as `of` does."""
        return _over(sids, self.model, self.source, self.own)

    @property
    def items(self) -> int:
        """Items of the catalogue."""
        return len(self.tokens)

    def propose(self, history: LongArray, m: int, /) -> tuple[LongArray, DoubleArray]:
        """The best `m` items for `history`, places int64 `[h]`, best first, equal ones by place:
        places int64 `[m]` and their shares float64 `[m]`."""
        logits, total = self._rated(history)
        known = np.flatnonzero(np.isfinite(logits))
        best = best_of(known, logits[known], m)
        return best, np.exp(logits[best].astype(np.float64) - total)

    def shares(self, history: LongArray, places: LongArray, /) -> DoubleArray:
        """float64 `[k]`: the shares of the items at `places` int64 `[k]`, its probabilities among
        the catalogue's items that it knows; 0 for others, and without a history that it knows."""
        logits, total = self._rated(history)
        return np.exp(logits[places].astype(np.float64) - total)

    def _rated(self, history: LongArray) -> tuple[FloatArray, float]:
        """The logits float32 `[items]` of what follows, -inf where nothing is known, and the log of
        the sum of their exponentials; of a history that was asked about lately, what was found
        then."""
        key = history.tobytes()
        if key not in self._ratings:
            while self._ratings and (len(self._ratings) + 1) * self.items * 4 > _KEPT:
                self._ratings.popitem(last=False)
            self._ratings[key] = self._rate(history)
        self._ratings.move_to_end(key)
        return self._ratings[key]

    def _rate(self, history: LongArray) -> tuple[FloatArray, float]:
        known = history[self.tokens[history] >= 0]
        if not len(known):
            return np.full(self.items, -np.inf, np.float32), 0.0
        prompt = self.encoder.encode(known)
        most = np.zeros(self.encoder.form.max_items, np.int64)
        self.model.reserve(1, len(self.encoder.encode(most)))
        (row,) = self.model.score([Segment(0, 0, prompt, EMPTY_TREE)]).logits.float().cpu().numpy()
        logits = np.where(self.tokens >= 0, row[self.tokens], np.float32(-np.inf))
        return logits, float(np.logaddexp.reduce(logits.astype(np.float64)))


def _over(sids: SemanticIds, model: Target, source: Recommender, own: SemanticIds) -> ItemModel:
    at = own.find(sids.items)
    missing = np.flatnonzero(at < 0)
    if len(missing) == len(sids):
        raise DraftrecError(
            f"{source.folder} knows none of the catalogue's items; train it on sequences of this "
            "catalogue with `draftrec genrec fit --whole-items`"
        )
    if len(missing):
        _LOG.warning(
            "%s does not know %s of %s items, such as %s, and gives them no share",
            source.folder, f"{len(missing):,}", f"{len(sids):,}", sids.items[missing[0]],
        )  # fmt: skip
    ids = own.token_ids(source.tokenizer.get_vocab())
    encoder = HistoryEncoder(source.format, source.tokenizer, ids[np.maximum(at, 0)])
    context = source.model.config.get_text_config().max_position_embeddings
    tokens = np.where(at >= 0, ids[at, 0], -1).astype(np.int64)
    return ItemModel(model, source, own, tokens, encoder.fit(context))
