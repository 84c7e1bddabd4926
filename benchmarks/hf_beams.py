"""Hugging Face's own beam search, kept to a catalogue in two ways: what genrec.py compares with."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import LogitsProcessor, LogitsProcessorList

from draftrec.items.trie import ItemTrie


@dataclass(frozen=True, eq=False)
class HfBeams:
    """`generate(num_beams=K)` over left-padded batches.

    `masked` False: `prefix_allowed_tokens_fn`, which transformers offers, a Python call per beam
    and step. True: a logits processor that looks all beams up in our trie at once, which it does
    not offer, but which a good engineer would write.
    """

    model: Any
    trie: ItemTrie
    pad: int
    batch: int = 32

    def run(self, prompts: Seq[np.ndarray], k: int, *, masked: bool) -> list[np.ndarray]:
        """The `k` best beams of every prompt, int32 `[k, L]`; the prompts run in their order."""
        found: list[np.ndarray] = []
        for first in range(0, len(prompts), self.batch):
            found += self._batch(prompts[first : first + self.batch], k, masked=masked)
        return found

    @torch.inference_mode()
    def _batch(self, prompts: Seq[np.ndarray], k: int, *, masked: bool) -> list[np.ndarray]:
        width, levels = max(map(len, prompts)), self.trie.levels
        ids = torch.full((len(prompts), width), self.pad, dtype=torch.long)
        seen = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, width - len(prompt) :] = torch.as_tensor(prompt.astype(np.int64))
            seen[row, width - len(prompt) :] = 1
        options: dict[str, Any] = {"prefix_allowed_tokens_fn": allowed_by(self.trie, width)}
        if masked:
            options = {"logits_processor": LogitsProcessorList([TrieMask(self.trie, width)])}
        answer = self.model.generate(
            ids,
            attention_mask=seen,
            num_beams=k,
            num_return_sequences=k,
            min_new_tokens=levels,
            max_new_tokens=levels,
            do_sample=False,
            length_penalty=0.0,
            pad_token_id=self.pad,
            **options,
        )
        return list(answer[:, width:].numpy().astype(np.int32).reshape(len(prompts), k, levels))


def allowed_by(trie: ItemTrie, width: int) -> Callable[[int, torch.Tensor], list[int]]:
    """The legal next tokens of one beam, remembered by prefix."""
    known: dict[tuple[int, ...], list[int]] = {}

    def allowed(_: int, text: torch.Tensor) -> list[int]:
        prefix = tuple(text[width:].tolist())
        if prefix not in known:
            node = _nodes(trie, np.array([prefix], np.int32))
            known[prefix] = trie.tokens[trie.children(node)[1]].tolist()
        return known[prefix]

    return allowed


class TrieMask(LogitsProcessor):
    """-inf for every token that leads to no item, all beams at once."""

    def __init__(self, trie: ItemTrie, width: int) -> None:
        self.trie, self.width = trie, width

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        nodes = _nodes(self.trie, input_ids[:, self.width :].numpy().astype(np.int32))
        legal = torch.from_numpy(self.trie.masks(nodes, scores.shape[1]))
        return scores.masked_fill(~legal, -torch.inf)


def _nodes(trie: ItemTrie, prefixes: np.ndarray) -> np.ndarray:
    if not prefixes.shape[1]:
        return np.zeros(len(prefixes), np.int64)
    return trie.walk(prefixes)[:, -1]
