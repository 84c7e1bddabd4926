"""`draftrec generate`: records in, a text per entity out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from pydantic import ValidationError

from draftrec.cli.common import (
    DONE,
    INTERRUPTED,
    SOME_REJECTED,
    ConfigOption,
    DebugOption,
    JsonOption,
    StopSignal,
    auto_or_number,
    command,
    option_error,
    print_json,
    say,
)
from draftrec.config import (
    AcceptConfig,
    BatchConfig,
    DraftConfig,
    GenerateConfig,
    JobConfig,
    ModelConfig,
    RecordsConfig,
)
from draftrec.errors import DraftrecError

Option = typer.Option
_ACCEPT, _DRAFT, _BATCH, _RECORDS = AcceptConfig(), DraftConfig(), BatchConfig(), RecordsConfig()
_TARGET = ModelConfig(model="")
_SHARD_SIZE: int = JobConfig.model_fields["shard_size"].default


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateOptions:
    """The command line of `draftrec generate`."""

    input: Annotated[
        str,
        typer.Argument(
            metavar="INPUT",
            help="Records: Parquet, JSONL or CSV (.gz, .zst); a file, a folder of parts or a glob.",
        ),
    ]
    model: Annotated[
        str | None, Option(help="Target model: a folder or a Hugging Face Hub id. Required.")
    ] = None
    output: Annotated[Path | None, Option(help="Folder of the run; made if missing. Required.")] = (
        None
    )
    config: ConfigOption = None

    template: Annotated[
        str | None,
        Option(help="kar, trawl, once, rlmrec, or a Jinja2 file; without it a `prompt` column."),
    ] = _RECORDS.template
    side: Annotated[
        Literal["user", "item"], Option(help="Which side a framework's template describes.")
    ] = _RECORDS.side
    chat: Annotated[
        bool | None,
        Option(
            "--chat/--no-chat",
            help="Wrap prompts in the tokenizer's chat template.",
            show_default="where it has one",
        ),
    ] = _RECORDS.chat
    id_column: Annotated[str, Option(help="Column of the entity ids.")] = _RECORDS.id_column
    prompt_column: Annotated[str, Option(help="Column of the prompts.")] = _RECORDS.prompt_column
    group_column: Annotated[str, Option(help="Column of the groups, if there is one.")] = (
        _RECORDS.group_column
    )
    groups: Annotated[
        Path | None,
        Option(help="Groups file (entity_id, group); takes the place of the group column."),
    ] = None
    limit: Annotated[int | None, Option(help="Only the first N records.")] = _RECORDS.limit

    draft: Annotated[
        Literal["pool", "prompt", "none"],
        Option(help="Draft from a pool of texts, the prompt alone, or nothing (the baseline)."),
    ] = _DRAFT.draft
    pool: Annotated[
        Path | None, Option(help="Pool to start from; without it an empty one grows.")
    ] = None
    save_pool: Annotated[Path | None, Option(help="Keep the grown pool in this folder.")] = None
    previous: Annotated[
        Path | None,
        Option(
            metavar="RUN_DIR",
            help="Refresh an earlier run: unchanged prompts keep their text, others draft from it.",
        ),
    ] = None
    budget: Annotated[
        str,
        Option(metavar="auto|N", help="Draft tokens per text and pass; auto: while they pay."),
    ] = str(_DRAFT.budget)
    depth: Annotated[int, Option(help="Longest drafted continuation.")] = _DRAFT.depth

    accept: Annotated[
        Literal["strict", "relaxed", "typical", "entropy"],
        Option(
            help="strict keeps the model's own text; the others take further drafts: relaxed "
            "likely ones, typical those likely for the place, entropy any where the model wavers "
            "and agrees with what follows."
        ),
    ] = _ACCEPT.accept
    top_k: Annotated[
        int, Option(help="Relaxed: accept among the model's K most probable tokens.")
    ] = _ACCEPT.top_k
    min_prob: Annotated[float, Option(help="Relaxed: accept from this probability on.")] = (
        _ACCEPT.min_prob
    )
    epsilon: Annotated[float, Option(help="Typical: accept above this probability.")] = (
        _ACCEPT.epsilon
    )
    delta: Annotated[float, Option(help="Typical: or above DELTA times exp(-entropy).")] = (
        _ACCEPT.delta
    )
    entropy_gate: Annotated[
        float, Option(help="Entropy: where the entropy is this share of its maximum.")
    ] = _ACCEPT.entropy_gate
    window: Annotated[
        int, Option(help="Entropy: own tokens of the model that must follow a deviation.")
    ] = _ACCEPT.window
    eos_guard: Annotated[
        bool,
        Option("--eos-guard/--no-eos-guard", help="Not strict: end where the model would end."),
    ] = _ACCEPT.eos_guard
    tie_break: Annotated[
        Literal["probable", "first"],
        Option(help="Not strict: which of two equally long paths wins."),
    ] = _ACCEPT.tie_break
    max_deviations: Annotated[
        int | None, Option(help="Not strict: most tokens per text that are not the model's first.")
    ] = _ACCEPT.max_deviations
    max_loss: Annotated[
        float | None, Option(help="Not strict: most log-probability (nats) given up per text.")
    ] = _ACCEPT.max_loss
    temperature: Annotated[float, Option(help="0 is greedy; above it, sample.")] = (
        _ACCEPT.temperature
    )
    top_p: Annotated[float, Option(help="Sample within this share of probability.")] = _ACCEPT.top_p
    seed: Annotated[int, Option(help="Seed of the sampling.")] = _ACCEPT.seed

    engine: Annotated[
        Literal["local", "ray"], Option(help="Where to run; ray is not there yet.")
    ] = "local"
    workers: Annotated[int, Option(help="Workers of the ray engine.")] = 1
    max_new_tokens: Annotated[int, Option(help="Longest text.")] = _BATCH.max_new_tokens
    batch_size: Annotated[
        str, Option(metavar="auto|N", help="Texts written together; auto: what memory holds.")
    ] = str(_BATCH.batch_size)
    prefill_chunk: Annotated[int, Option(help="Most prompt tokens computed in one pass.")] = (
        _BATCH.prefill_chunk
    )
    device: Annotated[str, Option(help="auto, cpu, cuda or cuda:N.")] = _TARGET.device
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        Option(help="Precision of the weights; auto: as stored, float32 on CPU."),
    ] = _TARGET.dtype
    compile: Annotated[
        bool, Option("--compile/--no-compile", help="Compile the model's layers.")
    ] = _TARGET.compile
    shard_size: Annotated[
        int, Option(help="Records that are written, and resumed from, together.")
    ] = _SHARD_SIZE
    overwrite: Annotated[
        bool, Option("--overwrite", help="Give up the run that is in --output.")
    ] = False
    metrics_port: Annotated[
        int | None,
        Option(min=0, max=65535, help="Serve Prometheus metrics on this port of the loopback."),
    ] = None
    json: JsonOption = False
    debug: DebugOption = False


@command(GenerateOptions)
def generate(options: GenerateOptions) -> int:
    """Write a text for every record of INPUT.

    The same command again goes on where it was interrupted.
    """
    if options.engine == "ray":
        raise DraftrecError("--engine ray is not there yet; use --engine local")
    if not options.model or not options.output:
        missing = "--output" if options.model else "--model"
        raise DraftrecError(f"{missing} is required; `draftrec generate --help` explains it")

    from draftrec.knowledge.plan import JobSpec

    spec = JobSpec(
        config=job_config(options, options.model),
        input=options.input,
        output=options.output,
        groups=options.groups,
        pool=options.pool,
        save_pool=options.save_pool,
        previous=options.previous,
        overwrite=options.overwrite,
    )
    return _run(spec, options.metrics_port, as_json=options.json)


def job_config(options: GenerateOptions, model: str) -> JobConfig:
    """The options as settings. Raises DraftrecError for a value out of range."""
    values: dict[str, Any] = {name: getattr(options, name) for name in options.__slots__}
    values["model"] = model
    for name in ("budget", "batch_size"):
        values[name] = auto_or_number(name.replace("_", "-"), values[name])
    try:
        generate = GenerateConfig(
            target=_pick(ModelConfig, values),
            accept=_pick(AcceptConfig, values),
            draft=_pick(DraftConfig, values),
            batch=_pick(BatchConfig, values),
        )
        records = _pick(RecordsConfig, values)
        return JobConfig(generate=generate, records=records, shard_size=options.shard_size)
    except ValidationError as error:
        raise option_error(error) from error


def _pick(group: Any, values: dict[str, Any]) -> Any:
    return group(**{name: values[name] for name in group.model_fields})


def _run(spec: Any, metrics_port: int | None, *, as_json: bool) -> int:
    from draftrec.cli.progress import ProgressBar
    from draftrec.knowledge.job import JobInterrupted

    with StopSignal() as stop:
        bar = ProgressBar(stop)
        try:
            result = _job(spec, bar, stop, metrics_port)
        except JobInterrupted as event:
            bar.end()
            done, total = event.manifest.records_done, event.manifest.input.records
            say(
                f"interrupted after {done:,} of {total:,} records; run the same command again to "
                f"continue"
            )
            return INTERRUPTED
        finally:
            bar.end()
    if not result.fresh:
        say(f"the run in {spec.output} is already finished; nothing was changed")
    _report(result.summary, spec.output)
    if as_json:
        print_json(result.summary)
    return SOME_REJECTED if result.summary["rejected"] else DONE


def _job(spec: Any, bar: Any, stop: StopSignal, metrics_port: int | None) -> Any:
    """Run it, with its metrics served while it runs if a port is given."""
    from draftrec.knowledge.crew import local
    from draftrec.knowledge.job import run_job
    from draftrec.knowledge.worker import load_generator

    if metrics_port is None:
        return run_job(spec, local(load_generator), bar, stop)
    from draftrec.serve.job_metrics import MeasuredJob, served
    from draftrec.serve.metrics import ServiceMetrics

    watcher = MeasuredJob(ServiceMetrics(), bar)
    with served(watcher.metrics, metrics_port) as port:
        say(f"metrics are at http://127.0.0.1:{port}/metrics while the job runs")
        return run_job(spec, local(watcher.loader(load_generator)), watcher, stop)


def _report(summary: dict[str, Any], output: Path) -> None:
    say(
        f"{summary['entities']:,} texts in {output}: {summary['new_tokens']:,} tokens, "
        f"{summary['tokens_per_call']:.2f} per call, {summary['acceptance_rate']:.0%} of drafts "
        f"accepted, {summary['tokens_per_second']:,.0f} tokens/s"
    )
    if summary["kept"]:
        say(f"{summary['kept']:,} of them are the previous run's, their prompts being unchanged")
    if summary["rejected"]:
        say(f"{summary['rejected']:,} records were rejected, see {output / 'rejected.jsonl'}")
