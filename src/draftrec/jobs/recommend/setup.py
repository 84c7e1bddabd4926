"""From files and folders to a job that is ready to run."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from draftrec.config import RecommendConfig, RecommendRun, RetrieverSettings, Wanted
from draftrec.core import LongArray
from draftrec.data.files.locks import refuse_second_writer
from draftrec.data.files.places import Place, is_address
from draftrec.data.files.writers import check_table_name
from draftrec.data.sequences import (
    ALL,
    USUAL,
    History,
    LeftOut,
    SequenceColumns,
    read_histories,
    read_items,
    read_semantic_ids,
    usual_part,
)
from draftrec.data.tables.readers import open_records
from draftrec.engine.target import Target
from draftrec.errors import DraftrecError
from draftrec.items.semantic_ids import SemanticIds
from draftrec.jobs.executor import Executor, LocalExecutor, Note, Share, Start, usual_window
from draftrec.jobs.knowledge.account import exactness
from draftrec.jobs.recommend.job import RecommendJob, check_output
from draftrec.jobs.recommend.loading import Sources, load_parts
from draftrec.jobs.recommend.recommender import ItemRecommender
from draftrec.jobs.recommend.worker import IdTypes, ModelFacts, RecommendWorker

_LOG = logging.getLogger("draftrec")


@dataclass(frozen=True, kw_only=True)
class TaskSettings(RecommendRun):
    """Where everything lies. `draft` is a folder, `items` or `none`; `part` None: `usual_part`;
    `allow`, `deny`: files of the only items to recommend to anybody, and of those not to."""

    sequences: str
    sids: Place
    target: Path
    draft: str
    output: Place
    item_model: Path | None = None
    allow: str | None = None
    deny: str | None = None
    part: Wanted | None = "test"
    overwrite: bool = False
    config: RecommendConfig = field(default_factory=RecommendConfig)
    columns: SequenceColumns = USUAL

    @property
    def lists(self) -> list[tuple[str, str]]:
        """`allow` and `deny`, as far as they are given, with their names."""
        given = (("allow", self.allow), ("deny", self.deny))
        return [(name, location) for name, location in given if location]


@dataclass(frozen=True, eq=False, slots=True)
class Inputs:
    """The catalogue, and the users to recommend for. `unknown`: items left out of histories, since
    they have no semantic id."""

    sids: SemanticIds
    histories: list[History]
    unknown: int = 0


@dataclass(frozen=True, eq=False, slots=True)
class Task:
    """A job with what it needs."""

    job: RecommendJob
    executor: Executor
    histories: list[History]
    unknown: int = 0


def prepare(settings: TaskSettings, start: Start = LocalExecutor) -> Task:
    """Read files and load models; whatever is wrong with them is said before any work is done.

    `start` finds who recommends. Raises DraftrecError for unusable files, folders
    or settings, and semantic ids of other items.
    """
    check_table_name(settings.output)
    refuse_second_writer(settings.output)
    if settings.part is None:
        settings = replace(settings, part=usual_part(settings.sequences, settings.columns))
        if settings.part == ALL:
            _LOG.info(
                "%s has no items of part 'test': recommending for now, after all that is known",
                settings.sequences,
            )
    inputs = read_inputs(settings)
    executor = start(RecommendWork(settings, inputs))
    try:
        facts = _facts(settings, executor.facts, inputs.sids)
        job = RecommendJob(
            settings.output, facts, settings.shadow, settings.overwrite, settings.shard_size,
            IdTypes.of(inputs.histories, inputs.sids),
        )  # fmt: skip
        check_output(job)
    except BaseException:
        executor.close()
        raise
    return Task(job, executor, inputs.histories, inputs.unknown)


def read_inputs(settings: TaskSettings) -> Inputs:
    """Semantic ids, and histories of the items that have one; others are left out and warned of.

    Raises DraftrecError where no item of any history has one.
    """
    sids = read_semantic_ids(settings.sids, settings.columns)
    part = settings.part or usual_part(settings.sequences, settings.columns)
    histories = read_histories(settings.sequences, part, None, settings.columns)
    histories = histories[: settings.limit]
    left_out = LeftOut()
    for i, history in enumerate(histories):
        known = left_out.known(history.user, history.items, sids.find(history.items))
        if not known.all():
            histories[i] = replace(history, items=history.items[known])
    left_out.tell()
    if not settings.config.exclude_seen:
        _tell_repeats(histories)
    return Inputs(sids, histories, left_out.items)


#: Users from whom on it means something that none of them takes an item twice.
_MANY = 100


def _tell_repeats(histories: list[History]) -> None:
    """Say where nobody takes an item twice, so that places of the lists are wasted on seen ones."""
    known = [history for history in histories if len(history.items)]
    taken = (np.concatenate((history.items, history.targets)) for history in known)
    if len(known) >= _MANY and all(len(np.unique(items)) == len(items) for items in taken):
        _LOG.info(
            "nobody takes an item twice here: with --exclude-seen no place of a list is lost to "
            "what a user has already"
        )


@dataclass(frozen=True, eq=False, slots=True)
class RecommendWork:
    """Loads a recommender where it runs, from the job's own files; `inputs`: what is read of them
    already."""

    settings: TaskSettings
    inputs: Inputs | None = None

    def __call__(self) -> RecommendWorker:
        it = self.settings
        return load(it, self.inputs.sids if self.inputs else read_semantic_ids(it.sids, it.columns))

    def window(self, workers: int, note: Note, /) -> int:
        """Two shards for each."""
        users = len(self.inputs.histories) if self.inputs else 0
        shards = -(-users // self.settings.shard_size)
        if 0 < shards < workers:
            note(
                f"{users:,} users are {shards} shards: no more than {shards} of the workers have "
                f"work; lower --shard-size"
            )
        return usual_window(workers)

    def placed(self, share: Share, /) -> RecommendWork:
        """The same files, from wherever a worker runs, and its own device."""
        it, draft = self.settings, self.settings.draft
        return RecommendWork(
            replace(
                it,
                sequences=_absolute(it.sequences),
                allow=it.allow and _absolute(it.allow),
                deny=it.deny and _absolute(it.deny),
                sids=it.sids.absolute(),
                target=it.target.absolute(),
                draft=draft if draft in ("items", "none") else str(Path(draft).absolute()),
                item_model=it.item_model and it.item_model.absolute(),
                output=it.output.absolute(),
                device=share.device(it.device),
            )
        )


def _absolute(location: str) -> str:
    return location if is_address(location) else str(Path(location).absolute())


def load(settings: TaskSettings, sids: SemanticIds) -> RecommendWorker:
    """Target, draft and retriever over a catalogue."""
    stock = {name: read_stock(it, sids, settings.columns) for name, it in settings.lists}
    sources = Sources(
        target=settings.target,
        sids=settings.sids,
        sequences=settings.sequences,
        draft=settings.draft,
        item_model=settings.item_model,
        part=settings.part or ALL,
        device=settings.device,
        dtype=settings.dtype,
        exact=settings.exact,
        columns=settings.columns,
    )
    loaded = load_parts(sources, settings.config, sids)
    catalogue = loaded.catalogue.narrowed(stock.get("allow"), stock.get("deny"))
    recommender = ItemRecommender.of(replace(loaded, catalogue=catalogue), settings.config)
    meaning = _meaning(settings, loaded.parts.target)
    facts = ModelFacts(
        loaded.target.fingerprint,
        loaded.draft.fingerprint if loaded.draft else settings.draft,
        meaning,
        loaded.item_model.source.fingerprint if loaded.item_model else None,
    )
    return RecommendWorker(recommender, facts, settings.shadow)


def read_stock(location: str, sids: SemanticIds, columns: SequenceColumns) -> LongArray:
    """The places int64 `[k]` of the items of a list, -1 for those that the catalogue does not have,
    which are told of.

    Raises DraftrecError as `read_items` does, and where it has none of them.
    """
    items = read_items(location, columns)
    places = sids.find(items)
    unknown = items[places < 0]
    if len(unknown) == len(items):
        raise DraftrecError(
            f"none of the {len(items):,} items of {location}, such as {items[0]}, has a semantic "
            "id; list items of --sids"
        )
    if len(unknown):
        _LOG.warning(
            "%s of %s items of %s, such as %s, have no semantic id and count for nothing",
            f"{len(unknown):,}", f"{len(items):,}", location, unknown[0],
        )  # fmt: skip
    return places


def _meaning(settings: TaskSettings, target: Target) -> str:
    """How equal to plain search's the answers are, which is said where drafts are verified."""
    rule = "relaxed" if settings.config.verify == "relaxed" else "strict"
    meaning = exactness(rule, str(target.dtype), exact=target.exact)
    if rule == "strict" and settings.draft != "none":
        hint = ": near-ties may fall otherwise" if meaning == "up to rounding" else ""
        _LOG.info("items and scores are those of plain beam search, %s%s", meaning, hint)
    return meaning


def _facts(settings: TaskSettings, models: ModelFacts, sids: SemanticIds) -> dict[str, Any]:
    """What decides the content of the output."""
    config = settings.config.model_dump(mode="json")
    del config["prefix_cache"]
    if config["beams"] is None:
        del config["beams"]
    for name in ("blend", "blend_item_model"):
        if config[name] is None:
            del config[name]
    if not settings.config.shares:
        del config["blend_candidates"]
    if settings.config.item_item == RetrieverSettings():
        del config["item_item"]
    # The default follows k, which is recorded; earlier versions wrote 40 of it.
    config["draft_beams"] = config["draft_beams"] or 40
    return {
        **config,
        "sequences": open_records(settings.sequences).fingerprint(),
        "sids": sids.fingerprint(),
        "target": models.target,
        "draft": models.draft,
        **({"item_model": models.item_model} if models.item_model else {}),
        **{name: open_records(it).fingerprint() for name, it in settings.lists},
        "part": settings.part,
        "popular": "of all that is known",  # of the train part, in earlier versions
        "limit": settings.limit,
        **({"dtype": settings.dtype} if settings.dtype != "auto" else {}),
        "shadow": settings.shadow,
        "shard_size": settings.shard_size,
        **({"columns": asdict(settings.columns)} if settings.columns != USUAL else {}),
    }
