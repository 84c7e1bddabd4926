"""Controls for settings, in the order in which transformers' `generate` applies them."""

from __future__ import annotations

import numpy as np

from draftrec.core import BoolArray
from draftrec.decoding import penalties, places
from draftrec.decoding.controls import Control, Processors, RowControl, Rows
from draftrec.decoding.phrases import NoRepeatedNGrams, PhraseBias
from draftrec.models.generation_settings import GenerationSettings


def make_controls(settings: GenerationSettings, eos_ids: frozenset[int]) -> list[Control]:
    """What `settings` ask for; nothing where they ask for nothing.

    Presence and frequency penalties, which transformers does not have, follow the repetition
    penalty, as in vLLM.
    """
    found = [*_seen(settings), *_placed(settings, sorted(eos_ids))]
    return [Processors(found)] if found else []


def _seen(settings: GenerationSettings) -> list[RowControl]:
    """Controls that depend on which tokens a path has."""
    found: list[RowControl] = []
    if settings.sequence_bias:
        found.append(PhraseBias(dict(settings.sequence_bias)))
    if settings.encoder_repetition_penalty != 1.0:
        reward = penalties.Repetition(1 / settings.encoder_repetition_penalty)
        found.append(penalties.SeenTokens(reward, penalties.prompt_alone))
    if settings.repetition_penalty != 1.0:
        found.append(penalties.SeenTokens(penalties.Repetition(settings.repetition_penalty)))
    if settings.presence_penalty or settings.frequency_penalty:
        both = penalties.PresenceAndFrequency(settings.presence_penalty, settings.frequency_penalty)
        found.append(penalties.SeenTokens(both, penalties.text_alone))
    if settings.no_repeat_ngram_size:
        found.append(NoRepeatedNGrams(settings.no_repeat_ngram_size))
    if settings.encoder_no_repeat_ngram_size:
        found.append(NoRepeatedNGrams(settings.encoder_no_repeat_ngram_size, of_prompt=True))
    return found


def _placed(settings: GenerationSettings, ends: list[int]) -> list[RowControl]:
    """Bad words, and controls that depend on where a path ends."""
    found: list[RowControl] = []
    if words := [w for w in settings.bad_words_ids if w not in {(e,) for e in ends}]:
        found.append(PhraseBias(dict.fromkeys(words, -np.inf)))
    if settings.min_length and ends:
        found.append(places.Suppressed(ends, places.shorter(settings.min_length)))
    if settings.min_new_tokens and ends:
        found.append(places.Suppressed(ends, places.below(settings.min_new_tokens)))
    first = settings.forced_bos_token_id
    if first is not None:
        found.append(places.Forced([first], places.exactly(1)))
    if settings.forced_eos_token_id:
        found.append(places.Forced(settings.forced_eos_token_id, places.at_end))
    if settings.remove_invalid_values:
        found.append(places.FiniteScores())
    if settings.exponential_decay_length_penalty and ends:
        start, factor = settings.exponential_decay_length_penalty
        found.append(places.GrowingEnd(int(start), factor, ends))
    if settings.suppress_tokens:
        found.append(places.Suppressed(settings.suppress_tokens))
    if settings.begin_suppress_tokens:
        due = places.at_start if first is None else _after_forced
        found.append(places.Suppressed(settings.begin_suppress_tokens, due))
    return found


def _after_forced(rows: Rows) -> BoolArray:
    """The first place that is not a forced one: the second after a prompt of one token."""
    forced = np.array([s.prompt_tokens == 1 for s in rows.batch], np.int64)[rows.owner]
    return rows.new_tokens == forced
