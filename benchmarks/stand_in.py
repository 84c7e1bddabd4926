"""A tokenizer and a tiny random model made on the spot, for dry runs and where none is at hand."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

import torch
from shop import knowledge_text, stream_records
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE with `<pad>`, `<s>` (in front of every text) and `</s>` as ids 0, 1 and 2."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )


def world_texts(count: int, seed: int = 0) -> list[str]:
    """Knowledge texts about the readers of the fictional bookshop."""
    return [knowledge_text(r, seed=seed) for r in islice(stream_records("user", seed=seed), count)]


def save_tiny_model(folder: Path, *, seed: int = 0, width: int = 32, context: int = 1024) -> Path:
    """A two-layer Llama with random weights, and its tokenizer, as a model folder.

    It writes the same noise every time and seldom ends a text, which is what job tests need.
    """
    torch.manual_seed(seed)
    tokenizer = train_tokenizer(world_texts(40), 512)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=2 * width,
        num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=context, tie_word_embeddings=True,
        bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for weight in model.parameters():
            # Fresh weights give nearly flat logits, unlike any model that writes.
            weight.mul_(4.0)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


if __name__ == "__main__":
    save_tiny_model(Path(sys.argv[1]))
