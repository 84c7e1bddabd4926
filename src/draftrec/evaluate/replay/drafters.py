"""What replay compares: the pool as `generate` uses it, parts of it, and drafters from elsewhere.

Those are named `module:Class`: called with the tokenizer, it gives a `ReplayDrafter`. The rivals in
`benchmarks/rivals` are such classes, which have names of their own.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Seq
from importlib import import_module
from pathlib import Path
from typing import Any

from draftrec.core import DraftTree, SequenceView, Verdict
from draftrec.data.files.places import place
from draftrec.errors import DraftrecError
from draftrec.evaluate.replay.loop import PoolText, ReplayDrafter
from draftrec.pool.drafter import PoolDrafter
from draftrec.pool.store import Pool

#: Makes a drafter that has no texts yet for the tokens of a tokenizer.
Maker = Callable[[Any], ReplayDrafter]

#: Name -> what drafts, in the order in which `--help` has them.
OWN: dict[str, Maker] = {
    "pool": lambda _: FromPool(_empty()),
    "all": lambda _: FromPool(_empty(), grouped=False),
    "group": lambda _: PerGroup(lambda: FromPool(_empty())),
    "prompt": lambda _: FromPrompt(),
}
_TRIE = "rivals.published_trie:of_tokenizer"
#: Rivals' names -> where they are, seen from `benchmarks/`, and whether every group has its own.
RIVALS = {
    "ngram": ("rivals.ngram:NgramDrafter", False),
    "trie": (_TRIE, False),
    "trie-group": (_TRIE, True),
}
NAMES = (*OWN, *RIVALS)
#: Those that can draft from a pool's folder; the others need the texts.
FROM_FOLDER = ("pool", "prompt")

_NEEDED = ("start", "draft", "observe", "stop", "add", "tokens", "nbytes", "names_sources")
_BENCHMARKS = Path(__file__).parents[4] / "benchmarks"


class FromPool(PoolDrafter):
    """A pool and the drafter of `generate`. `grouped` False leaves the level of groups out."""

    names_sources = True
    pool: Pool

    def __init__(self, pool: Pool, *, grouped: bool = True) -> None:
        super().__init__(pool)
        self.grouped = grouped

    @property
    def tokens(self) -> int:
        return self.pool.tokens

    @property
    def nbytes(self) -> int:
        return self.pool.nbytes

    def add(self, texts: Iterable[PoolText]) -> None:
        """Add finished texts."""
        self.pool.add((ids, group if self.grouped else None) for ids, group in texts)


class FromPrompt(PoolDrafter):
    """Drafts from the prompt, the running text and the previous text; finished texts are lost."""

    names_sources = True
    tokens = 0
    nbytes = 0

    def add(self, texts: Iterable[PoolText]) -> None:
        """Nothing is kept."""


class PerGroup:
    """A drafter of its own for every group: each sequence drafts from its group's texts only."""

    def __init__(self, make: Callable[[], ReplayDrafter]) -> None:
        self._make = make
        self._drafters: dict[str | None, ReplayDrafter] = {}
        self.names_sources = make().names_sources

    @property
    def tokens(self) -> int:
        return sum(drafter.tokens for drafter in self._drafters.values())

    @property
    def nbytes(self) -> int | None:
        known = [drafter.nbytes for drafter in self._drafters.values()]
        return None if None in known else sum(n for n in known if n is not None)

    def add(self, texts: Iterable[PoolText]) -> None:
        """Add each text to its group's drafter."""
        by_group: dict[str | None, list[PoolText]] = {}
        for ids, group in texts:
            by_group.setdefault(group, []).append((ids, None))
        for group, own in by_group.items():
            self._of(group).add(own)

    def start(self, sequence: SequenceView) -> None:
        """Let its group's drafter prepare the sequence."""
        self._of(sequence.request.group).start(sequence)

    def draft(self, batch: Seq[SequenceView], limit: int, depth: int) -> list[DraftTree]:
        """One tree per sequence."""
        return [self._of(s.request.group).draft([s], limit, depth)[0] for s in batch]

    def observe(self, batch: Seq[SequenceView], verdicts: Seq[Verdict]) -> None:
        """Pass on what was just written."""
        for sequence, verdict in zip(batch, verdicts, strict=True):
            self._of(sequence.request.group).observe([sequence], [verdict])

    def stop(self, sequence: SequenceView) -> None:
        """Forget the sequence."""
        self._of(sequence.request.group).stop(sequence)

    def _of(self, group: str | None) -> ReplayDrafter:
        if group not in self._drafters:
            self._drafters[group] = self._make()
        return self._drafters[group]


def maker_of(name: str) -> Maker:
    """What makes the drafter of that name, or `module:Class`.

    Raises DraftrecError for an unknown name, for what cannot be imported, and for a rival's name
    outside a checkout.
    """
    if name in OWN:
        return OWN[name]
    if name in RIVALS:
        if not (_BENCHMARKS / "rivals").is_dir():
            raise DraftrecError(
                f"drafter {name!r} is not part of the package: it lies in benchmarks/rivals of its "
                "source; it is found where draftrec is installed from a checkout (pip install -e .)"
            )
        where, grouped = RIVALS[name]
        make = _imported(where, _BENCHMARKS)
        return (lambda tokenizer: PerGroup(lambda: make(tokenizer))) if grouped else make
    if _is_learned(name):
        raise DraftrecError(
            f"--drafter {name} is a learned drafter, which goes by what the model computes, and "
            "recorded texts hold none of that; measure it with `draftrec tune RECORDS --model "
            f"MODEL --drafter {name}`"
        )
    if ":" not in name:
        raise DraftrecError(
            f"there is no drafter {name!r}; choose from {', '.join(NAMES)}, or name a class of "
            "your own as module:Class"
        )
    make = _imported(name, Path.cwd())

    def made(tokenizer: Any) -> ReplayDrafter:
        drafter = make(tokenizer)
        if lacking := [part for part in _NEEDED if not hasattr(drafter, part)]:
            raise DraftrecError(
                f"{name} has no {lacking[0]}; a drafter to replay needs what ReplayDrafter in "
                "draftrec.evaluate.replay.loop names"
            )
        return drafter

    return made


def _is_learned(name: str) -> bool:
    """Is it a folder of `draftrec drafter fit`?"""
    from draftrec.models.drafters import INFO_FILE

    return (place(name) / INFO_FILE).is_file()


def _imported(where: str, folder: Path) -> Maker:
    """What `module:Class` names; the module may lie in `folder`."""
    module, _, name = where.partition(":")
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise DraftrecError(
            f"--drafter {where} cannot be imported ({error}); give module:Class, of a module that "
            "is installed or lies in this folder"
        ) from error


def _empty() -> Pool:
    # Replay gets all its texts through one tokenizer, so there is nothing to tell apart.
    return Pool("replay")
