"""`draftrec encode`: a text per entity in, a vector per entity out."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from draftrec.cli.command import DONE, SOME_REJECTED, command, print_json
from draftrec.cli.knobs import (
    HERE,
    READ,
    REQUIRED,
    WRITTEN,
    argument,
    option,
    option_of,
    settings_of,
)
from draftrec.cli.messages import StopSignal, bars, beginning, say
from draftrec.cli.options import ClusterOptions, Idle, TrackOptions, cluster_of, executor_of
from draftrec.config import EncodeConfig, EncoderConfig
from draftrec.data.files.places import Place

Job, Encoder = partial(option_of, EncodeConfig), partial(option_of, EncoderConfig)


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodeOptions(TrackOptions, ClusterOptions):
    """The command line of `draftrec encode`."""

    texts: str = argument(
        "TEXTS",
        "A run's folder, or texts: Parquet, JSONL or CSV with entity_id and text; without texts, "
        "items with a title, whose records are put into words.",
        READ,
    )
    encoder: str = Job("encoder", metavar="PATH_OR_HUB_ID", place=HERE)
    output: Place = option(
        "Vectors to write, in the order of TEXTS.",
        metavar="FILE.parquet",
        default=REQUIRED,
        place=WRITTEN,
    )
    history: str | None = option(
        "Records of the same entities whose prompt, or list of titles, is encoded too, behind the "
        "text.",
        metavar="RECORDS",
        place=READ,
    )
    fit_on: list[str] | None = option(
        "hashed: fit on these instead (may be repeated), so that two runs compare.",
        metavar="TEXTS",
        place=READ,
    )
    pooling: str = Encoder("pooling")
    normalise: bool | None = Encoder("normalise")
    max_tokens: int | None = Encoder("max_tokens")
    on_overflow: str = Encoder("on_overflow")
    prompt_name: str | None = Encoder("prompt_name", metavar="query|passage")
    prompt: str | None = Encoder("prompt", metavar="TEXT")
    batch_size: int = Encoder("batch_size")
    device: str = Encoder("device")
    dtype: str = Encoder("dtype")
    trust_remote_code: bool = Encoder(
        "trust_remote_code", "--trust-remote-code/--no-trust-remote-code"
    )
    id_column: str = Job("id_column")
    text_column: str = Job("text_column")
    history_column: str = Job("history_column")
    shard_size: int = Job("shard_size")
    overwrite: bool = option("Give up the vectors that are in --output.", default=False)


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


@command(EncodeOptions, idle=_IDLE, resumes=True)
def encode(options: EncodeOptions) -> int:
    """Turn TEXTS into vectors, one per entity.

    The same command again goes on where it was interrupted.
    """
    from draftrec.cli.tracking import of_state, tracked
    from draftrec.jobs.encode.inputs import EncodeSpec
    from draftrec.jobs.encode.job import run_encode

    start = executor_of(cluster_of(options), say)
    fit_on = tuple(options.fit_on or ())
    config = settings_of(EncodeConfig, options, settings=settings_of(EncoderConfig, options))
    spec = EncodeSpec(
        config, options.texts, options.output, options.history, fit_on, options.overwrite
    )
    with tracked(options.track, options.output, options) as tracker, StopSignal(), bars() as watch:
        told = of_state(tracker, beginning(partial(watch, "texts")), "texts")
        result = run_encode(spec, told, start=start)
        tracker.end(result.summary)
    if not result.fresh:
        say(f"{options.output} is already finished; nothing was changed")
    summary = {**result.summary, "output": str(options.output)}
    _report(summary, with_history=options.history is not None)
    if options.json:
        print_json(summary)
    return SOME_REJECTED if summary["rejected"] else DONE


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
