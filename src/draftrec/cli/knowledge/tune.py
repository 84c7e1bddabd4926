"""`draftrec tune`: choose pool size, depth and budget from recorded texts, or, with a model, the
acceptance rule by speed and quality."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from draftrec.cli.common import (
    DONE,
    LIMITS_PANEL,
    MODEL_PANEL,
    OUTPUT_PANEL,
    PROMPTS_PANEL,
    TRIALS_PANEL,
    DebugOption,
    JsonOption,
    command,
    print_json,
)
from draftrec.cli.messages import say_written, settings_bar
from draftrec.cli.options.idle import Idle
from draftrec.cli.options.places import HERE, READ, WRITTEN
from draftrec.config import BatchConfig, ModelConfig, RecordsConfig
from draftrec.data.files.locks import sole_writer
from draftrec.data.files.places import Place
from draftrec.data.templates import FRAMEWORKS
from draftrec.errors import DraftrecError
from draftrec.evaluate.tune.choice import RULES, Limits

Option = typer.Option
Prompts = partial(Option, rich_help_panel=PROMPTS_PANEL)
Trials = partial(Option, rich_help_panel=TRIALS_PANEL)
Limit = partial(Option, rich_help_panel=LIMITS_PANEL)
Machine = partial(Option, rich_help_panel=MODEL_PANEL)
Output = partial(Option, rich_help_panel=OUTPUT_PANEL)
_LIMITS, _BATCH, _TARGET = Limits(), BatchConfig(), ModelConfig(model="")


@dataclass(frozen=True, slots=True, kw_only=True)
class TuneOptions:
    """The command line of `draftrec tune`."""

    texts: Annotated[
        str,
        READ,
        typer.Argument(
            metavar="TEXTS|RUN|RECORDS",
            help="A run's folder (its measured costs are used) or texts (Parquet, JSONL or CSV "
            "with entity_id and text); with --model, records as `generate` reads them.",
        ),
    ]
    tokenizer: Annotated[
        str | None,
        HERE,
        Option(metavar="PATH", help="Folder or Hub id of the model whose tokenizer counts."),
    ] = None
    model: Annotated[
        str | None, HERE, Option(help="Try acceptance rules with this model: a folder or a Hub id.")
    ] = None
    pool: Annotated[
        Path | None,
        Option(
            help="Pool to tune, or to draft from; without one, part of the texts, or the texts of "
            "other records."
        ),
    ] = None
    groups: Annotated[
        Place | None,
        READ,
        Option(help="Groups file (entity_id, group); takes the place of the group column."),
    ] = None
    output: Annotated[
        Place | None, WRITTEN, Option(metavar="FILE.yaml", help="Settings for `generate --config`.")
    ] = None
    limit: Annotated[int, Option(min=1, help="Most texts that are replayed.")] = 60
    seed: Annotated[int, Option(help="Seed of the choice of texts and of the search.")] = 0

    rules: Annotated[
        str, Trials(help="With --model: rules to try, by commas; strict always is.")
    ] = ",".join(RULES)
    budgets: Annotated[str, Trials(help="With --model: budgets to try, by commas.")] = "16,48"
    sample: Annotated[int, Trials(min=1, help="With --model: records that are written.")] = 64
    rounds: Annotated[int, Trials(min=1, help="With --model: times that each is timed.")] = 3
    trials: Annotated[
        int | None,
        Trials(min=1, help="With --model: search so many settings where the grid has more."),
    ] = None
    max_loss_per_token: Annotated[
        float, Limit(min=0, help="With --model: most nats given up per token of the text.")
    ] = _LIMITS.max_loss_per_token
    min_similarity: Annotated[
        float,
        Limit(
            max=1,
            help="With --model: least likeness by TF-IDF; 1: the model's own text, 0: another's.",
        ),
    ] = _LIMITS.min_similarity
    max_length_drift: Annotated[
        float, Limit(min=0, help="With --model: most relative change of the mean length.")
    ] = _LIMITS.max_length_drift
    template: Annotated[
        str | None, READ, Prompts(help="With --model: a framework's template, or a Jinja2 file.")
    ] = None
    side: Annotated[
        Literal["user", "item"], Prompts(help="Which side a framework's template describes.")
    ] = RecordsConfig().side
    chat: Annotated[
        bool | None,
        Prompts(
            "--chat/--no-chat",
            help="Wrap prompts in the tokenizer's chat template.",
            show_default="where it has one",
        ),
    ] = None
    max_new_tokens: Annotated[int, Prompts(min=1, help="With --model: longest text.")] = (
        _BATCH.max_new_tokens
    )
    batch_size: Annotated[
        str, Machine(metavar="auto|N", help="With --model: texts written together.")
    ] = str(_BATCH.batch_size)
    device: Annotated[str, Machine(help="auto, cpu, cuda or cuda:N.")] = _TARGET.device
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        Machine(help="Precision of the weights; auto: as stored, float32 on CPU."),
    ] = _TARGET.dtype
    trust_remote_code: Annotated[
        bool,
        Machine(
            "--trust-remote-code/--no-trust-remote-code",
            help="Run Python code that comes with the model.",
        ),
    ] = False
    report: Annotated[
        Path | None,
        Output(
            metavar="DIR",
            help="With --model: folder of frontier.html and trials.parquet.",
            show_default="FILE.trials beside --output",
        ),
    ] = None
    overwrite: Annotated[
        bool, Output("--overwrite", help="Give up the trials that are in --report.")
    ] = False
    json: JsonOption = False
    debug: DebugOption = False


_IDLE = (
    Idle(
        "rules budgets sample rounds trials max_loss_per_token min_similarity max_length_drift "
        "template side chat max_new_tokens batch_size device dtype trust_remote_code report "
        "overwrite",
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


@command(TuneOptions, idle=_IDLE)
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
    with sole_writer(output) if output is not None else nullcontext():
        return _tune(options)


def _tune(options: TuneOptions) -> int:
    if options.model is not None:
        from draftrec.cli.knowledge.tune_quality import tune_quality

        return tune_quality(options, options.model)
    if options.tokenizer is None:
        raise DraftrecError(
            "give --tokenizer to replay recorded texts, or --model to try acceptance rules"
        )
    return _replay(options, options.tokenizer)


def _replay(options: TuneOptions, tokenizer: str) -> int:
    from rich.console import Console

    from draftrec.data.files.writers import replace_file
    from draftrec.evaluate.tune.tuning import TuneJob, run_tune, settings_yaml

    job = TuneJob(
        options.texts, tokenizer, options.pool, options.groups,
        limit=options.limit, seed=options.seed,
    )  # fmt: skip
    with settings_bar() as watch:
        summary = run_tune(job, watch)
    _show(summary, Console(stderr=options.json))
    if options.output is not None:
        replace_file(options.output, settings_yaml(summary["chosen"], options.pool).encode())
        say_written(options.output)
    if options.json:
        print_json(summary)
    return DONE


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
    from draftrec.report.terminal import show_block

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
