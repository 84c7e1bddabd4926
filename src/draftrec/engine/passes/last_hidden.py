"""The last hidden states of the rows of a pass, as the model's output layer reads them.

Where they come from is found by one plain pass: the module whose output the output layer reads,
in most models the last norm. A hook on it takes them from the passes that keep them. In models that
do more between the two (a scale, a cast) no module has what is wanted.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from draftrec.errors import UnsupportedModelError

#: Tokens of the plain pass.
PROBE = (0, 1, 2)


class LastHidden:
    """What `module` gave in the last pass that was `watched`; `expected` `[len(PROBE), H]`: what
    the output layer reads in a plain pass over `PROBE`."""

    def __init__(self, module: torch.nn.Module, expected: torch.Tensor) -> None:
        self.module, self.expected = module, expected
        self._rows: torch.Tensor | None = None

    def watched(self) -> RemovableHandle:
        """From now on until the handle is removed, or its context is left."""
        return self.module.register_forward_hook(self._keep)

    def _keep(self, module: Any, args: Any, output: torch.Tensor) -> None:
        self._rows = output

    def taken(self) -> torch.Tensor:
        """`[P, H]`: of all rows of the pass, one after another."""
        rows, self._rows = self._rows, None
        if rows is None:
            raise RuntimeError("no pass was watched")
        return rows.flatten(0, -2)


@torch.inference_mode()
def find_last_hidden(model: PreTrainedModel) -> LastHidden:
    """Raises UnsupportedModelError where no module's output is what the output layer reads."""
    head: Any = model.get_output_embeddings()
    given: list[tuple[torch.nn.Module, torch.Tensor]] = []
    read: list[torch.Tensor] = []

    def note(module: torch.nn.Module, args: Any, output: Any) -> None:
        if isinstance(output, torch.Tensor):
            given.append((module, output))  # kept alive, so that no address is used twice

    attention = model.config._attn_implementation
    model.set_attn_implementation("eager")
    with ExitStack() as stack:
        stack.callback(model.set_attn_implementation, attention or "eager")
        if head is not None:
            stack.enter_context(
                head.register_forward_pre_hook(lambda _, args: read.append(args[0]))
            )
        for module in model.modules():
            if module is not head:
                stack.enter_context(module.register_forward_hook(note))
        model(input_ids=torch.tensor([PROBE], device=model.device), use_cache=False)
    for module, output in reversed(given):
        if read and output.data_ptr() == read[0].data_ptr() and output.shape == read[0].shape:
            return LastHidden(module, output.flatten(0, -2))
    raise UnsupportedModelError(
        f"{type(model).__name__} cannot be drafted for by a head: its output layer does not read "
        "what any of its modules gives, so that its last hidden states cannot be taken from a "
        "pass; draft without a head, or use another architecture."
    )
