"""Small random encoder models on disk, as a user has them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as tf
from tokenizers.processors import TemplateProcessing

from draftrec.models.encoders import Document, Encoder
from tests.models import zoo
from tests.models.folders import make_tokenizer, save, word

CLS, SEP = 3, 4
LIMIT = 24
_SIZE: dict[str, Any] = {
    "vocab_size": zoo.VOCABULARY, "hidden_size": 16, "intermediate_size": 24,
    "num_hidden_layers": 2, "num_attention_heads": 2, "initializer_range": 0.5, "pad_token_id": 0,
}  # fmt: skip


def vectors_of(encoder: Encoder, texts: Sequence[str]) -> np.ndarray:
    """Vectors of texts that have no history."""
    return encoder.encode_documents([Document(text) for text in texts]).vectors


def framed_tokenizer() -> tf.PreTrainedTokenizerFast:
    """One token per word, between CLS and SEP."""
    tokenizer = make_tokenizer()
    tokenizer.pad_token, tokenizer.cls_token, tokenizer.sep_token = map(word, (0, CLS, SEP))
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{word(CLS)} $A {word(SEP)}", special_tokens=[(word(CLS), CLS), (word(SEP), SEP)]
    )
    return tokenizer


def bert(folder: Path) -> Path:
    """An encoder model that reads `LIMIT` tokens, CLS and SEP among them."""
    torch.manual_seed(3)
    config = tf.BertConfig(**_SIZE, max_position_embeddings=LIMIT)
    tf.BertModel(config).save_pretrained(folder)
    framed_tokenizer().save_pretrained(folder)
    return folder


def roberta(folder: Path) -> Path:
    """Positions start behind the padding's, so that two of its `LIMIT` rows are never used."""
    torch.manual_seed(3)
    config = tf.RobertaConfig(**{**_SIZE, "pad_token_id": 1}, max_position_embeddings=LIMIT)
    tf.RobertaModel(config, add_pooling_layer=False).save_pretrained(folder)
    framed_tokenizer().save_pretrained(folder)
    return folder


def t5(folder: Path) -> Path:
    """Encoder and decoder; without a limit of its own."""
    torch.manual_seed(3)
    config = tf.T5Config(
        vocab_size=zoo.VOCABULARY, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2,
        pad_token_id=0, eos_token_id=2,
    )  # fmt: skip
    tf.T5ForConditionalGeneration(config).save_pretrained(folder)
    framed_tokenizer().save_pretrained(folder)
    return folder


def llama(folder: Path) -> Path:
    """A decoder-only model, whose tokenizer adds no special tokens."""
    return save(zoo.build("llama"), folder)


def words(*tokens: int) -> str:
    """The text of these tokens."""
    return " ".join(map(word, tokens))
