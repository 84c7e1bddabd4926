"""Stop strings: texts that end a text, wherever tokens begin and end; and texts read as they grow.

A text is decoded only where its newest token could complete a stop string, which is known per token
after it was seen once; then its tokens are taken one by one, as plain decoding would have. So the
end is where it would be without drafts, and everything a draft had beyond it is dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from collections.abc import Sequence as Seq
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from draftrec.core import IntArray, Verdict
from draftrec.engine.text.batch import RunningSequence

#: Token ids int32 to text, without special tokens.
Decode = Callable[[IntArray], str]

# What decoders write for bytes that are not a character yet.
_INCOMPLETE = "\ufffd"
# Tokens that a growing text decodes at once, and those of them that only say how others are read.
_WINDOW, _OVERLAP = 96, 16
# Characters at the end of a text that decoding may still change where it cleans up (" do not").
_CLEANED = 7
# Special tokens by their text, and an anchor: a large vocabulary takes a while to go through.
_KNOWN: WeakKeyDictionary[Any, tuple[dict[str, int], int | None]] = WeakKeyDictionary()
_BYTES: WeakKeyDictionary[Any, tuple[frozenset[int], int]] = WeakKeyDictionary()


class StopStrings:
    """Ends texts where one of `strings` is complete, looking at new tokens alone.

    `stop_ids`: tokens that end a text likewise (a stop string that is a special token, which
    decoding leaves out). `anchor`: a token that decodes to plain text, before which a token is
    decoded to know its own text; None where tokens have no text of their own, because decoding
    changes what lies before them, and every token is looked at.
    """

    def __init__(
        self, strings: Seq[str], decode: Decode, *, anchor: int | None, stop_ids: Iterable[int] = ()
    ) -> None:
        self.strings = tuple(strings)
        self.stop_ids = frozenset(stop_ids)
        self._decode, self._anchor = decode, anchor
        self._lead = "" if anchor is None else decode(np.array([anchor], np.int32))
        self._may_end: dict[int, bool] = {}

    def cut(self, batch: Seq[RunningSequence], verdicts: Seq[Verdict]) -> list[Verdict]:
        """The verdicts, each up to the token with which its text ends; sets `finish` there."""
        return [self._cut(s, v) for s, v in zip(batch, verdicts, strict=True)]

    def first(self, text: str) -> int:
        """Where the first stop string begins in `text`; its length if there is none."""
        found = [at for s in self.strings if (at := text.find(s)) >= 0]
        return min(found, default=len(text))

    def begun(self, text: str) -> int:
        """How many characters at the end of `text` a stop string may begin with."""
        most = max(map(len, self.strings)) - 1
        ends = (text[-n:] for n in range(min(most, len(text)), 0, -1))
        return next((len(e) for e in ends if any(s.startswith(e) for s in self.strings)), 0)

    def _cut(self, sequence: RunningSequence, verdict: Verdict) -> Verdict:
        tokens = verdict.token_ids
        for place, token in enumerate(tokens.tolist()):
            ended = token in self.stop_ids
            if not ended and self._could_end(token):
                written = sequence.context[sequence.prompt_tokens :]
                text = self._decode(np.concatenate([written, tokens[: place + 1]]))
                ended = self.first(text) < len(text)
            if ended:
                sequence.finish = "stop"
                return verdict.first(place + 1)
        return verdict

    def _could_end(self, token: int) -> bool:
        """Whether the end of a stop string may lie in the token's text."""
        if self._anchor is None:
            return True
        known = self._may_end.get(token)
        if known is None:
            pair = self._decode(np.array([self._anchor, token], np.int32))
            plain = pair.startswith(self._lead) and _INCOMPLETE not in pair
            piece = pair.removeprefix(self._lead)
            known = not plain or any(_ends_in(s, piece) for s in self.strings)
            self._may_end[token] = known
        return known


def stop_strings_of(strings: Seq[str], tokenizer: Any) -> StopStrings | None:
    """What ends texts at `strings`, one of which may be a special token; None without any."""
    if not strings:
        return None
    decode = decoder(tokenizer)
    if tokenizer not in _KNOWN:
        special_ids = set(tokenizer.all_special_ids)
        special = {t: i for t, i in tokenizer.get_vocab().items() if i in special_ids}
        _KNOWN[tokenizer] = special, _anchor(tokenizer, decode)
    special, anchor = _KNOWN[tokenizer]
    ids = [special[s] for s in strings if s in special]
    return StopStrings(strings, decode, anchor=anchor, stop_ids=ids)


def decoder(tokenizer: Any) -> Decode:
    """What makes texts of token ids, without special tokens."""

    def decode(token_ids: IntArray) -> str:
        return tokenizer.decode(token_ids.tolist(), skip_special_tokens=True)

    return decode


class GrowingText:
    """A text that is read as it is written: what of it will stay, and no more.

    Held back are bytes that are not a character yet, what may become one of `stops`, and what the
    tokenizer's decoding may yet change: spaces that it cleans up, and a run of byte tokens, all of
    which are read otherwise once one of them makes no character. Tokens are decoded in a window,
    whose beginning moves on where that is seen to change nothing.
    """

    def __init__(self, tokenizer: Any, stops: StopStrings | None = None) -> None:
        self._decode, self._stops = decoder(tokenizer), stops
        self._held = _CLEANED if _cleans_up(tokenizer) else 0
        self._bytes, self._vocabulary = _byte_tokens(tokenizer)
        self._ids: IntArray = np.empty(0, np.int32)
        self._settled, self._lead = "", ""
        self.sent = 0

    @property
    def text(self) -> str:
        """All of it so far, the part held back included."""
        return self._settled + self._decode(self._ids).removeprefix(self._lead)

    def add(self, tokens: IntArray) -> str:
        """What is certain now and was not before."""
        self._ids = np.concatenate([self._ids, tokens])
        text = self.text
        if len(self._ids) > _WINDOW:
            self._move_on(text)
        safe = text.rstrip(_INCOMPLETE)
        end = len(safe) - self._held
        if run := self._run():
            certain = self._decode(self._ids[:-run]).removeprefix(self._lead)
            end = min(end, len(self._settled) + len(certain))
        if self._stops:
            end = min(self._stops.first(text), end, len(safe) - self._stops.begun(safe))
        return self._until(text, end)

    def finish(self, text: str) -> str:
        """What is left of the whole `text`, cut at a stop string where there was one."""
        return self._until(text, len(text))

    def _run(self) -> int:
        """How many byte tokens are last, with those among them that decoding leaves out."""
        if not self._bytes:
            return 0
        last = enumerate(self._ids[::-1].tolist())
        return next((n for n, token in last if not self._joins(token)), len(self._ids))

    def _joins(self, token: int) -> bool:
        """Whether a run of byte tokens goes on with it; ids beyond the vocabulary are left out."""
        return token in self._bytes or token >= self._vocabulary

    def _until(self, text: str, end: int) -> str:
        fresh = text[self.sent : max(self.sent, end)]
        self.sent = max(self.sent, end)
        return fresh

    def _move_on(self, text: str) -> None:
        """Begin the window later, if what is read then is the same."""
        ids = self._ids[-_WINDOW // 2 :]
        if self._bytes and all(map(self._joins, ids[_OVERLAP - 1 : _OVERLAP + 1].tolist())):
            return  # a run of bytes is read as one
        lead = self._decode(ids[:_OVERLAP])
        window = self._decode(ids)
        rest = window.removeprefix(lead)
        if lead and _INCOMPLETE not in lead and window.startswith(lead) and text.endswith(rest):
            self._settled, self._ids, self._lead = text[: len(text) - len(rest)], ids, lead


def _anchor(tokenizer: Any, decode: Decode) -> int | None:
    """A token that is plain text, if there is one and decoding leaves tokens as they are. What
    tokenizers of Python's do is anybody's code: some take away a space at the end, for instance,
    which then comes with the next token."""
    if _cleans_up(tokenizer) or getattr(tokenizer, "backend_tokenizer", None) is None:
        return None
    usual = tokenizer("a", add_special_tokens=False).input_ids[-1:]
    every = (*usual, *sorted(tokenizer.get_vocab().values()))
    return next((i for i in every if decode(np.array([i], np.int32)).strip().isalnum()), None)


def _byte_tokens(tokenizer: Any) -> tuple[frozenset[int], int]:
    """Tokens that are single bytes of characters which the vocabulary does not have, and special
    ones, over which decoding joins such bytes; none without bytes. And the first id beyond all."""
    if tokenizer not in _BYTES:
        names = [f"<0x{byte:02X}>" for byte in range(256)]
        ids = zip(names, tokenizer.convert_tokens_to_ids(names), strict=True)
        known = ((n, i) for n, i in ids if i is not None)  # others are the unknown token's
        found = frozenset(i for n, i in known if tokenizer.convert_ids_to_tokens(i) == n)
        joined = found | set(tokenizer.all_special_ids) if found else found
        _BYTES[tokenizer] = joined, max(tokenizer.get_vocab().values(), default=-1) + 1
    return _BYTES[tokenizer]


def _cleans_up(tokenizer: Any) -> bool:
    """Whether decoding takes spaces away between tokens; transformers does not for BPE, unless
    told with a name that warns of it."""
    if not getattr(tokenizer, "clean_up_tokenization_spaces", False):
        return False
    model = getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None)
    told = "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output"
    return type(model).__name__ != "BPE" or bool(getattr(tokenizer, told, False))


def _ends_in(string: str, piece: str) -> bool:
    """Whether `string` may end inside `piece`: it lies in it, or its end is how `piece` begins."""
    if string in piece:
        return True
    return any(string.endswith(piece[:n]) for n in range(1, min(len(string), len(piece)) + 1))
