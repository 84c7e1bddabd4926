"""What a proposer needs: facts about the engine, and a drafter of chains from pools."""

from __future__ import annotations

import logging
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from draftrec.core import PROMPT, DraftTree, IntArray
from draftrec.errors import DraftrecError, PoolOverwrittenError
from draftrec.integrations.vllm.rows import PromptGroups, RunningText
from draftrec.integrations.vllm.settings import ProposerSettings, check_tokens
from draftrec.models import loading
from draftrec.pool.drafter import WEIGHTS, pool_sources
from draftrec.pool.index import Source, TreeBuilder, tail_of_text, warm_up
from draftrec.pool.ngrams import ORDER
from draftrec.pool.store import LevelName, Pool

_LOG = logging.getLogger(__name__)
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
        self.grown_tokens = grown_tokens
        self.grown = Pool(fingerprint, max_bytes=grown_tokens * _BYTES_PER_TOKEN)

    def sources(self, group: str | None) -> list[tuple[LevelName, Any]]:
        """Indexes with their level, as `Pool.sources`."""
        found: list[tuple[LevelName, Any]] = []
        try:
            found = [] if self.pool is None else self.pool.sources(group)
        except PoolOverwrittenError as error:
            _LOG.error("%s Until then nothing is drafted from it.", error)
            self.pool = None
        return [*found, *self.grown.sources(group)]

    def add(self, text: IntArray, group: str | None) -> None:
        """Keep a finished text. When there is no more room, the older half goes; a text that would
        not fit into that half is left out."""
        if not len(text) or len(text) > self.grown_tokens // 2:
            return
        while self.grown.tokens + len(text) > self.grown_tokens:
            self.grown = self.grown.prune(self.grown.held_bytes // 2)
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
