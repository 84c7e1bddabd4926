"""THE loop: draft, score, accept, commit. Plain decoding is this loop with an empty draft."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from itertools import accumulate

import numpy as np
import torch

from draftrec.config import AcceptConfig
from draftrec.core import (
    EMPTY_TREE,
    Drafter,
    DraftTree,
    Generation,
    Request,
    SequenceView,
    Verdict,
)
from draftrec.engine import sampling
from draftrec.engine.costs import LearningCurve
from draftrec.engine.noise import noise_of
from draftrec.engine.packing import Segment
from draftrec.engine.target import Target
from draftrec.engine.text import stats
from draftrec.engine.text.accept import AcceptanceRule
from draftrec.engine.text.batch import Batch, Limits, RunningSequence
from draftrec.engine.text.budget import Budget
from draftrec.engine.text.controls import Control, controlled
from draftrec.engine.text.grammar import GrammarStates
from draftrec.engine.text.stats import Spent, StepStats, Timing
from draftrec.engine.text.stop_strings import StopStrings
from draftrec.engine.tree import within
from draftrec.errors import Interrupted

#: Sequences of the next pass, each with the pending rows that it computes.
Shares = list[tuple[RunningSequence, int]]


@dataclass(frozen=True, eq=False, slots=True)
class TextRules:
    """How tokens of some texts are chosen and what ends them, in place of the engine's own rules.
    Texts with one and the same object are judged together. `states`: of their grammar, which is
    among the `controls`."""

    accept: AcceptConfig
    rule: AcceptanceRule
    controls: Seq[Control] = ()
    stops: StopStrings | None = None
    states: GrammarStates | None = None


@dataclass(slots=True)
class Engine:
    """The parts of the loop, and the settings that are not theirs.

    `certain` drafts, as `Drafter.draft` does, what is worth a pass even where the budget lets
    drafting rest. `costs` learns what passes took; the budget may go by it.
    """

    target: Target
    drafter: Drafter
    rule: AcceptanceRule
    budget: Budget
    accept: AcceptConfig
    eos_ids: frozenset[int]
    slots: int
    max_new_tokens: int
    context_length: int = 1 << 30
    depth: int = 24
    prefill_chunk: int = 512
    controls: Seq[Control] = ()
    stops: StopStrings | None = None
    certain: Callable[[Seq[RunningSequence], int, int], list[DraftTree]] | None = None
    costs: LearningCurve | None = None
    timing: Timing = field(default_factory=Timing)
    on_text: Callable[[Request, Generation], None] | None = None
    """Is told of every text in the step that finishes it; what it adds to a pool is drafted from in
    the next step, by texts under way as well."""


class NoDrafter:
    """Proposes nothing: plain decoding."""

    def start(self, sequence: SequenceView) -> None:
        """Nothing to prepare."""

    def draft(self, batch: Seq[SequenceView], limit: int, depth: int) -> list[DraftTree]:
        """Empty trees."""
        return [EMPTY_TREE] * len(batch)

    def observe(self, batch: Seq[SequenceView], verdicts: Seq[Verdict]) -> None:
        """Nothing to learn."""

    def stop(self, sequence: SequenceView) -> None:
        """Nothing to forget."""


def generate(
    engine: Engine,
    requests: Seq[Request],
    on_step: Callable[[StepStats], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> list[Generation]:
    """Write all texts; results in the order of `requests`.

    Raises Interrupted, after finishing a step, once `should_stop()` is true.
    """
    batch = start(engine, requests)
    while batch.active:
        if should_stop and should_stop():
            raise Interrupted
        step(engine, batch, on_step)
    return batch.finished()


def step(engine: Engine, batch: Batch, on_step: Callable[[StepStats], None] | None = None) -> None:
    """One pass of the target over the running texts: draft, score, accept, commit."""
    before = engine.timing.spent
    admit(engine, batch)
    shares = share_rows(engine, batch)
    with engine.timing.drafting():
        trees = draft(engine, shares)
    laid = lay_out(shares, trees)
    with engine.timing.passing(laid.prompt_share):
        logits = engine.target.score([s for _, s in laid.pairs]).logits
        verdicts = accept(engine, laid, logits)
        commit(engine, laid, verdicts)
    extend(engine, batch, laid, verdicts)
    with engine.timing.drafting():
        engine.drafter.observe(laid.scored, verdicts)
    learn(engine, laid, verdicts, engine.timing.spent - before)
    retire(engine, batch)
    if on_step:
        active = [q for q, _ in laid.pairs]
        sizes = len(batch.waiting), laid.rows
        on_step(stats.step_stats(active, laid.scored, *sizes, laid.trees, verdicts))


def start(engine: Engine, requests: Seq[Request]) -> Batch:
    """An empty batch with all requests waiting, and a slab that holds the longest of them."""
    longest = max((len(r.prompt_ids) for r in requests), default=1)
    batch = empty_batch(engine, longest, max(1, min(engine.slots, len(requests))))
    batch.add_all(requests)
    return batch


def empty_batch(engine: Engine, longest: int, slots: int | None = None) -> Batch:
    """A batch without requests, and a slab for prompts of at most `longest` tokens and their texts,
    which end where the context does."""
    length = min(longest + engine.max_new_tokens, engine.context_length)
    engine.target.reserve(engine.slots, length + engine.budget.most + 1)
    slab = engine.target.slab
    assert slab is not None
    limits = Limits(
        slots or engine.slots,
        engine.max_new_tokens,
        engine.context_length,
        engine.target.shared_length,
    )
    return Batch((), limits, slab.copy_prefix)


def drop(engine: Engine, batch: Batch, order: int) -> RunningSequence | None:
    """Take a request out of the batch, whether it waits or runs; the sequence if it was running."""
    sequence = batch.drop(order)
    if sequence:
        engine.drafter.stop(sequence)
    return sequence


def admit(engine: Engine, batch: Batch) -> None:
    """Let waiting requests into free slots."""
    for sequence in batch.refill():
        wishes = sequence.request.wishes
        accept = (wishes.rules or engine).accept
        if accept.temperature > 0:
            seed = accept.seed if wishes.seed is None else wishes.seed
            sequence.noise = noise_of(seed, sequence.request.key)
        engine.drafter.start(sequence)


def share_rows(engine: Engine, batch: Batch) -> Shares:
    """Pending rows each sequence computes in the next pass: prompts share one chunk."""
    left = engine.prefill_chunk
    shares: Shares = []
    for sequence in batch.running:
        rows = sequence.pending if sequence.pending == 1 else min(sequence.pending, left)
        if rows:
            shares.append((sequence, rows))
            left -= rows if sequence.pending > 1 else 0
    return shares


def draft(engine: Engine, shares: Shares) -> dict[int, DraftTree]:
    """Trees worth verifying, by slot, for sequences whose prompt is done after this pass."""
    ready = [q for q, rows in shares if rows == q.pending]
    if not ready:
        return {}
    propose, limit = engine.drafter.draft, engine.budget.limit()
    if limit == 0 and engine.certain:
        propose, limit = engine.certain, engine.budget.most
    if limit == 0 or max(s.room for s in ready) <= 1:
        return {s.slot: EMPTY_TREE for s in ready}
    drafted = [s for s in ready if s.request.wishes.drafts]
    # Not as deep as the longest of them has room for: a tree must not depend on its neighbours.
    trees = propose(drafted, limit, engine.depth) if drafted else []
    trees = within(trees, [_levels(engine, s) for s in drafted])
    trees = engine.budget.choose(trees, sum(rows for _, rows in shares))
    plain = {s.slot: EMPTY_TREE for s in ready}
    return plain | {s.slot: t for s, t in zip(drafted, trees, strict=True)}


@dataclass(frozen=True, slots=True)
class Laid:
    """One pass of `rows` rows: all that take part with their segments, and, in the same order, the
    `scored` ones with their `segments` and `trees`, whose prompt is done after it."""

    pairs: list[tuple[RunningSequence, Segment]]
    scored: list[RunningSequence]
    segments: list[Segment]
    trees: list[DraftTree]
    rows: int

    @property
    def prompt_share(self) -> float:
        """The part of the rows that are those of prompts."""
        return (sum(len(s.pending) for _, s in self.pairs) - len(self.scored)) / self.rows


def lay_out(shares: Shares, trees: dict[int, DraftTree]) -> Laid:
    """Pending tokens and tree of every sequence that takes part in the next pass."""
    pairs: list[tuple[RunningSequence, Segment]] = []
    for sequence, rows in shares:
        tree = trees.get(sequence.slot)
        pending = sequence.context[sequence.computed : sequence.computed + rows]
        segment = Segment(
            sequence.slot, sequence.computed, pending, tree or EMPTY_TREE, tree is not None,
            sequence.length,
        )  # fmt: skip
        pairs.append((sequence, segment))
    scored = [(q, s) for q, s in pairs if s.scored]
    return Laid(
        pairs,
        [q for q, _ in scored],
        [s for _, s in scored],
        [s.tree for _, s in scored],
        sum(s.rows for _, s in pairs),
    )


def accept(engine: Engine, laid: Laid, logits: torch.Tensor) -> list[Verdict]:
    """A verdict for every scored sequence, from `logits` `[R, V]` after the controls."""
    if not laid.scored:
        return []
    by_rules: dict[int, list[int]] = {}
    for place, sequence in enumerate(laid.scored):
        by_rules.setdefault(id(sequence.request.wishes.rules), []).append(place)
    if len(by_rules) == 1:
        return _judged(engine, laid.scored, laid.trees, logits)
    ends = [*accumulate(1 + len(tree) for tree in laid.trees)]
    found: dict[int, Verdict] = {}
    for places in by_rules.values():
        rows: list[int] = []
        for i in places:
            rows += range(ends[i] - 1 - len(laid.trees[i]), ends[i])
        scored, trees = [laid.scored[i] for i in places], [laid.trees[i] for i in places]
        own = logits[torch.tensor(rows, device=logits.device)]
        found |= dict(zip(places, _judged(engine, scored, trees, own), strict=True))
    return [found[place] for place in range(len(laid.scored))]


def _judged(
    engine: Engine, scored: Seq[RunningSequence], trees: Seq[DraftTree], logits: torch.Tensor
) -> list[Verdict]:
    """Verdicts of sequences whose rules are one and the same."""
    rules: Engine | TextRules = scored[0].request.wishes.rules or engine
    asks = any(s.request.wishes.log_probs is not None for s in scored)
    raw = logits.clone() if asks and rules.controls else logits  # controls may write into theirs
    logits = controlled(rules.controls, scored, trees, logits)
    verdicts = rules.rule.accept(scored, trees, logits)
    if rules.stops:
        verdicts = rules.stops.cut(scored, verdicts)
    if asks:
        _keep_scores(scored, trees, verdicts, raw)
    return verdicts


def _keep_scores(
    scored: Seq[RunningSequence],
    trees: Seq[DraftTree],
    verdicts: Seq[Verdict],
    logits: torch.Tensor,
) -> None:
    """Note the log-probabilities of the verdicts' tokens where they are wished for; `logits`
    `[R, V]` as the target gave them."""
    row = 0
    for sequence, tree, verdict in zip(scored, trees, verdicts, strict=True):
        most = sequence.request.wishes.log_probs
        if most is not None:
            above = np.concatenate([[row], row + 1 + verdict.path])[: len(verdict.token_ids)]
            places = torch.as_tensor(above.astype(np.int64), device=logits.device)
            sequence.scores += sampling.token_scores(logits[places], verdict.token_ids, most)
        row += 1 + len(tree)


def commit(engine: Engine, laid: Laid, verdicts: Seq[Verdict]) -> None:
    """Keep the KV rows of accepted nodes."""
    if laid.scored:
        engine.target.commit(laid.segments, [v.path for v in verdicts])


def extend(engine: Engine, batch: Batch, laid: Laid, verdicts: Seq[Verdict]) -> None:
    """Write the verdicts' tokens into the texts, and count them."""
    for sequence, segment in laid.pairs:
        sequence.counts.target_calls += 1
        if not segment.scored:
            sequence.computed += len(segment.pending)
    for sequence, tree, verdict in zip(laid.scored, laid.trees, verdicts, strict=True):
        stats.record(sequence, tree, verdict)
        kept = sequence.length <= engine.target.anew_length
        sequence.extend(verdict, engine.eos_ids)
        if kept and sequence.length > engine.target.anew_length:
            sequence.computed = 0
    for sequence, _ in laid.pairs:
        batch.note_computed(sequence)


def learn(engine: Engine, laid: Laid, verdicts: Seq[Verdict], took: Spent) -> None:
    """Let the costs see what the step took, and the budget what became of the drafts."""
    drafted = sum(len(t) for t in laid.trees)
    if engine.costs:
        each = (took.draft - engine.costs.aside) / len(laid.trees) if drafted else None
        engine.costs.observe(laid.rows, took.verify + took.prefill, each)
    if laid.rows == len(laid.trees) + drafted:  # prompt rows blur what a draft row costs
        engine.budget.observe(laid.trees, verdicts, laid.rows)


def retire(engine: Engine, batch: Batch) -> None:
    """Take finished texts out of the batch, and tell of them."""
    for sequence in batch.retire():
        engine.drafter.stop(sequence)
        if engine.on_text:
            engine.on_text(sequence.request, batch.results[sequence.order])


def _levels(engine: Engine, sequence: RunningSequence) -> int:
    """Most levels of a tree: those that fit into the text, and past no length at which cached rows
    become those of another text."""
    keeps = engine.target.anew_length - sequence.length
    return sequence.room - 1 if keeps < 0 else min(sequence.room - 1, keeps)
