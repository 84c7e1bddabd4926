"""The columns of a file of recommendations, whose ids are typed as those of its input."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass

import pyarrow as pa

from draftrec.data.id_columns import arrow_type
from draftrec.data.sequences import History
from draftrec.items.ids import as_text, is_text
from draftrec.items.semantic_ids import SemanticIds
from draftrec.recommend.values import Recommendation


@dataclass(frozen=True, slots=True)
class IdTypes:
    """Whether users and items are texts in the output, as they are in the input."""

    users: bool = False
    items: bool = False

    @classmethod
    def of(cls, histories: Seq[History], sids: SemanticIds) -> IdTypes:
        """Users as in the sequences; items too, unless these say nothing of it, or the catalogue's
        items are no numbers."""
        users = any(isinstance(h.user, str) for h in histories)
        some = [ids for h in histories for ids in (h.items, h.targets) if len(ids)][:1]
        items = is_text(some[0]) if some else sids.spelt
        return cls(users, items or is_text(sids.items))

    @property
    def schema(self) -> pa.Schema:
        """The contract's columns."""
        return pa.schema(
            [
                ("user", arrow_type(text=self.users)),
                ("items", pa.list_(arrow_type(text=self.items))),
                ("scores", pa.list_(pa.float64())),
                ("sids", pa.list_(pa.list_(pa.string()))),
                ("target_calls", pa.int32()),
                ("accepted_steps", pa.int32()),
            ]
        )


NUMBERS = IdTypes()


def to_table(answers: Seq[Recommendation], ids: IdTypes) -> pa.Table:
    """The contract's rows."""
    columns = {
        "user": [a.user for a in answers],
        "items": [as_text(a.items).tolist() if ids.items else a.items for a in answers],
        "scores": [a.scores for a in answers],
        "sids": [a.sids for a in answers],
        "target_calls": [a.target_calls for a in answers],
        "accepted_steps": [a.accepted_steps for a in answers],
    }
    return pa.table(columns, schema=ids.schema)
