"""Stop strings: texts that end a text, wherever tokens begin and end.

A text is decoded only where its newest token could complete a stop string, which is known per token
after it was seen once; then its tokens are taken one by one, as plain decoding would have. So the
end is where it would be without drafts, and everything a draft had beyond it is dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from collections.abc import Sequence as Seq
from typing import Any

import numpy as np

from draftrec.core import IntArray, Verdict
from draftrec.engine.text.batch import RunningSequence

#: Token ids int32 to text, without special tokens.
Decode = Callable[[IntArray], str]

# What decoders write for bytes that are not a character yet.
_INCOMPLETE = "\ufffd"


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
    special_ids = set(tokenizer.all_special_ids)
    special = {t: i for t, i in tokenizer.get_vocab().items() if i in special_ids}

    def decode(token_ids: IntArray) -> str:
        return tokenizer.decode(token_ids.tolist(), skip_special_tokens=True)

    ids = [special[s] for s in strings if s in special]
    return StopStrings(strings, decode, anchor=_anchor(tokenizer, decode), stop_ids=ids)


def _anchor(tokenizer: Any, decode: Decode) -> int | None:
    """A token that is plain text, if there is one and decoding leaves tokens as they are."""
    if _cleans_up(tokenizer):
        return None
    usual = tokenizer("a", add_special_tokens=False).input_ids[-1:]
    every = (*usual, *sorted(tokenizer.get_vocab().values()))
    return next((i for i in every if decode(np.array([i], np.int32)).strip().isalnum()), None)


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
