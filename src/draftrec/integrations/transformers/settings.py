"""The settings that draftrec adds to `generate`, checked against the rest of the call."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import ValidationError

from draftrec.config import AcceptConfig, Auto, BatchConfig, DraftConfig, not_allowed
from draftrec.errors import DraftrecError
from draftrec.pool.store import Pool


@dataclass(frozen=True, slots=True)
class Settings:
    """How texts are drafted and accepted, `slots` of them at once."""

    accept: AcceptConfig
    drafting: DraftConfig
    slots: int

    @property
    def strict(self) -> bool:
        return self.accept.accept == "strict"

    def check(
        self,
        pool: Pool | None,
        groups: Seq[str | None] | None,
        rows: int,
        *,
        grow_pool: bool,
    ) -> None:
        """Raises DraftrecError for settings that do not go together."""
        if pool is not None and not isinstance(pool, Pool):
            raise DraftrecError(
                f"pool is a {type(pool).__name__} and must be a Pool; open a folder with "
                "draftrec.integrations.transformers.open_pool(folder, tokenizer)."
            )
        if grow_pool and pool is None:
            raise DraftrecError(
                "grow_pool needs a pool that texts can join; pass "
                "pool=draftrec.integrations.transformers.new_pool(tokenizer)."
            )
        if groups is not None and len(groups) != rows:
            raise DraftrecError(
                f"groups has {len(groups)} entries and the batch {rows} rows; pass one per row."
            )

    def sampled(self) -> AcceptConfig:
        """The acceptance rule's settings for one sampled call, seeded by torch's own generator."""
        return self.accept.model_copy(
            update={"temperature": 1.0, "seed": int(torch.randint(2**62, ()))}
        )


def read_settings(
    accept: str | AcceptConfig, drafting: dict[str, Any], batch_size: int | Auto, rows: int
) -> Settings:
    """Raises DraftrecError, in one sentence, for values that are not allowed."""
    try:
        rule = accept if isinstance(accept, AcceptConfig) else AcceptConfig(accept=accept)  # type: ignore[arg-type]
        draft = DraftConfig(**drafting)
        size = BatchConfig(batch_size=batch_size).batch_size
    except ValidationError as error:
        raise DraftrecError(f"{not_allowed(error)}.") from error
    if rule.temperature > 0 or rule.top_p is not None or rule.seed:
        raise DraftrecError(
            "Sampling is generate's business: pass do_sample, temperature and top_p to it, seed it "
            "with torch.manual_seed, and leave all of that out of AcceptConfig."
        )
    return Settings(rule, draft, rows if size == "auto" else min(size, rows))
