"""Who encodes the shards of a job. The local crew is one encoder in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from draftrec.config import EncodeConfig
from draftrec.knowledge.encode_inputs import EncodeInputs
from draftrec.models.documents import Document, Encoded

if TYPE_CHECKING:
    from draftrec.models.encoders import Encoder

#: Told how many records of how many are done.
Watch = Callable[[int, int], None]
Documents = Seq[Document]
#: Makes the encoder; the texts are those that a `hashed` one is fitted on.
Loader = Callable[[EncodeConfig, Iterable[str]], "Encoder"]
#: Finds a crew for a job's inputs.
Hire = Callable[[EncodeInputs], "EncodeCrew"]


@dataclass(frozen=True, slots=True)
class EncoderFacts:
    """What a job records of the encoder that its workers have."""

    fingerprint: str
    dim: int
    pooling: str
    max_tokens: int | None


class EncodeCrew(Protocol):
    """Encodes shards in any order, and gives them back in theirs."""

    @property
    def facts(self) -> EncoderFacts: ...

    def results(self, shards: Iterator[Documents], watch: Watch) -> Iterator[Encoded]:
        """A row per document of each shard. `watch` is told how much of the next one is done."""
        ...

    def close(self) -> None: ...


class LocalEncoder:
    """One encoder, in this process."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder

    @property
    def facts(self) -> EncoderFacts:
        return facts_of(self._encoder)

    def results(self, shards: Iterator[Documents], watch: Watch) -> Iterator[Encoded]:
        return (self._encoder.encode_documents(shard, watch) for shard in shards)

    def close(self) -> None:
        pass


def facts_of(encoder: Encoder) -> EncoderFacts:
    """What is to be recorded of an encoder."""
    return EncoderFacts(encoder.fingerprint, encoder.dim, encoder.pooling, encoder.max_tokens)


def load_for_job(config: EncodeConfig, fit_on: Iterable[str]) -> Encoder:
    """The encoder that a job asks for. Takes seconds: it imports PyTorch."""
    from draftrec.models.encoders import load_encoder

    return load_encoder(config.encoder, config.settings, fit_on)


def local(load: Loader) -> Hire:
    """The crew that is the encoder which `load` makes."""
    return lambda inputs: LocalEncoder(load(inputs.spec.config, inputs.fit_texts()))
