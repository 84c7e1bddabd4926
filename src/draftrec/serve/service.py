"""Everything that one process serves, put together: from settings, or from the package's own
models, to what answers, and again when files change.
"""

from __future__ import annotations

import asyncio
import errno
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from draftrec import __version__
from draftrec.config import GenerateConfig, ModelConfig, RecommendConfig
from draftrec.data.sequences import read_semantic_ids
from draftrec.demo.shop import demo_model_path, load_shipped, shipped_path
from draftrec.errors import DraftrecError
from draftrec.items.retriever import ItemRetriever
from draftrec.items.semantic_ids import SemanticIds
from draftrec.jobs.knowledge.generator import Generator
from draftrec.jobs.recommend.catalogue import Catalogue, Query
from draftrec.jobs.recommend.loading import Sources, fit_retriever, load_parts, proposes
from draftrec.jobs.recommend.recommender import ItemRecommender
from draftrec.models.loading import tokenizer_fingerprint
from draftrec.models.recommender import Recommender
from draftrec.pool.store import Pool
from draftrec.serve.dashboard.sources import BUSY_LOOK_SECONDS, RunSources
from draftrec.serve.http.auth import ATTEMPTS, Keyring, Sessions, TokenBuckets
from draftrec.serve.http.lifecycle import Lifecycle
from draftrec.serve.http.schemas import OPENAI_ROUTES, ApiError
from draftrec.serve.logs import RequestLog, RequestNote
from draftrec.serve.metrics import ServiceMetrics
from draftrec.serve.model_thread import ModelThread, WorkError
from draftrec.serve.settings import (
    KnowledgeSettings,
    RecommendSettings,
    ServeSettings,
    shown_settings,
)
from draftrec.serve.work import KnowledgeWork, Recommended, RecommendWork, Wanted, Written

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
        it = self.settings
        sources = Sources(
            target=it.target,
            sids=it.sids,
            sequences=it.sequences,
            draft=it.draft,
            item_model=it.item_model,
            device=it.device,
            dtype=it.dtype,
            columns=it.columns,
        )
        loaded = load_parts(sources, it.settings, read_semantic_ids(it.sids, it.columns))
        self._models = loaded.target, loaded.draft
        return ItemRecommender.of(loaded, it.settings)

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
            it = settings.settings.item_item
            items = fit_retriever(settings.sequences, sids, settings.columns, settings=it)
        return sids, items

    def _proposer(self, items: ItemRetriever | None) -> ItemRetriever | None:
        """What drafts besides the models, if anything."""
        return items if proposes(self.settings.draft, self.settings.settings) else None


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


_QUIET_SECONDS = 10.0
Given = TypeVar("Given")
Found = TypeVar("Found")


def _aside(work: Callable[[Given], Found], given: Given) -> asyncio.Future[Found]:
    """What `work` says, in a thread for which no process waits before it ends."""
    done: Future[Found] = Future()
    done.set_running_or_notify_cancel()  # from here on nobody can cancel it

    def run() -> None:
        try:
            done.set_result(work(given))
        except BaseException as error:  # noqa: BLE001 - whoever asked has to hear of it
            done.set_exception(error)

    threading.Thread(target=run, name="reading-anew", daemon=True).start()
    return asyncio.wrap_future(done)


class Service:
    """Loads what the sources name. `start` sets their threads going, `stop` ends them. `chat`: are
    prompts put into the tokenizer's chat template? `model_name`: of what writes texts.

    Raises DraftrecError for unusable files, models and settings.
    """

    def __init__(self, settings: ServeSettings, sources: ServiceSources, log: RequestLog) -> None:
        self.settings, self.sources, self.log = settings, sources, log
        self.metrics = ServiceMetrics()
        log.on_drop = self.metrics.count_dropped_line
        # Whoever may see the pages without a key learns no more than names.
        self.guarded = bool(settings.keys) and settings.monitoring == "key"
        self.folders = RunSources(settings.runs, paths=self.guarded, seconds=BUSY_LOOK_SECONDS)
        self.lifecycle = Lifecycle(settings.drain_seconds, settings.notice_seconds)
        self.keyring = Keyring(settings.keys)
        self.sessions, self.login_attempts = Sessions(), TokenBuckets(ATTEMPTS)
        self.buckets = TokenBuckets(settings.rate) if settings.rate else None
        self.recommending: RecommendWork | None = None
        self.writing: KnowledgeWork | None = None
        self.recommend: ModelThread[Query, Recommended] | None = None
        self.knowledge: ModelThread[Wanted, Written] | None = None
        self.chat, self.model_name, self.began = False, "", int(time.time())
        # Of its own, so that nothing else that waits for a thread waits for long prompts.
        self.tokenizing = ThreadPoolExecutor(2, "tokenizing")
        self._began = time.monotonic()
        self.reloading = False
        self._routes = ["/admin/reload"]
        self._told_of_descriptors = float("-inf")
        if sources.recommend:
            self.recommending = RecommendWork(sources.recommend.load(), self.metrics)
            self.recommend = self._thread(self.recommending, "/v1/recommend")
        if sources.knowledge:
            generator = sources.knowledge.load()
            chat = sources.knowledge.chat
            self.chat = generator.has_chat_template if chat is None else chat
            model = generator.config.target.model
            own = Path(model).name if Path(model).exists() else model
            self.model_name = sources.knowledge.name or own
            longest = min(settings.limits.prompt_tokens, generator.context_length - 1)
            self.writing = KnowledgeWork(generator, longest, self.metrics)
            self.writing.on_error = self.note_error
            self.knowledge = self._thread(self.writing, "/v1/knowledge")
            self._routes += OPENAI_ROUTES
        self.metrics.expect(self._routes, lambda: self.lifecycle.in_flight)

    @property
    def threads(self) -> list[ModelThread[Any, Any]]:
        """One for each model."""
        return [thread for thread in (self.recommend, self.knowledge) if thread]

    @property
    def ready(self) -> bool:
        """Can all of them answer?"""
        return all(thread.ready.is_set() for thread in self.threads)

    @property
    def broken(self) -> Exception | None:
        """Why a thread has ended, if one has."""
        return next((t.broken for t in self.threads if t.broken), None)

    def start(self) -> None:
        """Let the models prepare, each in its thread."""
        for thread in self.threads:
            thread.start()

    def stop(self) -> None:
        """End the threads."""
        for thread in self.threads:
            thread.stop()
        self.let_go()

    def let_go(self) -> None:
        """Drop what waits for a thread, as the process would wait for all of it before it ends."""
        self.tokenizing.shutdown(wait=False, cancel_futures=True)
        self.folders.looking.shutdown(wait=False, cancel_futures=True)

    def seconds_since(self, note: RequestNote) -> float:
        """How long a request took."""
        return time.monotonic() - note.began

    def about(self) -> dict[str, Any]:
        """What runs here: version, model of each kind of work, seconds since the start, and the
        settings, without keys; names in place of paths where the page needs no key."""
        asked = self.settings
        models = {
            "recommend": asked.recommend and asked.recommend.target.name,
            "knowledge": asked.knowledge and Path(asked.knowledge.generate.target.model).name,
        }
        served = {"recommend": self.recommend, "knowledge": self.knowledge}
        return {
            "version": __version__,
            "models": {n: models[n] or "demo" for n, thread in served.items() if thread},
            "uptime": round(time.monotonic() - self._began, 1),
            "settings": shown_settings(asked, paths=self.guarded),
        }

    def note_error(self, error: Exception) -> None:
        """Log an error that nobody expected, and where it came from."""
        frames = traceback.extract_tb(error.__traceback__)[-3:]
        places = [f"{frame.name} ({frame.filename}:{frame.lineno})" for frame in frames]
        self.log.write("error", kind=type(error).__name__, message=str(error)[:500], places=places)

    def note_loop_error(self, _loop: object, context: dict[str, Any]) -> None:
        """What asyncio would write to standard error, with a traceback each; a lack of descriptors
        would do so thousands of times a second."""
        error = context.get("exception") or RuntimeError(context["message"])
        if getattr(error, "errno", None) not in (errno.EMFILE, errno.ENFILE):
            self.note_error(error)
        elif (now := time.monotonic()) - self._told_of_descriptors > _QUIET_SECONDS:
            self._told_of_descriptors = now
            self.log.write("out_of_descriptors", message="raise the limit of open files")

    async def reload(self) -> dict[str, Any]:
        """Read catalogue and pool again and go over to them; nothing that runs is lost.

        Raises ApiError while another reload is under way, and for files that cannot be used: then
        the old ones stay.
        """
        if self.reloading:
            raise ApiError(409, "reloading", "another reload is under way; wait for it")
        self.reloading = True
        start = time.monotonic()
        succeeded = False
        try:
            facts = await self._reload_all()
            succeeded = True
        except (DraftrecError, OSError, WorkError) as error:
            self.log.write("reload_failed", message=str(error))
            raise ApiError(409, "reload_failed", f"the old files stay in use: {error}") from error
        finally:
            self.reloading = False
            self.metrics.observe_reload(succeeded=succeeded, seconds=time.monotonic() - start)
        self.log.write("reloaded", seconds=round(time.monotonic() - start, 3), **facts)
        return facts

    async def _reload_all(self) -> dict[str, Any]:
        """Load everything before anything is exchanged; where one exchange fails, take back those
        before it."""
        facts: dict[str, Any] = {}
        exchanges: list[tuple[ModelThread[Any, Any], Any, Any]] = []  # thread, old, new
        if self.sources.recommend and self.recommend and self.recommending:
            recommender = self.recommending.recommender
            new = await _aside(self.sources.recommend.reload, recommender)
            exchanges.append((self.recommend, recommender, new))
            facts["items"] = len(new.catalogue.sids)
        if self.sources.knowledge and self.knowledge and self.writing:
            generator = self.writing.generator
            pool = await _aside(self.sources.knowledge.reload, generator)
            if pool is not None:
                exchanges.append((self.knowledge, generator.pool, pool))
                facts["pool_texts"] = len(pool)
        exchanged: list[tuple[ModelThread[Any, Any], Any]] = []
        try:
            for thread, old, new in exchanges:
                await asyncio.wrap_future(thread.change(new))
                exchanged.append((thread, old))
        except BaseException:
            for thread, old in exchanged:
                await asyncio.wrap_future(thread.change(old))
            raise
        return facts

    def _thread(self, work: Any, route: str) -> ModelThread[Any, Any]:
        self._routes.append(route)

        def failed(error: Exception) -> None:
            self.metrics.observe_error("engine")
            self.note_error(error)

        return ModelThread(
            work,
            self.settings.limits.queue,
            threads=self.settings.threads,
            on_queue=lambda waiting: self.metrics.set_queue(route, waiting),
            on_error=failed,
            on_idle=work.rest,
        )
