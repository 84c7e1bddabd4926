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
    from draftrec.evaluate.tune.quality import run_quality_tune

    with settings_bar() as watch:
        summary = run_quality_tune(job, watch)
    page = job.folder / "frontier.html"
    replace_file(page, _page(job, summary, options.output).encode())
    _show(summary, Console(stderr=options.json))
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


def _page(job: QualityJob, summary: dict[str, Any], output: Place | None) -> str:
    from draftrec.evaluate.report import machine_facts
    from draftrec.evaluate.tune.frontier import Study, facts_of, render_frontier

    how = {"rounds": job.rounds, "longest text": job.batch.max_new_tokens, "seed": job.seed}
    facts = facts_of(summary, {**how, "device": summary["device"], "dtype": summary["dtype"]})
    study = Study(
        tuple(summary["trials"]),
        summary["chosen"],
        job.limits,
        facts | {"Machine": machine_facts()},
        str(output) if output else None,
    )
    return render_frontier(study)


#: Figure -> its column's heading, and how it is written.
_COLUMNS = {
    "speedup": ("times plain", "{:.2f}"),
    "tokens_per_call": ("tokens per call", "{:.2f}"),
    "loss_per_token": ("nats per token", "{:.4f}"),
    "similarity_kept": ("like own text", "{:.2f}"),
    "exact_match": ("equal texts", "{:.0%}"),
}


def _show(summary: dict[str, Any], console: Any) -> None:
    from rich import box
    from rich.table import Table

    from draftrec.evaluate.tune.choice import label_of, unrest

    title = f"{summary['texts']} texts, {len(summary['trials'])} settings; the frontier:"
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left")
    for heading, _ in _COLUMNS.values():
        table.add_column(heading, justify="right", max_width=6)
    table.add_column("setting")
    chosen, rows = summary["chosen"], list(summary["frontier"])
    for row in rows if chosen in rows else [*rows, chosen]:
        cells = [form.format(row[name]) for name, (_, form) in _COLUMNS.items()]
        table.add_row(*cells, label_of(row), style="bold green" if row == chosen else None)
    console.print(table)
    if busy := unrest(summary["trials"]):
        say(busy)
    if chosen["speedup"] <= 1.0:
        console.print("chosen: plain decoding, as no draft was faster")
        return
    console.print(f"chosen: {label_of(chosen)}")
