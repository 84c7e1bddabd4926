"""Does this model, run our way, say what it says on its own? Asked once, when it is loaded.

Two texts of unequal length lie in one batch, an empty slot between them, and carry drafts. They are
long enough to leave every window and to pass every length at which rotary factors change, as far
as that takes a second or two; beyond, what `engine.masks` read off the model's own masks counts.
"""

from __future__ import annotations

import logging

import numpy as np
import torch
from transformers import PreTrainedModel

from draftrec.core import EMPTY_TREE, DraftTree, IntArray
from draftrec.engine.packing import Segment
from draftrec.engine.passes.eager import PackedRunner, PaddedRunner, sixteens
from draftrec.engine.passes.frozen import FrozenRunner
from draftrec.engine.rotary import context_length, short_limit
from draftrec.engine.target import Target, Way, check_served
from draftrec.engine.tree import make_tree
from draftrec.errors import UnsupportedModelError

_LOG = logging.getLogger("draftrec")
_SHORT, _USUAL = 6, 13
# Nodes beside a text whose rows must not heed them.
_COMPANY = (0, 2, 9, 33, 120)
# Weights times tokens, and layers times width times tokens squared, of all passes together.
_MOST_WORK = {"cpu": 1.5e10, "cuda": 1e12}


def checked_target(
    model: PreTrainedModel, *, exact: bool = False, narrow_kv: bool = False, way: Way = "eager"
) -> Target:
    """A `Target` whose passes run `way`, after comparing tree scores with plain forward passes.

    `narrow_kv`: as `Target`. `exact`: let a row give the same bits whatever else is in its pass,
    and look whether it does: `target.exact` says so; where it does not, a warning, and rows share
    what computes them as without `exact`. Passes written by hand are exact unasked where that takes
    no more rows than there are. Frozen passes, and those written by hand, that differ by
    more than rounding are run eagerly instead, which is said. Raises UnsupportedModelError if
    scores differ then: some architectures hide state, positions or masks of their own, and would
    give wrong texts silently.
    """
    check_served(model)
    own = model.config._attn_implementation
    try:
        target = Target(model, by_row=exact, narrow_kv=narrow_kv, way=way)
        allowed = 2e-3 if model.dtype == torch.float32 else 0.3
        error = _difference(target, _length(target), own)
        if isinstance(target.runner, FrozenRunner) and not error <= allowed:
            _LOG.warning("frozen passes of %s give other logits than its own", type(model).__name__)
            target.runner.broken = True
            error = _difference(target, _length(target), own)
        if target.by_hand and not error <= allowed:
            _LOG.warning("%s runs as it is: the pass written for it differs", type(model).__name__)
            target = Target(model, by_row=exact, narrow_kv=narrow_kv)
            error = _difference(target, _length(target), own)
        if exact:
            target.exact = _is_exact(target)
        elif target.by_hand:
            target.exact = _exact_as_it_is(target)
        runner = target.runner
        if not target.exact and runner.by_row and isinstance(runner, PackedRunner | FrozenRunner):
            runner.attend_together()
            error = _difference(target, _length(target), own)
    except torch.OutOfMemoryError:
        raise
    except (TypeError, AttributeError, LookupError, ValueError, RuntimeError) as failure:
        reason = " ".join(f"{type(failure).__name__}: {failure}".split())[:200].rstrip(". ")
        raise UnsupportedModelError(
            f"{type(model).__name__} cannot be served: its forward pass fails when it is given "
            f"positions, masks and a cache as draftrec lays them out ({reason}); use another "
            "architecture."
        ) from failure
    target.slab = None
    if limit := short_limit(model):
        _LOG.warning(
            "%s is exact up to %d tokens of prompt and text together, so its context ends there: "
            "beyond, its positions depend on how a text was computed",
            type(model).__name__,
            limit,
        )
    if not error <= allowed:
        raise UnsupportedModelError(
            f"{type(model).__name__} cannot be served: scoring a draft tree gives other logits "
            f"than its own forward pass (difference {error:.2g} standard deviations); it probably "
            "uses positions, masks or state that draftrec does not know."
        )
    return target


def _is_exact(target: Target) -> bool:
    """Take the least padding with which rows are what they are by themselves; False: there is none,
    which is said."""
    runner = target.runner
    if not target.attends_by_row:
        replaced = not isinstance(runner, PaddedRunner)
        why = "on a GPU it takes --pass frozen" if replaced else "its attention cannot be replaced"
        _LOG.warning("--exact is not built for %s (%s)", type(target.model).__name__, why)
        return False
    if isinstance(runner, PackedRunner):
        for padded in dict.fromkeys((runner.padded_rows, sixteens)):
            runner.padded_rows = padded
            if _alike(target):
                return True
    elif _alike(target):  # all its passes have one number of rows
        return True
    _LOG.warning(
        "--exact cannot be kept: in %s on this processor what a row of %s gives depends on the "
        "other rows of its pass; strict texts are those of plain decoding up to rounding",
        str(target.dtype).removeprefix("torch."),
        type(target.model).__name__,
    )
    return False


def _exact_as_it_is(target: Target) -> bool:
    """Let attention go by rows, if that alone makes rows what they are by themselves."""
    runner = target.runner
    assert isinstance(runner, PackedRunner)
    runner.by_row = True
    runner.by_row = _alike(target)
    return runner.by_row


def _alike(target: Target) -> bool:
    """Do tokens give the same bits one by one and as drafts, beside other texts and prompts?"""
    vocabulary = target.model.config.get_text_config().vocab_size
    random = np.random.default_rng(1)
    length = min(2 * _USUAL, context_length(target.model) - 2)
    text = random.integers(0, vocabulary, length).astype(np.int32)
    half = length // 2
    most = min(max(_COMPANY), vocabulary)
    target.reserve(3, length + most + 1)
    target.score([Segment(0, 0, text[:half], EMPTY_TREE, scored=False, length=length)])
    alone = torch.cat(
        [
            target.score([Segment(0, i, text[i : i + 1], EMPTY_TREE, length=length)]).logits.clone()
            for i in range(half, length)
        ]
    )
    strangers = random.choice(vocabulary, most, replace=False).astype(np.int32)
    start = np.array([7 % vocabulary], np.int32)
    for cut, company in zip((1, 2, 3, half - 1, half), _COMPANY, strict=True):
        # The prompt in two pieces; then what follows as a chain behind siblings, which lie between.
        others = strangers[:company].tolist()
        beside = Segment(2, 0, start, make_tree(others, [-1] * len(others)))
        for first, last in ((0, cut), (cut, half)):
            piece = Segment(1, first, text[first:last], EMPTY_TREE, scored=False, length=length)
            if last > first:
                target.score([beside, piece])
        wrong = [t for t in range(3) if t != text[half + 1]][: 0 if target.rule else 2]
        chained = [*wrong, *text[half + 1 :].tolist()]
        parents = [*[-1] * len(wrong), -1, *range(len(wrong), len(chained) - 1)]
        drafted = Segment(
            1, half, text[half : half + 1], make_tree(chained, parents), length=length
        )
        found = target.score([drafted, beside] if company else [drafted]).logits[: drafted.rows]
        if not torch.equal(found[[0, *range(1 + len(wrong), drafted.rows)]], alone):
            return False
    return True


def _length(target: Target) -> int:
    """Tokens of the longer text: a usual one, and one that passes what the model has."""
    most = context_length(target.model) - 4
    switch = 0 if target.rule is None else target.rule.limit
    long = max(target.longest_reach, switch) + 7
    if long <= _USUAL or long > most or _work(target.model, long) > _MOST_WORK[target.device.type]:
        return min(_USUAL, most)
    return long


def _work(model: PreTrainedModel, length: int) -> float:
    config = model.config.get_text_config()
    weights = sum(p.numel() for p in model.parameters())
    scores = float(config.num_hidden_layers) * config.hidden_size * length
    return 4.0 * length * (weights + scores)  # ours, and three plain passes


def _difference(target: Target, length: int, own: str | None) -> float:
    """Largest difference of logits, in their standard deviations; `own` names the attention that
    the model came with."""
    vocabulary = target.model.config.get_text_config().vocab_size
    random = np.random.default_rng(0)
    # Distinct siblings: a tree holds no token twice below one parent.
    nodes = random.choice(vocabulary, 3, replace=False).astype(np.int32)
    tree = make_tree(nodes.tolist(), [-1, 0, -1])
    if target.rule and not target.rule.anew:
        tree = EMPTY_TREE  # rows keep the factors of their own time, which no plain pass shows
    texts = [random.integers(0, vocabulary, n).astype(np.int32) for n in (_SHORT, length)]
    slots, half = (0, 2), length // 2
    target.reserve(3, length + len(tree) + 1)
    short, long = texts
    target.score([Segment(2, 0, long[:half], EMPTY_TREE, scored=False, length=length)])
    prompts = [
        Segment(0, 0, short[:-1], EMPTY_TREE, scored=False, length=_SHORT),
        Segment(2, half, long[half:-1], EMPTY_TREE, scored=False, length=length),
    ]
    target.score(prompts)
    found = target.score(
        [
            Segment(slot, len(text) - 1, text[-1:], tree, length=len(text))
            for slot, text in zip(slots, texts, strict=True)
        ]
    ).logits.float()
    ours = target.model.config._attn_implementation
    target.model.set_attn_implementation(own or "eager")
    try:
        expected = torch.cat([_plain(target.model, text, tree) for text in texts])
    finally:
        target.model.set_attn_implementation(ours or "eager")
    return float((found - expected).abs().max() / expected.std().clamp_min(1e-6))


@torch.inference_mode()
def _plain(model: PreTrainedModel, text: IntArray, tree: DraftTree) -> torch.Tensor:
    """Logits `[1 + nodes, V]` after the text and after each node, one plain pass per leaf."""
    ids, own, rows = text.tolist(), tree.token_ids.tolist(), [len(text) - 1, len(text)]
    if not len(tree):
        return _logits(model, ids)[rows[:1]].float()
    deep = _logits(model, [*ids, *own[:2]])[[*rows, len(text) + 1]]
    return torch.cat([deep, _logits(model, [*ids, own[2]])[rows[1:]]]).float()


def _logits(model: PreTrainedModel, ids: list[int]) -> torch.Tensor:
    return model(input_ids=torch.tensor([ids], device=model.device), use_cache=False).logits[0]
