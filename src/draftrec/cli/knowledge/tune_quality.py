"""`draftrec tune --model`: from options to a study of acceptance rules, and its results shown."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from draftrec.cli.common import DONE, auto_or_number, print_json, say
from draftrec.cli.messages import say_written, settings_bar
from draftrec.data.files.locks import sole_writer
from draftrec.data.files.places import Place
from draftrec.errors import DraftrecError

if TYPE_CHECKING:
    from draftrec.cli.knowledge.tune import TuneOptions
    from draftrec.evaluate.tune.frontier import Study
    from draftrec.evaluate.tune.quality import QualityJob


def tune_quality(options: TuneOptions, model: str) -> int:
    """Run the study, write page and settings, show the frontier."""
    job = _job(options, model)
    with sole_writer(job.folder, inside=True):
        return _tuned(job, options)


def _tuned(job: QualityJob, options: TuneOptions) -> int:
    from rich.console import Console

    from draftrec.data.files.writers import replace_file
    from draftrec.evaluate.tune.choice import chosen_yaml
    from draftrec.evaluate.tune.frontier import report_of
    from draftrec.evaluate.tune.quality import run_quality_tune
    from draftrec.report.page import render
    from draftrec.report.terminal import show

    with settings_bar() as watch:
        summary = run_quality_tune(job, watch)
    study, page = _study(job, summary, options.output), job.folder / "frontier.html"
    replace_file(page, render(report_of(study)).encode())
    show(report_of(study, short=True), Console(stderr=options.json))
    say(f"page: {page}; all trials: {job.folder / 'trials.parquet'}")
    if options.output is not None:
        text = chosen_yaml(summary["chosen"], job.limits, job.depth)
        replace_file(options.output, text.encode())
        say_written(options.output)
    if options.json:
        print_json(summary)
    return DONE


def _job(options: TuneOptions, model: str) -> QualityJob:
    from draftrec.config import BatchConfig, ModelConfig, RecordsConfig
    from draftrec.evaluate.tune.choice import Limits, Space
    from draftrec.evaluate.tune.quality import QualityJob

    batch = auto_or_number("batch-size", options.batch_size)
    if batch != "auto" and batch < 1:
        raise DraftrecError(f"--batch-size must be auto or a number from 1 on, not {batch}")
    return QualityJob(
        records=options.texts,
        target=ModelConfig(
            model=model,
            device=options.device,
            dtype=options.dtype,
            trust_remote_code=options.trust_remote_code,
        ),
        folder=_folder(options),
        batch=BatchConfig(batch_size=batch, max_new_tokens=options.max_new_tokens),
        layout=RecordsConfig(template=options.template, side=options.side, chat=options.chat),
        groups=options.groups,
        pool=options.pool,
        space=Space(_words(options.rules), _numbers("budgets", options.budgets)),
        limits=Limits(options.max_loss_per_token, options.min_similarity, options.max_length_drift),
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

    how = {"rounds": job.rounds, "longest text": job.batch.max_new_tokens, "seed": job.seed}
    facts = facts_of(summary, {**how, "device": summary["device"], "dtype": summary["dtype"]})
    return Study(
        tuple(summary["trials"]),
        summary["chosen"],
        job.limits,
        facts | {"Machine": machine_facts()},
        str(output) if output else None,
    )
