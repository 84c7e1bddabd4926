"""Does this model, run our way, say what it says on its own? Asked once, when it is loaded."""

from __future__ import annotations

import numpy as np
import torch
from transformers import PreTrainedModel

from draftrec.core import EMPTY_TREE
from draftrec.errors import UnsupportedModelError
from draftrec.models.packing import Segment
from draftrec.models.target import Target, check_served
from draftrec.tokens.tree import make_tree


def checked_target(model: PreTrainedModel) -> Target:
    """A `Target`, after comparing tree scores with plain forward passes on a few tokens.

    Raises UnsupportedModelError if they differ by more than rounding: some architectures hide
    state, positions or masks of their own, and would give wrong texts silently.
    """
    check_served(model)
    vocabulary = model.config.get_text_config().vocab_size
    ids = np.random.default_rng(0).integers(0, vocabulary, 12).astype(np.int32)
    prompt, last = ids[:7], ids[7:8]
    tree = make_tree(ids[8:11].tolist(), [-1, 0, -1]) if ids[8] != ids[10] else EMPTY_TREE
    paths = [[], [8], [8, 9], [10]][: len(tree) + 1]
    expected = _plain(model, [[*range(8), *path] for path in paths], ids)
    target = Target(model)
    target.reserve(2, 32)
    target.score([Segment(1, 0, prompt, EMPTY_TREE, scored=False)])
    found = target.score([Segment(1, 7, last, tree)]).logits.float()
    target.slab = None
    error = float((found - expected).abs().max() / expected.std().clamp_min(1e-6))
    allowed = 2e-3 if model.dtype == torch.float32 else 0.3
    if not error <= allowed:
        raise UnsupportedModelError(
            f"{type(model).__name__} cannot be served: scoring a draft tree gives other logits "
            f"than its own forward pass (difference {error:.2g} standard deviations); it probably "
            "uses positions or state that draftrec does not know."
        )
    return target


@torch.inference_mode()
def _plain(model: PreTrainedModel, paths: list[list[int]], ids: np.ndarray) -> torch.Tensor:
    rows = [
        model(input_ids=torch.tensor([ids[p].tolist()], device=model.device)).logits[0, -1]
        for p in paths
    ]
    return torch.stack(rows).float()
