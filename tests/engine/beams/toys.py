"""Random models and catalogues of a few tokens, and beam search written down without any tree."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np
import torch
import transformers as tf

from draftrec.engine.beams.drafters import BeamDrafter, ModelDrafter, NoBeamDrafter
from draftrec.engine.beams.loop import BeamEngine, search
from draftrec.engine.beams.model import BeamModel, Constraint
from draftrec.engine.beams.pace import FixedPace
from draftrec.engine.beams.state import BeamRequest, Beams
from draftrec.engine.target import Target
from draftrec.items.trie import Filter, ItemTrie

VOCABULARY = 40


def model(seed: int, scale: float = 0.5, layers: int = 2) -> tf.PreTrainedModel:
    """A tiny Llama: equal seeds give equal weights."""
    torch.manual_seed(seed)
    config = tf.LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=24, num_hidden_layers=layers,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=128,
        initializer_range=scale, bos_token_id=0, eos_token_id=1, pad_token_id=2,
    )  # fmt: skip
    return tf.AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)


def catalogue(seed: int, items: int, levels: int, codes: int) -> tuple[ItemTrie, np.ndarray]:
    """A trie over random items, and their token ids int32 `[items, levels]`; some collide."""
    random = np.random.default_rng(seed)
    ids = random.integers(0, codes, (items, levels)).astype(np.int32) + 3
    return ItemTrie.build(np.arange(items, dtype=np.int64), ids), ids


def requests(seed: int, users: int, filters: Seq[Filter | None] = (None,)) -> list[BeamRequest]:
    """Users with prompts of 1 to 12 tokens."""
    random = np.random.default_rng(seed)
    return [
        BeamRequest(
            i,
            random.integers(3, VOCABULARY, random.integers(1, 13)).astype(np.int32),
            filters[i % len(filters)],
        )
        for i in range(users)
    ]


@dataclass(frozen=True)
class Setting:
    """What a search is run with."""

    width: int = 4
    draft_width: int | tuple[int, ...] = 8
    steps: int = 3
    slots: int = 3
    renormalise: bool = False


def run(
    target: Target,
    trie: ItemTrie,
    asked: Seq[BeamRequest],
    setting: Setting,
    draft: Target | None = None,
) -> list[Beams]:
    """Search with a draft model, or plainly."""
    constraint = Constraint(trie, trie.levels, setting.renormalise)
    drafter: BeamDrafter = NoBeamDrafter()
    if draft is not None:
        pace = FixedPace(setting.draft_width, setting.steps, trie.levels)
        drafter = ModelDrafter(BeamModel(draft, constraint), setting.width, pace)
    engine = BeamEngine(BeamModel(target, constraint), drafter, setting.width, setting.slots)
    return search(engine, asked)


@torch.inference_mode()
def slow_beams(
    plain: tf.PreTrainedModel, ids: np.ndarray, request: BeamRequest, setting: Setting
) -> list[tuple[tuple[int, ...], float]]:
    """Beam search one prefix at a time, each by a forward pass of its own over the whole text."""
    allowed = ids if request.filter is None else _allowed(ids, request.filter)
    beams: list[tuple[tuple[int, ...], float]] = [((), 0.0)]
    for level in range(ids.shape[1]):
        grown: list[tuple[tuple[int, ...], float]] = []
        for path, score in beams:
            rows = allowed[(allowed[:, :level] == np.array(path, np.int32)).all(1)]
            legal = np.unique(rows[:, level])
            text = [*request.prompt_ids.tolist(), *path]
            logits = plain(input_ids=torch.tensor([text])).logits[0, -1]
            log_probs = torch.log_softmax(logits.float(), -1)[torch.as_tensor(legal).long()]
            if setting.renormalise:
                log_probs = torch.log_softmax(log_probs, -1)
            grown += [
                ((*path, int(t)), score + float(p))
                for t, p in zip(legal, log_probs.tolist(), strict=True)
            ]
        beams = sorted(grown, key=lambda b: (-b[1], b[0]))[: setting.width]
    return beams


def _allowed(ids: np.ndarray, kept: Filter) -> np.ndarray:
    return ids[kept.keeps(np.arange(len(ids)))]


def same(a: Seq[Beams], b: Seq[Beams], tolerance: float = 1e-4) -> bool:
    """Equal beams in equal order, scores up to rounding; near-ties may change places."""
    return all(_same(x, y, tolerance) for x, y in zip(a, b, strict=True))


def _same(a: Beams, b: Beams, tolerance: float) -> bool:
    if a.tokens.shape != b.tokens.shape or np.abs(a.scores - b.scores).max(initial=0) > tolerance:
        return False
    differs = (a.tokens != b.tokens).any(1)
    # What differs must be a near-tie with a neighbour, or with a beam just outside.
    return all(_tied(a, i, tolerance) for i in np.flatnonzero(differs).tolist())


def _tied(a: Beams, i: int, tolerance: float) -> bool:
    near = np.abs(a.scores - a.scores[i]) <= 2 * tolerance
    return bool(near.sum() > 1) or i == len(a.scores) - 1
