"""Words of any script. Where a script puts no spaces between words, characters stand for them.

Characters are graphemes: a letter with its marks. Of Han and kana a word has about two, of the
scripts of South-East Asia about four; without a dictionary that is all that can be said.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator
from typing import Literal

import regex

#: What `sacrebleu` calls its tokenizers.
BleuTokenizer = Literal["13a", "zh", "char"]

_EAST = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Bopomofo}\u30fc"
_SOUTH = r"\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tai_Le}\p{New_Tai_Lue}\p{Tai_Tham}\p{Tai_Viet}"
_LETTER = rf"(?V1)[[\p{{L}}\p{{M}}]&&[{_EAST}{_SOUTH}]]"
_INNER = r"['\u2019\-]"
_OTHERS = rf"[[\w\p{{M}}]--[[\p{{L}}\p{{M}}]&&[{_EAST}{_SOUTH}]]]+"
_UNSPACED = regex.compile(_LETTER)
_MARKED = regex.compile(rf"(?V1)[\p{{M}}{_EAST}{_SOUTH}]")
#: A character of a script without spaces, or a word, with marks inside it if those are wanted.
_UNITS = regex.compile(rf"({_LETTER}\p{{M}}*)|{_OTHERS}")
_JOINED = regex.compile(rf"({_LETTER}\p{{M}}*)|{_OTHERS}(?:{_INNER}{_OTHERS})*")
_PLAIN = re.compile(r"\w+")
_PLAIN_JOINED = re.compile(r"\w+(?:['\u2019\-]\w+)*")
_HAN = regex.compile(r"\p{Han}")
_EASTERN = regex.compile(rf"(?V1)[{_EAST}]")
_PHONETIC = regex.compile(rf"(?V1)[[\p{{L}}]&&[\p{{Hiragana}}\p{{Katakana}}\u30fc{_SOUTH}]]")
_PER_WORD_EAST, _PER_WORD_SOUTH = 2, 4
#: Shares of the letters from which on a tokenizer for them does better than one for words.
_MOSTLY_PHONETIC, _SOME_HAN = 0.2, 0.05


def unspaced(text: str) -> bool:
    """Whether a script without spaces between words occurs in it."""
    return not text.isascii() and _UNSPACED.search(text) is not None


def units(text: str, *, joined: bool = False) -> list[str]:
    """The words of a text, in order, and the characters where there are no spaces between words.
    `joined`: words may have an apostrophe or hyphen inside (X-Men)."""
    if text.isascii() or _MARKED.search(text) is None:
        return (_PLAIN_JOINED if joined else _PLAIN).findall(text)
    pattern = _JOINED if joined else _UNITS
    return [found[0] for found in pattern.finditer(normal(text))]


def features(text: str, least: int = 1) -> Iterator[str]:
    """What a bag of words holds of a text, in small letters: words of `least` letters or more; of
    scripts without spaces the characters, and each pair that stand together."""
    text = text.lower()
    if text.isascii() or _MARKED.search(text) is None:
        yield from (word for word in _PLAIN.findall(text) if len(word) >= least)
        return
    before, end = "", -1
    for found in _UNITS.finditer(normal(text)):
        character = found[1]
        if character is None:
            if len(found[0]) >= least:
                yield found[0]
        else:
            yield character
            if end == found.start():
                yield before + character
            before, end = character, found.end()


def count_words(text: str) -> int:
    """How many words a text has, about as many where there are no spaces between them."""
    if not unspaced(text):
        return len(text.split())
    found = list(_JOINED.finditer(normal(text)))
    characters = [unit[0] for unit in found if unit[1]]
    eastern = sum(map(is_eastern, characters))
    southern = len(characters) - eastern
    words = len(found) - len(characters)
    return words - (-eastern // _PER_WORD_EAST) - (-southern // _PER_WORD_SOUTH)


def is_eastern(unit: str) -> bool:
    """Whether a character is Han or kana."""
    return _EASTERN.match(unit) is not None


def bleu_tokenizer(texts: Iterable[str]) -> BleuTokenizer:
    """sacrebleu's tokenizer for texts of these scripts: `zh`, which parts Han and leaves words
    whole; `char` for kana and South-East Asia, where it has none that needs no dictionary; `13a`,
    its usual one, for all others."""
    letters = han = phonetic = 0
    for text in texts:
        letters += sum(map(str.isalpha, text))
        if not text.isascii():
            han += len(_HAN.findall(text))
            phonetic += len(_PHONETIC.findall(text))
    if phonetic and phonetic >= _MOSTLY_PHONETIC * letters:
        return "char"
    return "zh" if han and han >= _SOME_HAN * letters else "13a"


def normal(text: str) -> str:
    """Letters and their marks in one form; full-width letters and brackets as plain ones where
    they are used."""
    return unicodedata.normalize("NFKC" if unspaced(text) else "NFC", text)
