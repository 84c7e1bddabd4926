"""What an encoding job reads: texts, histories, and texts to fit an encoder on; and who encodes."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator
from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from draftrec.config import EncodeConfig
from draftrec.data.files.places import Place, place
from draftrec.data.records import Entity, EntityReader, Layout
from draftrec.data.tables.columns import ENTITY, TEXT, Join, find_column
from draftrec.data.tables.readers import RecordSource, open_records, run_manifest
from draftrec.data.tables.values import as_list
from draftrec.data.templates import facts_template
from draftrec.errors import DraftrecError
from draftrec.jobs.executor import Note, OnProgress, Share, ShouldStop, usual_window
from draftrec.models.encoders import Document, Encoded

if TYPE_CHECKING:
    from draftrec.models.encoders import Encoder

_LOG = logging.getLogger("draftrec")


@dataclass(frozen=True, slots=True)
class EncodeSpec:
    """What to do: the settings, and the files that they are applied to.

    `history`: records whose `history_column` joins the text of the same entity, behind it.
    `fit_on`: texts that the hashed encoder is fitted on, instead of those of `input`.
    """

    config: EncodeConfig
    input: str
    output: Place
    history: str | None = None
    fit_on: tuple[str, ...] = ()
    overwrite: bool = False


class EncodeInputs:
    """A job's inputs, opened and checked; nothing is written here. Histories are held in memory."""

    def __init__(self, spec: EncodeSpec) -> None:
        _refuse_unfinished(spec.input)
        source = _texts_of(spec.input)
        config = _fitted_to(source, spec.config)
        self.spec = spec = replace(spec, config=config)
        _check_output(spec, source)
        self.reader = EntityReader(source, self._layout_of(source))
        if self.reader.layout.template:
            _LOG.info("%s has no texts: what it says of each item is encoded", source.files[0])
        mend = (
            "name the columns with --id-column and --text-column, or give records with a title, "
            "as draftrec records --side item makes them"
        )
        source.require(self.reader.layout.required, mend)
        self.reader.check_columns()
        if spec.fit_on and not config.is_fitted:
            raise DraftrecError("--fit-on fits the hashed encoder; leave it out with another one")
        self._fit_on = [self._fit_reader(location) for location in spec.fit_on]
        history = open_records(spec.history) if spec.history else None
        self.histories = self._read_histories(history) if history else {}
        if history:
            self._check_join(source, str(spec.history))
        fit_digests = "".join(reader.source.fingerprint() for reader in self._fit_on)
        self.fingerprints: dict[str, str | None] = {
            "input": source.fingerprint(),
            "history": history.fingerprint() if history else None,
            "fit_on": hashlib.sha256(fit_digests.encode()).hexdigest() if spec.fit_on else None,
        }

    def document(self, entity: Entity) -> Document:
        """What is encoded of an entity."""
        return Document(entity.prompt, self.histories.get(entity.entity_id, ""))

    def fit_texts(self) -> Iterator[str]:
        """What a hashed encoder learns from: the texts of --fit-on, or those to encode."""
        for reader in self._fit_on or [self.reader]:
            for record in reader:
                if isinstance(record, Entity):
                    own = reader is self.reader
                    yield self.document(record).text if own else record.prompt

    def _layout_of(self, source: RecordSource) -> Layout:
        """Texts where there are any, else what records of items say of them."""
        config = self.spec.config
        layout = self._layout(config.text_column, "text")
        if source.has(config.text_column) or config.text_column != TEXT.usual:
            return layout
        told = facts_template()
        described = all(map(source.has, told.required_fields)) and not source.has("history")
        return replace(layout, template=told) if described else layout

    def _layout(self, column: str, noun: str) -> Layout:
        return Layout(entity_id=self.spec.config.id_column, prompt=column, noun=noun)

    def _fit_reader(self, location: str) -> EntityReader:
        source = _texts_of(location)
        layout = self._layout_of(source)
        source.require(layout.required, "texts of --fit-on need the columns of the others")
        return EntityReader(source, layout)

    def _check_join(self, source: RecordSource, history: str) -> None:
        """Raise where no text has a history, warn where few have."""
        id_column = self.spec.config.id_column
        example = next(iter(self.histories), "")
        join = Join("texts", self.spec.input, f"the histories of {history}", example)
        for row in source.rows([id_column]):
            entity_id = str(row.values.get(id_column))
            join.saw(entity_id, known=entity_id in self.histories)
        join.check()

    def _read_histories(self, source: RecordSource) -> dict[str, str]:
        layout = self._layout(self.spec.config.history_column, "history")
        source.require(layout.required, "name the column of the histories with --history-column")
        EntityReader(source, layout).check_ids()
        found: dict[str, str] = {}
        for row in source.rows(layout.required):
            value = row.values.get(layout.prompt)
            titles = as_list(value)
            text = _history_text(value if titles is None else titles)
            if text is None:
                raise DraftrecError(
                    f"{row.file} line {row.line}: {layout.prompt} is neither text nor a list of "
                    "texts or of objects with a title; name another column with --history-column"
                )
            if text:
                found[str(row.values.get(layout.entity_id))] = text
        return found


def _fitted_to(source: RecordSource, config: EncodeConfig) -> EncodeConfig:
    """With the columns that the texts have, as far as they were left to what is usual."""
    names = {"id_column": ENTITY, "text_column": TEXT}
    usual = {key: kind for key, kind in names.items() if getattr(config, key) == kind.usual}
    found = {key: find_column(source, kind) for key, kind in usual.items()}
    return config.model_copy(update={key: name for key, name in found.items() if name})


def settings_of(spec: EncodeSpec) -> dict[str, Any]:
    """Every setting under the name of its command-line option."""
    values = spec.config.model_dump(mode="json")
    flat = {**values.pop("settings"), **values}
    encoder = Path(flat["encoder"])
    if encoder.exists():
        flat["encoder"] = str(encoder.resolve())
    return dict(sorted(flat.items()))


def _texts_of(location: str) -> RecordSource:
    """Files with texts. A glob over a run's folder finds the statistics beside them as well."""
    source = open_records(location)
    texts = tuple(path for path in source.files if not path.name.startswith("stats-"))
    return replace(source, files=texts or source.files)


def _refuse_unfinished(location: str) -> None:
    """A run that goes on writing would make every vector so far one of another input."""
    run = run_manifest(place(location))
    if run and not run.get("finished"):
        raise DraftrecError(
            f"the run in {location} is not finished; give its generate command again, then encode"
        )


def _check_output(spec: EncodeSpec, source: RecordSource) -> None:
    if spec.output.suffix != ".parquet":
        raise DraftrecError(f"--output {spec.output} must end in .parquet")
    if spec.output.is_dir():
        raise DraftrecError(f"--output {spec.output} is a folder; name a file in it")
    if spec.output.resolve() in [path.resolve() for path in source.files]:
        raise DraftrecError(f"{spec.output} is the input; write the vectors to another file")


def _history_text(value: Any) -> str | None:
    """A history as text, empty where there is none; None for a value that cannot be one.

    Of a list, as a template takes it, the titles remain, a line each.
    """
    if value is None:
        return ""
    titles = [
        item.get("title") if isinstance(item, dict) else item
        for item in (value if isinstance(value, list) else [value])
    ]
    texts = [title for title in titles if isinstance(title, str)]
    if len(texts) < len(titles):
        return None
    # Half a surrogate pair, which no tokenizer can read, becomes a question mark.
    return "\n".join(texts).encode(errors="replace").decode()


#: Told how many records of how many are done.
Watch = Callable[[int, int], None]
Documents = Seq[Document]
#: Makes the encoder; the texts are those that a `hashed` one is fitted on.
Loader = Callable[[EncodeConfig, Iterable[str]], "Encoder"]


@dataclass(frozen=True, slots=True)
class EncoderFacts:
    """What a job records of the encoder that its workers have."""

    fingerprint: str
    dim: int
    pooling: str
    max_tokens: int | None


class EncodeWorker:
    """Encodes the texts of a shard."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder

    @property
    def facts(self) -> EncoderFacts:
        it = self._encoder
        return EncoderFacts(it.fingerprint, it.dim, it.pooling, it.max_tokens)

    def __call__(
        self,
        documents: Documents,
        on_progress: OnProgress | None = None,
        should_stop: ShouldStop | None = None,
        /,
    ) -> Encoded:
        """A row per document. Told is (done, of how many)."""

        def watch(done: int, of: int) -> None:
            if on_progress:
                on_progress((done, of))

        return self._encoder.encode_documents(documents, watch)

    def merged(self, progress: list[Any], /) -> list[Any]:
        """Nothing: whole shards are counted anyway."""
        return []


@dataclass(frozen=True, slots=True)
class EncodeWork:
    """Makes an encoder where it runs, unless it was `fitted` before: nodes with other processors
    would come to other last bits, and only the driver must see the texts."""

    config: EncodeConfig
    load: Loader
    texts: Callable[[], Iterable[str]] = tuple  # to fit on
    fitted: Encoder | None = None

    def __call__(self) -> EncodeWorker:
        return EncodeWorker(self.fitted or self.load(self.config, self.texts()))

    def window(self, workers: int, note: Note, /) -> int:
        return usual_window(workers)

    def placed(self, share: Share, /) -> EncodeWork:
        """The same model, from wherever a worker runs, and its own device."""
        config, model = self.config, Path(self.config.encoder)
        own = {
            "encoder": str(model.absolute()) if model.exists() else config.encoder,
            "settings": config.settings.model_copy(
                update={"device": share.device(config.settings.device)}
            ),
        }
        fitted = self.load(config, self.texts()) if config.is_fitted else None
        return EncodeWork(config.model_copy(update=own), self.load, fitted=fitted)


def load_for_job(config: EncodeConfig, fit_on: Iterable[str]) -> Encoder:
    """The encoder that a job asks for. Takes seconds: it imports PyTorch."""
    from draftrec.models.encoders import load_encoder

    return load_encoder(config.encoder, config.settings, fit_on)
