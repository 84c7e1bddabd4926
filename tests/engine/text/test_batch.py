"""Continuous batching: slots, order, and prompt rows that need not be computed again."""

from __future__ import annotations

from collections.abc import Sequence as Seq

import numpy as np
import pytest

from draftrec.core import Request, Verdict
from draftrec.engine.text.batch import Batch, Limits, RunningSequence

EOS = frozenset([0])


def request(*tokens: int, name: str = "a") -> Request:
    return Request(name, np.array(tokens, np.int32))


def verdict(*tokens: int, path: int | None = None, loss: float = 0.0) -> Verdict:
    nodes = np.arange(len(tokens) - 1 if path is None else path, dtype=np.int32)
    return Verdict(nodes, np.array(tokens, np.int32), ((0, loss),) if loss else ())


class Rows:
    """Knows which tokens' KV rows each slot holds, as the slab would."""

    def __init__(self) -> None:
        self.slots: dict[int, list[int]] = {}
        self.copies: list[tuple[int, int, int]] = []

    def copy(self, source: int, target: int, length: int) -> None:
        assert len(self.slots[source]) >= length
        self.slots[target] = self.slots[source][:length]
        self.copies.append((source, target, length))

    def compute(self, batch: Batch, sequence: RunningSequence, rows: int) -> None:
        """What a forward pass does: the slot must hold all rows before those it adds."""
        held = self.slots.get(sequence.slot, [])[: sequence.computed]
        assert held == sequence.context[: sequence.computed].tolist()
        sequence.computed += rows
        self.slots[sequence.slot] = sequence.context[: sequence.computed].tolist()
        batch.note_computed(sequence)


def make_batch(requests: Seq[Request], slots: int = 2, most: int = 4) -> tuple[Batch, Rows]:
    rows = Rows()
    return Batch(requests, Limits(slots, most, 200), rows.copy), rows


def write(batch: Batch, rows: Rows, sequence: RunningSequence, *tokens: int) -> None:
    """One step of plain decoding, prompt and all."""
    for token in tokens:
        rows.compute(batch, sequence, sequence.pending)
        before = sequence.computed
        sequence.extend(verdict(token), EOS)
        assert sequence.computed == before


def test_extend_counts_rows_and_finishes_on_eos() -> None:
    sequence = RunningSequence(0, 0, request(5, 6), 6)
    assert (sequence.pending, sequence.room, sequence.new_tokens) == (2, 6, 0)
    sequence.extend(verdict(7, 8, 9, loss=0.5), EOS)
    # prompt and the two accepted nodes are in the slab, the bonus token is not
    assert (sequence.computed, sequence.pending, sequence.room) == (4, 1, 3)
    assert sequence.context.tolist() == [5, 6, 7, 8, 9]
    assert sequence.finish is None
    sequence.extend(verdict(4, 0, path=2, loss=0.25), EOS)
    assert sequence.finish == "eos"
    assert sequence.loss == 0.75
    done = sequence.result()
    assert done.token_ids.tolist() == [7, 8, 9, 4, 0]
    assert done.prompt_tokens == 2


def test_extend_finishes_when_the_text_is_full() -> None:
    sequence = RunningSequence(0, 0, request(5), 2)
    with pytest.raises(RuntimeError, match="not finished"):
        sequence.result()
    sequence.extend(verdict(7, 8), EOS)
    assert sequence.finish == "length"


def test_eos_as_the_last_possible_token_counts_as_eos() -> None:
    sequence = RunningSequence(0, 0, request(5), 2)
    sequence.extend(verdict(7, 0), EOS)
    assert sequence.finish == "eos"


def test_results_keep_input_order_and_slots_are_reused() -> None:
    batch, rows = make_batch([request(5 + i, name=str(i)) for i in range(4)])
    first, second = batch.refill()
    assert {first.slot, second.slot} == {0, 1}
    assert not batch.refill()
    write(batch, rows, second, 0)
    assert batch.retire() == [second]
    assert batch.running == [first]
    (third,) = batch.refill()
    assert third.slot == second.slot
    with pytest.raises(RuntimeError, match="not finished"):
        batch.finished()
    write(batch, rows, third, 8, 0)
    write(batch, rows, first, 9, 9, 0)
    batch.retire()
    (fourth,) = batch.refill()
    write(batch, rows, fourth, 7, 7, 7, 7)
    batch.retire()
    assert not batch.active
    assert [g.entity_id for g in batch.finished()] == ["0", "1", "2", "3"]
    assert [len(g.token_ids) for g in batch.finished()] == [3, 1, 2, 4]
    assert batch.finished()[3].finish_reason == "length"


def test_room_ends_at_the_context() -> None:
    batch = Batch([request(*range(1, 9))], Limits(1, 50, 10), Rows().copy)
    assert batch.refill()[0].room == 2


SHARED = tuple(range(10, 40))


def test_a_prefix_is_copied_from_whoever_holds_it() -> None:
    batch, rows = make_batch([request(*SHARED, 1, 2), request(*SHARED, 3)])
    (first,) = batch.refill()  # the second waits: its prefix is about to be computed
    rows.compute(batch, first, 10)
    assert not batch.refill(), "30 shared tokens, of which 10 are there: the others come soon"
    rows.compute(batch, first, first.pending)
    (second,) = batch.refill()
    assert rows.copies == [(first.slot, second.slot, 30)]
    assert second.computed == 30
    assert second.pending == 1


def test_one_token_is_left_to_compute_even_of_a_known_prompt() -> None:
    """Its logits are what the text starts from."""
    batch, rows = make_batch([request(*SHARED), request(*SHARED)])
    (first,) = batch.refill()
    rows.compute(batch, first, 30)
    (second,) = batch.refill()
    assert second.computed == 29


def test_a_free_slot_that_holds_the_prefix_is_taken_without_copying() -> None:
    prompts = [request(*SHARED, 1), request(7), request(*SHARED, 2)]
    batch, rows = make_batch(prompts)
    batch.refill()
    for sequence in list(batch.running):
        write(batch, rows, sequence, 0)
    holder = batch.running[0].slot
    batch.retire()
    (third,) = batch.refill()
    assert (third.slot, third.computed) == (holder, 30)
    assert not rows.copies
    write(batch, rows, third, 0)


def test_short_prefixes_are_computed_again() -> None:
    batch, rows = make_batch([request(*SHARED[:15], 1), request(*SHARED[:15], 2)])
    assert len(batch.refill()) == 2
    assert not rows.copies


def test_written_text_is_a_prefix_too() -> None:
    """A prompt that goes on with what another sequence wrote: rows are rows."""
    batch, rows = make_batch([request(*SHARED), request(7), request(*SHARED, 8, 9, 4)])
    first, other = batch.refill()
    write(batch, rows, first, 8, 9, 0)
    write(batch, rows, other, 0)
    batch.retire()
    (third,) = batch.refill()
    assert third.computed == 32
    write(batch, rows, third, 0)


def test_overwritten_slots_are_not_offered_as_prefixes() -> None:
    prompts = [request(*SHARED, 1), request(6, 5), request(*SHARED, 2)]
    batch, rows = make_batch(prompts, slots=1)
    for _ in prompts:
        (sequence,) = batch.refill()
        write(batch, rows, sequence, 0)  # asserts that the slot holds what is taken for computed
        batch.retire()
    assert not batch.active


def test_a_slot_that_was_just_filled_by_copying_is_not_taken_for_what_it_held() -> None:
    """Three newcomers at once; one gets its prefix copied over rows that another might want."""
    other = tuple(range(50, 80))
    first = [request(*SHARED, 1), request(*other, 1), request(7)]
    batch, rows = make_batch([*first, request(*SHARED, 2), request(*other, 3)], slots=3)
    running, *short = batch.refill()
    for sequence in short:
        write(batch, rows, sequence, 0)
    write(batch, rows, running, 9)
    batch.retire()
    for sequence in batch.refill():
        write(batch, rows, sequence, 0)
    assert rows.copies == [(0, 1, 30)]
