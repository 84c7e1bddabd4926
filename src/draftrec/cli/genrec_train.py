"""`draftrec genrec fit`, `teach` and `align`: train targets, record them, train their drafts."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

from draftrec.alignment.settings import ObjectiveSettings, TrainSettings
from draftrec.cli.common import (
    DONE,
    INTERRUPTED,
    StopSignal,
    command,
    print_json,
    say,
)
from draftrec.cli.genrec_train_options import (
    AlignOptions,
    FitOptions,
    Objective,
    Preset,
    TeachOptions,
    TrainOptions,
)
from draftrec.cli.idle import Idle
from draftrec.errors import DraftrecError, Interrupted

if TYPE_CHECKING:
    from draftrec.alignment.presets import ModelSource
    from draftrec.items.prompts import PromptFormat


_FIT_IDLE = (
    Idle(
        "patience recall_users",
        lambda o: o.with_valid,
        "with --with-valid, which keeps nothing to validate on",
    ),
)
_TEACH_IDLE = (
    Idle("seed", lambda o: o.per_user <= 1, "without --per-user above 1, as nothing is drawn"),
)
_ALIGN_IDLE = (
    Idle(
        "alpha soft",
        lambda o: o.objective is Objective.SFT,
        "with --objective sft, which does not look at the target",
    ),
    Idle("soft", lambda o: o.alpha == 1, "with --alpha 1, which leaves next items out"),
    Idle(
        "tau",
        lambda o: o.objective not in (Objective.ATSPEED_R, Objective.TVDKD),
        "without --objective atspeed-r or tvdkd",
    ),
    Idle(
        "beta top_k sharpen",
        lambda o: o.objective is not Objective.ATSPEED_S,
        "without --objective atspeed-s",
    ),
    Idle("patience", lambda o: o.held_out == 0, "with --held-out 0, as nothing is validated on"),
)


@command(FitOptions, idle=_FIT_IDLE)
def fit(options: FitOptions) -> int:
    """Train a target on SEQUENCES: a model that writes the semantic id of the next item.

    The same command again goes on where it was interrupted.
    """
    from draftrec.alignment.fit import FitSpec
    from draftrec.alignment.fit import fit as run
    from draftrec.alignment.lora import LoraSettings

    rank = options.lora
    spec = FitSpec(
        sequences=options.sequences,
        sids=options.sids,
        output=options.output,
        source=_source(options, Preset.SMALL),
        settings=_train_settings(options),
        form=_form(options),
        lora=LoraSettings(rank, 2 * rank) if rank else None,
        limit=options.limit,
        recall_users=options.recall_users,
        with_valid=options.with_valid,
        overwrite=options.overwrite,
        columns=options.columns(),
    )
    return _trained(run, spec, as_json=options.json)


@command(TeachOptions, idle=_TEACH_IDLE)
def teach(options: TeachOptions) -> int:
    """Record the beams of TARGET in training contexts, for drafts to learn from.

    The same command again goes on where it was interrupted.
    """
    from draftrec.alignment.settings import TeachSettings
    from draftrec.alignment.teacher import TeachSpec
    from draftrec.alignment.teacher import teach as run
    from draftrec.cli.train_bar import TeachBar

    settings = TeachSettings(
        options.beams, options.per_user, options.ends, options.seed, options.shard_size
    )
    spec = TeachSpec(
        options.target, options.sequences, options.sids, options.output, settings,
        options.limit, options.device, options.overwrite, options.columns(),
    )  # fmt: skip
    with StopSignal() as stop:
        bar = TeachBar(stop)
        try:
            summary = run(spec, bar, stop)
        except Interrupted as event:
            bar.end()
            done, total = sum(event.progress.shards), event.progress.total
            say(f"interrupted after {done:,} of {total:,} contexts; the same command continues")
            return INTERRUPTED
        finally:
            bar.end()
    megabytes = summary["bytes"] / 1e6
    say(f"{summary['contexts']:,} contexts, {megabytes:,.0f} MB, in {summary['output']}")
    if options.json:
        print_json(summary)
    return DONE


@command(AlignOptions, idle=_ALIGN_IDLE)
def align(options: AlignOptions) -> int:
    """Train a draft on what TEACHER says that its target recommends.

    The same command again goes on where it was interrupted.
    """
    from draftrec.alignment.align import AlignSpec
    from draftrec.alignment.align import align as run

    objective = ObjectiveSettings(
        options.objective.value, options.alpha, options.soft, options.tau, options.beta,
        options.top_k, options.sharpen,
    )  # fmt: skip
    spec = AlignSpec(
        teacher=options.teacher,
        target=options.target,
        output=options.output,
        source=_source(options, Preset.TINY),
        objective=objective,
        settings=_train_settings(options),
        held_out=options.held_out,
        overwrite=options.overwrite,
    )
    return _trained(run, spec, as_json=options.json)


def _trained(run: Any, spec: Any, *, as_json: bool) -> int:
    from draftrec.cli.train_bar import TrainBar

    with StopSignal() as stop:
        bar = TrainBar(stop)
        try:
            summary = run(spec, bar, stop)
        except Interrupted as event:
            bar.end()
            done = event.progress
            say(
                f"interrupted in epoch {done.epoch + 1} after {done.step} steps; the same command "
                "continues"
            )
            return INTERRUPTED
        finally:
            bar.end()
    say(
        f"{summary['kind']} with {summary['weights']:,} weights in {summary['output']}, best of "
        f"{summary['epochs']} epochs: {summary['best_epoch'] + 1}"
    )
    if as_json:
        print_json(summary)
    return DONE


def _source(options: TrainOptions, usual: Preset) -> ModelSource:
    """Where the model comes from. Raises DraftrecError for two answers."""
    from draftrec.alignment.presets import ModelSource

    given = {
        "preset": options.preset.value if options.preset else None,
        "config": str(options.config) if options.config else None,
        "checkpoint": options.source,
    }
    chosen = [(kind, name) for kind, name in given.items() if name is not None]
    if len(chosen) > 1:
        raise DraftrecError("give one of --preset, --config and --from, not several")
    kind, name = chosen[0] if chosen else ("preset", usual.value)
    return ModelSource(kind, name)  # type: ignore[arg-type]


def _form(options: FitOptions) -> PromptFormat | None:
    """The prompt that was asked for, None to leave it to the model."""
    from dataclasses import replace

    from draftrec.items.prompts import TEXT_FORMAT, PromptFormat

    texts = {name: getattr(options, name) for name in ("prefix", "separator", "suffix")}
    given = {name: text for name, text in texts.items() if text is not None}
    if not given and options.max_items == PromptFormat().max_items:
        return None
    usual = TEXT_FORMAT if options.source else PromptFormat()
    return replace(usual, max_items=options.max_items, **given)


def _train_settings(options: TrainOptions) -> TrainSettings:
    """Raises DraftrecError for values that cannot work."""
    names = [field.name for field in fields(TrainSettings) if hasattr(options, field.name)]
    values: dict[str, Any] = {name: getattr(options, name) for name in names}
    values["precision"] = options.precision.value
    return TrainSettings(**values)
