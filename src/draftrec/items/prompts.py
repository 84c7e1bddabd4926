"""How a user's history becomes the token ids of a prompt: the same in training and in serving.

A prompt is BOS (if the tokenizer has one), a prefix, the most recent items with a separator between
them, and a suffix; the model then writes the L tokens of the next item. Models without text use
empty texts. Every text is tokenised once, by itself, and ids are concatenated, so what a piece
becomes never depends on its neighbours.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

import numpy as np

from draftrec.core import BoolArray, IntArray, LongArray
from draftrec.errors import DraftrecError
from draftrec.items.settings import PromptFormat


class Tokenizer(Protocol):
    """What is needed of a transformers tokenizer, apart from its `bos_token_id`, which those of
    transformers have without declaring it."""

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]: ...


#: For checkpoints that know text. Suffix and separator are equal on purpose: then the place of
#: every item in a training sequence looks like the end of a prompt, and all of them teach.
TEXT_FORMAT = PromptFormat("A user chose, in this order: ", ", ", ", ")


def check_texts(form: PromptFormat, tokenizer: Tokenizer) -> None:
    """Raise DraftrecError where a text of the prompt has words that the tokenizer does not know: a
    new recommender's knows its items' tokens and nothing else."""
    unknown: int | None = getattr(tokenizer, "unk_token_id", None)
    for name in ("prefix", "separator", "suffix"):
        text = getattr(form, name)
        if unknown is not None and unknown in _ids(tokenizer, text):
            raise DraftrecError(
                f"the model's tokenizer does not know the words of --{name} {text!r}, as it has no "
                f"text; leave --{name} out, or begin with a model of language (--from)"
            )


class HistoryEncoder:
    """Makes prompts of histories.

    `item_tokens` is int32 `[n, L]`: the token ids of every item by its place in the catalogue.
    Raises DraftrecError where an empty history would give an empty prompt.
    """

    def __init__(self, form: PromptFormat, tokenizer: Tokenizer, item_tokens: IntArray) -> None:
        if form.max_items < 1:
            raise DraftrecError(f"a prompt keeps at least 1 item, not {form.max_items}")
        bos: int | None = getattr(tokenizer, "bos_token_id", None)
        self.form = form
        self.item_tokens = np.ascontiguousarray(item_tokens, np.int32)
        self._tokenizer = tokenizer
        self._start = np.concatenate(
            [np.array([] if bos is None else [bos], np.int32), _ids(tokenizer, form.prefix)]
        )
        self._separator = _ids(tokenizer, form.separator)
        self._suffix = _ids(tokenizer, form.suffix)
        if not len(self._start) + len(self._suffix):
            raise DraftrecError(
                "the tokenizer has no BOS token and the prompt has neither prefix nor suffix, so "
                "an empty history would be an empty prompt; give the prompt a prefix"
            )

    @property
    def levels(self) -> int:
        """L, the tokens of one item."""
        return self.item_tokens.shape[1]

    def encode(self, places: LongArray) -> IntArray:
        """int32 `[p]`: the prompt of a history (int64 `[h]` places, oldest first)."""
        return np.concatenate([self._items(places[-self.form.max_items :]), self._suffix])

    def length(self, items: int) -> int:
        """Tokens of the prompt of a history of so many items."""
        kept = min(items, self.form.max_items)
        between = max(0, kept - 1) * len(self._separator)
        return len(self._start) + kept * self.levels + between + len(self._suffix)

    def fit(self, context: int) -> HistoryEncoder:
        """An encoder that drops the oldest items until prompt and answer fit into `context`.

        Raises DraftrecError if they do not fit even with a single item.
        """
        per_item = self.levels + len(self._separator)
        room = context - len(self._start) - len(self._suffix) - self.levels + len(self._separator)
        if room < per_item:
            raise DraftrecError(
                f"a context of {context} tokens is too short for a prompt with one item of "
                f"{self.levels} tokens and its answer; use a model with a longer context"
            )
        form = replace(self.form, max_items=min(self.form.max_items, room // per_item))
        return HistoryEncoder(form, self._tokenizer, self.item_tokens)

    def example(self, places: LongArray) -> tuple[IntArray, BoolArray]:
        """int32 `[t]` token ids of a sequence to learn from, and bool `[t]`: which are answers.

        Items count as answers where the tokens before them are those of a prompt: every item if
        there is nothing between items, all but the first if the suffix equals the separator,
        otherwise the last one alone.
        """
        if len(places) < 1:
            raise ValueError("a sequence without items teaches nothing")
        per_item = self.levels + len(self._separator)
        if np.array_equal(self._separator, self._suffix):
            ids = self._items(places)
            answers = np.zeros(len(ids), np.bool_)
            first = 1 if len(self._separator) else 0
            for i in range(first, len(places)):
                begin = len(self._start) + i * per_item
                answers[begin : begin + self.levels] = True
            return ids, answers
        ids = np.concatenate([self.encode(places[:-1]), self.item_tokens[places[-1]]])
        answers = np.zeros(len(ids), np.bool_)
        answers[-self.levels :] = True
        return ids, answers

    def _items(self, places: LongArray) -> IntArray:
        """The prompt before its suffix."""
        rows = self.item_tokens[places]
        if len(self._separator) and len(rows):
            between = np.broadcast_to(self._separator, (len(rows), len(self._separator)))
            flat = np.concatenate([rows, between], axis=1).reshape(-1)
            flat = flat[: len(flat) - len(self._separator)]
        else:
            flat = rows.reshape(-1)
        return np.concatenate([self._start, flat]).astype(np.int32)


def _ids(tokenizer: Tokenizer, text: str) -> IntArray:
    return np.array(tokenizer.encode(text, add_special_tokens=False) if text else [], np.int32)
