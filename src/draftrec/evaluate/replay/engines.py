"""Engines for replay: the pool as `generate` uses it, parts of it, and simple rivals."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from collections.abc import Sequence as Seq
from typing import Any

from draftrec.core import Drafter, DraftTree, SequenceView, Verdict
from draftrec.errors import DraftrecError
from draftrec.evaluate.replay.loop import Engine, PoolText
from draftrec.evaluate.replay.ngram_drafter import NgramEngine
from draftrec.evaluate.replay.published_trie import PublishedTrie, SpecialTokens
from draftrec.pool.drafter import PoolDrafter
from draftrec.pool.store import Pool

# Rivals' stop words: tokens that say nothing about what follows.
_STOP_WORDS = (",", ".", " ", "\n")


class PoolEngine:
    """Pool and PoolDrafter, the classes that `generate` uses.

    `grouped` False leaves the level of groups out.
    """

    names_sources = True

    def __init__(self, pool: Pool, *, grouped: bool = True) -> None:
        self.pool, self.grouped = pool, grouped
        self.drafter = PoolDrafter(pool)

    @property
    def tokens(self) -> int:
        return self.pool.tokens

    @property
    def nbytes(self) -> int:
        return self.pool.nbytes

    def add(self, texts: Iterable[PoolText]) -> None:
        """Add finished texts."""
        self.pool.add((ids, group if self.grouped else None) for ids, group in texts)


class PromptEngine:
    """Drafts from the prompt, the running text and the previous text; finished texts are lost."""

    names_sources = True
    tokens = 0
    nbytes = 0

    def __init__(self) -> None:
        self.drafter = PoolDrafter(None)

    def add(self, texts: Iterable[PoolText]) -> None:
        """Nothing is kept."""


class PerGroup:
    """An engine of its own for every group: each sequence drafts from its group's texts only."""

    def __init__(self, make: Callable[[], Engine]) -> None:
        self._make = make
        self._engines: dict[str | None, Engine] = {}
        self.names_sources = make().names_sources

    @property
    def drafter(self) -> Drafter:
        return self

    @property
    def tokens(self) -> int:
        return sum(engine.tokens for engine in self._engines.values())

    @property
    def nbytes(self) -> int | None:
        known = [engine.nbytes for engine in self._engines.values()]
        return None if None in known else sum(n for n in known if n is not None)

    def add(self, texts: Iterable[PoolText]) -> None:
        """Add each text to its group's engine."""
        by_group: dict[str | None, list[PoolText]] = {}
        for ids, group in texts:
            by_group.setdefault(group, []).append((ids, None))
        for group, own in by_group.items():
            self._of(group).add(own)

    def start(self, sequence: SequenceView) -> None:
        """Prepare the sequence in its group's engine."""
        self._of(sequence.request.group).drafter.start(sequence)

    def draft(self, batch: Seq[SequenceView], limit: int, depth: int) -> list[DraftTree]:
        """One tree per sequence."""
        return [self._of(s.request.group).drafter.draft([s], limit, depth)[0] for s in batch]

    def observe(self, batch: Seq[SequenceView], verdicts: Seq[Verdict]) -> None:
        """Pass on what was just written."""
        for sequence, verdict in zip(batch, verdicts, strict=True):
            self._of(sequence.request.group).drafter.observe([sequence], [verdict])

    def stop(self, sequence: SequenceView) -> None:
        """Forget the sequence."""
        self._of(sequence.request.group).drafter.stop(sequence)

    def _of(self, group: str | None) -> Engine:
        if group not in self._engines:
            self._engines[group] = self._make()
        return self._engines[group]


def special_tokens(tokenizer: Any) -> SpecialTokens:
    """BOS, EOS and the ids of lone stop words, for engines that treat them apart."""
    encoded = tokenizer(list(_STOP_WORDS), add_special_tokens=False, verbose=False).input_ids
    stops = frozenset(ids[0] for ids in encoded if len(ids) == 1)
    return SpecialTokens(tokenizer.bos_token_id, tokenizer.eos_token_id, stops)


#: Engine -> what it is, in the order in which `--help` names them.
ENGINES = {
    "pool": "as in generate: prompt and running text, previous text, group, all groups",
    "all": "the same without the level of groups",
    "group": "the same with the sequence's own group only",
    "prompt": "the same without any pool",
    "ngram": "longest match of the last tokens, its continuations by frequency",
    "trie": "the published retrieval trie over all texts, in plain Python (slow)",
    "trie-group": "the same, one per group as published",
}
#: Engines that can draft from a pool's folder; the others need the texts.
FROM_POOL = ("pool", "prompt")


def make_engine(name: str, special: SpecialTokens, pool: Pool | None = None) -> Engine:
    """A new engine; `pool` is what "pool" starts from. Raises DraftrecError for an unknown name."""
    if name not in ENGINES:
        raise DraftrecError(f"there is no drafter {name!r}; choose from {', '.join(ENGINES)}")
    makers: dict[str, Callable[[], Engine]] = {
        "pool": lambda: PoolEngine(pool or _empty()),
        "all": lambda: PoolEngine(_empty(), grouped=False),
        "group": lambda: PerGroup(lambda: PoolEngine(_empty())),
        "prompt": PromptEngine,
        "ngram": NgramEngine,
        "trie": lambda: PublishedTrie(special),
        "trie-group": lambda: PerGroup(lambda: PublishedTrie(special)),
    }
    return makers[name]()


def _empty() -> Pool:
    # Replay gets all its texts through one tokenizer, so there is nothing to tell apart.
    return Pool("replay")
