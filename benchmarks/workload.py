"""A synthetic workload for draft pools: templated texts of groups, with known repetition.

Every group has an outline of sections; a section is one of a few phrases, some of them shared by
all groups, and between sections stand a few free words. Prints how much of it repeats:
`python benchmarks/workload.py`.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass

import numpy as np

from draftrec.core import IntArray


@dataclass(frozen=True)
class Workload:
    """`texts` texts of `length` tokens for `groups` groups over `vocabulary` token ids.

    The sizes are those of a published comparison of draft structures; the defaults of the other
    settings give its shares of repeated 2-grams (79 %) and 8-grams (48 %).
    """

    texts: int = 2000
    length: int = 300
    groups: int = 50
    vocabulary: int = 32_000
    sections: int = 24
    variants: int = 5
    phrase: int = 18
    free_words: float = 3.2
    shared: float = 0.3


#: Token ids below this are left to special tokens.
FIRST = 4


def make_texts(workload: Workload, seed: int) -> list[tuple[IntArray, str]]:
    """(int32 `[length]`, group) pairs, groups in random order."""
    random = np.random.default_rng(seed)
    outlines = _outlines(workload, random)
    chosen = random.integers(workload.groups, size=workload.texts)
    return [(_text(workload, outlines[g], random), f"g{g:02d}") for g in chosen]


def repeated_share(texts: list[IntArray], n: int) -> float:
    """Share of n-grams that occurred before, in an earlier text or earlier in the same one."""
    seen: set[bytes] = set()
    repeated = total = 0
    for text in texts:
        content, size = np.ascontiguousarray(text, np.int32).tobytes(), 4 * n
        for start in range(0, len(content) - size + 1, 4):
            gram = content[start : start + size]
            repeated += gram in seen
            seen.add(gram)
            total += 1
    return repeated / max(total, 1)


def _outlines(workload: Workload, random: np.random.Generator) -> list[list[list[IntArray]]]:
    """Phrases by group, section and variant."""
    common = [_phrase(workload, random) for _ in range(workload.sections * workload.variants)]
    shared = random.random((workload.groups, workload.sections, workload.variants))
    return [
        [
            [
                common[random.integers(len(common))]
                if shared[g, s, v] < workload.shared
                else _phrase(workload, random)
                for v in range(workload.variants)
            ]
            for s in range(workload.sections)
        ]
        for g in range(workload.groups)
    ]


def _phrase(workload: Workload, random: np.random.Generator) -> IntArray:
    return _words(workload, random, max(2, int(random.poisson(workload.phrase))))


def _text(
    workload: Workload, outline: list[list[IntArray]], random: np.random.Generator
) -> IntArray:
    weights = 1.0 / np.arange(1, workload.variants + 1)
    weights /= weights.sum()
    parts: list[IntArray] = []
    size = section = 0
    while size < workload.length:
        phrase = outline[section % workload.sections][random.choice(workload.variants, p=weights)]
        free = _words(workload, random, int(random.poisson(workload.free_words)))
        parts += [phrase, free]
        size += len(phrase) + len(free)
        section += 1
    return np.concatenate(parts)[: workload.length]


def _words(workload: Workload, random: np.random.Generator, count: int) -> IntArray:
    """Words as frequent as in language: the probability falls with the rank."""
    span = workload.vocabulary - FIRST
    ranks = np.exp(random.random(count) * np.log(span)).astype(np.int32)
    return (FIRST + (ranks.astype(np.int64) * 7919) % span).astype(np.int32)


def main() -> None:
    """Print sizes and shares as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--texts", type=int, default=Workload.texts)
    args = parser.parse_args()
    texts = [t for t, _ in make_texts(Workload(texts=args.texts), args.seed)]
    shares = {f"repeated_{n}_grams": round(repeated_share(texts, n), 4) for n in (2, 4, 8)}
    print(json.dumps({"texts": len(texts), "tokens": sum(map(len, texts)), **shares}))


if __name__ == "__main__":
    main()
