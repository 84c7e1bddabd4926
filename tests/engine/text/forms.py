"""A small tokenizer that reads any bytes, tiny models with its vocabulary, and their texts under a
grammar, written one token at a time by transformers' model alone."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import numpy as np
import torch
import transformers as tf
from llguidance import LLMatcher
from llguidance.hf import from_tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from draftrec.config import StructureConfig
from draftrec.engine.target import Target
from tests.models import zoo

#: More than the tokenizer has: rows of the embedding that stand for no token.
VOCABULARY = 330
#: `</s>` and `<end>`: either ends a text.
EOS = frozenset([2, 3])
SCHEMA = {
    "type": "object",
    "properties": {
        "summary": {"type": "string", "minLength": 1, "maxLength": 7},
        "mood": {"enum": ["calm", "cheerful", "cool"]},
        "scores": {"type": "array", "items": {"type": "integer"}, "minItems": 1, "maxItems": 2},
    },
    "required": ["summary", "mood", "scores"],
    "additionalProperties": False,
}
FORMS = {
    "json": StructureConfig(json_schema=json.dumps(SCHEMA)),
    "regex": StructureConfig(regex="(The user likes|They prefer) [a-z]{2,9}( and [a-z]{1,5})?\\."),
    "grammar": StructureConfig(grammar='start: "<" WORD ("," WORD)* ">"\nWORD: /[a-d]+/'),
}


@cache
def tokenizer() -> Any:
    """Byte-level BPE with a few merges that cross JSON's borders, such as `{"`."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<pad>", "<s>", "</s>", "<end>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = ['{"summary": "the mood", "mood": "calm", "scores": [1, 23]}', "The user likes calm."]
    made.train_from_iterator(texts * 4, trainer)
    return tf.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )


@cache
def plain_model(name: str) -> tf.PreTrainedModel:
    """As transformers runs it. Never give it to a `Target`."""
    return zoo.build(name, vocab_size=VOCABULARY)


@cache
def target(name: str) -> Target:
    """The same weights behind our engine."""
    return Target(zoo.build(name, vocab_size=VOCABULARY))


def grammar_of(form: StructureConfig) -> str:
    """llguidance's own grammar, JSON laid out as draftrec does."""
    if form.json_schema:
        layout = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
        return LLMatcher.grammar_from_json_schema(form.json_schema, defaults=layout)
    if form.regex:
        return LLMatcher.grammar_from_regex(form.regex)
    return LLMatcher.grammar_from_lark(form.grammar or "")


@cache
def step_by_step(name: str, form: str, prompt: tuple[int, ...], most: int) -> list[int]:
    """Greedy, a mask of llguidance at every step, the whole context anew: no cache, no draft."""
    tokens = from_tokenizer(tokenizer(), n_vocab=VOCABULARY, eos_token=sorted(EOS))
    matcher = LLMatcher(tokens, grammar_of(FORMS[form]))
    text: list[int] = []
    while len(text) < most and not set(text[-1:]) & EOS:
        ids = torch.tensor([[*prompt, *text]])
        with torch.no_grad():
            scores = plain_model(name)(input_ids=ids, use_cache=False).logits[0, -1].clone()
        mask = np.unpackbits(np.frombuffer(matcher.compute_bitmask(), np.uint8), bitorder="little")
        scores[torch.from_numpy(mask[:VOCABULARY] == 0)] = -torch.inf
        text.append(int(scores.argmax()))
        assert matcher.consume_token(text[-1])
    return text
