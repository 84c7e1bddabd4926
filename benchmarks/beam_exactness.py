"""Strict speculative beams equal plain ones: thousands of drawn models, catalogues and settings.

Every case draws a target (of a few random ones, its layers packed as recommendations run them), a
draft (equal to the target, of its seed with fewer layers, another model, a flat one, random items),
a catalogue, K, N (for all levels, or for each), gamma, users at once, constraint, filters and 1 to
8 users. Items, order and scores must agree, the scores in every bit; where they are equal up to
rounding only (processors on which passes are not exact unasked), that is counted by itself. The
last line is the result.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import note, write_result
from transformers import AutoModelForCausalLM, LlamaConfig

from draftrec.engine.beams.accept import StrictRule, sampled
from draftrec.engine.beams.drafters import (
    BeamDrafter,
    ItemDrafter,
    MixedDrafter,
    ModelDrafter,
    NoBeamDrafter,
    Proposals,
)
from draftrec.engine.beams.loop import BeamEngine, search
from draftrec.engine.beams.model import BeamModel, Constraint
from draftrec.engine.beams.pace import FixedPace
from draftrec.engine.beams.state import BeamRequest, Beams, Expansion, plain
from draftrec.engine.passes.prepacked import prepack
from draftrec.engine.target import Target
from draftrec.items.trie import Filter, ItemTrie

VOCABULARY = 40
#: Seed, scale of the random weights, layers.
TARGETS = [(0, 0.5, 2), (1, 0.3, 2), (2, 0.8, 1)]
DRAFTS = {"perfect": (), "partial": (1,), "other": (9, 0.5, 1), "flat": (8, 0.01, 1)}
_NEAR = 1e-4


@cache
def model(role: str, seed: int, scale: float, layers: int) -> Target:
    """A tiny random Llama; `role` keeps a draft from sharing its target's cache."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=24, num_hidden_layers=layers,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=64,
        initializer_range=scale,
    )  # fmt: skip
    found = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    prepack(found)
    return Target(found, way="auto")


@dataclass(frozen=True)
class Shuffled:
    """Proposes random items."""

    places: np.ndarray

    def propose(self, history: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
        found = self.places[:most]
        return found, 1.0 / np.arange(1, len(found) + 1)


def drawn_case(number: int, seed: int) -> tuple[str, list[Beams], list[Beams]]:
    """The kind of draft, and what drafted and plain search found."""
    random = np.random.default_rng([seed, number])
    target = TARGETS[random.integers(len(TARGETS))]
    levels, items = int(random.integers(1, 6)), int(random.integers(2, 120))
    ids = random.integers(0, random.integers(2, 16), (items, levels)).astype(np.int32) + 3
    trie = ItemTrie.build(np.arange(items, dtype=np.int64), ids)
    width = int(random.integers(1, 12))
    constraint = Constraint(trie, levels, bool(random.integers(2)))
    expand: Expansion = sampled(number) if random.integers(4) == 0 else plain
    kind = [*DRAFTS, "items", "mixed"][random.integers(len(DRAFTS) + 2)]
    drafter = _drafter(kind, target, constraint, (width, expand), random)
    asked = _requests(trie, random)
    slots = int(random.integers(1, 9))

    def run(who: BeamDrafter) -> list[Beams]:
        base = BeamModel(model("target", *target), constraint)
        return search(BeamEngine(base, who, width, slots, StrictRule(expand)), asked)

    return kind, run(drafter), run(NoBeamDrafter())


def _drafter(
    kind: str,
    target: tuple[int, float, int],
    constraint: Constraint,
    rule: tuple[int, Expansion],
    random: np.random.Generator,
) -> BeamDrafter:
    width, expand = rule
    assert constraint.trie is not None
    widths = width + random.integers(0, 12, constraint.levels - 1)
    if random.integers(2):  # one for all levels
        widths[:] = widths[:1]
    pace = FixedPace(widths.tolist(), int(random.integers(0, 6)), constraint.levels)
    proposals = Proposals(constraint.trie, Shuffled(random.permutation(len(constraint.trie.items))))
    if kind == "items":
        return ItemDrafter(proposals, pace)
    weights = target
    if kind == "partial":
        weights = (target[0], target[1], 1)
    elif kind in ("other", "flat"):
        weights = DRAFTS[kind]  # type: ignore[assignment]
    drafter = ModelDrafter(BeamModel(model("draft", *weights), constraint), width, pace, expand)
    if kind == "mixed":
        return MixedDrafter(drafter, proposals, int(random.integers(0, 12)))
    return drafter


def _requests(trie: ItemTrie, random: np.random.Generator) -> list[BeamRequest]:
    asked: list[BeamRequest] = []
    for key in range(int(random.integers(1, 9))):
        prompt = random.integers(3, VOCABULARY, random.integers(1, 14)).astype(np.int32)
        some = random.permutation(len(trie.items))
        kept = [None, None, Filter.deny(trie, some[::3]), Filter.allow(trie, some[:7])]
        asked.append(BeamRequest(key, prompt, kept[random.integers(4)]))
    return asked


def compared(a: Beams, b: Beams) -> str:
    """identical, rounded (equal scores up to rounding), near-tie (other places too) or mismatch."""
    if np.array_equal(a.tokens, b.tokens):
        if np.array_equal(a.scores, b.scores):
            return "identical"
        return "rounded" if np.abs(a.scores - b.scores).max() <= _NEAR else "mismatch"
    if a.tokens.shape != b.tokens.shape or np.abs(a.scores - b.scores).max() > _NEAR:
        return "mismatch"
    for i in np.flatnonzero((a.tokens != b.tokens).any(1)).tolist():
        tied = (np.abs(a.scores - a.scores[i]) <= _NEAR).sum() > 1
        if not tied and i != len(a.scores) - 1:
            return "mismatch"
    return "near_tie"


def main() -> None:
    """Parse, run, write beam-exactness.json; exit 1 on a mismatch."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, help="folder of the result file")
    args = parser.parse_args()
    start = time.perf_counter()
    found: dict[str, Counter[str]] = {}
    calls: dict[str, list[tuple[int, int]]] = {}
    wrong: list[dict[str, Any]] = []
    for number in range(args.cases):
        kind, drafted, plain_beams = drawn_case(number, args.seed)
        verdicts = [compared(a, b) for a, b in zip(drafted, plain_beams, strict=True)]
        found.setdefault(kind, Counter()).update(verdicts)
        calls.setdefault(kind, []).extend(
            (a.target_calls, b.target_calls) for a, b in zip(drafted, plain_beams, strict=True)
        )
        if "mismatch" in verdicts:
            wrong.append({"case": number, "draft": kind})
        if (number + 1) % 1000 == 0:
            note(f"{number + 1:,} cases, {time.perf_counter() - start:.0f} s, {len(wrong)} wrong")
    payload = {
        "cases": args.cases,
        "searches": sum(sum(c.values()) for c in found.values()),
        "mismatches": sum(c["mismatch"] for c in found.values()),
        "rounded": sum(c["rounded"] for c in found.values()),
        "near_ties": sum(c["near_tie"] for c in found.values()),
        "by_draft": {
            kind: {
                **counts,
                "target_calls": round(float(np.mean([a for a, _ in calls[kind]])), 3),
                "plain_calls": round(float(np.mean([b for _, b in calls[kind]])), 3),
            }
            for kind, counts in found.items()
        },
        "wrong": wrong[:20],
    }
    write_result("beam-exactness", payload, seed=args.seed, folder=args.results)
    raise SystemExit(1 if wrong else 0)


if __name__ == "__main__":
    main()
