"""From settings, or from the package's own models, to what answers, and again when files change."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Protocol

from draftrec.config import GenerateConfig, ModelConfig, RecommendConfig
from draftrec.data.sequences import read_semantic_ids
from draftrec.demo.shop import demo_model_path, load_shipped, shipped_path
from draftrec.items.retriever import ItemRetriever
from draftrec.items.semantic_ids import SemanticIds
from draftrec.jobs.knowledge.generator import Generator
from draftrec.jobs.recommend.catalogue import Catalogue
from draftrec.jobs.recommend.recommender import ItemRecommender, parts_of
from draftrec.jobs.recommend.setup import fit_retriever
from draftrec.models.loading import tokenizer_fingerprint
from draftrec.models.recommender import Recommender, load_recommender
from draftrec.pool.store import Pool
from draftrec.serve.settings import KnowledgeSettings, RecommendSettings, ServeSettings

#: Of `--demo`: as many items as its users are shown, drafted by both embedded helpers.
DEMO_SETTINGS = RecommendConfig(
    k=20, draft_steps="auto", draft_items=8, batch_size=32, exclude_seen=True
)


class RecommendSource(Protocol):
    """Where a recommender comes from, and another one once the files have changed."""

    def load(self) -> ItemRecommender: ...

    def reload(self, old: ItemRecommender) -> ItemRecommender:
        """The same models over the catalogue as it is now."""
        ...


class KnowledgeSource(Protocol):
    """Where a generator comes from, and another pool once its folder has changed."""

    chat: bool | None
    name: str | None

    def load(self) -> Generator: ...

    def reload(self, old: Generator) -> Pool | None:
        """The pool as it is now; None where there is none to read."""
        ...


@dataclass(frozen=True, slots=True)
class ServiceSources:
    """What there is to serve."""

    recommend: RecommendSource | None = None
    knowledge: KnowledgeSource | None = None


def sources_of(settings: ServeSettings) -> ServiceSources:
    """The files that the settings name."""
    recommend = FileCatalogue(settings.recommend) if settings.recommend else None
    knowledge = FileGenerator(settings.knowledge) if settings.knowledge else None
    return ServiceSources(recommend, knowledge)


def demo_sources() -> ServiceSources:
    """The embedded shop and the embedded knowledge model."""
    config = GenerateConfig(
        target=ModelConfig(model=str(demo_model_path()), device="cpu", dtype="float32")
    )
    return ServiceSources(EmbeddedShop(), FileGenerator(KnowledgeSettings(generate=config)))


class FileCatalogue:
    """A target, its draft, semantic ids and sequences, as `draftrec genrec recommend` takes them.

    Raises DraftrecError, in both methods, for unusable files and settings that contradict each
    other.
    """

    def __init__(self, settings: RecommendSettings) -> None:
        self.settings = settings
        self._models: tuple[Recommender, Recommender | None] | None = None

    def load(self) -> ItemRecommender:
        """Read everything and load the models."""
        settings = self.settings
        sids, items = self._catalogue()
        load = partial(load_recommender, device=settings.device, dtype=settings.dtype)
        target = load(settings.target)
        draft = None if settings.draft in ("items", "none") else load(settings.draft)
        self._models = target, draft
        catalogue = Catalogue.of(sids, target, draft, str(settings.sids))
        parts = parts_of(target, catalogue, draft, self._proposer(items))
        return ItemRecommender(parts, catalogue, settings.settings, items)

    def reload(self, old: ItemRecommender) -> ItemRecommender:
        """Read semantic ids and sequences again; the models stay."""
        assert self._models is not None
        sids, items = self._catalogue()
        catalogue = Catalogue.of(sids, *self._models, str(self.settings.sids))
        return old.swapped(catalogue, self._proposer(items), items)

    def _catalogue(self) -> tuple[SemanticIds, ItemRetriever | None]:
        settings = self.settings
        sids, items = read_semantic_ids(settings.sids, settings.columns), None
        if settings.sequences:
            items = fit_retriever(settings.sequences, sids, settings.columns)
        return sids, items

    def _proposer(self, items: ItemRetriever | None) -> ItemRetriever | None:
        """What drafts besides the models, if anything."""
        settings, config = self.settings, self.settings.settings
        if settings.draft == "items":
            return items
        fits = config.verify != "relaxed" and config.constraint == "trie"
        return items if settings.draft != "none" and fits and config.draft_items else None


class EmbeddedShop:
    """The shop that ships with draftrec. Its catalogue does not change, so that reading it again
    gives the same."""

    def load(self) -> ItemRecommender:
        """Target, draft and item-item co-occurrence."""
        shipped = load_shipped(shipped_path())
        return ItemRecommender(shipped.parts, shipped.catalogue, DEMO_SETTINGS, shipped.items)

    def reload(self, old: ItemRecommender) -> ItemRecommender:
        """The same once more."""
        return old.swapped(old.catalogue, old.parts.retriever, old.popular)


class FileGenerator:
    """A knowledge model and its pool, as `draftrec generate` takes them."""

    def __init__(self, settings: KnowledgeSettings) -> None:
        self.settings = settings
        self.chat, self.name = settings.chat, settings.name

    def load(self) -> Generator:
        """Load the model and open the pool. Raises DraftrecError for unusable ones."""
        pool = None
        if self.settings.pool is not None:
            pool = Pool.load(self.settings.pool, self._fingerprint())
        return Generator.from_pretrained(config=self.settings.generate, pool=pool)

    def reload(self, old: Generator) -> Pool | None:
        """Open the pool's folder again."""
        if self.settings.pool is None:
            return None
        return Pool.load(self.settings.pool, old.fingerprint["tokenizer"])

    def _fingerprint(self) -> str:
        from draftrec.models.loading import load_tokenizer_of

        return tokenizer_fingerprint(load_tokenizer_of(self.settings.generate.target))
