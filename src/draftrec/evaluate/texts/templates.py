"""Whether a text has the form that its framework's prompt asks for, and if not, why not.

The prompts are those of `data/prompts`; the limits are the frameworks' own (RLMRec, arXiv
2310.15950; ONCE, 2305.06566; KAR, 2306.10933; TRAWL, 2403.06642).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

from draftrec.data.templates import Side
from draftrec.data.words import count_words, unspaced
from draftrec.evaluate.settings import Framework

#: What the built-in prompts ask about; own lists of factors go into `TextForm`.
_FACTORS: Mapping[tuple[Framework, Side], tuple[str, ...]] = {
    ("kar", "user"): ("genre", "creator", "style", "theme", "tone", "pace"),
    ("kar", "item"): ("genre", "creator", "style", "theme", "tone", "pace", "audience"),
    ("trawl", "user"): ("genre", "theme", "tone"),
    ("trawl", "item"): (),
}
_SUMMARY_WORDS: Mapping[Side, int] = {"user": 100, "item": 200}
_REASONING_WORDS: Mapping[Side, int | None] = {"user": None, "item": 200}
_PHRASES, _PHRASE_WORDS = 5, 5
#: Commas, semicolons and ends of lines, those of other scripts among them.
_PARTED = re.compile(r"[,;\n\uff0c\u3001\uff1b\u060c\u061b]")
_FENCE = re.compile(r"^```(?:json)?\s*\n(.*?)\n?```$", re.DOTALL)


@dataclass(frozen=True, slots=True)
class TextForm:
    """What is asked of every text. `factors` of KAR and TRAWL: None = the built-in prompt's; as
    many as `min_factors` must be named, by a word or its beginning. Free prose speaks of most
    factors without their names; ask for more than one where the prompt wants headings."""

    framework: Framework
    side: Side = "user"
    factors: tuple[str, ...] | None = None
    min_factors: int = 1

    def faults(self, text: str) -> list[str]:
        """What is wrong with a text, a few fixed words each; empty for a valid text."""
        if not text.strip():
            return ["empty"]
        if self.framework == "rlmrec":
            return _json_faults(text, self.side)
        if self.framework == "once":
            return _phrase_faults(text) if self.side == "user" else _tag_faults(text)
        return self._factor_faults(text)

    def _factor_faults(self, text: str) -> list[str]:
        factors = self.factors
        if factors is None:
            factors = _FACTORS[(self.framework, self.side)]
        folded = text.casefold()
        named = sum(bool(re.search(_beginning(f.casefold()), folded)) for f in factors)
        return [] if named >= min(self.min_factors, len(factors)) else ["too few factors named"]


def _beginning(factor: str) -> str:
    """A pattern for a word that begins so; scripts without spaces have no words to begin."""
    return re.escape(factor) if unspaced(factor[:1]) else rf"\b{re.escape(factor)}"


def _json_faults(text: str, side: Side) -> list[str]:
    """RLMRec: a JSON object, alone or in a Markdown fence."""
    fenced = _FENCE.match(text.strip())
    try:
        value = json.loads(fenced[1] if fenced else text)
    except (ValueError, RecursionError):
        return ["not JSON"]
    if not isinstance(value, dict):
        return ["not a JSON object"]
    limits = {"summarization": _SUMMARY_WORDS[side], "reasoning": _REASONING_WORDS[side]}
    found: list[str] = []
    for key, most in limits.items():
        entry = value.get(key)
        if not isinstance(entry, str) or not entry.strip():
            found.append(f"no {key}")
        elif most is not None and count_words(entry) > most:
            found.append(f"{key} too long")
    return found


def _phrase_faults(text: str) -> list[str]:
    """ONCE, users: at most five words or short phrases, parted by commas or lines."""
    phrases = [p for p in _PARTED.split(text) if p.strip()]
    found: list[str] = []
    if not phrases:
        found.append("empty")
    if len(phrases) > _PHRASES:
        found.append("too many phrases")
    if any(count_words(p) > _PHRASE_WORDS for p in phrases):
        found.append("phrase too long")
    return found


def _tag_faults(text: str) -> list[str]:
    """ONCE, items: a description behind its tag."""
    before, tag, after = text.partition("[description]")
    if not tag or before.strip():
        return ["no [description] tag in front"]
    return [] if after.strip() else ["empty"]
