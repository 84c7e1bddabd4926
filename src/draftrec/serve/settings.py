"""What the service is told: models, limits, keys. Unknown names are refused with a sentence."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationError,
    field_validator,
    model_validator,
)

from draftrec.config import GenerateConfig, ListenConfig, RecommendConfig
from draftrec.data.files.places import Place, here, place
from draftrec.data.files.remote import RemotePath
from draftrec.data.files.texts import read_yaml
from draftrec.data.sequences import USUAL, SequenceColumns
from draftrec.errors import DraftrecError

#: Of the key in deploy/serve.example.yaml.
_EXAMPLE = "e2186dbdb1bb4193608605e84f33208765b5693b55edd4f730a719a100eeea6f"
_SHA256 = re.compile(r"[0-9a-f]{64}")

_USUAL_USERS = 64

Count = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0.0)]
#: Of this machine, or anywhere. An address would lose a slash on its way into a plain Path.
Here = Annotated[Path, PlainValidator(lambda location: here(location))]
Anywhere = Annotated[Place, PlainValidator(lambda location: place(location))]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class RecommendSettings(_Frozen):
    """Whom `POST /v1/recommend` asks. `settings.k` is the most items that a request may ask for."""

    target: Here
    sids: Anywhere
    sequences: str | None = Field(
        default=None, description="their train part proposes items and answers who cannot wait"
    )
    draft: str = Field(default="none", description="a draft model's folder, items or none")
    item_model: Here | None = Field(
        default=None, description="an item model's folder, for settings' blend_item_model"
    )
    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    columns: SequenceColumns = Field(
        default=USUAL, description="names of the columns of sequences and sids, where not usual"
    )
    settings: RecommendConfig = RecommendConfig()

    @model_validator(mode="after")
    def _proposals_need_sequences(self) -> RecommendSettings:
        if self.draft == "items" and self.sequences is None:
            raise ValueError("draft: items needs sequences, from which items are proposed")
        if self.settings.blend is not None and self.sequences is None:
            raise ValueError("settings: blend needs sequences, to which item-item is fitted")
        if (self.item_model is None) != (self.settings.blend_item_model is None):
            raise ValueError("item_model and settings: blend_item_model belong together; give both")
        return self


class KnowledgeSettings(_Frozen):
    """Who answers `POST /v1/knowledge` and OpenAI's routes. `chat` None: where the tokenizer has a
    chat template."""

    generate: GenerateConfig
    name: str | None = Field(
        default=None, description="the model's, for clients of OpenAI's routes; None: its own"
    )
    pool: Here | None = None
    chat: bool | None = None

    @field_validator("generate")
    @classmethod
    def _one_text_each(cls, generate: GenerateConfig) -> GenerateConfig:
        if generate.accept.n > 1:
            raise ValueError("accept: n must be 1, as the service writes one text of each record")
        return generate


class LimitSettings(_Frozen):
    """What one request may ask for, and how much may wait."""

    body_bytes: Count = 1 << 20
    body_seconds: Seconds = Field(default=10.0, description="for a request to arrive whole")
    headers_seconds: Seconds = Field(
        default=10.0, description="for the headers of a request, from the connection on"
    )
    unread_seconds: Seconds = Field(
        default=60.0, description="for a client to read some more of an answer"
    )
    connections: Count = Field(
        default=1024, description="at once; the longest idle one gives way to a new one"
    )
    queue: Count = Field(default=256, description="users, or records, that wait for an engine")
    history: Count = Field(default=1000, description="items of a history")
    items: Count = Field(default=10_000, description="items of an allow or deny list")
    records: Count = 64
    users: Count | None = Field(
        default=None, description="of one request; None: 64, or queue where that is less"
    )
    prompt_tokens: Count = 2048
    prompt_chars: Count | None = Field(
        default=None, description="refused before tokenising; None: 32 for each of prompt_tokens"
    )
    deadline_ms: Count | None = Field(default=None, description="of requests that name none")

    @model_validator(mode="after")
    def _a_request_fits_into_the_queue(self) -> LimitSettings:
        if self.records > self.queue:
            raise ValueError("records must not be more than queue, or they could never wait in it")
        if (self.users or 0) > self.queue:
            raise ValueError("users must not be more than queue, or they could never wait in it")
        return self

    @property
    def most_users(self) -> int:
        """Of one request."""
        return self.users or min(_USUAL_USERS, self.queue)


class RateSettings(_Frozen):
    """A token bucket for every key, or for every client's address where there are no keys."""

    per_second: Seconds
    burst: Count = 20


class KeySettings(_Frozen):
    """An API key by its SHA-256, so that the file holds no secret. `admin`: may reload."""

    name: str
    sha256: str
    admin: bool = False

    @field_validator("sha256")
    @classmethod
    def _is_a_hash(cls, value: str) -> str:
        if value.lower() == _EXAMPLE:
            raise ValueError(
                'is that of "change-me", which everybody knows; choose a long random key'
            )
        if not _SHA256.fullmatch(value.lower()):
            raise ValueError("must be the 64 hexadecimal digits of a key's SHA-256")
        return value.lower()


class ServeSettings(ListenConfig):
    """Everything in the file that `--config` names."""

    threads: Count | None = Field(default=None, description="of torch; None: as many as it likes")
    recommend: RecommendSettings | None = None
    knowledge: KnowledgeSettings | None = None
    limits: LimitSettings = LimitSettings()
    keys: tuple[KeySettings, ...] = ()
    rate: RateSettings | None = None
    runs: tuple[Here, ...] = Field(
        default=(), description="folders of jobs that /dashboard shows beside the service"
    )
    trusted_proxies: tuple[str, ...] = Field(
        default=(), description="addresses or networks whose X-Forwarded-For is believed"
    )
    allowed_hosts: tuple[str, ...] = Field(
        default=(), description="names of Host headers that are answered; none named: any"
    )
    cors_origins: tuple[str, ...] = Field(
        default=(), description="origins whose pages may ask this service, such as https://shop"
    )
    monitoring: Literal["open", "key"] = Field(
        default="open",
        description="whether /metrics and /dashboard need a key",
    )
    drain_seconds: Seconds = Field(
        default=30.0, description="how long accepted requests may take after SIGTERM"
    )
    notice_seconds: Annotated[float, Field(ge=0.0)] = Field(
        default=0.0, description="how long /readyz says 503, at least, before the port closes"
    )
    log_contents: bool = Field(
        default=False, description="log histories, prompts and answers as well"
    )

    @model_validator(mode="after")
    def _names_are_distinct(self) -> ServeSettings:
        if len({key.name for key in self.keys}) < len(self.keys):
            raise ValueError("two keys have the same name; give each its own")
        return self

    @model_validator(mode="after")
    def _monitoring_has_keys(self) -> ServeSettings:
        if self.monitoring == "key" and not self.keys:
            raise ValueError("monitoring: key needs keys, and there are none; list some")
        return self


def load_settings(path: Place) -> ServeSettings:
    """The settings in a YAML file. Paths in it are relative to the working directory.

    Raises DraftrecError for a file that cannot be read, unknown names and impossible values.
    """
    values = read_yaml(path, "settings file")
    if not isinstance(values, dict):
        raise DraftrecError(f"settings file {path} must hold `name: value` lines")
    try:
        settings = ServeSettings.model_validate(values)
    except ValidationError as error:
        raise DraftrecError(f"settings file {path}: {sentence_of(error)}") from error
    if settings.recommend is None and settings.knowledge is None:
        raise DraftrecError(
            f"settings file {path}: there is nothing to serve; name recommend, knowledge or both"
        )
    return settings


def demo_settings() -> ServeSettings:
    """Of `--demo`: small models, which one thread computes fastest."""
    return ServeSettings(threads=1)


#: Settings that are texts and may say where something lies.
_PLACES = frozenset({"model", "drafter", "draft", "sequences"})


def shown_settings(settings: ServeSettings, *, paths: bool) -> dict[str, Any]:
    """The settings as JSON values, without keys and what is not set; without `paths`, files and
    folders by their names."""
    values = settings.model_dump(exclude={"keys"}, exclude_none=True)
    return _shown(values, "", str if paths else _name)


def _shown(value: Any, key: str, place: Callable[[Any], str]) -> Any:
    """A value as JSON has it, with what `place` makes of files and folders."""
    if isinstance(value, dict):
        return {name: _shown(found, name, place) for name, found in value.items()}
    if isinstance(value, (tuple, list)):
        return [_shown(found, key, place) for found in value]
    is_place = isinstance(value, str) and key in _PLACES and not _is_hub_id(value)
    return place(value) if is_place or isinstance(value, (Path, RemotePath)) else value


def _name(place: str | Place) -> str:
    return place.name if isinstance(place, RemotePath) else Path(place).name


def _is_hub_id(text: str) -> bool:
    """`owner/name`, of a model that is no folder here."""
    return text.count("/") == 1 and text[0] not in "./~" and not Path(text).exists()


def sentence_of(error: ValidationError) -> str:
    """Where the first problem is and what it is."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    # A model's word for it, and a dataclass's.
    if first["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"unknown name {place}; leave it out, or correct its spelling"
    message = first["msg"].removeprefix("Value error, ")
    return f"{place}: {message}" if place else message
