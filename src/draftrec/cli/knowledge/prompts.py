"""`draftrec prompts`: what `generate` would send, and how many tokens that is."""

from __future__ import annotations

from dataclasses import field, fields, make_dataclass
from typing import Any

from draftrec.cli.command import DONE, SOME_REJECTED, command, print_json
from draftrec.cli.knobs import HERE, option, settings_of
from draftrec.cli.knowledge.generate import PROMPTS_IDLE, GenerateOptions
from draftrec.cli.messages import say, warn
from draftrec.cli.options import JsonOptions
from draftrec.config import ModelConfig, RecordsConfig

_ALSO = {"input", "model", "trust_remote_code", "config"}
_MODEL = option(
    "Folder or Hub id: applies its chat template and counts tokens; no weights.", place=HERE
)
#: Those of `generate` that say how records become prompts.
PromptsOptions = make_dataclass(
    "PromptsOptions",
    [
        (
            it.name,
            it.type,
            _MODEL if it.name == "model" else field(default=it.default, metadata=it.metadata),
        )
        for it in fields(GenerateOptions)
        if it.name in _ALSO | set(RecordsConfig.model_fields)
    ],
    bases=(JsonOptions,),
    namespace={"__module__": GenerateOptions.__module__},
    frozen=True,
    kw_only=True,
)


@command(PromptsOptions, idle=PROMPTS_IDLE)
def prompts(options: Any) -> int:
    """Print what `draftrec generate` would send the model for each record of INPUT.

    Nothing is written and no weights are loaded.
    """
    from draftrec.data.records import Rejected
    from draftrec.jobs.knowledge.plan import read_records
    from draftrec.jobs.knowledge.prompts import PromptPreview

    reader, records = read_records(options.input, settings_of(RecordsConfig, options))
    tokenizer, context = _tokenizer(options)
    preview = PromptPreview(reader, records, tokenizer, context)
    for found in preview:
        if isinstance(found, Rejected):
            named = "" if found.entity_id is None else f" ({found.entity_id})"
            _print(f"── {found.file} line {found.line}{named}: rejected, {found.reason}\n")
        else:
            size = "" if found.tokens is None else f", {found.tokens:,} tokens"
            _print(f"── {found.entity_id}{size}\n{found.text}\n")
    summary = preview.summary()
    _tell(summary)
    if options.json:
        print_json({**summary, "model": options.model})
    return SOME_REJECTED if summary["rejected"] else DONE


def _tokenizer(options: Any) -> tuple[Any, int]:
    """The model's tokenizer and the length of its context."""
    if options.model is None:
        return None, 0
    from draftrec.engine.rotary import context_length
    from draftrec.models import loading

    config = ModelConfig(model=options.model, trust_remote_code=options.trust_remote_code)
    tokenizer = loading.load_tokenizer_of(config)
    return tokenizer, context_length(loading.load_outline(config))


def _tell(summary: dict[str, Any]) -> None:
    unit = "tokens" if "tokens" in summary else "characters"
    sizes = summary[unit]
    form = " in the chat template" if summary["chat"] else ""
    if summary["prompts"] == 1:
        say(f"1 prompt{form}: {sizes['total']:,} {unit}")
    else:
        say(
            f"{summary['prompts']:,} prompts{form}: {sizes['min']:,} to {sizes['max']:,} {unit}, "
            f"median {sizes['median']:,.0f}, {sizes['total']:,} together"
        )
    if shared := summary.get("shared_tokens"):
        say(
            f"{shared:,} of these tokens begin a prompt as they begin another one, and are "
            f"computed once for both"
        )
    for reason, count in summary["reasons"].items():
        warn(f"{count:,} records would be rejected: {reason}")
    if summary["special_tokens"]:
        warn(
            f"texts of special tokens in records ({', '.join(summary['special_tokens'][:3])}) are "
            f"sent as text; --special-tokens obey lets them act"
        )
    if unit == "characters":
        say("give --model to see its chat template applied and tokens counted")


def _print(text: str) -> None:
    print(text.encode(errors="replace").decode())  # noqa: T201 - halves of surrogates cannot be written
