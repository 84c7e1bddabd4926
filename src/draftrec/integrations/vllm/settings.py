"""Settings of the pool inside vLLM: how they get there, and what is refused."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from draftrec.data.files.places import here
from draftrec.errors import DraftrecError
from draftrec.knobs import not_allowed
from draftrec.pool.files import existing, read_manifest

#: The key of vLLM's `additional_config` that holds the settings.
EXTENSION = "draftrec"
#: Names the pool's folder where `additional_config` says nothing: `DRAFTREC_POOL=pool vllm serve`.
VARIABLE = "DRAFTREC_POOL"
#: vLLM's rejection sampler has room for so many draft tokens per row.
MOST_TOKENS = 128


class ProposerSettings(BaseModel):
    """What is drafted from, and how far."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pool: str | None = Field(default=None, description="folder of a pool")
    groups: str | None = Field(default=None, description="file that `write_groups` wrote")
    grow: bool = Field(default=False, description="draft from texts finished meanwhile as well")
    min_prob: Annotated[float, Field(ge=0.001, le=1.0)] = Field(
        default=0.05, description="a draft ends where its probability would fall below this"
    )
    max_grown_tokens: Annotated[int, Field(ge=1)] = Field(
        default=1_000_000, description="finished texts that are kept; the older half makes room"
    )


def parsed(values: Mapping[str, Any]) -> ProposerSettings:
    """Raises DraftrecError, in one sentence, for values that are not allowed."""
    try:
        settings = ProposerSettings.model_validate(dict(values))
    except ValidationError as error:
        raise DraftrecError(
            f"{not_allowed(error)}; see draftrec.integrations.vllm.ProposerSettings."
        ) from error
    if settings.pool is None and not settings.grow:
        raise DraftrecError(
            "vLLM has nothing to draft from: name a pool's folder with engine_args(pool=...), in "
            f'additional_config {{"{EXTENSION}": {{"pool": ...}}}} or in {VARIABLE}, or set grow '
            "to start with an empty one."
        )
    return settings


def from_vllm(vllm_config: Any) -> ProposerSettings:
    """The settings of an engine: those in its `additional_config`, else the environment's pool."""
    extra = getattr(vllm_config, "additional_config", None)
    found = extra.get(EXTENSION) if isinstance(extra, Mapping) else None
    if found is None:
        found = {"pool": os.environ.get(VARIABLE)}
    if not isinstance(found, Mapping):
        raise DraftrecError(
            f"additional_config[{EXTENSION!r}] is a {type(found).__name__} and must be an object "
            'with settings, {"pool": "folder"} for example.'
        )
    return parsed(found)


def check_tokens(count: int) -> None:
    """Raises DraftrecError for a number of draft tokens that vLLM cannot verify at once."""
    if not 1 <= count <= MOST_TOKENS:
        raise DraftrecError(
            f"{count} draft tokens per step are not possible: vLLM verifies 1 to {MOST_TOKENS}; "
            "set k (num_speculative_tokens) to 16 or so."
        )


def check_pool(settings: ProposerSettings) -> None:
    """Raises DraftrecError if a named file is missing, or the pool is damaged at first sight."""
    if settings.pool is not None:
        read_manifest(existing(here(settings.pool, "a pool")))
    if settings.groups is not None and not here(settings.groups, "groups").is_file():
        raise DraftrecError(
            f"The file of prompt groups {settings.groups} does not exist; write it with "
            "draftrec.integrations.vllm.write_groups."
        )
