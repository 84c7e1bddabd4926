"""The retrieval trie of the method that draftrec replaces, as published (arXiv 2408.05676).

Written anew from its description, in plain Python and slow as published: it is here to be compared
with. Every position of a text starts a branch of up to 13 tokens below a tree for its first token;
a lookup takes the last two tokens, or the last one, and enumerates the whole subtree below. EOS is
never stored. Live prompts count ten thousand times as much as stored texts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from typing import Any

from draftrec.core import EMPTY_TREE, DraftTree, IntArray, SequenceView, Verdict
from draftrec.engine.tree import make_tree

# Levels below the matched tokens that are stored and drafted.
_BRANCH = 12
_INPUT_WEIGHT, _OUTPUT_WEIGHT = 0.9999, 0.0001
# Tokens that say nothing about what follows.
_STOP_WORDS = (",", ".", " ", "\n")
# Sizes past which a tree is thinned out, and after how many trees were touched that is looked at.
_MOST_NODES, _MOST_OUTPUT_NODES, _TOUCHED = 2048, 1024, 1024


class Node:
    """How often its path occurred in stored texts and in live prompts, and what followed."""

    __slots__ = ("children", "inputs", "outputs")

    def __init__(self) -> None:
        self.outputs = 0
        self.inputs = 0
        self.children: dict[int, Node] = {}

    @property
    def weight(self) -> float:
        return _INPUT_WEIGHT * self.inputs + _OUTPUT_WEIGHT * self.outputs

    @property
    def alive(self) -> bool:
        return self.inputs > 0 or self.outputs > 0


@dataclass(frozen=True, slots=True)
class SpecialTokens:
    """BOS and EOS where the tokenizer has them, and words too common to look up alone."""

    bos: int | None = None
    eos: int | None = None
    stops: frozenset[int] = frozenset()


def special_tokens(tokenizer: Any) -> SpecialTokens:
    """BOS, EOS and the ids of lone stop words."""
    encoded = tokenizer(list(_STOP_WORDS), add_special_tokens=False, verbose=False).input_ids
    stops = frozenset(ids[0] for ids in encoded if len(ids) == 1)
    return SpecialTokens(tokenizer.bos_token_id, tokenizer.eos_token_id, stops)


def of_tokenizer(tokenizer: Any) -> PublishedTrie:
    """An empty trie of a tokenizer's tokens."""
    return PublishedTrie(special_tokens(tokenizer))


@dataclass(slots=True)
class _Live:
    """What a running sequence added: taken out again when it ends."""

    inputs: list[Node] = field(default_factory=list)
    outputs: list[Node] = field(default_factory=list)
    pending: list[int] = field(default_factory=list)


class PublishedTrie:
    """The pool of one group, or of all texts if it is the only one.

    A sequence's own text streams into the pool as it is written, and stays there only if it is
    added when it is finished: otherwise results would depend on the order of texts.
    """

    names_sources = False
    nbytes = None

    def __init__(self, special: SpecialTokens = SpecialTokens()) -> None:
        self.special = special
        self.trees: dict[int, Node] = {}
        self.tokens = 0
        self._touched: set[int] = set()
        self._live: dict[int, _Live] = {}

    def add(self, texts: Iterable[tuple[IntArray, str | None]]) -> None:
        """Store finished texts; groups make no difference here."""
        for ids, _ in texts:
            for node in self._insert(self._until_eos(ids.tolist())):
                node.outputs += 1
            self.tokens += len(ids)

    def start(self, sequence: SequenceView) -> None:
        """Store the prompt without BOS as input."""
        ids = sequence.request.prompt_ids.tolist()
        live = _Live(inputs=list(self._insert(ids[ids[:1] == [self.special.bos] :])))
        for node in live.inputs:
            node.inputs += 1
        self._live[id(sequence)] = live

    def draft(self, batch: Seq[SequenceView], limit: int, depth: int) -> list[DraftTree]:
        """One tree per sequence, at most `limit` nodes, 12 levels and `depth`."""
        return [self._tree(s.context, limit, min(depth, _BRANCH)) for s in batch]

    def observe(self, batch: Seq[SequenceView], verdicts: Seq[Verdict]) -> None:
        """Store what was just written as output, as far as its branches are complete."""
        for sequence, verdict in zip(batch, verdicts, strict=True):
            live = self._live[id(sequence)]
            live.pending += self._until_eos(verdict.token_ids.tolist())
            while len(live.pending) > _BRANCH + 1:
                first = live.pending[0]
                if first not in self.special.stops:
                    added = list(self._branch(first, live.pending[1 : _BRANCH + 2]))
                    live.outputs += added
                    for node in added:
                        node.outputs += 1
                del live.pending[0]

    def stop(self, sequence: SequenceView) -> None:
        """Take the sequence's counts out, and thin out trees that have grown too large."""
        live = self._live.pop(id(sequence))
        for node in live.inputs:
            node.inputs -= 1
        for node in live.outputs:
            node.outputs -= 1
        if len(self._touched) >= _TOUCHED:
            for root in self._touched:
                _thin_out(self.trees[root])
            self._touched.clear()

    def _until_eos(self, ids: list[int]) -> list[int]:
        return ids[: ids.index(self.special.eos)] if self.special.eos in ids else ids

    def _insert(self, ids: list[int]) -> Iterator[Node]:
        """Nodes of all branches of a text, made where they are missing."""
        for i in range(len(ids) - 1):
            yield from self._branch(ids[i], ids[i + 1 : i + _BRANCH + 2])

    def _branch(self, root: int, ids: list[int]) -> Iterator[Node]:
        self._touched.add(root)
        node = self.trees.setdefault(root, Node())
        for token in ids:
            below = node.children.get(token)
            if below is None:
                below = node.children[token] = Node()
            node = below
            yield node

    def _tree(self, context: IntArray, limit: int, depth: int) -> DraftTree:
        """What follows the last two tokens, or, where that is little, the last one."""
        last, found = context[-2:].tolist(), EMPTY_TREE
        for suffix in (last, last[-1:])[len(last) < 2 :]:
            if len(suffix) == 1 and suffix[0] in self.special.stops:
                continue
            node = self._find(suffix)
            found = EMPTY_TREE if node is None else _most_frequent(node, limit, depth)
            # As published, for 64 nodes: 12 with the root. A smaller budget is enough when full.
            if len(found) + 1 >= min(_BRANCH, limit + 1):
                break
        return found

    def _find(self, suffix: list[int]) -> Node | None:
        node = self.trees.get(suffix[0])
        for token in suffix[1:]:
            node = node and node.children.get(token)
            if node is None or not node.alive:
                return None
        return node


def _below(node: Node) -> list[Node]:
    """All live nodes below `node`: the enumeration whose cost grows with the pool."""
    found: list[Node] = []
    queue = [node]
    while queue:
        alive = [child for child in queue.pop().children.values() if child.alive]
        found += alive
        queue += alive
    return found


def _thresholds(nodes: list[Node], limit: int) -> tuple[float, float]:
    """Least output count and least weight of the nodes to keep, about `limit` with the root.

    Half of the places go to the most frequent outputs, the rest to the heaviest of the others.
    """
    size = limit + 1
    if len(nodes) <= size:
        return 0.0, 0.0
    outputs = sorted((n.outputs for n in nodes), reverse=True)
    least_output = max(outputs[size // 2 - 1], 1)
    others = sorted((n.weight for n in nodes if n.outputs < least_output), reverse=True)
    left = size - (len(nodes) - len(others))
    if left <= 0 or not others:
        return least_output, float("inf")
    return least_output, others[min(left, len(others)) - 1]


def _most_frequent(root: Node, limit: int, depth: int) -> DraftTree:
    """Depth first, heavier children first, until `limit` nodes are drafted."""
    least_output, least_weight = _thresholds(_below(root), limit)
    tokens: list[int] = []
    parents: list[int] = []
    stack: list[tuple[Node, int, int]] = [(root, -1, 0)]
    names: dict[int, int] = {}
    while stack and len(tokens) < limit:
        node, parent, level = stack.pop()
        if level:
            parents.append(parent)
            tokens.append(names[id(node)])
            parent = len(tokens) - 1
        if level == depth:
            continue
        kept = [
            (child, token)
            for token, child in node.children.items()
            if child.alive and (child.outputs >= least_output or child.weight >= least_weight)
        ]
        for child, token in sorted(kept, key=lambda pair: pair[0].weight):
            names[id(child)] = token
            stack.append((child, parent, level + 1))
    return make_tree(tokens, parents)


def _thin_out(root: Node) -> None:
    """In a tree past its limits: drop what occurred at most once, halve the other counts."""
    nodes = _below(root)
    outputs = sum(node.outputs > 0 for node in nodes)
    if len(nodes) <= _MOST_NODES and outputs <= _MOST_OUTPUT_NODES:
        return
    queue = [root]
    while queue:
        node = queue.pop()
        node.children = {t: c for t, c in node.children.items() if c.outputs > 1 or c.inputs > 0}
        for child in node.children.values():
            child.outputs //= 2
            queue.append(child)
