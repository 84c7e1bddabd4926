"""`draftrec tune`: choose pool size, depth and budget from recorded texts, or, with a model, the
acceptance rule by speed and quality."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from draftrec.cli.command import DONE, command, print_json
from draftrec.cli.knobs import (
    HERE,
    LIMITS_PANEL,
    MODEL_PANEL,
    OUTPUT_PANEL,
    PROMPTS_PANEL,
    READ,
    TRIALS_PANEL,
    WRITTEN,
    argument,
    option,
    option_of,
    settings_of,
)
from draftrec.cli.messages import bars, beginning, say
from draftrec.cli.options import Groups, Idle, Tokenizer, TrackOptions
from draftrec.config import Auto, BatchConfig, Dtype, ModelConfig, RecordsConfig, Side
from draftrec.data.files.locks import sole_writer
from draftrec.data.files.places import Place, shown
from draftrec.data.templates import FRAMEWORKS
from draftrec.errors import DraftrecError
from draftrec.evaluate.settings import QualityRun, TuneRun
from draftrec.evaluate.tune.choice import RULES, LossLimits, Space

if TYPE_CHECKING:
    from draftrec.cli.tracking import Tracker
    from draftrec.evaluate.tune.frontier import Study
    from draftrec.evaluate.tune.quality import QualityJob

WITH_MODEL = "With --model"
Trials = partial(option_of, QualityRun, panel=TRIALS_PANEL, note=WITH_MODEL)
Limit = partial(option_of, LossLimits, panel=LIMITS_PANEL, note=WITH_MODEL)
Prompts = partial(option_of, RecordsConfig, panel=PROMPTS_PANEL)
Batch = partial(option_of, BatchConfig, note=WITH_MODEL)
Machine = partial(option_of, ModelConfig, panel=MODEL_PANEL)


@dataclass(frozen=True, slots=True, kw_only=True)
class TuneOptions(TrackOptions):
    """The command line of `draftrec tune`."""

    texts: str = argument(
        "TEXTS|RUN|RECORDS",
        "A run's folder (its measured costs are used) or texts (Parquet, JSONL or CSV with "
        "entity_id and text); with --model, records as `generate` reads them.",
        READ,
    )
    tokenizer: str | None = Tokenizer()
    model: str | None = option(
        "Try acceptance rules with this model: a folder or a Hub id.", place=HERE
    )
    pool: Path | None = option(
        "Pool to tune, or to draft from; without one, part of the texts, or the texts of other "
        "records."
    )
    groups: Place | None = Groups()
    output: Place | None = option(
        "Settings for `generate --config`.", metavar="FILE.yaml", place=WRITTEN
    )
    limit: int = option_of(TuneRun, "limit")
    seed: int = option_of(TuneRun, "seed")

    rules: str = option_of(
        Space, "rules", kind=str, default=",".join(RULES), panel=TRIALS_PANEL, note=WITH_MODEL
    )
    budgets: str = option_of(
        Space,
        "budgets",
        kind=str,
        default=",".join(map(str, Space().budgets)),
        panel=TRIALS_PANEL,
        note=WITH_MODEL,
    )
    sample: int = Trials("sample")
    rounds: int = Trials("rounds")
    trials: int | None = Trials("trials")
    max_loss_per_token: float = Limit("max_loss_per_token")
    min_similarity: float = Limit("min_similarity")
    max_length_drift: float = Limit("max_length_drift")
    template: str | None = option(
        "With --model: a framework's template, or a Jinja2 file.", place=READ, panel=PROMPTS_PANEL
    )
    side: Side = Prompts("side")
    chat: bool | None = Prompts("chat")
    max_new_tokens: int = Batch("max_new_tokens", panel=PROMPTS_PANEL)
    batch_size: int | Auto = Batch("batch_size", panel=MODEL_PANEL)
    drafter: str | None = option_of(
        ModelConfig, "drafter", metavar="DIR", place=READ, panel=MODEL_PANEL, note=WITH_MODEL
    )
    device: str = Machine("device")
    dtype: Dtype = Machine("dtype")
    trust_remote_code: bool = Machine(
        "trust_remote_code", "--trust-remote-code/--no-trust-remote-code"
    )
    report: Path | None = option(
        "With --model: folder of frontier.html and trials.parquet.",
        metavar="DIR",
        show_default="FILE.trials beside --output",
        panel=OUTPUT_PANEL,
    )
    overwrite: bool = option(
        "Give up the trials that are in --report.", default=False, panel=OUTPUT_PANEL
    )


_IDLE = (
    Idle(
        "rules budgets sample rounds trials max_loss_per_token min_similarity max_length_drift "
        "template side chat max_new_tokens batch_size drafter device dtype trust_remote_code "
        "report overwrite",
        lambda o: o.model is None,
        "without --model",
    ),
    Idle("tokenizer", lambda o: o.model is not None, "with --model, whose tokenizer counts"),
    Idle(
        "limit", lambda o: o.model is not None, "with --model; --sample says how many are written"
    ),
    Idle(
        "side",
        lambda o: o.template not in FRAMEWORKS,
        "without one of the built-in templates, which have two sides",
    ),
)


@command(TuneOptions, idle=_IDLE, resumes=True)
def tune(options: TuneOptions) -> int:
    """Choose settings of `generate`, from recorded texts or with the model.

    Texts are replayed under budgets, depths and pool sizes, without a model.
    What a run measured of its passes says what drafts cost.

    With --model, records are written under acceptance rules, next to plain decoding.
    The fastest setting within the limits is chosen; the same command again goes on.
    """
    output = options.output
    if isinstance(output, Path) and not output.parent.is_dir():
        raise DraftrecError(f"the folder of {output} does not exist; make it first")
    from draftrec.cli.tracking import tracked

    with (
        sole_writer(output) if output is not None else nullcontext(),
        tracked(options.track, output or options.report, options) as tracker,
    ):
        return _tune(options, tracker)


def _tune(options: TuneOptions, tracker: Tracker) -> int:
    if options.model is not None:
        return _with_model(options, options.model, tracker)
    if options.tokenizer is None:
        raise DraftrecError(
            "give --tokenizer to replay recorded texts, or --model to try acceptance rules"
        )
    return _replay(options, options.tokenizer, tracker)


def _replay(options: TuneOptions, tokenizer: str, tracker: Tracker) -> int:
    from rich.console import Console

    from draftrec.cli.tracking import of_state
    from draftrec.data.files.writers import replace_file
    from draftrec.evaluate.tune.tuning import TuneJob, run_tune, settings_yaml

    job = TuneJob(
        texts=options.texts,
        tokenizer=tokenizer,
        pool=options.pool,
        groups=options.groups,
        limit=options.limit,
        seed=options.seed,
    )
    with bars() as watch:
        told = of_state(tracker, beginning(partial(watch, "settings")), "settings", 0)
        summary = run_tune(job, told, say)
        tracker.end(summary)
    _show(summary, Console(stderr=options.json))
    if options.output is not None:
        replace_file(options.output, settings_yaml(summary["chosen"], options.pool).encode())
        _say_written(options.output)
    if options.json:
        print_json(summary)
    return DONE


def _say_written(path: Place) -> None:
    """What the settings file is for."""
    say(f"settings written to {path}; use them with generate --config {path}")


_COLUMNS = {
    "pool_tokens": "{:,}",
    "pool_bytes": "{:,}",
    "depth": "{}",
    "budget": "{}",
    "tokens_per_step": "{:.2f}",
    "lookup_us_p50": "{:.0f}",
    "speedup": "{:.2f}",
}


def _show(summary: dict[str, Any], console: Any) -> None:
    from draftrec.report.blocks import Cell, Table, row
    from draftrec.report.show import show_block

    def cells(trial: dict[str, Any]) -> tuple[Cell, ...]:
        values = (
            "-" if trial[n] is None else form.format(trial[n]) for n, form in _COLUMNS.items()
        )
        return row(*(Cell(value, strong=trial == chosen) for value in values))

    chosen = summary["chosen"]
    title = f"{summary['texts']:,} texts, compared by {summary['compared_by'].replace('_', ' ')}"
    columns = tuple(name.replace("_", " ") for name in _COLUMNS)
    show_block(Table(columns, tuple(map(cells, summary["trials"])), title), console)
    if not chosen["budget"]:
        console.print("chosen: plain decoding, as no draft is expected to be faster")
        return
    console.print(
        f"chosen: pool of {chosen['pool_bytes']:,} bytes, depth {chosen['depth']}, "
        f"budget {chosen['budget']}"
    )


def _with_model(options: TuneOptions, model: str, tracker: Tracker) -> int:
    """Run the study, write page and settings, show the frontier."""
    job = _job(options, model)
    with sole_writer(job.folder, inside=True):
        return _tuned(job, options, tracker)


def _tuned(job: QualityJob, options: TuneOptions, tracker: Tracker) -> int:
    from rich.console import Console

    from draftrec.cli.tracking import of_state
    from draftrec.data.files.writers import replace_file
    from draftrec.evaluate.tune.choice import chosen_yaml
    from draftrec.evaluate.tune.frontier import report_of
    from draftrec.evaluate.tune.quality import run_quality_tune
    from draftrec.report.show import render, show

    with bars() as watch:
        told = of_state(tracker, beginning(partial(watch, "settings")), "settings")
        summary = run_quality_tune(job, told)
        tracker.end(summary)
    study, page = _study(job, summary, options.output), job.folder / "frontier.html"
    replace_file(page, render(report_of(study)).encode())
    show(report_of(study, short=True), Console(stderr=options.json))
    say(f"page: {page}; all trials: {job.folder / 'trials.parquet'}")
    if options.output is not None:
        under = {"batch_size": job.batch.batch_size, "dtype": job.target.dtype}
        asked = {name: value for name, value in under.items() if value != "auto"}
        chosen = summary["chosen"]
        text = chosen_yaml(chosen, job.limits, job.depth, job.target.drafter, asked)
        replace_file(options.output, text.encode())
        _say_written(options.output)
    if options.json:
        print_json(summary)
    return DONE


def _job(options: TuneOptions, model: str) -> QualityJob:
    from draftrec.evaluate.tune.quality import QualityJob

    return QualityJob(
        records=options.texts,
        target=settings_of(ModelConfig, options, model=model),
        folder=_folder(options),
        batch=settings_of(BatchConfig, options),
        layout=settings_of(RecordsConfig, options, template=options.template),
        groups=options.groups,
        pool=options.pool,
        space=Space(_words(options.rules), _numbers("budgets", options.budgets)),
        limits=settings_of(LossLimits, options),
        sample=options.sample,
        rounds=options.rounds,
        trials=options.trials,
        seed=options.seed,
        overwrite=options.overwrite,
    )


def _folder(options: TuneOptions) -> Path:
    if options.report is not None:
        return options.report
    if options.output is None:
        raise DraftrecError("tune --model writes settings and trials; give --output or --report")
    if not isinstance(options.output, Path):
        raise DraftrecError(
            f"trials are kept on this machine and --output is {options.output}; name a folder for "
            f"them with --report"
        )
    return options.output.with_suffix(".trials")


def _words(value: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in value.split(",") if word.strip())


def _numbers(option: str, value: str) -> tuple[int, ...]:
    try:
        return tuple(int(word) for word in _words(value))
    except ValueError:
        raise DraftrecError(
            f"--{option} must be whole numbers separated by commas, not {value!r}"
        ) from None


def _study(job: QualityJob, summary: dict[str, Any], output: Place | None) -> Study:
    from draftrec.evaluate.tune.frontier import Study, facts_of
    from draftrec.report.blocks import machine_facts

    how: dict[str, Any] = {"rounds": job.rounds, "seed": job.seed}
    how["longest text"] = job.batch.max_new_tokens
    how |= {"drafter": shown(job.target.drafter)} if job.target.drafter else {}
    how |= {name: summary[name] for name in ("device", "dtype", "threads")}
    facts = facts_of(summary, how)
    return Study(
        tuple(summary["trials"]),
        summary["chosen"],
        job.limits,
        facts | {"Machine": machine_facts()},
        str(output) if output else None,
    )
