"""From a recommender's files to what answers: models over a catalogue, and who proposes items."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from draftrec.config import RecommendConfig, RetrieverSettings
from draftrec.core import LongArray
from draftrec.data.files.places import Place
from draftrec.data.sequences import ALL, USUAL, SequenceColumns, read_known
from draftrec.engine.passes.prepacked import prepack
from draftrec.engine.selfcheck import checked_target
from draftrec.items.retriever import ItemRetriever
from draftrec.items.semantic_ids import SemanticIds
from draftrec.jobs.recommend.catalogue import Catalogue
from draftrec.jobs.recommend.engines import Parts
from draftrec.jobs.recommend.item_model import ItemModel
from draftrec.models.recommender import Recommender, check_draft, load_recommender


@dataclass(frozen=True, kw_only=True)
class Sources:
    """Where everything lies. `draft`: a draft model's folder, `items` or `none`; `sequences` None:
    nobody proposes items, and histories must not be empty; `part`: what is to be predicted, of
    which those who propose items know nothing; `exact`: as for `checked_target`, of the target."""

    target: Path
    sids: Place
    sequences: str | None = None
    draft: str = "items"
    item_model: Path | None = None
    part: str = ALL
    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    exact: bool = False
    columns: SequenceColumns = USUAL


@dataclass(frozen=True, eq=False, slots=True)
class Loaded:
    """Models, the `parts` that they have become, the catalogue, and who proposes and blends in."""

    target: Recommender
    draft: Recommender | None
    catalogue: Catalogue
    parts: Parts
    items: ItemRetriever | None
    item_model: ItemModel | None


def load_parts(sources: Sources, config: RecommendConfig, sids: SemanticIds) -> Loaded:
    """Everything that the files hold, over the catalogue of `sids`.

    Raises DraftrecError for unusable files and folders, and models that do not go together.
    """
    device, dtype = sources.device, sources.dtype
    target, draft = load_recommender(sources.target, device, dtype), None
    if sources.draft not in ("items", "none"):
        draft = load_recommender(sources.draft, device, dtype)
    items = None
    if sources.sequences is not None:
        items = fit_retriever(
            sources.sequences, sids, sources.columns, sources.part, config.item_item
        )
    catalogue = Catalogue.of(sids, target, draft, str(sources.sids))
    proposer = items if proposes(sources.draft, config) else None
    parts = parts_of(target, catalogue, draft, proposer, exact=sources.exact)
    item_model = load_item_model(sources.item_model, sids, device, dtype)
    return Loaded(target, draft, catalogue, parts, items, item_model)


def parts_of(
    target: Recommender,
    catalogue: Catalogue,
    draft: Recommender | None = None,
    retriever: ItemRetriever | None = None,
    *,
    exact: bool = False,
) -> Parts:
    """Loaded models as parts of an engine. They serve engines only from here on.

    `exact`: as for `checked_target`, of the target alone. Raises DraftrecError for a draft of
    another vocabulary and architectures that cannot be served.
    """
    if draft is not None:
        check_draft(target, draft)
    for loaded in (target, draft):
        if loaded is not None:
            prepack(loaded.model)
    small = checked_target(draft.model, way="auto") if draft else None
    large = checked_target(target.model, exact=exact, way="auto")
    return Parts(large, catalogue.trie, small, retriever)


def load_item_model(
    folder: Path | None,
    sids: SemanticIds,
    device: str,
    dtype: Literal["auto", "float32", "bfloat16"],
) -> ItemModel | None:
    """The item model of a folder over a catalogue, if there is to be one. Raises as
    `ItemModel.of` does."""
    return ItemModel.of(load_recommender(folder, device, dtype), sids) if folder else None


def proposes(draft: str, config: RecommendConfig) -> bool:
    """Are proposed items drafted: alone, or beside a model's drafts where they can be? `draft`: a
    draft model's folder, `items` or `none`."""
    if draft in ("items", "none"):
        return draft == "items"
    fits = config.verify != "relaxed" and config.constraint == "trie"
    return fits and config.draft_items > 0


def fit_retriever(
    sequences: str,
    sids: SemanticIds,
    columns: SequenceColumns = USUAL,
    part: str = ALL,
    settings: RetrieverSettings | None = None,
) -> ItemRetriever:
    """Co-occurrence and popularity of what is known when `part` is to be predicted, of items that
    have a semantic id."""
    return ItemRetriever.fit(known_places(sequences, sids, columns, part), len(sids), settings)


def known_places(
    sequences: str, sids: SemanticIds, columns: SequenceColumns = USUAL, part: str = ALL
) -> Iterator[LongArray]:
    """What every user is known to have taken when `part` is to be predicted, places int64 `[h]`
    of the items that have a semantic id, oldest first."""
    places = (sids.find(items) for items in read_known(sequences, part, columns))
    return (p[p >= 0] for p in places)
