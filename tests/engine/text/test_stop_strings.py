"""Stop strings wherever tokens begin and end: as brute force and transformers find them."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizer, PreTrainedTokenizerFast, StopStringCriteria

from draftrec.core import Verdict
from draftrec.engine.text.stop_strings import (
    GrowingText,
    StopStrings,
    stop_strings_of,
)
from draftrec.jobs.knowledge.generator import Generator
from tests.engine.text.helpers import NEW_TOKENS, PROMPTS, requests
from tests.engine.text.test_controls import running
from tests.models import zoo

# U+00E9 is the bytes C3 A9, U+20AC is E2 82 AC, as byte-level BPE writes them.
_E, _EURO = ("Ã", "©"), ("â", "Ĥ", "¬")
#: Letters, a space, bytes of characters, and tokens that begin and end inside characters.
BYTE_LEVEL = (
    "a", "b", "c", "Ġ", *_E, *_EURO, "ab", "ba", "Ġa", "Ã©", "aÃ", "©b", "©Ã", "âĤ", "Ĥ¬",
    "¬â", "bâĤ", "¬Ã", "©Ġ",
)  # fmt: skip
FALLBACK = (
    "<unk>", "<0xC3>", "<0xA9>", "<0xE2>", "<0x82>", "<0xAC>", "▁", "▁a", "a", "b", "ab", "é",
    "a▁b",
)  # fmt: skip
PIECES = ("[UNK]", "a", "b", "##a", "##b", "##ab", "'", ".", "##.", "é", "##é")
STOPS = ("ab", "é", "aé", "éa", "€", "b€", "€€", " a", "a ", "b a", "éé", "ba", "a'b", "a.", "c")


def bpe(tokens: Seq[str], **special: str) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer; tests take its tokens as they are, so nothing is ever merged."""
    made = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=made, **special)


@cache
def tokenizer(kind: str) -> Any:
    if kind == "byte-level":
        return bpe(BYTE_LEVEL)
    if kind == "byte fallback":
        vocabulary = {token: i for i, token in enumerate(FALLBACK)}
        made = Tokenizer(models.BPE(vocabulary, [], byte_fallback=True, unk_token="<unk>"))
        made.pre_tokenizer = pre_tokenizers.Metaspace()
        made.decoder = decoders.Sequence(
            [
                decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
                decoders.Strip(" ", 1, 0),
            ]
        )  # fmt: skip
        return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>")
    vocabulary = {token: i for i, token in enumerate(PIECES)}
    made = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    made.decoder = decoders.WordPiece(cleanup=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        unk_token="[UNK]",
        clean_up_tokenization_spaces=kind == "cleaned",
    )


KINDS = ("byte-level", "byte fallback", "word pieces", "cleaned")


def decoded(kind: str, tokens: Seq[int]) -> str:
    return tokenizer(kind).decode(list(tokens), skip_special_tokens=True)


def brute_force(kind: str, tokens: Seq[int], stops: Seq[str]) -> int | None:
    """Tokens until a stop string is there for the first time."""
    for n in range(1, len(tokens) + 1):
        if any(stop in decoded(kind, tokens[:n]) for stop in stops):
            return n
    return None


def written(stop: StopStrings, tokens: Seq[int], cuts: Seq[int]) -> tuple[list[int], Any]:
    """What is kept of a text whose tokens come in pieces that end at `cuts`, and why it ended."""
    sequence = running([0], [], most=len(tokens) + 1)
    ends = sorted({*(c for c in cuts if 0 < c < len(tokens)), len(tokens)})
    begin = 0
    for end in ends:
        path = np.arange(end - begin - 1, dtype=np.int32)
        verdict = Verdict(path, np.array(tokens[begin:end], np.int32))
        sequence.extend(stop.cut([sequence], [verdict])[0], frozenset())
        if sequence.finish:
            break
        begin = end
    return sequence.context[1:].tolist(), sequence.finish


# Taken modulo the size of a vocabulary; sampled, because drawn integers are mostly small ones.
texts = st.lists(st.sampled_from(range(22 * 13)), min_size=1, max_size=14)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=200, deadline=None)
@given(
    drawn=texts,
    cuts=st.lists(st.integers(1, 13), max_size=4),
    stops=st.lists(st.sampled_from(STOPS), min_size=1, max_size=3),
)
@example(drawn=[1, 6, 2], cuts=[], stops=["a'b"])  # word pieces whose spaces are taken away
def test_a_text_ends_with_the_token_that_completes_a_stop_string(
    kind: str, drawn: list[int], cuts: list[int], stops: list[str]
) -> None:
    tokens = [i % len(tokenizer(kind)) for i in drawn]
    stop = stop_strings_of(stops, tokenizer(kind))
    assert stop
    kept, finish = written(stop, tokens, cuts)
    end = brute_force(kind, tokens, stops)
    assert kept == tokens[:end]
    assert finish == (None if end is None else "stop")
    text = decoded(kind, kept)
    assert (stop.first(text) < len(text)) == (end is not None)
    assert not any(s in text[: stop.first(text)] for s in stops)


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(drawn=texts, stops=st.lists(st.sampled_from(STOPS[:-3]), min_size=1, max_size=3))
def test_transformers_own_criterion_ends_texts_at_the_same_token(
    drawn: list[int], stops: list[str]
) -> None:
    if not hasattr(StopStringCriteria, "_token_to_bytes"):  # older ones know whole characters only
        stops = [s for s in stops if s.isascii()] or ["ab"]
    tokens = [i % len(BYTE_LEVEL) for i in drawn]
    criterion = StopStringCriteria(tokenizer("byte-level"), list(stops))
    after = [2, *tokens]  # a prompt with which no stop string begins
    lengths = range(2, len(after) + 1)
    ends = (n - 1 for n in lengths if bool(criterion(torch.tensor([after[:n]]), None)))  # type: ignore[arg-type]
    stop = stop_strings_of(stops, tokenizer("byte-level"))
    assert stop
    assert written(stop, tokens, range(len(tokens)))[0] == tokens[: next(ends, None)]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=100, deadline=None)
@given(
    drawn=st.lists(st.sampled_from(range(22 * 13)), min_size=1, max_size=230),
    step=st.integers(1, 7),
    stops=st.lists(st.sampled_from(STOPS), max_size=3),
)
@example(drawn=[6, 7, 8], step=1, stops=[])  # one character in three tokens
@example(drawn=[8, 1, 2, 2, 8], step=1, stops=[])  # one that a further byte undoes
@example(drawn=[8] * 60 + [1, 2] * 80 + [2], step=1, stops=[])  # many, longer than a window
@example(drawn=[1, 2] * 3, step=1, stops=["éé"])
def test_what_is_told_of_a_text_as_it_grows_is_its_text(
    kind: str, drawn: list[int], step: int, stops: list[str]
) -> None:
    tokens = [i % len(tokenizer(kind)) for i in drawn]
    tokens = tokens[: brute_force(kind, tokens, stops) if stops else None]
    stop = stop_strings_of(stops, tokenizer(kind))
    whole = decoded(kind, tokens)
    whole = whole[: stop.first(whole)] if stop else whole
    growing, told = GrowingText(tokenizer(kind), stop), ""
    for begin in range(0, len(tokens), step):
        told += growing.add(np.array(tokens[begin : begin + step], np.int32))
        assert whole.startswith(told)
        if stop is None and kind == "byte-level":  # nothing is held back but what is incomplete
            so_far = decoded(kind, tokens[: begin + step])
            assert told == so_far.rstrip("\ufffd")
    assert told + growing.finish(whole) == whole


def test_tokens_are_decoded_once_where_they_cannot_end_a_stop_string() -> None:
    calls: list[int] = []
    inner = tokenizer("byte-level")

    def decode(ids: Any) -> str:
        calls.append(len(ids))
        return inner.decode(ids.tolist())

    stop = StopStrings(["b€"], decode, anchor=0)
    assert written(stop, [0] * 50, range(50)) == ([0] * 50, None)
    assert calls == [1, 2]


@pytest.mark.parametrize("stop", ["b ", " b", "a b"])
def test_a_vocabulary_without_the_usual_letter(stop: str) -> None:
    """Where `a` is a special token for what is unknown, another one stands before tokens."""
    words = models.WordLevel({"<unk>": 0, "b": 1, "c": 2}, unk_token="<unk>")
    made = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words), unk_token="<unk>")
    stops = stop_strings_of([stop.replace("a", "c")], made)
    assert stops
    assert written(stops, [2, 1, 2, 1], [1, 2, 3])[1] == "stop"


class Stripped(PreTrainedTokenizer):
    """Of Python's kind; a space at the end of a text is not decoded until something follows it."""

    words = ("<unk>", "a", "b", "▁")

    @property
    def vocab_size(self) -> int:
        return len(self.words)

    def get_vocab(self) -> dict[str, int]:
        return {word: i for i, word in enumerate(self.words)}

    def _tokenize(self, text: str, **_: Any) -> list[str]:
        return list(text.replace(" ", "▁"))

    def _convert_token_to_id(self, token: str) -> int:
        return self.get_vocab().get(token, 0)

    def _convert_id_to_token(self, index: int) -> str:
        return self.words[index]

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        return "".join(tokens).replace("▁", " ").strip()


def test_a_stop_string_may_end_in_a_space_that_the_next_token_brings() -> None:
    stops = stop_strings_of(["a "], Stripped(unk_token="<unk>"))
    assert stops
    assert written(stops, [2, 1, 3, 2, 2], [1, 2, 3, 4]) == ([2, 1, 3, 2], "stop")


@pytest.mark.parametrize("left_out", [0, 99])
def test_bytes_are_one_run_over_tokens_that_decoding_leaves_out(left_out: int) -> None:
    """A special one, and one of the embedding's rows beyond the vocabulary."""
    tokens = [1, 2, left_out, 2]
    growing = GrowingText(tokenizer("byte fallback"))
    told = "".join(growing.add(np.array([token], np.int32)) for token in tokens)
    assert told + growing.finish("\ufffd" * 3) == decoded("byte fallback", tokens)


def test_a_vocabulary_that_cannot_write_the_usual_letter_at_all() -> None:
    stops = stop_strings_of(["bb"], bpe(("b", "c")))
    assert stops
    assert written(stops, [0, 1, 0, 0, 0], [1, 2]) == ([0, 1, 0, 0], "stop")


@cache
def ninety_seven() -> PreTrainedTokenizerFast:
    """As many tokens as the tiny models have; many begin or end inside a character."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    half = [f"{x}Ã" for x in letters] + [f"©{x}" for x in letters]
    rest = [f"{x}{x}" for x in letters[: zoo.VOCABULARY - 5 - 3 * len(letters)]]
    made = bpe(("<pad>", "<bos>", "<eos>", *letters, "Ã", "©", *half, *rest), eos_token="<eos>")
    made.add_special_tokens({"additional_special_tokens": ["<pad>", "<bos>"]})
    assert len(made) == zoo.VOCABULARY
    return made


def theirs(prompt: Seq[int], *stops: str) -> list[int]:
    ids = torch.tensor([prompt])
    more: dict[str, Any] = {"stop_strings": list(stops), "tokenizer": ninety_seven()}
    model: Any = zoo.plain("llama")
    out = model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=NEW_TOKENS,
        eos_token_id=2, pad_token_id=0, **(more if stops else {}),
    )  # fmt: skip
    return out[0, len(prompt) :].tolist()


def read(tokens: Seq[int]) -> str:
    return str(ninety_seven().decode(list(tokens)))


@cache
def plain_texts() -> list[list[int]]:
    return [theirs(prompt) for prompt in PROMPTS]


def load(folder: Path, **settings: Any) -> Generator:
    zoo.build("llama").save_pretrained(folder)
    ninety_seven().save_pretrained(folder)
    fixed = {"device": "cpu", "max_new_tokens": NEW_TOKENS, "batch_size": 3}
    return Generator.from_pretrained(folder, **(fixed | settings))


@pytest.mark.slow
@pytest.mark.parametrize("budget", [0, 8])
def test_texts_end_where_generate_ends_them(tmp_path: Path, budget: int) -> None:
    """At a character whose bytes two tokens share, and across the border of two whole ones."""
    texts = [read(tokens) for tokens in plain_texts()]
    shared = next(
        text[i - 1 : i + 2] for text in texts for i in range(1, len(text) - 1) if text[i] == "é"
    )
    first = texts[0].replace("\ufffd", "")
    stops = [shared, first[len(first) // 2 :][:3]]
    made = load(tmp_path, stop=tuple(stops), budget=budget)
    done = made.run(requests())
    expected = [theirs(prompt, *stops) for prompt in PROMPTS]
    assert [g.token_ids.tolist() for g in done] == expected != plain_texts()
    assert {g.finish_reason for g in done} > {"stop"}
    for generation in done:
        assert not any(stop in made.decode(generation.token_ids) for stop in stops)


@pytest.mark.slow
def test_a_stop_string_that_begins_in_the_prompt_ends_no_text(tmp_path: Path) -> None:
    """Unlike transformers' criterion, which does not tell prompt and text apart."""
    for letter in range(3, 29):
        prompt = [*PROMPTS[1], letter]
        text = theirs(prompt)
        stop = read([letter, text[0]])
        if stop.isascii() and stop not in read(text):
            break
    else:
        pytest.fail("no prompt and text are fit for this")
    assert theirs(prompt, stop) == text[:1]
    done = load(tmp_path, stop=(stop,)).run(requests([prompt]))
    assert done[0].token_ids.tolist() == text
