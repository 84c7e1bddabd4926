"""Model folders on disk, as a user has them."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedModel, PreTrainedTokenizerFast

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
