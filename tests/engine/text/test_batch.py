"""Continuous batching: slots, order, and prompt rows that need not be computed again."""

from __future__ import annotations

from collections.abc import Sequence as Seq

import numpy as np
import pytest

from draftrec.core import Request, Verdict
from draftrec.engine.text.batch import Batch, Limits, RunningSequence, shared_tokens

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


def test_short_prefixes_are_not_waited_for_but_taken_where_they_lie() -> None:
    batch, rows = make_batch([request(*SHARED[:15], i) for i in range(3)])
    for sequence in batch.refill():
        assert sequence.computed == 0
        write(batch, rows, sequence, 0)
    batch.retire()
    (third,) = batch.refill()
    assert third.computed == 15
    few, rows = make_batch([request(*SHARED[:3], i) for i in range(2)])
    for sequence in few.refill()[:1]:
        write(few, rows, sequence, 0)
    few.retire()
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


def write_all(batch: Batch, rows: Rows) -> tuple[int, list[str]]:
    """Prompt rows that were computed, and whose texts were begun, in order; texts of 1 to 3
    tokens."""
    computed, begun = 0, []
    while batch.active:
        for sequence in batch.refill():
            begun.append(sequence.request.entity_id)
        for sequence in batch.running:
            computed += sequence.pending if not sequence.new_tokens else 0
            ends = sequence.new_tokens == sequence.order % 3
            write(batch, rows, sequence, 0 if ends else 7)
        batch.retire()
    return computed, begun


def scattered(kinds: int, each: int) -> list[Request]:
    """Prompts of some beginnings of 30 tokens, each followed by two of its own, by turns."""
    found = [
        request(*range(100 * k, 100 * k + 30), 50 + i, 9, name=f"{k}-{i}")
        for i in range(each)
        for k in range(kinds)
    ]
    return [found[i] for i in np.random.default_rng(1).permutation(len(found))]


def test_every_beginning_is_computed_once_wherever_its_prompts_stand() -> None:
    requests, slots = scattered(12, 5), 3
    first_come, rows = make_batch(requests, slots)
    before, _ = write_all(first_come, rows)
    batch, rows = make_batch([], slots)
    batch.add_all(requests)
    after, begun = write_all(batch, rows)
    assert after == 12 * 30 + 60 * 2 < 0.5 * before
    assert after == 60 * 32 - shared_tokens([r.prompt_ids for r in requests])
    # Of texts of one beginning one is written after another, but where two slots meet.
    assert len(rows.copies) < 5
    assert [g.entity_id for g in batch.finished()] == [r.entity_id for r in requests]
    assert sorted(begun) == sorted(r.entity_id for r in requests)


def test_slots_begin_far_from_each_other() -> None:
    batch, rows = make_batch([], 3)
    batch.add_all(scattered(3, 4))
    assert {s.request.entity_id.split("-")[0] for s in batch.refill()} == {"0", "1", "2"}
    assert not rows.copies


def test_who_need_not_wait_overtakes_who_must() -> None:
    """The second prompt's rows are being computed; the third is another one."""
    batch, rows = make_batch([request(*SHARED, 1), request(*SHARED, 2), request(6)], slots=3)
    first, other = batch.refill()
    assert [s.order for s in (first, other)] == [0, 2]
    rows.compute(batch, first, first.pending)
    (second,) = batch.refill()
    assert (second.order, second.computed) == (1, 30)


def test_prompts_longer_than_rows_can_be_shared_for_wait_for_nobody() -> None:
    rows = Rows()
    batch = Batch((), Limits(2, 4, 200, shared_length=20), rows.copy)
    batch.add_all([request(*SHARED, 1), request(*SHARED, 2)])
    assert [s.computed for s in batch.refill()] == [0, 0]
    for sequence in list(batch.running):
        write(batch, rows, sequence, 0)
    assert not rows.copies
