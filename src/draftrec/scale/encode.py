"""`draftrec encode --engine ray`: the encoders of a job on a cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from draftrec.knowledge.encode_crew import (
    Documents,
    EncodeCrew,
    EncoderFacts,
    Hire,
    Loader,
    Watch,
    facts_of,
    load_for_job,
)
from draftrec.knowledge.encode_inputs import EncodeInputs, EncodeSpec
from draftrec.models.documents import Encoded
from draftrec.scale.cluster import ClusterSpec, Share
from draftrec.scale.workers import RayWorkers

if TYPE_CHECKING:
    from draftrec.models.encoders import Encoder


@dataclass(frozen=True, slots=True)
class EncodeWork:
    """Makes an encoder where it runs. A hashed one is fitted there, on the job's own inputs."""

    spec: EncodeSpec
    load: Loader = load_for_job

    def __call__(self) -> _EncodeWork:
        texts = EncodeInputs(self.spec).fit_texts() if self.spec.config.is_fitted else ()
        return _EncodeWork(self.load(self.spec.config, texts))


class _EncodeWork:
    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder

    @property
    def facts(self) -> EncoderFacts:
        return facts_of(self._encoder)

    def __call__(self, documents: Documents) -> Encoded:
        return self._encoder.encode_documents(documents, _unwatched)


class RayEncoders(RayWorkers):
    """Encoders on a cluster, two shards for each under way at a time."""

    def results(self, shards: Iterator[Documents], watch: Watch) -> Iterator[Encoded]:
        return self.fleet.results(shards, self.window)


def on_ray(cluster: ClusterSpec, note: Callable[[str], None], load: Loader = load_for_job) -> Hire:
    """The crew whose encoders are Ray actors."""

    def hire(inputs: EncodeInputs) -> EncodeCrew:
        return RayEncoders(
            cluster, lambda share: EncodeWork(_at_worker(inputs.spec, share), load), note
        )

    return hire


def _at_worker(spec: EncodeSpec, share: Share) -> EncodeSpec:
    """The same files, from wherever a worker runs, and its own device."""

    def found(location: str) -> str:
        return str(Path(location).absolute())

    encoder = spec.config.encoder
    own = {"device": share.device(spec.config.settings.device)}
    config = spec.config.model_copy(
        update={
            "encoder": found(encoder) if Path(encoder).exists() else encoder,
            "settings": spec.config.settings.model_copy(update=own),
        }
    )
    return replace(
        spec,
        config=config,
        input=found(spec.input),
        output=spec.output.absolute(),
        history=None if spec.history is None else found(spec.history),
        fit_on=tuple(map(found, spec.fit_on)),
    )


def _unwatched(done: int, total: int) -> None:
    pass
