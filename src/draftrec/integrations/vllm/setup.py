"""What a proposer needs: its settings, facts about vLLM's engine, and a drafter of chains from
pools.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from draftrec.config import not_allowed
from draftrec.core import PROMPT, DraftTree, IntArray
from draftrec.data.files.places import here
from draftrec.errors import DraftrecError
from draftrec.integrations.vllm.rows import PromptGroups, RunningText
from draftrec.models import loading
from draftrec.pool.drafter import WEIGHTS, pool_sources
from draftrec.pool.files import existing, read_manifest
from draftrec.pool.index import Source, TreeBuilder, tail_of_text, warm_up
from draftrec.pool.ngrams import ORDER
from draftrec.pool.store import LevelName, Pool

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


# Nodes of the tree that a chain of so many tokens is chosen from: see `ChainDrafter`.
_NODES_PER_TOKEN = 2
_BYTES_PER_TOKEN = 46  # of a pool with both levels


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """`fingerprint`: the tokenizer's, "" where the engine has none. `eos_ids` end a text."""

    draft_tokens: int
    max_model_len: int
    max_num_seqs: int
    fingerprint: str
    eos_ids: frozenset[int]


def read_engine(vllm_config: Any) -> EngineFacts:
    """What the engine's configuration says. Raises DraftrecError if it cannot be served."""
    model = vllm_config.model_config
    tokens = vllm_config.speculative_config.num_speculative_tokens
    check_tokens(tokens)
    fingerprint, eos_ids = "", _eos_ids(model)
    if not model.skip_tokenizer_init:
        tokenizer = loading.load_tokenizer(model.tokenizer)
        fingerprint = loading.tokenizer_fingerprint(tokenizer)
        if isinstance(tokenizer.eos_token_id, int):
            eos_ids |= {tokenizer.eos_token_id}
    return EngineFacts(
        draft_tokens=tokens,
        max_model_len=model.max_model_len,
        max_num_seqs=vllm_config.scheduler_config.max_num_seqs,
        fingerprint=fingerprint,
        eos_ids=eos_ids,
    )


def _eos_ids(model: Any) -> frozenset[int]:
    """Those of the generation settings and of the model."""
    found: set[int] = set()
    for ids in (
        model.try_get_generation_config().get("eos_token_id"),
        getattr(model.hf_text_config, "eos_token_id", None),
    ):
        found.update([] if ids is None else [ids] if isinstance(ids, int) else ids)
    return frozenset(found)


def make_drafter(settings: ProposerSettings, engine: EngineFacts) -> ChainDrafter:
    """Raises DraftrecError for a missing or damaged pool, PoolMismatchError for a foreign one."""
    pool = None
    if settings.pool is not None:
        pool = Pool.load(Path(settings.pool), engine.fingerprint or None)
    groups = PromptGroups.load(Path(settings.groups)) if settings.groups else None
    if groups and pool and not pool.groups and not settings.grow:
        raise DraftrecError(
            f"The pool {settings.pool} was built without groups; leave out the file of prompt "
            "groups, or build the pool with --groups."
        )
    warm_up()
    return ChainDrafter(
        Pools(pool, engine.fingerprint, settings.max_grown_tokens if settings.grow else 0),
        groups,
        TreeBuilder(least_prob=settings.min_prob),
        engine.eos_ids,
    )


class Pools:
    """A pool that stays as it is, and beside it one of texts finished since: sorting these again
    and again must not take longer the larger the first one is."""

    def __init__(self, pool: Pool | None, fingerprint: str, grown_tokens: int) -> None:
        self.pool = pool
        self.grown_bytes = grown_tokens * _BYTES_PER_TOKEN
        self.grown = Pool(fingerprint, max_bytes=self.grown_bytes)

    def sources(self, group: str | None) -> list[tuple[LevelName, Any]]:
        """Indexes with their level, as `Pool.sources`."""
        found = [] if self.pool is None else self.pool.sources(group)
        return [*found, *self.grown.sources(group)]

    def add(self, text: IntArray, group: str | None) -> None:
        """Keep a finished text. When there is no more room, the older half goes; a text that would
        not fit into that half is left out."""
        if not len(text) or len(text) * _BYTES_PER_TOKEN > self.grown_bytes // 2:
            return
        if self.grown.add([(text, group)]) == 0:
            self.grown = self.grown.prune(self.grown_bytes // 2)
            self.grown.add([(text, group)])


class ChainDrafter:
    """The most promising chains that pools and running texts know.

    vLLM verifies one chain per row. Of a tree of `_NODES_PER_TOKEN` times as many nodes as there
    are tokens, drawn best first, that path is taken whose nodes' probabilities have the largest
    sum: the expected number of accepted tokens.
    """

    def __init__(
        self,
        pools: Pools,
        groups: PromptGroups | None,
        builder: TreeBuilder,
        eos_ids: frozenset[int],
    ) -> None:
        self.pools, self.groups, self.builder, self.eos_ids = pools, groups, builder, eos_ids

    def draft(self, texts: Seq[RunningText], tokens: int) -> list[list[int]]:
        """A chain of at most `tokens` token ids for each text."""
        sources = [self._sources(text) for text in texts]
        trees = self.builder.build_many(sources, _NODES_PER_TOKEN * tokens, tokens)
        return [best_chain(tree, self.eos_ids) for tree in trees]

    def group_of(self, prompt_ids: IntArray) -> str | None:
        """The group that a prompt's first tokens are known for."""
        return None if self.groups is None else self.groups.of_prompt(prompt_ids)

    def finished(self, text: RunningText) -> None:
        """Draft from the text from now on, if the pool may grow."""
        self.pools.add(text.text.copy(), text.group)

    def _sources(self, text: RunningText) -> list[Source]:
        tail = tail_of_text(text.text)
        own: Source = (text.own, text.context[-ORDER:], WEIGHTS[PROMPT], PROMPT)
        return [own, *pool_sources(self.pools.sources(text.group), tail)]


def best_chain(tree: DraftTree, eos_ids: frozenset[int]) -> list[int]:
    """Tokens of the path with most expected accepted ones, up to the first EOS."""
    if not len(tree):
        return []
    parents, sums = tree.parents.tolist(), tree.probs.tolist()
    for node, parent in enumerate(parents):
        if parent >= 0:
            sums[node] += sums[parent]
    node = int(np.argmax(sums))
    chain: list[int] = []
    while node >= 0:
        chain.append(int(tree.token_ids[node]))
        node = parents[node]
    chain.reverse()
    ends = [place for place, token in enumerate(chain) if token in eos_ids]
    return chain[: ends[0] + 1] if ends else chain
