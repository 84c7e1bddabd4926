"""`draftrec genrec recommend`: the top-K items of every user."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from draftrec.cli.common import (
    DONE,
    DRAFTING_PANEL,
    INTERRUPTED,
    MODEL_PANEL,
    OUTPUT_PANEL,
    SEARCH_PANEL,
    ConfigOption,
    DebugOption,
    JsonOption,
    StopSignal,
    auto_or_number,
    command,
    print_json,
    say,
)
from draftrec.cli.options.cluster import (
    AddressOption,
    CpusOption,
    EngineOption,
    GpusOption,
    WorkersOption,
    cluster_of,
)
from draftrec.cli.options.columns import GenrecColumnOptions
from draftrec.cli.options.idle import Idle
from draftrec.cli.options.places import HERE, READ, WRITTEN
from draftrec.config import RecommendConfig
from draftrec.data.files.places import Place
from draftrec.errors import DraftrecError, Interrupted

_CONFIG = RecommendConfig()

Option = typer.Option
Drafting = partial(Option, rich_help_panel=DRAFTING_PANEL)
Search = partial(Option, rich_help_panel=SEARCH_PANEL)
Machine = partial(Option, rich_help_panel=MODEL_PANEL)
Output = partial(Option, rich_help_panel=OUTPUT_PANEL)


class Verify(StrEnum):
    """How drafted beams become the answer."""

    STRICT = "strict"
    RELAXED = "relaxed"
    SAMPLE = "sample"


class Wanted(StrEnum):
    """What is recommended for."""

    TRAIN = "train"
    VALID = "valid"
    TEST = "test"
    ALL = "all"


class Legal(StrEnum):
    """Which tokens may follow."""

    TRIE = "trie"
    NONE = "none"


_VERIFY, _LEGAL = Verify(_CONFIG.verify), Legal(_CONFIG.constraint)


class Dtype(StrEnum):
    """What the models compute in."""

    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


@dataclass(frozen=True, slots=True, kw_only=True)
class RecommendOptions(GenrecColumnOptions):
    """The command line of `draftrec genrec recommend`."""

    sequences: Annotated[
        str,
        READ,
        typer.Argument(
            metavar="SEQUENCES", help="Parquet, JSONL or CSV with user, items and part."
        ),
    ]
    target: Annotated[Path, Option(metavar="DIR", help="Folder of the target model.")]
    sids: Annotated[Place, READ, Option(metavar="FILE", help="Semantic ids: item, sid.")]
    output: Annotated[
        Place, WRITTEN, Option(metavar="FILE", help="File to write: .parquet, .jsonl or .csv.")
    ]
    draft: Annotated[
        str,
        HERE,
        Option(
            metavar="DIR|items|none",
            help="Who drafts: a draft model's folder, items proposed by co-occurrence, or nobody.",
        ),
    ] = "items"
    part: Annotated[
        Wanted | None,
        Option(
            help="What to predict, from what comes before it; all: recommend for now, after "
            "everything that is known.",
            show_default="test; all where the file has no test items",
        ),
    ] = None
    k: Annotated[int, Option("-k", min=1, help="Items per user, and beams kept.")] = _CONFIG.k
    limit: Annotated[int | None, Option(min=1, metavar="USERS", help="First users only.")] = None
    draft_beams: Annotated[int, Drafting(min=1, help="Beams drafted per level (N).")] = (
        _CONFIG.draft_beams
    )
    draft_steps: Annotated[
        str, Drafting(metavar="auto|N", help="Levels drafted per pass; auto: as many as pay.")
    ] = str(_CONFIG.draft_steps)
    draft_items: Annotated[
        int, Drafting(min=0, help="Proposed items' rows per level beside those of a draft model.")
    ] = _CONFIG.draft_items
    verify: Annotated[
        Verify,
        Search(
            help="strict: plain beam search's own answer; sample: an exact sample without "
            "replacement; relaxed: AtSpeed's published sampling."
        ),
    ] = _VERIFY
    constraint: Annotated[
        Legal, Search(help="trie: items of the catalogue only; none: any tokens.")
    ] = _LEGAL
    renormalise: Annotated[
        bool,
        Search(
            "--renormalise/--no-renormalise",
            help="Score among legal tokens only; a level with one legal token then costs nothing.",
        ),
    ] = _CONFIG.renormalise
    temperature: Annotated[float, Search(help="Of samples.")] = _CONFIG.temperature
    seed: Annotated[int, Search(help="Of samples.")] = _CONFIG.seed
    batch_size: Annotated[int, Machine(min=1, help="Users at once.")] = _CONFIG.batch_size
    exclude_seen: Annotated[
        bool, Option("--exclude-seen", help="Leave out the items of the user's history.")
    ] = _CONFIG.exclude_seen
    shadow: Annotated[
        float,
        Drafting(
            min=0.0, max=1.0, help="Share of users answered again by plain search, to compare."
        ),
    ] = 0.0
    device: Annotated[str, Machine(metavar="auto|cpu|cuda[:i]", help="Where to compute.")] = "auto"
    dtype: Annotated[Dtype, Machine(help="What the models compute in.")] = Dtype.AUTO
    engine: EngineOption = "local"
    workers: WorkersOption = 1
    gpus_per_worker: GpusOption = None
    cpus_per_worker: CpusOption = None
    address: AddressOption = None
    shard_size: Annotated[
        int, Output(min=1, help="Users that are finished, and resumed from, together.")
    ] = 2048
    overwrite: Annotated[bool, Output("--overwrite", help="Replace the output.")] = False
    config: ConfigOption = None
    json: JsonOption = False
    debug: DebugOption = False


_IDLE = (
    Idle(
        "draft_beams draft_steps draft_items shadow",
        lambda o: o.draft == "none",
        "with --draft none, which is plain search",
    ),
    Idle(
        "draft_items",
        lambda o: o.draft == "items" or o.verify is Verify.RELAXED or o.constraint is Legal.NONE,
        "without a draft model beside whose drafts proposed items can be verified",
    ),
    Idle(
        "temperature seed",
        lambda o: o.verify is Verify.STRICT,
        "with --verify strict, which draws nothing",
    ),
    Idle(
        "temperature",
        lambda o: o.verify is Verify.RELAXED,
        "with --verify relaxed, which draws from the models' own probabilities",
    ),
    Idle("renormalise", lambda o: o.constraint is Legal.NONE, "with --constraint none"),
)


@command(RecommendOptions, idle=_IDLE)
def recommend(options: RecommendOptions) -> int:
    """Recommend items: the K best beams of the target model, drafted and verified together."""
    from draftrec.cli.progress import users_bar
    from draftrec.jobs.recommend.job import run_job
    from draftrec.jobs.recommend.setup import prepare

    settings, cluster = recommend_settings(options), cluster_of(options)
    with StopSignal() as stop:
        task = prepare(settings, _hire(cluster))
        stop.arm()
        try:
            with (
                closing(task.crew) as crew,
                users_bar(len(task.histories), options.output.name) as bar,
            ):
                summary = run_job(task.job, crew, task.histories, bar, stop)
        except Interrupted:
            say("interrupted; finished users are kept, run the same command again to continue")
            return INTERRUPTED
    _report(options, summary)
    return DONE


def _hire(cluster: Any) -> Any:
    """Workers of a cluster; None for this process."""
    if cluster is None:
        return None
    from draftrec.jobs.ray.recommend import on_ray

    return on_ray(cluster, say)


def recommend_settings(options: RecommendOptions) -> Any:
    """The command line as the settings of a task. Raises DraftrecError for impossible ones."""
    from pydantic import ValidationError

    from draftrec.jobs.recommend.setup import TaskSettings

    try:
        config = RecommendConfig(
            k=options.k,
            draft_beams=options.draft_beams,
            draft_steps=auto_or_number("draft-steps", options.draft_steps),
            draft_items=options.draft_items,
            verify=options.verify.value,
            constraint=options.constraint.value,
            renormalise=options.renormalise,
            temperature=options.temperature,
            seed=options.seed,
            batch_size=options.batch_size,
            exclude_seen=options.exclude_seen,
        )
    except ValidationError as error:
        first = error.errors()[0]
        name = "--" + str(first["loc"][0]).replace("_", "-")
        raise DraftrecError(f"{name}: {first['msg'].lower()}, not {first['input']!r}") from error
    return TaskSettings(
        sequences=options.sequences,
        sids=options.sids,
        target=options.target,
        draft=options.draft,
        output=options.output,
        part=options.part.value if options.part else None,
        limit=options.limit,
        shadow=options.shadow,
        device=options.device,
        dtype=options.dtype.value,
        overwrite=options.overwrite,
        shard_size=options.shard_size,
        config=config,
        columns=options.columns(),
    )


def _report(options: RecommendOptions, summary: dict[str, Any]) -> None:
    say(
        f"{summary['users']:,} users in {summary['walltime_seconds']:.1f} s, "
        f"{summary['mean_target_calls']:.2f} target calls each; {options.output}"
    )
    if options.json:
        print_json(summary)
