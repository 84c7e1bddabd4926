"""What sampled beams are a sample of: shared noise against AtSpeed's published relaxed rule.

A catalogue of a few items, whose probabilities under a tiny random target are known, and thousands
of users with one prompt: how often is each item among the K, against sampling without replacement
from these probabilities, computed exactly? Drafts come from the target itself (perfect) and from
another model. The last line is the result.
"""

from __future__ import annotations

import argparse
from itertools import combinations, permutations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import note, write_result
from transformers import AutoModelForCausalLM, LlamaConfig

from draftrec.engine.beams.accept import BeamRule, RelaxedDrafter, RelaxedRule, StrictRule, sampled
from draftrec.engine.beams.drafters import BeamDrafter, ModelDrafter, NoBeamDrafter
from draftrec.engine.beams.loop import BeamEngine, search
from draftrec.engine.beams.model import BeamModel, Constraint
from draftrec.engine.beams.pace import FixedPace
from draftrec.engine.beams.state import BeamRequest, Beams
from draftrec.engine.target import Target
from draftrec.items.trie import ItemTrie

LEVELS, CODES = 3, (3, 2, 2)
PROMPT = np.array([4, 9, 7], np.int32)


def tiny(seed: int) -> Target:
    """A random Llama of 2 layers x 16, vocabulary 16."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=16, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=64,
        initializer_range=0.3,
    )  # fmt: skip
    return Target(AutoModelForCausalLM.from_config(config).eval().requires_grad_(False))


def catalogue() -> ItemTrie:
    """Every combination of codes: 12 items."""
    ids = np.array([(3 + a, 6 + b, 8 + c) for a in range(CODES[0]) for b in range(CODES[1])
                    for c in range(CODES[2])], np.int32)  # fmt: skip
    return ItemTrie.build(np.arange(len(ids), dtype=np.int64), ids)


def run(trie: ItemTrie, count: int, k: int, drafter: BeamDrafter, rule: BeamRule) -> list[Beams]:
    """`count` users with one prompt."""
    model = BeamModel(tiny(0), Constraint(trie, LEVELS))
    users = [BeamRequest(key, PROMPT) for key in range(count)]
    return search(BeamEngine(model, drafter, k, 64, rule), users)


def item_shares(trie: ItemTrie) -> np.ndarray:
    """float64 `[items]`: the probability of each item, token by token among legal ones."""
    model = BeamModel(tiny(0), Constraint(trie, LEVELS, renormalise=True))
    engine = BeamEngine(model, NoBeamDrafter(), len(trie.items), 1)
    beams = search(engine, [BeamRequest(0, PROMPT)])[0]
    found = np.empty(len(trie.items))
    found[beams.leaves - trie.level_start[-2]] = np.exp(beams.scores)
    return found


def inclusion(p: np.ndarray, k: int) -> tuple[np.ndarray, float]:
    """Exact sampling of `k` without replacement: how often each item is among them, and the mass of
    the chosen ones on average."""
    found, mass = np.zeros(len(p)), 0.0
    for chosen in combinations(range(len(p)), k):
        chance = 0.0
        for order in permutations(chosen):
            left, share = 1.0, 1.0
            for item in order:
                share *= p[item] / left
                left -= p[item]
            chance += share
        found[list(chosen)] += chance
        mass += chance * float(p[list(chosen)].sum())
    return found, mass


def measured(trie: ItemTrie, beams: list[Beams], p: np.ndarray, k: int) -> dict[str, Any]:
    """Inclusion frequencies against the exact ones."""
    counts = np.zeros(len(p))
    mass = 0.0
    for b in beams:
        places = b.leaves - trie.level_start[-2]
        counts[places] += 1
        mass += float(p[places].sum())
    exact, wanted = inclusion(p, k)
    noise = np.sqrt(exact * (1 - exact) / len(beams))  # of a frequency that is right
    return {
        "kept_mass": round(mass / len(beams), 4),
        "exact_kept_mass": round(wanted, 4),
        "greatest_gap": round(float(np.abs(counts / len(beams) - exact).max()), 4),
        "greatest_gap_in_standard_errors": round(
            float((np.abs(counts / len(beams) - exact) / np.maximum(noise, 1e-9)).max()), 2
        ),
        "target_calls": round(float(np.mean([b.target_calls for b in beams])), 3),
    }


def main() -> None:
    """Parse, run, write beam-sampling.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--users", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, help="folder of the result file")
    args = parser.parse_args()
    trie = catalogue()
    p = item_shares(trie)
    found: dict[str, Any] = {}
    for k, n in ((2, 4), (4, 8)):
        expand = sampled(args.seed)
        rows: dict[str, Any] = {}
        constraint, pace = Constraint(trie, LEVELS), FixedPace(n, LEVELS - 1, LEVELS)
        plain = run(trie, args.users, k, NoBeamDrafter(), StrictRule(expand))
        rows["shared noise, no draft"] = measured(trie, plain, p, k)
        for name, seed in (("perfect", 0), ("other", 5)):
            own = ModelDrafter(BeamModel(tiny(seed), constraint), k, pace, expand)
            beams = run(trie, args.users, k, own, StrictRule(expand))
            same = [np.array_equal(a.leaves, b.leaves) for a, b in zip(beams, plain, strict=True)]
            rows[f"shared noise, {name} draft"] = {
                **measured(trie, beams, p, k), "same_as_without_draft": float(np.mean(same)),
            }  # fmt: skip
            drawn = RelaxedDrafter(BeamModel(tiny(seed), constraint), k, pace, args.seed)
            beams = run(trie, args.users, k, drawn, RelaxedRule(drawn))
            rows[f"published rule, {name} draft"] = measured(trie, beams, p, k)
        found[f"k={k} n={n}"] = rows
        note(f"k={k}: {rows}")
    payload = {"users": args.users, "items": len(p), "shares": p.round(4).tolist(), "runs": found}
    write_result("beam-sampling", payload, seed=args.seed, folder=args.results)


if __name__ == "__main__":
    main()
