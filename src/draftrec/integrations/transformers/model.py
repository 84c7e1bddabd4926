"""A caller's model, lent for one `generate` call and given back as it was."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from weakref import WeakKeyDictionary, WeakSet

from transformers import PreTrainedModel

from draftrec.data.files.places import place
from draftrec.engine.costs import LearningCurve
from draftrec.engine.rotary import context_length
from draftrec.engine.selfcheck import checked_target
from draftrec.engine.target import Target
from draftrec.engine.text.budget import AutoBudget, Budget, FixedBudget
from draftrec.errors import PoolMismatchError, UnsupportedModelError
from draftrec.integrations.transformers.call import Settings
from draftrec.models.drafters import INFO_FILE, LearnedDrafter, load_drafter
from draftrec.models.loading import model_fingerprint
from draftrec.pool.costs import measure_cost
from draftrec.pool.store import Pool


@dataclass(slots=True)
class ModelState:
    """What is known of a model between calls. It must not hold the model, which could then never
    be freed; a `Target` does, so it is made anew, at the price of a pass over one token."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    checked: bool = False
    plain: bool = False  # runs as it is, and not by a pass written for its architecture
    costs: dict[tuple[str, str, int], LearningCurve] = field(default_factory=dict)
    pools: WeakSet[Pool] = field(default_factory=WeakSet)
    learned: tuple[tuple[object, ...], LearnedDrafter] | None = None

    def check_pool(self, pool: Pool, vocabulary: int) -> None:
        """Raises PoolMismatchError if the pool, seen for the first time, has foreign tokens."""
        if pool in self.pools:
            return
        if any(int(ids.max()) >= vocabulary for ids, _ in pool):
            raise PoolMismatchError(
                f"The pool has tokens beyond the model's vocabulary of {vocabulary}; open it with "
                "draftrec.integrations.transformers.open_pool and the model's tokenizer."
            )
        self.pools.add(pool)

    def learned_drafter(self, folder: str | Path, model: PreTrainedModel) -> LearnedDrafter:
        """The drafter of a folder, read again when it or the model has changed.

        Raises DraftrecError for a folder of anything else, and for another model's.
        """
        info, known = place(folder) / INFO_FILE, model_fingerprint(model)
        said = info.read_bytes() if info.is_file() else None
        key = info, said, known, model.dtype, model.device
        if self.learned is None or self.learned[0] != key:
            self.learned = key, load_drafter(folder, model, {"model": known})
        return self.learned[1]


_STATES: WeakKeyDictionary[PreTrainedModel, ModelState] = WeakKeyDictionary()
_FIRST_USE = threading.Lock()


@contextmanager
def adapted(model: PreTrainedModel) -> Iterator[tuple[Target, ModelState]]:
    """The model behind a `Target`, compared with itself at the first call. Afterwards its attention
    and training modes are what they were, and no memory is held.

    Raises UnsupportedModelError for a model that cannot be served.
    """
    if len(set((getattr(model, "hf_device_map", None) or {}).values())) > 1:
        raise UnsupportedModelError(
            f"{type(model).__name__} is spread over several devices and draftrec serves a model on "
            "one; load it without device_map."
        )
    with _FIRST_USE:
        state = _STATES.setdefault(model, ModelState())
    with state.lock, _restored(model):
        model.eval()  # a text must not depend on dropout
        way = "auto" if model.device.type == "cpu" and not state.plain else "eager"
        target = Target(model, way=way) if state.checked else checked_target(model, way=way)
        state.checked, state.plain = True, not target.by_hand
        yield target, state


@contextmanager
def _restored(model: PreTrainedModel) -> Iterator[None]:
    config = model.config
    attention = {"": config._attn_implementation}
    for name in config.sub_configs:
        if (part := getattr(config, name, None)) is not None:
            attention[name] = part._attn_implementation
    training = [module for module in model.modules() if module.training]
    try:
        yield
    finally:
        model.set_attn_implementation(attention)
        for module in training:
            module.training = True


def costs_of(
    target: Target, state: ModelState, settings: Settings, longest: int, new_tokens: int
) -> LearningCurve | None:
    """What passes cost, measured where that is not known yet, for a small part of the time that so
    many new tokens take; None where it is no matter.

    `longest`: tokens of the longest prompt. Batches are measured at powers of two, so that those of
    many sizes do not all wait for it.
    """
    if settings.drafting.draft == "none" or settings.drafting.budget != "auto":
        return None
    slots = 1 << (settings.slots - 1).bit_length()
    key = (str(target.device), str(target.dtype), slots)
    if key not in state.costs:
        most = context_length(target.model)
        context = max(1, min(longest + min(new_tokens, 256) // 2, most - 66))
        nodes = max(0, min(64, most - context - 1))
        first = measure_cost(target, slots, context, nodes=nodes, passes=new_tokens // 2)
        state.costs[key] = LearningCurve(first)
    return state.costs[key]


def make_budget(settings: Settings, costs: LearningCurve | None) -> Budget:
    """How many nodes a pass may carry."""
    if costs is not None:
        return AutoBudget(costs)
    wanted = settings.drafting.budget
    return FixedBudget(0 if settings.drafting.draft == "none" or wanted == "auto" else wanted)
