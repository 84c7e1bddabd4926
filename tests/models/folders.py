"""Model folders on disk, as a user has them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from draftrec.engine.learned.head import DraftHead, HeadShape
from draftrec.models.drafters import DrafterInfo, save_drafter
from tests.models import zoo


def word(token: int) -> str:
    """What token `token` reads as; no word begins with another."""
    return f"w{token:03}"


def make_tokenizer(words: int = zoo.VOCABULARY, eos: int = 2) -> PreTrainedTokenizerFast:
    """One token per word."""
    vocabulary = {word(i): i for i in range(words)}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token=word(0)))
    tokenizer.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token=word(0), eos_token=word(eos)
    )


def save(model: PreTrainedModel, folder: Path) -> Path:
    """Configuration, weights and tokenizer in `folder`."""
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def save_head(
    folder: Path, config: Any, fingerprint: Mapping[str, str], *, seed: int = 0, words: int = 60
) -> Path:
    """A draft head of three levels for the model with this configuration and fingerprint, which
    knows nothing of it yet; and most of its tokens."""
    torch.manual_seed(seed)
    shape = HeadShape.of(config)
    sizes = {name: getattr(shape, name) for name in HeadShape.__slots__}
    mixing = {"weights": [[0.1 * seed + i for i in range(8)]] * 3} if seed else None
    info = DrafterInfo(
        shape=sizes, levels=3, vocabulary=words, mixing=mixing,
        model=fingerprint["model"], tokenizer=fingerprint["tokenizer"],
    )  # fmt: skip
    save_drafter(folder, DraftHead(shape).state_dict(), torch.arange(words), info)
    return folder
