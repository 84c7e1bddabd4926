"""Encoders on this machine: texts per second, and how far a vector depends on its batch.

Made-up texts of common words, `--words` on average, lengths drawn evenly from a tenth to nineteen
tenths of that. Precisions run one after another in every round. Seconds are those of the clock; CPU
seconds, which other load on the machine disturbs less, are given beside them. Differences are the
largest distance between two vectors of a text over that vector's length. One JSON line last.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence as Seq
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import interleave, note, spread, write_result

from draftrec.config import EncoderConfig
from draftrec.models.encoders import Document, Encoder, load_encoder

_PROSE = """
user prefers films with strong stories quiet humour long journeys brave heroes and a slow build of
tension while short loud comedies music old wars space crime family love seldom hold the interest of
this person who also reads about history travel food science nature
"""


def texts(count: int, mean: int, seed: int) -> list[str]:
    """`count` texts of `mean` words on average."""
    random, words = np.random.default_rng(seed), _PROSE.split()
    lengths = random.integers(max(1, mean // 10), mean * 19 // 10 + 1, count)
    return [" ".join(random.choice(words, n)) for n in lengths]


def speed(encoders: dict[str, Encoder], made: Seq[str], rounds: int) -> dict[str, Any]:
    """Texts per second of each encoder, by the clock and by CPU time."""
    busy: dict[str, list[float]] = {name: [] for name in encoders}

    def timed(name: str) -> None:
        start = time.process_time()
        vectors_of(encoders[name], made)
        busy[name].append(time.process_time() - start)

    for name in encoders:
        vectors_of(encoders[name], made[:8])
    seconds = interleave({name: lambda n=name: timed(n) for name in encoders}, rounds)
    found: dict[str, Any] = {}
    for name, encoder in encoders.items():
        tokens = int(encoder.encode_documents([Document(text) for text in made]).tokens.sum())
        found[name] = {
            "texts_per_second": spread([len(made) / s for s in seconds[name]]),
            "texts_per_cpu_second": spread([len(made) / s for s in busy[name]]),
            "tokens_per_text": round(tokens / len(made), 2),
        }
    return found


def vectors_of(encoder: Encoder, made: Seq[str]) -> np.ndarray:
    return encoder.encode_documents([Document(text) for text in made]).vectors


def distance(one: np.ndarray, two: np.ndarray) -> float:
    """The largest distance between vectors of one text, over the length of the first."""
    far = np.linalg.norm(one - two, axis=1) / np.linalg.norm(one, axis=1)
    return float(f"{far.max():.3g}")


def batches(name: str, dtype: str, made: Seq[str], sizes: Seq[int]) -> dict[str, float]:
    """How far vectors of other batch sizes lie from those of one text at a time."""
    alone = vectors_of(load_encoder(name, EncoderConfig(dtype=dtype, batch_size=1)), made)  # type: ignore[arg-type]
    found: dict[str, float] = {}
    for size in sizes:
        config = EncoderConfig(dtype=dtype, batch_size=size)  # type: ignore[arg-type]
        found[str(size)] = distance(alone, vectors_of(load_encoder(name, config), made))
    return found


def main(argv: Seq[str] | None = None) -> None:
    args = _arguments(argv)
    torch.set_num_threads(1)
    made = texts(args.texts, args.words, args.seed)
    encoders: dict[str, Encoder] = {
        dtype: load_encoder(args.encoder, EncoderConfig(dtype=dtype))  # type: ignore[arg-type]
        for dtype in ("float32", "bfloat16")
    }
    note("speed")
    model = speed(encoders, made, args.rounds)
    hashed = {"hashed": load_encoder("hashed:256", EncoderConfig(), made)}
    note("batches")
    payload = {
        "settings": {k: v for k, v in vars(args).items() if k != "results"},
        "speed": {**model, **speed(hashed, made, args.rounds)},
        "distance_of_batch_sizes": {d: batches(args.encoder, d, made, (8, 32)) for d in encoders},
        "distance_of_bfloat16": distance(*(vectors_of(encoders[d], made) for d in encoders)),
    }
    write_result("encoders", payload, seed=args.seed, folder=args.results)


def _arguments(argv: Seq[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--encoder", default="minilm")
    parser.add_argument("--texts", type=int, default=128)
    parser.add_argument("--words", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, help="folder of the result file")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
