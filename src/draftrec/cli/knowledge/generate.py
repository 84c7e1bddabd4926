"""`draftrec generate`: records in, a text per entity out."""

from __future__ import annotations

import json
import logging
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import typer

from draftrec.cli.command import (
    DONE,
    INTERRUPTED,
    SOME_REJECTED,
    command,
    print_json,
)
from draftrec.cli.knobs import (
    ACCEPTANCE_PANEL,
    CONTROLS_PANEL,
    DRAFTING_PANEL,
    HERE,
    MODEL_PANEL,
    OUTPUT_PANEL,
    PROMPTS_PANEL,
    READ,
    SAMPLING_PANEL,
    WRITTEN,
    argument,
    option,
    option_of,
    settings_of,
)
from draftrec.cli.messages import StopSignal, again, hold, say, warn
from draftrec.cli.options import (
    ClusterOptions,
    Groups,
    Idle,
    SettingsFile,
    TrackOptions,
    cluster_of,
    executor_of,
)
from draftrec.config import (
    AcceptConfig,
    Auto,
    BatchConfig,
    ControlsConfig,
    DraftConfig,
    GenerateConfig,
    JobConfig,
    ModelConfig,
    RecordsConfig,
    StructureConfig,
)
from draftrec.data.files.places import Place
from draftrec.data.templates import FRAMEWORKS
from draftrec.errors import DraftrecError, Interrupted

Records = partial(option_of, RecordsConfig)
Prompts = partial(option_of, RecordsConfig, panel=PROMPTS_PANEL)
Drafting = partial(option_of, DraftConfig, panel=DRAFTING_PANEL)
Acceptance = partial(option_of, AcceptConfig, panel=ACCEPTANCE_PANEL)
Sampling = partial(option_of, AcceptConfig, panel=SAMPLING_PANEL)
Controls = partial(option_of, ControlsConfig, panel=CONTROLS_PANEL)
Batch = partial(option_of, BatchConfig, panel=MODEL_PANEL)
Machine = partial(option_of, ModelConfig, panel=MODEL_PANEL)


def json_object(value: Any) -> dict[str, Any]:
    """An option's JSON object; a settings file may hold it as it is."""
    try:
        found = json.loads(value) if isinstance(value, str) else value
    except json.JSONDecodeError:
        found = None
    if not isinstance(found, dict):
        raise typer.BadParameter(f"a JSON object is needed ('{{\"name\": true}}'), not {value!r}")
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateOptions(TrackOptions, ClusterOptions):
    """The command line of `draftrec generate`: first what everybody needs."""

    input: str = argument(
        "INPUT",
        "Records: Parquet, JSONL or CSV (.gz, .zst); a file, a folder of parts or a glob.",
        READ,
    )
    model: str | None = option_of(ModelConfig, "model", default=None, place=HERE)
    output: Place | None = option("Folder of the run; made if missing. Required.", place=WRITTEN)
    template: str | None = Records("template", place=READ)
    side: str = Records("side")
    limit: int | None = Records("limit")
    draft: str = option_of(DraftConfig, "draft")
    pool: Path | None = option("Pool to start from; without it an empty one grows.")
    accept: str = option_of(AcceptConfig, "accept", metavar="RULE")
    max_new_tokens: int = option_of(BatchConfig, "max_new_tokens")
    config: Place | None = SettingsFile()

    id_column: str = Prompts("id_column")
    prompt_column: str = Prompts("prompt_column")
    group_column: str = Prompts("group_column")
    groups: Place | None = Groups(panel=PROMPTS_PANEL)
    chat: bool | None = Prompts("chat")
    system: str | None = Prompts("system")
    chat_template_kwargs: dict[str, Any] | None = Prompts(
        "chat_template_kwargs", default=None, parser=json_object, metavar="JSON", show_default=False
    )
    chat_date: str | None = Prompts("chat_date", metavar="YYYY-MM-DD")
    special_tokens: str = Prompts("special_tokens")

    save_pool: Path | None = option("Keep the grown pool in this folder.", panel=DRAFTING_PANEL)
    previous: Place | None = option(
        "Refresh an earlier run: unchanged prompts keep their text, others draft from it.",
        metavar="RUN_DIR",
        place=READ,
        panel=DRAFTING_PANEL,
    )
    drafter: str | None = option_of(
        ModelConfig, "drafter", metavar="DIR", place=READ, panel=DRAFTING_PANEL
    )
    drafter_fit: int | None = option(
        "After so many shards, train a drafter on what they hold, and draft the others with it.",
        metavar="SHARDS",
        min=1,
        panel=DRAFTING_PANEL,
    )
    budget: int | Auto = Drafting("budget")
    depth: int = Drafting("depth")
    pool_lag: int | Auto = option_of(JobConfig, "pool_lag", default="auto", panel=DRAFTING_PANEL)

    top_k: int = Acceptance("top_k")
    min_prob: float = Acceptance("min_prob")
    epsilon: float = Acceptance("epsilon")
    delta: float = Acceptance("delta")
    entropy_gate: float = Acceptance("entropy_gate")
    window: int = Acceptance("window")
    eos_guard: bool = Acceptance("eos_guard")
    tie_break: str = Acceptance("tie_break")
    deviate_to: str = Acceptance("deviate_to")
    max_deviations: int | None = Acceptance("max_deviations")
    max_loss: float | None = Acceptance("max_loss")

    temperature: float = Sampling("temperature")
    sample_top_k: int | None = Sampling("sample_top_k")
    top_p: float | None = Sampling("top_p")
    min_p: float | None = Sampling("min_p")
    typical_p: float | None = Sampling("typical_p")
    seed: int = Sampling("seed")
    n: int = Sampling("n", metavar="N")

    generation_config: str = Controls("generation_config")
    repetition_penalty: float | None = Controls("repetition_penalty")
    presence_penalty: float = Controls("presence_penalty")
    frequency_penalty: float = Controls("frequency_penalty")
    no_repeat_ngram_size: int | None = Controls("no_repeat_ngram_size")
    min_new_tokens: int | None = Controls("min_new_tokens")
    bad_words: Path | None = option(
        "File of words or phrases that must not be written, a line each.", panel=CONTROLS_PANEL
    )
    logit_bias: list[str] | None = Controls("logit_bias", metavar="TOKEN=BIAS")
    suppress_tokens: list[str] | None = Controls("suppress_tokens", metavar="TOKEN")
    begin_suppress_tokens: list[str] | None = Controls("begin_suppress_tokens", metavar="TOKEN")
    forced_bos_token: str | None = Controls("forced_bos_token", metavar="TOKEN")
    forced_eos_token: str | None = Controls("forced_eos_token", metavar="TOKEN")
    json_schema: str | None = option(
        "Write JSON that keeps to this JSON schema; template: the one that the template comes with "
        "(rlmrec has one).",
        metavar="FILE|template",
        place=READ,
        panel=CONTROLS_PANEL,
    )
    regex: str | None = option_of(StructureConfig, "regex", metavar="TEXT", panel=CONTROLS_PANEL)
    grammar: Place | None = option(
        "Write texts of this grammar, in Lark's or llama.cpp's form.",
        metavar="FILE",
        place=READ,
        panel=CONTROLS_PANEL,
    )
    stop: list[str] | None = Controls("stop", metavar="TEXT")

    device: str = Machine("device")
    dtype: str = Machine("dtype")
    kv_dtype: str = Machine("kv_dtype")
    batch_size: int | Auto = Batch("batch_size")
    prefill_chunk: int = Batch("prefill_chunk")
    exact: bool = Machine("exact", "--exact/--no-exact")
    pass_: str = Machine("pass_", "--pass")
    compile: bool = option(
        "The earlier name of --pass frozen.", "--compile/--no-compile", default=False, hidden=True
    )
    trust_remote_code: bool = Machine(
        "trust_remote_code", "--trust-remote-code/--no-trust-remote-code"
    )
    threads: int | None = Machine("threads")

    shard_size: int | Auto = option_of(JobConfig, "shard_size", panel=OUTPUT_PANEL)
    keep_prompts: bool = Records("keep_prompts", panel=OUTPUT_PANEL)
    overwrite: bool = option(
        "Give up the run that is in --output.", default=False, panel=OUTPUT_PANEL
    )
    metrics_port: int | None = option(
        "Serve Prometheus metrics on this port of the loopback.",
        min=0,
        max=65535,
        panel=OUTPUT_PANEL,
    )


#: Of the options that say how records become prompts.
PROMPTS_IDLE = (
    Idle("prompt_column", lambda o: o.template is not None, "with --template"),
    Idle(
        "side",
        lambda o: o.template not in FRAMEWORKS,
        "without one of the built-in templates, which have two sides",
    ),
)
_RULES = (
    "accept top_k min_prob epsilon delta entropy_gate window eos_guard tie_break deviate_to "
    "max_deviations max_loss"
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
        lambda o: o.budget == 0,
        "with --budget 0, which drafts nothing",
    ),
    Idle("top_k min_prob", lambda o: o.accept != "relaxed", "without --accept relaxed"),
    Idle("epsilon delta", lambda o: o.accept != "typical", "without --accept typical"),
    Idle("entropy_gate window", lambda o: o.accept != "entropy", "without --accept entropy"),
    Idle(
        "eos_guard tie_break deviate_to max_deviations max_loss",
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
    Idle("compile", lambda o: o.pass_ != "auto", "with --pass, which takes its place"),
    Idle("group_column", lambda o: o.groups is not None, "with --groups, which takes its place"),
)


@command(GenerateOptions, idle=_IDLE, writes=["save_pool"], resumes=True)
def generate(options: GenerateOptions) -> int:
    """Write a text for every record of INPUT.

    The same command again goes on where it was interrupted.
    """
    cluster = cluster_of(options)
    if not options.model or not options.output:
        missing = "--output" if options.model else "--model"
        raise DraftrecError(f"{missing} is required; `draftrec generate --help` explains it")

    from draftrec.cli.tracking import tracked
    from draftrec.jobs.knowledge.plan import JobSpec, schema_unused

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
    with tracked(options.track, options.output, options) as tracker:
        return _with_drafter_fit(spec, cluster, options, tracker)


def _with_drafter_fit(spec: Any, cluster: Any, options: GenerateOptions, tracker: Any) -> int:
    """Do the job, with a drafter that it trains itself where that is asked for; an exit code."""
    if options.drafter_fit is not None:
        from draftrec.cli.drafter import check_drafter_fit, has_shards, with_own_drafter

        check_drafter_fit(spec)
        if not has_shards(spec, options.drafter_fit):
            code = _run(spec, cluster, options, tracker, until=options.drafter_fit)
            if code is not None:
                return code
        drafted = with_own_drafter(spec)
        if isinstance(drafted, int):
            return drafted
        spec = drafted
    return _run(spec, cluster, options, tracker) or DONE


def job_config(options: GenerateOptions, model: str) -> JobConfig:
    """The options as settings. Raises DraftrecError for a value out of range."""
    from draftrec.jobs.knowledge.plan import structure_of

    target = {"pass_": "frozen"} if options.compile and options.pass_ == "auto" else {}
    words = _lines(options.bad_words) if options.bad_words else None
    records = settings_of(RecordsConfig, options)
    generate = GenerateConfig(
        target=settings_of(ModelConfig, options, model=model, **target),
        accept=settings_of(AcceptConfig, options),
        controls=settings_of(ControlsConfig, options, bad_words=words),
        draft=settings_of(DraftConfig, options),
        batch=settings_of(BatchConfig, options),
        structure=structure_of(options, records),
    )
    lag = _pool_lag(options)
    return settings_of(JobConfig, options, generate=generate, records=records, pool_lag=lag)


def _lines(path: Path) -> tuple[str, ...]:
    """The words in a file for --bad-words."""
    try:
        words = path.read_text(encoding="utf-8-sig").splitlines()
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
    if options.pool_lag != "auto" or options.accept == "strict" or options.draft != "pool":
        return options.pool_lag
    from draftrec.jobs.knowledge.plan import lag_to_use

    usual = 0
    if options.engine == "ray":
        from draftrec.jobs.executor import usual_window

        usual = usual_window(options.workers)
    assert options.output is not None
    return lag_to_use(options.output, usual, overwrite=options.overwrite)


def _run(
    spec: Any, cluster: Any, options: GenerateOptions, tracker: Any, until: int | None = None
) -> int | None:
    """Do the job; an exit code. `until`: so many shards at first, and None if there are more."""
    from draftrec.cli.progress import FirstShards, ProgressBar, progress_of

    stop = StopSignal()
    bar = ProgressBar(stop) if until is None else FirstShards(stop, until)
    try:
        with stop, closing(bar):
            result = _job(spec, cluster, bar, options.metrics_port, tracker)
    except Interrupted as event:
        if isinstance(bar, FirstShards) and bar.enough and not stop():
            return None
        tracker.close("stopped")
        done, total, what = progress_of(event.progress, event.kept)
        kept = ", which are kept" if done else ""
        say(f"interrupted after {done:,} of {total:,} {what}{kept}; {again()}")
        return INTERRUPTED
    if not result.fresh:
        say(f"the run in {spec.output} is already finished; nothing was changed")
    else:
        tracker.end(result.summary)
    _report(result.summary, spec)
    if options.json:
        print_json(result.summary)
    return SOME_REJECTED if result.summary["rejected"] else DONE


def _job(spec: Any, cluster: Any, bar: Any, metrics_port: int | None, tracker: Any) -> Any:
    """Run it, with its metrics served while it runs if a port is given."""
    from draftrec.cli.tracking import of_job
    from draftrec.jobs.knowledge.job import run_job

    start = executor_of(cluster, bar.note)
    if metrics_port is None:
        return run_job(spec, of_job(tracker, bar), bar.should_stop, start=start)
    from draftrec.jobs.knowledge.worker import load_generator
    from draftrec.serve.metrics import MeasuredJob, ServiceMetrics, served

    watcher = MeasuredJob(ServiceMetrics(), bar)
    # A generator elsewhere cannot be looked at.
    load = watcher.loader(load_generator) if cluster is None else load_generator
    with served(watcher.metrics, metrics_port) as port:
        say(f"metrics are at http://127.0.0.1:{port}/metrics while the job runs")
        told = of_job(tracker, watcher)
        return run_job(spec, told, bar.should_stop, start=start, load=load)


def _report(summary: dict[str, Any], spec: Any) -> None:
    from draftrec.cli.progress import duration, rate
    from draftrec.jobs.knowledge.account import Endings, lines

    output, each = spec.output, spec.config.generate.accept.n
    about = f" ({each:,} of each of {summary['entities']:,} records)" if each > 1 else ""
    count = "1 text" if summary["texts"] == 1 else f"{summary['texts']:,} texts"
    say(
        f"{count}{about} in {output}: {summary['new_tokens']:,} tokens in "
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
