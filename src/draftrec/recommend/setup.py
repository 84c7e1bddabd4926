"""From files and folders to a job that is ready to run."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from draftrec.config import RecommendConfig
from draftrec.data.readers import open_records
from draftrec.data.sequences import History, read_histories, read_semantic_ids, read_sequences
from draftrec.models.recommender import load_recommender
from draftrec.pool.item_retriever import ItemRetriever
from draftrec.recommend.catalogue import Catalogue
from draftrec.recommend.job import RecommendJob, check_output
from draftrec.recommend.recommender import ItemRecommender, parts_of
from draftrec.tokens.semantic_ids import SemanticIds


@dataclass(frozen=True, slots=True)
class TaskSettings:
    """Where everything lies. `draft` is a folder, `items` or `none`."""

    sequences: str
    sids: Path
    target: Path
    draft: str
    output: Path
    part: str = "test"
    limit: int | None = None
    shadow: float = 0.0
    overwrite: bool = False
    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    config: RecommendConfig = field(default_factory=RecommendConfig)


@dataclass(frozen=True, eq=False, slots=True)
class Task:
    """A job with what it needs."""

    job: RecommendJob
    recommender: ItemRecommender
    histories: list[History]


def prepare(settings: TaskSettings) -> Task:
    """Read files and load models; whatever is wrong with them is said before any work is done.

    Raises DraftrecError for unusable files, folders or settings, and items without semantic ids.
    """
    sids = read_semantic_ids(settings.sids)
    histories = read_histories(settings.sequences, settings.part, None)[: settings.limit]
    for history in histories:
        sids.places(history.items)
    target = load_recommender(settings.target, settings.device, settings.dtype)
    draft = None
    if settings.draft not in ("items", "none"):
        draft = load_recommender(settings.draft, settings.device, settings.dtype)
    items = fit_retriever(settings.sequences, sids)
    catalogue = Catalogue.of(sids, target)
    parts = parts_of(target, catalogue, draft, items if _proposes(settings) else None)
    recommender = ItemRecommender(parts, catalogue, settings.config, items)
    facts = _facts(settings, target.fingerprint, draft.fingerprint if draft else None, sids)
    job = RecommendJob(settings.output, facts, settings.shadow, settings.overwrite)
    check_output(job)
    return Task(job, recommender, histories)


def _proposes(settings: TaskSettings) -> bool:
    """Are proposed items drafted: alone, or beside a model's drafts where they can be?"""
    if settings.draft in ("items", "none"):
        return settings.draft == "items"
    config = settings.config
    fits = config.verify != "relaxed" and config.constraint == "trie"
    return fits and config.draft_items > 0


def fit_retriever(sequences: str, sids: SemanticIds) -> ItemRetriever:
    """Co-occurrence and popularity of the train part, of items that have a semantic id."""
    places = (sids.find(s.items) for s in read_sequences(sequences, "train", None))
    return ItemRetriever.fit((p[p >= 0] for p in places), len(sids))


def _facts(
    settings: TaskSettings, target: str, draft: str | None, sids: SemanticIds
) -> dict[str, Any]:
    """What decides the content of the output."""
    return {
        **settings.config.model_dump(mode="json"),
        "sequences": open_records(settings.sequences).fingerprint(),
        "sids": sids.fingerprint(),
        "target": target,
        "draft": draft or settings.draft,
        "part": settings.part,
        "limit": settings.limit,
        "shadow": settings.shadow,
    }
