"""How many sequences a model's passes take together, and what passes cost: measured when a run
begins, learned while it goes, and kept for the next."""

from __future__ import annotations

import logging
import os
from typing import Any

import torch

from draftrec.config import GenerateConfig
from draftrec.engine.costs import CostCurve, LearningCurve
from draftrec.engine.target import Target
from draftrec.pool.costs import measure_cost

_LOG = logging.getLogger(__name__)
_MOST_SLOTS = {"cpu": 16, "cuda": 128}
# As many texts as make it worthwhile to measure for as long as ever.
_MANY = 1 << 30


class Passes:
    """Passes of `target` under one configuration. `state`: what is known of them, as JSON, for a
    later run to begin with."""

    def __init__(
        self,
        target: Target,
        config: GenerateConfig,
        context_length: int,
        state: dict[str, Any] | None,
    ) -> None:
        self.state = state
        self._target, self._batch, self._context_length = target, config.batch, context_length
        self._budget: int | str = config.draft.budget
        self._curve: tuple[int, int, LearningCurve] | None = None

    def slots(self, longest: int) -> int:
        """Sequences that run together, their prompts being of at most `longest` tokens: as asked,
        or as many as a share of free memory holds."""
        wanted = self._batch.batch_size
        if wanted != "auto":
            return wanted
        if self.state is not None:
            return self.state["slots"]
        room = longest + self._batch.max_new_tokens + 65
        room = min(room, self._context_length + 65)
        fit = int(_free_memory(self._target.device) * 0.5) // (self._target.bytes_per_token * room)
        slots = max(1, min(_MOST_SLOTS[self._target.device.type], fit))
        self.state = {"slots": slots}
        return slots

    def curve(self, longest: int, texts: int | None = None) -> LearningCurve:
        """Seconds of a pass by its rows, prompts being of at most `longest` tokens, which goes on
        learning from every run. Measured for no longer than is worth it for so many `texts` (None:
        any number), and again where there are many more."""
        slots, many = self.slots(longest), _MANY if texts is None else texts
        if self._curve is None or self._curve[0] != slots or many >= 8 * self._curve[1]:
            known = self._known(slots) if self._curve is None else None
            first = known or self._measure(slots, longest, many)
            self._curve = slots, _MANY if known else many, LearningCurve(first)
            self.keep()
        return self._curve[2]

    def keep(self) -> None:
        """Let what passes cost be part of what later runs begin with."""
        if self._curve is not None and self._budget == "auto":
            slots, _, curve = self._curve
            self.state = {"slots": slots, **curve.to_json()}

    def _known(self, slots: int) -> CostCurve | None:
        """What passes cost as an earlier run left it."""
        state = self.state
        if self._budget != "auto" or state is None or state["slots"] != slots:
            return None
        return CostCurve.from_json(state) if "rows" in state else None

    def _measure(self, slots: int, longest: int, texts: int) -> CostCurve:
        _LOG.info("measuring what a pass of the model costs")
        usual = min(self._batch.max_new_tokens, 256) // 2
        context = max(1, min(longest + usual, self._context_length - 66))
        most = min(64, self._budget) if isinstance(self._budget, int) else 64
        nodes = max(0, min(most, self._context_length - context - 1))
        # A pass writes some two tokens of each text.
        passes, together = -(-texts // slots) * usual // 2, min(slots, texts)
        return measure_cost(self._target, together, context, nodes=nodes, passes=passes)


def _free_memory(device: torch.device) -> int:
    """Bytes free on the device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return 4 << 30
