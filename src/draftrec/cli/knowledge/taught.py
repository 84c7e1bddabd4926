"""`draftrec generate --drafter-fit`: a job whose later shards are drafted by a head that has learnt
from its first ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from draftrec.cli.messages import StopSignal, say
from draftrec.cli.progress import ProgressBar
from draftrec.errors import DraftrecError

if TYPE_CHECKING:
    from draftrec.jobs.knowledge.manifest import Manifest
    from draftrec.jobs.knowledge.plan import JobSpec

#: The drafter's folder in that of the run.
FOLDER = "drafter"


class FirstShards(ProgressBar):
    """Also stops the job once it has `shards` shards, of which `enough` tells."""

    def __init__(self, stop: StopSignal, shards: int) -> None:
        super().__init__(stop)
        self._shards = shards
        self.enough = False

    def begin(self, manifest: Manifest, kept: int) -> None:
        """Look what there is already."""
        self._look(manifest)
        super().begin(manifest, kept)

    def shard(self, manifest: Manifest) -> None:
        """Look whether it is enough now."""
        self._look(manifest)
        super().shard(manifest)

    def should_stop(self) -> bool:
        """A signal, or enough shards."""
        return super().should_stop() or self.enough

    def _look(self, manifest: Manifest) -> None:
        self.enough = len(manifest.shards) >= self._shards and not manifest.shards_complete


def check_taught(spec: JobSpec) -> None:
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
    """Has the run so many shards already, and some left to do?"""
    manifest = None if spec.overwrite else spec.run_folder().manifest()
    return manifest is not None and len(manifest.shards) >= shards and not manifest.shards_complete


def with_own_drafter(spec: JobSpec) -> JobSpec | int:
    """The job, going on with a head that was trained on what it has written; an exit code where the
    training was interrupted."""
    from draftrec.cli.genrec.train import trained
    from draftrec.jobs.knowledge.generator import with_values
    from draftrec.models.drafters import INFO_FILE
    from draftrec.train.drafter.fit import DrafterSpec, fit_drafter

    folder: Any = spec.output / FOLDER
    if spec.overwrite or not (folder / INFO_FILE).is_file():
        say("training a draft head on the texts so far; later ones are drafted with it")
        model = spec.config.generate.target.model
        teaching = DrafterSpec(
            runs=[spec.output], model=model, output=folder, overwrite=spec.overwrite
        )
        if code := trained(fit_drafter, teaching, None):
            return code
    generate = with_values(spec.config.generate, {"drafter": str(folder)})
    config = spec.config.model_copy(update={"generate": generate})
    return replace(spec, config=config, overwrite=False)
