"""The command line of `draftrec generate`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from draftrec.cli.common import (
    ACCEPTANCE_PANEL,
    CONTROLS_PANEL,
    DRAFTING_PANEL,
    MODEL_PANEL,
    OUTPUT_PANEL,
    PROMPTS_PANEL,
    SAMPLING_PANEL,
    ConfigOption,
    DebugOption,
    JsonOption,
    json_object,
)
from draftrec.cli.options.cluster import (
    AddressOption,
    CpusOption,
    EngineOption,
    GpusOption,
    WorkersOption,
)
from draftrec.cli.options.idle import Idle
from draftrec.cli.options.places import HERE, READ, WRITTEN
from draftrec.config import (
    AcceptConfig,
    BatchConfig,
    ControlsConfig,
    DraftConfig,
    JobConfig,
    ModelConfig,
    RecordsConfig,
)
from draftrec.data.files.places import Place
from draftrec.data.templates import FRAMEWORKS

Option = typer.Option
Prompts = partial(Option, rich_help_panel=PROMPTS_PANEL)
Drafting = partial(Option, rich_help_panel=DRAFTING_PANEL)
Acceptance = partial(Option, rich_help_panel=ACCEPTANCE_PANEL)
Sampling = partial(Option, rich_help_panel=SAMPLING_PANEL)
Controls = partial(Option, rich_help_panel=CONTROLS_PANEL)
Machine = partial(Option, rich_help_panel=MODEL_PANEL)
Output = partial(Option, rich_help_panel=OUTPUT_PANEL)
_ACCEPT, _DRAFT, _BATCH, _RECORDS = AcceptConfig(), DraftConfig(), BatchConfig(), RecordsConfig()
_CONTROLS, _TARGET = ControlsConfig(), ModelConfig(model="")
_SHARD_SIZE: int | str = JobConfig.model_fields["shard_size"].default

#: Of the options that say how records become prompts.
PROMPTS_IDLE = (
    Idle("prompt_column", lambda o: o.template is not None, "with --template"),
    Idle(
        "side",
        lambda o: o.template not in FRAMEWORKS,
        "without one of the built-in templates, which have two sides",
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateOptions:
    """The command line of `draftrec generate`: first what everybody needs."""

    input: Annotated[
        str,
        READ,
        typer.Argument(
            metavar="INPUT",
            help="Records: Parquet, JSONL or CSV (.gz, .zst); a file, a folder of parts or a glob.",
        ),
    ]
    model: Annotated[
        str | None,
        HERE,
        Option(help="Target model: a folder, a .gguf file or a Hugging Face Hub id. Required."),
    ] = None
    output: Annotated[
        Place | None, WRITTEN, Option(help="Folder of the run; made if missing. Required.")
    ] = None
    template: Annotated[
        str | None,
        READ,
        Option(help="kar, trawl, once, rlmrec, or a Jinja2 file; without it a `prompt` column."),
    ] = _RECORDS.template
    side: Annotated[
        Literal["user", "item"], Option(help="Which side a framework's template describes.")
    ] = _RECORDS.side
    limit: Annotated[int | None, Option(help="Only the first N records.")] = _RECORDS.limit
    draft: Annotated[
        Literal["pool", "prompt", "none"],
        Option(help="Draft from a pool of texts, the prompt alone, or nothing (the baseline)."),
    ] = _DRAFT.draft
    pool: Annotated[
        Path | None, Option(help="Pool to start from; without it an empty one grows.")
    ] = None
    accept: Annotated[
        Literal["strict", "relaxed", "typical", "entropy"],
        Option(
            metavar="RULE",
            help="strict keeps the model's own text; relaxed, typical and entropy keep further "
            "drafts, each in its way (below).",
        ),
    ] = _ACCEPT.accept
    max_new_tokens: Annotated[int, Option(help="Longest text.")] = _BATCH.max_new_tokens
    config: ConfigOption = None

    id_column: Annotated[str, Prompts(help="Column of the entity ids.")] = _RECORDS.id_column
    prompt_column: Annotated[str, Prompts(help="Column of the prompts.")] = _RECORDS.prompt_column
    group_column: Annotated[str, Prompts(help="Column of the groups, if there is one.")] = (
        _RECORDS.group_column
    )
    groups: Annotated[
        Place | None,
        READ,
        Prompts(help="Groups file (entity_id, group); takes the place of the group column."),
    ] = None
    chat: Annotated[
        bool | None,
        Prompts(
            "--chat/--no-chat",
            help="Wrap prompts in the tokenizer's chat template.",
            show_default="where it has one",
        ),
    ] = _RECORDS.chat
    system: Annotated[str | None, Prompts(help="What chats begin with: a system message.")] = (
        _RECORDS.system
    )
    chat_template_kwargs: Annotated[
        dict[str, Any],
        Prompts(
            parser=json_object,
            metavar="JSON",
            help='Values that the chat template reads: {"enable_thinking": false}.',
            show_default=False,
        ),
    ] = None  # type: ignore[assignment]
    chat_date: Annotated[
        str | None,
        Prompts(
            metavar="YYYY-MM-DD",
            help="The date for a chat template that writes one.",
            show_default="the day when the run was begun",
        ),
    ] = None
    special_tokens: Annotated[
        Literal["split", "obey"],
        Prompts(
            help="What texts of special tokens in records (<|im_end|> in a title) are: split, text "
            "like any other; obey, those tokens."
        ),
    ] = _RECORDS.special_tokens

    save_pool: Annotated[Path | None, Drafting(help="Keep the grown pool in this folder.")] = None
    previous: Annotated[
        Place | None,
        READ,
        Drafting(
            metavar="RUN_DIR",
            help="Refresh an earlier run: unchanged prompts keep their text, others draft from it.",
        ),
    ] = None
    budget: Annotated[
        str,
        Drafting(metavar="auto|N", help="Draft tokens per text and pass; auto: while they pay."),
    ] = str(_DRAFT.budget)
    depth: Annotated[int, Drafting(help="Longest drafted continuation.")] = _DRAFT.depth
    pool_lag: Annotated[
        str,
        Drafting(
            metavar="auto|N",
            help="Shards right before a shard whose texts it does not draft from, so that they may "
            "be under way together; auto: strict, those not finished yet; others 0, or twice the "
            "workers with Ray.",
        ),
    ] = "auto"

    top_k: Annotated[
        int, Acceptance(help="Relaxed: accept among the model's K most probable tokens.")
    ] = _ACCEPT.top_k
    min_prob: Annotated[float, Acceptance(help="Relaxed: accept from this probability on.")] = (
        _ACCEPT.min_prob
    )
    epsilon: Annotated[float, Acceptance(help="Typical: accept above this probability.")] = (
        _ACCEPT.epsilon
    )
    delta: Annotated[float, Acceptance(help="Typical: or above DELTA times exp(-entropy).")] = (
        _ACCEPT.delta
    )
    entropy_gate: Annotated[
        float,
        Acceptance(help="Entropy: take drafts from this share of the highest entropy on."),
    ] = _ACCEPT.entropy_gate
    window: Annotated[
        int, Acceptance(help="Entropy: own tokens of the model that must follow a deviation.")
    ] = _ACCEPT.window
    eos_guard: Annotated[
        bool,
        Acceptance("--eos-guard/--no-eos-guard", help="Not strict: end where the model would end."),
    ] = _ACCEPT.eos_guard
    tie_break: Annotated[
        Literal["probable", "first"],
        Acceptance(help="Not strict: which of two equally long paths wins."),
    ] = _ACCEPT.tie_break
    max_deviations: Annotated[
        int | None,
        Acceptance(help="Not strict: most tokens per text that are not the model's first."),
    ] = _ACCEPT.max_deviations
    max_loss: Annotated[
        float | None, Acceptance(help="Not strict: most log-probability (nats) given up per text.")
    ] = _ACCEPT.max_loss

    temperature: Annotated[float, Sampling(help="0 is greedy; above it, sample.")] = (
        _ACCEPT.temperature
    )
    sample_top_k: Annotated[
        int | None,
        Sampling(help="Sample among the K most probable tokens.", show_default="the model's own"),
    ] = None
    top_p: Annotated[
        float | None,
        Sampling(help="Sample within this share of probability.", show_default="the model's own"),
    ] = None
    min_p: Annotated[
        float | None, Sampling(help="Sample from this share of the first token's probability on.")
    ] = None
    typical_p: Annotated[
        float | None, Sampling(help="Sample among the tokens nearest to the expected surprise.")
    ] = None
    seed: Annotated[int, Sampling(help="Seed of the sampling.")] = _ACCEPT.seed
    n: Annotated[
        int,
        Sampling(
            metavar="N", help="Texts of each record, numbered in a column `sample` if several."
        ),
    ] = _ACCEPT.n

    generation_config: Annotated[
        Literal["model", "none"],
        Controls(help="Whether the model's own generation_config.json is honoured."),
    ] = _CONTROLS.generation_config
    repetition_penalty: Annotated[
        float | None, Controls(help="Of tokens of prompt and text; 1 is off.")
    ] = None
    presence_penalty: Annotated[float, Controls(help="Taken off tokens that the text has.")] = (
        _CONTROLS.presence_penalty
    )
    frequency_penalty: Annotated[float, Controls(help="The same, as often as it has them.")] = (
        _CONTROLS.frequency_penalty
    )
    no_repeat_ngram_size: Annotated[
        int | None, Controls(help="No N tokens in a row twice in prompt and text; 0 is off.")
    ] = None
    min_new_tokens: Annotated[int | None, Controls(help="No end of text before.")] = None
    bad_words: Annotated[
        Path | None,
        Controls(help="File of words or phrases that must not be written, a line each."),
    ] = None
    logit_bias: Annotated[
        list[str] | None,
        Controls(metavar="TOKEN=BIAS", help="Added to a token's score; repeatable, -inf forbids."),
    ] = None
    suppress_tokens: Annotated[
        list[str] | None, Controls(metavar="TOKEN", help="Never written; repeatable.")
    ] = None
    begin_suppress_tokens: Annotated[
        list[str] | None, Controls(metavar="TOKEN", help="Never written first; repeatable.")
    ] = None
    forced_bos_token: Annotated[
        str | None, Controls(metavar="TOKEN", help="First after a prompt of one token.")
    ] = None
    forced_eos_token: Annotated[
        str | None, Controls(metavar="TOKEN", help="Last of a text that reaches its limit.")
    ] = None
    json_schema: Annotated[
        str | None,
        READ,
        Controls(
            metavar="FILE|template",
            help="Write JSON that keeps to this JSON schema; template: the one that the template "
            "comes with (rlmrec has one).",
        ),
    ] = None
    regex: Annotated[
        str | None, Controls(metavar="TEXT", help="Write texts that match this as a whole.")
    ] = None
    grammar: Annotated[
        Place | None,
        READ,
        Controls(
            metavar="FILE", help="Write texts of this grammar, in Lark's or llama.cpp's form."
        ),
    ] = None
    stop: Annotated[
        list[str] | None,
        Controls(metavar="TEXT", help="Ends a text, and is cut off it; repeatable."),
    ] = None

    device: Annotated[str, Machine(help="auto, cpu, cuda or cuda:N.")] = _TARGET.device
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        Machine(help="Precision of the weights; auto: as stored, float32 on CPU."),
    ] = _TARGET.dtype
    batch_size: Annotated[
        str, Machine(metavar="auto|N", help="Texts written together; auto: what memory holds.")
    ] = str(_BATCH.batch_size)
    prefill_chunk: Annotated[int, Machine(help="Most prompt tokens computed in one pass.")] = (
        _BATCH.prefill_chunk
    )
    compile: Annotated[
        bool, Machine("--compile/--no-compile", help="Compile the model's layers.")
    ] = _TARGET.compile
    trust_remote_code: Annotated[
        bool,
        Machine(
            "--trust-remote-code/--no-trust-remote-code",
            help="Run Python code that comes with the model.",
        ),
    ] = _TARGET.trust_remote_code
    threads: Annotated[
        int | None,
        Machine(help="Threads of the processor's for PyTorch.", show_default="as PyTorch decides"),
    ] = _TARGET.threads

    shard_size: Annotated[
        str,
        Output(
            metavar="auto|N",
            help="Records whose texts are written together; auto: 1024, or growing up to that "
            "where texts join the pool with their shard (other than strict).",
        ),
    ] = str(_SHARD_SIZE)
    keep_prompts: Annotated[
        bool, Output("--keep-prompts", help="Write the prompts beside the texts.")
    ] = _RECORDS.keep_prompts
    overwrite: Annotated[
        bool, Output("--overwrite", help="Give up the run that is in --output.")
    ] = False
    metrics_port: Annotated[
        int | None,
        Output(min=0, max=65535, help="Serve Prometheus metrics on this port of the loopback."),
    ] = None

    engine: EngineOption = "local"
    workers: WorkersOption = 1
    gpus_per_worker: GpusOption = None
    cpus_per_worker: CpusOption = None
    address: AddressOption = None

    json: JsonOption = False
    debug: DebugOption = False
