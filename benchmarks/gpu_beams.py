"""Beams on a model of given size: N-to-K drafts against plain tree beams.

Weights are random, so that no draft model could agree with the target. The target's own beams are
therefore found by plain search first, and a draft model of an eighth of its layers runs for what it
takes, while what it drafted holds those beams or not, by decree: always, or as often as on a
trained target. Every pass of both models costs what it costs, and the answer is checked to be plain
search's.
"""

from __future__ import annotations

import json
from collections.abc import Sequence as Seq
from dataclasses import replace
from typing import Any

import numpy as np
from common import RESULTS, interleave, note, paired_ratio, spread
from gpu_steps import Shape, build, sync_for

from draftrec.engine.beams.accept import StrictRule
from draftrec.engine.beams.drafters import BeamDrafter, ModelDrafter, NoBeamDrafter
from draftrec.engine.beams.loop import BeamEngine, search
from draftrec.engine.beams.model import BeamModel, Constraint
from draftrec.engine.beams.pace import FixedPace
from draftrec.engine.beams.state import BeamRequest, Beams, UserSearch
from draftrec.engine.target import Target
from draftrec.items.trie import ItemTrie

LEVELS, CODES = 4, 256
#: Tokens of a prompt: twenty items, and some before them.
PROMPT = 20 * LEVELS + 8
#: By user and level, token paths int32 `[k, level]` of plain search's beams.
Paths = dict[int, dict[int, np.ndarray]]


class Recording(StrictRule):
    """Plain search that remembers its beams level by level."""

    def __init__(self) -> None:
        super().__init__()
        self.paths: Paths = {}

    def decide(self, model: BeamModel, search: UserSearch, width: int) -> None:
        super().decide(model, search, width)
        kept = self.paths.setdefault(search.request.key, {})
        kept[search.level] = search.tree.token_paths(search.kept.nodes)


class Decreed(ModelDrafter):
    """Runs its model, and then drafts what `paths` says: with chance `held`, by user and level, all
    beams of plain search and its own others, else without the last of those beams."""

    def __init__(self, model: BeamModel, kept: int, width: int, paths: Paths, held: float) -> None:
        levels = model.constraint.levels
        super().__init__(model, kept, FixedPace(width, levels - 1, levels))
        self.paths, self.held = paths, held

    def draft(self, running: Seq[UserSearch]) -> None:
        super().draft(running)
        for s in running:
            for step, nodes in enumerate(s.levels):
                level = s.level + step + 1
                wanted = self._nodes(s, self.paths[s.request.key][level])
                random = np.random.default_rng([s.request.key, level])
                if random.random() >= self.held:
                    wanted, nodes = wanted[:-1], nodes[nodes != wanted[-1]]
                others = nodes[~np.isin(nodes, wanted)]
                most = max(len(nodes), len(wanted))
                s.levels[step] = np.concatenate((wanted, others))[:most]

    def _nodes(self, s: UserSearch, paths: np.ndarray) -> np.ndarray:
        trie = self.model.constraint.trie
        assert trie is not None
        nodes = np.full(len(paths), -1, np.int32)
        places = trie.walk(paths)
        for level in range(paths.shape[1]):
            nodes = s.tree.add(nodes, paths[:, level], places[:, level])
        return nodes


def catalogue(items: int) -> ItemTrie:
    """Items of random codes."""
    random = np.random.default_rng(0)
    codes = random.integers(0, CODES, (items, LEVELS)) + np.arange(LEVELS) * CODES + 3
    return ItemTrie.build(np.arange(items, dtype=np.int64), codes.astype(np.int32))


def requests(users: int) -> list[BeamRequest]:
    """Random histories."""
    random = np.random.default_rng(1)
    prompts = random.integers(3, 3 + LEVELS * CODES, (users, PROMPT)).astype(np.int32)
    return [BeamRequest(i, prompt) for i, prompt in enumerate(prompts)]


def trained_agreement() -> float | None:
    """How often a level's beams were all among those drafted by the model of the committed
    measurement, K = 20: so that as many steps are accepted as there."""
    path = RESULTS / "genrec-beauty.json"
    if not path.is_file():
        return None
    whole = json.loads(path.read_text())["whole"]["20"]
    name = next(n for n in whole if n.startswith("strict ") and not n.endswith("items"))
    steps = whole[name]["accepted_steps"]
    shares = np.linspace(0.0, 1.0, 1001)
    expected = sum(shares**k for k in range(1, LEVELS))
    return float(np.round(shares[int(np.argmin(np.abs(expected - steps)))], 3))


def measure_beams(
    target: Target,
    shape: Shape,
    trie: ItemTrie,
    sizes: tuple[Seq[int], Seq[int]],
    rounds: int,
) -> dict[str, Any]:
    """Milliseconds per user of plain and drafted search at every K and number of users at once;
    `sizes`: the Ks, and users."""
    small = replace(shape, layers=max(1, shape.layers // 8))
    draft = Target(build(small, target.device, seed=1), way="auto")
    shares = {"always": 1.0}
    if (trained := trained_agreement()) is not None:
        shares["as trained"] = trained
    report: dict[str, Any] = {"items": len(trie.items), "draft_layers": small.layers}
    report |= {"prompt": PROMPT, "held": shares}
    for k in sizes[0]:
        for users in sizes[1]:
            cell = _cell(target, draft, trie, (k, users), shares, rounds)
            report[f"k_{k}_users_{users}"] = cell
            ratios = ", ".join(f"{name} {cell[name]['over_plain']['median']}x" for name in shares)
            note(f"  beams K={k}, {users} users: {cell['plain']['ms_per_user']['median']} ms, "
                 f"drafts {ratios}")  # fmt: skip
    return report


def _cell(
    target: Target,
    draft: Target,
    trie: ItemTrie,
    size: tuple[int, int],
    shares: dict[str, float],
    rounds: int,
) -> dict[str, Any]:
    k, users = size
    asked, constraint = requests(users), Constraint(trie, LEVELS)
    base, small = BeamModel(target, constraint), BeamModel(draft, constraint)
    recording = Recording()
    expected = search(BeamEngine(base, NoBeamDrafter(), k, users, recording), asked)
    drafters: dict[str, BeamDrafter] = {"plain": NoBeamDrafter()} | {
        name: Decreed(small, k, 2 * k, recording.paths, held) for name, held in shares.items()
    }
    found: dict[str, list[Beams]] = {}

    def run(name: str) -> None:
        found[name] = search(BeamEngine(base, drafters[name], k, users), asked)

    for name in drafters:
        run(name)
    seconds = interleave(
        {name: (lambda name=name: run(name)) for name in drafters}, rounds,
        sync=sync_for(target.device),
    )  # fmt: skip
    return {
        name: {
            "ms_per_user": spread([1e3 * s / users for s in seconds[name]]),
            "over_plain": paired_ratio(seconds["plain"], seconds[name]),
            "target_calls": round(float(np.mean([b.target_calls for b in beams])), 3),
            "accepted_steps": round(float(np.mean([b.accepted_steps for b in beams])), 3),
            "same_items": sum(
                np.array_equal(a.tokens, b.tokens) for a, b in zip(beams, expected, strict=True)
            ),
            "same_bits": sum(
                a.scores.tobytes() == b.scores.tobytes()
                for a, b in zip(beams, expected, strict=True)
            ),
            "users": users,
        }
        for name, beams in found.items()
    }
