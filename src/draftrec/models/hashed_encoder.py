"""The encoder without a model: hashed TF-IDF, reduced by a truncated SVD (latent semantic
analysis: Deerwester et al., 1990). It knows words, not meanings, and needs no download. Of scripts
without spaces it knows characters and pairs of them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Seq
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer
from threadpoolctl import threadpool_limits

from draftrec.config import EncoderConfig
from draftrec.core import FloatArray
from draftrec.data.words import features
from draftrec.errors import DraftrecError
from draftrec.models.documents import Document, Encoded

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

    def encode(self, texts: Seq[str]) -> FloatArray:
        """float32 `[N, D]`, in the order of `texts`; those without a word get zeros."""
        return self.encode_documents([Document(text) for text in texts]).vectors

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
            lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
            vectors /= np.where(lengths > 0, lengths, 1.0)
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
