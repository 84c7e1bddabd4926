"""The pool drafter inside vLLM, as its `custom_class` proposer.

```python
from draftrec.integrations.vllm import engine_args

llm = vllm.LLM(model, **engine_args(pool="pool/"))
```

This module is imported by users before they start vLLM, and vLLM's thread settings come too late
for libraries that were loaded earlier: whatever is heavy is imported where it is used.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Seq
from pathlib import Path
from typing import TYPE_CHECKING, Any

from draftrec.data.files.places import here
from draftrec.integrations.vllm.settings import (
    EXTENSION,
    ProposerSettings,
    check_pool,
    check_tokens,
    from_vllm,
    parsed,
)

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from draftrec.integrations.vllm.rows import Rows

__all__ = ["PoolProposer", "ProposerSettings", "engine_args", "write_groups"]


def engine_args(
    pool: str | Path | None = None,
    *,
    k: int = 16,
    groups: str | Path | None = None,
    grow: bool = False,
    **more: Any,
) -> dict[str, Any]:
    """Arguments for `vllm.LLM`, `vllm.EngineArgs` and the like that have a pool draft.

    `pool`: a folder that `draftrec pool build`, `--save-pool` or `Pool.save` wrote. `k`: most draft
    tokens per step. `groups`: a file that `write_groups` wrote. `grow`: finished texts are drafted
    from as well; needs no pool to start with. `more`: the other fields of `ProposerSettings`.

    The settings travel in vLLM's own `additional_config`, so they reach engine and worker processes
    wherever those run. Raises DraftrecError before any engine is started for values that are not
    allowed and for a pool that is missing or damaged.
    """
    paths = {
        name: None if path is None else str(here(path, name).absolute())
        for name, path in (("pool", pool), ("groups", groups))
    }
    settings = parsed({**paths, "grow": grow, **more})
    check_tokens(k)
    check_pool(settings)
    return {
        "speculative_config": {
            "method": "custom_class",
            "model": f"{PoolProposer.__module__}.{PoolProposer.__qualname__}",
            "num_speculative_tokens": k,
        },
        "additional_config": {EXTENSION: settings.model_dump(exclude_defaults=True)},
    }


def write_groups(path: str | Path, prefixes: Iterable[tuple[Seq[int], str]]) -> None:
    """Write which group prompts belong to, for the `groups` of `engine_args`.

    `prefixes`: (token ids, group); the ids are whole prompts as vLLM sees them, or their first
    tokens, special ones included. Of several that fit a prompt the longest counts; a prompt that
    none fits drafts from all texts. The file holds hashes, not prompts.
    Raises DraftrecError for an empty prefix, or for one with two groups.
    """
    from draftrec.integrations.vllm.rows import PromptGroups

    PromptGroups.of(prefixes).save(here(path, "write_groups"))


class PoolProposer:
    """What vLLM makes for `method="custom_class"` and asks after each step (run with vLLM 0.32).

    vLLM verifies every draft, so texts are those that it writes without; drafts only decide how
    many steps they take. One per worker, used by one thread.
    """

    def __init__(self, vllm_config: Any) -> None:
        """Open the pool that the settings name (see `vllm.settings`).

        Raises DraftrecError for bad settings and for a missing or damaged pool, PoolMismatchError
        for a pool of another tokenizer.
        """
        from draftrec.integrations.vllm.rows import Rows
        from draftrec.integrations.vllm.setup import make_drafter, read_engine

        settings = from_vllm(vllm_config)
        engine = read_engine(vllm_config)
        self._tokens = engine.draft_tokens
        self._room = engine.max_model_len - 1  # the step that verifies samples one token more
        self._drafter = make_drafter(settings, engine)
        self._rows: Rows = Rows(self._drafter, engine.eos_ids, engine.max_num_seqs)

    def propose(
        self,
        sampled_token_ids: list[list[int]],
        num_tokens_no_spec: npt.NDArray[np.int32],
        token_ids_cpu: npt.NDArray[np.int32],
        slot_mappings: Any = None,
    ) -> list[list[int]]:
        """Drafts for each row of the batch; an empty one is plain decoding.

        `sampled_token_ids`: what each row's last step gave, nothing for a row whose prompt is still
        being read. `num_tokens_no_spec` int32 `[rows]`: tokens of each row, these included.
        `token_ids_cpu` int32 `[rows, max_model_len]`: prompts and texts. `slot_mappings` is not
        looked at.
        """
        lengths = num_tokens_no_spec[: len(sampled_token_ids)].tolist()
        new = [len(sampled) for sampled in sampled_token_ids]
        texts = self._rows.follow(
            [token_ids_cpu[row, :length] for row, length in enumerate(lengths)], new
        )
        asked = [row for row, text in enumerate(texts) if text and lengths[row] < self._room]
        chains = self._drafter.draft([t for row in asked if (t := texts[row])], self._tokens)
        drafts: list[list[int]] = [[] for _ in lengths]
        for row, chain in zip(asked, chains, strict=True):
            drafts[row] = chain[: self._room - lengths[row]]
        return drafts

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        """vLLM loads draft models here; a pool is none."""
