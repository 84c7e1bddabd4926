"""`draftrec generate`: records in, a text per entity out."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from draftrec.cli.common import (
    DONE,
    INTERRUPTED,
    SOME_REJECTED,
    StopSignal,
    auto_or_number,
    command,
    option_error,
    print_json,
    say,
)
from draftrec.cli.knowledge.generate_options import PROMPTS_IDLE, GenerateOptions
from draftrec.cli.messages import hold, warn
from draftrec.cli.options.cluster import cluster_of
from draftrec.cli.options.idle import Idle
from draftrec.config import (
    AcceptConfig,
    BatchConfig,
    ControlsConfig,
    DraftConfig,
    GenerateConfig,
    JobConfig,
    ModelConfig,
    RecordsConfig,
)
from draftrec.errors import DraftrecError, Interrupted

_RULES = (
    "accept top_k min_prob epsilon delta entropy_gate window eos_guard tie_break max_deviations "
    "max_loss"
)
_IDLE = (
    Idle(
        f"pool budget depth pool_lag {_RULES}",
        lambda o: o.draft == "none",
        "with --draft none, the baseline",
    ),
    Idle("pool pool_lag", lambda o: o.draft == "prompt", "with --draft prompt"),
    Idle(
        f"pool depth pool_lag {_RULES}",
        lambda o: o.budget == "0",
        "with --budget 0, which drafts nothing",
    ),
    Idle("top_k min_prob", lambda o: o.accept != "relaxed", "without --accept relaxed"),
    Idle("epsilon delta", lambda o: o.accept != "typical", "without --accept typical"),
    Idle("entropy_gate window", lambda o: o.accept != "entropy", "without --accept entropy"),
    Idle(
        "eos_guard tie_break max_deviations max_loss",
        lambda o: o.accept == "strict",
        "with --accept strict, which keeps the model's own text",
    ),
    Idle(
        "sample_top_k top_p min_p typical_p seed",
        lambda o: o.temperature == 0,
        "with --temperature 0, which draws nothing",
    ),
    Idle(
        "forced_bos_token",
        lambda o: o.template is not None or o.chat or o.system,
        "after prompts of more than one token",
    ),
    *PROMPTS_IDLE,
    Idle("group_column", lambda o: o.groups is not None, "with --groups, which takes its place"),
)


@command(GenerateOptions, idle=_IDLE)
def generate(options: GenerateOptions) -> int:
    """Write a text for every record of INPUT.

    The same command again goes on where it was interrupted.
    """
    cluster = cluster_of(options)
    if not options.model or not options.output:
        missing = "--output" if options.model else "--model"
        raise DraftrecError(f"{missing} is required; `draftrec generate --help` explains it")

    from draftrec.cli.options.structure import schema_unused
    from draftrec.jobs.knowledge.plan import JobSpec

    config = job_config(options, options.model)
    if hint := schema_unused(config.records, config.generate.structure):
        hold([hint], logging.INFO)
    spec = JobSpec(
        config=config,
        input=options.input,
        output=options.output,
        groups=options.groups,
        pool=options.pool,
        save_pool=options.save_pool,
        previous=options.previous,
        overwrite=options.overwrite,
    )
    return _run(spec, cluster, options.metrics_port, as_json=options.json)


def job_config(options: GenerateOptions, model: str) -> JobConfig:
    """The options as settings. Raises DraftrecError for a value out of range."""
    from draftrec.cli.options.structure import structure_of

    values: dict[str, Any] = {name: getattr(options, name) for name in options.__slots__}
    values["model"] = model
    values["bad_words"] = _lines(options.bad_words) if options.bad_words else None
    values["chat_template_kwargs"] = options.chat_template_kwargs or {}
    for name in ("budget", "batch_size", "shard_size"):
        values[name] = auto_or_number(name.replace("_", "-"), values[name])
    try:
        records = _pick(RecordsConfig, values)
        generate = GenerateConfig(
            target=_pick(ModelConfig, values),
            accept=_pick(AcceptConfig, values),
            controls=_pick(ControlsConfig, values),
            draft=_pick(DraftConfig, values),
            batch=_pick(BatchConfig, values),
            structure=structure_of(options, records),
        )
        return JobConfig(
            generate=generate,
            records=records,
            shard_size=values["shard_size"],
            pool_lag=_pool_lag(options),
        )
    except ValidationError as error:
        raise option_error(error) from error


def _lines(path: Path) -> tuple[str, ...]:
    """The words in a file for --bad-words."""
    try:
        words = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DraftrecError(
            f"--bad-words {path} cannot be read ({error}); name a UTF-8 text file with a word or "
            "phrase on each line"
        ) from error
    found = tuple(word for word in words if word.strip())
    if not found:
        raise DraftrecError(f"--bad-words {path} has no words; write one on each line")
    return found


def _pool_lag(options: GenerateOptions) -> Any:
    """As asked. By itself: texts that do not depend on drafts use whatever is finished; others a
    fixed lag, so that they can be written again."""
    asked = auto_or_number("pool-lag", options.pool_lag)
    if asked != "auto" or options.accept == "strict" or options.draft != "pool":
        return asked
    from draftrec.jobs.knowledge.plan import lag_to_use

    usual = 0
    if options.engine == "ray":
        from draftrec.jobs.ray.workers import usual_lag

        usual = usual_lag(options.workers)
    assert options.output is not None
    return lag_to_use(options.output, usual, overwrite=options.overwrite)


def _pick(group: Any, values: dict[str, Any]) -> Any:
    return group(**{name: values[name] for name in group.model_fields})


def _run(spec: Any, cluster: Any, metrics_port: int | None, *, as_json: bool) -> int:
    from draftrec.cli.progress import ProgressBar, progress_of

    with StopSignal() as stop:
        bar = ProgressBar(stop)
        try:
            result = _job(spec, cluster, bar, metrics_port)
        except Interrupted as event:
            bar.end()
            done, total, what = progress_of(event.progress, event.kept)
            kept = ", which are kept" if done else ""
            say(
                f"interrupted after {done:,} of {total:,} {what}{kept}; run the same command again "
                f"to continue"
            )
            return INTERRUPTED
        finally:
            bar.end()
    if not result.fresh:
        say(f"the run in {spec.output} is already finished; nothing was changed")
    _report(result.summary, spec)
    if as_json:
        print_json(result.summary)
    return SOME_REJECTED if result.summary["rejected"] else DONE


def _job(spec: Any, cluster: Any, bar: Any, metrics_port: int | None) -> Any:
    """Run it, with its metrics served while it runs if a port is given."""
    from draftrec.jobs.knowledge.job import run_job

    if metrics_port is None:
        return run_job(spec, _hire(cluster, bar.note), bar, bar.should_stop)
    from draftrec.serve.metrics import MeasuredJob, ServiceMetrics, served

    watcher = MeasuredJob(ServiceMetrics(), bar)
    with served(watcher.metrics, metrics_port) as port:
        say(f"metrics are at http://127.0.0.1:{port}/metrics while the job runs")
        hire = _hire(cluster, bar.note, watcher.loader)
        return run_job(spec, hire, watcher, bar.should_stop)


def _hire(cluster: Any, note: Any, seen: Any = None) -> Any:
    """The crew: workers of a cluster, or this process, whose generator's loader `seen` may wrap."""
    if cluster is not None:
        from draftrec.jobs.ray.generate import on_ray

        return on_ray(cluster, note)
    from draftrec.jobs.knowledge.crew import local
    from draftrec.jobs.knowledge.worker import load_generator

    return local(seen(load_generator) if seen else load_generator)


def _report(summary: dict[str, Any], spec: Any) -> None:
    from draftrec.cli.progress import duration, rate
    from draftrec.jobs.knowledge.account import Endings, lines

    output, each = spec.output, spec.config.generate.accept.n
    about = f" ({each:,} of each of {summary['entities']:,} records)" if each > 1 else ""
    say(
        f"{summary['texts']:,} texts{about} in {output}: {summary['new_tokens']:,} tokens in "
        f"{duration(summary['wall_seconds'])}, {rate(summary['tokens_per_second'])} tokens/s"
    )
    if kept := summary["kept"] * each:
        say(f"{kept:,} of them are the previous run's, their prompts being unchanged")
    for line in lines(summary):
        say(line)
    counts = [summary[name] for name in ("texts", "cut_texts", "empty_texts", "looping_texts")]
    if warning := Endings(*counts).warning(spec.config.generate.batch.max_new_tokens):
        warn(warning)
    if summary["rejected"]:
        say(f"{summary['rejected']:,} records were rejected, see {output / 'rejected.jsonl'}")
