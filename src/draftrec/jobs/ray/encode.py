"""`draftrec encode --engine ray`: the encoders of a job on a cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from draftrec.config import EncodeConfig
from draftrec.jobs.encode.inputs import (
    Documents,
    EncodeCrew,
    EncodeInputs,
    EncoderFacts,
    Hire,
    Loader,
    Watch,
    facts_of,
    load_for_job,
)
from draftrec.jobs.ray.cluster import ClusterSpec, Share
from draftrec.jobs.ray.workers import RayWorkers
from draftrec.models.documents import Encoded

if TYPE_CHECKING:
    from draftrec.models.encoders import Encoder


@dataclass(frozen=True, slots=True)
class EncodeWork:
    """Makes an encoder where it runs, unless it was `fitted` before: nodes with other processors
    would come to other last bits, and only the driver must see the texts."""

    config: EncodeConfig
    load: Loader
    fitted: Encoder | None

    def __call__(self) -> _EncodeWork:
        return _EncodeWork(self.fitted or self.load(self.config, ()))


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
        config = inputs.spec.config

        def work(share: Share) -> EncodeWork:
            fitted = load(config, inputs.fit_texts()) if config.is_fitted else None
            return EncodeWork(_at_worker(config, share), load, fitted)

        return RayEncoders(cluster, work, note)

    return hire


def _at_worker(config: EncodeConfig, share: Share) -> EncodeConfig:
    """The same model, from wherever a worker runs, and its own device."""
    own = {"device": share.device(config.settings.device)}
    model = Path(config.encoder)
    return config.model_copy(
        update={
            "encoder": str(model.absolute()) if model.exists() else config.encoder,
            "settings": config.settings.model_copy(update=own),
        }
    )


def _unwatched(done: int, total: int) -> None:
    pass
