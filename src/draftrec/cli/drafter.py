"""`draftrec drafter`: train what drafts beside pools, from texts that jobs have written."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from draftrec.cli.command import command
from draftrec.cli.genrec.train import Folder, Overwrite, trained
from draftrec.cli.knobs import (
    HERE,
    MODEL_PANEL,
    OUTPUT_PANEL,
    READ,
    REQUIRED,
    TRAINING_PANEL,
    argument,
    option,
    option_of,
    settings_of,
)
from draftrec.cli.knowledge.pool import told
from draftrec.cli.messages import say
from draftrec.cli.options import Idle, JsonOptions, TrackOptions
from draftrec.data.files.places import Place, place
from draftrec.errors import DraftrecError
from draftrec.train.settings import HEAD_TRAINING, HeadRun, HeadSettings, TrainSettings

if TYPE_CHECKING:
    from draftrec.jobs.knowledge.plan import JobSpec

Head = partial(option_of, HeadSettings)
Run = partial(option_of, HeadRun)


def Training(name: str, **more: Any) -> Any:
    """An option of a training, with the default that heads have."""
    usual = {"default": HEAD_TRAINING[name]} if name in HEAD_TRAINING else {}
    return option_of(TrainSettings, name, **usual, **{"panel": TRAINING_PANEL, **more})


@dataclass(frozen=True, slots=True, kw_only=True)
class DrafterFitOptions(TrackOptions):
    """The command line of `draftrec drafter fit`."""

    runs: list[str] = argument("RUN...", "Folders that `draftrec generate` wrote.", READ)
    model: str = option(
        "The model that wrote the texts: a folder or a Hub id.",
        metavar="TARGET",
        default=REQUIRED,
        place=HERE,
    )
    output: Path = Folder("Folder of the trained drafter.")
    records: list[str] | None = option(
        "Records of a run, where they have moved; once for every RUN.", metavar="FILE", place=READ
    )
    loss: str = Head("loss")
    vocabulary: int = Head("vocabulary")
    levels: int = Head("levels")
    limit: int | None = Run("limit", metavar="TEXTS")
    decay: float = Head("decay", panel=TRAINING_PANEL)
    held_out: int = Run("held_out", panel=TRAINING_PANEL)
    epochs: int = Training("epochs", panel=None)
    batch_tokens: int = Training("batch_tokens")
    lr: float = Training("lr")
    weight_decay: float = Training("weight_decay")
    warmup: float = Training("warmup")
    clip: float = Training("clip")
    patience: int = Training("patience")
    seed: int = Training("seed")
    save_steps: int = Training("save_steps", panel=OUTPUT_PANEL)
    keep_features: bool = Run("keep_features", panel=OUTPUT_PANEL)
    device: str = Training("device", panel=MODEL_PANEL)
    precision: str = Training("precision", panel=MODEL_PANEL)
    overwrite: bool = Overwrite()


_IDLE = (
    Idle("patience", lambda o: o.held_out == 0, "with --held-out 0, as nothing is validated on"),
    Idle("decay", lambda o: o.levels == 1, "with --levels 1"),
)


@command(DrafterFitOptions, idle=_IDLE, resumes=True)
def fit(options: DrafterFitOptions) -> int:
    """Train a draft head on texts that TARGET has written in RUNs.

    It foretells the target's next hidden states, for several tokens in a row. The same command
    again goes on where it was interrupted.
    """
    from draftrec.train.drafter.fit import DrafterSpec, fit_drafter

    known = {name: HEAD_TRAINING[name] for name in ("dropout", "drop_items")}
    spec = DrafterSpec(
        runs=[place(run) for run in options.runs],
        model=options.model,
        output=options.output,
        records=options.records or (),
        head=settings_of(HeadSettings, options),
        settings=settings_of(TrainSettings, options, **known),
        limit=options.limit,
        held_out=options.held_out,
        keep_features=options.keep_features,
        overwrite=options.overwrite,
    )
    return trained(fit_drafter, spec, options, track=options.track)


@dataclass(frozen=True, slots=True, kw_only=True)
class DrafterInfoOptions(JsonOptions):
    """The command line of `draftrec drafter info`."""

    drafter: Place = argument("DIR", "Folder that `draftrec drafter fit` wrote.", READ)


@command(DrafterInfoOptions)
def info(options: DrafterInfoOptions) -> int:
    """Show what a drafter is, what it was trained on, and how good it was on held-out texts."""
    from draftrec.models.drafters import describe_drafter

    return told(options.json, describe_drafter, options.drafter)


SUBCOMMANDS = {"fit": fit, "info": info}


#: The folder of a run's own drafter (`generate --drafter-fit`) in that of the run.
OWN_DRAFTER = "drafter"


def check_drafter_fit(spec: JobSpec) -> None:
    """Raise DraftrecError for a job that cannot train its own drafter."""
    generate, why = spec.config.generate, None
    if generate.accept.accept != "strict":
        why = "needs --accept strict: other texts depend on what drafts them"
    elif generate.draft.draft == "none":
        why = "drafts, and --draft none is the baseline that does not"
    elif generate.target.drafter:
        why = "trains a drafter, and --drafter names one; leave one of the two out"
    elif not isinstance(spec.output, Path):
        why = "needs a folder of this machine as --output, to train in"
    if why:
        raise DraftrecError(f"--drafter-fit {why}")


def has_shards(spec: JobSpec, shards: int) -> bool:
    """Has the run so many shards already, and some left to do? Raises DraftrecError for one that
    was begun otherwise, before anything is learnt from it."""
    from draftrec.jobs.knowledge.plan import Plan, continued

    folder = spec.run_folder()
    manifest = None if spec.overwrite else folder.manifest()
    if manifest is None or len(manifest.shards) < shards or manifest.shards_complete:
        return False
    return continued(Plan(spec), folder) is not None


def with_own_drafter(spec: JobSpec) -> JobSpec | int:
    """The job, going on with a head that was trained on what it has written; an exit code where the
    training was interrupted."""
    from draftrec.cli.genrec.train import trained
    from draftrec.train.drafter.fit import DrafterSpec, fit_drafter, resumed

    folder: Any = spec.output / OWN_DRAFTER
    if spec.overwrite or not _fits(folder, spec):
        say("training a draft head on the texts so far; later ones are drafted with it")
        training = DrafterSpec(
            runs=[spec.output],
            model=spec.config.generate.target.model,
            output=folder,
            records=[spec.input],  # which may have moved since the run was begun
        )
        training = replace(training, overwrite=True) if spec.overwrite else resumed(training)
        if code := trained(fit_drafter, training, None):
            return code
    return replace(spec.with_settings(drafter=str(folder)), overwrite=False)


def _fits(folder: Path, spec: JobSpec) -> bool:
    """Is there a drafter of the run's model? What --overwrite gave up may have been another's."""
    from draftrec.models.drafters import check_drafter, read_drafter_info

    run = spec.run_folder().manifest()
    known = {name: it for name, it in (run.fingerprints if run else {}).items() if it}
    try:
        check_drafter(folder, read_drafter_info(folder), known)
    except DraftrecError:
        return False
    return True
