"""`draftrec encode`: a text per entity in, a vector per entity out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import typer
from pydantic import ValidationError

from draftrec.cli.common import (
    DONE,
    SOME_REJECTED,
    DebugOption,
    JsonOption,
    StopSignal,
    command,
    option_error,
    print_json,
    say,
)
from draftrec.cli.messages import beginning, no_bar
from draftrec.cli.options.cluster import (
    AddressOption,
    CpusOption,
    EngineOption,
    GpusOption,
    WorkersOption,
    cluster_of,
)
from draftrec.cli.options.idle import Idle
from draftrec.cli.options.places import HERE, READ, WRITTEN
from draftrec.config import EncodeConfig, EncoderConfig
from draftrec.data.files.places import Place

Option = typer.Option
_JOB, _ENCODER = EncodeConfig(encoder=""), EncoderConfig()


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodeOptions:
    """The command line of `draftrec encode`."""

    texts: Annotated[
        str,
        READ,
        typer.Argument(
            metavar="TEXTS",
            help="A run's folder, or texts: Parquet, JSONL or CSV with entity_id and text.",
        ),
    ]
    encoder: Annotated[
        str,
        HERE,
        Option(
            metavar="PATH_OR_HUB_ID",
            help="A model's folder or Hub id; minilm (extra encoders); or hashed:256, which "
            "needs no model.",
        ),
    ]
    output: Annotated[
        Place,
        WRITTEN,
        Option(metavar="FILE.parquet", help="Vectors to write, in the order of TEXTS."),
    ]
    history: Annotated[
        str | None,
        READ,
        Option(
            metavar="RECORDS",
            help="Records of the same entities whose prompt, or list of titles, is encoded too, "
            "behind the text.",
        ),
    ] = None
    fit_on: Annotated[
        list[str] | None,
        READ,
        Option(
            metavar="TEXTS",
            help="hashed: fit on these instead (may be repeated), so that two runs compare.",
        ),
    ] = None
    pooling: Annotated[
        Literal["auto", "mean", "last", "cls"],
        Option(help="auto: mean; last token for decoder-only models."),
    ] = _ENCODER.pooling
    normalise: Annotated[
        bool | None,
        Option(
            "--normalise/--no-normalise",
            help="Vectors of length 1.",
            show_default="as the encoder was published",
        ),
    ] = _ENCODER.normalise
    max_tokens: Annotated[
        int | None, Option(help="Tokens per pass.", show_default="the encoder's limit")
    ] = _ENCODER.max_tokens
    on_overflow: Annotated[
        Literal["window", "truncate", "refuse"],
        Option(
            help="Longer texts: the mean over windows of the whole text; its beginning, what is "
            "lost counted; or rejected."
        ),
    ] = _ENCODER.on_overflow
    prompt_name: Annotated[
        str | None,
        Option(
            metavar="query|passage",
            help="The encoder's own prompt for such texts, for encoders that have several.",
            show_default="the encoder's default",
        ),
    ] = _ENCODER.prompt_name
    prompt: Annotated[
        str | None, Option(metavar="TEXT", help="Words before every text, such as 'query: '.")
    ] = _ENCODER.prompt
    batch_size: Annotated[int, Option(help="Most texts encoded together.")] = _ENCODER.batch_size
    device: Annotated[str, Option(help="auto, cpu, cuda or cuda:N.")] = _ENCODER.device
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        Option(help="Precision of the weights; auto: as stored, float32 on CPU."),
    ] = _ENCODER.dtype
    trust_remote_code: Annotated[
        bool,
        Option(
            "--trust-remote-code/--no-trust-remote-code",
            help="Run Python code that comes with the encoder.",
        ),
    ] = _ENCODER.trust_remote_code
    id_column: Annotated[str, Option(help="Column of the entity ids.")] = _JOB.id_column
    text_column: Annotated[str, Option(help="Column of the texts.")] = _JOB.text_column
    history_column: Annotated[str, Option(help="Column of --history.")] = _JOB.history_column
    engine: EngineOption = "local"
    workers: WorkersOption = 1
    gpus_per_worker: GpusOption = None
    cpus_per_worker: CpusOption = None
    address: AddressOption = None
    shard_size: Annotated[
        int, Option(help="Texts that are written, and resumed from, together.")
    ] = _JOB.shard_size
    overwrite: Annotated[
        bool, Option("--overwrite", help="Give up the vectors that are in --output.")
    ] = False
    json: JsonOption = False
    debug: DebugOption = False


_HASHED = "hashed:"
_IDLE = (
    Idle(
        "pooling max_tokens on_overflow device dtype",
        lambda o: o.encoder.startswith(_HASHED),
        "with a hashed encoder, which has no model",
    ),
    Idle("fit_on", lambda o: not o.encoder.startswith(_HASHED), "without a hashed encoder"),
    Idle("history_column", lambda o: o.history is None, "without --history"),
)


@command(EncodeOptions, idle=_IDLE)
def encode(options: EncodeOptions) -> int:
    """Turn TEXTS into vectors, one per entity.

    The same command again goes on where it was interrupted.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    from draftrec.jobs.encode.inputs import EncodeSpec
    from draftrec.jobs.encode.job import run_encode

    cluster = cluster_of(options)
    fit_on = tuple(options.fit_on or ())
    spec = EncodeSpec(
        _config(options), options.texts, options.output, options.history, fit_on, options.overwrite
    )
    errors = Console(stderr=True)
    columns = (TextColumn("texts"), BarColumn(), MofNCompleteColumn())
    bar = Progress(*columns, console=errors, transient=True, disable=no_bar(errors))
    with StopSignal(), bar:
        task = bar.add_task("texts", total=None)

        def watch(done: int, of: int) -> None:
            bar.update(task, completed=done, total=of)

        result = run_encode(spec, _hire(cluster), beginning(watch))
    if not result.fresh:
        say(f"{options.output} is already finished; nothing was changed")
    summary = {**result.summary, "output": str(options.output)}
    _report(summary, with_history=options.history is not None)
    if options.json:
        print_json(summary)
    return SOME_REJECTED if summary["rejected"] else DONE


def _hire(cluster: Any) -> Any:
    """The crew: workers of a cluster, or an encoder in this process."""
    if cluster is not None:
        from draftrec.jobs.ray.encode import on_ray

        return on_ray(cluster, say)
    from draftrec.jobs.encode import inputs as encode_crew

    return encode_crew.local(encode_crew.load_for_job)


def _config(options: EncodeOptions) -> EncodeConfig:
    """The options as settings. Raises DraftrecError for a value out of range."""
    values = {name: getattr(options, name) for name in options.__slots__}
    try:
        settings = EncoderConfig(**{name: values[name] for name in EncoderConfig.model_fields})
        own = [name for name in EncodeConfig.model_fields if name != "settings"]
        return EncodeConfig(settings=settings, **{name: values[name] for name in own})
    except ValidationError as error:
        raise option_error(error) from error


def _report(summary: dict[str, Any], *, with_history: bool) -> None:
    """What was done, and whatever a vector does not say."""
    say(
        f"{summary['texts']:,} texts ({summary['encoded']:,} different ones) as vectors of "
        f"{summary['dim']} numbers in {summary['output']}: {summary['tokens']:,} tokens, "
        f"{summary['texts_per_second']:,.1f} texts/s"
    )
    if summary["windowed"]:
        say(
            f"{summary['windowed']:,} texts are longer than the encoder reads at once; each is the "
            "mean of its windows"
        )
    if summary["tokens_lost"]:
        say(
            f"{summary['tokens_lost']:,} tokens were not read: {summary['knowledge_truncated']:,} "
            f"texts lost knowledge, {summary['history_truncated']:,} lost history; --on-overflow "
            "window reads everything"
        )
    if with_history and summary["without_history"]:
        say(f"{summary['without_history']:,} texts have no history in --history")
    if summary["rejected"]:
        where = f"{summary['output']}.rejected.jsonl"
        say(f"{summary['rejected']:,} records were rejected, see {where}")
