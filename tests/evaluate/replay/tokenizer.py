"""What drafters are told of a tokenizer whose tokens mean nothing."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any


@dataclass(frozen=True)
class ToyTokenizer:
    """It knows no words, and so no stop words."""

    bos_token_id: int | None = None
    eos_token_id: int | None = 0

    def __call__(self, texts: Seq[str], **options: Any) -> SimpleNamespace:
        return SimpleNamespace(input_ids=[[] for _ in texts])
